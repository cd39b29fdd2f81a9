//! The models of a folder.

use std::fs;
use std::io;
use std::path::Path;

use super::ModelDir;
use crate::FormatError;
use crate::weights::is_plain_name;

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
