//! The forward pass: one for training, scoring and serving.

use kernels::attention::CacheKind;
use kernels::matmul::Write;
use tensor::{CachedBatch, Device, KeyBlocks, PackedRows, RopeTable, Tensor, ViewMut, ops};

use crate::adapted::{self, AdaptedProduct, AdaptedRows, LoadedAdapter};
use crate::cache::{
    self, CachedContext, CachedRows, KvBlocks, LogitsRow, OnLogits, RowLogits, Wanted,
};
use crate::config::ModelConfig;
use crate::decoder::Decoder;
use crate::feed_forward;
use crate::workspace::Workspace;

/// Where a layer's attention finds the keys and values of earlier tokens.
pub(crate) trait AttentionContext {
    /// Rotates queries and keys where a device works in their place; it may take in keys and values already.
    ///
    /// Shapes: as in [`AttentionContext::attend`], which comes next.
    fn rotate_in_place(
        &mut self,
        device: &Device,
        config: &ModelConfig,
        layer_idx: usize,
        table: &RopeTable,
        qkv: &mut Tensor,
    );

    /// Takes in the keys and values of the batch's tokens and computes their attention.
    ///
    /// Shapes: qkv `[tokens, (n_heads + 2 n_kv_heads) head_dim]`, rotated; out `[tokens, n_heads head_dim]`; log_sum_exp
    /// `[tokens, n_heads]`.
    fn attend(
        &mut self,
        device: &Device,
        config: &ModelConfig,
        layer_idx: usize,
        qkv: &Tensor,
        out: &mut Tensor,
        log_sum_exp: &mut Tensor,
    );
}

/// Attention within packed documents, which do not see one another.
struct PackedContext<'a> {
    rows: &'a PackedRows,
    key_blocks: &'a mut KeyBlocks,
}

impl AttentionContext for PackedContext<'_> {
    fn rotate_in_place(
        &mut self,
        device: &Device,
        config: &ModelConfig,
        _layer_idx: usize,
        table: &RopeTable,
        qkv: &mut Tensor,
    ) {
        ops::rotate_in_place(device, qkv.view_mut(), table, config.head_shape().rotated());
    }

    fn attend(
        &mut self,
        device: &Device,
        config: &ModelConfig,
        layer_idx: usize,
        qkv: &Tensor,
        out: &mut Tensor,
        log_sum_exp: &mut Tensor,
    ) {
        let shape = config.layer_heads(layer_idx);
        let (out, lse) = (out.view_mut(), log_sum_exp.view_mut());
        ops::packed_attention(device, shape, qkv.view(), self.rows, self.key_blocks, out, lse);
    }
}

/// The rows of each adapter, neighbours of one adapter together.
fn adapted_rows<'a>(sequences: &[CachedRows<'a>]) -> Vec<AdaptedRows<'a>> {
    let mut adapted: Vec<AdaptedRows<'a>> = Vec::new();
    let mut end = 0;
    for sequence in sequences {
        let rows = end..end + sequence.token_ids.len();
        end = rows.end;
        let Some(adapter) = sequence.adapter else { continue };
        match adapted.last_mut() {
            Some(last) if last.rows.end == rows.start && std::ptr::eq(last.adapter, adapter) => {
                last.rows.end = rows.end;
            }
            _ => adapted.push(AdaptedRows { adapter, rows }),
        }
    }
    adapted
}

impl Decoder {
    /// Runs packed documents; leaves the normed output of the last layer in `workspace.final_normed`.
    pub(crate) fn forward_packed(
        &self,
        device: &Device,
        token_ids: &[u32],
        segment_starts: &[u32],
        adapter: Option<&LoadedAdapter>,
        workspace: &mut Workspace,
    ) {
        assert!(
            segment_starts.first() == Some(&0)
                && segment_starts.last().is_some_and(|&end| end as usize == token_ids.len()),
            "segments cover the batch"
        );
        assert!(segment_starts.is_sorted(), "segments overlap");
        workspace.positions.clear();
        for ends in segment_starts.windows(2) {
            let len = ends[1] - ends[0];
            let context_len = self.config.context_len;
            assert!(
                len as usize <= context_len,
                "a document of {len} in a context of {context_len}"
            );
            workspace.positions.extend(0..len);
        }
        let packed = PackedRows::new(device, segment_starts);
        let shape = self.config.head_shape();
        if packed.n_blocks() > workspace.key_blocks.n_blocks(shape) {
            // The old ones go first, or both would be in memory for a moment.
            let zeroed = |n| KeyBlocks::zeroed(device, self.dtype, CacheKind::Operands, shape, n);
            workspace.key_blocks = zeroed(0);
            workspace.key_blocks = zeroed(packed.n_blocks());
        }
        let empty = KeyBlocks::zeroed(device, self.dtype, CacheKind::Operands, shape, 0);
        let mut key_blocks = std::mem::replace(&mut workspace.key_blocks, empty);
        let mut context = PackedContext { rows: &packed, key_blocks: &mut key_blocks };
        let rows = 0..token_ids.len();
        let adapted: Vec<_> =
            adapter.map(|adapter| AdaptedRows { adapter, rows }).into_iter().collect();
        self.forward(device, token_ids, &adapted, &mut context, workspace);
        workspace.key_blocks = key_blocks;
        workspace.packed = Some(packed);
    }

