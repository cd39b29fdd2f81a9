//! Splitting text into words, the pieces inside which byte pairs are merged.
//!
//! The rule of tokenizers that are trained here is a regular expression of the family used by GPT-4, letter for letter the
//! one of Qwen2: so `llama.cpp`, which knows a list of such rules, cuts text as we do. Written into `tokenizer.json`, it is
//!
//! | Alternative | Takes |
//! |---|---|
//! | `(?i:'s|'t|'re|'ve|'m|'ll|'d)` | English contractions |
//! | `[^\r\n\p{L}\p{N}]?\p{L}+` | letters, with one leading space or sign |
//! | `\p{N}` | digits, one by one |
//! | ` ?[^\s\p{L}\p{N}]+[\r\n]*` | signs, with one leading space and the newlines after them |
//! | `\s*[\r\n]+` | white space up to its last newline |
//! | `\s+(?!\S)` | white space, but for the one character that leads the next word |
//! | `\s+` | the rest |
//!
//! Here it is a state machine over bytes: linear time, no allocation, at most two passes over a run of white space.

mod cased;
mod classes;
mod gpt2;
mod rule;
mod spaces;
mod unicode_ranges;

pub(crate) use cased::CasedWords;
use classes::{Class, class_of};
pub(crate) use gpt2::Gpt2Words;
pub(crate) use rule::{OWN_SPLIT, Split, own_words};
pub(crate) use spaces::{Neighbours, SPACE_SIGN, SpacedWords, UnmergedWords, begins_with_space};

/// How many digits at most make one word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum DigitGroup {
    /// Each digit by itself.
    One,
    /// One or two digits.
    Two,
    /// One to three digits.
    Three,
}

impl DigitGroup {
    /// The regular expression, but for contractions.
    fn pattern(self) -> &'static str {
        match self {
            DigitGroup::One => {
                r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            }
            DigitGroup::Two => {
                r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            }
            DigitGroup::Three => {
                r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            }
        }
    }

    fn n_digits(self) -> usize {
        match self {
            DigitGroup::One => 1,
            DigitGroup::Two => 2,
            DigitGroup::Three => 3,
        }
    }
}

/// Whether words such as `'ll` are words of their own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Contractions {
    Ignored,
    Apart,
}

/// The words of a text as half-open byte ranges: contiguous, none empty, all of the text.
pub(crate) struct Words<'a> {
    text: &'a [u8],
    position: usize,
    n_digits: usize,
    contractions: Contractions,
}

