//! The forward pass: one for training, scoring and serving.

use kernels::attention::{CacheKind, HeadShape, KEY_BLOCK, SequenceRows};
use kernels::matmul::Write;
use kernels::rope::Direction;
use tensor::{DType, Device, KeyBlocks, Tensor, ops};

use crate::adapted::{self, AdaptedRows, LayerChanges, LoadedAdapter};
use crate::cache::{CachedContext, CachedRows, KvBlocks, LogitsRow};
use crate::config::ModelConfig;
use crate::decoder::Decoder;
use crate::feed_forward;
use crate::workspace::{LOGIT_ROWS, Workspace};

/// Where a layer's attention finds the keys and values of earlier tokens.
pub(crate) trait AttentionContext {
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
    segment_starts: &'a [u32],
    /// Blocks of each document, one document after the other.
    block_tables: Vec<Vec<u32>>,
    key_blocks: KeyBlocks,
}

impl<'a> PackedContext<'a> {
    /// Takes `key_blocks` over, making it larger when the documents need more blocks than any batch before.
    fn new(
        segment_starts: &'a [u32],
        dtype: DType,
        shape: HeadShape,
        key_blocks: KeyBlocks,
    ) -> Self {
        let mut n_blocks = 0;
        let block_tables: Vec<Vec<u32>> = segment_starts
            .windows(2)
            .map(|ends| {
                let n = (ends[1] - ends[0]).div_ceil(KEY_BLOCK as u32);
                n_blocks += n;
                (n_blocks - n..n_blocks).collect()
            })
            .collect();
        let n_blocks = n_blocks as usize;
        let key_blocks = if n_blocks > key_blocks.n_blocks(shape) {
            // The old ones go first, or both would be in memory for a moment.
            drop(key_blocks);
            KeyBlocks::zeroed(dtype, CacheKind::Operands, shape, n_blocks)
        } else {
            key_blocks
        };
        Self { segment_starts, block_tables, key_blocks }
    }
}

