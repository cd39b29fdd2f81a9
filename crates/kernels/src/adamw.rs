//! The AdamW update.

use crate::compute::{Compute, Family};
use crate::lanes::{LaneKernel, Lanes, dispatch};
use crate::pool::RowsOut;
use crate::reference;

/// Values of one task.
const CHUNK: usize = 4096;

/// The numbers of one AdamW step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub learning_rate: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay, multiplied by the learning rate.
    pub weight_decay: f32,
    /// Factor of the gradient (clipping).
    pub grad_scale: f32,
    /// `1 - beta1^step`, step counted from 1.
    pub bias_correction1: f32,
    /// `1 - beta2^step`.
    pub bias_correction2: f32,
}

/// One AdamW step: with `g = grad_scale * grad`, `m = beta1 m + (1 - beta1) g`, `v = beta2 v + (1 - beta2) g^2`,
/// `w = w (1 - learning_rate weight_decay) - learning_rate / bias_correction1 * m /
/// (sqrt(v) / sqrt(bias_correction2) + eps)`.
///
/// Shapes: all of one length. Numerics: f32; a value that is not finite reaches its own parameter only. A gradient that is not
/// leaves NaN in the weight; one whose square overflows leaves an infinite `v`, after which the weight only decays. Source:
/// arXiv 1711.05101, algorithm 2, in the order of PyTorch's `AdamW`.
///
/// # Panics
/// When the lengths differ.
pub fn adamw_step(
    compute: &Compute,
    step: AdamW,
    weight: &mut [f32],
    grad: &[f32],
    m: &mut [f32],
    v: &mut [f32],
) {
    assert_eq!(weight.len(), grad.len(), "weight and grad have one shape");
    let family = compute.family();
    let outputs = (RowsOut::new(weight, 1), RowsOut::new(m, 1), RowsOut::new(v, 1));
    compute.pool().run_rows(grad.len(), CHUNK, outputs, |start, n, (weight, m, v)| {
        let grad = &grad[start..start + n];
        if family == Family::Reference {
            reference::adamw_step(step, weight, grad, m, v);
        } else {
            dispatch(family, Update { step, weight, grad, m, v });
        }
    });
}

struct Update<'a> {
    step: AdamW,
    weight: &'a mut [f32],
    grad: &'a [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
}

impl LaneKernel for Update<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let step = self.step;
        let keep = lanes.splat(1.0 - step.learning_rate * step.weight_decay);
        let rate = lanes.splat(-step.learning_rate / step.bias_correction1);
        let root = lanes.splat(1.0 / step.bias_correction2.sqrt());
        for i in (0..self.grad.len()).step_by(L::N) {
            let g = lanes.mul(lanes.load(&self.grad[i..]), lanes.splat(step.grad_scale));
            let m = lanes.mul(lanes.load(&self.m[i..]), lanes.splat(step.beta1));
            let m = lanes.mul_add(g, lanes.splat(1.0 - step.beta1), m);
            let v = lanes.mul(lanes.load(&self.v[i..]), lanes.splat(step.beta2));
            let v = lanes.mul_add(lanes.mul(g, g), lanes.splat(1.0 - step.beta2), v);
            let divisor = lanes.mul_add(lanes.sqrt(v), root, lanes.splat(step.eps));
            let kept = lanes.mul(lanes.load(&self.weight[i..]), keep);
            let weight = lanes.mul_add(rate, lanes.div(m, divisor), kept);
            lanes.store(weight, &mut self.weight[i..]);
            lanes.store(m, &mut self.m[i..]);
            lanes.store(v, &mut self.v[i..]);
        }
    }
}

#[cfg(test)]
mod tests {
    use testkit::close::{Tolerance, assert_close};

    use super::*;
    use crate::test_support::{
        LARGE, check_special_values, check_threads, fast_computes, normal, reference,
    };

    const STEP: AdamW = AdamW {
        learning_rate: 0.01,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        grad_scale: 0.5,
        bias_correction1: 0.19,
        bias_correction2: 0.0975,
    };

    fn run(compute: &Compute, [weight, grad, m, v]: &[Vec<f32>; 4]) -> Vec<f32> {
        let (mut weight, mut m, mut v) = (weight.clone(), m.clone(), v.clone());
        adamw_step(compute, STEP, &mut weight, grad, &mut m, &mut v);
        [weight, m, v].concat()
    }

    fn inputs(n: usize) -> [Vec<f32>; 4] {
        let [weight, grad, m, v] = [1, 2, 3, 4].map(|seed| normal(seed, n, 1.0));
        [weight, grad, m, v.into_iter().map(f32::abs).collect()]
    }

    #[test]
    fn special_values_stay_in_their_parameters() {
        let n = 45;
        let tolerance = Tolerance { absolute: 1e-6, relative: 1e-5 };
        let reaches = |_, place, output: usize| output % n == place;
        check_special_values(inputs(n), LARGE, tolerance, run, reaches);
    }

    #[test]
    fn updates_do_not_depend_on_threads() {
        let inputs = inputs(2 * CHUNK + 77);
        check_threads(|compute| run(compute, &inputs));
    }

    #[test]
    fn fast_updates_equal_the_definition_over_several_steps() {
        let n = 5003;
        let run = |compute: &Compute| {
            let (mut w, mut m, mut v) = (normal(1, n, 1.0), vec![0.0; n], vec![0.0; n]);
            for i in 1..=5 {
                let step = AdamW {
                    learning_rate: 0.01,
                    beta1: 0.9,
                    beta2: 0.95,
                    eps: 1e-8,
                    weight_decay: 0.1,
                    grad_scale: 0.5,
                    bias_correction1: 1.0 - 0.9_f32.powi(i),
                    bias_correction2: 1.0 - 0.95_f32.powi(i),
                };
                adamw_step(compute, step, &mut w, &normal(10 + i as u64, n, 1.0), &mut m, &mut v);
            }
            w
        };
        let expected = run(&reference());
        for compute in fast_computes(2) {
            assert_close(&run(&compute), &expected, Tolerance { absolute: 1e-6, relative: 1e-5 });
        }
    }

    #[test]
    fn the_first_step_moves_each_weight_by_the_learning_rate() {
        for compute in fast_computes(1) {
            let (mut w, mut m, mut v) = ([1.0; 3], [0.0; 3], [0.0; 3]);
            let step = AdamW {
                learning_rate: 0.1,
                beta1: 0.9,
                beta2: 0.999,
                eps: 0.0,
                weight_decay: 0.0,
                grad_scale: 1.0,
                bias_correction1: 0.1,
                bias_correction2: 0.001,
            };
            adamw_step(&compute, step, &mut w, &[5.0, -0.01, 300.0], &mut m, &mut v);
            assert_close(&w, &[0.9, 1.1, 0.9], Tolerance { absolute: 1e-5, relative: 0.0 });
        }
    }
}
