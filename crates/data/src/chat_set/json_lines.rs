//! JSON lines files, written whole or not at all.

use crate::DataError;
use formats::durable::write_atomically;
use serde::Serialize;
use std::path::Path;

/// Writes one JSON object per line and returns how many there were; the old file stays until all are written.
///
/// Memory: one buffer, whatever the number of items.
///
/// # Errors
/// When an item cannot be serialised or the file not be written; nothing is left behind then.
pub fn write_jsonl<T: Serialize>(
    path: &Path,
    items: impl IntoIterator<Item = T>,
) -> Result<usize, DataError> {
    let mut n_lines = 0;
    write_atomically(path, |out| {
        for item in items {
            serde_json::to_writer(&mut *out, &item)?;
            out.write_all(b"\n")?;
            n_lines += 1;
        }
        Ok(())
    })?;
    Ok(n_lines)
}

#[cfg(test)]
mod tests {
    use super::write_jsonl;
    use serde::{Serialize, Serializer, ser::Error as _};
    use std::fs;
    use testkit::test_dir::TestDir;

    struct Refuses;

    impl Serialize for Refuses {
        fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(S::Error::custom("refused"))
        }
    }

    #[test]
    fn a_finished_file_has_one_line_per_item_and_no_leftover() {
        let folder = TestDir::new("jsonl-whole");
        let path = folder.join("set.jsonl");
        assert_eq!(write_jsonl(&path, ["a", "b\n"]).unwrap(), 2);
        assert_eq!(fs::read_to_string(&path).unwrap(), "\"a\"\n\"b\\n\"\n");
        assert_eq!(folder.names(), ["set.jsonl"]);
    }

    #[test]
    fn a_failed_write_keeps_the_old_file_and_leaves_nothing() {
        let folder = TestDir::new("jsonl-failed");
        let path = folder.join("set.jsonl");
        fs::write(&path, "old").unwrap();
        let error = write_jsonl(&path, [Refuses]).unwrap_err();
        assert!(error.to_string().contains("set.jsonl"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(folder.names(), ["set.jsonl"]);
    }
}
