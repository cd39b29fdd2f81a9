//! Attention over the paged cache: ragged mixes of single rows and chunks, on shuffled blocks.

use half::bf16;
use kernels::attention::CacheKind::{self, Int8, Operands};
use kernels::attention::{
    HeadShape, KEY_BLOCK, KeyBlocks, SequenceRows, append_keys_values, attention,
};
use kernels::rope::{Direction, RopeFrequencies, RopeTable};
use kernels::{Compute, Family, Operand};

use super::{Case, Deviation, Numbers, Size};
use crate::gpu::Gpu;
use crate::memory::{DeviceMatrix, NumberType, Plain};
use crate::ops::attention_paged::{self as ops, CachedBatch, CachedSequence, DeviceKeyBlocks};
use crate::ops::rope::{self, DeviceRopeTable};
use crate::ops::swiglu::swiglu;

pub(super) const CASES: &[Case] = &[
    Case { name: "attention_paged_bf16", run: folded },
    Case { name: "attention_paged_window", run: windows },
    Case { name: "attention_paged_any_head", run: plain },
    Case { name: "attention_paged_row_alone", run: rows_alone },
    Case { name: "attention_paged_int8", run: int8 },
    Case { name: "rotate_and_append", run: rotate_and_append },
    Case { name: "chain_append", run: chain_append },
    Case { name: "rotate_and_append_int8", run: rotate_and_append_int8 },
];

/// First position and rows of each sequence.
pub(super) type Rows = [usize; 2];

/// One row each, at the ends of blocks, steps and partitions.
pub(super) const SINGLE: [Rows; 8] =
    [[0, 1], [30, 1], [31, 1], [32, 1], [510, 1], [511, 1], [512, 1], [1099, 1]];

pub(super) fn shape(
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    window: Option<usize>,
) -> HeadShape {
    HeadShape { n_heads, n_kv_heads, head_dim, scale: 1.0 / (head_dim as f32).sqrt(), window }
}

fn folded(gpu: &Gpu, size: Size) -> Deviation {
    let ragged = [&SINGLE[..], &[[0, 70], [500, 17], [1090, 5], [2, 2]]].concat();
    let mut worst = vec![
        compared::<bf16>(gpu, Operands, shape(8, 2, 64, None), &ragged),
        compared::<bf16>(
            gpu,
            Operands,
            shape(4, 4, 64, None),
            &[[3, 40], [127, 1], [128, 1], [1020, 3]],
        ),
        compared::<bf16>(
            gpu,
            Operands,
            shape(6, 2, 128, None),
            &[[0, 40], [32, 1], [513, 1], [500, 24]],
        ),
        compared::<bf16>(
            gpu,
            Operands,
            shape(32, 8, 128, None),
            &[[31, 1], [0, 1], [130, 1], [20, 5]],
        ),
    ];
    if size == Size::Large {
        let many = [&SINGLE[..], &[[0, 700], [1500, 300], [4095, 1], [4000, 17]]].concat();
        worst.push(compared::<bf16>(gpu, Operands, shape(32, 8, 128, None), &many));
    }
    worst.into_iter().reduce(Deviation::worst).expect("there are shapes")
}

fn windows(gpu: &Gpu, _size: Size) -> Deviation {
    let rows = [[1099, 1], [600, 1], [5, 1], [500, 24], [1023, 2]];
    [1, 33, 600]
        .map(|window| {
            let folded = compared::<bf16>(gpu, Operands, shape(4, 2, 64, Some(window)), &rows);
            folded.worst(compared::<f32>(gpu, Operands, shape(2, 2, 8, Some(window)), &rows))
        })
        .into_iter()
        .reduce(Deviation::worst)
        .expect("there are windows")
}

fn plain(gpu: &Gpu, _size: Size) -> Deviation {
    let rows = [[0, 1], [31, 1], [30, 5], [300, 1]];
    compared::<f32>(gpu, Operands, shape(4, 2, 64, None), &rows)
        .worst(compared::<f32>(gpu, Operands, shape(6, 2, 10, None), &rows))
        .worst(compared::<bf16>(gpu, Operands, shape(4, 4, 8, None), &rows))
        .worst(compared::<bf16>(gpu, Operands, shape(2, 1, 34, None), &rows))
}

