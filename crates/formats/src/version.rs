//! Versions of the formats of our own.

use std::path::Path;

use serde_json::Value;

use crate::FormatError;

/// Refuses a file of a version that is not read, and one without: the member `format_version` of its JSON.
///
/// # Errors
/// [`FormatError::FormatVersion`].
pub fn check_format_version(path: &Path, value: &Value, supported: u64) -> Result<(), FormatError> {
    let version = &value["format_version"];
    match version.as_u64() {
        Some(got) => check_version(path, got, supported),
        None => {
            let got = if version.is_null() { "none".to_owned() } else { version.to_string() };
            Err(refused(path, got.chars().take(80).collect(), supported))
        }
    }
}

/// As [`check_format_version`], for a version that was read already.
///
/// # Errors
/// [`FormatError::FormatVersion`].
pub fn check_version(path: &Path, got: u64, supported: u64) -> Result<(), FormatError> {
    if (1..=supported).contains(&got) {
        Ok(())
    } else {
        Err(refused(path, got.to_string(), supported))
    }
}

fn refused(path: &Path, got: String, supported: u64) -> FormatError {
    FormatError::FormatVersion { path: path.to_owned(), got, supported }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn versions_that_are_not_read_are_refused_in_one_way() {
        let path = Path::new("state.json");
        for (value, expected) in [
            (json!({"format_version": 1}), None),
            (json!({"format_version": 2}), None),
            (json!({"format_version": 3}), Some("3")),
            (json!({"format_version": 0}), Some("0")),
            (json!({"format_version": -1}), Some("-1")),
            (json!({"format_version": "1"}), Some("\"1\"")),
            (json!({}), Some("none")),
            (json!([]), Some("none")),
        ] {
            let checked = check_format_version(path, &value, 2).map_err(|error| error.to_string());
            let expected = expected.map(|got| {
                format!("state.json has format_version {got}, this program reads up to 2")
            });
            assert_eq!(checked.err(), expected, "{value}");
        }
        assert!(check_version(path, 2, 2).is_ok() && check_version(path, 3, 2).is_err());
    }
}
