//! The operations on tensors. Shapes, numerics and sources stand with the kernels of the same names.
//!
//! Each function panics when a shape or number type does not fit: the model is built so that they do.

use half::bf16;
use kernels::attention::{self, AttentionBackward, HeadShape, SequenceRows};
use kernels::experts::{self, Route};
use kernels::rope::{self, Direction, RopeTable, RotatedHeads};
use kernels::{cross_entropy as loss, elementwise, embedding, norm, swiglu as gated};

use crate::Device;
use crate::key_blocks::KeyBlocks;
use crate::tensor::{DType, NumberType, Tensor, View, ViewMut};

/// Rounds or widens `x` into `out`.
pub fn convert(device: &Device, x: View<'_>, out: ViewMut<'_>) {
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
    }
}

/// [`norm::rms_norm`].
pub fn rms_norm(
    device: &Device,
    x: View<'_>,
    weight: &Tensor,
    eps: f32,
    out: ViewMut<'_>,
    inverse_rms: ViewMut<'_>,
) {
    let (compute, x, scales) = (device.compute(), x.f32(), inverse_rms.f32());
    match out {
        ViewMut::F32 { values, .. } => {
            norm::rms_norm(compute, x, weight.f32(), eps, values, scales)
        }
        ViewMut::Bf16 { values, .. } => {
            norm::rms_norm(compute, x, weight.f32(), eps, values, scales)
        }
    }
}

/// [`norm::rms_norm_backward`].
pub fn rms_norm_backward(
    device: &Device,
    x: View<'_>,
    weight: &Tensor,
    inverse_rms: View<'_>,
    d_out: View<'_>,
    d_x: ViewMut<'_>,
    d_weight: ViewMut<'_>,
) {
    let (compute, weight, scales) = (device.compute(), weight.f32(), inverse_rms.f32());
    let (d_out, d_x, d_weight) = (d_out.f32(), d_x.f32(), d_weight.f32());
    match x {
        View::F32 { values, .. } => {
            norm::rms_norm_backward(compute, values, weight, scales, d_out, d_x, d_weight);
        }
        View::Bf16 { values, .. } => {
            norm::rms_norm_backward(compute, values, weight, scales, d_out, d_x, d_weight);
        }
    }
}

/// [`rope::rotate`].
pub fn rotate(
    device: &Device,
    x: View<'_>,
    table: &RopeTable,
    heads: RotatedHeads,
    direction: Direction,
    out: ViewMut<'_>,
) {
    let (compute, x) = (device.compute(), x.f32());
    match out {
        ViewMut::F32 { values, .. } => {
            rope::rotate(compute, x, table, heads, direction, values);
        }
        ViewMut::Bf16 { values, .. } => {
            rope::rotate(compute, x, table, heads, direction, values);
        }
    }
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
    }
}

/// [`experts::add_weighted_rows`].
pub fn add_weighted_rows(device: &Device, x: View<'_>, route: &Route, out: ViewMut<'_>) {
    let width = x.width();
    experts::add_weighted_rows(device.compute(), x.f32(), route, width, out.f32());
}

/// [`gated::swiglu`].
pub fn swiglu(device: &Device, gate_up: View<'_>, rounded: ViewMut<'_>, out: ViewMut<'_>) {
    let ffn_dim = out.width();
    match out.dtype() {
        DType::F32 => forward::<f32>(device, gate_up, ffn_dim, rounded, out),
        DType::Bf16 => forward::<bf16>(device, gate_up, ffn_dim, rounded, out),
    }
    fn forward<T: NumberType>(
        device: &Device,
        gate_up: View<'_>,
        ffn_dim: usize,
        rounded: ViewMut<'_>,
        out: ViewMut<'_>,
    ) {
        let (rounded, out) = (rounded.of::<T>(), out.of::<T>());
        gated::swiglu(device.compute(), gate_up.f32(), ffn_dim, rounded, out);
    }
}

/// [`gated::swiglu_backward`].
pub fn swiglu_backward(
    device: &Device,
    rounded: View<'_>,
    d_out: View<'_>,
    d_gate_up: ViewMut<'_>,
    out: ViewMut<'_>,
) {
    let (compute, d_out, ffn_dim) = (device.compute(), d_out.f32(), out.width());
    match rounded {
        View::F32 { values, .. } => {
            let (d_gate_up, out) = (d_gate_up.of::<f32>(), out.of::<f32>());
            gated::swiglu_backward(compute, values, ffn_dim, d_out, d_gate_up, out);
        }
        View::Bf16 { values, .. } => {
            let (d_gate_up, out) = (d_gate_up.of::<bf16>(), out.of::<bf16>());
            gated::swiglu_backward(compute, values, ffn_dim, d_out, d_gate_up, out);
        }
    }
}

