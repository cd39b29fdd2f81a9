//! Counting words.

use crate::short_word;
use crate::split::own_words;
use std::collections::HashMap;

/// Distinct words and how often each was seen.
#[derive(Debug)]
pub(super) struct WordCounts {
    /// Open addressing, linear probing, at most half full, by key of the word; the key 0 is a free place.
    short: Vec<(u128, u64)>,
    n_short: usize,
    long: HashMap<Box<[u8]>, u64>,
}

impl WordCounts {
    pub(super) fn new() -> WordCounts {
        WordCounts { short: vec![(0, 0); 1 << 12], n_short: 0, long: HashMap::new() }
    }

    /// Counts the words of a text.
    pub(super) fn add(&mut self, text: &str) {
        let bytes = text.as_bytes();
        for (start, end) in own_words(text) {
            match short_word::key(bytes, start, end) {
                Some(key) => self.add_short(key, 1),
                None => self.add_long(&bytes[start..end], 1),
            }
        }
    }

    #[inline]
    fn add_short(&mut self, key: u128, count: u64) {
        let mask = self.short.len() - 1;
        let shift = 64 - self.short.len().trailing_zeros();
        let mut at = (short_word::hash(key) >> shift) as usize;
        loop {
            let slot = &mut self.short[at];
            if slot.0 == key {
                slot.1 += count;
                return;
            }
            if slot.0 == 0 {
                *slot = (key, count);
                break;
            }
            at = (at + 1) & mask;
        }
        self.n_short += 1;
        if 2 * self.n_short > self.short.len() {
            self.grow();
        }
    }

    #[cold]
    fn grow(&mut self) {
        let larger = vec![(0, 0); 2 * self.short.len()];
        let former = std::mem::replace(&mut self.short, larger);
        self.n_short = 0;
        for (key, count) in former.into_iter().filter(|slot| slot.0 != 0) {
            self.add_short(key, count);
        }
    }

    fn add_long(&mut self, word: &[u8], count: u64) {
        match self.long.get_mut(word) {
            Some(total) => *total += count,
            None => {
                self.long.insert(word.into(), count);
            }
        }
    }

    fn absorb(&mut self, other: WordCounts) {
        for (key, count) in other.short.into_iter().filter(|slot| slot.0 != 0) {
            self.add_short(key, count);
        }
        for (word, count) in other.long {
            self.add_long(&word, count);
        }
    }
}

/// The words of a text collection, end to end, with their counts; the order of words carries no meaning.
pub(super) struct CountedWords {
    pub(super) bytes: Vec<u8>,
    /// End of each word in `bytes`, and its count.
    pub(super) words: Vec<(usize, u64)>,
}

/// Sums up what the threads counted; words of one byte, which have no pair, are left out.
pub(super) fn all(counts: Vec<WordCounts>) -> CountedWords {
    let mut total = WordCounts::new();
    for (i, part) in counts.into_iter().enumerate() {
        if i == 0 {
            total = part;
        } else {
            total.absorb(part);
        }
    }
    let mut all = CountedWords { bytes: Vec::new(), words: Vec::new() };
    for (key, count) in total.short.into_iter().filter(|slot| slot.0 != 0) {
        let (bytes, n) = short_word::bytes_of(key);
        all.push(&bytes[..n], count);
    }
    for (word, count) in total.long {
        all.push(&word, count);
    }
    all
}

impl CountedWords {
    pub(super) fn push(&mut self, word: &[u8], count: u64) {
        if word.len() > 1 {
            self.bytes.extend_from_slice(word);
            self.words.push((self.bytes.len(), count));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn sums_of_the_threads_are_the_counts_of_the_words(
            texts in proptest::collection::vec("([ab]{1,3} |a{20} ){0,300}", 1..4),
        ) {
            let mut expected: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
            let mut counts = Vec::new();
            for text in &texts {
                for (start, end) in own_words(text).filter(|(a, b)| b - a > 1) {
                    *expected.entry(text.as_bytes()[start..end].to_vec()).or_default() += 1;
                }
                let mut part = WordCounts::new();
                part.add(text);
                counts.push(part);
            }
            let all = all(counts);
            let mut start = 0;
            let mut found = BTreeMap::new();
            for (end, count) in all.words {
                prop_assert!(found.insert(all.bytes[start..end].to_vec(), count).is_none());
                start = end;
            }
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn table_grows_without_losing_words() {
        let mut counts = WordCounts::new();
        for key in 1..20_000u128 {
            counts.add_short(key | 4 << 120, 1);
            counts.add_short(key | 4 << 120, 1);
        }
        let all = all(vec![counts]);
        assert_eq!(all.words.len(), 19_999);
        assert!(all.words.iter().all(|&(_, count)| count == 2));
    }
}
