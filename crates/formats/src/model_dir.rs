//! Model directories: a Hugging Face directory plus `galerne.json` (lineage) and `MODEL_CARD.md`.
//!
//! A directory is built under a temporary name and committed by rename, so a reader never sees a part of a model.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::FormatError;
use crate::checkpoint::check_format_version;
use crate::config::native::{PARAMS_FILE, read_params, to_native_json};
use crate::config::{DecoderConfig, read_config, to_hf_json};
use crate::durable::{self, TemporaryDir, read_bounded};
use crate::gguf::GgufFile;
use crate::weights::{
    Leftovers, ModelWeights, NATIVE_FILE, SINGLE_FILE, TensorSource, is_plain_name,
    write_safetensors,
};

/// The configuration of a Hugging Face directory.
pub const CONFIG_FILE: &str = "config.json";
/// Our own file of a model directory.
pub const LINEAGE_FILE: &str = "galerne.json";
/// Defaults for generation, as transformers reads them.
pub const GENERATION_FILE: &str = "generation_config.json";
/// The model card.
pub const CARD_FILE: &str = "MODEL_CARD.md";

const FORMAT_VERSION: u64 = 1;
/// Largest `galerne.json` or `generation_config.json` that is read.
const MAX_JSON_BYTES: u64 = 1 << 20;

/// Where a model comes from. The version of the file's format is written and checked here, not by the caller.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Lineage {
    /// The run that made it, such as `quickstart-3`.
    pub run: Option<String>,
    /// The model it was trained from.
    pub parent: Option<String>,
    /// SHA-256 of the data sheet.
    pub data_sheet_sha256: Option<String>,
    /// Licence of the weights, as an SPDX expression.
    pub licence: Option<String>,
    /// Results of evaluation, as the evaluation code writes them.
    #[serde(default)]
    pub evaluation: Value,
    /// Energy of the training, measured or estimated, as the training code writes it.
    #[serde(default)]
    pub energy: Option<Value>,
}

/// Defaults for generation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// Token put before a text.
    pub bos_id: Option<u32>,
    /// Tokens that end an answer.
    pub eos_ids: Vec<u32>,
    /// Sampling temperature.
    pub temperature: Option<f64>,
    /// Share of probability that sampling keeps.
    pub top_p: Option<f64>,
}

impl GenerationConfig {
    fn to_json(&self) -> Value {
        let mut object = Map::new();
        object.insert("bos_token_id".to_owned(), json!(self.bos_id));
        let eos = match self.eos_ids.as_slice() {
            [] => Value::Null,
            [one] => json!(one),
            many => json!(many),
        };
        object.insert("eos_token_id".to_owned(), eos);
        if self.temperature.is_some() || self.top_p.is_some() {
            object.insert("do_sample".to_owned(), json!(true));
        }
        for (key, number) in [("temperature", self.temperature), ("top_p", self.top_p)] {
            if let Some(number) = number {
                object.insert(key.to_owned(), json!(number));
            }
        }
        Value::Object(object)
    }
}

/// A model directory being written. Dropped without [`ModelDirWriter::commit`], it leaves nothing.
#[derive(Debug)]
pub struct ModelDirWriter {
    temporary: TemporaryDir,
}

impl ModelDirWriter {
    /// Starts a model directory beside its final place, whose parent is created when missing.
    ///
    /// # Errors
    /// [`FormatError::Exists`] when the place is taken, or the system's refusal.
    pub fn begin(final_dir: &Path) -> Result<Self, FormatError> {
        if final_dir.symlink_metadata().is_ok() {
            return Err(FormatError::Exists { path: final_dir.to_owned() });
        }
        let parent = durable::parent_of(final_dir);
        fs::create_dir_all(parent).map_err(FormatError::io("create", parent))?;
        durable::remove_dead_leftovers(final_dir)?;
        Ok(Self { temporary: TemporaryDir::beside(final_dir)? })
    }

    /// Writes `config.json`.
    ///
    /// # Errors
    /// When it cannot be written, or has no key for a setting.
    pub fn config(&self, config: &DecoderConfig) -> Result<(), FormatError> {
        let path = self.temporary.path().join(CONFIG_FILE);
        let json = to_hf_json(config).map_err(|setting| FormatError::NotInLayout {
            path: path.clone(),
            setting,
            layout: "Hugging Face",
        })?;
        durable::write_json_atomically(&path, &json)
    }

