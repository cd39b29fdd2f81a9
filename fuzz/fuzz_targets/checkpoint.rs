//! A checkpoint: `state.json` and a weight file under sums that match, then `SHA256SUMS` itself.

#![no_main]

use std::fs;
use std::path::Path;

use formats::checkpoint::{Checkpoint, MODEL_FILE, OPTIMIZER_FILE, STATE_FILE, SUMS_FILE};
use formats::digest::sha256_of_file;
use fuzz::with_files;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    with_files(data, &[STATE_FILE, MODEL_FILE], |folder| {
        fs::copy(folder.join(MODEL_FILE), folder.join(OPTIMIZER_FILE))
            .expect("it was just written");
        write_sums(folder);
        if let Ok(checkpoint) = Checkpoint::open(folder) {
            let _ = (checkpoint.model(), checkpoint.optimizer());
        }
    });
    with_files(data, &[SUMS_FILE], |folder| {
        let _ = Checkpoint::open(folder);
    });
});

fn write_sums(folder: &Path) {
    let line = |name: &str| {
        let (sum, _) = sha256_of_file(&folder.join(name)).expect("the file was just written");
        format!("{sum}  {name}\n")
    };
    let sums: String = [STATE_FILE, MODEL_FILE, OPTIMIZER_FILE].map(line).concat();
    fs::write(folder.join(SUMS_FILE), sums).expect("the folder for temporary files can be written");
}
