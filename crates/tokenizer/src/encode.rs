//! Byte-pair encoding of one word.
//!
//! Definition: start from one symbol per byte or character; while two neighbours have a merge, merge the pair of lowest
//! rank, the leftmost one among equals. Both versions below do exactly this: short words by scanning, O(n^2) with n
//! bounded; long ones with a heap, O(n log n), so that a megabyte of one letter is no attack.

use crate::pairs::{PairTable, pair_key};
use crate::short_word;
use crate::symbols::Symbols;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::{Mutex, PoisonError};

/// Two symbols and the token that replaces them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Merge {
    pub(crate) left: u32,
    pub(crate) right: u32,
    pub(crate) result: u32,
}

/// Words up to this length are merged by scanning.
const MAX_SCANNED: usize = 64;

/// Rank above result in one integer. Several merges may have one rank: the leftmost goes first.
type Action = u64;
const NO_ACTION: Action = u64::MAX;
/// The rank of `NO_ACTION`.
const NO_RANK: u32 = u32::MAX;

/// Rank and result.
#[inline]
fn parts(action: Action) -> (u32, u32) {
    ((action >> 32) as u32, action as u32)
}

/// What is needed to encode a word, and nothing else: 16 bytes per slot of the merge table.
#[derive(Clone, Debug)]
pub(crate) struct WordEncoder {
    symbols: Symbols,
    actions: PairTable<Action>,
    /// Words that are a token by definition though no merges lead there.
    whole_words: HashMap<Box<[u8]>, u32>,
}

impl WordEncoder {
    /// Merges with their ranks. Error: the index of a merge whose pair is there already.
    pub(crate) fn new(
        symbols: Symbols,
        merges: impl ExactSizeIterator<Item = (u32, Merge)>,
    ) -> Result<WordEncoder, usize> {
        let mut actions = PairTable::with_capacity(merges.len());
        for (idx, (rank, merge)) in merges.enumerate() {
            let action = u64::from(rank) << 32 | u64::from(merge.result);
            if actions.insert(pair_key(merge.left, merge.right), action).is_some() {
                return Err(idx);
            }
        }
        Ok(WordEncoder { symbols, actions, whole_words: HashMap::new() })
    }

