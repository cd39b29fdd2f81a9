//! Tokens that are looked for in text before it is cut into words.

use std::collections::HashMap;

/// Strings that are a token wherever they stand: of those that begin first, the longest.
#[derive(Clone, Debug)]
pub(crate) struct AddedTokens {
    ids: HashMap<String, u32>,
    /// In bytes, longest first, each once.
    lengths: Vec<usize>,
    may_begin: [bool; 256],
}

/// Where a token stands in a text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Found {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) id: u32,
}

impl AddedTokens {
    /// `None` if there are none. No string is empty.
    pub(crate) fn new(ids: HashMap<String, u32>) -> Option<AddedTokens> {
        let mut lengths: Vec<usize> = ids.keys().map(String::len).collect();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        lengths.dedup();
        let mut may_begin = [false; 256];
        for text in ids.keys() {
            may_begin[usize::from(text.as_bytes()[0])] = true;
        }
        (!ids.is_empty()).then_some(AddedTokens { ids, lengths, may_begin })
    }

    /// The ids of all tokens.
    pub(crate) fn ids(&self) -> impl Iterator<Item = u32> {
        self.ids.values().copied()
    }

    /// The first token in `text[from..]`.
    pub(crate) fn find(&self, text: &str, from: usize) -> Option<Found> {
        let candidates = text.as_bytes()[from..].iter().enumerate();
        candidates.filter(|(_, byte)| self.may_begin[usize::from(**byte)]).find_map(|(at, _)| {
            let start = from + at;
            self.lengths.iter().find_map(|&n| {
                let found = self.ids.get(text.get(start..start + n)?)?;
                Some(Found { start, end: start + n, id: *found })
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_and_longest_token_is_found() {
        let tokens = [("ab", 1), ("abc", 2), ("bcd", 3), ("é", 4)];
        let tokens = tokens.map(|(text, id)| (text.to_string(), id));
        let added = AddedTokens::new(tokens.into()).unwrap();
        let find = |text, from| added.find(text, from).map(|found| (found.start, found.id));
        assert_eq!(find("xabcd", 0), Some((1, 2)));
        assert_eq!(find("xabcd", 2), Some((2, 3)));
        assert_eq!(find("aé", 0), Some((1, 4)));
        assert_eq!(find("aèac", 0), None);
        assert!(AddedTokens::new(HashMap::new()).is_none());
    }
}
