//! Rotary position embedding.

use half::bf16;
use kernels::Operand;
use kernels::rope::{Direction, RopeFrequencies, RopeTable, RotatedHeads, rotate};

use super::elementwise::{TYPES, reference, worst};
use super::{Case, Deviation, Numbers, Size, rounded};
use crate::gpu::Gpu;
use crate::memory::{DeviceMatrix, NumberType};
use crate::ops::rope as ops;

pub(super) const CASES: &[Case] = &[Case { name: "rotate", run }];

/// Rows; query, key and copied heads; head_dim.
fn shapes(size: Size) -> Vec<(usize, [usize; 3], usize)> {
    let mut shapes = vec![
        (1, [1, 1, 1], 2),
        (3, [2, 1, 0], 6),
        (17, [3, 1, 1], 16),
        (17, [4, 2, 2], 34),
        (5, [9, 3, 3], 64),
        (1, [16, 8, 8], 128),
        (3, [5, 0, 2], 256),
    ];
    if size == Size::Large {
        shapes.extend([(4096, [12, 4, 4], 64), (1000, [32, 8, 8], 128)]);
    }
    shapes
}

fn limit(number_type: NumberType) -> f64 {
    match number_type {
        // Two products and a sum, fused or not.
        NumberType::F32 => 2e-7,
        // Of numbers that differ by that, one in thousands is rounded to the other neighbour, 2^-8 away.
        NumberType::Bf16 => 2e-4,
    }
}

fn expected<T: Operand>(
    x: &[f32],
    table: &RopeTable,
    heads: RotatedHeads,
    direction: Direction,
) -> Vec<f32> {
    let mut out = vec![T::from_f32(7.0); x.len()];
    rotate(&reference(), x, table, heads, direction, &mut out);
    out.iter().map(|x| x.to_f32()).collect()
}

fn run(gpu: &Gpu, size: Size) -> Deviation {
    let mut numbers = Numbers::new(21);
    let all = shapes(size).into_iter().flat_map(|shape| TYPES.map(|operands| (shape, operands)));
    worst(all.map(|((n_rows, [n_query, n_key, n_copied], head_dim), operands)| {
        let heads = RotatedHeads { n_query, n_key, n_copied };
        let width = heads.n_all() * head_dim;
        let frequencies = RopeFrequencies {
            amplitude: 1.25,
            query_growth: Some((0.5, 5)),
            ..RopeFrequencies::plain(head_dim, 1e4)
        };
        let mut table = RopeTable::with_capacity(n_rows, head_dim);
        table.set(&reference(), &frequencies, &numbers.ids(n_rows, 2 * n_rows as u32));
        let table_there = ops::DeviceRopeTable::new(gpu, &table);
        let mut x = rounded(&numbers.normal(n_rows * width));
        // What is not finite stays in its pair.
        (x[0], x[width - 1]) = (f32::NAN, f32::INFINITY);
        worst([Direction::Forward, Direction::Backward].map(|direction| {
            let expected = match operands {
                NumberType::F32 => expected::<f32>(&x, &table, heads, direction),
                NumberType::Bf16 => expected::<bf16>(&x, &table, heads, direction),
            };
            let mut x_there = DeviceMatrix::of_f32(gpu, operands, &x, width);
            let mut out = DeviceMatrix::poisoned(gpu, operands, n_rows, width);
            ops::rotate(gpu, x_there.view(), &table_there, heads, direction, out.view_mut());
            ops::rotate_in_place(gpu, x_there.view_mut(), &table_there, heads, direction);
            worst(
                [out, x_there]
                    .map(|got| Deviation::between(&got.to_f32(), &expected, limit(operands))),
            )
        }))
    }))
}
