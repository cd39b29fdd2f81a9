//! Root-mean-square norm and its gradient.

use half::bf16;
use kernels::Operand;
use kernels::norm;

use super::elementwise::{TYPES, reference, worst};
use super::{Case, Deviation, Numbers, Size, rounded};
use crate::gpu::Gpu;
use crate::memory::{DeviceMatrix, NumberType};
use crate::ops::norm as ops;

pub(super) const CASES: &[Case] =
    &[Case { name: "rms_norm", run: forward }, Case { name: "rms_norm_backward", run: backward }];

const EPS: f32 = 1e-5;

/// f32 sums of up to 9000 numbers: the definition adds one after the other, the GPU in a tree.
const SUM_ORDER: f64 = 5e-6;
/// Of numbers that differ by [`SUM_ORDER`], a few are rounded to the other neighbour, 2^-8 away: one in some hundred.
const ONE_ROUNDING: f64 = 5e-4;

fn limit(number_type: NumberType) -> f64 {
    match number_type {
        NumberType::F32 => SUM_ORDER,
        NumberType::Bf16 => ONE_ROUNDING,
    }
}

/// Tokens, hidden.
fn shapes(size: Size) -> Vec<[usize; 2]> {
    let mut shapes = vec![
        [1, 1],
        [3, 6],
        [17, 30],
        [300, 96],
        [9, 768],
        [5, 1026],
        [17, 2048],
        [3, 4096],
        [3, 9000],
    ];
    match size {
        Size::Small => shapes.push([2, 8192]),
        Size::Large => shapes.extend([[300, 8192], [9000, 768], [1025, 2048], [300, 4096]]),
    }
    shapes
}

fn expected_forward<T: Operand>(x: &[f32], weight: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let mut out = vec![T::from_f32(7.0); x.len()];
    let mut inverse_rms = vec![7.0; x.len() / weight.len()];
    norm::rms_norm(&reference(), x, weight, EPS, &mut out, &mut inverse_rms);
    (out.iter().map(|x| x.to_f32()).collect(), inverse_rms)
}

fn forward(gpu: &Gpu, size: Size) -> Deviation {
    let mut numbers = Numbers::new(11);
    let all = shapes(size).into_iter().flat_map(|shape| TYPES.map(|operands| (shape, operands)));
    worst(all.map(|([n_rows, width], operands)| {
        let mut x = numbers.normal(n_rows * width);
        let weight = numbers.normal(width);
        if n_rows > 2 {
            // A row of zeros, one whose squares overflow, one with a NaN.
            x[..width].fill(0.0);
            x[width..2 * width].iter_mut().for_each(|x| *x *= 1e25);
            x[2 * width] = f32::NAN;
        }
        let x_there = DeviceMatrix::of_f32(gpu, NumberType::F32, &x, width);
        let weight_there = DeviceMatrix::of_f32(gpu, NumberType::F32, &weight, width);
        let run = |rows: std::ops::Range<usize>| {
            let mut out = DeviceMatrix::poisoned(gpu, operands, rows.len(), width);
            let mut kept = DeviceMatrix::poisoned(gpu, operands, rows.len(), width);
            let mut scales = DeviceMatrix::poisoned(gpu, NumberType::F32, rows.len(), 1);
            let x = x_there.rows(rows, width);
            let weight = weight_there.view();
            let kept_there = Some(kept.view_mut());
            ops::rms_norm(gpu, x, weight, EPS, out.view_mut(), scales.view_mut(), kept_there);
            [out.to_f32(), scales.to_f32(), kept.to_f32()]
        };
        let [out, scales, kept] = run(0..n_rows);
        let (expected, expected_scales) = match operands {
            NumberType::F32 => expected_forward::<f32>(&x, &weight),
            NumberType::Bf16 => expected_forward::<bf16>(&x, &weight),
        };
        let expected_kept = if operands == NumberType::F32 { x.clone() } else { rounded(&x) };
        let [alone, ..] = run(n_rows - 1..n_rows);
        worst([
            Deviation::between(&out, &expected, limit(operands)),
            Deviation::between(&scales, &expected_scales, SUM_ORDER),
            Deviation::between(&kept, &expected_kept, 0.0),
            Deviation::between(&alone, &out[(n_rows - 1) * width..], 0.0),
        ])
    }))
}

/// What the gradient is computed of.
struct Inputs {
    x: Vec<f32>,
    weight: Vec<f32>,
    inverse_rms: Vec<f32>,
    d_out: Vec<f32>,
}

fn expected_backward<T: Operand>(inputs: &Inputs, d_x: &mut [f32], d_weight: &mut [f32]) {
    let Inputs { x, weight, inverse_rms, d_out } = inputs;
    let x: Vec<T> = x.iter().map(|&x| T::from_f32(x)).collect();
    norm::rms_norm_backward(&reference(), &x, weight, inverse_rms, d_out, d_x, Some(d_weight));
}

fn backward(gpu: &Gpu, size: Size) -> Deviation {
    let mut numbers = Numbers::new(12);
    let all = shapes(size).into_iter().flat_map(|shape| TYPES.map(|operands| (shape, operands)));
    worst(all.map(|([n_rows, width], operands)| {
        let [x, d_out] = [(); 2].map(|()| rounded(&numbers.normal(n_rows * width)));
        let weight = numbers.normal(width);
        let (_, inverse_rms) = expected_forward::<f32>(&x, &weight);
        let inputs = Inputs { x, weight, inverse_rms, d_out };
        let (mut d_x, mut d_weight) = (numbers.normal(n_rows * width), numbers.normal(width));
        let there = |number_type, values: &[f32], width| {
            DeviceMatrix::of_f32(gpu, number_type, values, width)
        };
        let mut d_x_there = there(NumberType::F32, &d_x, width);
        let mut d_weight_there = there(NumberType::F32, &d_weight, width);
        let mut rounded_there = DeviceMatrix::poisoned(gpu, operands, n_rows, width);
        ops::rms_norm_backward(
            gpu,
            there(operands, &inputs.x, width).view(),
            there(NumberType::F32, &inputs.weight, width).view(),
            there(NumberType::F32, &inputs.inverse_rms, 1).view(),
            there(operands, &inputs.d_out, width).view(),
            ops::NormGradients {
                d_x: d_x_there.view_mut(),
                rounded: Some(rounded_there.view_mut()),
                d_weight: Some(d_weight_there.view_mut()),
            },
        );
        match operands {
            NumberType::F32 => expected_backward::<f32>(&inputs, &mut d_x, &mut d_weight),
            NumberType::Bf16 => expected_backward::<bf16>(&inputs, &mut d_x, &mut d_weight),
        }
        let got = d_x_there.to_f32();
        let got_rounded = if operands == NumberType::F32 { got.clone() } else { rounded(&got) };
        worst([
            Deviation::between(&got, &d_x, SUM_ORDER),
            Deviation::between(&rounded_there.to_f32(), &got_rounded, 0.0),
            Deviation::between(&d_weight_there.to_f32(), &d_weight, SUM_ORDER),
        ])
    }))
}
