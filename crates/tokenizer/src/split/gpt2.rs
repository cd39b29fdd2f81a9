//! The split of GPT-2: the `ByteLevel` pre-tokenizer of `tokenizer.json` by itself.

use super::classes::Class;
use super::{class_at, run_end, white_space_end};

/// The regular expression, which the file does not write.
pub(crate) const PATTERN: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// The words of a text as half-open byte ranges: contiguous, none empty, all of the text.
pub(crate) struct Gpt2Words<'a> {
    text: &'a [u8],
    position: usize,
}

impl<'a> Gpt2Words<'a> {
    pub(crate) fn new(text: &'a str) -> Gpt2Words<'a> {
        Gpt2Words { text: text.as_bytes(), position: 0 }
    }

    fn word_end(&self, start: usize) -> usize {
        let rest = &self.text[start..];
        if rest[0] == b'\'' {
            match (rest.get(1), rest.get(2)) {
                (Some(b's' | b't' | b'm' | b'd'), _) => return start + 2,
                (Some(b'r' | b'v'), Some(b'e')) | (Some(b'l'), Some(b'l')) => return start + 3,
                _ => {}
            }
        }
        let (mut class, mut n) = class_at(self.text, start);
        if rest[0] == b' ' {
            let (next, n_next) = class_at(self.text, start + 1);
            if matches!(next, Class::Letter | Class::Number | Class::Other) {
                (class, n) = (next, 1 + n_next);
            }
        }
        match class {
            // All white space, but for the one character that leads the next word: newlines are not told apart.
            Class::Space | Class::Newline => white_space_end(self.text, start, |at| {
                let (class, n) = class_at(self.text, at);
                matches!(class, Class::Space | Class::Newline).then_some((false, n))
            }),
            _ => run_end(self.text, start + n, class),
        }
    }
}

impl Iterator for Gpt2Words<'_> {
    type Item = (usize, usize);

    fn next(&mut self) -> Option<(usize, usize)> {
        let start = self.position;
        if start == self.text.len() {
            return None;
        }
        self.position = self.word_end(start);
        Some((start, self.position))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_follow_the_documented_pattern() {
        let cases: [(&str, &[&str]); 6] = [
            ("I'll go 'tis", &["I", "'ll", " go", " '", "tis"]),
            ("12345 678", &["12345", " 678"]),
            ("a  b", &["a", " ", " b"]),
            ("a\n\nb", &["a", "\n", "\n", "b"]),
            ("a !?\n", &["a", " !?", "\n"]),
            ("a   ", &["a", "   "]),
        ];
        for (text, expected) in cases {
            let words: Vec<&str> =
                Gpt2Words::new(text).map(|(start, end)| &text[start..end]).collect();
            assert_eq!(words, expected, "{text:?}");
        }
    }
}
