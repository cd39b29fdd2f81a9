//! The operations on tensors. Shapes, numerics and sources stand with the kernels of the same names.
//!
//! Each function panics when a shape or number type does not fit: the model is built so that they do.

use cuda::ops::attention_paged;
use cuda::ops::embedding::TokenGroups;
use cuda::ops::loss::LossRows;
use cuda::ops::norm::NormGradients;
use cuda::ops::row_numbers::RowNumbers;
use cuda::{DeviceMatrix, NumberType};
use half::bf16;
use kernels::adamw::{self, AdamW};
use kernels::attention::{self, AttentionBackward, HeadShape, SequenceRows};
use kernels::experts::{self, Route};
use kernels::likeliest::{self, Likeliest};
use kernels::rope::{self, Direction, RotatedHeads};
use kernels::{cross_entropy as loss, elementwise, embedding, norm, swiglu as gated};

use crate::Device;
use crate::batch::{CachedBatch, PackedRows, RopeTable};
use crate::key_blocks::KeyBlocks;
use crate::tensor::{DType, HostNumber, Tensor, View, ViewMut};

/// Rounds or widens `x` into `out`.
pub fn convert(device: &Device, x: View<'_>, out: ViewMut<'_>) {
    if let Device::Cuda { gpu, .. } = device {
        return cuda::ops::elementwise::convert(gpu, x.on_gpu(), out.on_gpu());
    }
    let compute = device.compute();
    match (x, out) {
        (View::F32 { values, .. }, ViewMut::F32 { values: out, .. }) => out.copy_from_slice(values),
        (View::F32 { values, .. }, ViewMut::Bf16 { values: out, .. }) => {
            elementwise::convert(compute, values, out);
        }
        (View::Bf16 { values, .. }, ViewMut::F32 { values: out, .. }) => {
            elementwise::convert(compute, values, out);
        }
        (View::Bf16 { values, .. }, ViewMut::Bf16 { values: out, .. }) => {
            out.copy_from_slice(values)
        }
        _ => panic!("tensors on different devices"),
    }
}

/// What a number type holds of f32 numbers, as f32: `out[i] = round(x[i])`.
pub fn round_to(device: &Device, dtype: DType, x: View<'_>, out: ViewMut<'_>) {
    match (device, dtype) {
        (_, DType::F32) => convert(device, x, out),
        (Device::Cuda { gpu, .. }, DType::Bf16) => {
            cuda::ops::elementwise::round_to_bf16(gpu, x.on_gpu(), out.on_gpu());
        }
        (Device::Cpu(_), DType::Bf16) => {
            let numbers = out.f32().iter_mut().zip(x.f32());
            numbers.for_each(|(out, &x)| *out = bf16::from_f32(x).to_f32());
        }
    }
}

/// `out[i] = factor x[i]` of f32 numbers, rounded to the type of `out`.
///
/// # Panics
/// When the shapes differ.
pub fn scale(device: &Device, x: View<'_>, factor: f32, out: ViewMut<'_>) {
    assert_eq!(
        [x.n_rows(), x.width()],
        [out.n_rows(), out.width()],
        "shapes of x and of the output"
    );
    match out {
        ViewMut::Cuda(out) => cuda::ops::elementwise::scale(device.gpu(), x.on_gpu(), factor, out),
        ViewMut::F32 { values, .. } => {
            values.iter_mut().zip(x.f32()).for_each(|(out, x)| *out = factor * x);
        }
        ViewMut::Bf16 { values, .. } => {
            let numbers = values.iter_mut().zip(x.f32());
            numbers.for_each(|(out, x)| *out = bf16::from_f32(factor * x));
        }
    }
}

/// [`norm::rms_norm`]; x rounded is kept where backward will need it ([`Device::keeps_norm_inputs`]).
pub fn rms_norm(
    device: &Device,
    x: View<'_>,
    weight: &Tensor,
    eps: f32,
    out: ViewMut<'_>,
    inverse_rms: ViewMut<'_>,
    kept: Option<ViewMut<'_>>,
) {
    if let Device::Cuda { gpu, .. } = device {
        let (x, weight, out) = (x.on_gpu(), weight.view().on_gpu(), out.on_gpu());
        assert!(kept.is_none(), "a GPU needs the output only");
        return cuda::ops::norm::rms_norm(gpu, x, weight, eps, out, inverse_rms.on_gpu());
    }
    let (compute, x, weight, scales) = (device.compute(), x.f32(), weight.f32(), inverse_rms.f32());
    match out.dtype() {
        DType::F32 => {
            norm::rms_norm(compute, x, weight, eps, out.f32(), scales, kept.map(ViewMut::f32));
        }
        DType::Bf16 => {
            let (out, kept) = (out.of::<bf16>(), kept.map(ViewMut::of::<bf16>));
            norm::rms_norm(compute, x, weight, eps, out, scales, kept);
        }
    }
}

