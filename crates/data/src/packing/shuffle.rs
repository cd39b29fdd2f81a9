//! Orders that depend on a seed only.

/// The splitmix64 generator: a counter whose value is mixed, good enough for shuffling.
/// Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, figure 17.
pub(super) struct SplitMix64(u64);

impl SplitMix64 {
    /// A stream of its own for each pair of numbers.
    pub(super) fn new(seed: u64, stream: u64) -> Self {
        let mut mixed = Self(seed);
        let start = mixed.next_u64() ^ stream.wrapping_mul(0xd134_2543_de82_ef95);
        Self(start)
    }

    pub(super) fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number in `0..bound`. The bias of the multiplication is below `bound / 2^64`.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }
}

/// The numbers `0..n` in an order given by `seed` and `stream` (Fisher-Yates). Time and memory: O(n).
///
/// # Panics
/// When `n` does not fit into 32 bits.
pub(crate) fn permutation(n: usize, seed: u64, stream: u64) -> Vec<u32> {
    let n = u32::try_from(n).expect("at most 2^32 - 1 things are shuffled at a time");
    let mut order: Vec<u32> = (0..n).collect();
    let mut random = SplitMix64::new(seed, stream);
    for end in (1..order.len()).rev() {
        let chosen = random.below(end as u64 + 1) as usize;
        order.swap(end, chosen);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_gives_the_published_numbers() {
        let mut random = SplitMix64(0);
        let numbers = [random.next_u64(), random.next_u64(), random.next_u64()];
        assert_eq!(numbers, [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4, 0x06c4_5d18_8009_454f]);
    }

    #[test]
    fn a_permutation_holds_each_number_once_and_depends_on_seed_and_stream() {
        let order = permutation(1000, 1, 2);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..1000).collect::<Vec<u32>>());
        assert_eq!(order, permutation(1000, 1, 2));
        assert_ne!(order, permutation(1000, 1, 3));
        assert_ne!(order, permutation(1000, 2, 2));
        assert!(permutation(0, 1, 2).is_empty());
    }

    #[test]
    fn each_number_comes_first_about_equally_often() {
        let mut n_first = [0u32; 5];
        for stream in 0..5000 {
            n_first[permutation(5, 7, stream)[0] as usize] += 1;
        }
        // Binomial with mean 1000 and standard deviation 28: five of them to either side.
        assert!(n_first.iter().all(|n| (860..1140).contains(n)), "{n_first:?}");
    }
}
