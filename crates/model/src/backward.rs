//! The backward pass, written out by hand.

use tensor::ops::{AttentionSaved, NormSaved};
use tensor::{DType, Device, LinearScratch, LowRankGradients, PackedRows, Tensor, ops};

use crate::adapted::{AdaptedProduct, even};
use crate::adapter_backward::Learnt;
use crate::adapter_parameters::AdapterSettings;
use crate::config::ModelConfig;
use crate::decoder::Decoder;
use crate::workspace::Workspace;

/// Packed documents to be learnt.
#[derive(Clone, Copy, Debug)]
pub struct TrainingRows<'a> {
    /// `[tokens]`.
    pub token_ids: &'a [u32],
    /// The token to be predicted after each, `[tokens]`.
    pub targets: &'a [u32],
    /// Weight of each target's loss in the gradient, `[tokens]`; 0 for tokens without a target.
    pub target_weights: &'a [f32],
    /// Rows where documents begin, ascending from 0 to the number of tokens.
    pub segment_starts: &'a [u32],
}

/// The planned memory of a backward pass. `T` stands for the decoder's number type.
#[derive(Debug)]
pub struct GradientWorkspace {
    /// Gradient of the residual stream, f32 `[tokens, hidden]`.
    d_residual: Tensor,
    /// The same rounded, T.
    d_rounded: Tensor,
    /// Gradient of a norm's output, T `[tokens, hidden]`.
    d_normed: Tensor,
    /// T `[tokens, n_heads head_dim]`.
    d_attention_out: Tensor,
    /// T `[tokens, (n_heads + 2 n_kv_heads) head_dim]`.
    d_qkv: Tensor,
    /// T `[tokens, ffn]`.
    d_activated: Tensor,
    /// T `[tokens, 2 ffn]`.
    d_gate_up: Tensor,
    /// T `[rows, vocab]`, a chunk of the tokens; before it the logits, where the device works in their place.
    d_logits: Tensor,
    layer_scratch: LinearScratch,
    head_scratch: LinearScratch,
    /// For an adapter.
    low_rank: Option<LowRankGradients>,
}

/// What a workspace has room for.
#[derive(Clone, Copy)]
struct GradientRoom<'a> {
    config: &'a ModelConfig,
    /// The adapter, where one is learnt and the model is not.
    adapter: Option<&'a AdapterSettings>,
    dtype: DType,
    max_rows: usize,
}

impl GradientRoom<'_> {
    /// Most inputs of a weight whose gradient is computed: of a layer's, of b of an adapter.
    fn largest_input(self) -> usize {
        let (config, shape) = (self.config, self.config.head_shape());
        let of_layer = config.hidden_dim.max(config.ffn_dim).max(shape.n_heads * shape.head_dim);
        of_layer.max(self.rank().unwrap_or(0))
    }

    /// Of the adapter, as it is computed.
    fn rank(self) -> Option<usize> {
        self.adapter.map(|settings| even(settings.rank))
    }

    /// Rows and inputs of the head's gradient; none where the model is not learnt.
    fn head_input(self, logit_rows: usize) -> [usize; 2] {
        if self.adapter.is_some() { [0, 0] } else { [logit_rows, self.config.hidden_dim] }
    }

    fn workspace(self, device: &Device) -> GradientWorkspace {
        let Self { config, dtype, max_rows, .. } = self;
        let (hidden, ffn, shape) = (config.hidden_dim, config.ffn_dim, config.head_shape());
        let (qkv, attention) = (shape.qkv_width(), shape.n_heads * shape.head_dim);
        let zeroed = |dtype, n_rows, width| Tensor::zeroed_on(device, dtype, n_rows, width);
        let f32_rows = |width| zeroed(DType::F32, max_rows, width);
        let operand = |width| zeroed(dtype, max_rows, width);
        let logit_rows = max_rows.min(device.learnt_logit_rows());
        let [head_rows, head_in] = self.head_input(logit_rows);
        let low_rank = |rank| LowRankGradients::new(device, dtype, max_rows, rank);
        let workspace = GradientWorkspace {
            d_residual: f32_rows(hidden),
            d_rounded: operand(hidden),
            d_normed: operand(hidden),
            d_attention_out: operand(attention),
            d_qkv: operand(qkv),
            d_activated: operand(ffn),
            d_gate_up: operand(2 * ffn),
            d_logits: zeroed(dtype, logit_rows, config.vocab_size),
            layer_scratch: LinearScratch::new(device, dtype, max_rows, self.largest_input()),
            head_scratch: LinearScratch::new(device, dtype, head_rows, head_in),
            low_rank: self.rank().map(low_rank),
        };
        if let Device::Cpu(_) = device {
            let planned = self.n_bytes();
            debug_assert_eq!(workspace.n_bytes(), planned, "bytes of a workspace against the plan");
        }
        workspace
    }

    /// Bytes of it where the processors compute.
    fn n_bytes(self) -> usize {
        let Self { config, dtype, max_rows, .. } = self;
        let (hidden, ffn, shape) = (config.hidden_dim, config.ffn_dim, config.head_shape());
        let (qkv, attention) = (shape.qkv_width(), shape.n_heads * shape.head_dim);
        let logit_rows = max_rows.min(Device::CPU_LOGIT_ROWS);
        let [head_rows, head_in] = self.head_input(logit_rows);
        max_rows * (hidden * 4 + (2 * hidden + attention + qkv + 3 * ffn) * dtype.bytes())
            + logit_rows * config.vocab_size * dtype.bytes()
            + LinearScratch::bytes_for(dtype, max_rows, self.largest_input())
            + LinearScratch::bytes_for(dtype, head_rows, head_in)
            + self.rank().map_or(0, |rank| LowRankGradients::bytes_for(dtype, max_rows, rank))
    }
}

