//! Root-mean-square norm and its gradient.

use crate::compute::{Compute, Family};
use crate::elementwise::Convert;
use crate::lanes::{LaneKernel, Lanes, dispatch};
use crate::operand::Operand;
use crate::pool::RowsOut;
use crate::reference;

/// Rows of one task.
const TASK_ROWS: usize = 16;
/// Columns of one task of the weight's gradient, at least and at most: the more, the longer the pieces of rows that are read.
const TASK_COLUMNS: [usize; 2] = [64, 512];

/// Root-mean-square norm: `out[t, i] = x[t, i] * inverse_rms[t] * weight[i]`,
/// `inverse_rms[t] = 1 / sqrt(mean_i(x[t, i]^2) + eps)`.
///
/// Shapes: x, out, kept `[tokens, hidden]`; weight `[hidden]`; inverse_rms `[tokens]`. Overwrites the outputs, `kept`, where it is wanted, with
/// `x`, rounded.
/// Numerics: sums in f32, out rounded to the operand type. A NaN makes its row NaN. Where the squares overflow, by large values
/// or an infinity, inverse_rms is 0: the row is 0, and NaN at the infinity. Source: arXiv 1910.07467, eq. 4.
///
/// # Panics
/// When a slice does not fit the shape.
pub fn rms_norm<T: Operand>(
    compute: &Compute,
    x: &[f32],
    weight: &[f32],
    eps: f32,
    out: &mut [T],
    inverse_rms: &mut [f32],
    kept: Option<&mut [T]>,
) {
    let hidden = weight.len();
    assert_eq!(x.len(), inverse_rms.len() * hidden, "x is [tokens, hidden]");
    let kept = kept.map_or(RowsOut::none(), |kept| RowsOut::new(kept, hidden));
    let is_kept = kept.width > 0;
    let outputs = (RowsOut::new(out, hidden), RowsOut::new(inverse_rms, 1), kept);
    let family = compute.family();
    compute.pool().run_rows(
        x.len() / hidden.max(1),
        TASK_ROWS,
        outputs,
        |row, n, (out, scales, kept)| {
            let x = &x[row * hidden..][..n * hidden];
            if family == Family::Reference {
                reference::rms_norm(x, weight, eps, out, scales);
            } else {
                dispatch(family, Norm { x, weight, eps, out, scales });
            }
            if is_kept {
                Convert { x, out: kept }.run_on(family);
            }
        },
    );
}

struct Norm<'a, T> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [T],
    scales: &'a mut [f32],
}

impl<T: Operand> LaneKernel for Norm<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let hidden = self.weight.len();
        for (row, scale) in self.scales.iter_mut().enumerate() {
            let x = &self.x[row * hidden..][..hidden];
            let out = &mut self.out[row * hidden..][..hidden];
            let mut squares = lanes.splat(0.0);
            for i in (0..hidden).step_by(L::N) {
                let x = lanes.load(&x[i..]);
                squares = lanes.mul_add(x, x, squares);
            }
            let mean = lanes.reduce_sum(squares) / hidden as f32;
            *scale = 1.0 / (mean + self.eps).sqrt();
            let scale = lanes.splat(*scale);
            for i in (0..hidden).step_by(L::N) {
                let normed = lanes.mul(lanes.load(&x[i..]), scale);
                T::store(lanes, lanes.mul(normed, lanes.load(&self.weight[i..])), &mut out[i..]);
            }
        }
    }
}

