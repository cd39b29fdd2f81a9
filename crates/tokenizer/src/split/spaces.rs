//! The split of SentencePiece, which has no words: a text may be cut wherever no merge can cross the cut.

use super::char_at;

/// U+2581, which stands for the space in the files of SentencePiece and counts as one in text.
pub(crate) const SPACE_SIGN: &str = "\u{2581}";
const SPACE_SIGN_POINT: u32 = 0x2581;

/// Whether a text begins with a space or its sign.
pub(crate) fn begins_with_space(text: &str) -> bool {
    text.starts_with(' ') || text.starts_with(SPACE_SIGN)
}

/// Which characters stand side by side in some token. Between two others no merge is possible, since its result would be
/// such a token: cutting there changes nothing and keeps words short.
///
/// Characters beyond ASCII share 128 places, so that some are taken for neighbours that are not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Neighbours {
    /// A bit for each place of the right one, by the place of the left one.
    right_of: Box<[[u64; 4]; N_PLACES]>,
}

const N_PLACES: usize = 256;

#[inline]
fn place(code_point: u32) -> usize {
    match code_point {
        0..0x80 => code_point as usize,
        SPACE_SIGN_POINT => b' '.into(),
        // The lower bits alone would put the same places of all alphabets together.
        _ => 0x80 | ((code_point ^ code_point >> 7) & 0x7F) as usize,
    }
}

impl Neighbours {
    /// The neighbours in tokens that merges make, which are UTF-8.
    pub(crate) fn in_tokens<'a>(tokens: impl Iterator<Item = &'a [u8]>) -> Neighbours {
        let mut right_of = Box::new([[0; 4]; N_PLACES]);
        for token in tokens {
            let mut at = 0;
            let mut left = None;
            while let Some((point, n)) = char_at(token, at) {
                let right = place(point);
                if let Some(left) = left.replace(right) {
                    right_of[left][right / 64] |= 1 << (right % 64);
                }
                at += n;
            }
        }
        Neighbours { right_of }
    }

    #[inline]
    fn contain(&self, left: usize, right: usize) -> bool {
        self.right_of[left][right / 64] >> (right % 64) & 1 == 1
    }
}

/// The parts of a text as half-open byte ranges: contiguous, none empty, all of the text. Cut where no merge is possible.
pub(crate) struct UnmergedWords<'a> {
    text: &'a [u8],
    position: usize,
    neighbours: &'a Neighbours,
}

impl<'a> UnmergedWords<'a> {
    pub(crate) fn new(text: &'a str, neighbours: &'a Neighbours) -> UnmergedWords<'a> {
        UnmergedWords { text: text.as_bytes(), position: 0, neighbours }
    }

    /// As [`Iterator::next`] if a space stood before the text: where the word ends that begins with it.
    pub(crate) fn next_after_space(&mut self) -> usize {
        self.position = self.word_end(b' '.into(), 0);
        self.position
    }

    #[inline]
    fn word_end(&self, mut left: usize, mut at: usize) -> usize {
        while let Some((point, n)) = char_at(self.text, at) {
            let right = place(point);
            if !self.neighbours.contain(left, right) {
                break;
            }
            (left, at) = (right, at + n);
        }
        at
    }
}

impl Iterator for UnmergedWords<'_> {
    type Item = (usize, usize);

    #[inline]
    fn next(&mut self) -> Option<(usize, usize)> {
        let start = self.position;
        let (first, n) = char_at(self.text, start)?;
        self.position = self.word_end(place(first), start + n);
        Some((start, self.position))
    }
}

/// The parts of a text as half-open byte ranges: contiguous, none empty, all of the text. Cut before every space.
pub(crate) struct SpacedWords<'a> {
    text: &'a [u8],
    position: usize,
}

impl<'a> SpacedWords<'a> {
    pub(crate) fn new(text: &'a str) -> SpacedWords<'a> {
        SpacedWords { text: text.as_bytes(), position: 0 }
    }
}

impl Iterator for SpacedWords<'_> {
    type Item = (usize, usize);

    #[inline]
    fn next(&mut self) -> Option<(usize, usize)> {
        let (text, start) = (self.text, self.position);
        if start == text.len() {
            return None;
        }
        let begins =
            |&at: &usize| text[at] == b' ' || text[at..].starts_with(SPACE_SIGN.as_bytes());
        self.position = (start + 1..text.len()).find(begins).unwrap_or(text.len());
        Some((start, self.position))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_where_no_token_has_both_characters() {
        let tokens = ["  ", " th", "he", "é漢", "n▁"].map(str::as_bytes);
        let neighbours = Neighbours::in_tokens(tokens.into_iter());
        let cut = |text| {
            UnmergedWords::new(text, &neighbours)
                .map(|(start, end)| &text[start..end])
                .collect::<Vec<_>>()
        };
        assert_eq!(cut("the  the\u{2581}thn then"), ["the", "  the", "\u{2581}th", "n the", "n"]);
        assert_eq!(cut("hé漢é"), ["h", "é漢", "é"]);
        assert_eq!(cut(""), [""; 0]);
        assert_eq!(UnmergedWords::new("the", &neighbours).next_after_space(), 3);
        assert_eq!(UnmergedWords::new("he", &neighbours).next_after_space(), 0);
    }

    #[test]
    fn texts_are_cut_before_every_space() {
        let cut =
            |text| SpacedWords::new(text).map(|(start, end)| &text[start..end]).collect::<Vec<_>>();
        assert_eq!(
            cut("the  wind\u{2581} of▁sea "),
            ["the", " ", " wind", "▁", " of", "▁sea", " "]
        );
        assert_eq!(cut(""), [""; 0]);
    }
}
