//! Writing model directories.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use serde_json::json;

use super::{
    CARD_FILE, CONFIG_FILE, FORMAT_VERSION, GENERATION_FILE, GenerationConfig, LINEAGE_FILE,
    Lineage, ModelDir,
};
use crate::FormatError;
use crate::config::native::{PARAMS_FILE, to_native_json};
use crate::config::{DecoderConfig, to_hf_json};
use crate::durable::{self, TemporaryDir};
use crate::names::Layout;
use crate::weights::{NATIVE_FILE, SINGLE_FILE, TensorSource, is_plain_name, write_safetensors};

/// Writes `galerne.json` of a folder.
pub(crate) fn write_lineage(dir: &Path, lineage: &Lineage) -> Result<(), FormatError> {
    let path = dir.join(LINEAGE_FILE);
    let mut value = serde_json::to_value(lineage).map_err(FormatError::json(&path))?;
    value["format_version"] = json!(FORMAT_VERSION);
    durable::write_json_atomically(&path, &value)
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
            layout: Layout::HuggingFace.title(),
        })?;
        durable::write_json_atomically(&path, &json)
    }

    /// Writes `params.json`.
    ///
    /// # Errors
    /// When it cannot be written, or has no key for a setting.
    pub(crate) fn native_config(&self, config: &DecoderConfig) -> Result<(), FormatError> {
        let path = self.temporary.path().join(PARAMS_FILE);
        let json = to_native_json(config).map_err(|setting| FormatError::NotInLayout {
            path: path.clone(),
            setting,
            layout: Layout::Native.title(),
        })?;
        durable::write_json_atomically(&path, &json)
    }

    /// Writes `consolidated.safetensors`.
    ///
    /// # Errors
    /// As [`write_safetensors`].
    pub(crate) fn native_weights<'a>(
        &self,
        tensors: impl IntoIterator<Item = TensorSource<'a>>,
    ) -> Result<(), FormatError> {
        write_safetensors(&self.temporary.path().join(NATIVE_FILE), tensors)
    }

    /// Writes `model.safetensors`.
    ///
    /// # Errors
    /// As [`write_safetensors`].
    pub fn weights<'a>(
        &self,
        tensors: impl IntoIterator<Item = TensorSource<'a>>,
    ) -> Result<(), FormatError> {
        write_safetensors(&self.temporary.path().join(SINGLE_FILE), tensors)
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
        write_lineage(self.temporary.path(), lineage)
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
