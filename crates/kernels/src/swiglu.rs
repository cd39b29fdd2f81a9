//! The gated activation of the feed-forward part.

use crate::compute::{Compute, Family};
use crate::lanes::{LaneKernel, Lanes, dispatch};
use crate::operand::Operand;
use crate::pool::RowsOut;
use crate::reference;

/// Rows of one task.
const TASK_ROWS: usize = 8;

/// SwiGLU: `out[t, i] = silu(gate[t, i]) * up[t, i]`, `silu(x) = x / (1 + exp(-x))`.
///
/// Shapes: gate_up `[tokens, 2, ffn]` (gate first); out `[tokens, ffn]`. Overwrites `out`. Numerics: f32, rounded; all families but the
/// reference take `exp(-x)` as `2^(-log2(e) x)`, whose relative error is up to `2^-24 |x|` and a few units. A gate of `-inf` gives NaN, one below -89 gives 0. Source: arXiv 2002.05202, section 2.
///
/// # Panics
/// When a slice does not fit the shape.
pub fn swiglu<T: Operand>(compute: &Compute, gate_up: &[T], ffn_dim: usize, out: &mut [T]) {
    assert_eq!(gate_up.len(), 2 * out.len(), "out is [tokens, ffn]");
    let family = compute.family();
    let n_tokens = out.len() / ffn_dim.max(1);
    let outputs = (RowsOut::new(out, ffn_dim), RowsOut::<u8>::none(), RowsOut::<u8>::none());
    compute.pool().run_rows(n_tokens, TASK_ROWS, outputs, |row, n, (out, ..)| {
        let gate_up = &gate_up[row * 2 * ffn_dim..][..n * 2 * ffn_dim];
        if family == Family::Reference {
            reference::swiglu(gate_up, ffn_dim, out);
        } else {
            dispatch(family, Forward { gate_up, ffn_dim, out });
        }
    });
}

struct Forward<'a, T> {
    gate_up: &'a [T],
    ffn_dim: usize,
    out: &'a mut [T],
}

impl<T: Operand> LaneKernel for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let ffn = self.ffn_dim;
        for (row, out) in self.out.chunks_exact_mut(ffn).enumerate() {
            let (gate, up) = self.gate_up[row * 2 * ffn..][..2 * ffn].split_at(ffn);
            for i in (0..ffn).step_by(L::N) {
                let (x, up) = (T::load(lanes, &gate[i..]), T::load(lanes, &up[i..]));
                let silu = lanes.mul(x, sigmoid(lanes, x));
                T::store(lanes, lanes.mul(silu, up), &mut out[i..]);
            }
        }
    }
}

/// `1 / (1 + 2^(-log2(e) x))`
#[inline(always)]
fn sigmoid<L: Lanes>(lanes: L, x: L::F) -> L::F {
    let one = lanes.splat(1.0);
    let exponent = lanes.mul(x, lanes.splat(-std::f32::consts::LOG2_E));
    // The bound first: NaN must come through.
    let exponent = lanes.min(lanes.splat(128.0), exponent);
    lanes.div(one, lanes.add(one, lanes.exp2(exponent)))
}

/// Gradient of [`swiglu`], and its output once more: with `s = 1 / (1 + exp(-gate))`,
/// `d_gate = d_out * up * s * (1 + gate * (1 - s))`, `d_up = d_out * gate * s`.
///
/// Shapes: gate_up, d_gate_up `[tokens, 2, ffn]`; d_out, out `[tokens, ffn]`. Overwrites both outputs; `out` has the very
/// bits of the forward pass. Numerics: f32, outputs rounded to the operand type.
///
/// # Panics
/// When a slice does not fit the shape.
pub fn swiglu_backward<T: Operand>(
    compute: &Compute,
    gate_up: &[T],
    ffn_dim: usize,
    d_out: &[T],
    d_gate_up: &mut [T],
    out: &mut [T],
) {
    assert_eq!(gate_up.len(), d_gate_up.len(), "gate_up and its gradient have one shape");
    assert_eq!(gate_up.len(), 2 * out.len(), "out is [tokens, ffn]");
    assert_eq!(d_out.len(), out.len(), "d_out is [tokens, ffn]");
    let family = compute.family();
    let n_tokens = out.len() / ffn_dim.max(1);
    let outputs =
        (RowsOut::new(d_gate_up, 2 * ffn_dim), RowsOut::new(out, ffn_dim), RowsOut::<u8>::none());
    compute.pool().run_rows(n_tokens, TASK_ROWS, outputs, |row, n, (d_gate_up, out, _)| {
        let gate_up = &gate_up[row * 2 * ffn_dim..][..n * 2 * ffn_dim];
        let d_out = &d_out[row * ffn_dim..][..n * ffn_dim];
        if family == Family::Reference {
            reference::swiglu_backward(gate_up, ffn_dim, d_out, d_gate_up, out);
        } else {
            dispatch(family, Backward { gate_up, ffn_dim, d_out, d_gate_up, out });
        }
    });
}