/// Blocks of 8 bits, in all kernels. The CPU has the same codes and scales.
fn int8(gpu: &Gpu, size: Size) -> Deviation {
    let ragged = [&SINGLE[..], &[[0, 70], [500, 17], [1090, 5], [2, 2]]].concat();
    let short = [[0, 40], [32, 1], [513, 1], [500, 24]];
    let mut worst = vec![
        compared::<bf16>(gpu, Int8, shape(8, 2, 64, None), &ragged),
        compared::<bf16>(gpu, Int8, shape(6, 2, 128, None), &short),
        compared::<bf16>(gpu, Int8, shape(4, 1, 64, Some(33)), &[[1099, 1], [500, 24], [5, 1]]),
        compared::<bf16>(gpu, Int8, shape(2, 1, 34, None), &short[1..2]),
        compared::<f32>(gpu, Int8, shape(4, 2, 64, None), &short),
        compared::<f32>(gpu, Int8, shape(6, 2, 10, Some(40)), &[[30, 5], [300, 1]]),
    ];
    if size == Size::Large {
        let many = [&SINGLE[..], &[[0, 700], [1500, 300], [4095, 1], [4000, 17]]].concat();
        worst.push(compared::<bf16>(gpu, Int8, shape(32, 8, 128, None), &many));
    }
    worst.into_iter().reduce(Deviation::worst).expect("there are shapes")
}

/// A row of a batch has the bits that it has alone, however the work is shared out. But a single row that comes first is a batch of one
/// row, which is attended otherwise (`attention_row.rs`).
fn rows_alone(gpu: &Gpu, _size: Size) -> Deviation {
    let rows = [[1030, 1], [400, 70], [1099, 3], [3, 1]];
    let shapes = [shape(8, 2, 64, None), shape(4, 1, 64, Some(520)), shape(4, 2, 128, None)];
    [
        (Operands, shapes[0]),
        (Operands, shapes[1]),
        (Operands, shapes[2]),
        (Int8, shapes[1]),
        (Int8, shapes[2]),
    ]
    .map(|(kind, shape)| {
        let run = Run::<bf16>::new(gpu, kind, shape, &rows);
        let together = run.on_gpu(gpu, &run.sequences(&rows), 0);
        let split = run.on_gpu(gpu, &run.sequences(&rows), usize::MAX);
        let mut worst = Deviation::equal(&together, &split);
        for (idx, [position, n_rows]) in rows.into_iter().enumerate() {
            let all = run.sequences(&rows);
            for row in (0..n_rows).step_by(23).chain([n_rows - 1]) {
                if all[idx].first_row + row == 0 {
                    continue;
                }
                let sequence = CachedSequence {
                    first_row: all[idx].first_row + row,
                    n_rows: 1,
                    first_position: position + row,
                    ..all[idx]
                };
                let alone = run.on_gpu(gpu, &[sequence], 0);
                let width = shape.n_heads * shape.head_dim;
                let at = sequence.first_row * width..(sequence.first_row + 1) * width;
                worst = worst.worst(Deviation::equal(&alone[at.clone()], &together[at]));
            }
        }
        worst
    })
    .into_iter()
    .reduce(Deviation::worst)
    .expect("there are shapes")
}

fn compared<T: Number>(gpu: &Gpu, kind: CacheKind, shape: HeadShape, rows: &[Rows]) -> Deviation {
    let run = Run::<T>::new(gpu, kind, shape, rows);
    let expected = run.on_cpu(rows);
    let limit = if T::TYPE == NumberType::F32 { 1e-5 } else { 3e-3 };
    let compared = |n_parallel| {
        let got = run.on_gpu(gpu, &run.sequences(rows), n_parallel);
        Deviation::between(&got, &expected, limit)
    };
    compared(0).worst(compared(usize::MAX))
}

/// A number type and its name on the GPU.
pub(super) trait Number: Operand + Plain + Default {
    const TYPE: NumberType;
}
impl Number for f32 {
    const TYPE: NumberType = NumberType::F32;
}
impl Number for bf16 {
    const TYPE: NumberType = NumberType::Bf16;
}

