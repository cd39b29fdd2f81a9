//! Vectors of f32 lanes: row-wise kernels are written once over [`Lanes`] and compiled for AVX2 and AVX-512.
//!
//! A value of a lane type is a proof that the processor has the instructions: it is made only by [`dispatch`],
//! after detection chose the family.

use half::bf16;

use crate::compute::Family;

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;

/// Operations on `N` f32 lanes. Every method is inlined into a function compiled for the instruction set.
pub trait Lanes: Copy {
    /// Lanes in a vector.
    const N: usize;
    /// A vector.
    type F: Copy;

    /// All lanes equal.
    fn splat(self, value: f32) -> Self::F;
    /// The first `N` values, or all there are, the other lanes being zero.
    fn load(self, values: &[f32]) -> Self::F;
    /// As [`Lanes::load`], widened from bf16.
    fn load_bf16(self, values: &[bf16]) -> Self::F;
    /// Writes the first `N` lanes, or as many as `out` holds.
    fn store(self, value: Self::F, out: &mut [f32]);
    /// As [`Lanes::store`], rounded to nearest even. The AVX-512 version rounds subnormals to zero.
    fn store_bf16(self, value: Self::F, out: &mut [bf16]);
    /// Writes 2 N values, rounded as by [`Lanes::store_bf16`].
    #[inline(always)]
    fn store_two_bf16(self, a: Self::F, b: Self::F, out: &mut [bf16]) {
        self.store_bf16(a, out);
        self.store_bf16(b, &mut out[Self::N..]);
    }
    /// Writes 2 N values `a0 b0 a1 b1 ...`, rounded as by [`Lanes::store_bf16`].
    fn store_interleaved(self, a: Self::F, b: Self::F, out: &mut [bf16]);
    /// Writes the first `N` bytes: whole numbers in -128..=127.
    fn store_bytes(self, value: Self::F, out: &mut [u8]);
    /// a + b
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// a - b
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// a * b
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// a / b
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// sqrt(a)
    fn sqrt(self, a: Self::F) -> Self::F;
    /// a * b + c, rounded once
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger lane; the second where one of them is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The smaller lane; the second where one of them is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// Nearest integer, ties to even.
    fn round(self, a: Self::F) -> Self::F;
    /// Sum of the lanes in a fixed order.
    fn reduce_sum(self, a: Self::F) -> f32;
    /// Largest lane.
    fn reduce_max(self, a: Self::F) -> f32;

    /// 2^x for x of at most 128, within 3 units in the last place, and exactly 1 for 0; 0 below -126, infinity for 128, NaN for NaN.
    ///
    /// x = n + r with 0 <= r < 1, then [`Lanes::exp2_of_fraction`].
    fn exp2(self, x: Self::F) -> Self::F;

    /// 2^r for 0 <= r < 1: the polynomial of degree 5 that is exact at 0 and has the least relative error, 8.3e-8 (Remez).
    #[inline(always)]
    fn exp2_of_fraction(self, r: Self::F) -> Self::F {
        let mut p = self.splat(1.867_13e-3);
        for coefficient in [9.017_03e-3, 5.579_991_3e-2, 2.401_644_5e-1, 6.931_513e-1, 1.0] {
            p = self.mul_add(p, r, self.splat(coefficient));
        }
        p
    }
}

/// A row-wise kernel, written once for every vector width.
pub(crate) trait LaneKernel {
    /// What it returns.
    type Output;
    /// Runs on vectors of `L`. Implementations are `#[inline(always)]`.
    fn run<L: Lanes>(self, lanes: L) -> Self::Output;
}

/// Runs `kernel` on the family's vectors.
///
/// # Panics
/// For the reference family, which has no vectors: its definitions are in [`crate::reference`].
#[inline]
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "calls functions compiled for instructions that detection found")]
pub(crate) fn dispatch<K: LaneKernel>(family: Family, kernel: K) -> K::Output {
    match family {
        Family::Reference => unreachable!("the reference family has no vectors"),
        // SAFETY: a Compute of this family exists only where detection found AVX2, FMA and F16C.
        Family::Avx2 => unsafe { avx2::run(kernel) },
        // SAFETY: a Compute of these families exists only where detection found AVX-512 F, BW, DQ, VL, BF16.
        Family::Avx512 | Family::Amx => unsafe { avx512::run(kernel) },
    }
}

