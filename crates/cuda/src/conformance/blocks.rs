//! Quantised weights.

use half::f16;
use kernels::blocks::BlockKind;
use kernels::matmul::Write;

use super::{Case, Deviation, Numbers, Size, rounded};
use crate::gpu::Gpu;
use crate::memory::{DeviceMatrix, NumberType};
use crate::ops::blocks::{
    DeviceBlocks, MAX_FEW_ROWS_OF_BLOCKS, product_few_rows_of_blocks, unpack_blocks,
};

pub(super) const CASES: &[Case] = &[
    Case { name: "unpack_blocks", run: unpacked },
    Case { name: "unpack_f8", run: unpacked_f8 },
    Case { name: "product_few_rows_of_blocks", run: products },
    Case { name: "product_few_rows_of_blocks_alone", run: rows_alone },
];

/// Where a block has factors of half precision.
fn factors(kind: BlockKind) -> &'static [usize] {
    match kind {
        BlockKind::F32 | BlockKind::Bf16 => &[],
        BlockKind::F16
        | BlockKind::Q4_0
        | BlockKind::Q5_0
        | BlockKind::Q8_0
        | BlockKind::IQ4_NL
        | BlockKind::IQ4_XS => &[0],
        BlockKind::Q4_1 | BlockKind::Q5_1 | BlockKind::Q4_K | BlockKind::Q5_K => &[0, 2],
        BlockKind::Q2_K => &[80, 82],
        BlockKind::Q3_K => &[108],
        BlockKind::Q6_K => &[208],
    }
}

/// Blocks of any codes, whose factors are finite.
fn random_blocks(numbers: &mut Numbers, kind: BlockKind, n_values: usize) -> Vec<u8> {
    let block_bytes = kind.block_bytes();
    if kind == BlockKind::F32 {
        return numbers.normal(n_values).into_iter().flat_map(f32::to_le_bytes).collect();
    }
    if kind == BlockKind::Bf16 {
        let values = numbers.normal(n_values).into_iter();
        return values.flat_map(|x| half::bf16::from_f32(x).to_le_bytes()).collect();
    }
    let bytes = numbers.ids(kind.bytes_of(n_values), 256);
    let mut bytes: Vec<u8> = bytes.into_iter().map(|byte| byte as u8).collect();
    let blocks = bytes.chunks_exact_mut(block_bytes);
    let factors_of_all = numbers.normal(2 * blocks.len());
    for (block, of_block) in blocks.zip(factors_of_all.chunks_exact(2)) {
        for (&at, factor) in factors(kind).iter().zip(of_block) {
            block[at..at + 2].copy_from_slice(&f16::from_f32(factor / 64.0).to_le_bytes());
        }
    }
    bytes
}

fn decoded(kind: BlockKind, bytes: &[u8]) -> Vec<f32> {
    let mut numbers = vec![0.0; bytes.len() / kind.block_bytes() * kind.block_len()];
    kind.decode(bytes, &mut numbers);
    numbers
}

fn unpacked(gpu: &Gpu, size: Size) -> Deviation {
    let mut numbers = Numbers::new(21);
    let n_rows = if size == Size::Small { 5 } else { 3000 };
    let mut worst = Deviation::NONE;
    for kind in BlockKind::ALL {
        let k = 3 * kind.block_len();
        let mut bytes = random_blocks(&mut numbers, kind, n_rows * k);
        // Factors that are subnormal, or the largest.
        for (block, factor) in
            bytes.chunks_exact_mut(kind.block_bytes()).skip(4).zip([0x0001_u16, 0x83ff, 0x7bff])
        {
            for &at in factors(kind) {
                block[at..at + 2].copy_from_slice(&factor.to_le_bytes());
            }
        }
        let expected = decoded(kind, &bytes);
        let blocks = DeviceBlocks::new(gpu, kind, &bytes, [n_rows, k]);
        for number_type in [NumberType::F32, NumberType::Bf16] {
            let mut out = DeviceMatrix::poisoned(gpu, number_type, n_rows - 1, k);
            unpack_blocks(gpu, &blocks, 1..n_rows, out.view_mut());
            let expected = match number_type {
                NumberType::F32 => expected[k..].to_vec(),
                NumberType::Bf16 => rounded(&expected[k..]),
            };
            worst = worst.worst(Deviation::equal(&out.to_f32(), &expected));
        }
    }
    worst
}

/// All 8-bit floats, in rows of whole eights and others.
fn unpacked_f8(gpu: &Gpu, _size: Size) -> Deviation {
    let mut worst = Deviation::NONE;
    for (k, scale) in [(64, 0.5), (64, 3e-5), (37, 0.037)] {
        let bytes: Vec<u8> = (0..9 * k).map(|i| (i * 7) as u8).collect();
        let blocks = DeviceBlocks::of_f8(gpu, scale, &bytes, [9, k]);
        let expected: Vec<f32> = bytes[k..].iter().map(|byte| f8_e4m3(*byte) * scale).collect();
        for number_type in [NumberType::F32, NumberType::Bf16] {
            let mut out = DeviceMatrix::poisoned(gpu, number_type, 8, k);
            unpack_blocks(gpu, &blocks, 1..9, out.view_mut());
            let expected = match number_type {
                NumberType::F32 => expected.clone(),
                NumberType::Bf16 => rounded(&expected),
            };
            worst = worst.worst(Deviation::between(&out.to_f32(), &expected, 0.0));
        }
    }
    worst
}