/// Earlier positions of some sequences in a cache on the GPU and in one on the CPU, and new rows of both.
pub(super) struct Run<T: Number> {
    shape: HeadShape,
    /// New rows, with one that belongs to no sequence after each sequence, and the same before they were rotated.
    qkv: Vec<T>,
    pub(super) new_rows: Vec<T>,
    pub(super) blocks: DeviceKeyBlocks,
    cpu_blocks: KeyBlocks<T>,
    /// For each sequence the ids of one layer, as they are and with nonsense before the window.
    tables: Vec<[Vec<u32>; 1]>,
    pub(super) hidden_tables: Vec<[Vec<u32>; 2]>,
}

impl<T: Number> Run<T> {
    pub(super) fn new(gpu: &Gpu, kind: CacheKind, shape: HeadShape, rows: &[Rows]) -> Self {
        let mut run = Self::without_new(gpu, kind, shape, rows);
        run.append(gpu, rows);
        run
    }

    /// The new rows are in the cache on the CPU only.
    pub(super) fn without_new(gpu: &Gpu, kind: CacheKind, shape: HeadShape, rows: &[Rows]) -> Self {
        let mut numbers = Numbers::new(11);
        let lens = rows.iter().map(|[position, n_rows]| (position + n_rows).div_ceil(KEY_BLOCK));
        let n_blocks: usize = lens.clone().sum();
        let mut ids: Vec<u32> = (0..n_blocks as u32).collect();
        for i in (1..n_blocks).rev() {
            ids.swap(i, numbers.ids(1, i as u32 + 1)[0] as usize);
        }
        let mut ids = ids.into_iter();
        let tables: Vec<[Vec<u32>; 1]> =
            lens.map(|len| [ids.by_ref().take(len).collect()]).collect();
        let hidden_tables = tables.iter().zip(rows).map(|([table], [position, _])| {
            let mut hidden = table.clone();
            hidden[..shape.first_visible(*position) / KEY_BLOCK].fill(u32::MAX);
            // The layer is the second: the tables of the first are not to be read.
            [vec![0; table.len()], hidden]
        });
        let hidden_tables = hidden_tables.collect();
        let compute = Compute::forced(Family::Reference, 1).expect("it runs everywhere");
        let mut run = Self {
            shape,
            qkv: Vec::new(),
            new_rows: Vec::new(),
            // Memory that an earlier owner left: nothing of it may be seen.
            blocks: DeviceKeyBlocks::poisoned(gpu, T::TYPE, kind, shape, n_blocks),
            cpu_blocks: KeyBlocks::zeroed(kind, shape, n_blocks),
            tables,
            hidden_tables,
        };
        for part_idx in 0..2 {
            // Earlier positions first, then the new ones, which stay as `qkv`.
            let part: Vec<Rows> = rows
                .iter()
                .map(|&[position, n]| [[0, position], [position, n]][part_idx])
                .collect();
            let n_rows: usize = part.iter().map(|[_, n]| n + 1).sum();
            let qkv = numbers.normal(n_rows * shape.qkv_width());
            run.new_rows = qkv.into_iter().map(T::from_f32).collect();
            let table = angles(gpu, n_rows, shape.head_dim);
            run.qkv = rotated(gpu, shape, &run.new_rows, &table);
            let sequences = sequence_rows(&part, &run.tables);
            append_keys_values(&compute, shape, &run.qkv, &sequences, &mut run.cpu_blocks);
            if part_idx == 0 {
                run.append(gpu, &part);
            }
        }
        run
    }

    /// Puts the new rows into the cache on the GPU.
    fn append(&mut self, gpu: &Gpu, rows: &[Rows]) {
        let Self { shape, new_rows, tables, .. } = self;
        let sequences = sequence_rows(rows, tables);
        let table = angles(gpu, new_rows.len() / shape.qkv_width(), shape.head_dim);
        let mut there = device(gpu, *shape, new_rows);
        let cached = sequences.iter().zip(&*tables).map(|(sequence, tables)| CachedSequence {
            first_row: sequence.first_row,
            n_rows: sequence.n_rows,
            first_position: sequence.first_position,
            block_tables: tables,
        });
        let batch = CachedBatch::new(gpu, &cached.collect::<Vec<_>>(), *shape);
        let (qkv, layer) = (there.view_mut(), (&batch, 0));
        ops::rotate_and_append(gpu, *shape, qkv, &table, layer, &mut self.blocks);
    }