impl<'a> Words<'a> {
    pub(crate) fn new(text: &'a str, digits: DigitGroup, contractions: Contractions) -> Words<'a> {
        Words { text: text.as_bytes(), position: 0, n_digits: digits.n_digits(), contractions }
    }

    /// Class and length in bytes of the character that starts at `at`; the text is valid UTF-8.
    #[inline]
    fn class_at(&self, at: usize) -> (Class, usize) {
        class_at(self.text, at)
    }

    /// The end of the word that starts at `start`.
    #[inline]
    fn word_end(&self, start: usize) -> usize {
        let (class, n) = self.class_at(start);
        match class {
            Class::Letter => self.run_end(start + n, Class::Letter),
            Class::Number => self.digits_end(start + n),
            Class::Newline => self.white_space_end(start),
            Class::Other | Class::Space => {
                if self.contractions == Contractions::Apart
                    && let Some(n) = contraction(&self.text[start..])
                {
                    return start + n;
                }
                let (next, n_next) = self.class_at(start + n);
                match (class, next) {
                    (_, Class::Letter) => self.run_end(start + n + n_next, Class::Letter),
                    (Class::Other, _) => self.signs_end(start + n),
                    (_, Class::Other) if self.text[start] == b' ' => {
                        self.signs_end(start + n + n_next)
                    }
                    _ => self.white_space_end(start),
                }
            }
            Class::End => start,
        }
    }

    #[inline]
    fn run_end(&self, at: usize, wanted: Class) -> usize {
        run_end(self.text, at, wanted)
    }

    fn digits_end(&self, mut at: usize) -> usize {
        for _ in 1..self.n_digits {
            let (class, n) = self.class_at(at);
            if class != Class::Number {
                break;
            }
            at += n;
        }
        at
    }

    fn signs_end(&self, at: usize) -> usize {
        let at = self.run_end(at, Class::Other);
        self.run_end(at, Class::Newline)
    }

    fn white_space_end(&self, start: usize) -> usize {
        white_space_end(self.text, start, |at| match self.class_at(at) {
            (Class::Space, n) => Some((false, n)),
            (Class::Newline, n) => Some((true, n)),
            _ => None,
        })
    }
}

/// The end of the characters of one class from `at` on.
#[inline]
fn run_end(text: &[u8], mut at: usize, wanted: Class) -> usize {
    loop {
        let (class, n) = class_at(text, at);
        if class != wanted {
            return at;
        }
        at += n;
    }
}

/// Class and length in bytes of the character at `at`, in valid UTF-8.
#[inline]
fn class_at(text: &[u8], at: usize) -> (Class, usize) {
    match char_at(text, at) {
        Some((point, n)) => (class_of(point), n),
        None => (Class::End, 0),
    }
}

/// Code point and length in bytes of the character at `at`, in valid UTF-8; `None` at the end.
#[inline]
fn char_at(text: &[u8], at: usize) -> Option<(u32, usize)> {
    let &first = text.get(at)?;
    if first.is_ascii() { Some((u32::from(first), 1)) } else { Some(char_beyond_ascii(text, at)) }
}

fn char_beyond_ascii(text: &[u8], at: usize) -> (u32, usize) {
    let first = u32::from(text[at]);
    let tail = |i: usize| u32::from(text[at + i]) & 0x3F;
    if first < 0xE0 {
        ((first & 0x1F) << 6 | tail(1), 2)
    } else if first < 0xF0 {
        ((first & 0x0F) << 12 | tail(1) << 6 | tail(2), 3)
    } else {
        ((first & 0x07) << 18 | tail(1) << 12 | tail(2) << 6 | tail(3), 4)
    }
}

/// The end of the white space that starts at `start` by the last three alternatives. `space_at` tells of a white-space
/// character whether it is a newline, and its length.
#[inline]
fn white_space_end(
    text: &[u8],
    start: usize,
    space_at: impl Fn(usize) -> Option<(bool, usize)>,
) -> usize {
    let (mut end, mut last, mut after_newline) = (start, start, None);
    while let Some((is_newline, n)) = space_at(end) {
        (last, end) = (end, end + n);
        if is_newline {
            after_newline = Some(end);
        }
    }
    match after_newline {
        Some(end) => end,
        None if end == text.len() || last == start => end,
        None => last,
    }
}

/// Bytes of the English contraction that a text begins with, if it does. Case does not matter; U+017F is a small s.
fn contraction(text: &[u8]) -> Option<usize> {
    let (&first, rest) = text.split_first()?;
    if first != b'\'' {
        return None;
    }
    let lower = |i: usize| rest.get(i).map_or(0, u8::to_ascii_lowercase);
    match (lower(0), lower(1)) {
        (b's' | b't' | b'm' | b'd', _) => Some(2),
        (b'r' | b'v', b'e') | (b'l', b'l') => Some(3),
        (0xC5, 0xBF) => Some(3),
        _ => None,
    }
}

fn contains(ranges: &[(u32, u32)], code_point: u32) -> bool {
    let after = ranges.partition_point(|&(first, _)| first <= code_point);
    after > 0 && code_point <= ranges[after - 1].1
}

impl Iterator for Words<'_> {
    type Item = (usize, usize);

    #[inline]
    fn next(&mut self) -> Option<(usize, usize)> {
        let start = self.position;
        if start == self.text.len() {
            return None;
        }
        self.position = self.word_end(start);
        Some((start, self.position))
    }
}

