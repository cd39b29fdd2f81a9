//! Tokenizer files in a model directory.

use crate::chat::instruct::InstructVersion;
use crate::chat::{ChatTemplate, GALERNE_JINJA, JinjaTemplate};
use crate::error::Error;
use crate::json::TOKENIZER_FILE;
use crate::sentencepiece::MODEL_FILE;
use crate::tekken::TEKKEN_FILE;
use crate::tokenizer::{Origin, Tokenizer};
use crate::vocabulary::Controls;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Largest file of a vocabulary that is read; published ones have up to 33 MiB.
const MAX_VOCABULARY_BYTES: u64 = 64 << 20;
/// Largest configuration or template that is read; published ones have up to 1.2 MiB.
const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// A chat template by itself, and the JSON files that may hold one.
const TEMPLATE_FILE: &str = "chat_template.jinja";
const TEMPLATE_JSON_FILE: &str = "chat_template.json";
const CONFIG_FILE: &str = "tokenizer_config.json";
const TEMPLATE_IN_JSON: [&str; 2] = [TEMPLATE_JSON_FILE, CONFIG_FILE];

/// The files of a folder that [`Tokenizer::open`] and [`ChatTemplate::open`] read, where they are there. `tokenizer.model` may end
/// in a version, such as `tokenizer.model.v7`.
pub const FOLDER_FILES: [&str; 6] =
    [TOKENIZER_FILE, TEKKEN_FILE, MODEL_FILE, CONFIG_FILE, TEMPLATE_FILE, TEMPLATE_JSON_FILE];

impl Tokenizer {
    /// Reads a tokenizer's file, or the one in a folder: Mistral's own, which say their version (`tekken.json`, else the
    /// `tokenizer.model.vN` with the highest N), else `tokenizer.json`, else `tokenizer.model`. In a folder of Mistral's
    /// own layout (`params.json` without `config.json`) `tokenizer.model` comes before `tokenizer.json` and is of version 1.
    ///
    /// What a file is, its name says: SentencePiece with `.model` in it, Tekken with `tekken`, else `tokenizer.json`, of
    /// which the `tokenizer_config.json` beside it may name BOS and EOS.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::NoTokenizer`], and those of [`Tokenizer::from_json`], [`Tokenizer::from_tekken`] and
    /// [`Tokenizer::from_sentencepiece`].
    pub fn open(path: &Path) -> Result<Tokenizer, Error> {
        let failed = |source| Error::Read { path: path.to_path_buf(), source };
        let folder = path.is_dir().then_some(path);
        let path = match folder {
            Some(folder) => find_file(folder)
                .map_err(failed)?
                .ok_or_else(|| Error::NoTokenizer { path: path.to_path_buf() })?,
            None => path.to_path_buf(),
        };
        let contents = read_bounded(&path, MAX_VOCABULARY_BYTES)
            .map_err(|source| Error::Read { path: path.clone(), source })?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.contains(".model") {
            let mut tokenizer = Tokenizer::from_sentencepiece(&contents)?;
            let is_first = || folder.is_some_and(is_native) && name == MODEL_FILE;
            tokenizer.version = model_version(&name).or_else(|| is_first().then_some(1));
            Ok(tokenizer)
        } else if name.contains("tekken") {
            Tokenizer::from_tekken(&contents)
        } else {
            let config =
                folder.map(|folder| read_if_there(&folder.join(CONFIG_FILE))).transpose()?;
            let config = config.flatten();
            let config = config.as_deref().map(|bytes| ConfigIn::read(bytes, CONFIG_FILE));
            let config = config.transpose()?.unwrap_or_default();
            let [bos, eos] =
                [config.bos_token, config.eos_token].map(|name| name.and_then(token_name));
            Tokenizer::from_json_with(&contents, bos.as_deref(), eos.as_deref())
        }
    }

    /// Whether a path is a folder that holds a file that [`Tokenizer::open`] would read.
    ///
    /// # Errors
    /// [`Error::Read`] when the folder cannot be listed.
    pub fn is_in(path: &Path) -> Result<bool, Error> {
        if !path.is_dir() {
            return Ok(false);
        }
        let found = find_file(path);
        found
            .map(|file| file.is_some())
            .map_err(|source| Error::Read { path: path.to_path_buf(), source })
    }