/// Gradient of [`rms_norm`]: with `n[t, i] = x[t, i] * inverse_rms[t]` and `g = d_out * weight`,
/// `d_x[t, i] += inverse_rms[t] * (g[t, i] - n[t, i] * mean_j(g[t, j] * n[t, j]))` and
/// `d_weight[i] += sum_t d_out[t, i] * n[t, i]`.
///
/// Shapes: x, d_out, d_x, rounded `[tokens, hidden]`; weight, d_weight `[hidden]`; inverse_rms `[tokens]`. Accumulates into `d_x` and
/// `d_weight`, which a frozen weight does not have; overwrites `rounded` with the new `d_x`, rounded. Numerics: sums in f32, over tokens in ascending order. A value of `x` or `d_out`
/// that is not finite leaves no finite value in its row of `d_x`.
///
/// # Panics
/// When a slice does not fit the shape.
#[expect(clippy::too_many_arguments, reason = "what the formulas name")]
pub fn rms_norm_backward<T: Operand>(
    compute: &Compute,
    x: &[T],
    weight: &[f32],
    inverse_rms: &[f32],
    d_out: &[T],
    d_x: &mut [f32],
    rounded: &mut [T],
    d_weight: Option<&mut [f32]>,
) {
    let hidden = weight.len();
    let n_tokens = inverse_rms.len();
    assert_eq!(x.len(), n_tokens * hidden, "x is [tokens, hidden]");
    assert_eq!(d_out.len(), x.len(), "d_out is [tokens, hidden]");
    let family = compute.family();
    let outputs = (RowsOut::new(d_x, hidden), RowsOut::new(rounded, hidden), RowsOut::<u8>::none());
    compute.pool().run_rows(n_tokens, TASK_ROWS, outputs, |row, n, (d_x, rounded, _)| {
        let range = row * hidden..(row + n) * hidden;
        let (x, d_out, scales) = (&x[range.clone()], &d_out[range], &inverse_rms[row..row + n]);
        if family == Family::Reference {
            reference::rms_norm_backward_input(x, weight, scales, d_out, d_x);
        } else {
            dispatch(family, NormBackwardInput { x, weight, scales, d_out, d_x: &mut *d_x });
        }
        Convert { x: d_x, out: rounded }.run_on(family);
    });
    let Some(d_weight) = d_weight else { return };
    assert_eq!(d_weight.len(), hidden, "d_weight is [hidden]");
    let [least, most] = TASK_COLUMNS;
    let task_columns =
        hidden.div_ceil(compute.n_threads()).next_multiple_of(least).clamp(least, most);
    compute.pool().run_chunks(d_weight, task_columns, |chunk_idx, d_weight, _| {
        let column = chunk_idx * task_columns;
        if family == Family::Reference {
            reference::rms_norm_backward_weight(x, inverse_rms, d_out, hidden, column, d_weight);
        } else {
            dispatch(
                family,
                NormBackwardWeight { x, inverse_rms, d_out, hidden, column, d_weight },
            );
        }
    });
}

struct NormBackwardInput<'a, T> {
    x: &'a [T],
    weight: &'a [f32],
    scales: &'a [f32],
    d_out: &'a [T],
    d_x: &'a mut [f32],
}

impl<T: Operand> LaneKernel for NormBackwardInput<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let hidden = self.weight.len();
        for (row, &scale) in self.scales.iter().enumerate() {
            let x = &self.x[row * hidden..][..hidden];
            let d_out = &self.d_out[row * hidden..][..hidden];
            let d_x = &mut self.d_x[row * hidden..][..hidden];
            let mut sum = lanes.splat(0.0);
            for i in (0..hidden).step_by(L::N) {
                let g = lanes.mul(T::load(lanes, &d_out[i..]), lanes.load(&self.weight[i..]));
                sum = lanes.mul_add(g, T::load(lanes, &x[i..]), sum);
            }
            let mean = lanes.reduce_sum(sum) * scale / hidden as f32;
            let (scale, mean) = (lanes.splat(scale), lanes.splat(mean));
            for i in (0..hidden).step_by(L::N) {
                let g = lanes.mul(T::load(lanes, &d_out[i..]), lanes.load(&self.weight[i..]));
                let normed = lanes.mul(T::load(lanes, &x[i..]), scale);
                let inner = lanes.sub(g, lanes.mul(normed, mean));
                let sum = lanes.mul_add(scale, inner, lanes.load(&d_x[i..]));
                lanes.store(sum, &mut d_x[i..]);
            }
        }
    }
}

struct NormBackwardWeight<'a, T> {
    x: &'a [T],
    inverse_rms: &'a [f32],
    d_out: &'a [T],
    hidden: usize,
    column: usize,
    d_weight: &'a mut [f32],
}

