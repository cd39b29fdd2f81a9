//! The split of Tekken, which cuts runs of letters where a capital follows a small letter.
//!
//! | Alternative of [`PATTERN`] | Takes |
//! |---|---|
//! | 1 and 2 | capitals, then small letters, with one leading space or sign; letters without case and marks are both |
//! | `\p{N}` | one digit |
//! | ` ?[^\s\p{L}\p{N}]+[\r\n/]*` | signs, with one leading space and the newlines and slashes after them |
//! | the rest | white space, as in the other splits |

use super::classes::fill;
use super::unicode_ranges::{LETTERS, LOWER, MARKS, NUMBERS, SPACES, UPPER};
use super::{char_at, contains, white_space_end};

/// The regular expression of `tekken.json`, versions 3 to 15.
pub(crate) const PATTERN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// What this split needs to know of a character: a set of the flags below.
type Class = u8;
/// `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]`.
const FIRST: Class = 1;
/// `[\p{Ll}\p{Lm}\p{Lo}\p{M}]`.
const THEN: Class = 2;
/// `\p{L}`.
const LETTER: Class = 4;
/// `\p{N}`.
const NUMBER: Class = 8;
/// `\s`.
const SPACE: Class = 16;
/// `[\r\n]`, beside `SPACE`.
const NEWLINE: Class = 32;
/// There is no character: the end of the text.
const END: Class = 64;

/// Code points below this limit are looked up in `LOW`.
const N_LOW: usize = 0x3000;

static LOW: [Class; N_LOW] = low_table();

const fn low_table() -> [Class; N_LOW] {
    let mut table = [0; N_LOW];
    fill(&mut table, &LETTERS, FIRST | THEN | LETTER);
    fill(&mut table, &UPPER, FIRST | LETTER);
    fill(&mut table, &LOWER, THEN | LETTER);
    fill(&mut table, &MARKS, FIRST | THEN);
    fill(&mut table, &NUMBERS, NUMBER);
    fill(&mut table, &SPACES, SPACE);
    table[b'\r' as usize] = SPACE | NEWLINE;
    table[b'\n' as usize] = SPACE | NEWLINE;
    table
}

#[inline]
fn class_of(code_point: u32) -> Class {
    match LOW.get(code_point as usize) {
        Some(&class) => class,
        None => class_by_search(code_point),
    }
}

/// There is no carriage return or line feed above the table.
fn class_by_search(code_point: u32) -> Class {
    if contains(&UPPER, code_point) {
        FIRST | LETTER
    } else if contains(&LOWER, code_point) {
        THEN | LETTER
    } else if contains(&LETTERS, code_point) {
        FIRST | THEN | LETTER
    } else if contains(&MARKS, code_point) {
        FIRST | THEN
    } else if contains(&NUMBERS, code_point) {
        NUMBER
    } else if contains(&SPACES, code_point) {
        SPACE
    } else {
        0
    }
}

/// The words of a text as half-open byte ranges: contiguous, none empty, all of the text.
pub(crate) struct CasedWords<'a> {
    text: &'a [u8],
    position: usize,
}