impl GradientWorkspace {
    /// Room for up to `max_rows` tokens.
    #[must_use]
    pub fn new(device: &Device, config: &ModelConfig, dtype: DType, max_rows: usize) -> Self {
        let room = GradientRoom { config, adapter: None, dtype, max_rows };
        room.workspace(device)
    }

    /// Room for the gradients of an adapter beside a model that stays as it is.
    #[must_use]
    pub fn for_adapter(
        device: &Device,
        config: &ModelConfig,
        settings: &AdapterSettings,
        dtype: DType,
        max_rows: usize,
    ) -> Self {
        let room = GradientRoom { config, adapter: Some(settings), dtype, max_rows };
        room.workspace(device)
    }

    /// Bytes of [`GradientWorkspace::new`] where the processors compute.
    #[must_use]
    pub fn bytes_for(config: &ModelConfig, dtype: DType, max_rows: usize) -> usize {
        GradientRoom { config, adapter: None, dtype, max_rows }.n_bytes()
    }

    /// Bytes of [`GradientWorkspace::for_adapter`] where the processors compute.
    #[must_use]
    pub fn bytes_for_adapter(
        config: &ModelConfig,
        settings: &AdapterSettings,
        dtype: DType,
        max_rows: usize,
    ) -> usize {
        GradientRoom { config, adapter: Some(settings), dtype, max_rows }.n_bytes()
    }

    /// Bytes that it holds.
    pub(crate) fn n_bytes(&self) -> usize {
        let Self {
            d_residual,
            d_rounded,
            d_normed,
            d_attention_out,
            d_qkv,
            d_activated,
            d_gate_up,
            d_logits,
            layer_scratch,
            head_scratch,
            low_rank,
        } = self;
        let tensors = [
            d_residual,
            d_rounded,
            d_normed,
            d_attention_out,
            d_qkv,
            d_activated,
            d_gate_up,
            d_logits,
        ];
        tensors.into_iter().map(Tensor::n_bytes).sum::<usize>()
            + layer_scratch.n_bytes()
            + head_scratch.n_bytes()
            + low_rank.as_ref().map_or(0, LowRankGradients::n_bytes)
    }

    fn set_rows(&mut self, n_rows: usize) {
        for tensor in [
            &mut self.d_residual,
            &mut self.d_rounded,
            &mut self.d_normed,
            &mut self.d_attention_out,
            &mut self.d_qkv,
            &mut self.d_activated,
            &mut self.d_gate_up,
        ] {
            tensor.set_rows(n_rows);
        }
    }
}

