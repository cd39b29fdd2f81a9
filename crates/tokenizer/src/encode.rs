//! Byte-pair encoding of one word.
//!
//! Definition: start from one token per byte; while two neighbours have a merge, merge the pair of lowest rank, the
//! leftmost one among equals. Both versions below do exactly this: short words by scanning, O(n^2) with n bounded;
//! long ones with a heap, O(n log n), so that a megabyte of one letter is no attack.

use crate::pairs::{PairTable, pair_key};
use crate::short_word;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Mutex, PoisonError};

/// Two tokens and the token that replaces them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Merge {
    pub(crate) left: u32,
    pub(crate) right: u32,
    pub(crate) result: u32,
}

/// Words up to this length are merged by scanning.
const MAX_SCANNED: usize = 64;

/// Rank above result in one integer: the smaller one is merged first.
type Action = u64;
const NO_ACTION: Action = u64::MAX;

/// What is needed to encode a word, and nothing else: 16 bytes per slot of the merge table.
#[derive(Clone, Debug)]
pub(crate) struct WordEncoder {
    byte_ids: [u32; 256],
    actions: PairTable<Action>,
}

impl WordEncoder {
    /// Merges in the order of their ranks. Error: the index of a merge whose pair is there already.
    pub(crate) fn new(byte_ids: [u32; 256], merges: &[Merge]) -> Result<WordEncoder, usize> {
        let mut actions = PairTable::with_capacity(merges.len());
        for (rank, merge) in merges.iter().enumerate() {
            let action = (rank as u64) << 32 | u64::from(merge.result);
            if actions.insert(pair_key(merge.left, merge.right), action).is_some() {
                return Err(rank);
            }
        }
        Ok(WordEncoder { byte_ids, actions })
    }

    /// Appends the tokens of one word.
    pub(crate) fn encode(&self, word: &[u8], out: &mut Vec<u32>) {
        if word.len() <= MAX_SCANNED {
            self.encode_by_scanning(word, out);
        } else {
            self.encode_by_heap(word, out);
        }
    }

    #[inline]
    fn action(&self, left: u32, right: u32) -> Action {
        self.actions.get(pair_key(left, right)).unwrap_or(NO_ACTION)
    }

    fn encode_by_scanning(&self, word: &[u8], out: &mut Vec<u32>) {
        let mut ids = [0; MAX_SCANNED];
        // actions[i] is what may be done with the tokens i and i + 1.
        let mut actions = [NO_ACTION; MAX_SCANNED];
        let mut n = word.len();
        for i in 0..n {
            ids[i] = self.byte_ids[usize::from(word[i])];
        }
        for i in 1..n {
            actions[i - 1] = self.action(ids[i - 1], ids[i]);
        }
        while n > 1 {
            let (mut best, mut at) = (NO_ACTION, 0);
            for (i, &action) in actions[..n - 1].iter().enumerate() {
                if action < best {
                    (best, at) = (action, i);
                }
            }
            if best == NO_ACTION {
                break;
            }
            ids[at] = best as u32;
            ids.copy_within(at + 2..n, at + 1);
            actions.copy_within(at + 1..n - 1, at);
            n -= 1;
            if at > 0 {
                actions[at - 1] = self.action(ids[at - 1], ids[at]);
            }
            if at + 1 < n {
                actions[at] = self.action(ids[at], ids[at + 1]);
            }
        }
        out.extend_from_slice(&ids[..n]);
    }

    /// Takes about 50 bytes of memory per byte of the word while it runs.
    fn encode_by_heap(&self, word: &[u8], out: &mut Vec<u32>) {
        let n = word.len();
        let mut ids: Vec<u32> = word.iter().map(|&byte| self.byte_ids[usize::from(byte)]).collect();
        // A token is named by the position of its first byte; `n` stands for "no token".
        let mut next: Vec<usize> = (1..=n).collect();
        let mut previous: Vec<usize> = (0..n).map(|at| at.checked_sub(1).unwrap_or(n)).collect();
        let mut is_alive = vec![true; n];
        let mut heap: BinaryHeap<Reverse<(Action, usize)>> = (1..n)
            .map(|at| Reverse((self.action(ids[at - 1], ids[at]), at - 1)))
            .filter(|Reverse((action, _))| *action != NO_ACTION)
            .collect();
        while let Some(Reverse((action, at))) = heap.pop() {
            let right = next[at];
            // A rank belongs to one pair: an entry is current if the pair still has this action.
            if !is_alive[at] || right == n || self.action(ids[at], ids[right]) != action {
                continue;
            }
            ids[at] = action as u32;
            is_alive[right] = false;
            next[at] = next[right];
            let mut offer = |left: usize, right: usize| {
                let action = self.action(ids[left], ids[right]);
                if action != NO_ACTION {
                    heap.push(Reverse((action, left)));
                }
            };
            if next[at] != n {
                previous[next[at]] = at;
                offer(at, next[at]);
            }
            if previous[at] != n {
                offer(previous[at], at);
            }
        }
        out.extend((0..n).filter(|&at| is_alive[at]).map(|at| ids[at]));
    }
}

/// Tokens of the words met lately, direct-mapped: a word replaces the one in its place. 32 bytes per word.
pub(crate) struct WordCache {
    slots: Vec<CachedWord>,
}