    /// Writes `params.json`.
    ///
    /// # Errors
    /// When it cannot be written, or has no key for a setting.
    pub fn native_config(&self, config: &DecoderConfig) -> Result<(), FormatError> {
        let path = self.temporary.path().join(PARAMS_FILE);
        let json = to_native_json(config).map_err(|setting| FormatError::NotInLayout {
            path: path.clone(),
            setting,
            layout: "native",
        })?;
        durable::write_json_atomically(&path, &json)
    }

    /// Writes `consolidated.safetensors`.
    ///
    /// # Errors
    /// As [`write_safetensors`].
    pub fn native_weights<'a>(
        &self,
        tensors: impl IntoIterator<Item = TensorSource<'a>>,
    ) -> Result<(), FormatError> {
        write_safetensors(&self.temporary.path().join(NATIVE_FILE), tensors, &BTreeMap::new())
    }

    /// Writes `model.safetensors`.
    ///
    /// # Errors
    /// As [`write_safetensors`].
    pub fn weights<'a>(
        &self,
        tensors: impl IntoIterator<Item = TensorSource<'a>>,
    ) -> Result<(), FormatError> {
        write_safetensors(&self.temporary.path().join(SINGLE_FILE), tensors, &BTreeMap::new())
    }

    /// Where the files are until the directory is committed.
    pub(crate) fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// Writes `galerne.json`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn lineage(&self, lineage: &Lineage) -> Result<(), FormatError> {
        let path = self.temporary.path().join(LINEAGE_FILE);
        let mut value = serde_json::to_value(lineage).map_err(FormatError::json(&path))?;
        value["format_version"] = json!(FORMAT_VERSION);
        durable::write_json_atomically(&path, &value)
    }

    /// Writes `generation_config.json`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn generation_config(&self, config: &GenerationConfig) -> Result<(), FormatError> {
        durable::write_json_atomically(
            &self.temporary.path().join(GENERATION_FILE),
            &config.to_json(),
        )
    }

    /// Writes `MODEL_CARD.md`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn model_card(&self, text: &str) -> Result<(), FormatError> {
        durable::write_bytes_atomically(&self.temporary.path().join(CARD_FILE), text.as_bytes())
    }

    /// Writes any other file, such as `tokenizer.json`.
    ///
    /// # Errors
    /// When the name is not a plain file name, or what `write` or the system says.
    pub fn file(
        &self,
        name: &str,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), FormatError> {
        if !is_plain_name(name) {
            let (dir, name) = (self.temporary.path().to_owned(), name.to_owned());
            return Err(FormatError::FileName { dir, name });
        }
        durable::write_atomically(&self.temporary.path().join(name), write)
    }

    /// Copies a file under its own name.
    ///
    /// # Errors
    /// When its name is not a plain one, or it cannot be read or written.
    pub fn copy(&self, source: &Path) -> Result<(), FormatError> {
        let name = source.file_name().unwrap_or_default().to_string_lossy();
        if !is_plain_name(&name) {
            let dir = self.temporary.path().to_owned();
            return Err(FormatError::FileName { dir, name: name.into_owned() });
        }
        let mut file = durable::open_regular(source)?;
        durable::write_atomically(&self.temporary.path().join(name.as_ref()), |out| {
            io::copy(&mut file, out).map(|_| ())
        })
    }

    /// Checks the directory as a reader would, makes it visible under its final name, and opens it.
    ///
    /// # Errors
    /// As [`ModelDir::open`] and [`TemporaryDir::commit`]; nothing is left behind.
    pub fn commit(self) -> Result<ModelDir, FormatError> {
        ModelDir::open(self.temporary.path())?;
        let final_dir = self.temporary.final_dir().to_owned();
        self.temporary.commit()?;
        ModelDir::open(&final_dir)
    }
}

/// A model directory whose configuration and weights have been checked against one another.
#[derive(Debug)]
pub struct ModelDir {
    dir: PathBuf,
    config: DecoderConfig,
    lineage: Option<Lineage>,
    generation: Option<GenerationConfig>,
    weights: ModelWeights,
    leftovers: Leftovers,
    text_part_of: Option<String>,
}

