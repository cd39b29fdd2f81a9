//! The definitions: plain scalar code, one function per operation, in the order of the formulas. Every fast version is
//! compared with these.

use crate::adamw::AdamW;
use crate::attention::softmax::{DIVISOR_LANES, DivideRow, ScaleScores, SoftmaxStep};
use crate::attention::{DeltaRow, GradientStep, KEY_STEP};
use crate::matmul::{Block, Write};
use crate::operand::Operand;
use crate::panels::{PANEL_WIDTH, padded_k, panel_index};
use crate::rope::{Direction, Rotate};

/// One block of K of a product ([`crate::matmul`]).
///
/// # Safety
/// As `matmul::multiply_block`.
#[expect(unsafe_code, reason = "blocks are given by pointers")]
pub(crate) unsafe fn matmul_block<T: Operand>(block: &Block) {
    for row in 0..block.n_rows {
        for column in 0..block.n_columns {
            let mut sum = 0.0_f32;
            for group in 0..block.n_groups {
                for offset in 0..T::GROUP {
                    // SAFETY: within the block by the caller's promise.
                    let (a, b) = unsafe { block.values::<T>(row, column, group, offset) };
                    sum = a.mul_add(b, sum);
                }
            }
            // SAFETY: within the block's output.
            unsafe { block.write(row, column, sum) };
        }
    }
}

impl Block {
    /// Values of the left and the right operand.
    ///
    /// # Safety
    /// The indices lie in the block, whose operands are of type `T`.
    #[expect(unsafe_code, reason = "see Safety")]
    unsafe fn values<T: Operand>(
        &self,
        row: usize,
        column: usize,
        group: usize,
        offset: usize,
    ) -> (f32, f32) {
        let (panel, lane) = (column / PANEL_WIDTH, column % PANEL_WIDTH);
        // SAFETY: the caller's promise; a group holds T::GROUP values.
        unsafe {
            let a = self.a.add(self.a_row(row) + group).cast::<T>();
            let line =
                self.b.add(panel * self.b_panel_stride + group * self.b_group_stride).cast::<T>();
            let a = a.add(offset).read_unaligned().to_f32();
            (a, line.add(lane * T::GROUP + offset).read_unaligned().to_f32())
        }
    }

    /// # Safety
    /// The indices lie in the block's output.
    #[expect(unsafe_code, reason = "see Safety")]
    unsafe fn write(&self, row: usize, column: usize, sum: f32) {
        // SAFETY: the caller's promise.
        unsafe {
            let out = self.out.add(row * self.out_stride + column);
            *out = match self.write {
                Write::Overwrite => sum,
                Write::Accumulate => *out + sum,
            };
        }
    }
}

/// [`crate::norm::rms_norm`].
pub fn rms_norm<T: Operand>(
    x: &[f32],
    weight: &[f32],
    eps: f32,
    out: &mut [T],
    inverse_rms: &mut [f32],
) {
    let hidden = weight.len();
    for (t, scale) in inverse_rms.iter_mut().enumerate() {
        let x = &x[t * hidden..][..hidden];
        let mean = x.iter().map(|x| x * x).sum::<f32>() / hidden as f32;
        *scale = 1.0 / (mean + eps).sqrt();
        for i in 0..hidden {
            out[t * hidden + i] = T::from_f32(x[i] * *scale * weight[i]);
        }
    }
}

/// The gradient of the input in [`crate::norm::rms_norm_backward`].
pub fn rms_norm_backward_input<T: Operand>(
    x: &[T],
    weight: &[f32],
    inverse_rms: &[f32],
    d_out: &[T],
    d_x: &mut [f32],
) {
    let hidden = weight.len();
    for (t, scale) in inverse_rms.iter().enumerate() {
        let (x, d_out) = (&x[t * hidden..][..hidden], &d_out[t * hidden..][..hidden]);
        let mut mean = 0.0;
        for j in 0..hidden {
            mean += d_out[j].to_f32() * weight[j] * (x[j].to_f32() * scale) / hidden as f32;
        }
        for i in 0..hidden {
            let normed = x[i].to_f32() * scale;
            d_x[t * hidden + i] += scale * (d_out[i].to_f32() * weight[i] - normed * mean);
        }
    }
}

