//! A token shard: its manifest, then offsets and ids under a manifest that matches them.

#![no_main]

use std::fs;
use std::path::Path;

use data::shard::{MANIFEST_FILE, OFFSETS_FILE, Shard, TOKENS_FILE, TokenDtype};
use formats::digest::sha256_of_file;
use fuzz::with_files;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    with_files(data, &[MANIFEST_FILE], |folder| {
        let _ = Shard::open(folder);
    });
    // A byte for each offset, so that some ascend.
    with_files(data, &["offsets", "ids"], |folder| {
        let [offsets, ids] = ["offsets", "ids"]
            .map(|name| fs::read(folder.join(name)).expect("the file was just written"));
        let offsets: Vec<u8> =
            offsets.iter().flat_map(|&byte| u64::from(byte).to_le_bytes()).collect();
        for vocab_size in [300, 70_000] {
            write_shard(folder, &offsets, &ids, vocab_size);
            if let Ok(Shard { documents, .. }) = Shard::open(folder) {
                for document_idx in 0..documents.n_documents() {
                    let _ = documents.document(document_idx);
                }
            }
        }
    });
});

fn write_shard(folder: &Path, offsets: &[u8], ids: &[u8], vocab_size: usize) {
    let dtype = TokenDtype::for_vocab(vocab_size);
    let width = dtype.n_bytes() as usize;
    let (ids, _) = ids.split_at(ids.len() / width * width);
    let write = |name: &str, bytes: &[u8]| {
        fs::write(folder.join(name), bytes).expect("the folder for temporary files can be written");
    };
    write(OFFSETS_FILE, offsets);
    write(TOKENS_FILE, ids);
    let sum = |name: &str| sha256_of_file(&folder.join(name)).expect("it was just written").0;
    let manifest = serde_json::json!({
        "format_version": 1,
        "tokenizer_digest": "",
        "vocab_size": vocab_size,
        "dtype": dtype,
        "n_tokens": ids.len() / width,
        "n_documents": (offsets.len() / 8).saturating_sub(1),
        "sources": [],
        "tokens_sha256": sum(TOKENS_FILE),
        "offsets_sha256": sum(OFFSETS_FILE),
    });
    write(MANIFEST_FILE, manifest.to_string().as_bytes());
}
