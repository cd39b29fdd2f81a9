//! Attention over packed documents, forward and backward, against the CPU.

use std::iter::once;
use std::ops::Range;

use half::bf16;
use kernels::attention::{
    self, CacheKind, HeadShape, KEY_BLOCK, KeyBlocks, SequenceRows, append_keys_values,
};
use kernels::rope::{RopeFrequencies, RopeTable};
use kernels::{Compute, Family, Operand, detect_features};

use super::elementwise::reference;
use super::{Case, Deviation, Numbers, Size, narrowed};
use crate::gpu::Gpu;
use crate::memory::{DeviceMatrix, NumberType};
use crate::ops::attention_packed::{AttentionBackward, AttentionKernels, PackedRows};
use crate::ops::attention_packed::{attention_backward_with, attention_with};
use crate::ops::rope::DeviceRopeTable;

pub(super) const CASES: &[Case] = &[
    Case { name: "attention_packed", run: |gpu, size| compared(gpu, size, AMPERE, forward) },
    Case {
        name: "attention_packed_backward",
        run: |gpu, size| compared(gpu, size, AMPERE, backward),
    },
    Case { name: "attention_packed_large_scores", run: |gpu, _| large_scores(gpu, AMPERE) },
    Case { name: "attention_packed_documents_alone", run: |gpu, _| documents_alone(gpu, AMPERE) },
    Case {
        name: "attention_hopper",
        run: |gpu, size| on_hopper(gpu, |kernels| compared(gpu, size, kernels, forward)),
    },
    Case {
        name: "attention_hopper_backward",
        run: |gpu, size| on_hopper(gpu, |kernels| compared(gpu, size, kernels, backward)),
    },
    Case {
        name: "attention_hopper_large_scores",
        run: |gpu, _| on_hopper(gpu, |kernels| large_scores(gpu, kernels)),
    },
    Case {
        name: "attention_hopper_documents_alone",
        run: |gpu, _| on_hopper(gpu, |kernels| documents_alone(gpu, kernels)),
    },
];

const AMPERE: AttentionKernels = AttentionKernels::AMPERE;

/// With the kernels for Hopper, where the GPU is one.
fn on_hopper(gpu: &Gpu, run: impl Fn(AttentionKernels) -> Deviation) -> Deviation {
    match gpu.description().capability {
        (9, 0) => run(AttentionKernels::HOPPER),
        _ => Deviation::equal(&[], &[]),
    }
}

/// A batch.
struct Batch {
    shape: HeadShape,
    /// Rows of the documents.
    lens: Vec<usize>,
}

impl Batch {
    fn new(head_dim: usize, heads: [usize; 2], window: Option<usize>, lens: &[usize]) -> Self {
        let [n_heads, n_kv_heads] = heads;
        let scale = 1.0 / (head_dim as f32).sqrt();
        Self {
            shape: HeadShape { n_heads, n_kv_heads, head_dim, scale, window },
            lens: lens.to_vec(),
        }
    }

    fn starts(&self) -> Vec<u32> {
        let ends = self.lens.iter().scan(0, |end, len| {
            *end += *len as u32;
            Some(*end)
        });
        once(0).chain(ends).collect()
    }

    fn n_rows(&self) -> usize {
        self.lens.iter().sum()
    }

    /// The angles of positions within the documents.
    fn rope(&self) -> RopeTable {
        let head_dim = self.shape.head_dim;
        let frequencies = RopeFrequencies {
            amplitude: 1.25,
            query_growth: Some((0.5, 5)),
            ..RopeFrequencies::plain(head_dim, 1e4)
        };
        let positions: Vec<u32> = self.lens.iter().flat_map(|&len| 0..len as u32).collect();
        let mut table = RopeTable::with_capacity(positions.len(), head_dim);
        table.set(&reference(), &frequencies, &positions);
        table
    }
}

const LENS: [usize; 11] = [1, 0, 2, 31, 64, 65, 0, 127, 200, 300, 0];