    /// Names and contents of the tokenizer's files of a model directory; the tokenizer's own file is the last one. A
    /// tokenizer that was trained here also has `chat_template.jinja` (the default template) and
    /// `tokenizer_config.json`; of others the file is given as it was read, and a `tokenizer_config.json` where only such
    /// a file named BOS and EOS.
    pub fn files(&self) -> Vec<(String, Vec<u8>)> {
        let name = |id: u32| self.decode_with(&[id], crate::ControlText::Show);
        let merges = match &self.origin {
            Origin::Own { merges } => merges,
            Origin::File { name: file, contents } => {
                let version = self.version.filter(|_| *file == MODEL_FILE);
                let suffix = version.map(|version| format!(".v{version}")).unwrap_or_default();
                let names = self.has_given_names().then(|| {
                    let config = json!({
                        "bos_token": name(self.bos_id()),
                        "clean_up_tokenization_spaces": false,
                        "eos_token": name(self.eos_id()),
                        "tokenizer_class": "PreTrainedTokenizerFast",
                    });
                    (CONFIG_FILE.to_string(), format!("{config:#}\n").into_bytes())
                });
                let own = (format!("{file}{suffix}"), contents.clone());
                return names.into_iter().chain([own]).collect();
            }
        };
        let config = json!({
            "bos_token": name(self.bos_id()),
            "chat_template": GALERNE_JINJA,
            "clean_up_tokenization_spaces": false,
            "eos_token": name(self.eos_id()),
            "pad_token": self.pad_id().map(name),
            "tokenizer_class": "PreTrainedTokenizerFast",
        });
        let files = [
            (TEMPLATE_FILE, GALERNE_JINJA.to_string()),
            (CONFIG_FILE, format!("{config:#}\n")),
            (TOKENIZER_FILE, self.own_json(merges)),
        ];
        files.map(|(name, text)| (name.to_string(), text.into_bytes())).into()
    }

    /// Whether BOS or EOS of a `tokenizer.json` are others than the file by itself says.
    fn has_given_names(&self) -> bool {
        let Origin::File { name: TOKENIZER_FILE, .. } = &self.origin else { return false };
        // What the file puts before a text is its BOS.
        let bos = (self.adds_bos == Some(true)).then(|| self.bos_id());
        let usual = Controls::find(&self.vocabulary, None, None);
        let is_said = usual.is_ok_and(|usual| {
            bos.unwrap_or(usual.bos) == self.bos_id() && usual.eos == self.eos_id()
        });
        !is_said
    }
}

impl ChatTemplate {
    /// The template of a model's folder: our own where its files have that; Mistral's where the tokenizer's file says
    /// its version; else the model's own, from `chat_template.jinja`, `chat_template.json` or `tokenizer_config.json`.
    /// `None` if there is none: the model only continues text. A tokenizer's file by itself tells of its version alone.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::Json`], [`Error::Jinja`].
    pub fn open(path: &Path, tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>, Error> {
        let source = if path.is_dir() { ChatTemplate::source_in(path)? } else { None };
        ChatTemplate::choose(source.as_deref(), tokenizer)
    }

    /// Name and contents of the file that makes this the template of a folder whose other files do not say it.
    pub fn file(&self) -> Option<(&'static str, &'static str)> {
        match self {
            ChatTemplate::Galerne => Some((TEMPLATE_FILE, GALERNE_JINJA)),
            ChatTemplate::Instruct(_) | ChatTemplate::Jinja(_) => None,
        }
    }

    /// The text of the template that a folder's files hold, in Jinja.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::Json`].
    pub fn source_in(folder: &Path) -> Result<Option<String>, Error> {
        if let Some(bytes) = read_if_there(&folder.join(TEMPLATE_FILE))? {
            return Ok(Some(String::from_utf8_lossy(&bytes).into_owned()));
        }
        for file in TEMPLATE_IN_JSON {
            let Some(bytes) = read_if_there(&folder.join(file))? else { continue };
            let config = ConfigIn::read(&bytes, file)?;
            let source = config.chat_template.map(template_source).transpose();
            if let Some(source) = source.map_err(|source| Error::Json { file, source })?.flatten() {
                return Ok(Some(source));
            }
        }
        Ok(None)
    }

    /// As [`ChatTemplate::open`], for a template that is not in a file of its own.
    ///
    /// # Errors
    /// [`Error::Jinja`].
    pub fn choose(
        source: Option<&str>,
        tokenizer: &Tokenizer,
    ) -> Result<Option<ChatTemplate>, Error> {
        if source.is_some_and(|source| source.trim_end() == GALERNE_JINJA.trim_end()) {
            return Ok(Some(ChatTemplate::Galerne));
        }
        if let Some(version) = tokenizer.version().and_then(InstructVersion::of_number) {
            return Ok(Some(ChatTemplate::Instruct(version)));
        }
        let template = source.map(JinjaTemplate::new).transpose()?;
        Ok(template.map(|template| ChatTemplate::Jinja(Arc::new(template))))
    }
}

/// What is read of a configuration; of all else nothing is kept, however much there is.
#[derive(Default, Deserialize)]
struct ConfigIn<'a> {
    #[serde(borrow, default)]
    bos_token: Option<&'a RawValue>,
    #[serde(borrow, default)]
    eos_token: Option<&'a RawValue>,
    #[serde(borrow, default)]
    chat_template: Option<&'a RawValue>,
}