impl<T: Operand> LaneKernel for NormBackwardWeight<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        for (token, &scale) in self.inverse_rms.iter().enumerate() {
            let start = token * self.hidden + self.column;
            let x = &self.x[start..][..self.d_weight.len()];
            let d_out = &self.d_out[start..][..self.d_weight.len()];
            let scale = lanes.splat(scale);
            for i in (0..self.d_weight.len()).step_by(L::N) {
                let normed = lanes.mul(T::load(lanes, &x[i..]), scale);
                let sum = lanes.load(&self.d_weight[i..]);
                let sum = lanes.mul_add(T::load(lanes, &d_out[i..]), normed, sum);
                lanes.store(sum, &mut self.d_weight[i..]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;
    use testkit::close::{Tolerance, assert_close};
    use testkit::finite_difference::assert_gradient;

    use super::*;
    use crate::test_support::{
        LARGE, check_rows_alone_and_among_others, check_special_values, check_threads, computes,
        fast_computes, normal, reference, rounded,
    };
    use proptest::prelude::*;

    /// f32 sums of some hundred terms in two orders: far below 1e-5 of the largest term.
    const SUM_ORDER: Tolerance = Tolerance { absolute: 1e-5, relative: 1e-5 };
    /// One bf16 rounding of values that differ by [`SUM_ORDER`]: at most one unit, 2^-8.
    const ONE_ROUNDING: Tolerance = Tolerance { absolute: 1e-5, relative: 0.004 };

    fn bits_of<T: Operand>(x: &[T]) -> Vec<u32> {
        x.iter().map(|x| x.to_f32().to_bits()).collect()
    }

    /// Subnormals of bf16 may become zero.
    fn assert_rounded<T: Operand>(rounded: &[T], x: &[f32]) {
        for (&rounded, &x) in rounded.iter().zip(x) {
            let (rounded, expected) = (rounded.to_f32(), T::from_f32(x).to_f32());
            let is_same = rounded == expected || rounded.is_nan() && expected.is_nan();
            assert!(is_same || (rounded - expected).abs() < 1e-38, "{rounded}, not {expected}");
        }
    }

    fn run<T: Operand>(compute: &Compute, x: &[f32], weight: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let n_tokens = x.len() / weight.len();
        let mut out = vec![T::from_f32(7.0); x.len()];
        let mut scales = vec![7.0; n_tokens];
        let mut kept = vec![T::from_f32(7.0); x.len()];
        rms_norm(compute, x, weight, 1e-5, &mut out, &mut scales, Some(&mut kept));
        assert_rounded(&kept, x);
        let mut again = vec![T::from_f32(7.0); x.len()];
        rms_norm(compute, x, weight, 1e-5, &mut again, &mut scales, None);
        assert_eq!(bits_of(&again), bits_of(&out));
        (out.iter().map(|x| x.to_f32()).collect(), scales)
    }

    #[test]
    fn fast_norms_equal_the_definition_over_odd_lengths() {
        for hidden in [1, 7, 8, 15, 16, 17, 64, 100, 387] {
            let (x, weight) = (normal(1, 33 * hidden, 3.0), normal(2, hidden, 1.0));
            let (expected, scales) = run::<f32>(&reference(), &x, &weight);
            let (expected_bf16, _) = run::<bf16>(&reference(), &x, &weight);
            for compute in fast_computes(2) {
                let (out, out_scales) = run::<f32>(&compute, &x, &weight);
                assert_close(&out, &expected, SUM_ORDER);
                assert_close(&out_scales, &scales, SUM_ORDER);
                assert_close(&run::<bf16>(&compute, &x, &weight).0, &expected_bf16, ONE_ROUNDING);
            }
        }
    }

    #[test]
    fn zeros_large_values_and_nan_stay_in_their_rows() {
        let mut x = normal(3, 4 * 40, 1.0);
        x[..40].fill(0.0);
        x[40..80].iter_mut().for_each(|x| *x *= 1e15);
        x[80] = f32::NAN;
        for compute in computes(1) {
            let (out, _) = run::<f32>(&compute, &x, &[1.0; 40]);
            assert!(out[..40].iter().all(|&x| x == 0.0));
            assert!(out[40..80].iter().all(|x| x.is_finite()));
            assert!(out[80..120].iter().all(|x| x.is_nan()));
            assert!(out[120..].iter().all(|x| x.is_finite()));
        }
    }

    #[test]
    fn special_values_stay_in_their_rows_and_columns() {
        let (n_tokens, hidden) = (5, 37);
        let inputs = [normal(7, n_tokens * hidden, 1.0), normal(8, hidden, 1.0)];
        let reaches = |input, place, output| match input {
            0 if output < n_tokens * hidden => place / hidden == output / hidden,
            0 => place / hidden == output - n_tokens * hidden,
            _ => output < n_tokens * hidden && place == output % hidden,
        };
        let both = |(out, scales): (Vec<f32>, Vec<f32>)| [out, scales].concat();
        let run_f32 = |compute: &Compute, [x, w]: &[Vec<f32>; 2]| both(run::<f32>(compute, x, w));
        check_special_values(inputs.clone(), LARGE, SUM_ORDER, run_f32, reaches);
        let run_bf16 = |compute: &Compute, [x, w]: &[Vec<f32>; 2]| both(run::<bf16>(compute, x, w));
        check_special_values(inputs, LARGE, ONE_ROUNDING, run_bf16, reaches);
    }

    /// Gradients of the input and of the weight, added to ones.
    fn backward<T: Operand>(
        compute: &Compute,
        [x, weight, d_out]: [&[f32]; 3],
    ) -> (Vec<f32>, Vec<f32>) {
        let (_, scales) = run::<f32>(&reference(), x, weight);
        let (x, d_out) = (rounded::<T>(x), rounded::<T>(d_out));
        let (mut d_x, mut d_weight) = (vec![1.0; x.len()], vec![1.0; weight.len()]);
        let (d_w, mut d_rounded) = (Some(&mut d_weight[..]), vec![T::from_f32(7.0); x.len()]);
        rms_norm_backward(compute, &x, weight, &scales, &d_out, &mut d_x, &mut d_rounded, d_w);
        assert_rounded(&d_rounded, &d_x);
        (d_x, d_weight)
    }

    #[test]
    fn special_values_reach_the_gradients_of_their_rows_and_columns() {
        let (n_tokens, hidden) = (5, 37);
        let len = n_tokens * hidden;
        let inputs = [normal(9, len, 1.0), normal(10, hidden, 1.0), normal(11, len, 1.0)];
        let reaches = |input, place, output| match (input, output < len) {
            (0 | 2, true) => place / hidden == output / hidden,
            // The norm of a row has a part in every weight's gradient.
            (0, false) => true,
            (1, _) => output < len,
            _ => place % hidden == output - len,
        };
        let tolerance = Tolerance { absolute: 1e-4, relative: 1e-4 };
        let both = |(d_x, d_weight): (Vec<f32>, Vec<f32>)| [d_x, d_weight].concat();
        for run in [backward::<f32>, backward::<bf16>] {
            check_special_values(
                inputs.clone(),
                LARGE,
                tolerance,
                |compute, [x, weight, d_out]| both(run(compute, [x, weight, d_out])),
                reaches,
            );
        }
    }

    #[test]
    fn gradients_of_the_weight_do_not_depend_on_threads() {
        for hidden in TASK_COLUMNS.map(|columns| 2 * columns + 7) {
            let [x, weight, d_out] = [20, 1, 20].map(|n| normal(12 + n as u64, n * hidden, 1.0));
            check_threads(|compute| backward::<bf16>(compute, [&x, &weight, &d_out]).1);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8))]

        #[test]
        fn a_row_has_the_same_bits_whatever_rows_stand_beside_it(seed: u64, hidden in 1_usize..200) {
            let (x, weight) = (normal(seed, 512 * hidden, 1.0), normal(seed ^ 1, hidden, 1.0));
            let d_out = normal(seed ^ 2, 512 * hidden, 1.0);
            check_rows_alone_and_among_others(seed, |compute, rows| {
                let range = rows.start * hidden..rows.end * hidden;
                let (x, d_out) = (&x[range.clone()], &d_out[range]);
                let (out, scales) = run::<bf16>(compute, x, &weight);
                let (d_x, _) = backward::<bf16>(compute, [x, &weight, d_out]);
                let rows = out.chunks(hidden).zip(&scales).zip(d_x.chunks(hidden));
                rows.map(|((out, &scale), d_x)| [out, &[scale], d_x].concat()).collect()
            });
        }
    }

