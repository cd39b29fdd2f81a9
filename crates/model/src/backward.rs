//! The backward pass, written out by hand.

use tensor::ops::{AttentionSaved, NormSaved};
use tensor::{DType, Device, LinearScratch, PackedRows, Tensor, ops};

use crate::config::ModelConfig;
use crate::decoder::Decoder;
use crate::parameters::Parameters;
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
    /// Gradient of a norm's output, as products give it, `[tokens, hidden]`.
    d_normed: Tensor,
    /// As products give it, `[tokens, n_heads head_dim]`.
    d_attention_out: Tensor,
    /// f32 `[tokens, (n_heads + 2 n_kv_heads) head_dim]`; none where the device works in the place of the next.
    d_qkv: Option<Tensor>,
    /// T `[tokens, (n_heads + 2 n_kv_heads) head_dim]`.
    d_qkv_rounded: Tensor,
    /// As products give it, `[tokens, ffn]`.
    d_activated: Tensor,
    /// T `[tokens, 2 ffn]`.
    d_gate_up: Tensor,
    /// T `[rows, vocab]`, a chunk of the tokens; before it the logits, where the device works in their place.
    d_logits: Tensor,
    layer_scratch: LinearScratch,
    head_scratch: LinearScratch,
}

impl GradientWorkspace {
    /// Room for up to `max_rows` tokens.
    #[must_use]
    pub fn new(device: &Device, config: &ModelConfig, dtype: DType, max_rows: usize) -> Self {
        let (hidden, ffn, shape) = (config.hidden_dim, config.ffn_dim, config.head_shape());
        let (qkv, attention) = (shape.qkv_width(), shape.n_heads * shape.head_dim);
        let zeroed = |dtype, n_rows, width| Tensor::zeroed_on(device, dtype, n_rows, width);
        let f32_rows = |width| zeroed(DType::F32, max_rows, width);
        let product = |width| zeroed(device.product_dtype(dtype), max_rows, width);
        let operand = |width| zeroed(dtype, max_rows, width);
        let logit_rows = max_rows.min(device.learnt_logit_rows());
        let max_in = Self::largest_input(config);
        let workspace = Self {
            d_residual: f32_rows(hidden),
            d_rounded: operand(hidden),
            d_normed: product(hidden),
            d_attention_out: product(attention),
            d_qkv: (!device.works_in_place()).then(|| f32_rows(qkv)),
            d_qkv_rounded: operand(qkv),
            d_activated: product(ffn),
            d_gate_up: operand(2 * ffn),
            d_logits: zeroed(dtype, logit_rows, config.vocab_size),
            layer_scratch: LinearScratch::new(device, dtype, max_rows, max_in),
            head_scratch: LinearScratch::new(device, dtype, logit_rows, hidden),
        };
        if let Device::Cpu(_) = device {
            let planned = Self::bytes_for(config, dtype, max_rows);
            debug_assert_eq!(workspace.n_bytes(), planned, "bytes of a workspace against the plan");
        }
        workspace
    }

    /// Most inputs of a layer's weight.
    fn largest_input(config: &ModelConfig) -> usize {
        let shape = config.head_shape();
        config.hidden_dim.max(config.ffn_dim).max(shape.n_heads * shape.head_dim)
    }

    /// Bytes of [`GradientWorkspace::new`] where the processors compute.
    #[must_use]
    pub fn bytes_for(config: &ModelConfig, dtype: DType, max_rows: usize) -> usize {
        let (hidden, ffn, shape) = (config.hidden_dim, config.ffn_dim, config.head_shape());
        let (qkv, attention) = (shape.qkv_width(), shape.n_heads * shape.head_dim);
        let logit_rows = max_rows.min(Device::CPU_LOGIT_ROWS);
        let max_in = Self::largest_input(config);
        max_rows
            * ((2 * hidden + attention + qkv + ffn) * 4 + (hidden + qkv + 2 * ffn) * dtype.bytes())
            + logit_rows * config.vocab_size * dtype.bytes()
            + LinearScratch::bytes_for(dtype, max_rows, max_in)
            + LinearScratch::bytes_for(dtype, logit_rows, hidden)
    }

    /// Bytes that it holds.
    pub(crate) fn n_bytes(&self) -> usize {
        let Self {
            d_residual,
            d_rounded,
            d_normed,
            d_attention_out,
            d_qkv,
            d_qkv_rounded,
            d_activated,
            d_gate_up,
            d_logits,
            layer_scratch,
            head_scratch,
        } = self;
        let tensors = [
            d_residual,
            d_rounded,
            d_normed,
            d_attention_out,
            d_qkv_rounded,
            d_activated,
            d_gate_up,
            d_logits,
        ];
        tensors.into_iter().chain(d_qkv).map(Tensor::n_bytes).sum::<usize>()
            + layer_scratch.n_bytes()
            + head_scratch.n_bytes()
    }

    fn set_rows(&mut self, n_rows: usize) {
        for tensor in [
            &mut self.d_residual,
            &mut self.d_rounded,
            &mut self.d_normed,
            &mut self.d_attention_out,
            &mut self.d_qkv_rounded,
            &mut self.d_activated,
            &mut self.d_gate_up,
        ]
        .into_iter()
        .chain(&mut self.d_qkv)
        {
            tensor.set_rows(n_rows);
        }
    }
}