/// The gradient of the weights from `column` on in [`crate::norm::rms_norm_backward`].
pub fn rms_norm_backward_weight<T: Operand>(
    x: &[T],
    inverse_rms: &[f32],
    d_out: &[T],
    hidden: usize,
    column: usize,
    d_weight: &mut [f32],
) {
    for (t, scale) in inverse_rms.iter().enumerate() {
        for (i, sum) in d_weight.iter_mut().enumerate() {
            let at = t * hidden + column + i;
            *sum += d_out[at].to_f32() * (x[at].to_f32() * scale);
        }
    }
}

/// [`crate::rope::rotate`] of the rows from `first_row` of the batch on.
pub(crate) fn rotate<T: Operand>(rows: Rotate<'_, T>) {
    let Rotate { x, x_stride, table, first_row, heads, direction, out } = rows;
    let (head_dim, half) = (table.head_dim(), table.head_dim() / 2);
    let width = heads.n_all() * head_dim;
    for (t, (x, out)) in x.chunks(x_stride).zip(out.chunks_exact_mut(width)).enumerate() {
        let angles = table.row(first_row + t);
        let n_rotated = heads.n_query + heads.n_key;
        for head in 0..n_rotated {
            let start = head * head_dim;
            let factor = if head < heads.n_query { angles.query_factor } else { 1.0 };
            for i in 0..half {
                let (x1, x2) = (x[start + i], x[start + half + i]);
                let (cosine, sine) = match direction {
                    Direction::Forward => (factor * angles.cosines[i], factor * angles.sines[i]),
                    Direction::Backward => (factor * angles.cosines[i], -factor * angles.sines[i]),
                };
                out[start + i] = T::from_f32(x1 * cosine - x2 * sine);
                out[start + half + i] = T::from_f32(x2 * cosine + x1 * sine);
            }
        }
        for i in n_rotated * head_dim..width {
            out[i] = T::from_f32(x[i]);
        }
    }
}

/// [`crate::swiglu::swiglu`].
pub fn swiglu<T: Operand>(gate_up: &[T], ffn_dim: usize, out: &mut [T]) {
    for (t, out) in out.chunks_exact_mut(ffn_dim).enumerate() {
        let (gate, up) = gate_up[t * 2 * ffn_dim..][..2 * ffn_dim].split_at(ffn_dim);
        for i in 0..ffn_dim {
            let x = gate[i].to_f32();
            out[i] = T::from_f32(x / (1.0 + (-x).exp()) * up[i].to_f32());
        }
    }
}

/// [`crate::swiglu::swiglu_backward`].
pub fn swiglu_backward<T: Operand>(
    gate_up: &[T],
    ffn_dim: usize,
    d_out: &[T],
    d_gate_up: &mut [T],
    out: &mut [T],
) {
    for (t, out) in out.chunks_exact_mut(ffn_dim).enumerate() {
        let (gate, up) = gate_up[t * 2 * ffn_dim..][..2 * ffn_dim].split_at(ffn_dim);
        let (d_gate, d_up) = d_gate_up[t * 2 * ffn_dim..][..2 * ffn_dim].split_at_mut(ffn_dim);
        for i in 0..ffn_dim {
            let d_out = d_out[t * ffn_dim + i].to_f32();
            let (x, up) = (gate[i].to_f32(), up[i].to_f32());
            let s = 1.0 / (1.0 + (-x).exp());
            d_gate[i] = T::from_f32(d_out * up * s * (1.0 + x * (1.0 - s)));
            d_up[i] = T::from_f32(d_out * x * s);
            out[i] = T::from_f32(x / (1.0 + (-x).exp()) * up);
        }
    }
}

