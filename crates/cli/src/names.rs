//! Names of models and runs in the home, and the paths that they stand for.

use std::fs;
use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// Finds a model or a run by name or path.
pub(crate) fn locate_in(dir: &Path, kind: &'static str, value: &str) -> anyhow::Result<PathBuf> {
    if value.contains(['/', '.']) {
        return Ok(PathBuf::from(value));
    }
    let path = dir.join(value);
    if !value.is_empty() && path.is_dir() {
        return Ok(path);
    }
    let (name, dir, available) = (value.to_owned(), dir.to_owned(), visible_folders(dir));
    Err(Failure::Unknown { kind, name, dir, available }.into())
}

/// Names of the folders in a folder, sorted; hidden ones are being written.
fn visible_folders(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.path().is_dir());
    let names = folders.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| !name.starts_with('.')).collect();
    names.sort();
    names
}

/// The last part of a path, also of `.` and of paths that end in `..`.
pub(crate) fn folder_name(path: &Path) -> String {
    let absolute = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    absolute.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Refuses a name that a `--model` value could not say, or that could drive the terminal.
pub(crate) fn check_name(option: &str, name: &str) -> Result<(), Failure> {
    let is_wrong = |c: char| matches!(c, '/' | '\\' | '.') || c.is_control();
    if name.is_empty() || name.contains(is_wrong) {
        let expected = "expected a name without slashes, dots and control characters";
        return Err(Failure::usage(format!("{option} {name:?}: {expected}")));
    }
    Ok(())
}

/// A name in the home after a path: its last part without the ending of a file of weights. Dots, which mean a path in a `--model`
/// value, become hyphens.
pub(crate) fn home_name(path: &Path) -> String {
    without_dots(&folder_name(path))
}

/// A name of a file or a repository as one in the home, as in [`home_name`].
pub(crate) fn without_dots(name: &str) -> String {
    let stem = [".gguf", ".safetensors"].iter().find_map(|ending| name.strip_suffix(ending));
    stem.unwrap_or(name).replace('.', "-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_the_home_have_no_ending_and_no_dot() {
        for (path, expected) in [
            ("/models/Ministral-3.3b", "Ministral-3-3b"),
            ("/models/tiny.v2.gguf", "tiny-v2"),
            ("/runs/lora.safetensors", "lora"),
            ("/runs/lora", "lora"),
        ] {
            assert_eq!(home_name(Path::new(path)), expected);
        }
    }
}