impl Decoder {
    /// Forward and backward over a batch: adds the gradient of `sum_t weights[t] loss[t]` to those of what is learnt, and leaves the
    /// loss of each token in [`Workspace::losses`]. Nothing waits for a GPU.
    ///
    /// # Panics
    /// When an id is not in the vocabulary, a document is longer than the context, a workspace is too small or not one for an
    /// adapter that is learnt, or the decoder is not packed for training.
    pub fn loss_and_gradients(
        &self,
        device: &Device,
        rows: TrainingRows<'_>,
        workspace: &mut Workspace,
        gradient_workspace: &mut GradientWorkspace,
        mut learnt: Learnt<'_>,
    ) {
        assert_eq!(workspace.layers.len(), self.layers.len(), "a workspace for training");
        let (w, g) = (workspace, gradient_workspace);
        g.set_rows(rows.token_ids.len());
        self.forward_packed(device, rows.token_ids, rows.segment_starts, learnt.adapter(), w);
        self.head_backward(device, rows, w, g, &mut learnt);
        let saved = NormSaved {
            x: w.final_input.as_ref().unwrap_or(&w.final_normed).view(),
            weight: &self.final_norm,
            inverse_rms: w.final_scales.view(),
            d_out: g.d_normed.view(),
        };
        let (d_residual, d_rounded) = (&mut g.d_residual, &mut g.d_rounded);
        d_residual.clear();
        let d_weight = learnt.model().map(|d| d.final_norm.view_mut());
        ops::rms_norm_backward(device, saved, d_residual, d_rounded, d_weight);
        let packed = w.packed.take().expect("the forward pass was one of packed documents");
        for layer_idx in (0..self.layers.len()).rev() {
            self.ffn_backward(device, layer_idx, w, g, &mut learnt);
            self.attention_backward(device, layer_idx, &packed, w, g, &mut learnt);
        }
        if let Some(d) = learnt.model() {
            let d_table = d.embedding.view_mut();
            ops::gather_backward(device, rows.token_ids, g.d_residual.view(), d_table);
        }
    }

    /// Logits, loss and the gradients of the head and of the final norm's output, a chunk of tokens at a time.
    fn head_backward(
        &self,
        device: &Device,
        rows: TrainingRows<'_>,
        w: &mut Workspace,
        g: &mut GradientWorkspace,
        learnt: &mut Learnt<'_>,
    ) {
        let n_tokens = rows.token_ids.len();
        let logit_rows = device.learnt_logit_rows();
        for first in (0..n_tokens).step_by(logit_rows) {
            let range = first..n_tokens.min(first + logit_rows);
            g.d_logits.set_rows(range.len());
            let targets = &rows.targets[range.clone()];
            let weights = &rows.target_weights[range.clone()];
            let d_logits = g.d_logits.view_mut();
            if device.works_in_place() {
                self.logits_into(device, range.clone(), w, d_logits);
                let (logits, losses) = (g.d_logits.view_mut(), w.losses.rows_mut(range.clone()));
                ops::cross_entropy_in_place(device, logits, targets, weights, losses);
            } else {
                self.logits_of(device, range.clone(), w);
                let (logits, losses) = (w.logits.view(), w.losses.rows_mut(range.clone()));
                ops::cross_entropy(device, logits, targets, weights, losses, Some(d_logits));
            }
            let d_logits = g.d_logits.view();
            self.head().backward_input(device, d_logits, g.d_normed.rows_mut(range.clone()));
            if let Some(d) = learnt.model() {
                let d_head = d.head.as_mut().unwrap_or(&mut d.embedding);
                let hidden = w.final_normed.rows(range);
                g.head_scratch.backward_weight(device, d_logits, hidden, d_head.view_mut());
            }
        }
    }

