//! Reading numbers and texts one after the other from a header that may lie.

use std::fmt::Display;
use std::path::Path;

use crate::FormatError;

/// Longest name.
const MAX_NAME: u64 = 1024;

/// A position in the bytes of a file.
pub(super) struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(path: &'a Path, bytes: &'a [u8]) -> Self {
        Self { path, bytes, position: 0 }
    }

    pub(super) fn path(&self) -> &'a Path {
        self.path
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    /// Bytes of the whole file.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn bad(&self, field: &str, got: impl Display, expected: String) -> FormatError {
        let shown = |text: String| text.chars().take(120).collect();
        FormatError::Field {
            path: self.path.to_owned(),
            field: shown(field.to_owned()),
            got: shown(got.to_string()),
            expected,
        }
    }

    /// The next `n` bytes.
    pub(super) fn take(&mut self, n: u64, what: &str) -> Result<&'a [u8], FormatError> {
        let rest = &self.bytes[self.position..];
        match usize::try_from(n).ok().and_then(|n| rest.get(..n)) {
            Some(taken) => {
                self.position += taken.len();
                Ok(taken)
            }
            None => {
                let got = format!("{n} bytes at {} of {}", self.position, self.bytes.len());
                Err(self.bad(what, got, "bytes within the file".to_owned()))
            }
        }
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, FormatError> {
        let bytes = self.take(4, what)?;
        Ok(u32::from_le_bytes(bytes.try_into().expect("four bytes were taken")))
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, FormatError> {
        let bytes = self.take(8, what)?;
        Ok(u64::from_le_bytes(bytes.try_into().expect("eight bytes were taken")))
    }

    /// A number of things, at most `max`.
    pub(super) fn count(&mut self, what: &str, max: u64) -> Result<usize, FormatError> {
        let n = self.u64(what)?;
        match usize::try_from(n).ok().filter(|_| n <= max) {
            Some(n) => Ok(n),
            None => Err(self.bad(what, n, format!("at most {max}"))),
        }
    }

    /// A name: not empty, UTF-8.
    pub(super) fn text(&mut self, what: &str) -> Result<&'a str, FormatError> {
        let n = self.u64(what)?;
        if !(1..=MAX_NAME).contains(&n) {
            return Err(self.bad(what, format!("{n} bytes"), format!("1 to {MAX_NAME} bytes")));
        }
        let bytes = self.take(n, what)?;
        std::str::from_utf8(bytes)
            .map_err(|error| self.bad(what, error.to_string(), "UTF-8".to_owned()))
    }
}