#[derive(Clone, Copy)]
struct CachedWord {
    key: u128,
    /// Unused places hold `NO_TOKEN`.
    ids: [u32; MAX_CACHED_TOKENS],
}

const MAX_CACHED_TOKENS: usize = 4;
const NO_TOKEN: u32 = u32::MAX;
const CACHE_BITS: u32 = 15;

impl WordCache {
    fn new() -> WordCache {
        // No word has the key zero.
        let free = CachedWord { key: 0, ids: [NO_TOKEN; MAX_CACHED_TOKENS] };
        WordCache { slots: vec![free; 1 << CACHE_BITS] }
    }

    /// Appends the tokens of the word `text[start..end]`.
    #[inline]
    pub(crate) fn encode(
        &mut self,
        words: &WordEncoder,
        text: &[u8],
        (start, end): (usize, usize),
        out: &mut Vec<u32>,
    ) {
        let Some(key) = short_word::key(text, start, end) else {
            return words.encode(&text[start..end], out);
        };
        let slot = &mut self.slots[(short_word::hash(key) >> (64 - CACHE_BITS)) as usize];
        if slot.key == key {
            let n = slot.ids.iter().filter(|&&id| id != NO_TOKEN).count();
            let first = out.len();
            out.extend_from_slice(&slot.ids);
            out.truncate(first + n);
            return;
        }
        let first = out.len();
        words.encode(&text[start..end], out);
        let ids = &out[first..];
        if ids.len() <= MAX_CACHED_TOKENS {
            slot.key = key;
            slot.ids = [NO_TOKEN; MAX_CACHED_TOKENS];
            slot.ids[..ids.len()].copy_from_slice(ids);
        }
    }
}

/// Caches that wait for the next call: one per call that ran at the same time, at most `MAX_WAITING`, 1 MiB each.
#[derive(Default)]
pub(crate) struct WordCaches {
    waiting: Mutex<Vec<WordCache>>,
}

const MAX_WAITING: usize = 16;

impl WordCaches {
    pub(crate) fn take(&self) -> WordCache {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop();
        waiting.unwrap_or_else(WordCache::new)
    }

    pub(crate) fn give_back(&self, cache: WordCache) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() < MAX_WAITING {
            waiting.push(cache);
        }
    }
}

impl std::fmt::Debug for WordCaches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WordCaches")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, word for word.
    fn naive(byte_ids: &[u32; 256], merges: &[Merge], word: &[u8]) -> Vec<u32> {
        let mut ids: Vec<u32> = word.iter().map(|&b| byte_ids[usize::from(b)]).collect();
        loop {
            let best = (1..ids.len())
                .filter_map(|i| {
                    let is_pair = |m: &Merge| (m.left, m.right) == (ids[i - 1], ids[i]);
                    merges.iter().position(is_pair).map(|rank| (rank, i - 1))
                })
                .min();
            let Some((rank, at)) = best else { return ids };
            ids.splice(at..at + 2, [merges[rank].result]);
        }
    }

    fn identity() -> [u32; 256] {
        std::array::from_fn(|byte| byte as u32)
    }

    /// Random merges over four letters, in any order: results may even be merged before they can exist.
    fn merges() -> impl Strategy<Value = Vec<Merge>> {
        proptest::collection::vec((0u32..24, 0u32..24), 0..20).prop_map(|pairs| {
            let token = |i: u32| if i < 4 { u32::from(b'a') + i } else { 252 + i };
            let mut merges: Vec<Merge> = Vec::new();
            for (left, right) in pairs {
                let (left, right) = (token(left), token(right));
                if !merges.iter().any(|m| (m.left, m.right) == (left, right)) {
                    merges.push(Merge { left, right, result: 256 + merges.len() as u32 });
                }
            }
            merges
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn both_encoders_equal_the_definition(merges in merges(), word in "[a-d]{1,64}") {
            let encoder = WordEncoder::new(identity(), &merges).unwrap();
            let expected = naive(&identity(), &merges, word.as_bytes());
            let mut scanned = vec![7];
            encoder.encode_by_scanning(word.as_bytes(), &mut scanned);
            prop_assert_eq!(&scanned[1..], &expected);
            let mut by_heap = vec![7];
            encoder.encode_by_heap(word.as_bytes(), &mut by_heap);
            prop_assert_eq!(&by_heap[1..], &expected);
        }

        #[test]
        fn cache_changes_nothing(merges in merges(), words in proptest::collection::vec("[a-d]{1,20}", 1..30)) {
            let encoder = WordEncoder::new(identity(), &merges).unwrap();
            let mut cache = WordCache::new();
            for word in words.iter().chain(&words) {
                let (mut plain, mut cached) = (vec![], vec![]);
                encoder.encode(word.as_bytes(), &mut plain);
                cache.encode(&encoder, word.as_bytes(), (0, word.len()), &mut cached);
                prop_assert_eq!(plain, cached);
            }
        }
    }

    #[test]
    fn repeated_pair_is_refused_by_its_index() {
        let merge = Merge { left: 97, right: 98, result: 256 };
        assert_eq!(WordEncoder::new(identity(), &[merge, merge]).unwrap_err(), 1);
    }
}
