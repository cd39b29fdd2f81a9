//! What the targets share: folders for parsers of files, and what is done with a tokenizer that was read.

use std::fs;
use std::path::{Path, PathBuf};

use tokenizer::Tokenizer;

/// Calls `read` with a folder that holds the files, each with its part of the bytes: the first byte of `data` says where the
/// parts are cut, in 256ths.
pub fn with_files(data: &[u8], names: &[&str], read: impl Fn(&Path)) {
    let Some((&cut, data)) = data.split_first() else { return };
    let folder = folder();
    let cut = if names.len() == 1 { data.len() } else { data.len() * usize::from(cut) / 256 };
    let (first, second) = data.split_at(cut);
    for (name, part) in names.iter().zip([first, second]) {
        fs::write(folder.join(name), part).expect("the folder for temporary files can be written");
    }
    read(&folder);
}

/// Encoding, decoding and listing must hold whatever file a tokenizer came from.
pub fn use_tokenizer(tokenizer: &Tokenizer) {
    let text = "a b\n12 é😀 </s>";
    let _ = tokenizer.decode(&tokenizer.encode(text));
    let _ = tokenizer.listing();
}

/// The small tokenizer among the golden files.
pub fn golden_tokenizer() -> Tokenizer {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden/tokenizer/model");
    Tokenizer::open(&folder).expect("the golden tokenizer can be read")
}

/// A folder of this process in memory, where there is such a place.
fn folder() -> PathBuf {
    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let folder = parent.join(format!("galerne-fuzz-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("the folder for temporary files can be made");
    folder
}
