//! The two number types that matrix products and attention take as operands.

use half::bf16;

use crate::buffer::Element;
use crate::lanes::Lanes;

/// The type of matrix operands: `f32` or `bf16`. Sums are f32 for both.
pub trait Operand: Element + PartialEq + std::fmt::Debug {
    /// Consecutive values of K that lie side by side in a panel, so that a group has 4 bytes
    /// (2 for bf16, 1 for f32).
    const GROUP: usize;
    /// K is padded with zeros to a multiple of this in panels (one AMX tile row for bf16).
    const K_STEP: usize;

    /// Rounds to nearest even.
    fn from_f32(value: f32) -> Self;
    /// Exact.
    fn to_f32(self) -> f32;
    /// Loads up to `L::N` values from the start of `values`, widened; missing ones are zero.
    fn load<L: Lanes>(lanes: L, values: &[Self]) -> L::F;
    /// Stores the first `out.len()` (at most `L::N`) values, rounded.
    fn store<L: Lanes>(lanes: L, value: L::F, out: &mut [Self]);
    /// Stores `2 L::N` values, rounded.
    fn store_two<L: Lanes>(lanes: L, first: L::F, second: L::F, out: &mut [Self]);
    /// Stores `L::N` groups of a panel: for bf16 the pairs of `first` and `second`, for f32 `first` alone.
    fn store_groups<L: Lanes>(lanes: L, first: L::F, second: L::F, out: &mut [Self]);
}

impl Operand for f32 {
    const GROUP: usize = 1;
    const K_STEP: usize = 1;

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn load<L: Lanes>(lanes: L, values: &[Self]) -> L::F {
        lanes.load(values)
    }

    #[inline(always)]
    fn store<L: Lanes>(lanes: L, value: L::F, out: &mut [Self]) {
        lanes.store(value, out);
    }

    #[inline(always)]
    fn store_two<L: Lanes>(lanes: L, first: L::F, second: L::F, out: &mut [Self]) {
        lanes.store(first, out);
        lanes.store(second, &mut out[L::N..]);
    }

    #[inline(always)]
    fn store_groups<L: Lanes>(lanes: L, first: L::F, _second: L::F, out: &mut [Self]) {
        lanes.store(first, out);
    }
}

impl Operand for bf16 {
    const GROUP: usize = 2;
    const K_STEP: usize = 32;

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        Self::to_f32(self)
    }

    #[inline(always)]
    fn load<L: Lanes>(lanes: L, values: &[Self]) -> L::F {
        lanes.load_bf16(values)
    }

    #[inline(always)]
    fn store<L: Lanes>(lanes: L, value: L::F, out: &mut [Self]) {
        lanes.store_bf16(value, out);
    }

    #[inline(always)]
    fn store_two<L: Lanes>(lanes: L, first: L::F, second: L::F, out: &mut [Self]) {
        lanes.store_two_bf16(first, second, out);
    }

    #[inline(always)]
    fn store_groups<L: Lanes>(lanes: L, first: L::F, second: L::F, out: &mut [Self]) {
        lanes.store_interleaved(first, second, out);
    }
}
