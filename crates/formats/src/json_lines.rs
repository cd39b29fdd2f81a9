//! JSON-lines files: reading them line by line, and cutting those of a run back to a checkpoint.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde_json::Value;

use crate::FormatError;
use crate::durable::{open_regular, write_atomically};

/// Longest line that is read.
const MAX_LINE_BYTES: usize = 16 << 20;

/// What [`truncate_jsonl`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JsonlCut {
    /// Lines that stay.
    pub n_kept: u64,
    /// Whole lines that `keep` refused.
    pub n_dropped: u64,
    /// Bytes of a last line that was half written, 0 if there was none.
    pub n_torn_bytes: u64,
}

/// Keeps the lines of a JSON-lines file for which `keep` is true, as for a run that goes on from an earlier step.
///
/// A last line that is not whole (no newline, or not JSON: the process was killed or the power failed while it was
/// written) is removed; one in the middle is an error, for nothing should have damaged it. The file is replaced
/// atomically, and only when something is to be removed. A missing file has no lines. Memory: one line.
///
/// # Errors
/// When a line other than the last is not JSON or is too long, or when reading or writing fails.
pub fn truncate_jsonl(
    path: &Path,
    mut keep: impl FnMut(&Value) -> bool,
) -> Result<JsonlCut, FormatError> {
    let mut cut = JsonlCut::default();
    match path.symlink_metadata() {
        Ok(found) if found.is_file() => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(cut),
        Err(error) => return Err(FormatError::io("inspect", path)(error)),
        Ok(_) => {
            let kind = std::io::ErrorKind::InvalidInput;
            let source = std::io::Error::new(kind, "it is not a regular file");
            return Err(FormatError::io("open", path)(source));
        }
    }
    // First pass: judge each line; second pass: copy the kept ones.
    let mut kept = Vec::new();
    let mut lines = JsonLines::open(path)?;
    while let Some(line) = lines.read_line()? {
        match serde_json::from_slice::<Value>(&line.bytes) {
            Ok(value) if line.is_whole => {
                let is_kept = keep(&value);
                kept.push(is_kept);
                if is_kept { cut.n_kept += 1 } else { cut.n_dropped += 1 }
            }
            _ if line.is_last => cut.n_torn_bytes = line.bytes.len() as u64,
            _ => return Err(bad_line(path, kept.len() + 1, &line.bytes, "one JSON value")),
        }
    }
    if cut.n_dropped == 0 && cut.n_torn_bytes == 0 {
        return Ok(cut);
    }
    let mut lines = JsonLines::open(path)?;
    let mut failed = None;
    write_atomically(path, |writer| {
        for is_kept in kept {
            match lines.read_line() {
                Ok(Some(line)) if is_kept => writer.write_all(&line.bytes)?,
                Ok(_) => {}
                Err(error) => {
                    failed = Some(error);
                    return Err(std::io::ErrorKind::InvalidData.into());
                }
            }
        }
        Ok(())
    })
    .map_err(|error| failed.unwrap_or(error))?;
    Ok(cut)
}

fn bad_line(path: &Path, line: usize, bytes: &[u8], expected: &'static str) -> FormatError {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned();
    FormatError::Line { path: path.to_owned(), line, got: format!("{text:?}"), expected }
}

/// One line of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its bytes, the newline included.
    pub bytes: Vec<u8>,
    /// Whether it ends in a newline.
    pub is_whole: bool,
    /// Whether nothing follows.
    pub is_last: bool,
}

/// The lines of a file, each of at most 16 MiB.
#[derive(Debug)]
pub struct JsonLines<'a> {
    path: &'a Path,
    reader: BufReader<File>,
    n_read: usize,
}

impl<'a> JsonLines<'a> {
    /// Opens a file at its first line.
    ///
    /// # Errors
    /// As [`open_regular`].
    pub fn open(path: &'a Path) -> Result<Self, FormatError> {
        Ok(Self { path, reader: BufReader::new(open_regular(path)?), n_read: 0 })
    }

