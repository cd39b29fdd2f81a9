//! A low-rank adapter in the forms of PEFT and mistral-finetune, opened for a tiny model.

#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use formats::adapter::Adapter;
use formats::{DecoderConfig, WeightName, parse_config};
use fuzz::with_files;
use libfuzzer_sys::fuzz_target;

static CONFIG: LazyLock<DecoderConfig> = LazyLock::new(|| {
    let json = br#"{"model_type": "mistral", "vocab_size": 8, "hidden_size": 4,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "intermediate_size": 6, "max_position_embeddings": 16, "rms_norm_eps": 1e-5,
        "sliding_window": null, "torch_dtype": "float32"}"#;
    parse_config(json).expect("the configuration is right").decoder
});

fuzz_target!(|data: &[u8]| {
    with_files(data, &["adapter_config.json", "adapter_model.safetensors"], |folder| {
        read(folder, None);
    });
    with_files(data, &["params.json", "lora.safetensors"], |folder| {
        read(&folder.join("lora.safetensors"), Some(2.0));
    });
});

fn read(path: &Path, scaling: Option<f64>) {
    let Ok(adapter) = Adapter::open(path, &CONFIG, scaling) else { return };
    for name in WeightName::all(&CONFIG) {
        let _ = adapter.pair(name, &CONFIG);
    }
}
