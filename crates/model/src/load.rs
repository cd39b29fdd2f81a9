//! Loading a decoder weight by weight, for serving and scoring.

use formats::weights::StoredWeight;
use formats::{FfnMatrix, FormatError, LayerPart, ModelWeights, TensorDtype, WeightName};
use kernels::blocks::BlockKind;
use tensor::{BlockRows, DType, Device, Linear, Passes, Tensor, View};

use crate::block_kind::block_kind;
use crate::config::ModelConfig;
use crate::decoder::{Decoder, Layer};
use crate::feed_forward::{FeedForward, FfnBlock};
use crate::packing::{Form, PackedBytes, PackedPlan, Packing};
use crate::quantise::Quantisation;

/// Rows of a matrix that are in memory as f32 at a time; whole panels.
pub(crate) const ROWS_AT_A_TIME: usize = 512;

impl Decoder {
    /// A decoder for serving and scoring, whose operands are of `dtype`. Matrices in blocks keep their numbers: for bf16 they are
    /// packed where [`kernels::packed_blocks`] can, others, and those of half precision, stay in the mapped file where the order of
    /// their rows allows it. Plain numbers are rounded to `dtype`, or quantised where that is asked for; on a GPU, 8-bit floats stay
    /// what they are in a decoder of bf16. Beside the decoder, memory holds some hundred rows.
    ///
    /// # Errors
    /// When a weight is missing, or has another shape or type than it should.
    pub fn load(
        device: &Device,
        config: &ModelConfig,
        dtype: DType,
        weights: &ModelWeights,
        quantisation: Option<Quantisation>,
    ) -> Result<Self, FormatError> {
        let rows = Vec::new();
        Loader { device, config, dtype, weights, quantisation, packed: None, rows }.decoder()
    }

    /// As [`Decoder::load`], with packed blocks that [`PackedPlan::write`] gave for these weights.
    ///
    /// # Errors
    /// As [`Decoder::load`].
    ///
    /// # Panics
    /// When the bytes are not as many as planned.
    pub fn load_packed(
        device: &Device,
        config: &ModelConfig,
        weights: &ModelWeights,
        plan: &PackedPlan,
        bytes: &PackedBytes,
    ) -> Result<Self, FormatError> {
        assert_eq!((**bytes).as_ref().len(), plan.n_bytes(), "packed bytes");
        let (dtype, quantisation) = (plan.dtype, plan.quantisation);
        let (packed, rows) = (Some((plan, bytes)), Vec::new());
        Loader { device, config, dtype, weights, quantisation, packed, rows }.decoder()
    }

    /// Bytes that [`Decoder::load`] takes for these files, of the device's memory.
    ///
    /// # Errors
    /// As [`Decoder::load`].
    pub fn loaded_bytes(
        device: &Device,
        config: &ModelConfig,
        dtype: DType,
        weights: &ModelWeights,
        quantisation: Option<Quantisation>,
    ) -> Result<usize, FormatError> {
        let mut n_bytes = 0;
        for name in WeightName::all(config) {
            let weight = weights.weight(name, config)?;
            n_bytes += match *weight.shape() {
                [n_out, n_in] => {
                    let form = Form::of(name, &weight, dtype, quantisation);
                    form.on(device, &weight, dtype).n_bytes(dtype, [n_out, n_in])
                }
                _ => 4 * weight.shape().iter().product::<usize>(),
            };
        }
        Ok(n_bytes)
    }
}

/// The kind of numbers that share a matrix with blocks.
fn plain_kind(dtype: TensorDtype) -> BlockKind {
    match dtype {
        TensorDtype::F8E4M3 => BlockKind::Bf16,
        other => block_kind(other),
    }
}

struct Loader<'a> {
    device: &'a Device,
    config: &'a ModelConfig,
    dtype: DType,
    weights: &'a ModelWeights,
    quantisation: Option<Quantisation>,
    packed: Option<(&'a PackedPlan, &'a PackedBytes)>,
    rows: Vec<f32>,
}

