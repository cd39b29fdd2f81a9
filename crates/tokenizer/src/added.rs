//! Tokens that are looked for in text before it is cut into words.

use std::collections::HashMap;
use std::ops::Range;

/// Strings that are a token wherever they stand: of those that begin first, the longest.
///
/// They are kept in order. Whatever stands between a token and a text that begins with it begins with it too, so the
/// longest that a text begins with is the last that does not come after the text, or one that this begins with.
#[derive(Clone, Debug)]
pub(crate) struct AddedTokens {
    /// In the order of their bytes.
    tokens: Vec<Added>,
    /// Where the tokens that begin with a byte stand in the list: from its entry to the next one.
    firsts: [usize; 257],
    may_begin: [bool; 256],
}

#[derive(Clone, Debug)]
struct Added {
    text: Box<str>,
    id: u32,
    /// Where the longest other token stands that this one begins with.
    prefix: Option<usize>,
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
    pub(crate) fn new(ids: HashMap<impl Into<Box<str>>, u32>) -> Option<AddedTokens> {
        let mut tokens: Vec<Added> = ids
            .into_iter()
            .map(|(text, id)| Added { text: text.into(), id, prefix: None })
            .collect();
        tokens.sort_unstable_by(|a, b| a.text.cmp(&b.text));
        let mut firsts = [0; 257];
        let mut may_begin = [false; 256];
        // Those that the token at hand may begin with, each of which begins with the one before.
        let mut prefixes: Vec<usize> = Vec::new();
        for idx in 0..tokens.len() {
            let text = &tokens[idx].text;
            let first = usize::from(text.as_bytes()[0]);
            firsts[first + 1] = idx + 1;
            may_begin[first] = true;
            while prefixes.pop_if(|prefix| !text.starts_with(&*tokens[*prefix].text)).is_some() {}
            tokens[idx].prefix = prefixes.last().copied();
            prefixes.push(idx);
        }
        for byte in 1..firsts.len() {
            firsts[byte] = firsts[byte].max(firsts[byte - 1]);
        }
        (!tokens.is_empty()).then_some(AddedTokens { tokens, firsts, may_begin })
    }

    /// The ids of all tokens.
    pub(crate) fn ids(&self) -> impl Iterator<Item = u32> {
        self.tokens.iter().map(|token| token.id)
    }

    /// The first token in `text[from..]`.
    pub(crate) fn find(&self, text: &str, from: usize) -> Option<Found> {
        self.find_beginning_in(text, from..text.len())
    }

    /// The first token that begins in a part of a text, which may cut characters; it may end after that.
    ///
    /// Time, for each byte of the part: that of comparing with so many tokens as the logarithm of their number, and of
    /// stepping through those that begin with one another, which are no more than the longest has bytes.
    pub(crate) fn find_beginning_in(&self, text: &str, part: Range<usize>) -> Option<Found> {
        let candidates = text.as_bytes()[part.clone()].iter().enumerate();
        candidates.filter(|(_, byte)| self.may_begin[usize::from(**byte)]).find_map(|(at, _)| {
            let start = part.start + at;
            let token = self.longest_before(&text.as_bytes()[start..])?;
            Some(Found { start, end: start + token.text.len(), id: token.id })
        })
    }

    /// The longest token that a text begins with. Tokens are whole characters, so bytes that are equal to them are too.
    fn longest_before(&self, text: &[u8]) -> Option<&Added> {
        let first = usize::from(*text.first()?);
        let range = self.firsts[first]..self.firsts[first + 1];
        let not_after = |token: &Added| token.text.as_bytes() <= text;
        let last = self.tokens[range.clone()].partition_point(not_after).checked_sub(1)?;
        let mut token = &self.tokens[range.start + last];
        let pairs = token.text.bytes().zip(text);
        let n_equal = pairs.take_while(|(a, b)| a == *b).count();
        while token.text.len() > n_equal {
            token = &self.tokens[token.prefix?];
        }
        Some(token)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_and_longest_token_is_found() {
        let tokens = [("ab", 1), ("abc", 2), ("bcd", 3), ("é", 4)];
        let added = AddedTokens::new(HashMap::from(tokens)).unwrap();
        let find = |text, from| added.find(text, from).map(|found| (found.start, found.id));
        assert_eq!(find("xabcd", 0), Some((1, 2)));
        assert_eq!(find("xabcd", 2), Some((2, 3)));
        assert_eq!(find("aé", 0), Some((1, 4)));
        assert_eq!(find("aèac", 0), None);
        assert!(AddedTokens::new(HashMap::<&str, u32>::new()).is_none());
    }

    /// By the definition.
    fn naive(tokens: &HashMap<String, u32>, text: &str, part: Range<usize>) -> Option<Found> {
        part.filter(|&start| text.is_char_boundary(start)).find_map(|start| {
            let here = tokens.iter().filter(|(token, _)| text[start..].starts_with(token.as_str()));
            let (token, &id) = here.max_by_key(|(token, _)| token.len())?;
            Some(Found { start, end: start + token.len(), id })
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]
        #[test]
        fn tokens_are_found_as_the_definition_says(
            tokens in proptest::collection::hash_map("[abéè\u{10FFFF}]{1,6}", any::<u32>(), 1..40),
            text in "[abcéè\u{10FFFF}]{0,60}",
            from in 0usize..30,
            n in 0usize..30,
        ) {
            let added = AddedTokens::new(tokens.clone()).unwrap();
            let from = text.floor_char_boundary(from);
            prop_assert_eq!(added.find(&text, from), naive(&tokens, &text, from..text.len()));
            let part = from..(from + n).min(text.len());
            let found = added.find_beginning_in(&text, part.clone());
            prop_assert_eq!(found, naive(&tokens, &text, part));
        }
    }

    /// Each length tried at each place, or each token gone through, would take minutes.
    #[test]
    fn many_lengths_and_long_prefixes_do_not_slow_the_search_down() {
        let of_each_length = (0..255).map(|n| format!("{}b", "a".repeat(n)));
        let with_one_prefix = (0..20_000).map(|i| format!("{}{i}", "a".repeat(250)));
        let nested = (0..240).map(|n| format!("aaaab{}", "b".repeat(n)));
        let text = ["a".repeat(500), "aaaac".repeat(100)].concat().repeat(1600);
        let start = std::time::Instant::now();
        for tokens in [of_each_length.collect(), with_one_prefix.collect(), nested.collect()] {
            let tokens: Vec<String> = tokens;
            let added = AddedTokens::new(tokens.into_iter().zip(0..).collect()).unwrap();
            let mut from = 0;
            while let Some(found) = added.find(&text, from) {
                from = found.end;
            }
        }
        assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
    }
}