impl ModelDir {
    /// Opens a model directory: reads the configuration, maps the weights, checks every tensor's presence and shape.
    ///
    /// A Hugging Face directory has a `config.json`, a native Mistral one a `params.json`, another one GGUF file, which may also be
    /// given by itself; of a folder that holds several layouts the first of these is read.
    ///
    /// # Errors
    /// When the folder, its configuration or a weight is missing or wrong; the error names file and field or tensor.
    pub fn open(dir: &Path) -> Result<Self, FormatError> {
        if let Some(path) = gguf_file(dir)? {
            return Self::open_gguf(dir, &path);
        }
        if !dir.is_dir() {
            let name = dir.file_name().unwrap_or(dir.as_os_str()).to_string_lossy().into_owned();
            return Err(FormatError::FileMissing { dir: durable::parent_of(dir).to_owned(), name });
        }
        let (config, text_part_of, weights) = if dir.join(CONFIG_FILE).is_file() {
            let config = read_config(dir)?;
            (config.decoder, config.text_part_of, ModelWeights::open(dir)?)
        } else if dir.join(PARAMS_FILE).is_file() {
            let config = read_params(dir)?;
            let part_of = config.other_part.map(|part| format!("a model with {part}"));
            (config.decoder, part_of, ModelWeights::open_native(dir)?)
        } else {
            return Err(FormatError::NoModel { dir: dir.to_owned() });
        };
        let leftovers = weights.check(&config)?;
        let lineage = read_lineage(dir)?;
        let generation = read_generation(dir, config.vocab_size)?;
        let dir = dir.to_owned();
        Ok(Self { dir, config, lineage, generation, weights, leftovers, text_part_of })
    }

    /// The folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn open_gguf(dir: &Path, path: &Path) -> Result<Self, FormatError> {
        let file = GgufFile::open(path)?;
        let config = file.decoder_config()?;
        let weights = ModelWeights::from_gguf(file);
        let leftovers = weights.check(&config)?;
        let (mut lineage, mut generation) = (None, None);
        if dir != path {
            lineage = read_lineage(dir)?;
            generation = read_generation(dir, config.vocab_size)?;
        }
        let dir = dir.to_owned();
        Ok(Self { dir, config, lineage, generation, weights, leftovers, text_part_of: None })
    }

    /// The shape of the model.
    #[must_use]
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The mapped weights; all that the configuration asks for are there.
    #[must_use]
    pub fn weights(&self) -> &ModelWeights {
        &self.weights
    }

    /// Where the model comes from; `None` when another program made it.
    #[must_use]
    pub fn lineage(&self) -> Option<&Lineage> {
        self.lineage.as_ref()
    }

    /// Defaults for generation; `None` when the file is absent.
    #[must_use]
    pub fn generation(&self) -> Option<&GenerationConfig> {
        self.generation.as_ref()
    }

    /// Tokens that end an answer, from both `config.json` and `generation_config.json`, sorted.
    #[must_use]
    pub fn eos_ids(&self) -> Vec<u32> {
        let mut ids = self.config.eos_ids.clone();
        if let Some(generation) = &self.generation {
            ids.extend(&generation.eos_ids);
        }
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Tensors in the files that the model does not use, to be reported.
    #[must_use]
    pub fn unused_tensors(&self) -> &[String] {
        &self.leftovers.unused
    }

    /// What the decoder is the text part of, such as `mistral3`, and how many tensors of the other parts were not read.
    #[must_use]
    pub fn text_part_of(&self) -> Option<(&str, usize)> {
        self.text_part_of.as_deref().map(|whole| (whole, self.leftovers.n_of_other_parts))
    }

    /// The path of a file that must be there, such as `tokenizer.json`.
    ///
    /// # Errors
    /// [`FormatError::FileMissing`] naming it.
    pub fn file(&self, name: &str) -> Result<PathBuf, FormatError> {
        let path = self.dir.join(name);
        if is_plain_name(name) && path.is_file() {
            return Ok(path);
        }
        Err(FormatError::FileMissing { dir: self.dir.clone(), name: name.to_owned() })
    }
}

