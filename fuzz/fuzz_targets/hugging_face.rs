//! A Hugging Face directory: configuration and weights.

#![no_main]

use formats::model_dir::ModelDir;
use fuzz::with_files;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    with_files(data, &["config.json", "model.safetensors"], |folder| {
        let _ = ModelDir::open(folder);
    });
});
