//! A token shard: manifest and ids.

#![no_main]

use data::shard::Shard;
use fuzz::with_files;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    with_files(data, &["manifest.json", "tokens.bin"], |folder| {
        let _ = Shard::open(folder);
    });
});