/// Cuts a text into at most `n_parts` parts of about equal length whose words are, in order, the words of the text.
///
/// A cut is made after a newline before a character that is not white space: no word crosses such a place, and the
/// rule never looks back. A text without such a place is one part.
pub(crate) fn parts(text: &str, n_parts: usize) -> Vec<&str> {
    let mut rest = text;
    let mut found = Vec::with_capacity(n_parts);
    for n_left in (2..=n_parts).rev() {
        let Some(cut) = cut_after(rest, rest.len() / n_left) else { break };
        let (part, after) = rest.split_at(cut);
        found.push(part);
        rest = after;
    }
    found.push(rest);
    found
}

fn cut_after(text: &str, from: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut at = from;
    loop {
        at += 1 + bytes[at..].iter().position(|&b| b == b'\n')?;
        match text[at..].chars().next() {
            None => return None,
            Some(c) if !matches!(class_of(c as u32), Class::Space | Class::Newline) => {
                return Some(at);
            }
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(text: &str, digits: DigitGroup) -> Vec<&str> {
        let words = Words::new(text, digits, Contractions::Ignored);
        words.map(|(start, end)| &text[start..end]).collect()
    }

    #[test]
    fn words_follow_the_documented_pattern() {
        let cases: [(&str, &[&str]); 12] = [
            ("Hello, wide world!", &["Hello", ",", " wide", " world", "!"]),
            ("l'eau d’été", &["l", "'eau", " d", "’été"]),
            ("12345 €", &["12", "34", "5", " €"]),
            ("a  b", &["a", " ", " b"]),
            ("a   ", &["a", "   "]),
            ("a \n\n  b", &["a", " \n\n", " ", " b"]),
            ("(x)\r\n\r\ny", &["(x", ")\r\n\r\n", "y"]),
            ("\t7", &["\t", "7"]),
            ("\t!", &["\t", "!"]),
            ("  7", &[" ", " ", "7"]),
            ("a\u{301}b", &["a", "\u{301}b"]),
            ("漢字かな 😀😀", &["漢字かな", " 😀😀"]),
        ];
        for (text, expected) in cases {
            assert_eq!(words(text, DigitGroup::Two), expected, "{text:?}");
        }
    }

    #[test]
    fn digit_groups_have_the_length_asked_for() {
        assert_eq!(words("1234", DigitGroup::One), ["1", "2", "3", "4"]);
        assert_eq!(words("1234", DigitGroup::Three), ["123", "4"]);
    }

    #[test]
    fn contractions_are_words_where_the_rule_says_so() {
        let words = |text| {
            Words::new(text, DigitGroup::Three, Contractions::Apart)
                .map(|(start, end)| &text[start..end])
                .collect::<Vec<_>>()
        };
        assert_eq!(words("I'll DON'T 'sea'"), ["I", "'ll", " DON", "'T", " '", "sea", "'"]);
        assert_eq!(words("'ſo 're'R"), ["'ſ", "o", " '", "re", "'R"]);
    }

    proptest! {
        #[test]
        fn words_cover_the_text_without_gap(text in "\\PC*|[ a\\n\\r\\t1!é]{0,40}") {
            let mut end = 0;
            for (start, next) in Words::new(&text, DigitGroup::Two, Contractions::Apart) {
                prop_assert_eq!(start, end);
                prop_assert!(next > start && text.is_char_boundary(next));
                end = next;
            }
            prop_assert_eq!(end, text.len());
        }

        #[test]
        fn words_of_the_parts_are_the_words_of_the_text(
            text in "([ a\\n\\r\\t1!é’\u{2028}]|ab\\n){0,60}",
            n_parts in 1usize..6,
        ) {
            let whole = words(&text, DigitGroup::Two);
            let found = parts(&text, n_parts);
            prop_assert!(found.len() <= n_parts);
            let by_part: Vec<&str> =
                found.into_iter().flat_map(|part| words(part, DigitGroup::Two)).collect();
            prop_assert_eq!(whole, by_part);
        }
    }
}
