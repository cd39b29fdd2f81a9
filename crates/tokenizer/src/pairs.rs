//! A flat hash table from a pair of token ids to a value.

/// Open addressing, linear probing, at most half full; 16 bytes per slot.
#[derive(Clone, Debug)]
pub(crate) struct PairTable<V> {
    slots: Vec<(u64, V)>,
    n_used: usize,
    shift: u32,
}

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
        }
    }

    /// The slot that holds the key, or the free one where it would be put.
    #[inline]
    fn slot_of(&self, key: u64) -> usize {
        let mask = self.slots.len() - 1;
        // Ids are small numbers: the product spreads both halves into the high bits.
        let folded = key ^ (key >> 32).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        let mut at = (folded.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> self.shift) as usize;
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
            self.grow();
        }
        let at = self.slot_of(key);
        let (found, former) = std::mem::replace(&mut self.slots[at], (key, value));
        if found == key {
            return Some(former);
        }
        self.n_used += 1;
        None
    }

    fn grow(&mut self) {
        let mut larger = PairTable::with_capacity(self.slots.len());
        for &(key, value) in self.slots.iter().filter(|slot| slot.0 != FREE) {
            larger.insert(key, value);
        }
        *self = larger;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

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
