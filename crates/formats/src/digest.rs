//! SHA-256 sums in lower-case hexadecimal.

use std::fmt::Write as _;
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::FormatError;
use crate::durable::open_regular;

/// Bytes read at a time.
const READ_BYTES: usize = 1 << 18;

/// The sum of everything that a hasher was given.
#[must_use]
pub fn hex(sum: Sha256) -> String {
    let mut text = String::with_capacity(64);
    for byte in sum.finalize() {
        write!(text, "{byte:02x}").expect("writing to a string does not fail");
    }
    text
}

/// The sum of a file, and the file's size.
///
/// # Errors
/// When it is no regular file or cannot be read.
pub fn sha256_of_file(path: &Path) -> Result<(String, u64), FormatError> {
    let mut file = open_regular(path)?;
    let mut sum = Sha256::new();
    let mut buffer = vec![0; READ_BYTES];
    let mut n_bytes = 0;
    loop {
        let n = file.read(&mut buffer).map_err(FormatError::io("read", path))?;
        if n == 0 {
            return Ok((hex(sum), n_bytes));
        }
        sum.update(&buffer[..n]);
        n_bytes += n as u64;
    }
}