/// The GGUF file that a path means: itself, or the only one of a folder without another layout.
fn gguf_file(path: &Path) -> Result<Option<PathBuf>, FormatError> {
    let is_gguf = |path: &Path| path.extension().is_some_and(|extension| extension == "gguf");
    if !path.is_dir() {
        return Ok((is_gguf(path) && path.exists()).then(|| path.to_owned()));
    }
    if path.join(CONFIG_FILE).is_file() || path.join(PARAMS_FILE).is_file() {
        return Ok(None);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(path).map_err(FormatError::io("list", path))? {
        let path = entry.map_err(FormatError::io("list", path))?.path();
        if is_gguf(&path) {
            found.push(path);
        }
    }
    found.sort();
    match found.len() {
        0 | 1 => Ok(found.pop()),
        n => Err(FormatError::ManyModels { dir: path.to_owned(), n }),
    }
}

/// A JSON file that may be absent.
fn read_json(path: &Path) -> Result<Option<Value>, FormatError> {
    if !path.try_exists().map_err(FormatError::io("inspect", path))? {
        return Ok(None);
    }
    let bytes = read_bounded(path, MAX_JSON_BYTES)?;
    serde_json::from_slice(&bytes).map(Some).map_err(FormatError::json(path))
}

fn read_lineage(dir: &Path) -> Result<Option<Lineage>, FormatError> {
    let path = dir.join(LINEAGE_FILE);
    let Some(value) = read_json(&path)? else { return Ok(None) };
    check_format_version(&path, &value, FORMAT_VERSION)?;
    serde_json::from_value(value).map(Some).map_err(FormatError::json(&path))
}

/// Other keys of the file are defaults of transformers' own generation loop, which a request states by itself here.
fn read_generation(dir: &Path, vocab_size: usize) -> Result<Option<GenerationConfig>, FormatError> {
    let path = dir.join(GENERATION_FILE);
    let Some(value) = read_json(&path)? else { return Ok(None) };
    let bad = |field: &str, got: &Value, expected: String| FormatError::Field {
        path: path.clone(),
        field: field.to_owned(),
        got: got.to_string().chars().take(80).collect(),
        expected,
    };
    let ids = |field: &str| -> Result<Vec<u32>, FormatError> {
        let values = match &value[field] {
            Value::Null => &[],
            Value::Array(values) => values.as_slice(),
            one => std::slice::from_ref(one),
        };
        let id_of = |one: &Value| {
            let id = one.as_u64().filter(|&id| id < vocab_size as u64);
            id.and_then(|id| u32::try_from(id).ok())
                .ok_or_else(|| bad(field, one, format!("a token id below {vocab_size}")))
        };
        values.iter().map(id_of).collect()
    };
    let number = |field: &str, max: f64| match &value[field] {
        Value::Null => Ok(None),
        got => match got.as_f64().filter(|number| (0.0..=max).contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(bad(field, got, format!("a number 0..={max}"))),
        },
    };
    Ok(Some(GenerationConfig {
        bos_id: ids("bos_token_id")?.first().copied(),
        eos_ids: ids("eos_token_id")?,
        temperature: number("temperature", 100.0)?,
        top_p: number("top_p", 1.0)?,
    }))
}

/// The models of a folder.
#[derive(Debug, Default)]
pub struct ModelList {
    /// Name and model, sorted by name.
    pub models: Vec<(String, ModelDir)>,
    /// Name and problem of folders that look like models and cannot be used, sorted by name.
    pub broken: Vec<(String, FormatError)>,
}

/// Opens every model directory of a folder such as `models` of the home. A missing folder holds none; hidden names are
/// models being written.
///
/// # Errors
/// When the folder cannot be listed.
pub fn list_models(models_dir: &Path) -> Result<ModelList, FormatError> {
    let mut list = ModelList::default();
    let entries = match fs::read_dir(models_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(list),
        Err(error) => return Err(FormatError::io("list", models_dir)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(FormatError::io("list", models_dir))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_plain_name(&name) && entry.path().is_dir() {
            names.push((name, entry.path()));
        }
    }
    names.sort();
    for (name, path) in names {
        match ModelDir::open(&path) {
            Ok(model) => list.models.push((name, model)),
            Err(error) => list.broken.push((name, error)),
        }
    }
    Ok(list)
}

#[cfg(test)]
mod tests;