    pub(super) fn sequences(&self, rows: &[Rows]) -> Vec<CachedSequence<'_>> {
        let mut first_row = 0;
        let sequences =
            rows.iter().zip(&self.hidden_tables).map(|(&[first_position, n_rows], tables)| {
                let sequence =
                    CachedSequence { first_row, n_rows, first_position, block_tables: tables };
                first_row += n_rows + 1;
                sequence
            });
        sequences.collect()
    }

    pub(super) fn on_gpu(
        &self,
        gpu: &Gpu,
        sequences: &[CachedSequence<'_>],
        n_parallel: usize,
    ) -> Vec<f32> {
        let qkv = device(gpu, self.shape, &self.qkv);
        let batch = CachedBatch::with_parallel(gpu, sequences, self.shape, n_parallel);
        let width = self.shape.n_heads * self.shape.head_dim;
        let mut out = DeviceMatrix::poisoned(gpu, T::TYPE, qkv.view().n_rows(), width);
        ops::attention(gpu, self.shape, qkv.view(), &batch, 1, &self.blocks, out.view_mut());
        out.to_f32()
    }

    pub(super) fn on_cpu(&self, rows: &[Rows]) -> Vec<f32> {
        let compute = Compute::forced(Family::Reference, 1).expect("it runs everywhere");
        let n_heads = self.qkv.len() / self.shape.qkv_width() * self.shape.n_heads;
        // Rows of no sequence are not written.
        let mut out = vec![T::from_f32(f32::NAN); n_heads * self.shape.head_dim];
        let mut log_sum_exp = vec![0.0; n_heads];
        let sequences = sequence_rows(rows, &self.tables);
        attention(
            &compute,
            self.shape,
            &self.qkv,
            &sequences,
            &self.cpu_blocks,
            &mut out,
            &mut log_sum_exp,
        );
        out.iter().map(|x| x.to_f32()).collect()
    }
}

fn sequence_rows<'a>(rows: &[Rows], tables: &'a [[Vec<u32>; 1]]) -> Vec<SequenceRows<'a>> {
    let mut first_row = 0;
    let sequences = rows.iter().zip(tables).map(|(&[first_position, n_rows], [block_table])| {
        let sequence = SequenceRows { first_row, n_rows, first_position, block_table };
        first_row += n_rows + 1;
        sequence
    });
    sequences.collect()
}

/// What rotates rows, at any positions.
pub(super) fn angles(gpu: &Gpu, n_rows: usize, head_dim: usize) -> DeviceRopeTable {
    let frequencies =
        RopeFrequencies { query_growth: Some((0.5, 5)), ..RopeFrequencies::plain(head_dim, 1e4) };
    let compute = Compute::forced(Family::Reference, 1).expect("it runs everywhere");
    let mut table = RopeTable::with_capacity(n_rows, head_dim);
    table.set(&compute, &frequencies, &Numbers::new(12).ids(n_rows, 2 * n_rows as u32));
    DeviceRopeTable::new(gpu, &table)
}

fn rotated<T: Number>(gpu: &Gpu, shape: HeadShape, qkv: &[T], table: &DeviceRopeTable) -> Vec<T> {
    let heads = shape.rotated();
    let mut there = device(gpu, shape, qkv);
    rope::rotate_in_place(gpu, there.view_mut(), table, heads, Direction::Forward);
    there.to_f32().into_iter().map(T::from_f32).collect()
}

/// Queries, and keys and values in the blocks, have the bits of rows that were rotated before.
fn rotate_and_append(gpu: &Gpu, size: Size) -> Deviation {
    let rows = [[0, 1], [31, 1], [30, 5], [300, 1], [90, 7]];
    let mut worst = appended::<bf16>(gpu, shape(6, 2, 128, None), &rows)
        .worst(appended::<bf16>(gpu, shape(5, 5, 34, Some(40)), &rows))
        .worst(appended::<f32>(gpu, shape(3, 1, 64, None), &rows[3..4]))
        .worst(appended::<f32>(gpu, shape(6, 2, 10, None), &rows));
    if size == Size::Large {
        let rows = [&SINGLE[..], &[[0, 700], [1500, 300]]].concat();
        worst = worst.worst(appended::<bf16>(gpu, shape(32, 8, 128, None), &rows));
    }
    worst
}