impl AttentionContext for PackedContext<'_> {
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
        let sequences: Vec<SequenceRows<'_>> = self
            .segment_starts
            .windows(2)
            .zip(&self.block_tables)
            .map(|(ends, block_table)| SequenceRows {
                first_row: ends[0] as usize,
                n_rows: (ends[1] - ends[0]) as usize,
                first_position: 0,
                block_table,
            })
            .collect();
        ops::append_keys_values(device, shape, qkv.view(), &sequences, &mut self.key_blocks);
        let (blocks, out, lse) = (&self.key_blocks, out.view_mut(), log_sum_exp.view_mut());
        ops::attention(device, shape, qkv.view(), &sequences, blocks, out, lse);
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
        let shape = self.config.head_shape();
        let empty = KeyBlocks::zeroed(self.dtype, CacheKind::Operands, shape, 0);
        let key_blocks = std::mem::replace(&mut workspace.key_blocks, empty);
        let mut context = PackedContext::new(segment_starts, self.dtype, shape, key_blocks);
        let rows = 0..token_ids.len();
        let adapted: Vec<_> =
            adapter.map(|adapter| AdaptedRows { adapter, rows }).into_iter().collect();
        self.forward(device, token_ids, &adapted, &mut context, workspace);
        workspace.key_blocks = context.key_blocks;
    }

    /// Writes the keys and values of new tokens into their sequences' blocks and hands the logits of the rows that are wanted to
    /// `on_logits`, in order.
    ///
    /// Shapes: logits `[vocab]`. A row's logits have the same bits whatever sequences stand beside its own, however the tokens were
    /// cut into calls, and whichever blocks they lie in.
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
        on_logits: &mut dyn FnMut(LogitsRow, &[f32]),
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
        let mut context = CachedContext { sequences, blocks };
        self.forward(device, &token_ids, &adapted, &mut context, workspace);
        self.wanted_logits(device, sequences, workspace, on_logits);
    }

    fn wanted_logits(
        &self,
        device: &Device,
        sequences: &[CachedRows<'_>],
        workspace: &mut Workspace,
        on_logits: &mut dyn FnMut(LogitsRow, &[f32]),
    ) {
        let mut wanted = Vec::new();
        let mut first_row = 0;
        for (sequence_idx, sequence) in sequences.iter().enumerate() {
            let (n, n_logits) = (sequence.token_ids.len(), sequence.n_logits);
            assert!(n_logits <= n, "logits of {n_logits} rows of {n}");
            for row_idx in n - n_logits..n {
                // Not behind the row where it goes: no row is overwritten before it moved.
                workspace.final_normed.copy_row(first_row + row_idx, wanted.len());
                wanted.push(LogitsRow { sequence_idx, row_idx });
            }
            first_row += n;
        }
        for (chunk_idx, rows) in wanted.chunks(LOGIT_ROWS).enumerate() {
            let first = chunk_idx * LOGIT_ROWS;
            self.logits_of(device, first..first + rows.len(), workspace);
            let logits = workspace.logits.f32().chunks_exact(self.config.vocab_size);
            rows.iter().zip(logits).for_each(|(&row, logits)| on_logits(row, logits));
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
        workspace.rope.set(device.compute(), &self.rope, &workspace.positions);
        self.embedding.gather(device, token_ids, workspace.residual.view_mut());
        for layer_idx in 0..self.layers.len() {
            self.attention_part(device, layer_idx, adapted, context, workspace);
            self.ffn_part(device, layer_idx, adapted, workspace);
        }
        let w = workspace;
        if let Some(input) = &mut w.final_input {
            ops::convert(device, w.residual.view(), input.view_mut());
        }
        let (out, scales) = (w.final_normed.view_mut(), w.final_scales.view_mut());
        ops::rms_norm(device, w.residual.view(), &self.final_norm, self.eps(), out, scales);
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
        if let Some(input) = &mut a.attention_input {
            ops::convert(device, w.residual.view(), input.view_mut());
        }
        let (normed, scales) = (a.attention_normed.view_mut(), a.attention_scales.view_mut());
        ops::rms_norm(device, w.residual.view(), &layer.attention_norm, self.eps(), normed, scales);
        let (normed, out) = (&a.attention_normed, w.qkv.view_mut());
        layer.qkv.forward(device, normed.view(), out, Write::Overwrite, &mut w.operands);
        let changes = (adapted, layer_idx, LayerChanges::qkv as adapted::Product);
        let scratch = (&mut w.low_rank, &mut w.operands);
        adapted::add(device, changes, normed, &mut w.qkv, scratch);
        let (heads, rotated) = (self.config.rotated_heads(), a.qkv.view_mut());
        ops::rotate(device, w.qkv.view(), &w.rope, heads, Direction::Forward, rotated);
        let (out, lse) = (&mut a.attention_out, &mut a.log_sum_exp);
        context.attend(device, &self.config, layer_idx, &a.qkv, out, lse);
        let (x, residual, scratch) =
            (a.attention_out.view(), w.residual.view_mut(), &mut w.operands);
        layer.attention_out.forward(device, x, residual, Write::Accumulate, scratch);
        let changes = (adapted, layer_idx, LayerChanges::attention_out as adapted::Product);
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
        if let Some(input) = &mut a.ffn_input {
            ops::convert(device, w.residual.view(), input.view_mut());
        }
        let (normed, scales) = (a.ffn_normed.view_mut(), a.ffn_scales.view_mut());
        ops::rms_norm(device, w.residual.view(), &layer.ffn_norm, self.eps(), normed, scales);
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
        assert_eq!(token_ids.len(), targets.len(), "one target per token");
        self.forward_packed(device, token_ids, segment_starts, None, workspace);
        let mut losses = vec![0.0; targets.len()];
        for first in (0..targets.len()).step_by(LOGIT_ROWS) {
            let rows = first..targets.len().min(first + LOGIT_ROWS);
            self.logits_of(device, rows.clone(), workspace);
            let weights = vec![1.0; rows.len()];
            let logits = workspace.logits.view();
            ops::token_losses(device, logits, &targets[rows.clone()], &weights, &mut losses[rows]);
        }
        losses
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
        for first in (0..token_ids.len()).step_by(LOGIT_ROWS) {
            self.logits_of(device, first..token_ids.len().min(first + LOGIT_ROWS), workspace);
            logits.extend_from_slice(workspace.logits.f32());
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
}