impl<'a> CasedWords<'a> {
    pub(crate) fn new(text: &'a str) -> CasedWords<'a> {
        CasedWords { text: text.as_bytes(), position: 0 }
    }

    #[inline]
    fn class_at(&self, at: usize) -> (Class, usize) {
        match char_at(self.text, at) {
            Some((point, n)) => (class_of(point), n),
            None => (END, 0),
        }
    }

    #[inline]
    fn word_end(&self, start: usize) -> usize {
        let (class, n) = self.class_at(start);
        if class & LETTER != 0 {
            let letters = self.letters(start);
            return letters.small.unwrap_or(letters.capitals);
        }
        if class & NUMBER != 0 {
            return start + n;
        }
        if class & NEWLINE == 0 {
            if let Some(end) = self.led_letters_end(start, class, start + n) {
                return end;
            }
            if class & SPACE == 0 {
                return self.signs_end(start + n);
            }
            let (next, n_next) = self.class_at(start + n);
            if self.text[start] == b' ' && next & (LETTER | NUMBER | SPACE | END) == 0 {
                return self.signs_end(start + n + n_next);
            }
        }
        white_space_end(self.text, start, |at| {
            let (class, n) = self.class_at(at);
            (class & SPACE != 0).then_some((class & NEWLINE != 0, n))
        })
    }

    /// The first two alternatives with a leading character that is no letter: their end, if they match.
    #[inline]
    fn led_letters_end(&self, start: usize, lead: Class, at: usize) -> Option<usize> {
        let letters = self.letters(at);
        if letters.small.is_some() {
            return letters.small;
        }
        if lead & THEN != 0 {
            // The leading character is a mark: the first alternative also matches with it alone.
            return Some(at);
        }
        debug_assert!(start < at, "a character leads");
        (letters.capitals > at).then_some(letters.capitals)
    }

    /// Both letter alternatives at `at`, without a leading character.
    #[inline]
    fn letters(&self, mut at: usize) -> Letters {
        // The longest run of the first set is taken; where no character of the second set follows, it is given back up
        // to its last character that is in both.
        let mut last_in_both = None;
        loop {
            let (class, n) = self.class_at(at);
            if class & FIRST != 0 {
                at += n;
                if class & THEN != 0 {
                    last_in_both = Some(at);
                }
            } else if class & THEN != 0 {
                let small = Some(self.run_end(at + n, THEN));
                return Letters { small, capitals: at };
            } else {
                return Letters { small: last_in_both, capitals: at };
            }
        }
    }

    #[inline]
    fn run_end(&self, mut at: usize, set: Class) -> usize {
        loop {
            let (class, n) = self.class_at(at);
            if class & set == 0 {
                return at;
            }
            at += n;
        }
    }

    fn signs_end(&self, mut at: usize) -> usize {
        loop {
            let (class, n) = self.class_at(at);
            if class & (LETTER | NUMBER | SPACE | END) != 0 {
                break;
            }
            at += n;
        }
        while matches!(self.text.get(at), Some(b'\r' | b'\n' | b'/')) {
            at += 1;
        }
        at
    }
}

/// Where the letter alternatives end.
struct Letters {
    /// The first one, which needs a character that is not a capital.
    small: Option<usize>,
    /// The second one, used where the first does not match.
    capitals: usize,
}

impl Iterator for CasedWords<'_> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(text: &str) -> Vec<&str> {
        CasedWords::new(text).map(|(start, end)| &text[start..end]).collect()
    }

    #[test]
    fn words_follow_the_documented_pattern() {
        let cases: [(&str, &[&str]); 14] = [
            ("Hello wideWorld!", &["Hello", " wide", "World", "!"]),
            ("HTTPServer", &["HTTPServer"]),
            ("HTTP Server", &["HTTP", " Server"]),
            ("AB漢字CD", &["AB漢字", "CD"]),
            ("AB漢字CDe", &["AB漢字CDe"]),
            ("123", &["1", "2", "3"]),
            ("\u{301}ABC", &["\u{301}", "ABC"]),
            ("\u{301}ABc", &["\u{301}ABc"]),
            ("\u{301}\u{301} a", &["\u{301}\u{301}", " a"]),
            ("!\u{301}?", &["!\u{301}", "?"]),
            ("a //\n/\r\nb", &["a", " //\n/\r\n", "b"]),
            (" !a", &[" !", "a"]),
            ("a  \n  b", &["a", "  \n", " ", " b"]),
            ("ǅa ªB", &["ǅa", " ª", "B"]),
        ];
        for (text, expected) in cases {
            assert_eq!(words(text), expected, "{text:?}");
        }
    }

    #[test]
    fn table_and_search_agree_below_the_limit() {
        for point in (0..N_LOW as u32).filter(|&point| point != 0x0A && point != 0x0D) {
            assert_eq!(class_of(point), class_by_search(point), "U+{point:04X}");
        }
    }

    proptest! {
        #[test]
        fn words_cover_the_text_without_gap(text in "\\PC*|[ aA漢\u{301}\\n\\r\\t1!é/]{0,40}") {
            let mut end = 0;
            for (start, next) in CasedWords::new(&text) {
                prop_assert_eq!(start, end);
                prop_assert!(next > start && text.is_char_boundary(next));
                end = next;
            }
            prop_assert_eq!(end, text.len());
        }
    }
}
