//! Learning merges from counted words.
//!
//! The distinct words lie end to end in one array of token ids, one place per byte, with a border between words. A
//! token that spans several places has its id in the first and in the last one, so that both neighbours of a token
//! are found without links; the places between are dead.
//!
//! A token comes into being in one step, that of its merge, and so do all places where it forms a pair with an older
//! token. Hence the count of a pair only falls after the step that made it, its list of places is complete and
//! ascending from the start, and a heap whose entries are checked when they come up finds the maximum exactly. Places
//! in a list go stale when a neighbour is merged away; they are recognised by the ids there.

use super::count::CountedWords;
use crate::encode::Merge;
use crate::error::Error;
use crate::pairs::{PairTable, pair_key};
use crate::vocabulary::CONTROL_TOKENS;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;

/// A pair seen once says nothing about the language.
const MIN_PAIR_COUNT: u64 = 2;
/// Longer tokens are ornaments, such as rows of dashes.
const MAX_TOKEN_BYTES: u32 = 64;
/// Border between words, and dead place: no token has this id.
const NO_TOKEN: u32 = u32::MAX;
const FIRST_BYTE_ID: u32 = CONTROL_TOKENS.len() as u32;

/// At most `n_merges` merges, in order of rank; fewer if no pair is left that may be merged.
pub(super) fn learn(words: &CountedWords, n_merges: usize) -> Result<Vec<Merge>, Error> {
    let limit = u32::MAX as usize;
    let n_places = words.bytes.len() + words.words.len() + 1;
    if n_places > limit {
        return Err(Error::TextTooLarge { n_bytes: words.bytes.len(), limit });
    }
    // Each merge takes at least one token away.
    let n_merges = n_merges.min(words.bytes.len());
    let mut learner = Learner::new(words, n_places);
    let vocab_size = learner.lengths.len() + n_merges;
    let mut sides =
        Sides { before: Neighbours::new(vocab_size), after: Neighbours::new(vocab_size) };
    let mut merges = Vec::new();
    while merges.len() < n_merges {
        let Some(pair_idx) = learner.pop_best() else { break };
        merges.push(learner.merge(pair_idx, &mut sides));
    }
    Ok(merges)
}

struct Learner {
    /// Token ids by place; the first and the last place are borders.
    ids: Vec<u32>,
    /// Index of the word at each place.
    word_at: Vec<u32>,
    /// Count of each word.
    counts: Vec<u64>,
    /// Length in bytes of each token.
    lengths: Vec<u32>,
    pairs: Vec<Pair>,
    /// From the key of a pair to its index in `pairs`.
    idx_of: PairTable<u32>,
    /// Places of all pairs: the first place of the left token.
    places: Vec<u32>,
    heap: BinaryHeap<Candidate>,
}

struct Pair {
    left: u32,
    right: u32,
    count: u64,
    places: Range<usize>,
}

/// Ordered by count; of equals the pair with the lower ids is the greater one.
type Candidate = (u64, Reverse<u64>, u32);

impl Learner {
    fn new(words: &CountedWords, n_places: usize) -> Learner {
        let mut ids = Vec::with_capacity(n_places);
        let mut word_at = Vec::with_capacity(n_places);
        let mut start = 0;
        ids.push(NO_TOKEN);
        word_at.push(0);
        for (word_idx, &(end, _)) in words.words.iter().enumerate() {
            ids.extend(words.bytes[start..end].iter().map(|&b| FIRST_BYTE_ID + u32::from(b)));
            ids.push(NO_TOKEN);
            word_at.resize(ids.len(), word_idx as u32);
            start = end;
        }
        let mut learner = Learner {
            ids,
            word_at,
            counts: words.words.iter().map(|&(_, count)| count).collect(),
            lengths: vec![1; FIRST_BYTE_ID as usize + 256],
            pairs: Vec::new(),
            idx_of: PairTable::with_capacity(1 << 16),
            places: Vec::new(),
            heap: BinaryHeap::new(),
        };
        learner.add_byte_pairs();
        learner
    }

