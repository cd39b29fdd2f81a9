//! Products by cuBLASLt, against sums in f64.

use kernels::matmul::Write;

use super::{Case, Deviation, Numbers, Size, rounded};
use crate::gpu::Gpu;
use crate::memory::{DeviceMatrix, NumberType};
use crate::ops;

pub(super) const CASES: &[Case] = &[
    Case { name: "product", run: forward },
    Case { name: "product_backward_input", run: backward_input },
    Case { name: "product_backward_weight", run: backward_weight },
];

/// Columns of a wider matrix before those of the product.
const FIRST: usize = 2;

/// Tokens, outputs, inputs.
fn shapes(size: Size) -> &'static [[usize; 3]] {
    match size {
        Size::Small => &[[1, 2, 2], [3, 6, 10], [17, 32, 24]],
        Size::Large => &[[1, 2, 2], [3, 6, 10], [17, 32, 24], [300, 1000, 768], [64, 4096, 512]],
    }
}

/// What a product may differ by: of f32 by its rounding errors, of bf16 by that of the result, 2^-8.
fn limit(out: NumberType) -> f64 {
    match out {
        NumberType::F32 => 1e-5,
        NumberType::Bf16 => 4e-3,
    }
}

/// `[rows, columns] += a[rows, k] b[columns, k]`, strides of rows and of k given for both.
fn sums(
    [_, columns, k]: [usize; 3],
    a: (&[f32], [usize; 2]),
    b: (&[f32], [usize; 2]),
    out: &mut [f32],
) {
    for (row, out) in out.chunks_exact_mut(columns).enumerate() {
        for (column, out) in out.iter_mut().enumerate() {
            let products = (0..k).map(|i| {
                let [a_row, a_k] = a.1;
                let [b_row, b_k] = b.1;
                f64::from(a.0[row * a_row + i * a_k]) * f64::from(b.0[column * b_row + i * b_k])
            });
            *out = (f64::from(*out) + products.sum::<f64>()) as f32;
        }
    }
}

/// Operand and output types of a model.
const TYPES: [[NumberType; 2]; 3] = [
    [NumberType::F32, NumberType::F32],
    [NumberType::Bf16, NumberType::F32],
    [NumberType::Bf16, NumberType::Bf16],
];

fn compared(
    gpu: &Gpu,
    size: Size,
    one: fn(&Gpu, [usize; 3], [NumberType; 2], &mut Numbers) -> Deviation,
) -> Deviation {
    let mut numbers = Numbers::new(7);
    let all = shapes(size).iter().flat_map(|&shape| TYPES.map(|types| (shape, types)));
    let deviations = all.map(|(shape, types)| one(gpu, shape, types, &mut numbers));
    deviations.reduce(Deviation::worst).expect("there are shapes")
}

fn forward(gpu: &Gpu, size: Size) -> Deviation {
    compared(gpu, size, |gpu, [tokens, n_out, n_in], [operands, output], numbers| {
        let (x, w) = (numbers.normal(tokens * n_in), numbers.normal(n_out * n_in));
        let first = FIRST;
        let before = rounded(&numbers.normal(tokens * (n_out + first)));
        let x_there = DeviceMatrix::of_f32(gpu, operands, &x, n_in);
        let w_there = DeviceMatrix::of_f32(gpu, operands, &w, n_in);
        let mut y = DeviceMatrix::of_f32(gpu, output, &before, n_out + first);
        ops::product(gpu, x_there.view(), w_there.view(), y.view_mut(), first, Write::Accumulate);
        let (x, w) = (x_there.to_f32(), w_there.to_f32());
        let mut product = vec![0.0; tokens * n_out];
        sums([tokens, n_out, n_in], (&x, [n_in, 1]), (&w, [n_in, 1]), &mut product);
        let mut expected = before;
        for (row, product) in
            expected.chunks_exact_mut(n_out + first).zip(product.chunks_exact(n_out))
        {
            row[first..].iter_mut().zip(product).for_each(|(y, product)| *y += product);
        }
        Deviation::between(&y.to_f32(), &expected, limit(output))
    })
}

fn backward_input(gpu: &Gpu, size: Size) -> Deviation {
    compared(gpu, size, |gpu, [tokens, n_out, n_in], [operands, output], numbers| {
        let width = FIRST + n_out;
        let (d_y, w) = (numbers.normal(tokens * width), numbers.normal(n_out * n_in));
        let d_y = DeviceMatrix::of_f32(gpu, operands, &d_y, width);
        let w = DeviceMatrix::of_f32(gpu, operands, &w, n_in);
        let mut d_x = DeviceMatrix::poisoned(gpu, output, tokens, n_in);
        let mut product = |first, write| {
            ops::product_backward_input(gpu, d_y.view(), first, w.view(), d_x.view_mut(), write);
            d_x.to_f32()
        };
        let once = product(FIRST, Write::Overwrite);
        let (d_y, w) = (d_y.to_f32(), w.to_f32());
        let mut expected = vec![0.0; tokens * n_in];
        let dims = [tokens, n_in, n_out];
        sums(dims, (&d_y[FIRST..], [width, 1]), (&w, [1, n_in]), &mut expected);
        let deviation = Deviation::between(&once, &expected, limit(output));
        let both = product(0, Write::Accumulate);
        let mut expected = once;
        sums(dims, (&d_y, [width, 1]), (&w, [1, n_in]), &mut expected);
        deviation.worst(Deviation::between(&both, &expected, limit(output)))
    })
}

fn backward_weight(gpu: &Gpu, size: Size) -> Deviation {
    compared(gpu, size, |gpu, [tokens, n_out, n_in], [operands, _], numbers| {
        let width = FIRST + n_out;
        let (d_y, x) = (numbers.normal(tokens * width), numbers.normal(tokens * n_in));
        let mut expected = numbers.normal(n_out * n_in);
        let d_y = DeviceMatrix::of_f32(gpu, operands, &d_y, width);
        let x = DeviceMatrix::of_f32(gpu, operands, &x, n_in);
        let mut d_w = DeviceMatrix::of_f32(gpu, NumberType::F32, &expected, n_in);
        ops::product_backward_weight(gpu, d_y.view(), FIRST, x.view(), d_w.view_mut());
        let (d_y, x) = (d_y.to_f32(), x.to_f32());
        let d_y = (&d_y[FIRST..], [1, width]);
        sums([n_out, n_in, tokens], d_y, (&x, [1, n_in]), &mut expected);
        Deviation::between(&d_w.to_f32(), &expected, limit(NumberType::F32))
    })
}
