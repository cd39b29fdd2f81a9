//! Softmax cross-entropy and its gradient in one pass over a chunk of logits.

use crate::compute::{Compute, Family};
use crate::lanes::{LaneKernel, Lanes, dispatch};
use crate::operand::Operand;
use crate::pool::RowsOut;
use crate::reference;

/// Rows of one task.
const TASK_ROWS: usize = 4;

/// Cross-entropy: `loss[t] = ln(sum_i exp(logits[t, i])) - logits[t, target[t]]` (nats) and
/// `d_logits[t, i] = weight[t] * (softmax(logits[t])[i] - [i = target[t]])`. Rows of weight 0 give 0 in both.
///
/// Shapes: logits, d_logits `[tokens, vocab]`; targets, weights, losses `[tokens]`. An empty `d_logits` means that no
/// gradient is wanted. Overwrites. Numerics: sums in f32 relative to the row's largest logit; all families but the
/// reference take `exp(x)` as `2^(log2(e) x)`, whose relative error is up to `2^-24 |x|` and a few units; d_logits rounded to the operand type. A logit that is NaN or `inf`, or logits that are all `-inf`, make their row NaN, loss and gradient; a single
/// `-inf` has probability 0, as a target an infinite loss.
///
/// # Panics
/// When a slice does not fit the shape, or a target of non-zero weight is not in the vocabulary.
pub fn cross_entropy<T: Operand>(
    compute: &Compute,
    logits: &[f32],
    targets: &[u32],
    weights: &[f32],
    losses: &mut [f32],
    d_logits: &mut [T],
) {
    assert_eq!(targets.len(), weights.len(), "one weight per target");
    if targets.is_empty() {
        return;
    }
    let vocab_size = logits.len() / targets.len();
    assert_eq!(logits.len(), targets.len() * vocab_size, "logits are [tokens, vocab]");
    let width = if d_logits.is_empty() { 0 } else { vocab_size };
    let family = compute.family();
    let outputs = (RowsOut::new(losses, 1), RowsOut::new(d_logits, width), RowsOut::<u8>::none());
    compute.pool().run_rows(
        targets.len(),
        TASK_ROWS,
        outputs,
        |first, n, (losses, d_logits, _)| {
            for row in 0..n {
                let token = first + row;
                let d_logits = &mut d_logits[row * width..][..width];
                if weights[token] == 0.0 {
                    losses[row] = 0.0;
                    d_logits.fill(T::from_f32(0.0));
                    continue;
                }
                let (logits, target) =
                    (&logits[token * vocab_size..][..vocab_size], targets[token] as usize);
                assert!(target < vocab_size, "target {target} of a vocabulary of {vocab_size}");
                losses[row] = if family == Family::Reference {
                    reference::cross_entropy_row(logits, target, weights[token], d_logits)
                } else {
                    dispatch(family, Row { logits, target, weight: weights[token], d_logits })
                };
            }
        },
    );
}

struct Row<'a, T> {
    logits: &'a [f32],
    target: usize,
    weight: f32,
    d_logits: &'a mut [T],
}

impl<T: Operand> LaneKernel for Row<'_, T> {
    type Output = f32;

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> f32 {
        let logits = self.logits;
        let n_whole = logits.len() / L::N * L::N;
        let tail = &logits[n_whole..];
        let mut max = lanes.splat(f32::NEG_INFINITY);
        for i in (0..n_whole).step_by(L::N) {
            max = lanes.max(max, lanes.load(&logits[i..]));
        }
        let max = tail.iter().fold(lanes.reduce_max(max), |max, &x| max.max(x));
        let max_lanes = lanes.splat(max);
        let mut sums = lanes.splat(0.0);
        for i in (0..n_whole).step_by(L::N) {
            sums = lanes.add(sums, exp(lanes, lanes.load(&logits[i..]), max_lanes));
        }
        // The lanes beyond the tail would count exp(0 - max): they are set apart.
        let mut padded = [f32::NEG_INFINITY; 16];
        padded[..tail.len()].copy_from_slice(tail);
        sums = lanes.add(sums, exp(lanes, lanes.load(&padded), max_lanes));
        let sum = lanes.reduce_sum(sums);
        if !self.d_logits.is_empty() {
            let scale = lanes.splat(self.weight / sum);
            for i in (0..logits.len()).step_by(L::N) {
                let p = exp(lanes, lanes.load(&logits[i..]), max_lanes);
                T::store(lanes, lanes.mul(p, scale), &mut self.d_logits[i..]);
            }
            let p = (logits[self.target] - max).exp() / sum;
            self.d_logits[self.target] = T::from_f32(self.weight * (p - 1.0));
        }
        sum.ln() + max - logits[self.target]
    }
}

/// `exp(x - max)`: of at most 0, but in lanes that are not stored, and in rows that have a NaN, which are NaN whatever comes of them.
#[inline(always)]
fn exp<L: Lanes>(lanes: L, x: L::F, max: L::F) -> L::F {
    lanes.exp2(lanes.mul(lanes.sub(x, max), lanes.splat(std::f32::consts::LOG2_E)))
}

#[cfg(test)]
mod tests {
    use testkit::close::{Tolerance, assert_close};
    use testkit::finite_difference::assert_gradient;

    use super::*;
    use crate::test_support::{
        LARGE, bits, check_rows_alone_and_among_others, check_special_values, computes,
        fast_computes, normal, reference,
    };
    use half::bf16;
    use proptest::prelude::*;

