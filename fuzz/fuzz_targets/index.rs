//! The index of weights in several files, beside a file that it may name: `a`, with one tensor.

#![no_main]

use std::fs;

use formats::WeightFiles;
use fuzz::with_files;
use libfuzzer_sys::fuzz_target;

const HEADER: &[u8] = br#"{"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;

fuzz_target!(|data: &[u8]| {
    with_files(data, &["model.safetensors.index.json"], |folder| {
        let n_bytes = (HEADER.len() as u64).to_le_bytes();
        let file = [&n_bytes[..], HEADER, &[0; 4]].concat();
        fs::write(folder.join("a"), file).expect("the folder for temporary files can be written");
        if let Ok(files) = WeightFiles::open(folder) {
            for name in files.names() {
                let _ = files.get(name);
            }
        }
    });
});
