//! Cutting the JSON-lines files of a run back to a checkpoint.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde_json::Value;

use crate::FormatError;
use crate::durable::write_atomically;

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
    if !path.try_exists().map_err(FormatError::io("inspect", path))? {
        return Ok(cut);
    }
    // First pass: judge each line; second pass: copy the kept ones.
    let mut kept = Vec::new();
    let mut lines = Lines::open(path)?;
    while let Some(line) = lines.next()? {
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
    let mut lines = Lines::open(path)?;
    let mut failed = None;
    write_atomically(path, |writer| {
        for is_kept in kept {
            match lines.next() {
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

struct Line {
    /// The newline included.
    bytes: Vec<u8>,
    /// Whether it ends in a newline.
    is_whole: bool,
    is_last: bool,
}

struct Lines<'a> {
    path: &'a Path,
    reader: BufReader<File>,
    n_read: usize,
}

impl<'a> Lines<'a> {
    fn open(path: &'a Path) -> Result<Self, FormatError> {
        let file = File::open(path).map_err(FormatError::io("open", path))?;
        Ok(Self { path, reader: BufReader::new(file), n_read: 0 })
    }

    fn next(&mut self) -> Result<Option<Line>, FormatError> {
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