    fn run(
        compute: &Compute,
        logits: &[f32],
        targets: &[u32],
        weights: &[f32],
    ) -> (Vec<f32>, Vec<f32>) {
        let (mut losses, mut d) = (vec![7.0; targets.len()], vec![7.0; logits.len()]);
        cross_entropy(compute, logits, targets, weights, &mut losses, &mut d);
        let mut without = vec![7.0; targets.len()];
        cross_entropy::<f32>(compute, logits, targets, weights, &mut without, &mut []);
        assert_eq!(bits(&losses), bits(&without), "the loss is the same without a gradient");
        (losses, d)
    }

    #[test]
    fn fast_versions_equal_the_definition_over_odd_lengths() {
        for vocab in [2, 7, 8, 16, 17, 31, 100, 515] {
            let logits = normal(1, 6 * vocab, 5.0);
            let targets: Vec<u32> = (0..6).map(|t| (t * 13 % vocab) as u32).collect();
            let weights = [1.0, 0.5, 0.0, 2.0, 1.0, 0.1];
            let expected = run(&reference(), &logits, &targets, &weights);
            for compute in fast_computes(2) {
                let out = run(&compute, &logits, &targets, &weights);
                let tolerance = Tolerance { absolute: 2e-6, relative: 2e-6 };
                assert_close(&out.0, &expected.0, tolerance);
                assert_close(&out.1, &expected.1, tolerance);
            }
        }
    }

    #[test]
    fn large_logits_do_not_overflow() {
        for compute in computes(1) {
            let (losses, d) = run(&compute, &[1e4, -1e4, 0.0, 9_999.0], &[1], &[1.0]);
            assert!((losses[0] - 2e4).abs() < 1.0);
            assert!(d.iter().all(|d| d.is_finite()));
        }
    }

    #[test]
    fn special_values_stay_in_their_rows() {
        let vocab = 37;
        let inputs = [normal(3, 5 * vocab, 5.0), vec![1.0, 0.5, 2.0, 1.0, 0.1]];
        let targets = [0, 36, 5, 16, 36];
        let row = |i: usize, n: usize| if i < n { i } else { (i - n) / vocab };
        let tolerance = Tolerance { absolute: 2e-6, relative: 2e-6 };
        check_special_values(
            inputs.clone(),
            LARGE,
            tolerance,
            |compute, [logits, weights]| {
                let (losses, d) = run(compute, logits, &targets, weights);
                [losses, d].concat()
            },
            // The loss of a row is not weighted.
            |input, place, output| match input {
                0 => place / vocab == row(output, 5),
                _ => place == row(output, 5),
            },
        );
        // One rounding to bf16 of values that differ by some roundings of f32.
        let tolerance = Tolerance { absolute: 2e-6, relative: 0.008 };
        check_special_values(
            inputs,
            LARGE,
            tolerance,
            |compute, [logits, weights]| {
                let (mut losses, mut d) = (vec![7.0; 5], vec![bf16::ONE; logits.len()]);
                cross_entropy(compute, logits, &targets, weights, &mut losses, &mut d);
                losses.into_iter().chain(d.into_iter().map(bf16::to_f32)).collect()
            },
            |input, place, output| place / [vocab, 1][input] == row(output, 5),
        );
    }

    #[test]
    fn a_row_without_weight_counts_nothing_whatever_its_logits() {
        for compute in computes(1) {
            for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let (losses, d) = run(&compute, &[value; 40], &[99, 3], &[0.0, -0.0]);
                assert!(losses.iter().chain(&d).all(|&x| x == 0.0), "{value}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8))]

        #[test]
        fn a_row_has_the_same_bits_whatever_rows_stand_beside_it(seed: u64, vocab in 1_usize..200) {
            let logits = normal(seed, 512 * vocab, 3.0);
            let targets: Vec<u32> = (0..512).map(|row| (row * 31 % vocab) as u32).collect();
            let weights = normal(seed ^ 1, 512, 1.0);
            check_rows_alone_and_among_others(seed, |compute, rows| {
                let logits = &logits[rows.start * vocab..rows.end * vocab];
                let (losses, d) =
                    run(compute, logits, &targets[rows.clone()], &weights[rows.clone()]);
                let rows = losses.iter().zip(d.chunks(vocab));
                rows.map(|(&loss, d)| [&[loss], d].concat()).collect()
            });
        }
    }

    #[test]
    fn the_gradient_equals_finite_differences() {
        let (logits, targets, weights) = (normal(2, 3 * 19, 2.0), [3, 18, 0], [1.0, 0.25, 3.0]);
        let loss = |x: &[f64]| {
            x.chunks(19).enumerate().fold(0.0, |loss, (t, x)| {
                let sum: f64 = x.iter().map(|x| x.exp()).sum();
                loss + f64::from(weights[t]) * (sum.ln() - x[targets[t] as usize])
            })
        };
        let wide: Vec<f64> = logits.iter().map(|&x| f64::from(x)).collect();
        let all: Vec<usize> = (0..wide.len()).collect();
        for compute in computes(1) {
            let (_, d) = run(&compute, &logits, &targets, &weights);
            let d: Vec<f64> = d.into_iter().map(f64::from).collect();
            assert_gradient(&d, loss, &wide, &all, Tolerance { absolute: 1e-6, relative: 1e-5 });
        }
    }
}