    fn read_line(&mut self) -> Result<Option<Line>, FormatError> {
        let mut bytes = Vec::new();
        let mut bounded = (&mut self.reader).take(MAX_LINE_BYTES as u64);
        bounded.read_until(b'\n', &mut bytes).map_err(FormatError::io("read", self.path))?;
        if bytes.is_empty() {
            return Ok(None);
        }
        self.n_read += 1;
        if bytes.len() == MAX_LINE_BYTES && bytes.last() != Some(&b'\n') {
            return Err(bad_line(self.path, self.n_read, &bytes, "a line of at most 16 MiB"));
        }
        let rest = self.reader.fill_buf().map_err(FormatError::io("read", self.path))?;
        let is_whole = bytes.last() == Some(&b'\n');
        Ok(Some(Line { is_whole, is_last: rest.is_empty(), bytes }))
    }
}

impl Iterator for JsonLines<'_> {
    type Item = Result<Line, FormatError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read_line().transpose()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use testkit::test_dir::TestDir;

    fn cut(name: &str, text: &[u8]) -> (Result<JsonlCut, FormatError>, Vec<u8>) {
        let scratch = TestDir::new(name);
        let path = scratch.path().join("metrics.jsonl");
        fs::write(&path, text).unwrap();
        let result =
            truncate_jsonl(&path, |line| line["step"].as_u64().is_none_or(|step| step <= 2));
        assert_eq!(scratch.names(), ["metrics.jsonl"]);
        (result, fs::read(&path).unwrap())
    }

    #[test]
    fn json_lines_are_cut_to_the_step() {
        let text = b"{\"step\": 1}\n{\"note\": 0}\n{\"step\": 2}\n{\"step\": 3}\n{\"step\": 4}\n";
        let (result, left) = cut("jsonl-cut", text);
        assert_eq!(result.unwrap(), JsonlCut { n_kept: 3, n_dropped: 2, n_torn_bytes: 0 });
        assert_eq!(left, b"{\"step\": 1}\n{\"note\": 0}\n{\"step\": 2}\n");
        let (result, left) = cut("jsonl-nothing", b"{\"step\":  1}\n");
        assert_eq!(result.unwrap().n_kept, 1);
        assert_eq!(left, b"{\"step\":  1}\n");
        assert_eq!(cut("jsonl-empty", b"").0.unwrap(), JsonlCut::default());
        let missing = truncate_jsonl(Path::new("/nonexistent/metrics.jsonl"), |_| true);
        assert_eq!(missing.unwrap(), JsonlCut::default());
    }

    #[test]
    fn a_half_written_last_line_is_removed_and_a_damaged_middle_is_an_error() {
        let whole = b"{\"step\": 1}\n{\"step\": 2}\n";
        for n in 13..whole.len() {
            let (result, left) = cut("jsonl-torn", &whole[..n]);
            assert_eq!(result.unwrap().n_torn_bytes, n as u64 - 12, "{n}");
            assert_eq!(left, b"{\"step\": 1}\n");
        }
        let (result, left) = cut("jsonl-zeros", b"{\"step\": 1}\n\0\0\0\0\n");
        assert_eq!(result.unwrap().n_torn_bytes, 5);
        assert_eq!(left, b"{\"step\": 1}\n");
        let damaged = b"{\"step\": 1}\n{\"st\n{\"step\": 2}\n";
        let (result, left) = cut("jsonl-middle", damaged);
        let error = result.unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("metrics.jsonl"), "{error}");
        assert_eq!(left, damaged);
    }

    #[test]
    fn a_link_is_refused_even_where_it_leads_nowhere() {
        let scratch = TestDir::new("jsonl-link");
        let path = scratch.path().join("events.jsonl");
        std::os::unix::fs::symlink(scratch.path().join("target"), &path).unwrap();
        let error = truncate_jsonl(&path, |_| true).unwrap_err().to_string();
        assert!(error.contains("events.jsonl"), "{error}");
        crate::durable::open_to_append(&path).unwrap_err();
        assert_eq!(scratch.names(), ["events.jsonl"]);
    }
}