impl<'a> ConfigIn<'a> {
    fn read(bytes: &'a [u8], file: &'static str) -> Result<ConfigIn<'a>, Error> {
        serde_json::from_slice(bytes).map_err(|source| Error::Json { file, source })
    }
}

/// A token of a configuration by itself, with flags.
#[derive(Deserialize)]
struct TokenIn {
    content: String,
}

/// A template for one use.
#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

/// A template by itself, or the default one of a list; `None` for what is neither, such as `false`.
fn template_source(value: &RawValue) -> serde_json::Result<Option<String>> {
    match value.get().as_bytes().first() {
        Some(b'"') => serde_json::from_str(value.get()),
        Some(b'[') => {
            let templates: Vec<NamedTemplate> = serde_json::from_str(value.get())?;
            let default = templates.into_iter().find(|template| template.name == "default");
            Ok(default.map(|template| template.template))
        }
        _ => Ok(None),
    }
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    match read_bounded(path, MAX_CONFIG_BYTES) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Read { path: path.to_path_buf(), source }),
    }
}

/// A token of the configuration, which is a name or an object that holds one.
fn token_name(value: &RawValue) -> Option<String> {
    let name = serde_json::from_str(value.get());
    name.or_else(|_| serde_json::from_str(value.get()).map(|token: TokenIn| token.content)).ok()
}

/// Whether a folder has Mistral's own layout.
fn is_native(folder: &Path) -> bool {
    folder.join("params.json").is_file() && !folder.join("config.json").is_file()
}

/// The tokenizer's file of a folder, if there is one.
fn find_file(folder: &Path) -> io::Result<Option<PathBuf>> {
    let mut models = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with(MODEL_FILE) && (name == MODEL_FILE || model_version(&name).is_some()) {
            models.push((model_version(&name), name));
        }
    }
    let (version, model) = models.into_iter().max().unzip();
    let (json, tekken) = (Some(TOKENIZER_FILE.to_string()), Some(TEKKEN_FILE.to_string()));
    let is_before_json = is_native(folder) || version.flatten().is_some();
    let order = if is_before_json { [tekken, model, json] } else { [tekken, json, model] };
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

/// Opening or reading a pipe or a device may never end: they are refused. What is looked at is what was opened, since a name may come
/// to mean another file in between.
fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let refused = || {
        let problem = format!("expected a regular file of at most {limit} bytes");
        io::Error::new(io::ErrorKind::InvalidInput, problem)
    };
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let found = file.metadata()?;
    if !found.is_file() || found.len() > limit {
        return Err(refused());
    }
    let mut bytes = Vec::new();
    // A file that grows has another size than it said.
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(refused());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use testkit::test_dir::TestDir;

    #[test]
    fn pipes_and_devices_are_refused_without_waiting_for_a_writer() {
        let folder = TestDir::new("tokenizer-pipe");
        let pipe = folder.path().join("tokenizer.json");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        for path in [&pipe, Path::new("/dev/zero"), folder.path()] {
            let error = read_bounded(path, 100).unwrap_err().to_string();
            assert!(error.contains("regular file of at most 100 bytes"), "{error}");
        }
        let file = folder.path().join("a");
        fs::write(&file, [7; 100]).unwrap();
        assert_eq!(read_bounded(&file, 100).unwrap(), [7; 100]);
        assert!(read_bounded(&file, 99).is_err());
    }
}