/// [`attention::append_keys_values`].
///
/// # Panics
/// When the blocks are for another number type.
pub fn append_keys_values(
    device: &Device,
    shape: HeadShape,
    qkv: View<'_>,
    sequences: &[SequenceRows<'_>],
    blocks: &mut KeyBlocks,
) {
    let compute = device.compute();
    match (qkv, blocks) {
        (View::F32 { values, .. }, KeyBlocks::F32(blocks)) => {
            attention::append_keys_values(compute, shape, values, sequences, blocks);
        }
        (View::Bf16 { values, .. }, KeyBlocks::Bf16(blocks)) => {
            attention::append_keys_values(compute, shape, values, sequences, blocks);
        }
        _ => panic!("keys and values of one number type, blocks for another"),
    }
}

/// [`attention::attention`].
///
/// # Panics
/// When queries, blocks and output do not fit in number type.
pub fn attention(
    device: &Device,
    shape: HeadShape,
    qkv: View<'_>,
    sequences: &[SequenceRows<'_>],
    blocks: &KeyBlocks,
    out: ViewMut<'_>,
    log_sum_exp: ViewMut<'_>,
) {
    let (compute, lse) = (device.compute(), log_sum_exp.f32());
    match (qkv, blocks, out) {
        (View::F32 { values, .. }, KeyBlocks::F32(blocks), ViewMut::F32 { values: out, .. }) => {
            attention::attention(compute, shape, values, sequences, blocks, out, lse);
        }
        (View::Bf16 { values, .. }, KeyBlocks::Bf16(blocks), ViewMut::F32 { values: out, .. }) => {
            attention::attention(compute, shape, values, sequences, blocks, out, lse);
        }
        (View::Bf16 { values, .. }, KeyBlocks::Bf16(blocks), ViewMut::Bf16 { values: out, .. }) => {
            attention::attention(compute, shape, values, sequences, blocks, out, lse);
        }
        _ => panic!("queries, blocks and output of different number types"),
    }
}

/// What [`attention_backward`] reads: queries, keys and values, output and log-sum-exp of the forward pass, the gradient of
/// the output, and the rows where documents begin.
#[derive(Clone, Copy, Debug)]
pub struct AttentionSaved<'a> {
    /// `[tokens, n_heads + 2 n_kv_heads, head_dim]`.
    pub qkv: View<'a>,
    /// `[tokens, n_heads, head_dim]`.
    pub out: View<'a>,
    /// `[tokens, n_heads]`.
    pub log_sum_exp: View<'a>,
    /// `[tokens, n_heads, head_dim]`.
    pub d_out: View<'a>,
    /// Ascending from 0 to the number of tokens.
    pub segment_starts: &'a [u32],
}

/// [`attention::attention_backward`].
pub fn attention_backward(
    device: &Device,
    shape: HeadShape,
    saved: AttentionSaved<'_>,
    d_qkv: ViewMut<'_>,
) {
    fn run<T: NumberType>(
        device: &Device,
        shape: HeadShape,
        saved: AttentionSaved<'_>,
        d_qkv: ViewMut<'_>,
    ) {
        let inputs = AttentionBackward {
            qkv: saved.qkv.of::<T>(),
            out: saved.out.of::<T>(),
            log_sum_exp: saved.log_sum_exp.f32(),
            d_out: saved.d_out.f32(),
            segment_starts: saved.segment_starts,
        };
        attention::attention_backward(device.compute(), shape, inputs, d_qkv.f32());
    }
    match saved.qkv {
        View::F32 { .. } => run::<f32>(device, shape, saved, d_qkv),
        View::Bf16 { .. } => run::<bf16>(device, shape, saved, d_qkv),
    }
}

/// [`loss::cross_entropy`] with the gradient.
pub fn cross_entropy(
    device: &Device,
    logits: View<'_>,
    targets: &[u32],
    weights: &[f32],
    losses: &mut [f32],
    d_logits: ViewMut<'_>,
) {
    let (compute, logits) = (device.compute(), logits.f32());
    match d_logits {
        ViewMut::F32 { values, .. } => {
            loss::cross_entropy(compute, logits, targets, weights, losses, values);
        }
        ViewMut::Bf16 { values, .. } => {
            loss::cross_entropy(compute, logits, targets, weights, losses, values);
        }
    }
}

/// [`loss::cross_entropy`] without the gradient.
pub fn token_losses(
    device: &Device,
    logits: View<'_>,
    targets: &[u32],
    weights: &[f32],
    losses: &mut [f32],
) {
    loss::cross_entropy::<f32>(device.compute(), logits.f32(), targets, weights, losses, &mut []);
}

/// [`embedding::gather_backward`].
pub fn gather_backward(device: &Device, token_ids: &[u32], d_out: View<'_>, d_table: ViewMut<'_>) {
    let hidden = d_out.width();
    embedding::gather_backward(device.compute(), token_ids, d_out.f32(), hidden, d_table.f32());
}