/// One row after another operation, in one launch with it.
fn chain_append(gpu: &Gpu, _size: Size) -> Deviation {
    if !gpu.has_chains() {
        return Deviation::NONE;
    }
    let gates_and_ups = DeviceMatrix::of_f32(gpu, NumberType::Bf16, &[1.0; 16], 16);
    let mut activated = DeviceMatrix::poisoned(gpu, NumberType::Bf16, 1, 8);
    let mut worst = Deviation::NONE;
    for shape in [shape(6, 2, 128, None), shape(32, 8, 64, Some(40))] {
        for row in SINGLE {
            let before = || swiglu(gpu, gates_and_ups.view(), activated.view_mut());
            let mut deviation = None;
            let appended = || appended_after::<bf16>(gpu, shape, &[row], before);
            let times = gpu.profiled(|| deviation = Some(appended()));
            worst = worst.worst(deviation.expect("it was computed"));
            let is_reached = times.iter().any(|kernel| kernel.name == "chain");
            let reached = if is_reached { 0.0 } else { f64::INFINITY };
            worst = worst.worst(Deviation { value: reached, limit: 0.0 });
        }
    }
    worst
}

fn appended<T: Number>(gpu: &Gpu, shape: HeadShape, rows: &[Rows]) -> Deviation {
    appended_after::<T>(gpu, shape, rows, || {})
}

fn appended_after<T: Number>(
    gpu: &Gpu,
    shape: HeadShape,
    rows: &[Rows],
    before: impl FnOnce(),
) -> Deviation {
    let run = Run::<T>::new(gpu, Operands, shape, rows);
    let HeadShape { n_heads, n_kv_heads, head_dim, .. } = shape;
    let table = angles(gpu, run.qkv.len() / shape.qkv_width(), head_dim);
    let rotated = rotated(gpu, shape, &run.qkv, &table);
    let n_blocks = run.blocks.n_blocks();
    let mut blocks = DeviceKeyBlocks::poisoned(gpu, T::TYPE, Operands, shape, n_blocks);
    let (mut expected_qkv, mut expected) = (run.qkv.clone(), blocks.numbers::<T>());
    for (sequence, [block_table]) in run.sequences(rows).iter().zip(&run.tables) {
        for row in 0..sequence.n_rows {
            let start = (sequence.first_row + row) * shape.qkv_width();
            let queries = start..start + n_heads * head_dim;
            expected_qkv[queries.clone()].copy_from_slice(&rotated[queries.clone()]);
            let position = sequence.first_position + row;
            let first_head = block_table[position / KEY_BLOCK] as usize * 2 * n_kv_heads;
            let keys_values = rotated[queries.end..].chunks_exact(head_dim).take(2 * n_kv_heads);
            for (head, numbers) in (first_head..).zip(keys_values) {
                let at = (head * KEY_BLOCK + position % KEY_BLOCK) * head_dim;
                expected[at..at + head_dim].copy_from_slice(numbers);
            }
        }
    }
    let (mut qkv, sequences) = (device(gpu, shape, &run.qkv), run.sequences(rows));
    let batch = CachedBatch::new(gpu, &sequences, shape);
    before();
    ops::rotate_and_append(gpu, shape, qkv.view_mut(), &table, (&batch, 1), &mut blocks);
    let widened = |numbers: &[T]| -> Vec<f32> { numbers.iter().map(|x| x.to_f32()).collect() };
    Deviation::equal(&qkv.to_f32(), &widened(&expected_qkv))
        .worst(Deviation::equal(&widened(&blocks.numbers()), &widened(&expected)))
}

