//! Tokenizer files in a model directory.

use crate::chat::ChatTemplate;
use crate::error::Error;
use crate::json::TOKENIZER_FILE;
use crate::sentencepiece::MODEL_FILE;
use crate::tekken::TEKKEN_FILE;
use crate::tokenizer::{Origin, Tokenizer};
use serde_json::json;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Largest file that is read.
const MAX_BYTES: u64 = 256 << 20;

impl Tokenizer {
    /// Reads a tokenizer's file, or the one in a folder: `tokenizer.json`, else `tekken.json`, else the
    /// `tokenizer.model.vN` with the highest N, else `tokenizer.model`. In a folder of Mistral's own layout
    /// (`params.json` without `config.json`) `tokenizer.json` comes last.
    ///
    /// What a file is, its name says: SentencePiece with `.model` in it, Tekken with `tekken`, else `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::NoTokenizer`], and those of [`Tokenizer::from_json`], [`Tokenizer::from_tekken`] and
    /// [`Tokenizer::from_sentencepiece`].
    pub fn open(path: &Path) -> Result<Tokenizer, Error> {
        let failed = |source| Error::Read { path: path.to_path_buf(), source };
        let path = match path.is_dir() {
            true => find_file(path)
                .map_err(failed)?
                .ok_or_else(|| Error::NoTokenizer { path: path.to_path_buf() })?,
            false => path.to_path_buf(),
        };
        let contents =
            read_bounded(&path).map_err(|source| Error::Read { path: path.clone(), source })?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.contains(".model") {
            let mut tokenizer = Tokenizer::from_sentencepiece(&contents)?;
            tokenizer.version = model_version(&name);
            Ok(tokenizer)
        } else if name.contains("tekken") {
            Tokenizer::from_tekken(&contents)
        } else {
            Tokenizer::from_json(&contents)
        }
    }

    /// Whether a folder holds a file that [`Tokenizer::open`] would read.
    pub fn is_in(folder: &Path) -> bool {
        matches!(find_file(folder), Ok(Some(_)))
    }

    /// Names and contents of the tokenizer's files of a model directory; the tokenizer's own file is the last one. A
    /// tokenizer that was trained here also has `chat_template.jinja` (the default template) and
    /// `tokenizer_config.json`; of others the file is given as it was read.
    pub fn files(&self) -> Vec<(String, Vec<u8>)> {
        let (merges, digits) = match &self.origin {
            Origin::Own { merges, digits } => (merges, *digits),
            Origin::File { name, contents } => {
                let version = self.version.filter(|_| *name == MODEL_FILE);
                let suffix = version.map(|version| format!(".v{version}")).unwrap_or_default();
                return vec![(format!("{name}{suffix}"), contents.clone())];
            }
        };
        let jinja = ChatTemplate::default().jinja();
        let name = |id: u32| self.decode_with(&[id], crate::ControlText::Show);
        let config = json!({
            "bos_token": name(self.bos_id()),
            "chat_template": jinja,
            "clean_up_tokenization_spaces": false,
            "eos_token": name(self.eos_id()),
            "pad_token": self.pad_id().map(name),
            "tokenizer_class": "PreTrainedTokenizerFast",
        });
        let files = [
            ("chat_template.jinja", jinja.to_string()),
            ("tokenizer_config.json", format!("{config:#}\n")),
            (TOKENIZER_FILE, self.own_json(merges, digits)),
        ];
        files.map(|(name, text)| (name.to_string(), text.into_bytes())).into()
    }
}

/// The tokenizer's file of a folder, if there is one.
fn find_file(folder: &Path) -> io::Result<Option<PathBuf>> {
    let is_native = folder.join("params.json").is_file() && !folder.join("config.json").is_file();
    let mut models = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with(MODEL_FILE) && (name == MODEL_FILE || model_version(&name).is_some()) {
            models.push((model_version(&name), name));
        }
    }
    let model = models.into_iter().max().map(|(_, name)| name);
    let (json, tekken) = (Some(TOKENIZER_FILE.to_string()), Some(TEKKEN_FILE.to_string()));
    let order = if is_native { [tekken, model, json] } else { [json, tekken, model] };
    let paths = order.into_iter().flatten().map(|name| folder.join(name));
    Ok(paths.into_iter().find(|path| path.is_file()))
}

/// The number in a name such as `tokenizer.model.v7` or, for models that see, `tokenizer.model.v7m1`.
fn model_version(name: &str) -> Option<u32> {
    let (_, suffix) = name.rsplit_once(".model.v")?;
    let (version, vision) = suffix.split_once('m').unwrap_or((suffix, "0"));
    vision.parse::<u32>().ok()?;
    version.parse().ok()
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
