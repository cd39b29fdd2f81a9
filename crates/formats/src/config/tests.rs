use proptest::prelude::*;
use serde_json::{Value, json};
use testkit::damage::damaged;

use super::native::{self, PARAMS_FILE, to_native_json};
use super::*;

pub(crate) fn tiny_config() -> DecoderConfig {
    DecoderConfig {
        vocab_size: 512,
        hidden_dim: 64,
        n_layers: 2,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 16,
        ffn_dim: 128,
        context_len: 256,
        rope: Rope::plain(1e4),
        query_scaling: None,
        rms_norm_eps: 1e-5,
        tied_embeddings: true,
        sliding_windows: Vec::new(),
        experts: None,
        bos_id: Some(1),
        eos_ids: vec![2],
        dtype: WeightDtype::F32,
    }
}

fn parse(value: &Value) -> Result<DecoderConfig, FormatError> {
    parse_config(value.to_string().as_bytes()).map(|config| config.decoder)
}

fn parse_native(value: &Value) -> Result<ReadConfig, FormatError> {
    parse_params(value.to_string().as_bytes())
}

fn parse_params(bytes: &[u8]) -> Result<ReadConfig, FormatError> {
    native::parse_at(Path::new(PARAMS_FILE), bytes)
}

const YARN: RopeScaling = RopeScaling::Yarn {
    factor: 16.0,
    beta_fast: 32.0,
    beta_slow: 1.0,
    original_context_len: 64,
    attention_factor: 1.0,
    is_truncated: true,
};

/// One configuration of each architecture that both layouts can hold.
fn architectures() -> Vec<DecoderConfig> {
    let tiny = DecoderConfig { n_layers: 4, dtype: WeightDtype::Bf16, ..tiny_config() };
    vec![
        tiny.clone(),
        DecoderConfig { sliding_windows: vec![Some(4096)], head_dim: 32, ..tiny.clone() },
        DecoderConfig {
            sliding_windows: vec![None, Some(64), Some(64), Some(64)],
            tied_embeddings: false,
            ..tiny.clone()
        },
        DecoderConfig {
            rope: Rope { theta: 1e6, scaling: YARN },
            query_scaling: Some(QueryScaling { beta: 0.1, original_context_len: 64 }),
            ..tiny.clone()
        },
        DecoderConfig { experts: Some(Experts { n_experts: 8, n_active: 2 }), ..tiny },
    ]
}

/// The tiny configuration with one field replaced (`None` removes it).
fn with(field: &str, value: Option<Value>) -> Value {
    let mut json = to_hf_json(&tiny_config()).unwrap();
    let object = json.as_object_mut().unwrap();
    match value {
        Some(value) => object.insert(field.to_owned(), value),
        None => object.remove(field),
    };
    json
}

#[test]
fn what_is_written_is_read_back() {
    let configs = [
        tiny_config(),
        DecoderConfig {
            tied_embeddings: false,
            sliding_windows: vec![Some(4096)],
            bos_id: None,
            eos_ids: vec![2, 7, 9],
            dtype: WeightDtype::Bf16,
            rope: Rope { theta: 1e6, scaling: RopeScaling::Linear { factor: 4.0 } },
            head_dim: 32,
            ..tiny_config()
        },
        DecoderConfig {
            eos_ids: vec![],
            dtype: WeightDtype::F16,
            rope: Rope {
                theta: 5e5,
                scaling: RopeScaling::Llama3 {
                    factor: 8.0,
                    low_freq_factor: 1.0,
                    high_freq_factor: 4.0,
                    original_context_len: 64,
                },
            },
            ..tiny_config()
        },
    ];
    for config in configs.into_iter().chain(architectures()) {
        assert_eq!(parse(&to_hf_json(&config).unwrap()).unwrap(), config);
    }
}

#[test]
fn both_layouts_describe_the_same_decoder() {
    for config in architectures() {
        let native = parse_native(&to_native_json(&config).unwrap()).unwrap();
        assert_eq!(native, ReadConfig { decoder: config, text_part_of: None });
    }
    let scaling = RopeScaling::Linear { factor: 2.0 };
    let config = DecoderConfig { rope: Rope { theta: 1e4, scaling }, ..tiny_config() };
    assert_eq!(to_native_json(&config), Err("linear rope scaling"));
}

fn native_with(changes: Value) -> Value {
    let mut json = to_native_json(&tiny_config()).unwrap();
    let object = json.as_object_mut().unwrap();
    for (key, value) in changes.as_object().unwrap() {
        match value {
            Value::String(word) if word == "absent" => object.remove(key),
            value => object.insert(key.clone(), value.clone()),
        };
    }
    json
}

#[test]
fn an_absent_base_means_that_of_the_first_model_and_nothing_else() {
    let first = native_with(json!({"rope_theta": "absent", "sliding_window": 4096}));
    assert_eq!(parse_native(&first).unwrap().decoder.rope, Rope::plain(1e4));
    for window in [json!(null), json!(8192)] {
        let later = native_with(json!({"rope_theta": "absent", "sliding_window": window}));
        let error = parse_native(&later).unwrap_err().to_string();
        assert!(error.contains("`rope_theta` of params.json is missing"), "{error}");
    }
}

