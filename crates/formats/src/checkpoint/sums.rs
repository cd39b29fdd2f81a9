//! `SHA256SUMS` in the form of the program `sha256sum`.

use std::path::Path;

use crate::FormatError;
use crate::durable::read_bounded;
use crate::weights::is_plain_name;

/// The sums of all other files of a checkpoint; `sha256sum -c SHA256SUMS` accepts it.
pub const SUMS_FILE: &str = "SHA256SUMS";

/// Largest `SHA256SUMS` that is read.
const MAX_SUMS_BYTES: u64 = 1 << 20;

/// One line per file: sum, two spaces, name.
pub(super) fn sums_text(sums: &[(String, String)]) -> String {
    sums.iter().map(|(name, sum)| format!("{sum}  {name}\n")).collect()
}

/// Name and sum of each file that a folder's `SHA256SUMS` lists.
pub(super) fn read_sums(dir: &Path) -> Result<Vec<(String, String)>, FormatError> {
    let path = dir.join(SUMS_FILE);
    let bytes = match read_bounded(&path, MAX_SUMS_BYTES) {
        Err(FormatError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            let name = SUMS_FILE.to_owned();
            return Err(FormatError::FileMissing { dir: dir.to_owned(), name });
        }
        other => other?,
    };
    let text = String::from_utf8_lossy(&bytes);
    let mut sums = Vec::new();
    for (line_idx, line) in text.lines().enumerate() {
        let parsed = line
            .split_once("  ")
            .filter(|(sum, name)| is_sum(sum) && is_plain_name(name) && *name != SUMS_FILE);
        let Some((sum, name)) = parsed else {
            return Err(FormatError::Line {
                path,
                line: line_idx + 1,
                got: format!("{:?}", line.chars().take(80).collect::<String>()),
                expected: "a sha256 sum, two spaces and a plain file name",
            });
        };
        sums.push((name.to_owned(), sum.to_owned()));
    }
    Ok(sums)
}

fn is_sum(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}
