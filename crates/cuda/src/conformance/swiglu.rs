//! The gated activation of the feed-forward part.

use half::bf16;
use kernels::Operand;
use kernels::swiglu::{swiglu, swiglu_backward};

use super::elementwise::{TYPES, reference, worst};
use super::{Case, Deviation, Numbers, Size, narrowed, rounded};
use crate::gpu::Gpu;
use crate::memory::{DeviceMatrix, NumberType};
use crate::ops::swiglu as ops;

pub(super) const CASES: &[Case] =
    &[Case { name: "swiglu", run: forward }, Case { name: "swiglu_backward", run: backward }];

/// Tokens, ffn.
fn shapes(size: Size) -> &'static [[usize; 2]] {
    match size {
        Size::Small => &[[1, 1], [3, 6], [17, 30], [5, 96], [2, 1026], [1, 4096], [300, 8]],
        Size::Large => &[[1, 1], [3, 6], [17, 30], [300, 96], [300, 1026], [1, 8192], [2048, 2048]],
    }
}

fn limit(number_type: NumberType) -> f64 {
    match number_type {
        // An exponential and a reciprocal of a few units in the last place, the exponent rounded before.
        NumberType::F32 => 1e-6,
        // Of numbers that differ by that, one in some hundred is rounded to the other neighbour, 2^-8 away.
        NumberType::Bf16 => 5e-4,
    }
}

/// Gates of ordinary size, and gates that saturate or are not finite.
fn gates_and_ups(numbers: &mut Numbers, [n_rows, ffn]: [usize; 2], special: bool) -> Vec<f32> {
    let mut x = rounded(&numbers.normal(n_rows * 2 * ffn));
    let specials = [-100.0, 100.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -1e30, 20.0, -20.0];
    if special {
        for (row, x) in x.chunks_exact_mut(2 * ffn).enumerate() {
            for i in 0..ffn {
                x[i] = specials[(row + i) % specials.len()];
            }
        }
    }
    x.iter_mut().for_each(|x| *x *= 2.0);
    x
}

fn expected_forward<T: Operand>(gate_up: &[f32], ffn: usize) -> Vec<f32> {
    let gate_up: Vec<T> = narrowed(gate_up);
    let mut out = vec![T::from_f32(7.0); gate_up.len() / 2];
    swiglu(&reference(), &gate_up, ffn, &mut out);
    out.iter().map(|x| x.to_f32()).collect()
}

fn expected_backward<T: Operand>(gate_up: &[f32], ffn: usize, d_out: &[f32]) -> Vec<f32> {
    let (gate_up, d_out): (Vec<T>, Vec<T>) = (narrowed(gate_up), narrowed(d_out));
    let mut d_gate_up = vec![T::from_f32(7.0); gate_up.len()];
    let mut out = vec![T::from_f32(7.0); gate_up.len() / 2];
    swiglu_backward(&reference(), &gate_up, ffn, &d_out, &mut d_gate_up, &mut out);
    d_gate_up.iter().map(|x| x.to_f32()).collect()
}

/// Each shape in each type, with ordinary numbers and with others.
fn all(size: Size) -> impl Iterator<Item = ([usize; 2], NumberType, bool)> {
    let each = |&shape: &[usize; 2]| {
        TYPES
            .into_iter()
            .flat_map(move |operands| [false, true].map(|special| (shape, operands, special)))
    };
    shapes(size).iter().flat_map(each)
}

fn forward(gpu: &Gpu, size: Size) -> Deviation {
    let mut numbers = Numbers::new(31);
    worst(all(size).map(|([n_rows, ffn], operands, special)| {
        let gate_up = gates_and_ups(&mut numbers, [n_rows, ffn], special);
        let there = DeviceMatrix::of_f32(gpu, operands, &gate_up, 2 * ffn);
        let mut out = DeviceMatrix::poisoned(gpu, operands, n_rows, ffn);
        ops::swiglu(gpu, there.view(), out.view_mut());
        let expected = match operands {
            NumberType::F32 => expected_forward::<f32>(&gate_up, ffn),
            NumberType::Bf16 => expected_forward::<bf16>(&gate_up, ffn),
        };
        Deviation::between(&out.to_f32(), &expected, limit(operands))
    }))
}

fn backward(gpu: &Gpu, size: Size) -> Deviation {
    let mut numbers = Numbers::new(32);
    worst(all(size).map(|([n_rows, ffn], operands, special)| {
        let gate_up = gates_and_ups(&mut numbers, [n_rows, ffn], special);
        let d_out = rounded(&numbers.normal(n_rows * ffn));
        let there = DeviceMatrix::of_f32(gpu, operands, &gate_up, 2 * ffn);
        let d_out_there = DeviceMatrix::of_f32(gpu, operands, &d_out, ffn);
        let mut d_gate_up = DeviceMatrix::poisoned(gpu, operands, n_rows, 2 * ffn);
        ops::swiglu_backward(gpu, there.view(), d_out_there.view(), d_gate_up.view_mut());
        let expected = match operands {
            NumberType::F32 => expected_backward::<f32>(&gate_up, ffn, &d_out),
            NumberType::Bf16 => expected_backward::<bf16>(&gate_up, ffn, &d_out),
        };
        Deviation::between(&d_gate_up.to_f32(), &expected, limit(operands))
    }))
}
