//! Conversions and sums over whole slices.

use crate::compute::{Compute, Family};
use crate::lanes::{LaneKernel, Lanes, dispatch};
use crate::operand::Operand;

/// Values of one task. Sums are formed per chunk of this length, so it is part of their arithmetic.
const CHUNK: usize = 8192;

/// Rounds to the operand type: `out[i] = round(x[i])`. Overwrites.
///
/// # Panics
/// When the lengths differ.
pub fn convert<S: Operand, T: Operand>(compute: &Compute, x: &[S], out: &mut [T]) {
    assert_eq!(x.len(), out.len());
    let family = compute.family();
    compute.pool().run_chunks(out, CHUNK, |chunk_idx, out, _| {
        Convert { x: &x[chunk_idx * CHUNK..][..out.len()], out }.run_on(family);
    });
}

/// Some values of [`convert`].
pub(crate) struct Convert<'a, S, T> {
    pub(crate) x: &'a [S],
    pub(crate) out: &'a mut [T],
}

impl<S: Operand, T: Operand> Convert<'_, S, T> {
    pub(crate) fn run_on(self, family: Family) {
        if family != Family::Reference {
            return dispatch(family, self);
        }
        self.out.iter_mut().zip(self.x).for_each(|(out, x)| *out = T::from_f32(x.to_f32()));
    }
}

impl<S: Operand, T: Operand> LaneKernel for Convert<'_, S, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        for i in (0..self.x.len()).step_by(L::N) {
            T::store(lanes, S::load(lanes, &self.x[i..]), &mut self.out[i..]);
        }
    }
}

/// `sum_i x[i]^2`: f32 sums over chunks of 8192, added in f64 in ascending order. NaN if a value is; infinite if one is, or if
/// a chunk's sum overflows f32.
#[must_use]
pub fn sum_of_squares(compute: &Compute, x: &[f32]) -> f64 {
    let mut sums = vec![0.0_f64; x.len().div_ceil(CHUNK)];
    let family = compute.family();
    compute.pool().run_chunks(&mut sums, 1, |chunk_idx, sum, _| {
        let chunk = &x[chunk_idx * CHUNK..x.len().min((chunk_idx + 1) * CHUNK)];
        sum[0] = f64::from(if family == Family::Reference {
            chunk.iter().map(|x| x * x).sum::<f32>()
        } else {
            dispatch(family, SumOfSquares { x: chunk })
        });
    });
    sums.iter().sum()
}

struct SumOfSquares<'a> {
    x: &'a [f32],
}

impl LaneKernel for SumOfSquares<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> f32 {
        let mut sum = lanes.splat(0.0);
        for i in (0..self.x.len()).step_by(L::N) {
            let x = lanes.load(&self.x[i..]);
            sum = lanes.mul_add(x, x, sum);
        }
        lanes.reduce_sum(sum)
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use testkit::close::Tolerance;

    use crate::test_support::{LARGE, bits, check_special_values, computes, normal};

    #[test]
    fn special_values_stay_in_their_places() {
        let inputs = [normal(3, 45, 1.0)];
        // Subnormals may become zero.
        let tolerance = Tolerance::absolute(1e-38);
        let run = |compute: &Compute, [x]: &[Vec<f32>; 1]| {
            let (mut rounded, mut wide) = (vec![bf16::ONE; x.len()], vec![7.0_f32; x.len()]);
            convert(compute, x, &mut rounded);
            convert(compute, &rounded, &mut wide);
            let mut copy = vec![7.0_f32; x.len()];
            convert(compute, x, &mut copy);
            assert_eq!(bits(&copy), bits(x), "f32 to f32 is a copy");
            wide
        };
        check_special_values(inputs, LARGE, tolerance, run, |_, place, output| place == output);
    }

    #[test]
    fn sums_of_squares_show_every_special_value() {
        // The last chunk is short.
        let inputs = [normal(4, CHUNK + 45, 1.0)];
        let run = |compute: &Compute, [x]: &[Vec<f32>; 1]| vec![sum_of_squares(compute, x) as f32];
        // f32 sums of 8192 terms.
        check_special_values(inputs, LARGE, Tolerance::relative(1e-4), run, |_, _, _| true);
    }

    #[test]
    fn conversion_rounds_to_nearest_even() {
        let mut x = normal(1, 1003, 100.0);
        // Ties, the largest values, infinities: 0x..8000 lies half-way between two bf16.
        let special = [0x3f80_8000_u32, 0x3f81_8000, 0x7f7f_ffff, 0x7f80_0000, 0xff80_0000, 0];
        x.extend(special.map(f32::from_bits));
        let expected: Vec<bf16> = x.iter().map(|&x| bf16::from_f32(x)).collect();
        for compute in computes(2) {
            let mut out = vec![bf16::ZERO; x.len()];
            convert(&compute, &x, &mut out);
            assert_eq!(out, expected, "{}", compute.family());
            let mut back = vec![0.0_f32; x.len()];
            convert(&compute, &out, &mut back);
            let wide: Vec<f32> = expected.iter().map(|x| x.to_f32()).collect();
            assert_eq!(bits(&back), bits(&wide));
            let mut nan = [bf16::ZERO];
            convert(&compute, &[f32::NAN], &mut nan);
            assert!(nan[0].is_nan());
        }
    }

    #[test]
    fn sums_of_squares_do_not_depend_on_threads() {
        let x = normal(2, 3 * CHUNK + 77, 1.0);
        let expected: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        let (one, three) = (computes(1), computes(3));
        for (one, three) in one.iter().zip(&three) {
            let sum = sum_of_squares(one, &x);
            // f32 sums of 8192 terms.
            assert!((sum - expected).abs() < 1e-4 * expected, "{sum} is not {expected}");
            assert_eq!(sum.to_bits(), sum_of_squares(three, &x).to_bits());
        }
    }
}