/// What [`rms_norm_backward`] reads: input, or output, and inverse root mean square of the forward pass, the weight, and the gradient
/// of the output.
#[derive(Clone, Copy, Debug)]
pub struct NormSaved<'a> {
    /// The input, or, where the device does not keep that, the output, `[tokens, hidden]`.
    pub x: View<'a>,
    /// `[1, hidden]`.
    pub weight: &'a Tensor,
    /// `[tokens, 1]`.
    pub inverse_rms: View<'a>,
    /// `[tokens, hidden]`.
    pub d_out: View<'a>,
}

/// [`norm::rms_norm_backward`]; the new `d_x` goes to `rounded` too. A frozen weight has no `d_weight`.
pub fn rms_norm_backward(
    device: &Device,
    saved: NormSaved<'_>,
    d_x: &mut Tensor,
    rounded: &mut Tensor,
    d_weight: Option<ViewMut<'_>>,
) {
    let NormSaved { x, weight, inverse_rms, d_out } = saved;
    if let Device::Cuda { gpu, .. } = device {
        let gradients = NormGradients {
            d_x: d_x.view_mut().on_gpu(),
            rounded: Some(rounded.view_mut().on_gpu()),
            d_weight: d_weight.map(ViewMut::on_gpu),
        };
        let (x, weight, scales) = (x.on_gpu(), weight.view().on_gpu(), inverse_rms.on_gpu());
        let d_out = d_out.on_gpu();
        return cuda::ops::norm::rms_norm_backward(gpu, x, weight, scales, d_out, gradients);
    }
    fn run<T: HostNumber>(
        device: &Device,
        saved: NormSaved<'_>,
        (d_x, rounded): (ViewMut<'_>, ViewMut<'_>),
        d_weight: Option<ViewMut<'_>>,
    ) {
        let (compute, weight, scales) =
            (device.compute(), saved.weight.f32(), saved.inverse_rms.f32());
        let (x, d_out) = (saved.x.of::<T>(), saved.d_out.of::<T>());
        let (d_x, rounded) = (d_x.f32(), rounded.of::<T>());
        let d_weight = d_weight.map(ViewMut::f32);
        norm::rms_norm_backward(compute, x, weight, scales, d_out, d_x, rounded, d_weight);
    }
    let gradients = (d_x.view_mut(), rounded.view_mut());
    match x {
        View::Bf16 { .. } => run::<bf16>(device, saved, gradients, d_weight),
        _ => run::<f32>(device, saved, gradients, d_weight),
    }
}

/// [`rope::rotate`], forward.
pub fn rotate(
    device: &Device,
    x: View<'_>,
    table: &RopeTable,
    heads: RotatedHeads,
    out: ViewMut<'_>,
) {
    let (compute, x, table) = (device.compute(), x.f32(), table.host());
    let direction = Direction::Forward;
    match out.dtype() {
        DType::F32 => rope::rotate(compute, x, table, heads, direction, out.f32()),
        DType::Bf16 => rope::rotate(compute, x, table, heads, direction, out.of::<bf16>()),
    }
}

/// As [`rotate`], in the place of x, on a GPU.
pub fn rotate_in_place(device: &Device, x: ViewMut<'_>, table: &RopeTable, heads: RotatedHeads) {
    let direction = Direction::Forward;
    cuda::ops::rope::rotate_in_place(device.gpu(), x.on_gpu(), table.on_gpu(), heads, direction);
}

/// [`experts::gather_rows`].
pub fn gather_rows(device: &Device, x: View<'_>, rows: &[u32], out: ViewMut<'_>) {
    let (compute, width) = (device.compute(), x.width());
    match x {
        View::F32 { values, .. } => {
            experts::gather_rows(compute, values, rows, width, out.of::<f32>());
        }
        View::Bf16 { values, .. } => {
            experts::gather_rows(compute, values, rows, width, out.of::<bf16>());
        }
        View::Cuda(x) => {
            let (gpu, out) = (device.gpu(), out.on_gpu());
            cuda::ops::elementwise::gather_rows(gpu, x, &RowNumbers::new(gpu, rows), out);
        }
    }
}

