//! Softmax cross-entropy, and the likeliest token.

use half::bf16;
use kernels::Operand;
use kernels::cross_entropy::cross_entropy;
use kernels::likeliest::{Likeliest, likeliest_of};

use super::elementwise::{TYPES, reference, worst};
use super::{Case, Deviation, Numbers, Size, rounded};
use crate::gpu::Gpu;
use crate::memory::{DeviceMatrix, NumberType};
use crate::ops::loss as ops;
use crate::ops::row_numbers::RowNumbers;

pub(super) const CASES: &[Case] =
    &[Case { name: "cross_entropy", run: losses }, Case { name: "likeliest", run: most_likely }];

/// Tokens, vocabulary.
fn shapes(size: Size) -> Vec<[usize; 2]> {
    let mut shapes = vec![
        [1, 1],
        [3, 6],
        [17, 30],
        [17, 96],
        [9, 1026],
        [9, 4096],
        [9, 16385],
        [9, 16388],
        [9, 16392],
        [9, 32768],
        [3, 40000],
    ];
    if size == Size::Large {
        shapes.extend([[300, 1026], [300, 32768], [1, 32768], [300, 50257], [30, 151_936]]);
    }
    shapes
}

fn limit(number_type: NumberType) -> f64 {
    match number_type {
        // The definition adds up to 151936 exponentials one after the other.
        NumberType::F32 => 3e-5,
        // Of numbers that differ by that, one in some ten is rounded to the other neighbour, 2^-8 away.
        NumberType::Bf16 => 1e-3,
    }
}

fn loss_limit(logits: NumberType) -> f64 {
    match logits {
        NumberType::F32 => limit(NumberType::F32),
        // Many are equal: the definition's sums of them err to one side.
        NumberType::Bf16 => 1e-4,
    }
}

fn expected<T: Operand>(logits: &[f32], targets: &[u32], weights: &[f32]) -> [Vec<f32>; 2] {
    let mut losses = vec![7.0; targets.len()];
    let mut d_logits = vec![T::from_f32(7.0); logits.len()];
    cross_entropy(&reference(), logits, targets, weights, &mut losses, &mut d_logits);
    [losses, d_logits.iter().map(|x| x.to_f32()).collect()]
}

/// Logits, targets and weights; every eighth row has weight 0, and others something else that is special.
fn inputs(numbers: &mut Numbers, [n_rows, vocab]: [usize; 2]) -> (Vec<f32>, Vec<u32>, Vec<f32>) {
    let mut logits = numbers.normal(n_rows * vocab);
    logits.iter_mut().for_each(|logit| *logit *= 3.0);
    let mut targets = numbers.ids(n_rows, vocab as u32);
    let mut weights: Vec<f32> = numbers.normal(n_rows);
    for (row, logits) in logits.chunks_exact_mut(vocab).enumerate() {
        let target = targets[row] as usize;
        match row % 8 {
            1 => (weights[row], targets[row], logits[0]) = (0.0, u32::MAX, f32::NAN),
            2 => logits.iter_mut().for_each(|logit| *logit += 1000.0),
            3 => logits[vocab / 2] = f32::NAN,
            4 => logits[vocab - 1] = f32::INFINITY,
            5 => logits.fill(f32::NEG_INFINITY),
            6 => logits[target] = f32::NEG_INFINITY,
            7 => logits.iter_mut().for_each(|logit| *logit *= 1e30),
            _ => {}
        }
    }
    (logits, targets, weights)
}

