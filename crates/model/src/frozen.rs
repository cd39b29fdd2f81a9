//! Loading a decoder beside which an adapter is trained.

use formats::weights::StoredWeight;
use formats::{FfnMatrix, FormatError, LayerPart, ModelWeights, WeightName};
use tensor::{DType, Device, Linear, Passes, Tensor, View};

use crate::config::ModelConfig;
use crate::decoder::Decoder;
use crate::load::{ROWS_AT_A_TIME, read_rows};

impl Decoder {
    /// A decoder that stays as it is while an adapter beside it is trained: matrices rounded to `dtype` and packed for both passes.
    /// Beside it, memory holds one matrix in f32; for a GPU, some hundred rows of one.
    ///
    /// # Errors
    /// When a weight is missing, has another shape than it should, or is in blocks, which have no backward pass.
    ///
    /// # Panics
    /// When the model cannot be trained ([`ModelConfig::check_trainable`]).
    pub fn load_frozen(
        device: &Device,
        config: &ModelConfig,
        dtype: DType,
        weights: &ModelWeights,
    ) -> Result<Self, FormatError> {
        assert_eq!(config.check_trainable(), Ok(()));
        for name in WeightName::all(config) {
            // Before memory is taken.
            let dtype = weights.weight(name, config)?.dtype();
            if !dtype.is_plain() {
                return Err(weights.quantised(name, dtype));
            }
        }
        let mut decoder = Self::zeroed(device, config, dtype, Passes::ForwardAndBackward);
        let mut reader = Reader { device, config, weights, numbers: Vec::new() };
        reader.matrix(&mut decoder.embedding, &[WeightName::Embedding])?;
        if let Some(head) = &mut decoder.head {
            reader.matrix(head, &[WeightName::Head])?;
        }
        for (layer_idx, layer) in decoder.layers.iter_mut().enumerate() {
            let name = |part| WeightName::Layer { layer_idx, part };
            let ffn_name = |matrix| name(LayerPart::Ffn(matrix));
            let qkv = [LayerPart::Query, LayerPart::Key, LayerPart::Value].map(name);
            reader.norm(&mut layer.attention_norm, name(LayerPart::AttentionNorm))?;
            reader.matrix(&mut layer.qkv, &qkv)?;
            reader.matrix(&mut layer.attention_out, &[name(LayerPart::AttentionOut)])?;
            reader.norm(&mut layer.ffn_norm, name(LayerPart::FfnNorm))?;
            let ffn = layer.ffn.dense_mut();
            let gate_up = [FfnMatrix::Gate, FfnMatrix::Up].map(ffn_name);
            reader.matrix(&mut ffn.gate_up, &gate_up)?;
            reader.matrix(&mut ffn.down, &[ffn_name(FfnMatrix::Down)])?;
        }
        reader.norm(&mut decoder.final_norm, WeightName::FinalNorm)?;
        Ok(decoder)
    }
}

struct Reader<'a> {
    device: &'a Device,
    config: &'a ModelConfig,
    weights: &'a ModelWeights,
    numbers: Vec<f32>,
}

impl Reader<'_> {
    /// A matrix made of the rows of one or several weights, one after the other.
    fn matrix(&mut self, linear: &mut Linear, names: &[WeightName]) -> Result<(), FormatError> {
        let weights: Vec<StoredWeight<'_>> = names
            .iter()
            .map(|&name| self.weights.weight(name, self.config))
            .collect::<Result<_, _>>()?;
        let n_out = weights.iter().map(|weight| weight.shape()[0]).sum();
        let (device, width) = (self.device, linear.n_in());
        // What products of the backward pass read is packed from whole columns.
        let rows_at_a_time = match device {
            Device::Cuda { .. } => ROWS_AT_A_TIME,
            _ => n_out,
        };
        for first in (0..n_out).step_by(rows_at_a_time) {
            let n_rows = rows_at_a_time.min(n_out - first);
            self.numbers.resize(n_rows * width, 0.0);
            read_rows(&weights, first, &mut self.numbers, width);
            let view = View::F32 { values: &self.numbers, width };
            match device {
                Device::Cuda { .. } => linear.pack_rows(device, first, view),
                _ => linear.pack(device, view),
            }
        }
        Ok(())
    }

    fn norm(&mut self, norm: &mut Tensor, name: WeightName) -> Result<(), FormatError> {
        let weight = self.weights.weight(name, self.config)?;
        self.numbers.resize(weight.shape().iter().product(), 0.0);
        weight.read_f32(&mut self.numbers);
        norm.write_f32(&self.numbers);
        Ok(())
    }
}
