//! Products of few rows.

use kernels::matmul::Write;

use super::{Case, Deviation, Numbers, Size, rounded};
use crate::gpu::Gpu;
use crate::memory::{DeviceMatrix, NumberType};
use crate::ops::few_rows::{max_few_rows, product_few_rows};

pub(super) const CASES: &[Case] = &[
    Case { name: "product_few_rows", run: products },
    Case { name: "product_few_rows_row_alone", run: rows_alone },
];

/// Of x and w, and of y.
const TYPES: [[NumberType; 2]; 3] = [
    [NumberType::F32, NumberType::F32],
    [NumberType::Bf16, NumberType::Bf16],
    [NumberType::Bf16, NumberType::F32],
];

/// Rows, outputs, inputs.
fn shapes(size: Size) -> Vec<[usize; 3]> {
    let mut shapes = vec![
        [1, 1, 8],
        [1, 37, 128],
        [2, 16, 132],
        [3, 20, 1000],
        [5, 33, 13],
        [8, 16, 2312],
        [9, 48, 136],
        [16, 31, 1288],
        // Even and odd numbers of turns.
        [3, 2000, 40],
        [7, 200, 1032],
        [2, 330, 2100],
        [11, 2000, 40],
    ];
    if size == Size::Large {
        shapes.extend([[1, 4096, 4096], [4, 6144, 4096], [8, 4096, 14336], [16, 4096, 4096]]);
    }
    shapes
}

fn products(gpu: &Gpu, size: Size) -> Deviation {
    let mut numbers = Numbers::new(3);
    let mut worst = Deviation::NONE;
    for [n_rows, n_out, n_in] in shapes(size) {
        let (x, w) = (numbers.normal(n_rows * n_in), numbers.normal(n_out * n_in));
        let first_column = 3;
        let width = first_column + n_out + 2;
        let before = rounded(&numbers.normal(n_rows * width));
        let takes = |types: &[NumberType; 2]| n_rows <= max_few_rows(types[0]);
        for [operands, output] in TYPES.into_iter().filter(takes) {
            let x = DeviceMatrix::of_f32(gpu, operands, &x, n_in);
            let w = DeviceMatrix::of_f32(gpu, operands, &w, n_in);
            let limit = if output == NumberType::F32 { 5e-6 } else { 4e-3 };
            for write in [Write::Overwrite, Write::Accumulate] {
                let mut y = match write {
                    Write::Overwrite => DeviceMatrix::poisoned(gpu, output, n_rows, width),
                    Write::Accumulate => DeviceMatrix::of_f32(gpu, output, &before, width),
                };
                let mut expected = y.to_f32();
                product_few_rows(gpu, x.view(), w.view(), y.view_mut(), first_column, write);
                add(&x, &w, &mut expected, width, first_column, write);
                worst = worst.worst(Deviation::between(&y.to_f32(), &expected, limit));
            }
        }
    }
    worst
}

/// In f64.
fn add(
    x: &DeviceMatrix,
    w: &DeviceMatrix,
    y: &mut [f32],
    width: usize,
    first_column: usize,
    write: Write,
) {
    let n_in = x.view().width();
    let (x, w) = (x.to_f32(), w.to_f32());
    for (x, y) in x.chunks_exact(n_in).zip(y.chunks_exact_mut(width)) {
        for (w, y) in w.chunks_exact(n_in).zip(&mut y[first_column..]) {
            let products = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
            let before = if write == Write::Accumulate { f64::from(*y) } else { 0.0 };
            *y = (before + products.sum::<f64>()) as f32;
        }
    }
}

/// A row among others has the bits that it has alone.
fn rows_alone(gpu: &Gpu, size: Size) -> Deviation {
    let mut numbers = Numbers::new(4);
    let shapes: &[[usize; 2]] = match size {
        Size::Small => &[[37, 1160], [2000, 48], [9, 21]],
        Size::Large => &[[37, 1160], [2000, 48], [9, 21], [14336, 4096]],
    };
    let mut worst = Deviation::NONE;
    for &[n_out, n_in] in shapes {
        let w = numbers.normal(n_out * n_in);
        for [operands, output] in TYPES {
            let max_rows = max_few_rows(operands);
            let x = numbers.normal(max_rows * n_in);
            let w = DeviceMatrix::of_f32(gpu, operands, &w, n_in);
            let product = |x: &[f32]| {
                let x = DeviceMatrix::of_f32(gpu, operands, x, n_in);
                let mut y = DeviceMatrix::poisoned(gpu, output, x.view().n_rows(), n_out);
                product_few_rows(gpu, x.view(), w.view(), y.view_mut(), 0, Write::Overwrite);
                y.to_f32()
            };
            let all = product(&x);
            for rows in [0..1, 5..7, 2..6, 1..8, 4..13] {
                let rows = rows.start..rows.end.min(max_rows);
                let some = product(&x[rows.start * n_in..rows.end * n_in]);
                let expected = &all[rows.start * n_out..rows.end * n_out];
                worst = worst.worst(Deviation::equal(&some, expected));
            }
        }
    }
    worst
}