/// Batches for both number types.
fn batches(size: Size) -> Vec<Batch> {
    if size == Size::Small {
        return vec![
            Batch::new(64, [1, 1], None, &LENS),
            Batch::new(64, [4, 2], Some(100), &[0, 130, 65]),
            Batch::new(64, [6, 2], Some(7), &[2, 0, 129]),
            Batch::new(64, [1, 1], Some(64), &[200, 1]),
            Batch::new(128, [1, 1], Some(1), &[31, 140]),
            Batch::new(128, [2, 1], None, &[1, 0, 200, 64]),
            Batch::new(128, [3, 1], Some(64), &[127, 2]),
            Batch::new(128, [1, 1], Some(100), &[257]),
            Batch::new(8, [8, 8], None, &[1, 0, 70, 2]),
            Batch::new(80, [4, 2], Some(7), &[33, 64]),
            Batch::new(80, [1, 1], Some(100), &[130]),
        ];
    }
    let mut batches = Vec::new();
    for head_dim in [64, 128, 8, 80] {
        for heads in [[1, 1], [4, 2], [6, 2], [8, 8]] {
            for window in [None, Some(1), Some(7), Some(64), Some(100)] {
                batches.push(Batch::new(head_dim, heads, window, &LENS));
            }
        }
    }
    batches.push(Batch::new(64, [12, 12], None, &[1024; 4]));
    batches.push(Batch::new(128, [32, 8], None, &[2048; 2]));
    batches
}

/// The scalar definition for small batches, the fastest family for others.
fn compute_for(batch: &Batch) -> Compute {
    let n = batch.n_rows() * batch.shape.n_heads * batch.shape.head_dim;
    let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let compute = match n {
        0..50_000 => Compute::forced(Family::Reference, 1),
        _ => Compute::forced(Family::fastest(detect_features()), n_threads),
    };
    compute.expect("the machine has the family")
}

/// The worst of all batches and both number types.
fn compared(
    gpu: &Gpu,
    size: Size,
    kernels: AttentionKernels,
    one: fn(&Gpu, AttentionKernels, &Batch, NumberType, u64) -> Deviation,
) -> Deviation {
    let batches = batches(size);
    // All heads of f32 run the same kernels: one batch of those sizes that bf16 has fast kernels for.
    let is_sensible = |batch: &Batch, number_type| {
        let HeadShape { head_dim, window, .. } = batch.shape;
        // What has no kernels for Hopper was compared with the others.
        if kernels != AttentionKernels::AMPERE {
            return number_type == NumberType::Bf16 && matches!(head_dim, 64 | 128);
        }
        number_type == NumberType::Bf16 || !matches!(head_dim, 64 | 128) || window == Some(7)
    };
    let all = batches.iter().zip(1..).flat_map(|(batch, seed)| {
        [NumberType::F32, NumberType::Bf16].map(|number_type| (batch, number_type, seed))
    });
    all.filter(|&(batch, number_type, _)| is_sensible(batch, number_type))
        .map(|(batch, number_type, seed)| one(gpu, kernels, batch, number_type, seed))
        .reduce(Deviation::worst)
        .expect("there are batches")
}

/// What a result may differ by: of f32 by its rounding errors, of bf16 by those of P, of dS and its own, 2^-9 each at most.
fn limit(number_type: NumberType) -> f64 {
    match number_type {
        NumberType::F32 => 1e-5,
        NumberType::Bf16 => 6e-3,
    }
}

/// Output and log-sum-exp by the CPU.
fn forward_on_cpu<T: Operand>(compute: &Compute, batch: &Batch, qkv: &[T]) -> (Vec<f32>, Vec<f32>) {
    let mut tables: Vec<Vec<u32>> = Vec::new();
    let mut n_blocks = 0;
    for len in &batch.lens {
        let n = len.div_ceil(KEY_BLOCK) as u32;
        tables.push((n_blocks..n_blocks + n).collect());
        n_blocks += n;
    }
    let sequences: Vec<SequenceRows<'_>> = (batch.starts().iter().zip(&batch.lens).zip(&tables))
        .map(|((&first_row, &n_rows), block_table)| SequenceRows {
            first_row: first_row as usize,
            n_rows,
            first_position: 0,
            block_table,
        })
        .filter(|sequence| sequence.n_rows > 0)
        .collect();
    let shape = batch.shape;
    let mut blocks = KeyBlocks::zeroed(CacheKind::Operands, shape, n_blocks as usize);
    append_keys_values(compute, shape, qkv, &sequences, &mut blocks);
    let mut out = vec![0.0; batch.n_rows() * shape.n_heads * shape.head_dim];
    let mut log_sum_exp = vec![0.0; batch.n_rows() * shape.n_heads];
    attention::attention(compute, shape, qkv, &sequences, &blocks, &mut out, &mut log_sum_exp);
    (out, log_sum_exp)
}

