//! Prompts without a conversation: a text to go on with, and fill-in-the-middle, a text with a gap for a model that was trained to
//! fill it.

use std::borrow::Cow;

use super::template::Rendered;
use crate::error::Error;
use crate::tokenizer::Tokenizer;

/// Put before what follows the gap while it is encoded, and taken away again: SentencePiece puts a space before the first
/// letter of a text, which here is in the middle of one. Source: mistral-common 1.13.1, `_encode_infilling`.
const MARK: &str = "☺";

impl Tokenizer {
    /// A prompt whose answer goes on with `text`: the tokens of [`Tokenizer::encode_prompt`].
    pub fn render_prompt(&self, text: &str) -> Rendered {
        let token_ids = self.encode_prompt(text);
        let bos = if self.adds_bos == Some(false) { "".into() } else { self.bos_name() };
        Rendered { trained: vec![false; token_ids.len()], token_ids, text: format!("{bos}{text}") }
    }

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
        Ok(Rendered {
            trained: vec![false; token_ids.len()],
            token_ids,
            text: format!("{}[SUFFIX]{suffix}[PREFIX]{prefix}", self.bos_name()),
        })
    }

    fn bos_name(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(self.token_bytes(self.bos_id()).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use testkit::golden::workspace_root;

    use super::*;
    use crate::listing::{Encoding, ListedKind};

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
    /// `tiny.model` with the two control tokens.
    fn pieces_with_gaps() -> Tokenizer {
        let mut listing = golden("tiny.model").listing().unwrap();
        for name in ["[SUFFIX]", "[PREFIX]"] {
            listing.tokens.push((name.to_owned(), ListedKind::Control));
        }
        let Encoding::Pieces { scores, adds_space: true } = &mut listing.encoding else {
            panic!("{:?}", listing.encoding)
        };
        scores.extend([0.0; 2]);
        Tokenizer::from_listing(&listing).unwrap()
    }

    /// What comes after the gap is in the middle of a text: no space stands before it, as one stands before the prefix.
    #[test]
    fn pieces_after_the_gap_get_no_space_before_them() {
        let tokenizer = pieces_with_gaps();
        let control = |name| tokenizer.control_id(name).unwrap();
        let text = |ids: &[u32]| -> String {
            let bytes = ids.iter().flat_map(|&id| tokenizer.token_bytes(id).unwrap().to_vec());
            String::from_utf8(bytes.collect()).unwrap()
        };
        assert_eq!(text(&tokenizer.encode("vent")), " vent");
        for (prefix, suffix) in
            [("le ", "vent"), ("le", " vent"), ("", "é☺"), ("mer", "  vent de mer"), ("a", "")]
        {
            let rendered = tokenizer.render_fill_in_the_middle(prefix, suffix).unwrap();
            let after_bos = rendered.token_ids.strip_prefix(&[tokenizer.bos_id()]).unwrap();
            let after = after_bos.strip_prefix(&[control("[SUFFIX]")]).unwrap();
            let (after, before) = after.split_at(after.len() - 1 - tokenizer.encode(prefix).len());
            assert_eq!(text(after), suffix);
            assert_eq!(before[0], control("[PREFIX]"), "{prefix:?} {suffix:?}");
            assert_eq!(before[1..], tokenizer.encode(prefix), "{prefix:?} {suffix:?}");
        }
    }

    #[test]
    fn a_prompt_to_go_on_with_begins_as_the_file_of_the_tokenizer_says() {
        let tokenizer = golden("tiny.model");
        let rendered = tokenizer.render_prompt("vent");
        assert_eq!(rendered.token_ids, tokenizer.encode_prompt("vent"));
        assert_eq!((rendered.text.as_str(), rendered.token_ids[0]), ("<s>vent", 1));
        assert_eq!(rendered.trained.len(), rendered.token_ids.len());
        let mut listing = tokenizer.listing().unwrap();
        listing.adds_bos = false;
        let bare = Tokenizer::from_listing(&listing).unwrap().render_prompt("vent");
        assert_eq!((bare.text.as_str(), &bare.token_ids[..]), ("vent", &rendered.token_ids[1..]));
    }
}
