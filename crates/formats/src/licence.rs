//! The licence of a model, as its files state it.

use std::path::Path;

use crate::FormatError;
use crate::durable::read_bounded;
use crate::gguf::{LICENCE, Value};
use crate::model_dir::ModelDir;

/// Largest `README.md` whose head is read.
const MAX_README_BYTES: u64 = 4 << 20;

/// Longest name of a licence, bytes.
const MAX_NAME_BYTES: usize = 200;

/// Words in a licence's name that mean it does not allow every use, and what they mean.
const LIMITED: [(&str, &str); 8] = [
    ("mnpl", "not for production"),
    ("non-production", "not for production"),
    ("mrl", "for research only"),
    ("research", "for research only"),
    ("cc-by-nc", "not for commercial use"),
    ("noncommercial", "not for commercial use"),
    ("non-commercial", "not for commercial use"),
    ("llama", "with conditions on its use"),
];

/// A licence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Licence {
    /// Its name as the files have it, such as `apache-2.0`.
    pub name: String,
    /// What it does not allow, in short, for the licences that are known to.
    pub limit: Option<&'static str>,
}

impl Licence {
    fn named(name: &str) -> Self {
        // One line of what is seen, and not a long one, whatever a file says.
        let shown = name.chars().filter(|&c| !is_unseen(c));
        let shown = shown.map(|c| if c.is_control() { ' ' } else { c });
        let name: String = shown.take(MAX_NAME_BYTES).collect();
        let lower = name.to_lowercase();
        let limit = LIMITED.iter().find(|(word, _)| lower.contains(word)).map(|(_, limit)| *limit);
        Self { name, limit }
    }
}

/// Characters without a width, and those that turn the direction of a text: with them a name may look like another.
fn is_unseen(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// The licence that `galerne.json`, the head of `README.md` or the metadata of a GGUF file states, in this order.
///
/// # Errors
/// When a file that is there cannot be read.
pub fn licence_of(model: &ModelDir) -> Result<Option<Licence>, FormatError> {
    if let Some(name) = model.lineage().and_then(|lineage| lineage.licence.as_deref()) {
        return Ok(Some(Licence::named(name)));
    }
    if let Some(name) = of_readme(&model.dir().join("README.md"))? {
        return Ok(Some(Licence::named(&name)));
    }
    let of_gguf = match model.weights().gguf().and_then(|file| file.get(LICENCE)) {
        Some(Value::Text(name)) if name.len() <= MAX_NAME_BYTES => {
            std::str::from_utf8(name).ok().map(Licence::named)
        }
        _ => None,
    };
    Ok(of_gguf)
}

/// `license_name` or `license` in the YAML between the first two lines of dashes.
fn of_readme(path: &Path) -> Result<Option<String>, FormatError> {
    if !path.is_file() {
        return Ok(None);
    }
    let bytes = read_bounded(path, MAX_README_BYTES)?;
    let text = String::from_utf8_lossy(&bytes);
    let mut lines = text.lines();
    if lines.next().map(str::trim_end) != Some("---") {
        return Ok(None);
    }
    let head: Vec<&str> = lines.take_while(|line| line.trim_end() != "---").collect();
    let value = |key: &str| {
        let line = head.iter().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        let value = line.map(|value| value.trim().trim_matches(['"', '\'']).to_owned());
        value.filter(|value| !value.is_empty() && value.len() <= MAX_NAME_BYTES)
    };
    // `license: other` stands beside a name.
    Ok(value("license_name").or_else(|| value("license")))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use testkit::test_dir::TestDir;

    use super::*;

    #[test]
    fn the_head_of_a_readme_states_the_licence() {
        let scratch = TestDir::new("licence");
        let path = scratch.path().join("README.md");
        assert_eq!(of_readme(&path).unwrap(), None);
        for (text, expected) in [
            ("---\nlicense: apache-2.0\n---\n# Model", Some("apache-2.0")),
            ("---\nlicense: other\nlicense_name: \"mrl\"\n---\n", Some("mrl")),
            ("---\r\nlicense: mit\r\n---\r\n", Some("mit")),
            ("license: mit\n", None),
            ("---\ntags: x\n---\nlicense: mit\n", None),
            ("", None),
        ] {
            fs::write(&path, text).unwrap();
            assert_eq!(of_readme(&path).unwrap().as_deref(), expected, "{text:?}");
        }
        fs::write(&path, [b'-', b'-', b'-', b'\n', 0xff, 0xfe]).unwrap();
        assert_eq!(of_readme(&path).unwrap(), None);
    }

    #[test]
    fn what_is_not_seen_of_a_name_hides_nothing() {
        let licence = Licence::named("cc-by\u{200b}-nc\u{202e}-4.0\nlicence mit");
        assert_eq!(licence.name, "cc-by-nc-4.0 licence mit");
        assert_eq!(licence.limit, Some("not for commercial use"));
    }

    #[test]
    fn licences_that_limit_use_are_known() {
        for (name, limit) in [
            ("Apache-2.0", None),
            ("mit", None),
            ("mrl", Some("for research only")),
            ("MNPL-0.1", Some("not for production")),
            ("cc-by-nc-4.0", Some("not for commercial use")),
            ("llama3.1", Some("with conditions on its use")),
        ] {
            assert_eq!(Licence::named(name).limit, limit, "{name}");
        }
    }
}
