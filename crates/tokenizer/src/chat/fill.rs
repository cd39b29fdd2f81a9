//! Fill-in-the-middle: a text with a gap as the prompt of a model that was trained to fill it.

use crate::error::Error;
use crate::tokenizer::Tokenizer;

/// Put before what follows the gap while it is encoded, and taken away again: SentencePiece puts a space before the first
/// letter of a text, which here is in the middle of one. Source: mistral-common 1.12, `_encode_infilling`.
const MARK: &str = "☺";

impl Tokenizer {
    /// Token ids of a prompt whose answer is the text between `prefix` and `suffix`: `<s>[SUFFIX]suffix[PREFIX]prefix`.
    ///
    /// # Errors
    /// [`Error::MissingControl`] of a vocabulary without these tokens.
    pub fn encode_fill_in_the_middle(
        &self,
        prefix: &str,
        suffix: &str,
    ) -> Result<Vec<u32>, Error> {
        let control = |name| self.control_id(name).ok_or(Error::MissingControl { name });
        let mut token_ids = vec![self.bos_id(), control("[SUFFIX]")?];
        let n_mark = self.encode(MARK).len();
        let marked = self.encode(&format!("{MARK}{suffix}"));
        token_ids.extend_from_slice(marked.get(n_mark..).unwrap_or_default());
        token_ids.push(control("[PREFIX]")?);
        self.encode_after_control(prefix, &mut token_ids);
        Ok(token_ids)
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
            let token_ids = tokenizer.encode_fill_in_the_middle(prefix, suffix).unwrap();
            assert_eq!(token_ids, expected, "{prefix:?} {suffix:?}");
        }
        let error = golden("tiny.model").encode_fill_in_the_middle("a", "b").unwrap_err();
        assert!(matches!(error, Error::MissingControl { name: "[SUFFIX]" }), "{error}");
    }
}