/// [`experts::add_weighted_rows`].
pub fn add_weighted_rows(device: &Device, x: View<'_>, route: &Route, out: ViewMut<'_>) {
    if let Device::Cuda { gpu, .. } = device {
        let (x, out) = (x.on_gpu(), out.on_gpu());
        let rows = RowNumbers::new(gpu, &route.rows);
        let weights = DeviceMatrix::of_f32(gpu, NumberType::F32, &route.weights, 1);
        let weights = weights.view();
        return cuda::ops::elementwise::add_weighted_rows(gpu, x, &rows, weights, out);
    }
    let width = x.width();
    experts::add_weighted_rows(device.compute(), x.f32(), route, width, out.f32());
}

/// [`gated::swiglu`].
pub fn swiglu(device: &Device, gate_up: View<'_>, out: ViewMut<'_>) {
    let (compute, ffn_dim) = (device.compute(), out.width());
    match gate_up {
        View::F32 { values, .. } => gated::swiglu(compute, values, ffn_dim, out.f32()),
        View::Bf16 { values, .. } => gated::swiglu(compute, values, ffn_dim, out.of::<bf16>()),
        View::Cuda(gate_up) => cuda::ops::swiglu::swiglu(device.gpu(), gate_up, out.on_gpu()),
    }
}

/// [`gated::swiglu_backward`]; `out` gets the output of [`swiglu`] once more, on a device that does not keep it
/// ([`Device::keeps_activated`]).
pub fn swiglu_backward(
    device: &Device,
    gate_up: View<'_>,
    d_out: View<'_>,
    d_gate_up: ViewMut<'_>,
    out: Option<ViewMut<'_>>,
) {
    if let Device::Cuda { gpu, .. } = device {
        assert!(out.is_none(), "a GPU keeps the output");
        let (gate_up, d_out) = (gate_up.on_gpu(), d_out.on_gpu());
        return cuda::ops::swiglu::swiglu_backward(gpu, gate_up, d_out, d_gate_up.on_gpu());
    }
    fn run<T: HostNumber>(
        device: &Device,
        (gate_up, d_out): (View<'_>, View<'_>),
        d_gate_up: ViewMut<'_>,
        out: ViewMut<'_>,
    ) {
        let ffn_dim = d_out.width();
        let (gate_up, d_out) = (gate_up.of::<T>(), d_out.of::<T>());
        let (d_gate_up, out) = (d_gate_up.of::<T>(), out.of::<T>());
        gated::swiglu_backward(device.compute(), gate_up, ffn_dim, d_out, d_gate_up, out);
    }
    let (inputs, out) = ((gate_up, d_out), out.expect("room for the output"));
    match gate_up {
        View::F32 { .. } => run::<f32>(device, inputs, d_gate_up, out),
        _ => run::<bf16>(device, inputs, d_gate_up, out),
    }
}

/// [`attention::append_keys_values`], then [`attention::attention`], within packed documents; the blocks are memory for one layer.
///
/// # Panics
/// When queries, blocks and output do not fit in number type.
pub fn packed_attention(
    device: &Device,
    shape: HeadShape,
    qkv: View<'_>,
    rows: &PackedRows,
    blocks: &mut KeyBlocks,
    out: ViewMut<'_>,
    log_sum_exp: ViewMut<'_>,
) {
    if let Device::Cuda { gpu, .. } = device {
        let (qkv, out, lse) = (qkv.on_gpu(), out.on_gpu(), log_sum_exp.on_gpu());
        return cuda::ops::attention_packed::attention(gpu, shape, qkv, rows.on_gpu(), out, lse);
    }
    attend(device, shape, qkv, &rows.sequences(), blocks, out, log_sum_exp);
}

