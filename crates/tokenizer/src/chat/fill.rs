//! Fill-in-the-middle: a text with a gap as the prompt of a model that was trained to fill it.

use super::template::Rendered;
use crate::error::Error;
use crate::tokenizer::Tokenizer;

/// Put before what follows the gap while it is encoded, and taken away again: SentencePiece puts a space before the first
/// letter of a text, which here is in the middle of one. Source: mistral-common 1.13.1, `_encode_infilling`.
const MARK: &str = "☺";

impl Tokenizer {
    /// A prompt whose answer is the text between `prefix` and `suffix`: `<s>[SUFFIX]suffix[PREFIX]prefix`.
    ///
    /// # Errors
    /// [`Error::MissingControl`] of a vocabulary without these tokens.
    pub fn render_fill_in_the_middle(&self, prefix: &str, suffix: &str) -> Result<Rendered, Error> {
        let control = |name| self.control_id(name).ok_or(Error::MissingControl { name });
        let mut token_ids = vec![self.bos_id(), control("[SUFFIX]")?];
        let n_mark = self.encode(MARK).len();
        let marked = self.encode(&format!("{MARK}{suffix}"));
        token_ids.extend_from_slice(marked.get(n_mark..).unwrap_or_default());
        token_ids.push(control("[PREFIX]")?);
        self.encode_after_control(prefix, &mut token_ids);
        let bos = String::from_utf8_lossy(self.token_bytes(self.bos_id()).unwrap_or_default());
        Ok(Rendered {
            trained: vec![false; token_ids.len()],
            token_ids,
            text: format!("{bos}[SUFFIX]{suffix}[PREFIX]{prefix}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use testkit::golden::workspace_root;

    use super::*;

    fn golden(name: &str) -> Tokenizer {
        Tokenizer::open(&workspace_root().join("golden/tokenizer/family").join(name)).unwrap()
    }

    #[test]
    fn the_gap_comes_after_what_stands_around_it() {
        let tokenizer = golden("v3.tekken.json");
        let control = |name| tokenizer.control_id(name).unwrap();
        for (prefix, suffix) in [("fn a() {", "}\n"), ("", "x"), ("le vent", ""), ("a", " b")] {
            let mut expected = vec![tokenizer.bos_id(), control("[SUFFIX]")];
            tokenizer.encode_into(suffix, &mut expected);
            expected.push(control("[PREFIX]"));
            tokenizer.encode_into(prefix, &mut expected);
            let rendered = tokenizer.render_fill_in_the_middle(prefix, suffix).unwrap();
            assert_eq!(rendered.token_ids, expected, "{prefix:?} {suffix:?}");
            assert_eq!(rendered.text, format!("<s>[SUFFIX]{suffix}[PREFIX]{prefix}"));
        }
        let error = golden("tiny.model").render_fill_in_the_middle("a", "b").unwrap_err();
        assert!(matches!(error, Error::MissingControl { name: "[SUFFIX]" }), "{error}");
    }
}