fn forward(
    gpu: &Gpu,
    kernels: AttentionKernels,
    batch: &Batch,
    number_type: NumberType,
    seed: u64,
) -> Deviation {
    let Batch { shape, .. } = *batch;
    let values = Numbers::new(seed).normal(batch.n_rows() * shape.qkv_width());
    let qkv = DeviceMatrix::of_f32(gpu, number_type, &values, shape.qkv_width());
    let (out, log_sum_exp) = forward_on_gpu(gpu, kernels, batch, &qkv);
    let (compute, values) = (compute_for(batch), qkv.to_f32());
    let (expected, expected_log) = match number_type {
        NumberType::F32 => forward_on_cpu::<f32>(&compute, batch, &values),
        NumberType::Bf16 => forward_on_cpu::<bf16>(&compute, batch, &narrowed(&values)),
    };
    // dS takes no part.
    Deviation::between(&out, &expected, limit(number_type) / 2.0).worst(Deviation::between(
        &log_sum_exp,
        &expected_log,
        1e-5,
    ))
}

fn forward_on_gpu(
    gpu: &Gpu,
    kernels: AttentionKernels,
    batch: &Batch,
    qkv: &DeviceMatrix,
) -> (Vec<f32>, Vec<f32>) {
    let HeadShape { n_heads, head_dim, .. } = batch.shape;
    let (number_type, n) = (qkv.number_type(), batch.n_rows());
    let rows = PackedRows::new(gpu, &batch.starts());
    let mut out = DeviceMatrix::poisoned(gpu, number_type, n, n_heads * head_dim);
    let mut log_sum_exp = DeviceMatrix::poisoned(gpu, NumberType::F32, n, n_heads);
    let (out_view, log_view) = (out.view_mut(), log_sum_exp.view_mut());
    attention_with(gpu, kernels, batch.shape, qkv.view(), &rows, out_view, log_view);
    (out.to_f32(), log_sum_exp.to_f32())
}

/// What the gradient is computed from, on the host: rounded to the number type.
struct BackwardValues {
    qkv: Vec<f32>,
    out: Vec<f32>,
    log_sum_exp: Vec<f32>,
    d_out: Vec<f32>,
}

fn backward(
    gpu: &Gpu,
    kernels: AttentionKernels,
    batch: &Batch,
    number_type: NumberType,
    seed: u64,
) -> Deviation {
    let Batch { shape, .. } = *batch;
    let mut numbers = Numbers::new(seed);
    let n_out = batch.n_rows() * shape.n_heads * shape.head_dim;
    let round = |values: Vec<f32>| match number_type {
        NumberType::F32 => values,
        NumberType::Bf16 => super::rounded(&values),
    };
    let qkv = round(numbers.normal(batch.n_rows() * shape.qkv_width()));
    let d_out = round(numbers.normal(n_out));
    let compute = compute_for(batch);
    let (out, log_sum_exp) = match number_type {
        NumberType::F32 => forward_on_cpu::<f32>(&compute, batch, &qkv),
        NumberType::Bf16 => forward_on_cpu::<bf16>(&compute, batch, &narrowed(&qkv)),
    };
    let values = BackwardValues { qkv, out: round(out), log_sum_exp, d_out };
    let expected = match number_type {
        NumberType::F32 => backward_on_cpu::<f32>(&compute, batch, &values),
        NumberType::Bf16 => backward_on_cpu::<bf16>(&compute, batch, &values),
    };
    let got = backward_on_gpu(gpu, kernels, batch, number_type, &values);
    let keys = shape.n_heads * shape.head_dim;
    let values = keys + shape.n_kv_heads * shape.head_dim;
    let parts = if shape.window == Some(1) {
        // A row that sees only itself has gradients of query and key that are 0 but for rounding.
        vec![0..shape.qkv_width(), values..shape.qkv_width()]
    } else {
        // Queries, keys and values apart: a wrong one is not to be lost among larger numbers.
        vec![0..keys, keys..values, values..shape.qkv_width()]
    };
    let part = |values: &[f32], columns: &Range<usize>| -> Vec<f32> {
        let rows = values.chunks_exact(shape.qkv_width());
        rows.flat_map(|row| &row[columns.clone()]).copied().collect()
    };
    (parts.iter())
        .map(|x| Deviation::between(&part(&got, x), &part(&expected, x), limit(number_type)))
        .reduce(Deviation::worst)
        .expect("there are parts")
}

fn backward_on_cpu<T: Operand>(
    compute: &Compute,
    batch: &Batch,
    values: &BackwardValues,
) -> Vec<f32> {
    let inputs = attention::AttentionBackward {
        qkv: &narrowed::<T>(&values.qkv),
        out: &narrowed(&values.out),
        log_sum_exp: &values.log_sum_exp,
        d_out: &narrowed(&values.d_out),
        segment_starts: &batch.starts(),
        rope: &batch.rope(),
    };
    let mut d_qkv = vec![0.0; values.qkv.len()];
    attention::attention_backward(compute, batch.shape, inputs, &mut d_qkv);
    d_qkv
}