    fn ffn_backward(
        &self,
        device: &Device,
        layer_idx: usize,
        w: &mut Workspace,
        g: &mut GradientWorkspace,
        learnt: &mut Learnt<'_>,
    ) {
        let (layer, a) = (&self.layers[layer_idx], &w.layers[layer_idx]);
        let (down, gate_up) = (AdaptedProduct::Down, AdaptedProduct::GateUp);
        let (d_out, d_activated) = (g.d_rounded.view(), &mut g.d_activated);
        let (at, d_x) = ((layer_idx, down), d_activated.view_mut());
        let write = learnt.change_backward_input(device, at, d_out, d_x, &mut g.low_rank);
        let (ffn, d_x) = (layer.ffn.dense(), d_activated.view_mut());
        ffn.down.backward_input_columns(device, d_out, 0, d_x, write);
        ops::swiglu_backward(
            device,
            a.gate_up.view(),
            g.d_activated.view(),
            g.d_gate_up.view_mut(),
            w.activated.as_mut().map(Tensor::view_mut),
        );
        let scratch = (&mut g.low_rank, &mut g.layer_scratch);
        let activated = a.activated.as_ref().or(w.activated.as_ref());
        let activated = activated.expect("its own or one for all").view();
        learnt.change_backward_factors(device, at, (activated, d_out), scratch);
        let (d_gate_up, normed) = (g.d_gate_up.view(), a.ffn_normed.view());
        if let Some(d) = learnt.layer(layer_idx) {
            let scratch = &mut g.layer_scratch;
            scratch.backward_weight(device, d_out, activated, d.down.view_mut());
            scratch.backward_weight(device, d_gate_up, normed, d.gate_up.view_mut());
        }
        let (operands, d_x) = ((normed, d_gate_up), Some(g.d_normed.view_mut()));
        let scratch = (&mut g.low_rank, &mut g.layer_scratch);
        let at = (layer_idx, gate_up);
        let write = learnt.changes_backward(device, at, operands, d_x, scratch);
        let d_x = g.d_normed.view_mut();
        ffn.gate_up.backward_input_columns(device, d_gate_up, 0, d_x, write);
        let saved = NormSaved {
            x: a.ffn_input.as_ref().unwrap_or(&a.ffn_normed).view(),
            weight: &layer.ffn_norm,
            inverse_rms: a.ffn_scales.view(),
            d_out: g.d_normed.view(),
        };
        let (d_residual, d_rounded) = (&mut g.d_residual, &mut g.d_rounded);
        let d_weight = learnt.layer(layer_idx).map(|d| d.ffn_norm.view_mut());
        ops::rms_norm_backward(device, saved, d_residual, d_rounded, d_weight);
    }

    fn attention_backward(
        &self,
        device: &Device,
        layer_idx: usize,
        packed: &PackedRows,
        w: &mut Workspace,
        g: &mut GradientWorkspace,
        learnt: &mut Learnt<'_>,
    ) {
        let (layer, a) = (&self.layers[layer_idx], &w.layers[layer_idx]);
        let (d_out, out) = (g.d_rounded.view(), a.attention_out.view());
        if let Some(d) = learnt.layer(layer_idx) {
            g.layer_scratch.backward_weight(device, d_out, out, d.attention_out.view_mut());
        }
        let (at, d_x) = ((layer_idx, AdaptedProduct::AttentionOut), g.d_attention_out.view_mut());
        let scratch = (&mut g.low_rank, &mut g.layer_scratch);
        let write = learnt.changes_backward(device, at, (out, d_out), Some(d_x), scratch);
        let d_x = g.d_attention_out.view_mut();
        layer.attention_out.backward_input_columns(device, d_out, 0, d_x, write);
        let saved = AttentionSaved {
            qkv: a.qkv.view(),
            out,
            log_sum_exp: a.log_sum_exp.view(),
            d_out: g.d_attention_out.view(),
            rows: packed,
            rope: &w.rope,
        };
        let heads = self.config.layer_heads(layer_idx);
        ops::attention_backward(device, heads, saved, g.d_qkv.view_mut());
        let (d_qkv, normed) = (g.d_qkv.view(), a.attention_normed.view());
        if let Some(d) = learnt.layer(layer_idx) {
            g.layer_scratch.backward_weight(device, d_qkv, normed, d.qkv.view_mut());
        }
        let is_last = learnt.ends_at(layer_idx);
        let (at, d_x) = ((layer_idx, AdaptedProduct::Qkv), (!is_last).then_some(&mut g.d_normed));
        let scratch = (&mut g.low_rank, &mut g.layer_scratch);
        let d_x = d_x.map(Tensor::view_mut);
        let write = learnt.changes_backward(device, at, (normed, d_qkv), d_x, scratch);
        if is_last {
            return;
        }
        layer.qkv.backward_input_columns(device, d_qkv, 0, g.d_normed.view_mut(), write);
        let saved = NormSaved {
            x: a.attention_input.as_ref().unwrap_or(&a.attention_normed).view(),
            weight: &layer.attention_norm,
            inverse_rms: a.attention_scales.view(),
            d_out: g.d_normed.view(),
        };
        let (d_residual, d_rounded) = (&mut g.d_residual, &mut g.d_rounded);
        let d_weight = learnt.layer(layer_idx).map(|d| d.attention_norm.view_mut());
        ops::rms_norm_backward(device, saved, d_residual, d_rounded, d_weight);
    }
}
