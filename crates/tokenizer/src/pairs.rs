//! A flat hash table from a pair of token ids to a value.

use std::hash::{BuildHasher, RandomState};

/// Open addressing, linear probing, at most half full; 16 bytes per slot.
#[derive(Clone, Debug)]
pub(crate) struct PairTable<V> {
    slots: Vec<(u64, V)>,
    n_used: usize,
    shift: u32,
    spread: Spread,
    n_respreads: u32,
}

/// The factors that choose a key's slot. What a table holds does not depend on them, only how fast it is found.
#[derive(Clone, Copy, Debug)]
struct Spread {
    fold: u64,
    scale: u64,
}

impl Spread {
    const USUAL: Self = Self { fold: 0xD6E8_FEB8_6659_FD93, scale: 0x9E37_79B9_7F4A_7C15 };

    /// Factors that nobody knows beforehand.
    fn unforeseen() -> Self {
        let state = RandomState::new();
        Self { fold: state.hash_one(0) | 1, scale: state.hash_one(1) | 1 }
    }
}

/// Slots that a new key may pass by. In a table that is half full, longer clusters are no accident: a file whose ids were
/// chosen for one slot would make loading quadratic, so the keys are spread anew.
const MAX_PROBES: usize = 256;

/// After so many times it is not the factors.
const MAX_RESPREADS: u32 = 16;

/// Two ids as one key; the left one decides the order.
#[inline]
pub(crate) fn pair_key(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// No pair of token ids: ids stay below `u32::MAX`.
const FREE: u64 = u64::MAX;

impl<V: Copy + Default> PairTable<V> {
    /// Takes `n` pairs without growing.
    pub(crate) fn with_capacity(n: usize) -> PairTable<V> {
        let n_slots = (2 * n).max(16).next_power_of_two();
        PairTable {
            slots: vec![(FREE, V::default()); n_slots],
            n_used: 0,
            shift: 64 - n_slots.trailing_zeros(),
            spread: Spread::USUAL,
            n_respreads: 0,
        }
    }

    /// Where the search for a key begins.
    #[inline]
    fn home_of(&self, key: u64) -> usize {
        // Ids are small numbers: the product spreads both halves into the high bits.
        let folded = key ^ (key >> 32).wrapping_mul(self.spread.fold);
        (folded.wrapping_mul(self.spread.scale) >> self.shift) as usize
    }

    /// The slot that holds the key, or the free one where it would be put.
    #[inline]
    fn slot_of(&self, key: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = self.home_of(key);
        while self.slots[at].0 != key && self.slots[at].0 != FREE {
            at = (at + 1) & mask;
        }
        at
    }

    #[inline]
    pub(crate) fn get(&self, key: u64) -> Option<V> {
        let (found, value) = self.slots[self.slot_of(key)];
        (found == key).then_some(value)
    }

    /// The former value, if any, which is replaced.
    pub(crate) fn insert(&mut self, key: u64, value: V) -> Option<V> {
        if 2 * (self.n_used + 1) > self.slots.len() {
            self.rebuild(self.slots.len(), self.spread);
        }
        let at = self.slot_of(key);
        let (found, former) = std::mem::replace(&mut self.slots[at], (key, value));
        if found == key {
            return Some(former);
        }
        self.n_used += 1;
        if self.n_probes(key, at) > MAX_PROBES && self.n_respreads < MAX_RESPREADS {
            self.n_respreads += 1;
            self.rebuild(self.slots.len() / 2, Spread::unforeseen());
        }
        None
    }

    /// Slots between the one where the search for a key begins and the one that holds it.
    fn n_probes(&self, key: u64, at: usize) -> usize {
        at.wrapping_sub(self.home_of(key)) & (self.slots.len() - 1)
    }

    /// Moves all pairs into a table for `n`, which are at least as many.
    fn rebuild(&mut self, n: usize, spread: Spread) {
        let n_respreads = self.n_respreads;
        let mut table = PairTable { spread, n_respreads, ..PairTable::with_capacity(n) };
        for &(key, value) in self.slots.iter().filter(|slot| slot.0 != FREE) {
            table.insert(key, value);
        }
        *self = table;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    /// Pairs of small ids whose search begins in one of four slots of a table of 4096.
    #[test]
    fn ids_that_were_chosen_to_collide_are_spread_and_found() {
        let usual = PairTable::<u32>::with_capacity(2048);
        assert_eq!(usual.slots.len(), 4096);
        let pairs = (0..64).flat_map(|left| (0..1 << 16).map(move |right| pair_key(left, right)));
        let chosen: Vec<u64> = pairs.filter(|&key| usual.home_of(key) < 4).take(2000).collect();
        assert_eq!(chosen.len(), 2000);
        let mut table = usual;
        for (value, &key) in (0..).zip(&chosen) {
            assert_eq!(table.insert(key, value), None);
        }
        assert_eq!(table.slots.len(), 4096);
        let longest = chosen.iter().map(|&key| table.n_probes(key, table.slot_of(key))).max();
        assert!(longest.unwrap() <= MAX_PROBES, "{longest:?}");
        for (value, &key) in (0..).zip(&chosen) {
            assert_eq!(table.get(key), Some(value));
        }
    }

    proptest! {
        #[test]
        fn table_behaves_as_a_hash_map(
            pairs in proptest::collection::vec((0u32..40, 0u32..40, any::<u32>()), 0..300),
        ) {
            let mut table = PairTable::with_capacity(0);
            let mut map = HashMap::new();
            for &(left, right, value) in &pairs {
                let key = pair_key(left, right);
                prop_assert_eq!(table.insert(key, value), map.insert(key, value));
            }
            for left in 0..40 {
                for right in 0..40 {
                    let key = pair_key(left, right);
                    prop_assert_eq!(table.get(key), map.get(&key).copied());
                }
            }
        }
    }
}
