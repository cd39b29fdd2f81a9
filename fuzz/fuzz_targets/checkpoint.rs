//! A checkpoint: `state.json` and its checksums.

#![no_main]

use formats::checkpoint::Checkpoint;
use fuzz::with_files;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    with_files(data, &["state.json", "SHA256SUMS"], |folder| {
        let _ = Checkpoint::open(folder);
    });
});
