//! Token embedding and its gradient.

use kernels::embedding;

use super::elementwise::{TYPES, reference, worst};
use super::{Case, Deviation, Numbers, Size, rounded};
use crate::gpu::Gpu;
use crate::memory::{DeviceMatrix, NumberType};
use crate::ops::embedding as ops;
use crate::ops::row_numbers::RowNumbers;

pub(super) const CASES: &[Case] = &[
    Case { name: "embedding_gather", run: forward },
    Case { name: "embedding_gather_backward", run: backward },
];

/// Tokens, vocabulary, hidden.
fn shapes(size: Size) -> Vec<[usize; 3]> {
    let mut shapes = vec![
        [1, 1, 1],
        [3, 5, 6],
        [17, 40, 30],
        [300, 5, 96],
        [300, 1, 30],
        // About half of the tokens in more than 16 rows.
        [220, 13, 96],
        [5, 9, 1026],
        [3, 4, 4096],
    ];
    if size == Size::Large {
        shapes.extend([[1, 32768, 768], [8192, 32768, 768], [5000, 2, 768], [4096, 100, 1026]]);
    }
    shapes
}

fn forward(gpu: &Gpu, size: Size) -> Deviation {
    let mut numbers = Numbers::new(51);
    let all = shapes(size).into_iter().flat_map(|shape| TYPES.map(|operands| (shape, operands)));
    worst(all.map(|([n_rows, vocab, width], operands)| {
        let table = rounded(&numbers.normal(vocab * width));
        let ids = numbers.ids(n_rows, vocab as u32);
        let table_there = DeviceMatrix::of_f32(gpu, operands, &table, width);
        let mut out = DeviceMatrix::poisoned(gpu, NumberType::F32, n_rows, width);
        ops::gather(gpu, table_there.view(), &RowNumbers::new(gpu, &ids), out.view_mut());
        let rows = ids.iter().map(|&id| &table[id as usize * width..][..width]);
        Deviation::equal(&out.to_f32(), &rows.flatten().copied().collect::<Vec<f32>>())
    }))
}

fn backward(gpu: &Gpu, size: Size) -> Deviation {
    let mut numbers = Numbers::new(52);
    worst(shapes(size).into_iter().map(|[n_rows, vocab, width]| {
        let d_out = numbers.normal(n_rows * width);
        let mut d_table = numbers.normal(vocab * width);
        let ids = numbers.ids(n_rows, vocab as u32);
        let groups = ops::TokenGroups::new(gpu, &ids);
        let d_out_there = DeviceMatrix::of_f32(gpu, NumberType::F32, &d_out, width);
        let mut d_table_there = DeviceMatrix::of_f32(gpu, NumberType::F32, &d_table, width);
        ops::gather_backward(gpu, d_out_there.view(), &groups, d_table_there.view_mut());
        embedding::gather_backward(&reference(), &ids, &d_out, width, &mut d_table);
        let got = d_table_there.to_f32();
        // Up to 16 rows of a token are added in the order of the definition, more of them in runs.
        let most =
            (0..vocab as u32).map(|id| ids.iter().filter(|&&other| other == id).count()).max();
        if most.is_some_and(|n| n <= 16) {
            Deviation::equal(&got, &d_table)
        } else {
            Deviation::between(&got, &d_table, 1e-5)
        }
    }))
}
