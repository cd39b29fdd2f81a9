//! Tokenizer files in a model directory.

use crate::chat::ChatTemplate;
use crate::error::Error;
use crate::tokenizer::Tokenizer;
use serde_json::json;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

const TOKENIZER_FILE: &str = "tokenizer.json";
/// Largest `tokenizer.json` that is read.
const MAX_BYTES: u64 = 256 << 20;

impl Tokenizer {
    /// Reads a `tokenizer.json`, or the one in a directory.
    ///
    /// # Errors
    /// [`Error::Read`], and those of [`Tokenizer::from_json`].
    pub fn open(path: &Path) -> Result<Tokenizer, Error> {
        let path = if path.is_dir() { path.join(TOKENIZER_FILE) } else { path.to_path_buf() };
        let json = read_bounded(&path).map_err(|source| Error::Read { path, source })?;
        Tokenizer::from_json(&json)
    }

    /// Names and contents of the tokenizer's files of a model directory: `chat_template.jinja` (the default template),
    /// `tokenizer_config.json` and `tokenizer.json`, which is written last.
    pub fn files(&self) -> [(&'static str, String); 3] {
        let jinja = ChatTemplate::default().jinja();
        let name = |id: u32| self.decode_with(&[id], crate::ControlText::Show);
        let config = json!({
            "bos_token": name(self.bos_id()),
            "chat_template": jinja,
            "clean_up_tokenization_spaces": false,
            "eos_token": name(self.eos_id()),
            "pad_token": name(self.pad_id()),
            "tokenizer_class": "PreTrainedTokenizerFast",
        });
        [
            ("chat_template.jinja", jinja.to_string()),
            ("tokenizer_config.json", format!("{config:#}\n")),
            (TOKENIZER_FILE, self.to_json()),
        ]
    }
}

/// Reading a pipe or a device may never end: they are refused.
fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let found = fs::metadata(path)?;
    if !found.is_file() || found.len() > MAX_BYTES {
        let problem = format!("expected a regular file of at most {MAX_BYTES} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}
