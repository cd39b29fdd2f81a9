//! Root-mean-square norm and its gradient.

use crate::compute::{Compute, Family};
use crate::lanes::{LaneKernel, Lanes, dispatch};
use crate::operand::Operand;
use crate::pool::RowsOut;
use crate::reference;

/// Rows of one task.
const TASK_ROWS: usize = 16;
/// Columns of one task of the weight's gradient.
const TASK_COLUMNS: usize = 64;

/// Root-mean-square norm: `out[t, i] = x[t, i] * inverse_rms[t] * weight[i]`,
/// `inverse_rms[t] = 1 / sqrt(mean_i(x[t, i]^2) + eps)`.
///
/// Shapes: x, out `[tokens, hidden]`; weight `[hidden]`; inverse_rms `[tokens]`. Overwrites both outputs.
/// Numerics: sums in f32, out rounded to the operand type. Source: arXiv 1910.07467, eq. 4.
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
) {
    let hidden = weight.len();
    assert_eq!(x.len(), inverse_rms.len() * hidden, "x is [tokens, hidden]");
    let outputs = (RowsOut::new(out, hidden), RowsOut::new(inverse_rms, 1), RowsOut::<u8>::none());
    let family = compute.family();
    compute.pool().run_rows(
        x.len() / hidden.max(1),
        TASK_ROWS,
        outputs,
        |row, n, (out, scales, _)| {
            let x = &x[row * hidden..][..n * hidden];
            if family == Family::Reference {
                reference::rms_norm(x, weight, eps, out, scales);
            } else {
                dispatch(family, Norm { x, weight, eps, out, scales });
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
/// Shapes: x, d_out, d_x `[tokens, hidden]`; weight, d_weight `[hidden]`; inverse_rms `[tokens]`. Accumulates into both
/// outputs. Numerics: sums in f32, over tokens in ascending order.
///
/// # Panics
/// When a slice does not fit the shape.
pub fn rms_norm_backward<T: Operand>(
    compute: &Compute,
    x: &[T],
    weight: &[f32],
    inverse_rms: &[f32],
    d_out: &[f32],
    d_x: &mut [f32],
    d_weight: &mut [f32],
) {
    let hidden = weight.len();
    let n_tokens = inverse_rms.len();
    assert_eq!(x.len(), n_tokens * hidden, "x is [tokens, hidden]");
    assert_eq!(d_out.len(), x.len(), "d_out is [tokens, hidden]");
    assert_eq!(d_weight.len(), hidden, "d_weight is [hidden]");
    let family = compute.family();
    let outputs = (RowsOut::new(d_x, hidden), RowsOut::<u8>::none(), RowsOut::<u8>::none());
    compute.pool().run_rows(n_tokens, TASK_ROWS, outputs, |row, n, (d_x, ..)| {
        let range = row * hidden..(row + n) * hidden;
        let (x, d_out, scales) = (&x[range.clone()], &d_out[range], &inverse_rms[row..row + n]);
        if family == Family::Reference {
            reference::rms_norm_backward_input(x, weight, scales, d_out, d_x);
        } else {
            dispatch(family, NormBackwardInput { x, weight, scales, d_out, d_x });
        }
    });
    compute.pool().run_chunks(d_weight, TASK_COLUMNS, |chunk_idx, d_weight, _| {
        let column = chunk_idx * TASK_COLUMNS;
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
    d_out: &'a [f32],
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
                let g = lanes.mul(lanes.load(&d_out[i..]), lanes.load(&self.weight[i..]));
                sum = lanes.mul_add(g, T::load(lanes, &x[i..]), sum);
            }
            let mean = lanes.reduce_sum(sum) * scale / hidden as f32;
            let (scale, mean) = (lanes.splat(scale), lanes.splat(mean));
            for i in (0..hidden).step_by(L::N) {
                let g = lanes.mul(lanes.load(&d_out[i..]), lanes.load(&self.weight[i..]));
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
    d_out: &'a [f32],
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
                let sum = lanes.mul_add(lanes.load(&d_out[i..]), normed, sum);
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
    use crate::test_support::{computes, fast_computes, normal, reference};

    /// f32 sums of some hundred terms in two orders: far below 1e-5 of the largest term.
    const SUM_ORDER: Tolerance = Tolerance { absolute: 1e-5, relative: 1e-5 };
    /// One bf16 rounding of values that differ by [`SUM_ORDER`]: at most one unit, 2^-8.
    const ONE_ROUNDING: Tolerance = Tolerance { absolute: 1e-5, relative: 0.004 };

    fn run<T: Operand>(compute: &Compute, x: &[f32], weight: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let n_tokens = x.len() / weight.len();
        let mut out = vec![T::from_f32(7.0); x.len()];
        let mut scales = vec![7.0; n_tokens];
        rms_norm(compute, x, weight, 1e-5, &mut out, &mut scales);
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
            rms_norm_backward(&compute, &x, &weight, &scales, &c, &mut d_x, &mut d_weight);
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