struct Backward<'a, T> {
    gate_up: &'a [T],
    ffn_dim: usize,
    d_out: &'a [T],
    d_gate_up: &'a mut [T],
    out: &'a mut [T],
}

impl<T: Operand> LaneKernel for Backward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let ffn = self.ffn_dim;
        let one = lanes.splat(1.0);
        for (row, out) in self.out.chunks_exact_mut(ffn).enumerate() {
            let (gate, up) = self.gate_up[row * 2 * ffn..][..2 * ffn].split_at(ffn);
            let (d_gate, d_up) = self.d_gate_up[row * 2 * ffn..][..2 * ffn].split_at_mut(ffn);
            let d_out = &self.d_out[row * ffn..][..ffn];
            for i in (0..ffn).step_by(L::N) {
                let (x, up) = (T::load(lanes, &gate[i..]), T::load(lanes, &up[i..]));
                let d_out = T::load(lanes, &d_out[i..]);
                let s = sigmoid(lanes, x);
                let silu = lanes.mul(x, s);
                // s (1 + x (1 - s)) = s + silu (1 - s)
                let slope = lanes.mul_add(silu, lanes.sub(one, s), s);
                T::store(lanes, lanes.mul(lanes.mul(d_out, up), slope), &mut d_gate[i..]);
                T::store(lanes, lanes.mul(d_out, silu), &mut d_up[i..]);
                T::store(lanes, lanes.mul(silu, up), &mut out[i..]);
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
        LARGE, check_rows_alone_and_among_others, check_special_values, computes, fast_computes,
        normal, reference, rounded,
    };
    use proptest::prelude::*;

    type Outputs = (Vec<f32>, Vec<f32>, Vec<f32>);

    /// Output, gradient of gate and up, and the output as backward computes it.
    fn run<T: Operand>(compute: &Compute, gate_up: &[f32], ffn: usize, d_out: &[f32]) -> Outputs {
        let (gate_up, d_out) = (rounded::<T>(gate_up), rounded::<T>(d_out));
        let zero = T::from_f32(0.0);
        let mut out = vec![zero; d_out.len()];
        swiglu(compute, &gate_up, ffn, &mut out);
        let (mut d_gate_up, mut again) = (vec![zero; gate_up.len()], vec![zero; d_out.len()]);
        swiglu_backward(compute, &gate_up, ffn, &d_out, &mut d_gate_up, &mut again);
        let wide = |v: Vec<T>| v.into_iter().map(T::to_f32).collect();
        (wide(out), wide(d_gate_up), wide(again))
    }

    #[test]
    fn fast_versions_equal_the_definition() {
        for ffn in [1, 7, 16, 33, 100] {
            let (x, d_out) = (normal(1, 5 * 2 * ffn, 4.0), normal(2, 5 * ffn, 1.0));
            let expected = run::<f32>(&reference(), &x, ffn, &d_out);
            let expected_bf16 = run::<bf16>(&reference(), &x, ffn, &d_out);
            for compute in fast_computes(2) {
                let out = run::<f32>(&compute, &x, ffn, &d_out);
                // 2^x within three units in the last place, its exponent within half a unit of its own, and some roundings.
                let tolerance = Tolerance { absolute: 1e-6, relative: 2e-6 };
                assert_close(&out.0, &expected.0, tolerance);
                assert_close(&out.1, &expected.1, tolerance);
                assert_eq!(out.2, out.0, "backward recomputes the very output");
                let out = run::<bf16>(&compute, &x, ffn, &d_out);
                let tolerance = Tolerance { absolute: 1e-6, relative: 0.008 };
                assert_close(&out.0, &expected_bf16.0, tolerance);
                assert_close(&out.1, &expected_bf16.1, tolerance);
                assert_eq!(out.2, out.0);
            }
        }
    }

    #[test]
    fn extreme_gates_give_zero_or_the_gate() {
        for compute in computes(1) {
            let gate_up = [-200.0, 200.0, 0.0, f32::NAN, 1.0, 1.0, 1.0, 1.0];
            let (out, ..) = run::<f32>(&compute, &gate_up, 4, &[1.0; 4]);
            assert_eq!(out[..3], [0.0, 200.0, 0.0]);
            assert!(out[3].is_nan());
        }
    }

    fn check_special<T: Operand>(tolerance: Tolerance) {
        let (n_tokens, ffn) = (3, 21);
        let inputs = [normal(5, n_tokens * 2 * ffn, 2.0), normal(6, n_tokens * ffn, 1.0)];
        // Token and column of a place in rows of `ffn`, and in rows of two halves.
        let single = |i: usize| (i / ffn, i % ffn);
        let double = |i: usize| (i / (2 * ffn), i % ffn);
        let (end_out, end_d) = (n_tokens * ffn, n_tokens * 3 * ffn);
        check_special_values(
            inputs,
            LARGE,
            tolerance,
            |compute, [gate_up, d_out]| {
                let (out, d_gate_up, again) = run::<T>(compute, gate_up, ffn, d_out);
                [out, d_gate_up, again].concat()
            },
            |input, place, output| {
                let is_gradient = (end_out..end_d).contains(&output);
                let at = match output {
                    _ if is_gradient => double(output - end_out),
                    i if i < end_out => single(i),
                    i => single(i - end_d),
                };
                let is_of_up = is_gradient && (output - end_out) / ffn % 2 == 1;
                match input {
                    // The gradient of up does not have up in it.
                    0 if place / ffn % 2 == 1 => double(place) == at && !is_of_up,
                    0 => double(place) == at,
                    _ => single(place) == at && is_gradient,
                }
            },
        );
    }

    #[test]
    fn special_values_stay_in_their_places() {
        check_special::<f32>(Tolerance { absolute: 1e-6, relative: 2e-6 });
        check_special::<bf16>(Tolerance { absolute: 1e-6, relative: 0.008 });
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8))]

        #[test]
        fn a_row_has_the_same_bits_whatever_rows_stand_beside_it(seed: u64, ffn in 1_usize..120) {
            let (x, d_out) = (normal(seed, 512 * 2 * ffn, 2.0), normal(seed ^ 1, 512 * ffn, 1.0));
            check_rows_alone_and_among_others(seed, |compute, rows| {
                let x = &x[rows.start * 2 * ffn..rows.end * 2 * ffn];
                let d_out = &d_out[rows.start * ffn..rows.end * ffn];
                let (out, d, _) = run::<bf16>(compute, x, ffn, d_out);
                out.chunks(ffn).zip(d.chunks(2 * ffn)).map(|(out, d)| [out, d].concat()).collect()
            });
        }
    }

    #[test]
    fn the_gradient_equals_finite_differences() {
        let ffn = 9;
        let (x, c) = (normal(3, 3 * 2 * ffn, 1.5), normal(4, 3 * ffn, 1.0));
        let loss = |x: &[f64]| {
            let mut loss = 0.0;
            for (t, row) in x.chunks(2 * ffn).enumerate() {
                for i in 0..ffn {
                    let silu = row[i] / (1.0 + (-row[i]).exp());
                    loss += f64::from(c[t * ffn + i]) * silu * row[ffn + i];
                }
            }
            loss
        };
        let wide: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        let all: Vec<usize> = (0..x.len()).collect();
        for compute in computes(1) {
            let (_, d, _) = run::<f32>(&compute, &x, ffn, &c);
            let d: Vec<f64> = d.into_iter().map(f64::from).collect();
            assert_gradient(&d, loss, &wide, &all, Tolerance { absolute: 1e-5, relative: 1e-5 });
        }
    }
}
