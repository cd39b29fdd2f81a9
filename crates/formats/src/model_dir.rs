//! Model directories: a Hugging Face directory plus `galerne.json` (lineage) and `MODEL_CARD.md`.
//!
//! A directory is built under a temporary name and committed by rename, so a reader never sees a part of a model.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::FormatError;
use crate::config::hf::read_config;
use crate::config::native::{PARAMS_FILE, read_params};
use crate::config::{DecoderConfig, ReadConfig};
use crate::durable::{self, read_bounded};
use crate::gguf::{GgufFile, GgufVocabulary};
use crate::version::check_format_version;
use crate::weights::{Leftovers, ModelWeights, is_plain_name};

mod companions;
mod generation;
mod list;
mod repository;
mod write;

pub use companions::{MAX_COMPANION_BYTES, copy_model, move_model};
pub(crate) use companions::{Numbers, write_companions};
pub use generation::GenerationConfig;
use generation::read_generation;
pub use list::{ModelList, list_models};
pub use repository::model_files;
pub use write::ModelDirWriter;
pub(crate) use write::write_lineage;

/// The configuration of a Hugging Face directory.
pub const CONFIG_FILE: &str = "config.json";
/// Our own file of a model directory.
pub const LINEAGE_FILE: &str = "galerne.json";
/// Defaults for generation, as transformers reads them.
const GENERATION_FILE: &str = "generation_config.json";
/// The model card.
const CARD_FILE: &str = "MODEL_CARD.md";

const FORMAT_VERSION: u64 = 1;
/// Largest `galerne.json` or `generation_config.json` that is read.
const MAX_JSON_BYTES: u64 = 1 << 20;

/// Where a model comes from. The version of the file's format is written and checked here, not by the caller.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Lineage {
    /// The run that made it, such as `quickstart-3`.
    pub run: Option<String>,
    /// The model it was trained or made from.
    pub parent: Option<String>,
    /// The adapter that was merged into the parent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<String>,
    /// Where it was brought in from, such as `hf:OWNER/NAME@COMMIT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
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
        let (read, weights) = if dir.join(CONFIG_FILE).is_file() {
            (read_config(dir)?, ModelWeights::open(dir)?)
        } else if dir.join(PARAMS_FILE).is_file() {
            (read_params(dir)?, ModelWeights::open_native(dir)?)
        } else {
            return Err(FormatError::NoModel { dir: dir.to_owned() });
        };
        let ReadConfig { decoder: config, text_part_of } = read;
        let leftovers = weights.check(&config)?;
        let lineage = read_lineage(dir)?;
        let generation = read_generation(dir, config.vocab_size)?;
        let dir = dir.to_owned();
        Ok(Self { dir, config, lineage, generation, weights, leftovers, text_part_of })
    }

    /// The folder, or the GGUF file that was opened by itself.
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

    /// The vocabulary in the model's GGUF file; `None` in another layout, or without one.
    ///
    /// # Errors
    /// As [`GgufFile::vocabulary`].
    pub fn vocabulary(&self) -> Result<Option<GgufVocabulary>, FormatError> {
        self.weights.gguf().map_or(Ok(None), GgufFile::vocabulary)
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

    /// When the first of the weight files was last written.
    ///
    /// # Errors
    /// When the file cannot be looked at.
    pub fn modified(&self) -> Result<SystemTime, FormatError> {
        let path = self.weights.paths().next().expect("weights are in a file");
        let modified = fs::metadata(path).and_then(|file| file.modified());
        modified.map_err(FormatError::io("inspect", path))
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

/// The configuration in a file of a folder, if the file is one that holds it.
///
/// # Errors
/// When it cannot be read, or describes something that this family does not compute.
pub fn config_in(dir: &Path, name: &str) -> Result<Option<DecoderConfig>, FormatError> {
    match name {
        CONFIG_FILE => read_config(dir).map(|read| Some(read.decoder)),
        PARAMS_FILE => read_params(dir).map(|read| Some(read.decoder)),
        _ => Ok(None),
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

/// Reads the `galerne.json` of a folder of a model or an adapter; `None` where there is none.
///
/// # Errors
/// When it cannot be read.
pub fn read_lineage(dir: &Path) -> Result<Option<Lineage>, FormatError> {
    let path = dir.join(LINEAGE_FILE);
    let Some(value) = read_json(&path)? else { return Ok(None) };
    check_format_version(&path, &value, FORMAT_VERSION)?;
    serde_json::from_value(value).map(Some).map_err(FormatError::json(&path))
}

#[cfg(test)]
mod tests;