fn losses(gpu: &Gpu, size: Size) -> Deviation {
    let mut numbers = Numbers::new(41);
    let all = shapes(size).into_iter().flat_map(|shape| TYPES.map(|operands| (shape, operands)));
    worst(all.map(|([n_rows, vocab], operands)| {
        let (logits, targets, weights) = inputs(&mut numbers, [n_rows, vocab]);
        let (logits, [expected_losses, expected_gradient]) = match operands {
            NumberType::F32 => (logits.clone(), expected::<f32>(&logits, &targets, &weights)),
            NumberType::Bf16 => {
                let logits = rounded(&logits);
                let both = expected::<bf16>(&logits, &targets, &weights);
                (logits, both)
            }
        };
        let run = |rows: std::ops::Range<usize>, with_gradient: bool| {
            let targets = RowNumbers::new(gpu, &targets[rows.clone()]);
            let weights = DeviceMatrix::of_f32(gpu, NumberType::F32, &weights[rows.clone()], 1);
            let logits = &logits[rows.start * vocab..rows.end * vocab];
            let mut there = DeviceMatrix::of_f32(gpu, operands, logits, vocab);
            let mut losses = DeviceMatrix::poisoned(gpu, NumberType::F32, rows.len(), 1);
            let (targets, weights) = (&targets, weights.view());
            let rows = ops::LossRows { targets, weights, losses: losses.view_mut() };
            match with_gradient {
                true => ops::cross_entropy_in_place(gpu, there.view_mut(), rows),
                false => ops::cross_entropy(gpu, there.view(), rows),
            }
            [losses.to_f32(), there.to_f32()]
        };
        let [losses, gradient] = run(0..n_rows, true);
        let [losses_only, logits_after] = run(0..n_rows, false);
        let [loss_alone, gradient_alone] = run(n_rows - 1..n_rows, true);
        // A loss of an ordinary row would hide behind that of logits of 1e30.
        let each = losses.iter().zip(&expected_losses).map(|(&loss, &expected)| {
            Deviation::between(&[loss], &[expected], loss_limit(operands))
        });
        worst(each.chain([
            Deviation::between(&gradient, &expected_gradient, limit(operands)),
            Deviation::between(&losses_only, &losses, 0.0),
            Deviation::between(&logits_after, &logits, 0.0),
            Deviation::between(&loss_alone, &losses[n_rows - 1..], 0.0),
            Deviation::between(&gradient_alone, &gradient[(n_rows - 1) * vocab..], 0.0),
        ]))
    }))
}

fn most_likely(gpu: &Gpu, size: Size) -> Deviation {
    let mut numbers = Numbers::new(42);
    worst(shapes(size).into_iter().map(|[n_rows, vocab]| {
        let (mut logits, ..) = inputs(&mut numbers, [n_rows, vocab]);
        // Equal ones, of which the first counts; in the second row they are at both ends.
        for row in [0, 1] {
            if row < n_rows {
                let second = if row == 0 { vocab / 2 } else { vocab - 1 };
                let first = if row == 0 { vocab / 3 } else { 0 };
                logits[row * vocab + first] = 50.0;
                logits[row * vocab + second] = 50.0;
            }
        }
        let there = DeviceMatrix::of_f32(gpu, NumberType::F32, &logits, vocab);
        let got = ops::likeliest(gpu, there.view());
        let alone = ops::likeliest(gpu, there.rows(n_rows - 1..n_rows, vocab));
        let expected: Vec<_> = logits.chunks_exact(vocab).map(likeliest_of).collect();
        let ids = |found: &[Option<Likeliest>]| -> Vec<f32> {
            found.iter().map(|found| found.map_or(-1.0, |found| found.token_id as f32)).collect()
        };
        let logprobs = |found: &[Option<Likeliest>]| -> Vec<f32> {
            found.iter().map(|found| found.map_or(1.0, |found| found.logprob)).collect()
        };
        // One of 0 would be lost beside others.
        let (got_logprobs, expected_logprobs) = (logprobs(&got), logprobs(&expected));
        let each = got_logprobs
            .iter()
            .zip(&expected_logprobs)
            .map(|(got, expected)| Deviation::between(&[got - 1.0], &[expected - 1.0], 1e-6));
        worst(each.chain([
            Deviation::equal(&ids(&got), &ids(&expected)),
            Deviation::equal(&logprobs(&alone), &got_logprobs[n_rows - 1..]),
        ]))
    }))
}
