//! Random test data, the same on every machine and in every release of this crate.

use half::bf16;
use std::f64::consts::TAU;

/// A small deterministic generator (SplitMix64; Steele, Lea and Flood, OOPSLA 2014). For test data only.
#[derive(Clone, Debug)]
pub struct Rng {
    state: u64,
}

impl Rng {
    /// A generator; equal seeds give equal sequences.
    pub const fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in `[0, 1)`, with 53 random bits.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * 2.0_f64.powi(-53)
    }

    /// A whole number in `[0, n)`; its bias is below `n / 2^64`.
    ///
    /// # Panics
    /// When `n` is zero.
    pub fn below(&mut self, n: usize) -> usize {
        assert!(n > 0, "no number is below zero");
        // The high half of the product, which is below n.
        ((u128::from(self.next_u64()) * n as u128) >> 64) as usize
    }

    /// Standard normal, by Box and Muller in f64.
    pub fn normal(&mut self) -> f64 {
        // In (0, 1], so that the logarithm is finite.
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (TAU * self.uniform()).cos()
    }

    /// Fills `out` with uniform values in `[low, high)`, before rounding to f32.
    pub fn fill_uniform(&mut self, out: &mut [f32], low: f64, high: f64) {
        for x in out {
            *x = (low + (high - low) * self.uniform()) as f32;
        }
    }

    /// Fills `out` with normal values of the given standard deviation.
    pub fn fill_normal(&mut self, out: &mut [f32], deviation: f64) {
        for x in out {
            *x = (deviation * self.normal()) as f32;
        }
    }

    /// Like [`Rng::fill_normal`], each value rounded to bf16, so that a bf16 operand is exact.
    pub fn fill_normal_bf16(&mut self, out: &mut [f32], deviation: f64) {
        for x in out {
            *x = bf16::from_f64(deviation * self.normal()).to_f32();
        }
    }

    /// `n` normal values of the given standard deviation.
    pub fn normal_vec(&mut self, n: usize, deviation: f64) -> Vec<f32> {
        let mut values = vec![0.0; n];
        self.fill_normal(&mut values, deviation);
        values
    }
}

#[cfg(test)]
mod tests {
    use super::Rng;
    use half::bf16;

    #[test]
    fn the_sequence_is_the_published_one() {
        // First outputs of the reference implementation for seed 1234567.
        let mut rng = Rng::new(1_234_567);
        let first: [u64; 3] = std::array::from_fn(|_| rng.next_u64());
        assert_eq!(
            first,
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
    }

    #[test]
    fn uniform_values_have_mean_and_range() {
        let mut rng = Rng::new(1);
        let values: Vec<f64> = (0..20_000).map(|_| rng.uniform()).collect();
        assert!(values.iter().all(|x| (0.0..1.0).contains(x)));
        // Five standard errors.
        let mean = values.iter().sum::<f64>() / 20_000.0;
        assert!((mean - 0.5).abs() < 0.0103, "mean {mean}");
    }

    #[test]
    fn normal_values_have_mean_and_variance() {
        let mut rng = Rng::new(2);
        let values: Vec<f64> = (0..20_000).map(|_| rng.normal()).collect();
        let mean = values.iter().sum::<f64>() / 20_000.0;
        let variance = values.iter().map(|x| x * x).sum::<f64>() / 20_000.0;
        assert!(mean.abs() < 0.036, "mean {mean}");
        assert!((variance - 1.0).abs() < 0.05, "variance {variance}");
    }

    #[test]
    fn below_reaches_every_number_and_no_other() {
        let mut rng = Rng::new(3);
        let mut seen = [0; 7];
        for _ in 0..700 {
            seen[rng.below(7)] += 1;
        }
        assert!(seen.iter().all(|&n| n > 50), "{seen:?}");
    }

    #[test]
    fn bf16_values_survive_rounding_to_bf16() {
        let mut values = [0.0_f32; 100];
        Rng::new(4).fill_normal_bf16(&mut values, 3.0);
        assert!(values.iter().all(|&x| bf16::from_f32(x).to_f32() == x));
        assert!(values.iter().any(|&x| x.abs() > 3.0));
    }

    #[test]
    fn uniform_fill_stays_between_its_bounds() {
        let mut values = [9.0_f32; 100];
        Rng::new(5).fill_uniform(&mut values, -2.0, 3.0);
        assert!(values.iter().all(|x| (-2.0..=3.0).contains(x)));
        assert!(values.iter().any(|&x| x < 0.0) && values.iter().any(|&x| x > 1.0));
    }
}