/// As [`rotate_in_place`], but keys and values go into the blocks of their sequences, where [`cached_attention`] finds them.
pub fn rotate_and_append(
    device: &Device,
    shape: HeadShape,
    qkv: ViewMut<'_>,
    table: &RopeTable,
    (batch, layer_idx): (&CachedBatch<'_>, usize),
    blocks: &mut KeyBlocks,
) {
    let KeyBlocks::Cuda(blocks) = blocks else { panic!("a cache in memory") };
    let (gpu, layer) = (device.gpu(), (batch.on_gpu(shape), layer_idx));
    attention_paged::rotate_and_append(gpu, shape, qkv.on_gpu(), table.on_gpu(), layer, blocks);
}

/// [`attention::append_keys_values`], then [`attention::attention`], of one layer of sequences in a cache. On a GPU
/// [`rotate_and_append`] came before.
///
/// # Panics
/// When queries, blocks and output do not fit in number type.
pub fn cached_attention(
    device: &Device,
    shape: HeadShape,
    qkv: View<'_>,
    (batch, layer_idx): (&CachedBatch<'_>, usize),
    blocks: &mut KeyBlocks,
    out: ViewMut<'_>,
    log_sum_exp: ViewMut<'_>,
) {
    if let (Device::Cuda { gpu, .. }, KeyBlocks::Cuda(blocks)) = (device, &mut *blocks) {
        let (qkv, batch) = (qkv.on_gpu(), batch.on_gpu(shape));
        return attention_paged::attention(gpu, shape, qkv, batch, layer_idx, blocks, out.on_gpu());
    }
    attend(device, shape, qkv, &batch.sequences(layer_idx), blocks, out, log_sum_exp);
}

/// On the processors.
fn attend(
    device: &Device,
    shape: HeadShape,
    qkv: View<'_>,
    sequences: &[SequenceRows<'_>],
    blocks: &mut KeyBlocks,
    out: ViewMut<'_>,
    log_sum_exp: ViewMut<'_>,
) {
    let (compute, lse) = (device.compute(), log_sum_exp.f32());
    match (qkv, &mut *blocks) {
        (View::F32 { values, .. }, KeyBlocks::F32(blocks)) => {
            attention::append_keys_values(compute, shape, values, sequences, blocks);
            attention::attention(compute, shape, values, sequences, blocks, out.f32(), lse);
        }
        (View::Bf16 { values, .. }, KeyBlocks::Bf16(blocks)) => {
            attention::append_keys_values(compute, shape, values, sequences, blocks);
            match out {
                ViewMut::F32 { values: out, .. } => {
                    attention::attention(compute, shape, values, sequences, blocks, out, lse);
                }
                out => {
                    let out = out.of::<bf16>();
                    attention::attention(compute, shape, values, sequences, blocks, out, lse);
                }
            }
        }
        _ => panic!("queries of one number type or device, blocks of another"),
    }
}

/// What [`attention_backward`] reads: queries, keys and values, output and log-sum-exp of the forward pass, the gradient of
/// the output, and the documents.
#[derive(Clone, Copy, Debug)]
pub struct AttentionSaved<'a> {
    /// `[tokens, n_heads + 2 n_kv_heads, head_dim]`; queries and keys were rotated.
    pub qkv: View<'a>,
    /// `[tokens, n_heads, head_dim]`.
    pub out: View<'a>,
    /// `[tokens, n_heads]`.
    pub log_sum_exp: View<'a>,
    /// `[tokens, n_heads, head_dim]`.
    pub d_out: View<'a>,
    /// The documents of the batch.
    pub rows: &'a PackedRows,
    /// What queries and keys were rotated by.
    pub rope: &'a RopeTable,
}

/// [`attention::attention_backward`]: `d_qkv` is the gradient of queries, keys and values before queries and keys were rotated.
pub fn attention_backward(
    device: &Device,
    shape: HeadShape,
    saved: AttentionSaved<'_>,
    d_qkv: ViewMut<'_>,
) {
    fn run<T: HostNumber>(
        device: &Device,
        shape: HeadShape,
        saved: AttentionSaved<'_>,
        d_qkv: &mut [T],
    ) {
        let inputs = AttentionBackward {
            qkv: saved.qkv.of::<T>(),
            out: saved.out.of::<T>(),
            log_sum_exp: saved.log_sum_exp.f32(),
            d_out: saved.d_out.of::<T>(),
            segment_starts: saved.rows.segment_starts(),
            rope: saved.rope.host(),
        };
        attention::attention_backward(device.compute(), shape, inputs, d_qkv);
    }
    if let View::Cuda(qkv) = saved.qkv {
        let inputs = cuda::ops::attention_packed::AttentionBackward {
            qkv,
            out: saved.out.on_gpu(),
            log_sum_exp: saved.log_sum_exp.on_gpu(),
            d_out: saved.d_out.on_gpu(),
            rope: saved.rope.on_gpu(),
        };
        let (gpu, rows, d_qkv) = (device.gpu(), saved.rows.on_gpu(), d_qkv.on_gpu());
        return cuda::ops::attention_packed::attention_backward(gpu, shape, inputs, rows, d_qkv);
    }
    match d_qkv {
        ViewMut::F32 { values, .. } => run::<f32>(device, shape, saved, values),
        d_qkv => run::<bf16>(device, shape, saved, d_qkv.of::<bf16>()),
    }
}

/// [`loss::cross_entropy`]; without `d_logits` the losses alone. A device that works in place has the gradient of
/// [`cross_entropy_in_place`] only.
pub fn cross_entropy(
    device: &Device,
    logits: View<'_>,
    targets: &[u32],
    weights: &[f32],
    losses: ViewMut<'_>,
    d_logits: Option<ViewMut<'_>>,
) {
    if let Device::Cuda { gpu, .. } = device {
        assert!(d_logits.is_none(), "a GPU has the gradient in the place of the logits");
        let targets = RowNumbers::new(gpu, targets);
        let weights = DeviceMatrix::of_f32(gpu, NumberType::F32, weights, 1);
        let (weights, losses) = (weights.view(), losses.on_gpu());
        let rows = LossRows { targets: &targets, weights, losses };
        return cuda::ops::loss::cross_entropy(gpu, logits.on_gpu(), rows);
    }
    let (compute, logits, losses) = (device.compute(), logits.f32(), losses.f32());
    match d_logits {
        None => loss::cross_entropy::<f32>(compute, logits, targets, weights, losses, &mut []),
        Some(ViewMut::F32 { values, .. }) => {
            loss::cross_entropy(compute, logits, targets, weights, losses, values);
        }
        Some(d_logits) => {
            let d_logits = d_logits.of::<bf16>();
            loss::cross_entropy(compute, logits, targets, weights, losses, d_logits);
        }
    }
}

/// As [`cross_entropy`] with its gradient, which goes in the place of the logits, on a GPU, where logits that are learnt have the type of
/// the model. Logits of bf16 have 8 bits, as PyTorch's have in such a model; all sums and the losses are f32.
pub fn cross_entropy_in_place(
    device: &Device,
    logits: ViewMut<'_>,
    targets: &[u32],
    weights: &[f32],
    losses: ViewMut<'_>,
) {
    let gpu = device.gpu();
    let targets = RowNumbers::new(gpu, targets);
    let weights = DeviceMatrix::of_f32(gpu, NumberType::F32, weights, 1);
    let (weights, losses) = (weights.view(), losses.on_gpu());
    let rows = LossRows { targets: &targets, weights, losses };
    cuda::ops::loss::cross_entropy_in_place(gpu, logits.on_gpu(), rows);
}

/// [`likeliest::likeliest`]; ids and logarithms are all that comes from a GPU.
#[must_use]
pub fn likeliest(device: &Device, logits: View<'_>, rows: &[u32]) -> Vec<Option<Likeliest>> {
    if rows.is_empty() {
        return Vec::new();
    }
    if let Device::Cuda { gpu, .. } = device {
        let of_all = cuda::ops::loss::likeliest(gpu, logits.on_gpu());
        return rows.iter().map(|&row| of_all[row as usize]).collect();
    }
    let mut out = vec![None; rows.len()];
    likeliest::likeliest(device.compute(), logits.f32(), logits.width(), rows, &mut out);
    out
}

/// [`embedding::gather_backward`].
pub fn gather_backward(device: &Device, token_ids: &[u32], d_out: View<'_>, d_table: ViewMut<'_>) {
    if let Device::Cuda { gpu, .. } = device {
        let (d_out, d_table) = (d_out.on_gpu(), d_table.on_gpu());
        let groups = TokenGroups::new(gpu, token_ids);
        return cuda::ops::embedding::gather_backward(gpu, d_out, &groups, d_table);
    }
    let hidden = d_out.width();
    embedding::gather_backward(device.compute(), token_ids, d_out.f32(), hidden, d_table.f32());
}

/// Euclidean norm of all values of f32 tensors, summed in f64 in a fixed order ([`elementwise::sum_of_squares`]).
#[must_use]
pub fn norm<'a>(device: &Device, tensors: impl Iterator<Item = View<'a>>) -> f64 {
    let squares: f64 = match device {
        Device::Cpu(compute) => {
            tensors.map(|tensor| elementwise::sum_of_squares(compute, tensor.f32())).sum()
        }
        Device::Cuda { gpu, .. } => {
            let tensors: Vec<_> = tensors.map(View::on_gpu).collect();
            cuda::ops::elementwise::sum_of_squares(gpu, &tensors)
        }
    };
    squares.sqrt()
}

/// [`adamw::adamw_step`].
pub fn adamw_step(
    device: &Device,
    rule: AdamW,
    weights: ViewMut<'_>,
    gradient: View<'_>,
    m: ViewMut<'_>,
    v: ViewMut<'_>,
) {
    if let Device::Cuda { gpu, .. } = device {
        let (weights, gradient) = (weights.on_gpu(), gradient.on_gpu());
        return cuda::ops::elementwise::adamw_step(
            gpu,
            rule,
            weights,
            gradient,
            m.on_gpu(),
            v.on_gpu(),
        );
    }
    let (weights, gradient) = (weights.f32(), gradient.f32());
    adamw::adamw_step(device.compute(), rule, weights, gradient, m.f32(), v.f32());
}