    /// The loss `sum_t,i c[t, i] norm(x)[t, i]` in f64.
    fn loss(x: &[f64], weight: &[f64], c: &[f64]) -> f64 {
        let hidden = weight.len();
        x.chunks(hidden).zip(c.chunks(hidden)).fold(0.0, |loss, (x, c)| {
            let mean = x.iter().map(|x| x * x).sum::<f64>() / hidden as f64;
            let scale = 1.0 / (mean + 1e-5).sqrt();
            loss + (0..hidden).map(|i| c[i] * x[i] * scale * weight[i]).sum::<f64>()
        })
    }

    #[test]
    fn the_gradient_equals_finite_differences() {
        let (hidden, n_tokens) = (21, 5);
        let (x, weight) = (normal(4, n_tokens * hidden, 1.0), normal(5, hidden, 1.0));
        let c = normal(6, x.len(), 1.0);
        let wide = |v: &[f32]| v.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        for compute in computes(2) {
            let (_, scales) = run::<f32>(&compute, &x, &weight);
            let (mut d_x, mut d_weight) = (vec![1.0; x.len()], vec![2.0; hidden]);
            let (d_w, mut rounded) = (Some(&mut d_weight[..]), vec![7.0; x.len()]);
            rms_norm_backward(&compute, &x, &weight, &scales, &c, &mut d_x, &mut rounded, d_w);
            let mut alone = vec![1.0; x.len()];
            rms_norm_backward(&compute, &x, &weight, &scales, &c, &mut alone, &mut rounded, None);
            assert_eq!(alone, d_x, "the input's gradient beside a frozen weight");
            // Both outputs accumulate.
            let d_x: Vec<f64> = d_x.iter().map(|d| f64::from(d - 1.0)).collect();
            let d_weight: Vec<f64> = d_weight.iter().map(|d| f64::from(d - 2.0)).collect();
            let tolerance = Tolerance { absolute: 1e-5, relative: 1e-4 };
            let all: Vec<usize> = (0..x.len()).collect();
            assert_gradient(
                &d_x,
                |x| loss(x, &wide(&weight), &wide(&c)),
                &wide(&x),
                &all,
                tolerance,
            );
            let all: Vec<usize> = (0..hidden).collect();
            assert_gradient(
                &d_weight,
                |weight| loss(&wide(&x), weight, &wide(&c)),
                &wide(&weight),
                &all,
                tolerance,
            );
        }
    }
}
