//! A GGUF file: header, configuration, vocabulary.

#![no_main]

use formats::gguf::GgufFile;
use fuzz::with_files;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    with_files(data, &["model.gguf"], |folder| {
        if let Ok(file) = GgufFile::open(&folder.join("model.gguf")) {
            let _ = file.decoder_config();
            let _ = file.vocabulary();
            for tensor in file.tensors().values() {
                let _ = file.bytes(tensor);
            }
        }
    });
});