#[test]
fn native_files_of_models_with_more_parts_are_read() {
    let json = native_with(json!({
        "_sliding_window": [null, 64], "vision_encoder": {"hidden_size": 1024}, "model_type": "transformer",
        "quantization": {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}, "max_batch_size": 3,
        "yarn": {"original_max_position_embeddings": 64, "factor": 16, "apply_scale": true, "beta": 32, "alpha": 1}
    }));
    let native = parse_native(&json).unwrap();
    assert_eq!(native.text_part_of.as_deref(), Some("a model with vision_encoder"));
    assert_eq!(native.decoder.sliding_windows, [None, Some(64)]);
    let RopeScaling::Yarn { attention_factor, .. } = native.decoder.rope.scaling else {
        panic!("{:?}", native.decoder.rope);
    };
    assert!((attention_factor - 1.277).abs() < 1e-3, "0.1 ln 16 + 1, got {attention_factor}");
}

#[test]
fn native_settings_that_change_the_computation_are_refused_by_name() {
    let cases = [
        ("model_type", json!("mamba")),
        ("activation", json!("gelu")),
        ("use_biases", json!(true)),
        ("q_lora_rank", json!(1536)),
        ("sliding_window", json!([4096, 512])),
        ("sliding_window", json!([1, 1, 1])),
        ("sliding_window", json!([])),
        ("moe", json!({"num_experts": 8, "num_experts_per_tok": 9})),
        ("moe", json!({"num_experts": 8, "num_experts_per_tok": 2, "num_shared_experts": 1})),
        ("quantization", json!({"qformat_weight": "int4"})),
        ("yarn", json!({"factor": 4, "original_max_position_embeddings": 64, "gamma": 1})),
        ("llama_4_scaling", json!({"beta": 0.1, "original_max_position_embeddings": 64})),
        ("n_kv_heads", json!(3)),
        ("head_dim", json!(15)),
        ("head_dim", json!("absent")),
        ("vocab_size", json!(1)),
    ];
    for (field, value) in cases {
        let error = parse_native(&native_with(json!({field: value}))).unwrap_err().to_string();
        assert!(error.contains(field), "{field}: {error}");
    }
}

