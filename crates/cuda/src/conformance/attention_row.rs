//! Attention of a single row over the paged cache, within a chain.

use half::bf16;
use kernels::attention::CacheKind::Operands;
use kernels::attention::{HeadShape, KEY_BLOCK};
use kernels::matmul::Write;

use super::attention_paged::{Rows, Run, SINGLE, angles, device, shape};
use super::chain::is_launched_as;
use super::{Case, Deviation, Numbers, Size, narrowed};
use crate::gpu::Gpu;
use crate::memory::{DeviceMatrix, NumberType};
use crate::ops::attention_paged::{self as ops, CachedBatch, CachedSequence, DeviceKeyBlocks};
use crate::ops::few_rows::product_few_rows;
use crate::ops::norm::rms_norm;
use crate::ops::rope::DeviceRopeTable;
use crate::ops::swiglu::swiglu;

pub(super) const CASES: &[Case] = &[
    Case { name: "attention_row", run: single_rows },
    Case { name: "chain_attention", run: chained_layers },
];

/// Batches of one row, after operations of the same chain. It may be the first of its sequence, or see a few or many shares of positions.
fn single_rows(gpu: &Gpu, size: Size) -> Deviation {
    if !gpu.has_chains() {
        return Deviation::NONE;
    }
    let shapes = [
        shape(8, 2, 128, None),
        shape(6, 2, 64, None),
        shape(2, 2, 128, None),
        shape(6, 1, 64, Some(40)),
        shape(12, 1, 128, Some(600)),
    ];
    let positions = SINGLE.map(|[position, _]| position);
    let mut cases: Vec<(HeadShape, usize)> =
        shapes.iter().flat_map(|shape| positions.map(|position| (*shape, position))).collect();
    if size == Size::Large {
        cases.extend([(shape(32, 8, 128, None), 4500), (shape(32, 32, 64, None), 2047)]);
    }
    let deviations =
        cases.into_iter().map(|(shape, position)| single_row(gpu, shape, [position, 1]));
    deviations.reduce(Deviation::worst).expect("there are shapes")
}

fn single_row(gpu: &Gpu, shape: HeadShape, row: Rows) -> Deviation {
    let rows = [row];
    let complete = Run::<bf16>::new(gpu, Operands, shape, &rows);
    let expected = complete.on_cpu(&rows);
    // Of a single row the rounding of probabilities, which have other maxima on the CPU, shows whole.
    let limit = 6e-3;
    let gates_and_ups = DeviceMatrix::of_f32(gpu, NumberType::Bf16, &[1.0; 16], 16);
    let mut activated = DeviceMatrix::poisoned(gpu, NumberType::Bf16, 1, 8);
    let mut worst = Deviation::NONE;
    for n_parallel in [0, usize::MAX, 2 * gpu.multiprocessors()] {
        // Rotated and appended before.
        let alone = complete.on_gpu(gpu, &complete.sequences(&rows), n_parallel);
        worst = worst.worst(Deviation::between(&alone, &expected, limit));
        // The same with attention in one, over a cache without the new row.
        let mut run = Run::<bf16>::without_new(gpu, Operands, shape, &rows);
        let table = angles(gpu, 2, shape.head_dim);
        let mut qkv = device(gpu, shape, &run.new_rows);
        let sequences = run.hidden_tables.iter().zip(rows).map(|(tables, [first_position, _])| {
            CachedSequence { first_row: 0, n_rows: 1, first_position, block_tables: tables }
        });
        let batch =
            CachedBatch::with_parallel(gpu, &sequences.collect::<Vec<_>>(), shape, n_parallel);
        let width = shape.n_heads * shape.head_dim;
        let mut out = DeviceMatrix::poisoned(gpu, NumberType::Bf16, 2, width);
        let in_one = is_launched_as(gpu, 1, || {
            swiglu(gpu, gates_and_ups.view(), activated.view_mut());
            let layer = (&batch, 1);
            ops::rotate_and_append(gpu, shape, qkv.view_mut(), &table, layer, &mut run.blocks);
            ops::attention(gpu, shape, qkv.view(), &batch, 1, &run.blocks, out.view_mut());
        });
        worst = worst.worst(in_one);
        worst = worst.worst(Deviation::between(&out.to_f32(), &expected, limit));
        let [got, complete] = [&run, &complete]
            .map(|run| run.blocks.numbers::<bf16>().iter().map(|x| x.to_f32()).collect::<Vec<_>>());
        // Sums of two products may be rounded otherwise here and there.
        worst = worst.worst(Deviation::between(&got, &complete, 1e-4));
    }
    worst
}

/// Layers of attention in one launch, each of what the one before gave, in many shares of the positions, against the same operations one after
/// the other, in one share. All share one memory for keys and values, and the room for the results of shares.
fn chained_layers(gpu: &Gpu, _size: Size) -> Deviation {
    if !gpu.has_chains() {
        return Deviation::NONE;
    }
    let mut worst = Deviation::NONE;
    for (shape, position) in [(shape(8, 2, 128, None), 1099), (shape(16, 2, 64, Some(600)), 1099)] {
        let mut chained = Default::default();
        let mut layers = Layers::new(gpu, shape, position);
        let run = || chained = layers.run(gpu, usize::MAX, || {});
        worst = worst.worst(is_launched_as(gpu, 1, run));
        let alone = Layers::new(gpu, shape, position).run(gpu, 0, || gpu.synchronize());
        for (chained, alone) in chained.iter().zip(&alone) {
            // As in the case `chain`.
            worst = worst.worst(Deviation::between(chained, alone, 1e-2));
        }
    }
    worst
}