/// No family but the reference runs on this target.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn dispatch<K: LaneKernel>(family: Family, _kernel: K) -> K::Output {
    unreachable!("{family} kernels on a target without them")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::fast_computes;

    /// The larger and the smaller of `x` and one, `2^min(x, 128)`, and `x` rounded to bf16.
    struct Functions<'a> {
        x: &'a [f32],
        out: [&'a mut [f32]; 3],
        rounded: &'a mut [bf16],
    }

    impl LaneKernel for Functions<'_> {
        type Output = ();

        #[inline(always)]
        fn run<L: Lanes>(self, lanes: L) {
            let [max, min, exp2] = self.out;
            let one = lanes.splat(1.0);
            for i in (0..self.x.len()).step_by(L::N) {
                let x = lanes.load(&self.x[i..]);
                lanes.store(lanes.max(one, x), &mut max[i..]);
                lanes.store(lanes.min(x, one), &mut min[i..]);
                lanes.store(lanes.exp2(lanes.min(lanes.splat(128.0), x)), &mut exp2[i..]);
                lanes.store_bf16(x, &mut self.rounded[i..]);
            }
        }
    }

    fn functions(family: Family, x: &[f32]) -> ([Vec<f32>; 3], Vec<bf16>) {
        let mut out = [(); 3].map(|()| vec![7.0; x.len()]);
        let mut rounded = vec![bf16::ONE; x.len()];
        dispatch(
            family,
            Functions { x, out: out.each_mut().map(|x| &mut x[..]), rounded: &mut rounded },
        );
        (out, rounded)
    }

    #[test]
    fn exp2_is_within_three_units_in_the_last_place() {
        let x: Vec<f32> = (0..40_003).map(|i| -126.0 + i as f32 * (254.0 / 40_003.0)).collect();
        for compute in fast_computes(1) {
            let ([.., exp2], _) = functions(compute.family(), &x);
            for (&x, &exp2) in x.iter().zip(&exp2) {
                let exact = f64::from(x).exp2();
                let unit = f64::from((exact as f32).next_up() - exact as f32);
                assert!(
                    (f64::from(exp2) - exact).abs() <= 3.0 * unit,
                    "2^{x} = {exp2}, not {exact}"
                );
            }
        }
    }

    #[test]
    fn special_values_go_through_functions_as_documented() {
        let (infinity, nan) = (f32::INFINITY, f32::NAN);
        let x = [nan, -nan, infinity, -infinity, 0.0, -0.0, 88.8, -87.8, 1e30, -1e30, 1e-40];
        for compute in fast_computes(1) {
            let ([max, min, exp2], rounded) = functions(compute.family(), &x);
            assert!(exp2[..2].iter().all(|x| x.is_nan()), "{exp2:?}");
            let [large, small] = [88.8_f32, -87.8].map(f32::exp2);
            let expected = [infinity, 0.0, 1.0, 1.0, large, small, infinity, 0.0, 1.0];
            for (i, (&exp2, &expected)) in exp2[2..].iter().zip(&expected).enumerate() {
                let is_near = (exp2 - expected).abs() <= 1e-6 * expected;
                assert!(is_near || exp2 == expected, "{i}: {exp2}, not {expected}");
            }
            // Of a NaN and a number: the second.
            assert!(
                max[..2].iter().all(|x| x.is_nan()) && min[..2] == [1.0, 1.0],
                "{max:?} {min:?}"
            );
            assert_eq!(max[2..4], [infinity, 1.0]);
            assert_eq!(min[2..4], [1.0, -infinity]);
            for (x, rounded) in x.into_iter().zip(rounded) {
                let (expected, is_tiny) = (bf16::from_f32(x), x == 1e-40);
                assert_eq!(rounded.is_nan(), x.is_nan());
                let is_same = rounded.to_bits() == expected.to_bits();
                assert!(x.is_nan() || is_same || is_tiny && rounded == bf16::ZERO, "{x} {rounded}");
            }
        }
    }
}