#[test]
fn the_text_part_of_a_larger_model_is_found() {
    let mut text = to_hf_json(&architectures()[3]).unwrap();
    text.as_object_mut().unwrap().remove("dtype");
    text.as_object_mut().unwrap().remove("torch_dtype");
    let whole = json!({
        "architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3", "dtype": "bfloat16",
        "text_config": text, "vision_config": {"model_type": "pixtral"}, "image_token_index": 10,
        "quantization_config": {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": null}
    });
    let config = parse_config(whole.to_string().as_bytes()).unwrap();
    assert_eq!(config.decoder, architectures()[3]);
    assert_eq!(config.text_part_of.as_deref(), Some("mistral3"));
    let error = parse_config(br#"{"model_type": "mistral3"}"#).unwrap_err().to_string();
    assert!(error.contains("`text_config` of config.json is missing"), "{error}");
}

#[test]
fn files_of_transformers_5_are_read() {
    // As written by transformers 5.23 for MistralConfig(head_dim=64) and LlamaConfig().
    let mistral = json!({
        "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2, "head_dim": 64, "hidden_act": "silu",
        "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
        "max_position_embeddings": 131_072, "model_type": "mistral", "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "pad_token_id": null, "rms_norm_eps": 1e-06,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "sliding_window": 4096,
        "tie_word_embeddings": false, "transformers_version": "5.23.0", "use_cache": true, "vocab_size": 32000,
        "dtype": "bfloat16", "architectures": ["MistralForCausalLM"]
    });
    let config = parse(&mistral).unwrap();
    assert_eq!((config.head_dim, config.sliding_windows), (64, vec![Some(4096)]));
    assert_eq!((config.rope, config.dtype), (Rope::plain(1e4), WeightDtype::Bf16));
    let llama = json!({
        "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": [2, 3],
        "head_dim": 64, "hidden_act": "silu", "hidden_size": 256, "initializer_range": 0.02,
        "intermediate_size": 11008, "max_position_embeddings": 2048, "mlp_bias": false, "model_type": "llama",
        "num_attention_heads": 4, "num_hidden_layers": 32, "num_key_value_heads": 4, "pad_token_id": null,
        "pretraining_tp": 1, "rms_norm_eps": 1e-06,
        "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"},
        "tie_word_embeddings": true, "transformers_version": "5.23.0", "use_cache": true, "vocab_size": 32000
    });
    let config = parse(&llama).unwrap();
    assert_eq!((config.rope, config.sliding_windows), (Rope::plain(5e5), vec![]));
    assert_eq!((config.eos_ids, config.tied_embeddings), (vec![2, 3], true));
}

#[test]
fn absent_fields_mean_what_transformers_means_by_them() {
    let mut json = to_hf_json(&tiny_config()).unwrap();
    let object = json.as_object_mut().unwrap();
    for field in
        ["head_dim", "rope_theta", "rope_parameters", "sliding_window", "dtype", "torch_dtype"]
    {
        object.remove(field);
    }
    for field in ["bos_token_id", "eos_token_id", "tie_word_embeddings", "rms_norm_eps"] {
        object.remove(field);
    }
    let config = parse(&json).unwrap();
    assert_eq!((config.head_dim, config.rope, config.rms_norm_eps), (16, Rope::plain(1e4), 1e-6));
    assert_eq!((config.bos_id, config.eos_ids), (Some(1), vec![2]));
    assert_eq!((config.sliding_windows, config.tied_embeddings), (vec![Some(4096)], false));
}

#[test]
fn settings_that_change_the_computation_are_refused_by_name() {
    let cases = [
        ("model_type", json!("gpt2")),
        ("architectures", json!(["MistralForSequenceClassification"])),
        ("hidden_act", json!("gelu")),
        ("attention_bias", json!(true)),
        ("mlp_bias", json!(true)),
        ("rope_scaling", json!({"rope_type": "llama3", "factor": 8.0})),
        ("rope_parameters", json!({"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0})),
        ("rope_parameters", json!({"rope_type": "default", "rope_theta": 5.0e4})),
        ("rope_parameters", json!({"rope_type": "default", "attention_factor": 1.2})),
        ("rope_parameters", json!({"rope_type": "default", "partial_rotary_factor": 0.5})),
        ("quantization_config", json!({"bits": 4})),
        ("sliding_window", json!([4096, null])),
        ("layer_types", json!(["full_attention"])),
        ("attn_logit_softcapping", json!(50.0)),
        ("dtype", json!("float8")),
        ("rope_scaling", json!({"rope_type": "dynamic", "factor": 8.0})),
        (
            "rope_scaling",
            json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64}),
        ),
        ("num_local_experts", json!(8)),
        ("quantization_config", json!({"quant_method": "gptq"})),
        ("quantization_config", json!({"quant_method": "fp8", "weight_block_size": [128, 128]})),
        ("dtype", json!("bfloat16")),
        ("pretraining_tp", json!(2)),
    ];
    for (field, value) in cases {
        let error = parse(&with(field, Some(value))).unwrap_err().to_string();
        assert!(error.contains(field), "{field}: {error}");
    }
}

#[test]
fn every_number_has_bounds() {
    let cases = [
        ("vocab_size", json!(0)),
        ("vocab_size", json!(u64::MAX)),
        ("hidden_size", json!(-64)),
        ("hidden_size", json!(64.5)),
        ("hidden_size", json!("64")),
        ("num_hidden_layers", json!(1_000_000)),
        ("num_attention_heads", json!(1_000_000)),
        ("num_key_value_heads", json!(3)),
        ("num_key_value_heads", json!(8)),
        ("head_dim", json!(15)),
        ("intermediate_size", json!(1u64 << 40)),
        ("max_position_embeddings", json!(null)),
        ("rope_theta", json!(0)),
        ("rms_norm_eps", json!(-1e-5)),
        ("rms_norm_eps", json!(1e300)),
        ("sliding_window", json!(0)),
        ("bos_token_id", json!(512)),
        ("eos_token_id", json!([1, 5_000_000_000u64])),
        ("tie_word_embeddings", json!(1)),
    ];
    for (field, value) in cases {
        let error = parse(&with(field, Some(value))).unwrap_err().to_string();
        assert!(error.contains(&format!("`{field}`")), "{field}: {error}");
        assert!(error.contains("expected"), "{error}");
    }
    for field in ["vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size"] {
        let error = parse(&with(field, None)).unwrap_err().to_string();
        assert!(error.contains(&format!("`{field}` of config.json is missing")), "{error}");
    }
}

#[test]
fn long_hostile_values_are_shortened_in_the_message() {
    let error = parse(&with("hidden_act", Some(json!("é".repeat(100_000))))).unwrap_err();
    assert!(error.to_string().len() < 500);
}

#[test]
fn the_parameter_count_is_the_sum_of_the_shapes() {
    // embedding 512*64; per layer 2*64 + 64*64 + 2*(32*64) + 64*64 + 3*(128*64); final norm 64.
    let expected = 32_768 + 2 * (128 + 4096 + 4096 + 4096 + 24_576) + 64;
    assert_eq!(tiny_config().n_parameters(), expected);
}

proptest! {
    #[test]
    fn hostile_bytes_give_an_error_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        prop_assert!(parse_config(&bytes).is_err());
    }
}

#[test]
fn damaged_files_never_panic() {
    let config = &architectures()[3];
    let valid = to_hf_json(config).unwrap().to_string();
    let n_right = damaged(valid.as_bytes(), 1, 5_000).filter(|b| parse_config(b).is_ok()).count();
    assert!((1..4_000).contains(&n_right), "{n_right} of 5000 are still right");
    let valid = to_native_json(config).unwrap().to_string();
    let n_right = damaged(valid.as_bytes(), 1, 5_000).filter(|b| parse_params(b).is_ok()).count();
    assert!((1..4_000).contains(&n_right), "{n_right} of 5000 are still right");
}
