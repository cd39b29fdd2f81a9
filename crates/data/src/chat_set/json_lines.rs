//! JSON lines files, written whole or not at all.

use crate::DataError;
use serde::Serialize;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Writes one JSON object per line and returns how many there were.
///
/// The lines go to a temporary name beside `path`, which is synced and renamed at the end, so that a
/// reader never sees half a file. Memory: one buffer, whatever the number of items.
///
/// # Errors
/// When the file cannot be created, written, synced or renamed; nothing is left behind then.
pub fn write_jsonl<T: Serialize>(
    path: &Path,
    items: impl IntoIterator<Item = T>,
) -> Result<usize, DataError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let written = write_lines(&temporary, items)
        .and_then(|n_lines| fs::rename(&temporary, path).map(|()| n_lines))
        .and_then(|n_lines| sync_parent(path).map(|()| n_lines));
    written.map_err(|source| {
        // The first error is the one to report; a leftover that cannot be removed adds nothing to it.
        let _ = fs::remove_file(&temporary);
        DataError::io("write", path)(source)
    })
}

fn write_lines<T: Serialize>(
    path: &Path,
    items: impl IntoIterator<Item = T>,
) -> std::io::Result<usize> {
    let mut out = BufWriter::new(File::create(path)?);
    let mut n_lines = 0;
    for item in items {
        serde_json::to_writer(&mut out, &item)?;
        out.write_all(b"\n")?;
        n_lines += 1;
    }
    let file = out.into_inner().map_err(std::io::IntoInnerError::into_error)?;
    file.sync_all()?;
    Ok(n_lines)
}

/// A rename is durable once the folder itself is synced.
fn sync_parent(path: &Path) -> std::io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

#[cfg(test)]
mod tests {
    use super::write_jsonl;
    use serde::{Serialize, Serializer, ser::Error as _};
    use std::fs;
    use std::path::PathBuf;

    struct Refuses;

    impl Serialize for Refuses {
        fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(S::Error::custom("refused"))
        }
    }

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("galerne-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn a_finished_file_has_one_line_per_item_and_no_leftover() {
        let folder = folder("jsonl-whole");
        let path = folder.join("set.jsonl");
        assert_eq!(write_jsonl(&path, ["a", "b\n"]).unwrap(), 2);
        assert_eq!(fs::read_to_string(&path).unwrap(), "\"a\"\n\"b\\n\"\n");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_failed_write_keeps_the_old_file_and_leaves_nothing() {
        let folder = folder("jsonl-failed");
        let path = folder.join("set.jsonl");
        fs::write(&path, "old").unwrap();
        let error = write_jsonl(&path, [Refuses]).unwrap_err();
        assert!(error.to_string().contains("set.jsonl"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        fs::remove_dir_all(folder).unwrap();
    }
}
