//! Loading a decoder weight by weight, for serving and scoring.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use formats::weights::StoredWeight;
use formats::{FfnMatrix, FormatError, LayerPart, ModelWeights, TensorDtype, WeightName};
use kernels::blocks::BlockKind;
use tensor::{BlockRows, DType, Device, Linear, Passes, Tensor, View};

use crate::block_kind::block_kind;
use crate::config::ModelConfig;
use crate::decoder::{Decoder, Layer};
use crate::feed_forward::{FeedForward, FfnBlock};
use crate::quantise::Quantisation;

/// Rows of a matrix that are in memory as f32 at a time; whole panels.
const ROWS_AT_A_TIME: usize = 512;

impl Decoder {
    /// A decoder for serving and scoring, whose operands are of `dtype`. Matrices in blocks, and those of half precision, stay as
    /// they are, in the mapped file where the order of their rows allows it; others are rounded to `dtype`, or quantised
    /// where that is asked for. Beside the decoder, memory holds a few hundred rows.
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
        let mut loader = Loader { device, config, dtype, weights, quantisation, rows: Vec::new() };
        let embedding = loader.matrix(&[WeightName::Embedding])?;
        let layers = (0..config.n_layers).map(|layer_idx| loader.layer(layer_idx));
        let layers = layers.collect::<Result<_, _>>()?;
        let head = match config.tied_embeddings {
            true => None,
            false => Some(loader.matrix(&[WeightName::Head])?),
        };
        Ok(Self {
            config: config.clone(),
            dtype,
            embedding,
            layers,
            final_norm: loader.norm(WeightName::FinalNorm)?,
            head,
            rope: crate::rope::frequencies(config),
            changes: None,
        })
    }

    /// Bytes that [`Decoder::load`] takes for these files.
    ///
    /// # Errors
    /// As [`Decoder::load`].
    pub fn loaded_bytes(
        config: &ModelConfig,
        dtype: DType,
        weights: &ModelWeights,
        quantisation: Option<Quantisation>,
    ) -> Result<usize, FormatError> {
        let mut n_bytes = 0;
        for name in WeightName::all(config) {
            let weight = weights.weight(name, config)?;
            n_bytes += match *weight.shape() {
                [n_out, n_in] => match memory_kind(name, &weight, quantisation) {
                    Some(kind) => n_out * kind.bytes_of(n_in),
                    None => Linear::bytes_for(dtype, n_out, n_in, Passes::Forward),
                },
                _ => 4 * weight.shape().iter().product::<usize>(),
            };
        }
        Ok(n_bytes)
    }
}

/// The kind that a matrix has in memory; `None` for those that become panels of operands.
fn memory_kind(
    name: WeightName,
    weight: &StoredWeight<'_>,
    quantisation: Option<Quantisation>,
) -> Option<BlockKind> {
    let dtype = weight.dtype();
    if !dtype.is_plain() {
        return Some(block_kind(dtype));
    }
    match quantisation.and_then(|quantisation| quantisation.kind(name, weight.shape()[1])) {
        // Half precision has three more bits than bf16, and half the bytes of f32.
        None if dtype == TensorDtype::F16 => Some(BlockKind::F16),
        kind => kind,
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
    rows: Vec<f32>,
}

impl Loader<'_> {
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
        Ok(norm)
    }

    /// A matrix made of the rows of one or several weights, one after the other.
    fn matrix(&mut self, names: &[WeightName]) -> Result<Linear, FormatError> {
        let weights: Vec<StoredWeight<'_>> = names
            .iter()
            .map(|&name| self.weights.weight(name, self.config))
            .collect::<Result<_, _>>()?;
        let n_in = weights[0].shape()[1];
        let kinds = names.iter().zip(&weights);
        let kinds = kinds.map(|(&name, weight)| memory_kind(name, weight, self.quantisation));
        let kinds: Vec<Option<BlockKind>> = kinds.collect();
        if kinds.iter().any(Option::is_some) {
            let parts = names.iter().zip(weights.iter().zip(kinds));
            let parts = parts.map(|(&name, (weight, kind))| {
                self.block_rows(name, weight, kind.unwrap_or_else(|| plain_kind(weight.dtype())))
            });
            return Ok(Linear::of_blocks(n_in, parts.collect::<Result<_, _>>()?));
        }
        let n_out = weights.iter().map(|weight| weight.shape()[0]).sum();
        let mut linear = Linear::zeroed(self.dtype, n_out, n_in, Passes::Forward);
        for first in (0..n_out).step_by(ROWS_AT_A_TIME) {
            let n_rows = ROWS_AT_A_TIME.min(n_out - first);
            self.rows.resize(n_rows * n_in, 0.0);
            read_rows(&weights, first, &mut self.rows, n_in);
            linear.pack_rows(self.device, first, View::F32 { values: &self.rows, width: n_in });
        }
        Ok(linear)
    }

    /// The rows of a weight in blocks: where it has this kind in the file, those of the mapped file, or a copy if their order
    /// is another.
    fn block_rows(
        &self,
        name: WeightName,
        weight: &StoredWeight<'_>,
        kind: BlockKind,
    ) -> Result<BlockRows, FormatError> {
        let shape = [weight.shape()[0], weight.shape()[1]];
        if weight.dtype() == TensorDtype::F8E4M3 || block_kind(weight.dtype()) != kind {
            let is_finite = AtomicBool::new(true);
            let rows = BlockRows::filled(self.device, kind, shape, |row, out| {
                let mut numbers = vec![0.0; shape[1]];
                weight.read_rows(row..row + 1, &mut numbers);
                if numbers.iter().any(|number| !number.is_finite()) {
                    is_finite.store(false, Ordering::Relaxed);
                }
                kind.encode(self.device.compute(), &numbers, out);
            });
            return match is_finite.into_inner() {
                true => Ok(rows),
                false => Err(self.weights.not_finite(name)),
            };
        }
        if let Some(bytes) = self.weights.shared_bytes(weight) {
            return Ok(BlockRows::shared(kind, shape[0], Arc::new(bytes)));
        }
        Ok(BlockRows::filled(self.device, kind, shape, |row, out| {
            out.copy_from_slice(weight.row_bytes(row));
        }))
    }
}

/// Rows from `first` on of weights that follow one another.
fn read_rows(weights: &[StoredWeight<'_>], first: usize, out: &mut [f32], width: usize) {
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
