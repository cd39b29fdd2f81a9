//! What belongs to a model beside its weights and configuration, and the way of all of it into another directory.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{
    CARD_FILE, CONFIG_FILE, GENERATION_FILE, LINEAGE_FILE, Lineage, ModelDir, ModelDirWriter,
    write_lineage,
};
use crate::FormatError;
use crate::config::native::PARAMS_FILE;
use crate::convert::NamedFile;
use crate::durable::{move_dir, read_bounded};
use crate::licence::licence_of;
use crate::names::Layout;
use crate::weights::{INDEX_FILE, NATIVE_INDEX_FILE, is_plain_name};

/// Files that belong to a model, and are copied as they are.
const COMPANIONS: [&str; 11] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    GENERATION_FILE,
    "chat_template.jinja",
    "chat_template.json",
    "tekken.json",
    "LICENSE",
    "README.md",
    CARD_FILE,
];

/// Beginning of the names of SentencePiece models, which may end in a version, such as `tokenizer.model.v3`.
const SENTENCEPIECE: &str = "tokenizer.model";

/// Largest companion.
pub const MAX_COMPANION_BYTES: u64 = 1 << 30;

/// What a new model has of the numbers of the one that it is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Numbers<'a> {
    /// All of them, in another layout: what was measured holds of both.
    Same,
    /// Its own, of the same matrices rounded.
    Rounded,
    /// Its own: an adapter, which has this name, was merged in.
    Adapted(&'a str),
}

impl ModelDir {
    /// The files of the model: weights, configuration, lineage, companions; of a folder with several layouts those of the one that
    /// is read, and of a GGUF file by itself that file.
    ///
    /// # Errors
    /// [`FormatError::ForeignLink`], and when the folder cannot be looked at.
    pub fn files(&self) -> Result<Vec<PathBuf>, FormatError> {
        let mut files: Vec<PathBuf> = self.weights().paths().map(Path::to_owned).collect();
        if self.dir().is_dir() {
            let of_layout: &[&str] = match self.weights().layout() {
                Layout::HuggingFace => &[CONFIG_FILE, INDEX_FILE],
                Layout::Native => &[PARAMS_FILE, NATIVE_INDEX_FILE],
                Layout::Gguf => &[],
            };
            let named = of_layout.iter().chain(&[LINEAGE_FILE]).map(|&name| name.to_owned());
            let named = named.chain(companions(self.dir())?).map(|name| self.dir().join(name));
            for path in named.filter(|path| path.is_file()) {
                refuse_foreign(self.dir(), &path)?;
                files.push(path);
            }
        }
        Ok(files)
    }
}

/// Copies a model into a new directory as it is, of a folder with several layouts only the one that is read.
///
/// # Errors
/// When the place is taken, or a file cannot be read or written; nothing is left behind.
pub fn copy_model(model: &ModelDir, out: &Path) -> Result<ModelDir, FormatError> {
    let writer = ModelDirWriter::begin(out)?;
    for path in model.files()? {
        // Written below, with the licence.
        if path.file_name().is_none_or(|name| name != LINEAGE_FILE) {
            writer.copy(&path)?;
        }
    }
    writer.lineage(&licensed_lineage(model)?)?;
    writer.commit()
}

/// Copies what belongs to a model beside its weights, and writes where the new one comes from. What was measured of other numbers
/// stays behind.
pub(crate) fn write_companions(
    model: &ModelDir,
    writer: &ModelDirWriter,
    numbers: Numbers<'_>,
    more: &[NamedFile],
) -> Result<(), FormatError> {
    for (name, content) in more {
        writer.file(name, |writer| writer.write_all(content))?;
    }
    for name in companions(model.dir())? {
        if name == CARD_FILE && numbers != Numbers::Same {
            continue;
        }
        let path = model.dir().join(&name);
        refuse_foreign(model.dir(), &path)?;
        let bytes = read_bounded(&path, MAX_COMPANION_BYTES)?;
        writer.file(&name, |writer| writer.write_all(&bytes))?;
    }
    let parent = model.dir().file_name().map(|name| name.to_string_lossy().into_owned());
    let mut lineage = Lineage { parent, ..licensed_lineage(model)? };
    if numbers != Numbers::Same {
        lineage.evaluation = Value::Null;
        lineage.energy = None;
    }
    if let Numbers::Adapted(adapter) = numbers {
        lineage.adapter = Some(adapter.to_owned());
    }
    writer.lineage(&lineage)
}

/// Moves the folder of a model to its place, and writes where it came from.
///
/// # Errors
/// When the place is taken, or a file cannot be written; the folder stays where it was.
pub fn move_model(model: ModelDir, source: String, out: &Path) -> Result<ModelDir, FormatError> {
    let dir = model.dir().to_owned();
    write_lineage(&dir, &Lineage { source: Some(source), ..licensed_lineage(&model)? })?;
    // The files are mapped under their old names.
    drop(model);
    move_dir(&dir, out)?;
    ModelDir::open(out)
}

/// The lineage of a model with the licence that any of its files state, for a new model may not have that file.
fn licensed_lineage(model: &ModelDir) -> Result<Lineage, FormatError> {
    let licence = licence_of(model)?.map(|licence| licence.name);
    Ok(Lineage { licence, ..model.lineage().cloned().unwrap_or_default() })
}

/// Refuses to copy a file that a link of the folder fetches from elsewhere: in a stranger's model, a `LICENSE` may lead to a
/// key of the user. Links within the folder are followed, and those of a hub cache, whose files lie in `../../blobs`.
fn refuse_foreign(dir: &Path, path: &Path) -> Result<(), FormatError> {
    let inspect = |path: &Path| path.canonicalize().map_err(FormatError::io("inspect", path));
    let (dir, target) = (inspect(dir)?, inspect(path)?);
    let snapshots = dir.parent().filter(|parent| parent.ends_with("snapshots"));
    let blobs = snapshots.and_then(Path::parent).map(|hub| hub.join("blobs"));
    if target.starts_with(&dir) || (blobs.is_some() && target.parent() == blobs.as_deref()) {
        return Ok(());
    }
    Err(FormatError::ForeignLink { path: path.to_owned(), target })
}

/// Whether a file of this name belongs to a model beside its weights and configuration.
pub(super) fn is_companion(name: &str) -> bool {
    COMPANIONS.contains(&name) || name.starts_with(SENTENCEPIECE)
}

/// The names of the companions in a model's folder, sorted; none of a model that is a file by itself.
fn companions(dir: &Path) -> Result<Vec<String>, FormatError> {
    let mut names = Vec::new();
    if dir.is_dir() {
        for entry in fs::read_dir(dir).map_err(FormatError::io("list", dir))? {
            let entry = entry.map_err(FormatError::io("list", dir))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if is_companion(&name) && is_plain_name(&name) && entry.path().is_file() {
                names.push(name);
            }
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests;
