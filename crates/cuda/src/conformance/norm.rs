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
        [37, 1536],
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
    norm::rms_norm(&reference(), x, weight, EPS, &mut out, &mut inverse_rms, None);
    (out.iter().map(|x| x.to_f32()).collect(), inverse_rms)
}

fn forward(gpu: &Gpu, size: Size) -> Deviation {
    let mut numbers = Numbers::new(11);
    let all = shapes(size).into_iter().flat_map(|shape| TYPES.map(|operands| (shape, operands)));
    worst(all.map(|([n_rows, width], operands)| {
        let mut x = numbers.normal(n_rows * width);
        let weight = some_zero(numbers.normal(width));
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
            let mut scales = DeviceMatrix::poisoned(gpu, NumberType::F32, rows.len(), 1);
            let (x, weight) = (x_there.rows(rows, width), weight_there.view());
            ops::rms_norm(gpu, x, weight, EPS, out.view_mut(), scales.view_mut());
            [out.to_f32(), scales.to_f32()]
        };
        let [out, scales] = run(0..n_rows);
        let (expected, expected_scales) = match operands {
            NumberType::F32 => expected_forward::<f32>(&x, &weight),
            NumberType::Bf16 => expected_forward::<bf16>(&x, &weight),
        };
        let [alone, ..] = run(n_rows - 1..n_rows);
        worst([
            Deviation::between(&out, &expected, limit(operands)),
            Deviation::between(&scales, &expected_scales, SUM_ORDER),
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

fn expected_backward(inputs: &Inputs, d_x: &mut [f32], d_weight: &mut [f32]) {
    let Inputs { x, weight, inverse_rms, d_out } = inputs;
    let (rounded, d_weight) = (&mut vec![0.0; x.len()], Some(d_weight));
    norm::rms_norm_backward(&reference(), x, weight, inverse_rms, d_out, d_x, rounded, d_weight);
}

/// Every seventh weight is 0.
fn some_zero(mut weight: Vec<f32>) -> Vec<f32> {
    weight.iter_mut().skip(3).step_by(7).for_each(|weight| *weight = 0.0);
    weight
}

/// The input of which `out` is the rounded output, in a row of this inverse root mean square.
fn input_of(out: f32, weight: f32, inverse_rms: f32) -> f32 {
    let weight = if weight == 0.0 { 2.0_f32.powi(-100) } else { weight };
    (f64::from(out) / f64::from(weight) / f64::from(inverse_rms)) as f32
}

fn backward(gpu: &Gpu, size: Size) -> Deviation {
    let mut numbers = Numbers::new(12);
    let all = shapes(size).into_iter().flat_map(|shape| TYPES.map(|operands| (shape, operands)));
    worst(all.map(|([n_rows, width], operands)| {
        let [x, d_out] = [(); 2].map(|()| rounded(&numbers.normal(n_rows * width)));
        let weight = some_zero(numbers.normal(width));
        let f32_there =
            |values: &[f32], width| DeviceMatrix::of_f32(gpu, NumberType::F32, values, width);
        let mut out_there = DeviceMatrix::poisoned(gpu, operands, n_rows, width);
        let mut scales = DeviceMatrix::poisoned(gpu, NumberType::F32, n_rows, 1);
        let (x_there, weight_there) = (f32_there(&x, width), f32_there(&weight, width));
        let (out, inverse_rms) = (out_there.view_mut(), scales.view_mut());
        ops::rms_norm(gpu, x_there.view(), weight_there.view(), EPS, out, inverse_rms);
        let (out, inverse_rms) = (out_there.to_f32(), scales.to_f32());
        // What the rounded output tells of the input: so the definition's gradient is that of the same numbers.
        let x = (0..n_rows * width)
            .map(|i| input_of(out[i], weight[i % width], inverse_rms[i / width]))
            .collect();
        let inputs = Inputs { x, weight, inverse_rms, d_out };
        let (mut d_x, mut d_weight) = (numbers.normal(n_rows * width), numbers.normal(width));
        let (mut d_x_there, mut d_weight_there) =
            (f32_there(&d_x, width), f32_there(&d_weight, width));
        let mut rounded_there = DeviceMatrix::poisoned(gpu, operands, n_rows, width);
        ops::rms_norm_backward(
            gpu,
            out_there.view(),
            weight_there.view(),
            scales.view(),
            DeviceMatrix::of_f32(gpu, operands, &inputs.d_out, width).view(),
            ops::NormGradients {
                d_x: d_x_there.view_mut(),
                rounded: Some(rounded_there.view_mut()),
                d_weight: Some(d_weight_there.view_mut()),
            },
        );
        expected_backward(&inputs, &mut d_x, &mut d_weight);
        let got = d_x_there.to_f32();
        let got_rounded = if operands == NumberType::F32 { got.clone() } else { rounded(&got) };
        worst([
            Deviation::between(&got, &d_x, SUM_ORDER),
            Deviation::between(&rounded_there.to_f32(), &got_rounded, 0.0),
            Deviation::between(&d_weight_there.to_f32(), &d_weight, SUM_ORDER),
        ])
    }))
}
