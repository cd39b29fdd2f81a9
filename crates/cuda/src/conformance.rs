//! Whether a GPU computes what the CPU does: each operation on both, on the same numbers.

use crate::gpu::Gpu;

mod attention_packed;
mod attention_paged;
mod attention_row;
mod blocks;
mod chain;
mod elementwise;
mod embedding;
mod few_rows;
mod loss;
mod norm;
mod products;
mod rope;
mod swiglu;

/// One operation, compared.
pub struct Case {
    /// Its name.
    pub name: &'static str,
    /// Computes it on the GPU and on the CPU.
    pub run: fn(&Gpu, Size) -> Deviation,
}

/// How large the shapes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// For an emulated GPU: small, but with tails and odd counts.
    Small,
    /// For a GPU: realistic ones too.
    Large,
}

/// How far a result is from what it should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Deviation {
    /// Relative to the norm of what it should be; infinite where one value is finite and the other is not.
    pub value: f64,
    /// What it may be.
    pub limit: f64,
}

impl Deviation {
    /// `|got - expected| / |expected|`, by Euclidean norms.
    ///
    /// # Panics
    /// When the counts differ.
    #[must_use]
    pub fn between(got: &[f32], expected: &[f32], limit: f64) -> Self {
        assert_eq!(got.len(), expected.len(), "values of one result");
        let (mut difference, mut norm) = (0.0_f64, 0.0_f64);
        for (&got, &expected) in got.iter().zip(expected) {
            if got.to_bits() == expected.to_bits() || (got.is_nan() && expected.is_nan()) {
                norm += if expected.is_finite() { f64::from(expected).powi(2) } else { 0.0 };
                continue;
            }
            if !got.is_finite() || !expected.is_finite() {
                return Self { value: f64::INFINITY, limit };
            }
            difference += (f64::from(got) - f64::from(expected)).powi(2);
            norm += f64::from(expected).powi(2);
        }
        let value = if difference == 0.0 { 0.0 } else { (difference / norm.max(1e-60)).sqrt() };
        Self { value, limit }
    }

    /// Whether all bits are equal: 0, or infinite.
    ///
    /// # Panics
    /// When the counts differ.
    #[must_use]
    pub fn equal(got: &[f32], expected: &[f32]) -> Self {
        assert_eq!(got.len(), expected.len(), "values of one result");
        let equal = got.iter().zip(expected).all(|(a, b)| a.to_bits() == b.to_bits());
        Self { value: if equal { 0.0 } else { f64::INFINITY }, limit: 0.0 }
    }

    /// The one that is nearer to its limit, or farther beyond.
    #[must_use]
    pub fn worst(self, other: Self) -> Self {
        let share = |deviation: Self| match deviation.limit {
            0.0 if deviation.value == 0.0 => 0.0,
            limit => deviation.value / limit,
        };
        if share(other) > share(self) { other } else { self }
    }

    /// Where nothing is compared: before the first comparison, and of what this GPU does not do.
    pub(crate) const NONE: Self = Self { value: 0.0, limit: 0.0 };

    /// Whether it is within its limit.
    #[must_use]
    pub fn is_within(self) -> bool {
        self.value <= self.limit
    }
}

/// Every operation.
#[must_use]
pub fn cases() -> Vec<&'static Case> {
    [
        attention_packed::CASES,
        attention_paged::CASES,
        attention_row::CASES,
        blocks::CASES,
        chain::CASES,
        elementwise::CASES,
        embedding::CASES,
        few_rows::CASES,
        loss::CASES,
        norm::CASES,
        products::CASES,
        rope::CASES,
        swiglu::CASES,
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Reproducible numbers.
pub(crate) struct Numbers {
    state: u64,
}

impl Numbers {
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// SplitMix64 (Steele, Lea, Flood 2014).
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Of mean 0 and variance 1: the sum of twelve uniform ones.
    pub(crate) fn normal(&mut self, n: usize) -> Vec<f32> {
        let mut uniform = || (self.next() >> 40) as f32 / (1_u64 << 24) as f32;
        (0..n).map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0).collect()
    }

    /// Below a bound.
    pub(crate) fn ids(&mut self, n: usize, below: u32) -> Vec<u32> {
        (0..n).map(|_| (self.next() % u64::from(below)) as u32).collect()
    }
}

/// As operands of a type.
pub(crate) fn narrowed<T: kernels::Operand>(values: &[f32]) -> Vec<T> {
    values.iter().map(|&x| T::from_f32(x)).collect()
}

/// As bf16 holds them.
pub(crate) fn rounded(values: &[f32]) -> Vec<f32> {
    values.iter().map(|&x| half::bf16::from_f32(x).to_f32()).collect()
}