    /// The pairs of the start: each byte with each byte that follows it somewhere.
    fn add_byte_pairs(&mut self) {
        let mut following: Vec<Neighbours> =
            (0..256).map(|_| Neighbours::new(self.lengths.len())).collect();
        for place in 1..self.ids.len() {
            let (left, right) = (self.ids[place - 1], self.ids[place]);
            if left != NO_TOKEN && right != NO_TOKEN {
                let count = self.counts[self.word_at[place] as usize];
                following[(left - FIRST_BYTE_ID) as usize].meet(right, place - 1, count);
            }
        }
        for (left, mut following) in (FIRST_BYTE_ID..).zip(following) {
            self.add_pairs(&mut following, |right| (left, right));
        }
    }

    /// The pair to merge next; entries of the heap whose count has fallen go back with the count of today.
    fn pop_best(&mut self) -> Option<usize> {
        while let Some((claimed, key, pair_idx)) = self.heap.pop() {
            let count = self.pairs[pair_idx as usize].count;
            if count == claimed {
                return Some(pair_idx as usize);
            }
            if count >= MIN_PAIR_COUNT {
                self.heap.push((count, key, pair_idx));
            }
        }
        None
    }

    /// Replaces the pair everywhere by a new token, from left to right in each word.
    fn merge(&mut self, pair_idx: usize, sides: &mut Sides) -> Merge {
        let Pair { left, right, ref places, .. } = self.pairs[pair_idx];
        let new = self.lengths.len() as u32;
        let (n_left, n_right) = (self.lengths[left as usize], self.lengths[right as usize]);
        self.lengths.push(n_left + n_right);
        for i in places.clone() {
            let at = self.places[i] as usize;
            let middle = at + n_left as usize;
            if self.ids[at] != left || self.ids[middle] != right {
                continue;
            }
            let end = middle + n_right as usize;
            let count = self.counts[self.word_at[at] as usize];
            let (previous, following) = (self.ids[at - 1], self.ids[end]);
            (self.ids[middle - 1], self.ids[middle]) = (NO_TOKEN, NO_TOKEN);
            (self.ids[at], self.ids[end - 1]) = (new, new);
            if previous != NO_TOKEN {
                sides.before.meet(previous, at - self.lengths[previous as usize] as usize, count);
            }
            if following != NO_TOKEN {
                sides.after.meet(following, at, count);
            }
        }
        // First what follows: where two new tokens meet, the pair (new, left) was counted there and is taken back below.
        self.lower(&sides.after, |following| (right, following));
        self.add_pairs(&mut sides.after, |following| (new, following));
        self.lower(&sides.before, |previous| (previous, left));
        self.add_pairs(&mut sides.before, |previous| (previous, new));
        self.pairs[pair_idx].count = 0;
        Merge { left, right, result: new }
    }

    /// Takes the meetings away from the pairs that the neighbours made before.
    fn lower(&mut self, neighbours: &Neighbours, pair_with: impl Fn(u32) -> (u32, u32)) {
        for neighbour in &neighbours.found {
            let (left, right) = pair_with(neighbour.id);
            if let Some(pair_idx) = self.idx_of.get(pair_key(left, right)) {
                self.pairs[pair_idx as usize].count -= neighbour.count;
            }
        }
    }

    /// Makes the pairs that the neighbours form now, and forgets the neighbours. A pair that may not be merged is not
    /// kept: its count cannot rise.
    fn add_pairs(&mut self, neighbours: &mut Neighbours, pair_with: impl Fn(u32) -> (u32, u32)) {
        for neighbour in &mut neighbours.found {
            let (left, right) = pair_with(neighbour.id);
            let n_bytes = self.lengths[left as usize] + self.lengths[right as usize];
            if neighbour.count < MIN_PAIR_COUNT || n_bytes > MAX_TOKEN_BYTES {
                continue;
            }
            let (key, pair_idx) = (pair_key(left, right), self.pairs.len() as u32);
            let places = self.places.len()..self.places.len() + neighbour.n_places;
            neighbour.next_place = Some(places.start);
            self.places.resize(places.end, 0);
            self.idx_of.insert(key, pair_idx);
            self.heap.push((neighbour.count, Reverse(key), pair_idx));
            self.pairs.push(Pair { left, right, count: neighbour.count, places });
        }
        for &(entry, place) in &neighbours.meetings {
            if let Some(next) = &mut neighbours.found[entry as usize].next_place {
                self.places[*next] = place;
                *next += 1;
            }
        }
        neighbours.clear();
    }
}

/// The neighbours met in one step, on both sides of the merged pair.
struct Sides {
    before: Neighbours,
    after: Neighbours,
}

