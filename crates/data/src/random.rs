//! Seeded random numbers: integers only, the same on every machine.

/// A SplitMix64 stream. Source: Steele, Lea, Flood, "Fast splittable pseudorandom number
/// generators", OOPSLA 2014, figure 17.
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
}

impl Random {
    /// A stream that depends on the seed and on what it is for.
    pub fn new(seed: u64, purpose: &str) -> Self {
        // FNV-1a, so that each purpose has a stream of its own.
        let hash = purpose.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
        });
        Self { state: seed ^ hash }
    }

    /// A stream of its own for each pair of numbers.
    pub(crate) fn numbered(seed: u64, stream: u64) -> Self {
        Self { state: mix(seed.wrapping_add(GAMMA)) ^ stream.wrapping_mul(0xD134_2543_DE82_EF95) }
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GAMMA);
        mix(self.state)
    }

    /// A number in `0..limit`; the bias of multiply-and-shift is under 2^-32 per possible value.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        assert!(limit > 0, "cannot draw below {limit}");
        (((self.next_u64() >> 32) * limit as u64) >> 32) as usize
    }

    /// A number in `low..=high`.
    pub(crate) fn between(&mut self, low: i64, high: i64) -> i64 {
        assert!(low <= high, "empty range {low}..={high}");
        low + self.below((high - low + 1) as usize) as i64
    }

    /// True in `percent` of 100 draws.
    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of the given things.
    pub(crate) fn pick<'a, T>(&mut self, things: &'a [T]) -> &'a T {
        &things[self.below(things.len())]
    }

    /// Puts the things into a random order (Fisher and Yates).
    pub(crate) fn shuffle<T>(&mut self, things: &mut [T]) {
        for i in (1..things.len()).rev() {
            let j = self.below(i + 1);
            things.swap(i, j);
        }
    }
}

/// What the state grows by: the odd integer nearest to 2^64 divided by the golden ratio.
const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// The finalizer of SplitMix64.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::Random;

    #[test]
    fn the_generator_gives_the_published_numbers() {
        let mut random = Random { state: 0 };
        let numbers = [random.next_u64(), random.next_u64(), random.next_u64()];
        assert_eq!(numbers, [0xE220_A839_7B1D_CDAF, 0x6E78_9E6A_A1B9_65F4, 0x06C4_5D18_8009_454F]);
    }

    #[test]
    fn streams_differ_by_seed_purpose_and_number() {
        let first = [
            Random::new(1, "a"),
            Random::new(2, "a"),
            Random::new(1, "b"),
            Random::numbered(1, 0),
            Random::numbered(2, 0),
            Random::numbered(1, 1),
        ]
        .map(|mut random| random.next_u64());
        for (i, number) in first.iter().enumerate() {
            assert!(!first[..i].contains(number), "stream {i}");
        }
    }

    #[test]
    fn every_value_below_the_limit_is_drawn_about_equally() {
        let mut random = Random::new(3, "test");
        let mut counts = [0_usize; 7];
        for _ in 0..70_000 {
            counts[random.below(7)] += 1;
        }
        assert!(counts.iter().all(|&n| (9_500..10_500).contains(&n)), "{counts:?}");
    }

    #[test]
    fn shuffling_keeps_every_thing() {
        let mut things: Vec<usize> = (0..50).collect();
        Random::new(1, "test").shuffle(&mut things);
        assert_ne!(things, (0..50).collect::<Vec<_>>());
        things.sort_unstable();
        assert_eq!(things, (0..50).collect::<Vec<_>>());
    }
}
