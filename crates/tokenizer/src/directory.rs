//! Tokenizer files in a model directory.

use crate::chat::ChatTemplate;
use crate::error::Error;
use crate::tokenizer::Tokenizer;
use serde_json::json;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

const TOKENIZER_FILE: &str = "tokenizer.json";

impl Tokenizer {
    /// Reads a `tokenizer.json`, or the one in a directory.
    ///
    /// # Errors
    /// [`Error::Read`], and those of [`Tokenizer::from_json`].
    pub fn open(path: &Path) -> Result<Tokenizer, Error> {
        let path = if path.is_dir() { path.join(TOKENIZER_FILE) } else { path.to_path_buf() };
        let json = fs::read(&path).map_err(|source| Error::Read { path, source })?;
        Tokenizer::from_json(&json)
    }

    /// Writes `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja` (the default template) into a directory,
    /// which is made if it is missing. Each file appears whole or not at all; `tokenizer.json` appears last.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn save(&self, dir: &Path) -> Result<(), Error> {
        fs::create_dir_all(dir).map_err(|source| Error::Write { path: dir.into(), source })?;
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
        write_whole(dir, "chat_template.jinja", jinja)?;
        write_whole(dir, "tokenizer_config.json", &format!("{config:#}\n"))?;
        write_whole(dir, TOKENIZER_FILE, &self.to_json())
    }
}

/// Temporary name, sync, rename, sync of the directory; the temporary file does not outlive a failure.
fn write_whole(dir: &Path, name: &str, text: &str) -> Result<(), Error> {
    let temporary = dir.join(format!(".{name}.{}.tmp", std::process::id()));
    let path = dir.join(name);
    let write = || -> io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(|source| {
        // The first error is the one to report; the file may not even exist.
        let _ = fs::remove_file(&temporary);
        Error::Write { path, source }
    })
}