    /// Writes the keys and values of new tokens into their sequences' blocks and hands what is wanted of logits to `on_logits`,
    /// the rows in order.
    ///
    /// Shapes: logits `[vocab]`. On the processors a row's logits have the same bits whatever sequences stand beside its own, however
    /// the tokens were cut into calls, and whichever blocks they lie in; on a GPU products may round otherwise with another number of
    /// rows.
    ///
    /// # Panics
    /// When a sequence has no token or wants more rows than it has, a token is not in the vocabulary, a position is beyond the context, a
    /// table is too short or names a block that there is not or that two sequences write, or the workspace is too small.
    pub fn forward_cached(
        &self,
        device: &Device,
        sequences: &[CachedRows<'_>],
        blocks: &mut KvBlocks,
        workspace: &mut Workspace,
        on_logits: &mut OnLogits<'_>,
    ) {
        let mut token_ids = Vec::with_capacity(workspace.max_rows());
        workspace.positions.clear();
        for sequence in sequences {
            let (first, n) = (sequence.first_position, sequence.token_ids.len());
            let end = first + n;
            assert!(n > 0, "a sequence without tokens");
            assert!(
                end <= self.config.context_len,
                "position {end} of a context of {}",
                self.config.context_len
            );
            token_ids.extend_from_slice(sequence.token_ids);
            workspace.positions.extend((first..end).map(|position| position as u32));
        }
        let adapted = adapted_rows(sequences);
        let heads = (0..self.config.n_layers).map(|layer_idx| self.config.layer_heads(layer_idx));
        let cached = cache::cached_sequences(sequences);
        let mut context = CachedContext { batch: CachedBatch::new(device, heads, &cached), blocks };
        self.forward(device, &token_ids, &adapted, &mut context, workspace);
        self.wanted_logits(device, sequences, workspace, on_logits);
    }

    fn wanted_logits(
        &self,
        device: &Device,
        sequences: &[CachedRows<'_>],
        workspace: &mut Workspace,
        on_logits: &mut OnLogits<'_>,
    ) {
        let (mut wanted, mut kept) = (Vec::<(LogitsRow, Wanted)>::new(), Vec::new());
        let mut first_row = 0;
        for (sequence_idx, sequence) in sequences.iter().enumerate() {
            let (n, n_logits) = (sequence.token_ids.len(), sequence.n_logits);
            assert!(n_logits <= n, "logits of {n_logits} rows of {n}");
            for row_idx in n - n_logits..n {
                kept.push((first_row + row_idx) as u32);
                wanted.push((LogitsRow { sequence_idx, row_idx }, sequence.wanted));
            }
            first_row += n;
        }
        workspace.final_normed.keep_rows(device, &kept);
        let logit_rows = device.logit_rows();
        for (chunk_idx, rows) in wanted.chunks(logit_rows).enumerate() {
            let first = chunk_idx * logit_rows;
            self.logits_of(device, first..first + rows.len(), workspace);
            let places_of = |what| -> Vec<u32> {
                let places = (0..).zip(rows).filter(|(_, (_, wanted))| *wanted == what);
                places.map(|(place, _)| place).collect()
            };
            let (of_some, whole) = (places_of(Wanted::Likeliest), places_of(Wanted::Logits));
            let likeliest = ops::likeliest(device, workspace.logits.view(), &of_some);
            workspace.logits.keep_rows(device, &whole);
            workspace.logits.set_rows(whole.len());
            let logits = workspace.logits.read_f32(&mut workspace.host_logits);
            let mut logits = logits.chunks_exact(self.config.vocab_size).map(RowLogits::Logits);
            let mut likeliest = likeliest.into_iter().map(RowLogits::Likeliest);
            for &(row, wanted) in rows {
                let found = match wanted {
                    Wanted::Logits => logits.next(),
                    Wanted::Likeliest => likeliest.next(),
                };
                on_logits(row, found.expect("as many as are wanted"));
            }
        }
    }

    /// All layers on a batch of packed rows whose positions are in `workspace.positions`.
    fn forward(
        &self,
        device: &Device,
        token_ids: &[u32],
        adapted: &[AdaptedRows<'_>],
        context: &mut impl AttentionContext,
        workspace: &mut Workspace,
    ) {
        for AdaptedRows { adapter, .. } in adapted {
            assert!(adapter.fits(&self.config, self.dtype), "an adapter for another model");
        }
        assert_eq!(workspace.positions.len(), token_ids.len(), "one position per token");
        workspace.set_rows(token_ids.len());
        workspace.rope.set(device, &self.rope, &workspace.positions);
        self.embedding.gather(device, token_ids, workspace.residual.view_mut());
        for layer_idx in 0..self.layers.len() {
            self.attention_part(device, layer_idx, adapted, context, workspace);
            self.ffn_part(device, layer_idx, adapted, workspace);
        }
        let w = workspace;
        let (out, scales) = (w.final_normed.view_mut(), w.final_scales.view_mut());
        let kept = w.final_input.as_mut().map(Tensor::view_mut);
        ops::rms_norm(device, w.residual.view(), &self.final_norm, self.eps(), out, scales, kept);
    }

    /// `residual += attention(norm(residual)) W_out`
    fn attention_part(
        &self,
        device: &Device,
        layer_idx: usize,
        adapted: &[AdaptedRows<'_>],
        context: &mut impl AttentionContext,
        workspace: &mut Workspace,
    ) {
        let layer = &self.layers[layer_idx];
        let w = workspace;
        let slot = layer_idx % w.layers.len();
        let a = &mut w.layers[slot];
        let (x, eps, kept) =
            (w.residual.view(), self.eps(), a.attention_input.as_mut().map(Tensor::view_mut));
        let (normed, scales) = (a.attention_normed.view_mut(), a.attention_scales.view_mut());
        ops::rms_norm(device, x, &layer.attention_norm, eps, normed, scales, kept);
        let (normed, out) = (&a.attention_normed, w.qkv.as_mut().unwrap_or(&mut a.qkv));
        layer.qkv.forward(device, normed.view(), out.view_mut(), Write::Overwrite, &mut w.operands);
        let changes = (adapted, layer_idx, AdaptedProduct::Qkv);
        let scratch = (&mut w.low_rank, &mut w.operands);
        adapted::add(device, changes, normed, out, scratch);
        match &w.qkv {
            Some(x) => {
                let heads = self.config.head_shape().rotated();
                ops::rotate(device, x.view(), &w.rope, heads, a.qkv.view_mut());
            }
            None => {
                context.rotate_in_place(device, &self.config, layer_idx, &w.rope, &mut a.qkv);
            }
        }
        let (out, lse) = (&mut a.attention_out, &mut a.log_sum_exp);
        context.attend(device, &self.config, layer_idx, &a.qkv, out, lse);
        let (x, residual, scratch) =
            (a.attention_out.view(), w.residual.view_mut(), &mut w.operands);
        layer.attention_out.forward(device, x, residual, Write::Accumulate, scratch);
        let changes = (adapted, layer_idx, AdaptedProduct::AttentionOut);
        let scratch = (&mut w.low_rank, &mut w.operands);
        adapted::add(device, changes, &a.attention_out, &mut w.residual, scratch);
    }

    /// `residual += ffn(norm(residual))`
    fn ffn_part(
        &self,
        device: &Device,
        layer_idx: usize,
        adapted: &[AdaptedRows<'_>],
        workspace: &mut Workspace,
    ) {
        let layer = &self.layers[layer_idx];
        let w = workspace;
        let slot = layer_idx % w.layers.len();
        let a = &mut w.layers[slot];
        let (x, eps, kept) =
            (w.residual.view(), self.eps(), a.ffn_input.as_mut().map(Tensor::view_mut));
        let (normed, scales) = (a.ffn_normed.view_mut(), a.ffn_scales.view_mut());
        ops::rms_norm(device, x, &layer.ffn_norm, eps, normed, scales, kept);
        feed_forward::run(device, &layer.ffn, (adapted, layer_idx), slot, w);
    }

    fn eps(&self) -> f32 {
        self.config.rms_norm_eps as f32
    }

    /// Loss in nats of each token's target, in packed documents.
    ///
    /// Shapes: token_ids, targets `[tokens]`; segment_starts ascending from 0 to the number of tokens.
    ///
    /// # Panics
    /// When an id is not in the vocabulary, a document is longer than the context, or the workspace is too small.
    #[must_use]
    pub fn token_losses(
        &self,
        device: &Device,
        token_ids: &[u32],
        targets: &[u32],
        segment_starts: &[u32],
        workspace: &mut Workspace,
    ) -> Vec<f32> {
        self.adapted_token_losses(device, token_ids, targets, segment_starts, None, workspace)
    }

    /// As [`Decoder::token_losses`], with the changes of an adapter.
    ///
    /// # Panics
    /// As [`Decoder::token_losses`], and when the adapter is one for another model.
    #[must_use]
    pub fn adapted_token_losses(
        &self,
        device: &Device,
        token_ids: &[u32],
        targets: &[u32],
        segment_starts: &[u32],
        adapter: Option<&LoadedAdapter>,
        workspace: &mut Workspace,
    ) -> Vec<f32> {
        assert_eq!(token_ids.len(), targets.len(), "one target per token");
        self.forward_packed(device, token_ids, segment_starts, adapter, workspace);
        let logit_rows = device.logit_rows();
        for first in (0..targets.len()).step_by(logit_rows) {
            let rows = first..targets.len().min(first + logit_rows);
            self.logits_of(device, rows.clone(), workspace);
            let weights = vec![1.0; rows.len()];
            let (logits, targets) = (workspace.logits.view(), &targets[rows.clone()]);
            let losses = workspace.losses.rows_mut(rows);
            ops::cross_entropy(device, logits, targets, &weights, losses, None);
        }
        workspace.losses.to_f32()
    }

    /// Logits of every token of packed documents, f32 `[tokens, vocab]`.
    ///
    /// # Panics
    /// As [`Decoder::token_losses`].
    #[must_use]
    pub fn logits(
        &self,
        device: &Device,
        token_ids: &[u32],
        segment_starts: &[u32],
        workspace: &mut Workspace,
    ) -> Vec<f32> {
        self.adapted_logits(device, token_ids, segment_starts, None, workspace)
    }

    /// As [`Decoder::logits`], with the changes of an adapter.
    ///
    /// # Panics
    /// As [`Decoder::token_losses`], and when the adapter is one for another model.
    #[must_use]
    pub fn adapted_logits(
        &self,
        device: &Device,
        token_ids: &[u32],
        segment_starts: &[u32],
        adapter: Option<&LoadedAdapter>,
        workspace: &mut Workspace,
    ) -> Vec<f32> {
        self.forward_packed(device, token_ids, segment_starts, adapter, workspace);
        let mut logits = Vec::with_capacity(token_ids.len() * self.config.vocab_size);
        let logit_rows = device.logit_rows();
        for first in (0..token_ids.len()).step_by(logit_rows) {
            let rows = first..token_ids.len().min(first + logit_rows);
            let start = logits.len();
            logits.resize(start + rows.len() * self.config.vocab_size, 0.0);
            self.logits_of(device, rows, workspace);
            workspace.logits.read_into(&mut logits[start..]);
        }
        logits
    }

    /// Logits of some rows of the last forward pass, into `workspace.logits`.
    pub(crate) fn logits_of(
        &self,
        device: &Device,
        rows: std::ops::Range<usize>,
        workspace: &mut Workspace,
    ) {
        workspace.logits.set_rows(rows.len());
        let (hidden, logits) = (workspace.final_normed.rows(rows), workspace.logits.view_mut());
        let operands = &mut workspace.operands;
        self.head().forward(device, hidden, logits, Write::Overwrite, operands);
    }

    /// As [`Decoder::logits_of`], elsewhere and in the number type of that.
    pub(crate) fn logits_into(
        &self,
        device: &Device,
        rows: std::ops::Range<usize>,
        workspace: &mut Workspace,
        logits: ViewMut<'_>,
    ) {
        let (hidden, operands) = (workspace.final_normed.rows(rows), &mut workspace.operands);
        self.head().forward(device, hidden, logits, Write::Overwrite, operands);
    }
}