/// The tokens found on one side of a token, how often, and where their pair starts.
struct Neighbours {
    /// Index in `found` by token id, or `NO_TOKEN`.
    entry_of: Vec<u32>,
    found: Vec<Neighbour>,
    /// Entry and place of each meeting, in the order of the places.
    meetings: Vec<(u32, u32)>,
}

struct Neighbour {
    id: u32,
    n_places: usize,
    count: u64,
    /// Where its next place goes, if its pair is kept.
    next_place: Option<usize>,
}

impl Neighbours {
    fn new(vocab_size: usize) -> Neighbours {
        Neighbours { entry_of: vec![NO_TOKEN; vocab_size], found: Vec::new(), meetings: Vec::new() }
    }

    #[inline]
    fn meet(&mut self, id: u32, place: usize, count: u64) {
        let entry = &mut self.entry_of[id as usize];
        if *entry == NO_TOKEN {
            *entry = self.found.len() as u32;
            self.found.push(Neighbour { id, n_places: 0, count: 0, next_place: None });
        }
        let neighbour = &mut self.found[*entry as usize];
        neighbour.n_places += 1;
        neighbour.count += count;
        self.meetings.push((*entry, place as u32));
    }

    fn clear(&mut self) {
        for neighbour in self.found.drain(..) {
            self.entry_of[neighbour.id as usize] = NO_TOKEN;
        }
        self.meetings.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// The definition: counts everything anew at each step.
    fn naive(words: &[(Vec<u8>, u64)], n_merges: usize) -> Vec<Merge> {
        let mut words: Vec<(Vec<u32>, u64)> = words
            .iter()
            .map(|(w, n)| (w.iter().map(|&b| FIRST_BYTE_ID + u32::from(b)).collect(), *n))
            .collect();
        let mut lengths = vec![1; FIRST_BYTE_ID as usize + 256];
        let mut merges = Vec::new();
        while merges.len() < n_merges {
            let mut counts: BTreeMap<(u32, u32), u64> = BTreeMap::new();
            for (ids, n) in &words {
                for pair in ids.windows(2) {
                    *counts.entry((pair[0], pair[1])).or_default() += n;
                }
            }
            let may_merge = |&(&(left, right), &count): &(&(u32, u32), &u64)| {
                let n_bytes: u32 = lengths[left as usize] + lengths[right as usize];
                count >= MIN_PAIR_COUNT && n_bytes <= MAX_TOKEN_BYTES
            };
            let best = counts.iter().filter(may_merge).max_by_key(|&(&key, &n)| (n, Reverse(key)));
            let Some((&(left, right), _)) = best else { break };
            let result = lengths.len() as u32;
            lengths.push(lengths[left as usize] + lengths[right as usize]);
            for (ids, _) in &mut words {
                let mut i = 0;
                while i + 1 < ids.len() {
                    if (ids[i], ids[i + 1]) == (left, right) {
                        ids.splice(i..i + 2, [result]);
                    }
                    i += 1;
                }
            }
            merges.push(Merge { left, right, result });
        }
        merges
    }

    fn learn_words(words: &[(Vec<u8>, u64)], n_merges: usize) -> Vec<Merge> {
        let mut counted = CountedWords { bytes: Vec::new(), words: Vec::new() };
        for (word, count) in words {
            counted.push(word, *count);
        }
        learn(&counted, n_merges).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]
        #[test]
        fn learner_equals_the_definition(
            words in proptest::collection::vec(("[ab]{1,30}|[a-e]{1,9}|a{1,150}", 1u64..5), 0..12),
            n_merges in 0usize..60,
        ) {
            let words: Vec<_> = words.into_iter().map(|(w, n)| (w.into_bytes(), n)).collect();
            prop_assert_eq!(learn_words(&words, n_merges), naive(&words, n_merges));
        }
    }

    #[test]
    fn tokens_stay_within_the_longest_length() {
        let merges = learn_words(&[(vec![b'-'; 100_000], 3)], 1000);
        let mut lengths = vec![1u32; FIRST_BYTE_ID as usize + 256];
        for merge in &merges {
            lengths.push(lengths[merge.left as usize] + lengths[merge.right as usize]);
        }
        assert_eq!(lengths.iter().max(), Some(&MAX_TOKEN_BYTES));
    }
}