/// Source: arXiv 2209.05433, table 1.
fn f8_e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7) / 8.0);
    let magnitude = match (exponent, byte & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa * 2.0_f32.powi(-6),
        _ => (1.0 + mantissa) * 2.0_f32.powi(exponent - 7),
    };
    if byte & 0x80 == 0 { magnitude } else { -magnitude }
}

/// What few rows are multiplied with: kinds of blocks, and 8-bit floats.
const MULTIPLIED: [Option<BlockKind>; 4] =
    [Some(BlockKind::Q4_K), Some(BlockKind::Q6_K), Some(BlockKind::Q8_0), None];

/// A matrix of some kind and its numbers; inputs are counted in blocks, 8-bit floats in sixteens.
fn random_weight(
    gpu: &Gpu,
    numbers: &mut Numbers,
    kind: Option<BlockKind>,
    [n_out, n_blocks]: [usize; 2],
) -> (DeviceBlocks, Vec<f32>) {
    let Some(kind) = kind else {
        let (shape, scale) = ([n_out, 16 * n_blocks], 0.013);
        // All but the two NaN.
        let bytes = numbers.ids(n_out * 16 * n_blocks, 254).into_iter();
        let bytes: Vec<u8> = bytes.map(|id| id as u8 + u8::from(id >= 127)).collect();
        let values = bytes.iter().map(|byte| f8_e4m3(*byte) * scale).collect();
        return (DeviceBlocks::of_f8(gpu, scale, &bytes, shape), values);
    };
    let shape = [n_out, n_blocks * kind.block_len()];
    let bytes = random_blocks(numbers, kind, shape[0] * shape[1]);
    (DeviceBlocks::new(gpu, kind, &bytes, shape), decoded(kind, &bytes))
}

/// Rows, outputs, inputs in blocks.
fn shapes(size: Size) -> Vec<[usize; 3]> {
    let mut shapes = vec![[1, 1, 1], [2, 16, 9], [3, 37, 8], [8, 19, 27]];
    if size == Size::Large {
        shapes.extend([[1, 4096, 16], [4, 4096, 56], [8, 14336, 16]]);
    }
    shapes
}

fn products(gpu: &Gpu, size: Size) -> Deviation {
    let mut numbers = Numbers::new(22);
    let mut worst = Deviation::NONE;
    for kind in MULTIPLIED {
        for [n_rows, n_out, n_blocks] in shapes(size) {
            // More than a segment for some of the warps too.
            let n_blocks = if kind.is_some() { n_blocks } else { 11 * n_blocks };
            let (blocks, w) = random_weight(gpu, &mut numbers, kind, [n_out, n_blocks]);
            let [_, n_in] = blocks.shape();
            let x = rounded(&numbers.normal(n_rows * n_in));
            let there = DeviceMatrix::of_f32(gpu, NumberType::Bf16, &x, n_in);
            let width = n_out + 3;
            let before = rounded(&numbers.normal(n_rows * width));
            // A result of bf16 may be half of its last place off, 2^-8.
            for (output, limit) in [(NumberType::F32, 2e-5), (NumberType::Bf16, 4e-3)] {
                for write in [Write::Overwrite, Write::Accumulate] {
                    let mut y = match write {
                        Write::Overwrite => DeviceMatrix::poisoned(gpu, output, n_rows, width),
                        Write::Accumulate => DeviceMatrix::of_f32(gpu, output, &before, width),
                    };
                    let mut expected = y.to_f32();
                    product_few_rows_of_blocks(gpu, there.view(), &blocks, y.view_mut(), 2, write);
                    add(&x, &w, &mut expected, [n_in, width, 2], write);
                    worst = worst.worst(Deviation::between(&y.to_f32(), &expected, limit));
                }
            }
        }
    }
    worst
}

/// In f64.
fn add(x: &[f32], w: &[f32], y: &mut [f32], [n_in, width, first_column]: [usize; 3], write: Write) {
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
    let mut numbers = Numbers::new(23);
    let n_out = if size == Size::Small { 21 } else { 4000 };
    let mut worst = Deviation::NONE;
    for kind in MULTIPLIED {
        // More than a segment for some of the warps.
        let n_blocks = if kind.is_some() { 11 } else { 150 };
        let (blocks, _) = random_weight(gpu, &mut numbers, kind, [n_out, n_blocks]);
        let [_, n_in] = blocks.shape();
        let x = numbers.normal(MAX_FEW_ROWS_OF_BLOCKS * n_in);
        let product = |x: &[f32]| {
            let x = DeviceMatrix::of_f32(gpu, NumberType::Bf16, x, n_in);
            let n_rows = x.view().n_rows();
            let mut y = DeviceMatrix::poisoned(gpu, NumberType::F32, n_rows, n_out);
            product_few_rows_of_blocks(gpu, x.view(), &blocks, y.view_mut(), 0, Write::Overwrite);
            y.to_f32()
        };
        let all = product(&x);
        for rows in [0..1, 5..6, 2..6, 1..8] {
            let some = product(&x[rows.start * n_in..rows.end * n_in]);
            let expected = &all[rows.start * n_out..rows.end * n_out];
            worst = worst.worst(Deviation::equal(&some, expected));
        }
    }
    worst
}
