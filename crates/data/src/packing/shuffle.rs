//! Orders that depend on a seed only.

use crate::random::Random;

/// The numbers `0..n` in an order given by `seed` and `stream`. Time and memory: O(n).
///
/// # Panics
/// When `n` does not fit into 32 bits.
pub(crate) fn permutation(n: usize, seed: u64, stream: u64) -> Vec<u32> {
    let n = u32::try_from(n).expect("at most 2^32 - 1 things are shuffled at a time");
    let mut order: Vec<u32> = (0..n).collect();
    Random::numbered(seed, stream).shuffle(&mut order);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

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