/// Queries and keys have the bits of rows that were rotated, the blocks the codes and scales of such rows.
fn rotate_and_append_int8(gpu: &Gpu, size: Size) -> Deviation {
    let rows = [[0, 1], [31, 1], [30, 5], [90, 7]];
    let mut worst = appended_int8::<bf16>(gpu, shape(6, 2, 128, None), &rows)
        .worst(appended_int8::<f32>(gpu, shape(5, 5, 34, Some(40)), &rows));
    if size == Size::Large {
        let rows = [&SINGLE[..], &[[0, 700], [1500, 300]]].concat();
        worst = worst.worst(appended_int8::<bf16>(gpu, shape(32, 8, 128, None), &rows));
    }
    worst
}

fn appended_int8<T: Number>(gpu: &Gpu, shape: HeadShape, rows: &[Rows]) -> Deviation {
    let mut run = Run::<T>::new(gpu, Int8, shape, rows);
    let HeadShape { n_heads, n_kv_heads, head_dim, .. } = shape;
    // Heads whose scale is zero or NaN, and one whose scale is subnormal.
    for (token, value) in [(0, 0.0), (2, f32::NAN), (4, f32::INFINITY), (6, 1e-38)] {
        let values = token * shape.qkv_width() + (n_heads + n_kv_heads) * head_dim;
        run.qkv[values..][..head_dim].fill(T::from_f32(value));
    }
    let table = angles(gpu, run.qkv.len() / shape.qkv_width(), head_dim);
    let rotated = rotated(gpu, shape, &run.qkv, &table);
    let n_blocks = run.blocks.n_blocks();
    let mut blocks = DeviceKeyBlocks::poisoned(gpu, T::TYPE, Int8, shape, n_blocks);
    let mut expected = blocks.numbers::<u8>();
    for (sequence, [block_table]) in run.sequences(rows).iter().zip(&run.tables) {
        for row in 0..sequence.n_rows {
            let start = (sequence.first_row + row) * shape.qkv_width() + n_heads * head_dim;
            let position = sequence.first_position + row;
            let (block, slot) = (block_table[position / KEY_BLOCK] as usize, position % KEY_BLOCK);
            let of_block = &mut expected[block * 2 * n_kv_heads * KEY_BLOCK * (head_dim + 4)..];
            let heads = of_block.chunks_exact_mut(KEY_BLOCK * (head_dim + 4));
            for (head, x) in heads.zip(rotated[start..].chunks_exact(head_dim)).take(2 * n_kv_heads)
            {
                let (codes, scale) = quantised(x);
                head[slot * head_dim..][..head_dim].copy_from_slice(&codes);
                head[KEY_BLOCK * head_dim + 4 * slot..][..4].copy_from_slice(&scale.to_le_bytes());
            }
        }
    }
    let (mut qkv, sequences) = (device(gpu, shape, &run.qkv), run.sequences(rows));
    let batch = CachedBatch::new(gpu, &sequences, shape);
    ops::rotate_and_append(gpu, shape, qkv.view_mut(), &table, (&batch, 1), &mut blocks);
    let widened = |bytes: &[u8]| -> Vec<f32> { bytes.iter().map(|x| f32::from(*x)).collect() };
    let rotated: Vec<f32> = rotated.iter().map(|x| x.to_f32()).collect();
    Deviation::between(&qkv.to_f32(), &rotated, 0.0)
        .worst(Deviation::equal(&widened(&blocks.numbers()), &widened(&expected)))
}

/// Codes and scale, as [`append_keys_values`] has them.
fn quantised<T: Number>(x: &[T]) -> (Vec<u8>, f32) {
    let max = x.iter().map(|x| x.to_f32().abs()).fold(0.0, f32::max);
    if !x.iter().all(|x| x.to_f32().is_finite()) {
        return (vec![0; x.len()], f32::from_bits(0x7fc0_0000));
    }
    let scale = max / 127.0;
    if !scale.is_normal() {
        return (vec![0; x.len()], 0.0);
    }
    let code = |x: &T| ((x.to_f32() * (1.0 / scale)).round_ties_even() as i8).cast_unsigned();
    (x.iter().map(code).collect(), scale)
}

pub(super) fn device<T: Number>(gpu: &Gpu, shape: HeadShape, values: &[T]) -> DeviceMatrix {
    let values: Vec<f32> = values.iter().map(|x| x.to_f32()).collect();
    DeviceMatrix::of_f32(gpu, T::TYPE, &values, shape.qkv_width())
}