impl Decoder {
    /// Forward and backward over a batch: adds the gradient of `sum_t weights[t] loss[t]` to `gradients` and leaves the
    /// loss of each token in [`Workspace::losses`]. Nothing waits for a GPU.
    ///
    /// # Panics
    /// When an id is not in the vocabulary, a document is longer than the context, a workspace is too small, or the decoder is
    /// not packed for training.
    pub fn loss_and_gradients(
        &self,
        device: &Device,
        rows: TrainingRows<'_>,
        workspace: &mut Workspace,
        gradient_workspace: &mut GradientWorkspace,
        gradients: &mut Parameters,
    ) {
        assert_eq!(workspace.layers.len(), self.layers.len(), "a workspace for training");
        let (w, g) = (workspace, gradient_workspace);
        g.set_rows(rows.token_ids.len());
        self.forward_packed(device, rows.token_ids, rows.segment_starts, None, w);
        self.head_backward(device, rows, w, g, gradients);
        let saved = NormSaved {
            x: w.final_input.as_ref().unwrap_or(&w.final_normed).view(),
            weight: &self.final_norm,
            inverse_rms: w.final_scales.view(),
            d_out: g.d_normed.view(),
        };
        let (d_residual, d_rounded) = (&mut g.d_residual, &mut g.d_rounded);
        d_residual.clear();
        let d_weight = gradients.final_norm.view_mut();
        ops::rms_norm_backward(device, saved, d_residual, d_rounded, d_weight);
        let packed = w.packed.take().expect("the forward pass was one of packed documents");
        for layer_idx in (0..self.layers.len()).rev() {
            self.ffn_backward(device, layer_idx, w, g, gradients);
            self.attention_backward(device, layer_idx, &packed, w, g, gradients);
        }
        let d_table = gradients.embedding.view_mut();
        ops::gather_backward(device, rows.token_ids, g.d_residual.view(), d_table);
    }

    /// Logits, loss and the gradients of the head and of the final norm's output, a chunk of tokens at a time.
    fn head_backward(
        &self,
        device: &Device,
        rows: TrainingRows<'_>,
        w: &mut Workspace,
        g: &mut GradientWorkspace,
        gradients: &mut Parameters,
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
            let d_head = gradients.head.as_mut().unwrap_or(&mut gradients.embedding);
            let hidden = w.final_normed.rows(range);
            g.head_scratch.backward_weight(device, d_logits, hidden, d_head.view_mut());
        }
    }

    fn ffn_backward(
        &self,
        device: &Device,
        layer_idx: usize,
        w: &mut Workspace,
        g: &mut GradientWorkspace,
        gradients: &mut Parameters,
    ) {
        let (layer, a) = (&self.layers[layer_idx], &w.layers[layer_idx]);
        let d_layer = &mut gradients.layers[layer_idx];
        layer.ffn.dense().down.backward_input(device, g.d_rounded.view(), g.d_activated.view_mut());
        ops::swiglu_backward(
            device,
            a.gate_up.view(),
            g.d_activated.view(),
            g.d_gate_up.view_mut(),
            w.activated.as_mut().map(Tensor::view_mut),
        );
        let scratch = &mut g.layer_scratch;
        let activated = a.activated.as_ref().or(w.activated.as_ref());
        let activated = activated.expect("its own or one for all").view();
        let d_out = g.d_rounded.view();
        scratch.backward_weight(device, d_out, activated, d_layer.down.view_mut());
        let (d_gate_up, normed) = (g.d_gate_up.view(), a.ffn_normed.view());
        scratch.backward_weight(device, d_gate_up, normed, d_layer.gate_up.view_mut());
        layer.ffn.dense().gate_up.backward_input(device, d_gate_up, g.d_normed.view_mut());
        let saved = NormSaved {
            x: a.ffn_input.as_ref().unwrap_or(&a.ffn_normed).view(),
            weight: &layer.ffn_norm,
            inverse_rms: a.ffn_scales.view(),
            d_out: g.d_normed.view(),
        };
        let (d_residual, d_rounded) = (&mut g.d_residual, &mut g.d_rounded);
        let d_weight = d_layer.ffn_norm.view_mut();
        ops::rms_norm_backward(device, saved, d_residual, d_rounded, d_weight);
    }

    fn attention_backward(
        &self,
        device: &Device,
        layer_idx: usize,
        packed: &PackedRows,
        w: &mut Workspace,
        g: &mut GradientWorkspace,
        gradients: &mut Parameters,
    ) {
        let (layer, a) = (&self.layers[layer_idx], &w.layers[layer_idx]);
        let d_layer = &mut gradients.layers[layer_idx];
        let d_out = g.d_rounded.view();
        layer.attention_out.backward_input(device, d_out, g.d_attention_out.view_mut());
        let (scratch, out) = (&mut g.layer_scratch, a.attention_out.view());
        scratch.backward_weight(device, d_out, out, d_layer.attention_out.view_mut());
        let saved = AttentionSaved {
            qkv: a.qkv.view(),
            out,
            log_sum_exp: a.log_sum_exp.view(),
            d_out: g.d_attention_out.view(),
            rows: packed,
            rope: &w.rope,
        };
        let heads = self.config.layer_heads(layer_idx);
        let d_rotated = g.d_qkv.as_mut().map(Tensor::view_mut);
        ops::attention_backward(device, heads, saved, d_rotated, g.d_qkv_rounded.view_mut());
        let (d_qkv, normed) = (g.d_qkv_rounded.view(), a.attention_normed.view());
        scratch.backward_weight(device, d_qkv, normed, d_layer.qkv.view_mut());
        layer.qkv.backward_input(device, d_qkv, g.d_normed.view_mut());
        let saved = NormSaved {
            x: a.attention_input.as_ref().unwrap_or(&a.attention_normed).view(),
            weight: &layer.attention_norm,
            inverse_rms: a.attention_scales.view(),
            d_out: g.d_normed.view(),
        };
        let (d_residual, d_rounded) = (&mut g.d_residual, &mut g.d_rounded);
        let d_weight = d_layer.attention_norm.view_mut();
        ops::rms_norm_backward(device, saved, d_residual, d_rounded, d_weight);
    }
}