impl Loader<'_> {
    fn decoder(mut self) -> Result<Decoder, FormatError> {
        let embedding = self.matrix(&[WeightName::Embedding])?;
        let layers = (0..self.config.n_layers).map(|layer_idx| self.layer(layer_idx));
        let layers = layers.collect::<Result<_, _>>()?;
        let head = match self.config.tied_embeddings {
            true => None,
            false => Some(self.matrix(&[WeightName::Head])?),
        };
        Ok(Decoder {
            device: self.device.clone(),
            config: self.config.clone(),
            dtype: self.dtype,
            embedding,
            layers,
            final_norm: self.norm(WeightName::FinalNorm)?,
            head,
            rope: crate::rope::frequencies(self.config),
        })
    }

    fn layer(&mut self, layer_idx: usize) -> Result<Layer, FormatError> {
        let name = |part| WeightName::Layer { layer_idx, part };
        let qkv = [LayerPart::Query, LayerPart::Key, LayerPart::Value].map(name);
        Ok(Layer {
            attention_norm: self.norm(name(LayerPart::AttentionNorm))?,
            qkv: self.matrix(&qkv)?,
            attention_out: self.matrix(&[name(LayerPart::AttentionOut)])?,
            ffn_norm: self.norm(name(LayerPart::FfnNorm))?,
            ffn: match self.config.experts {
                None => FeedForward::Dense(self.block(|matrix| name(LayerPart::Ffn(matrix)))?),
                Some(experts) => FeedForward::Experts {
                    router: self.matrix(&[name(LayerPart::Router)])?,
                    experts: (0..experts.n_experts)
                        .map(|expert_idx| {
                            self.block(|matrix| name(LayerPart::Expert { expert_idx, matrix }))
                        })
                        .collect::<Result<_, _>>()?,
                },
            },
        })
    }

    fn block(&mut self, name: impl Fn(FfnMatrix) -> WeightName) -> Result<FfnBlock, FormatError> {
        Ok(FfnBlock {
            gate_up: self.matrix(&[FfnMatrix::Gate, FfnMatrix::Up].map(&name))?,
            down: self.matrix(&[name(FfnMatrix::Down)])?,
        })
    }

    fn norm(&self, name: WeightName) -> Result<Tensor, FormatError> {
        let mut norm = Tensor::zeroed(DType::F32, 1, self.config.hidden_dim);
        let weight = self.weights.weight(name, self.config)?;
        if !weight.dtype().is_plain() {
            return Err(self.weights.norm_in_blocks(name, weight.dtype()));
        }
        weight.read_f32(norm.f32_mut());
        Ok(norm.on(self.device))
    }

    /// A matrix made of the rows of one or several weights, one after the other.
    fn matrix(&mut self, names: &[WeightName]) -> Result<Linear, FormatError> {
        let weights: Vec<StoredWeight<'_>> = names
            .iter()
            .map(|&name| self.weights.weight(name, self.config))
            .collect::<Result<_, _>>()?;
        let n_in = weights[0].shape()[1];
        let forms: Vec<Form> = names
            .iter()
            .zip(&weights)
            .map(|(&name, weight)| {
                let form = Form::of(name, weight, self.dtype, self.quantisation);
                form.on(self.device, weight, self.dtype)
            })
            .collect();
        if forms.iter().any(|&form| form != Form::Panels) {
            let parts = names.iter().zip(weights).zip(forms);
            let parts = parts.map(|((&name, weight), form)| self.block_rows(name, weight, form));
            return Ok(Linear::of_blocks(
                self.device,
                self.dtype,
                n_in,
                parts.collect::<Result<_, _>>()?,
            ));
        }
        let n_out = weights.iter().map(|weight| weight.shape()[0]).sum();
        let mut linear = Linear::zeroed(self.device, self.dtype, n_out, n_in, Passes::Forward);
        for first in (0..n_out).step_by(ROWS_AT_A_TIME) {
            let n_rows = ROWS_AT_A_TIME.min(n_out - first);
            self.rows.resize(n_rows * n_in, 0.0);
            read_rows(&weights, first, &mut self.rows, n_in);
            linear.pack_rows(self.device, first, View::F32 { values: &self.rows, width: n_in });
        }
        Ok(linear)
    }

    /// The rows of a weight that is in blocks, or shares a matrix with one that is.
    fn block_rows(
        &self,
        name: WeightName,
        weight: StoredWeight<'_>,
        form: Form,
    ) -> Result<BlockRows, FormatError> {
        let (device, weights) = (self.device, self.weights);
        let plain = plain_kind(weight.dtype());
        let packing = Packing { device, weights, name, weight };
        match (form, self.packed) {
            (Form::Panels, _) => packing.rows(plain),
            (Form::Rows(kind), _) => packing.rows(kind),
            (Form::F8, _) => Ok(packing.f8_rows()),
            (Form::Packed(_), Some((plan, bytes))) => Ok(plan.rows(name, bytes)),
            (Form::Packed(kind), None) => packing.packed(kind),
        }
    }
}

/// Rows from `first` on of weights that follow one another.
pub(crate) fn read_rows(weights: &[StoredWeight<'_>], first: usize, out: &mut [f32], width: usize) {
    let end = first + out.len() / width;
    let mut weight_start = 0;
    for weight in weights {
        let weight_end = weight_start + weight.shape()[0];
        let (from, to) = (first.max(weight_start), end.min(weight_end));
        if from < to {
            let out = &mut out[(from - first) * width..(to - first) * width];
            weight.read_rows(from - weight_start..to - weight_start, out);
        }
        weight_start = weight_end;
    }
}