    /// From now on a word that is one of these tokens is that token, whatever the merges say.
    pub(crate) fn set_whole_words<'a>(&mut self, tokens: impl Iterator<Item = (u32, &'a [u8])>) {
        let mut found = Vec::new();
        for (id, bytes) in tokens {
            found.clear();
            self.encode(bytes, &mut found);
            if found != [id] {
                self.whole_words.insert(bytes.into(), id);
            }
        }
    }

    /// Appends the tokens of one word.
    pub(crate) fn encode(&self, word: &[u8], out: &mut Vec<u32>) {
        if !self.whole_words.is_empty()
            && let Some(&id) = self.whole_words.get(word)
        {
            return out.push(id);
        }
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
        // ranks[i] and results[i] are what may be done with the symbols i and i + 1.
        let (mut ranks, mut results) = ([NO_RANK; MAX_SCANNED], [0; MAX_SCANNED]);
        let mut n = self.symbols.of_word(word, &mut ids);
        for i in 1..n {
            (ranks[i - 1], results[i - 1]) = parts(self.action(ids[i - 1], ids[i]));
        }
        while n > 1 {
            let (mut best, mut at) = (NO_RANK, 0);
            for (i, &rank) in ranks[..n - 1].iter().enumerate() {
                if rank < best {
                    (best, at) = (rank, i);
                }
            }
            if best == NO_RANK {
                break;
            }
            ids[at] = results[at];
            ids.copy_within(at + 2..n, at + 1);
            ranks.copy_within(at + 1..n - 1, at);
            results.copy_within(at + 1..n - 1, at);
            n -= 1;
            if at > 0 {
                (ranks[at - 1], results[at - 1]) = parts(self.action(ids[at - 1], ids[at]));
            }
            if at + 1 < n {
                (ranks[at], results[at]) = parts(self.action(ids[at], ids[at + 1]));
            }
        }
        self.symbols.emit(&ids[..n], out);
    }

    /// Takes about 60 bytes of memory per byte of the word while it runs.
    fn encode_by_heap(&self, word: &[u8], out: &mut Vec<u32>) {
        let mut ids = vec![0; word.len()];
        let n = self.symbols.of_word(word, &mut ids);
        // A symbol is named by the position of its first part; `n` stands for "no symbol".
        let mut next: Vec<usize> = (1..=n).collect();
        let mut previous: Vec<usize> = (0..n).map(|at| at.checked_sub(1).unwrap_or(n)).collect();
        let mut is_alive = vec![true; n];
        let entry = |action: Action, at: usize| Reverse((action >> 32, at, action));
        let mut heap: BinaryHeap<Reverse<(u64, usize, Action)>> = (1..n)
            .map(|at| entry(self.action(ids[at - 1], ids[at]), at - 1))
            .filter(|Reverse((_, _, action))| *action != NO_ACTION)
            .collect();
        while let Some(Reverse((_, at, action))) = heap.pop() {
            let right = next[at];
            // An entry is current if the pair at its place still has this action.
            if !is_alive[at] || right == n || self.action(ids[at], ids[right]) != action {
                continue;
            }
            ids[at] = action as u32;
            is_alive[right] = false;
            next[at] = next[right];
            let mut offer = |left: usize, right: usize| {
                let action = self.action(ids[left], ids[right]);
                if action != NO_ACTION {
                    heap.push(entry(action, left));
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
        let left: Vec<u32> = (0..n).filter(|&at| is_alive[at]).map(|at| ids[at]).collect();
        self.symbols.emit(&left, out);
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
    // A call per word would cost a tenth of the time, and there is a caller for each way of splitting.
    #[inline(always)]
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
    fn naive(merges: &[(u32, Merge)], word: &[u8]) -> Vec<u32> {
        let mut ids: Vec<u32> = word.iter().map(|&byte| u32::from(byte)).collect();
        loop {
            let best = (1..ids.len())
                .filter_map(|i| {
                    let is_pair = |m: &&(u32, Merge)| (m.1.left, m.1.right) == (ids[i - 1], ids[i]);
                    merges.iter().find(is_pair).map(|&(rank, m)| (rank, i - 1, m.result))
                })
                .min();
            let Some((_, at, result)) = best else { return ids };
            ids.splice(at..at + 2, [result]);
        }
    }

    fn encoder(merges: &[(u32, Merge)]) -> Result<WordEncoder, usize> {
        let symbols = Symbols::bytes(std::array::from_fn(|byte| byte as u32));
        WordEncoder::new(symbols, merges.iter().copied())
    }

    /// Random merges over four letters, in any order: results may even be merged before they can exist. Ranks may be
    /// shared by neighbours in the list.
    fn merges() -> impl Strategy<Value = Vec<(u32, Merge)>> {
        let pairs = proptest::collection::vec((0u32..10, 0u32..10), 0..20);
        (pairs, 1u32..4).prop_map(|(pairs, n_sharing)| {
            let token = |i: u32| if i < 4 { u32::from(b'a') + i } else { 252 + i };
            let mut merges: Vec<(u32, Merge)> = Vec::new();
            for (left, right) in pairs {
                let (left, right) = (token(left), token(right));
                if !merges.iter().any(|(_, m)| (m.left, m.right) == (left, right)) {
                    let idx = merges.len() as u32;
                    merges.push((idx / n_sharing, Merge { left, right, result: 256 + idx }));
                }
            }
            merges
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn both_encoders_equal_the_definition(merges in merges(), word in "[a-d]{1,64}") {
            let encoder = encoder(&merges).unwrap();
            let expected = naive(&merges, word.as_bytes());
            let mut scanned = vec![7];
            encoder.encode_by_scanning(word.as_bytes(), &mut scanned);
            prop_assert_eq!(&scanned[1..], &expected);
            let mut by_heap = vec![7];
            encoder.encode_by_heap(word.as_bytes(), &mut by_heap);
            prop_assert_eq!(&by_heap[1..], &expected);
        }

        #[test]
        fn cache_changes_nothing(merges in merges(), words in proptest::collection::vec("[a-d]{1,20}", 1..30)) {
            let encoder = encoder(&merges).unwrap();
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
        assert_eq!(encoder(&[(0, merge), (1, merge)]).unwrap_err(), 1);
    }

    #[test]
    fn whole_words_are_tokens_without_merges() {
        let merge = Merge { left: 97, right: 98, result: 256 };
        let mut encoder = encoder(&[(0, merge)]).unwrap();
        encoder.set_whole_words([(256, &b"ab"[..]), (257, b"abc")].into_iter());
        assert_eq!(encoder.whole_words.len(), 1);
        let tokens = |word: &str| {
            let mut out = Vec::new();
            encoder.encode(word.as_bytes(), &mut out);
            out
        };
        assert_eq!(tokens("abc"), [257]);
        assert_eq!(tokens("abcc"), [256, 99, 99]);
    }
}
