//! A weight file.

#![no_main]

use formats::WeightFiles;
use fuzz::with_files;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    with_files(data, &["model.safetensors"], |folder| {
        let _ = WeightFiles::open_file(&folder.join("model.safetensors"));
    });
});