/// Rows over one step of keys in [`crate::attention::attention`].
pub(crate) fn softmax_step<T: Operand>(step: SoftmaxStep<'_, T>) {
    let SoftmaxStep { scores, columns, scale, value_scales, probabilities, .. } = step;
    for row in 0..step.maxima.len() {
        let scores = &scores[row * KEY_STEP..][..KEY_STEP];
        let max = step.maxima[row];
        let new_max = scores[columns.clone()].iter().fold(max, |max, s| max.max(*s));
        let shift = new_max.max(f32::MIN);
        let rescale = (scale * (max - shift)).exp();
        let mut sum = 0.0;
        for k in columns.clone() {
            let p = (scale * (scores[k] - shift)).exp();
            sum += p;
            let p = value_scales.map_or(p, |scales| p * scales[k]);
            probabilities[row * KEY_STEP + k] = T::from_f32(p);
        }
        let divisor = &mut step.divisors[row * DIVISOR_LANES];
        *divisor = *divisor * rescale + sum;
        step.maxima[row] = new_max;
        let sums = &mut step.sums[row * step.sum_stride..][..step.sum_stride];
        sums.iter_mut().for_each(|o| *o *= rescale);
    }
}

/// Rows of scores times the scales of their keys, in [`crate::attention::attention`].
pub(crate) fn scale_scores(scaling: ScaleScores<'_>) {
    for scores in scaling.scores.chunks_exact_mut(KEY_STEP) {
        for k in scaling.columns.clone() {
            scores[k] *= scaling.scales[k];
        }
    }
}

/// One row of the output of [`crate::attention::attention`]; returns the divisor.
pub(crate) fn divide_row<O: Operand>(row: DivideRow<'_, O>) -> f32 {
    let divisor = row.divisors.iter().sum();
    for (out, sum) in row.out.iter_mut().zip(row.sums) {
        *out = O::from_f32(sum / divisor);
    }
    divisor
}

/// What becomes of the scores of a bundle in the gradient of attention.
pub(crate) fn gradient_step<T: Operand>(step: GradientStep<'_, T>) {
    let n_columns = step.d_scores.len() / step.delta.len();
    for row in 0..step.scores.len() / n_columns {
        for column in step.columns.clone() {
            let i = row * n_columns + column;
            let p = (step.scores[i] * step.scale - step.log_sum_exp[row]).exp();
            let d_score = step.scale * p * (step.d_probabilities[i] - step.delta[row]);
            let place = panel_index::<T>(column, row, padded_k::<T>(step.delta.len()));
            step.d_scores[i] = T::from_f32(d_score);
            step.probability_panels[place] = T::from_f32(p);
            step.d_score_panels[place] = T::from_f32(d_score);
        }
    }
}

/// One row of `delta` in the gradient of attention.
pub(crate) fn delta_row<T: Operand>(row: DeltaRow<'_, T>) -> f32 {
    row.d_out.iter().zip(row.out).map(|(d_out, out)| d_out.to_f32() * out.to_f32()).sum()
}

/// One row of [`crate::cross_entropy::cross_entropy`]; returns the loss.
pub fn cross_entropy_row<T: Operand>(
    logits: &[f32],
    target: usize,
    weight: f32,
    d_logits: &mut [T],
) -> f32 {
    let max = logits.iter().fold(f32::NEG_INFINITY, |max, x| max.max(*x));
    let sum: f32 = logits.iter().map(|x| (x - max).exp()).sum();
    for (i, d) in d_logits.iter_mut().enumerate() {
        let one_hot = if i == target { 1.0 } else { 0.0 };
        *d = T::from_f32(weight * ((logits[i] - max).exp() / sum - one_hot));
    }
    sum.ln() + max - logits[target]
}

/// [`crate::adamw::adamw_step`].
pub fn adamw_step(step: AdamW, weight: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32]) {
    for i in 0..weight.len() {
        let g = step.grad_scale * grad[i];
        m[i] = step.beta1 * m[i] + (1.0 - step.beta1) * g;
        v[i] = step.beta2 * v[i] + (1.0 - step.beta2) * g * g;
        let divisor = v[i].sqrt() / step.bias_correction2.sqrt() + step.eps;
        weight[i] *= 1.0 - step.learning_rate * step.weight_decay;
        weight[i] -= step.learning_rate / step.bias_correction1 * m[i] / divisor;
    }
}
