//! The split of SentencePiece: words begin with their spaces, if they are cut at all.

/// Where a text is cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SpaceCut {
    /// Nowhere: some token has a space after another character.
    Nowhere,
    /// Before runs of spaces: no token has a space after another character, so that no merge crosses such a place.
    Runs,
    /// Before every space, by definition.
    Every,
}

impl SpaceCut {
    /// Where texts may be cut, by the bytes of the tokens that merges make, spaces being spaces.
    pub(crate) fn for_tokens<'a>(mut tokens: impl Iterator<Item = &'a [u8]>) -> SpaceCut {
        let has_inner_space = |token: &[u8]| {
            let n_spaces = token.iter().take_while(|&&byte| byte == b' ').count();
            token[n_spaces..].contains(&b' ')
        };
        if tokens.any(has_inner_space) { SpaceCut::Nowhere } else { SpaceCut::Runs }
    }
}

/// U+2581, which stands for the space in the files of SentencePiece and counts as one in text.
pub(crate) const SPACE_SIGN: &str = "\u{2581}";

/// Whether a text begins with a space or its sign.
pub(crate) fn begins_with_space(text: &str) -> bool {
    text.starts_with(' ') || text.starts_with(SPACE_SIGN)
}

/// The words of a text as half-open byte ranges: contiguous, none empty, all of the text.
pub(crate) struct SpaceWords<'a> {
    text: &'a [u8],
    position: usize,
    cut: SpaceCut,
}

impl<'a> SpaceWords<'a> {
    pub(crate) fn new(text: &'a str, cut: SpaceCut) -> SpaceWords<'a> {
        SpaceWords { text: text.as_bytes(), position: 0, cut }
    }

    /// The first byte after `start` where a word begins.
    #[inline]
    fn word_end(&self, start: usize) -> usize {
        let text = self.text;
        match self.cut {
            SpaceCut::Nowhere => text.len(),
            SpaceCut::Every => (start + 1..text.len())
                .find(|&at| text[at] == b' ' || text[at..].starts_with(SPACE_SIGN.as_bytes()))
                .unwrap_or(text.len()),
            // A sign before the space is a space too. A sign may stay inside a word: cutting there would be right, but
            // is never needed.
            SpaceCut::Runs => (start + 1..text.len())
                .find(|&at| {
                    text[at] == b' '
                        && text[at - 1] != b' '
                        && !text[..at].ends_with(SPACE_SIGN.as_bytes())
                })
                .unwrap_or(text.len()),
        }
    }
}

impl Iterator for SpaceWords<'_> {
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

    #[test]
    fn words_begin_with_their_spaces() {
        let words = |text, cut| {
            SpaceWords::new(text, cut).map(|(start, end)| &text[start..end]).collect::<Vec<_>>()
        };
        let text = "the  wind\u{2581} of▁sea ";
        assert_eq!(words(text, SpaceCut::Nowhere), [text]);
        assert_eq!(words(text, SpaceCut::Runs), ["the", "  wind\u{2581} of▁sea", " "]);
        assert_eq!(
            words(text, SpaceCut::Every),
            ["the", " ", " wind", "\u{2581}", " of", "▁sea", " "]
        );
        assert_eq!(words("", SpaceCut::Runs), [""; 0]);
    }
}