fn backward_on_gpu(
    gpu: &Gpu,
    kernels: AttentionKernels,
    batch: &Batch,
    number_type: NumberType,
    values: &BackwardValues,
) -> Vec<f32> {
    let Batch { shape, .. } = *batch;
    let matrix = |values: &[f32], width| DeviceMatrix::of_f32(gpu, number_type, values, width);
    let qkv = matrix(&values.qkv, shape.qkv_width());
    let [out, d_out] =
        [&values.out, &values.d_out].map(|values| matrix(values, shape.n_heads * shape.head_dim));
    let log_sum_exp =
        DeviceMatrix::of_f32(gpu, NumberType::F32, &values.log_sum_exp, shape.n_heads);
    let inputs = AttentionBackward {
        qkv: qkv.view(),
        out: out.view(),
        log_sum_exp: log_sum_exp.view(),
        d_out: d_out.view(),
        rope: &DeviceRopeTable::new(gpu, &batch.rope()),
    };
    let rows = PackedRows::new(gpu, &batch.starts());
    let mut d_qkv = DeviceMatrix::poisoned(gpu, number_type, batch.n_rows(), shape.qkv_width());
    attention_backward_with(gpu, kernels, shape, inputs, &rows, d_qkv.view_mut());
    d_qkv.to_f32()
}

/// Scores of such a spread that a running maximum rises often, by more than probabilities are let grow.
fn large_scores(gpu: &Gpu, kernels: AttentionKernels) -> Deviation {
    let deviations = [(64, None), (64, Some(100)), (128, None), (128, Some(90)), (24, None)]
        .into_iter()
        .zip(1..)
        .map(|((head_dim, window), seed)| {
            let mut batch = Batch::new(head_dim, [2, 1], window, &[200, 3]);
            batch.shape.scale *= 12.0;
            forward(gpu, kernels, &batch, NumberType::Bf16, seed)
        });
    deviations.reduce(Deviation::worst).expect("there are shapes")
}

/// A document gives the same bits alone and between others of NaN.
fn documents_alone(gpu: &Gpu, kernels: AttentionKernels) -> Deviation {
    let mut numbers = Numbers::new(3);
    let mut worst = Deviation::equal(&[], &[]);
    for (head_dim, number_type) in [
        (64, NumberType::Bf16),
        (128, NumberType::Bf16),
        (24, NumberType::Bf16),
        (24, NumberType::F32),
    ] {
        let alone = Batch::new(head_dim, [2, 1], Some(90), &[140]);
        let among = Batch::new(head_dim, [2, 1], Some(90), &[3, 140, 70]);
        let shape = alone.shape;
        let out_width = shape.n_heads * head_dim;
        let surrounded = |values: &[f32], width: usize| {
            [&vec![f32::NAN; 3 * width][..], values, &vec![f32::NAN; 70 * width]].concat()
        };
        let values = BackwardValues {
            qkv: numbers.normal(140 * shape.qkv_width()),
            out: numbers.normal(140 * out_width),
            log_sum_exp: numbers.normal(140 * shape.n_heads).iter().map(|x| x + 4.0).collect(),
            d_out: numbers.normal(140 * out_width),
        };
        let values_among = BackwardValues {
            qkv: surrounded(&values.qkv, shape.qkv_width()),
            out: surrounded(&values.out, out_width),
            log_sum_exp: surrounded(&values.log_sum_exp, shape.n_heads),
            d_out: surrounded(&values.d_out, out_width),
        };
        let run = |batch: &Batch, values: &BackwardValues| {
            let qkv = DeviceMatrix::of_f32(gpu, number_type, &values.qkv, shape.qkv_width());
            let (out, log_sum_exp) = forward_on_gpu(gpu, kernels, batch, &qkv);
            (out, log_sum_exp, backward_on_gpu(gpu, kernels, batch, number_type, values))
        };
        let (expected, got) = (run(&alone, &values), run(&among, &values_among));
        for (expected, got, width) in [
            (expected.0, got.0, out_width),
            (expected.1, got.1, shape.n_heads),
            (expected.2, got.2, shape.qkv_width()),
        ] {
            worst = worst.worst(Deviation::equal(&got[3 * width..143 * width], &expected));
        }
    }
    worst
}