/// What attention of one row reads and writes in some layers.
struct Layers {
    shape: HeadShape,
    position: usize,
    /// `[layer][position / KEY_BLOCK]`.
    tables: Vec<Vec<u32>>,
    blocks: DeviceKeyBlocks,
    norm: DeviceMatrix,
    qkv_weight: DeviceMatrix,
    out_weight: DeviceMatrix,
    table: DeviceRopeTable,
    residual: DeviceMatrix,
}

impl Layers {
    const N_LAYERS: usize = 3;

    fn new(gpu: &Gpu, shape: HeadShape, position: usize) -> Self {
        let mut numbers = Numbers::new(14);
        let hidden = 512;
        let out_width = shape.n_heads * shape.head_dim;
        let mut matrix = |number_type, [rows, width]: [usize; 2], scale: f32| {
            let values: Vec<f32> = numbers.normal(rows * width).iter().map(|x| x * scale).collect();
            DeviceMatrix::of_f32(gpu, number_type, &values, width)
        };
        let (f32, in_bf16) = (NumberType::F32, NumberType::Bf16);
        let by_width = |width: usize| 1.0 / (width as f32).sqrt();
        let norm = matrix(f32, [1, hidden], 1.0);
        let qkv_weight = matrix(in_bf16, [shape.qkv_width(), hidden], by_width(hidden));
        let out_weight = matrix(in_bf16, [hidden, out_width], by_width(out_width));
        let residual = matrix(f32, [1, hidden], 1.0);
        let n_ids = (position + 1).div_ceil(KEY_BLOCK) as u32;
        let tables: Vec<Vec<u32>> = (0..Self::N_LAYERS as u32)
            .map(|layer| (0..n_ids).rev().map(|id| id * Self::N_LAYERS as u32 + layer).collect())
            .collect();
        let n_blocks = n_ids as usize * Self::N_LAYERS;
        let mut blocks = DeviceKeyBlocks::poisoned(gpu, in_bf16, Operands, shape, n_blocks);
        // Earlier positions of all layers.
        let earlier =
            device::<bf16>(gpu, shape, &narrowed(&numbers.normal(position * shape.qkv_width())));
        let sequence = CachedSequence {
            first_row: 0,
            n_rows: position,
            first_position: 0,
            block_tables: &tables,
        };
        let batch = CachedBatch::new(gpu, &[sequence], shape);
        let angles_of_earlier = angles(gpu, position, shape.head_dim);
        for layer_idx in 0..Self::N_LAYERS {
            let mut qkv = earlier.to_f32();
            qkv.iter_mut().for_each(|x| *x *= 1.0 + layer_idx as f32);
            let mut qkv = DeviceMatrix::of_f32(gpu, in_bf16, &qkv, shape.qkv_width());
            let layer = (&batch, layer_idx);
            ops::rotate_and_append(
                gpu,
                shape,
                qkv.view_mut(),
                &angles_of_earlier,
                layer,
                &mut blocks,
            );
        }
        let table = angles(gpu, 1, shape.head_dim);
        Self { shape, position, tables, blocks, norm, qkv_weight, out_weight, table, residual }
    }

    /// The residual stream, and what the cache holds then.
    fn run(&mut self, gpu: &Gpu, n_parallel: usize, between: impl Fn()) -> [Vec<f32>; 2] {
        let shape = self.shape;
        let (f32, in_bf16) = (NumberType::F32, NumberType::Bf16);
        let empty = |number_type, width| DeviceMatrix::poisoned(gpu, number_type, 1, width);
        let (mut normed, mut scale) = (empty(in_bf16, 512), empty(f32, 1));
        let (mut qkv, mut out) =
            (empty(in_bf16, shape.qkv_width()), empty(in_bf16, shape.n_heads * shape.head_dim));
        let sequence = CachedSequence {
            first_row: 0,
            n_rows: 1,
            first_position: self.position,
            block_tables: &self.tables,
        };
        let batch = CachedBatch::with_parallel(gpu, &[sequence], shape, n_parallel);
        for layer_idx in 0..Self::N_LAYERS {
            let (to, of) = (normed.view_mut(), scale.view_mut());
            rms_norm(gpu, self.residual.view(), self.norm.view(), 1e-5, to, of);
            between();
            let (x, y) = (normed.view(), qkv.view_mut());
            product_few_rows(gpu, x, self.qkv_weight.view(), y, 0, Write::Overwrite);
            between();
            let layer = (&batch, layer_idx);
            ops::rotate_and_append(
                gpu,
                shape,
                qkv.view_mut(),
                &self.table,
                layer,
                &mut self.blocks,
            );
            between();
            ops::attention(gpu, shape, qkv.view(), &batch, layer_idx, &self.blocks, out.view_mut());
            between();
            let (x, y) = (out.view(), self.residual.view_mut());
            product_few_rows(gpu, x, self.out_weight.view(), y, 0, Write::Accumulate);
            between();
        }
        let cache = self.blocks.numbers::<bf16>();
        [self.residual.to_f32(), cache.iter().map(|x| x.to_f32()).collect()]
    }
}
