//! One f32 tensor per parameter: masters, gradients and optimiser moments have this shape.

use std::borrow::Cow;

use formats::{FfnMatrix, LayerPart, WeightName};
use tensor::{DType, Device, Tensor};

use crate::config::ModelConfig;

/// What a parameter is, for the optimiser's rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParameterKind {
    /// The token embedding, tied to the head or not, and the head.
    Embedding,
    /// A matrix inside a layer.
    Matrix,
    /// The weight of a norm.
    Norm,
}

/// The parameters of a layer. Matrices that read the same input are one.
#[derive(Clone, Debug)]
pub(crate) struct LayerParameters {
    /// `[1, hidden]`.
    pub(crate) attention_norm: Tensor,
    /// Queries, keys, values: `[(n_heads + 2 n_kv_heads) head_dim, hidden]`.
    pub(crate) qkv: Tensor,
    /// `[hidden, n_heads head_dim]`.
    pub(crate) attention_out: Tensor,
    /// `[1, hidden]`.
    pub(crate) ffn_norm: Tensor,
    /// Gate, up: `[2 ffn, hidden]`.
    pub(crate) gate_up: Tensor,
    /// `[hidden, ffn]`.
    pub(crate) down: Tensor,
}

impl LayerParameters {
    fn made_of(config: &ModelConfig, zeroed: impl Fn(usize, usize) -> Tensor) -> Self {
        let (hidden, ffn) = (config.hidden_dim, config.ffn_dim);
        let shape = config.head_shape();
        Self {
            attention_norm: zeroed(1, hidden),
            qkv: zeroed(shape.qkv_width(), hidden),
            attention_out: zeroed(hidden, shape.n_heads * shape.head_dim),
            ffn_norm: zeroed(1, hidden),
            gate_up: zeroed(2 * ffn, hidden),
            down: zeroed(hidden, ffn),
        }
    }
}

/// All parameters of a decoder in f32, row-major.
#[derive(Clone, Debug)]
pub struct Parameters {
    config: ModelConfig,
    /// `[vocab, hidden]`.
    pub(crate) embedding: Tensor,
    pub(crate) layers: Vec<LayerParameters>,
    /// `[1, hidden]`.
    pub(crate) final_norm: Tensor,
    /// `[vocab, hidden]`; absent when tied to the embedding.
    pub(crate) head: Option<Tensor>,
}

impl Parameters {
    /// Zeros in this machine's memory.
    ///
    /// # Panics
    /// When the model cannot be trained ([`ModelConfig::check_trainable`]).
    #[must_use]
    pub fn zeroed(config: &ModelConfig) -> Self {
        Self::made_of(config, &|n_out, n_in| Tensor::zeroed(DType::F32, n_out, n_in))
    }

    /// Zeros on a device.
    ///
    /// # Panics
    /// As [`Parameters::zeroed`].
    #[must_use]
    pub fn zeroed_on(device: &Device, config: &ModelConfig) -> Self {
        Self::made_of(config, &|n_out, n_in| Tensor::zeroed_on(device, DType::F32, n_out, n_in))
    }

    fn made_of(config: &ModelConfig, zeroed: &dyn Fn(usize, usize) -> Tensor) -> Self {
        assert_eq!(config.check_trainable(), Ok(()));
        let vocabulary = || zeroed(config.vocab_size, config.hidden_dim);
        let layer = |_| LayerParameters::made_of(config, zeroed);
        Self {
            config: config.clone(),
            embedding: vocabulary(),
            layers: (0..config.n_layers).map(layer).collect(),
            final_norm: zeroed(1, config.hidden_dim),
            head: (!config.tied_embeddings).then(vocabulary),
        }
    }

    /// A fresh model: matrices uniform with standard deviation `1 / sqrt(n_in)`, those that write to the residual stream
    /// divided by `sqrt(2 n_layers)`, embeddings 0.02, norms 1. The same seed gives the same bits everywhere.
    #[must_use]
    pub fn random(config: &ModelConfig, seed: u64) -> Self {
        let mut parameters = Self::zeroed(config);
        let mut random = UniformStream { state: seed };
        let residual_scale = 1.0 / (2.0 * config.n_layers as f32).sqrt();
        parameters.final_norm.f32_mut().fill(1.0);
        random.fill(&mut parameters.embedding, 0.02);
        if let Some(head) = &mut parameters.head {
            random.fill(head, 0.02);
        }
        for layer in &mut parameters.layers {
            layer.attention_norm.f32_mut().fill(1.0);
            layer.ffn_norm.f32_mut().fill(1.0);
            let fan_in = |tensor: &Tensor| 1.0 / (tensor.width() as f32).sqrt();
            for matrix in [&mut layer.qkv, &mut layer.gate_up] {
                random.fill(matrix, fan_in(matrix));
            }
            for matrix in [&mut layer.attention_out, &mut layer.down] {
                random.fill(matrix, fan_in(matrix) * residual_scale);
            }
        }
        parameters
    }

    /// The parameters on a device: themselves where they are there already, else a copy.
    #[must_use]
    pub fn on(mut self, device: &Device) -> Self {
        self.iter_mut().for_each(|tensor| tensor.move_to(device));
        self
    }

    /// The parameters in this machine's memory: themselves, or a copy of those on a GPU.
    #[must_use]
    pub fn in_memory(&self) -> Cow<'_, Self> {
        if self.embedding.is_in_memory() {
            return Cow::Borrowed(self);
        }
        let mut copy = Self::zeroed(&self.config);
        let tensors = copy.iter_mut().zip(self.iter());
        tensors.for_each(|(copy, (_, tensor))| tensor.read_into(copy.f32_mut()));
        Cow::Owned(copy)
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Every tensor with its kind, in a fixed order.
    pub fn iter(&self) -> impl Iterator<Item = (ParameterKind, &Tensor)> {
        use ParameterKind::{Embedding, Matrix, Norm};
        let layers = self.layers.iter().flat_map(|layer| {
            [
                (Norm, &layer.attention_norm),
                (Matrix, &layer.qkv),
                (Matrix, &layer.attention_out),
                (Norm, &layer.ffn_norm),
                (Matrix, &layer.gate_up),
                (Matrix, &layer.down),
            ]
        });
        let head = self.head.iter().map(|head| (Embedding, head));
        std::iter::once((Embedding, &self.embedding))
            .chain(layers)
            .chain([(Norm, &self.final_norm)])
            .chain(head)
    }

    /// Every tensor, in the order of [`Parameters::iter`].
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        let layers = self.layers.iter_mut().flat_map(|layer| {
            [
                &mut layer.attention_norm,
                &mut layer.qkv,
                &mut layer.attention_out,
                &mut layer.ffn_norm,
                &mut layer.gate_up,
                &mut layer.down,
            ]
        });
        std::iter::once(&mut self.embedding)
            .chain(layers)
            .chain([&mut self.final_norm])
            .chain(&mut self.head)
    }

    /// Sets every value to zero.
    pub fn clear(&mut self) {
        self.iter_mut().for_each(Tensor::clear);
    }

    /// The values of one weight as files name them, row-major.
    ///
    /// # Panics
    /// When the model has no such weight.
    #[must_use]
    pub fn weight(&self, name: WeightName) -> &[f32] {
        let rows = WeightRows::of(name, &self.config);
        let tensor = match name {
            WeightName::Embedding => &self.embedding,
            WeightName::FinalNorm => &self.final_norm,
            WeightName::Head => self.head.as_ref().expect("the head is not tied"),
            WeightName::Layer { layer_idx, part } => {
                let layer = &self.layers[layer_idx];
                match part {
                    LayerPart::AttentionNorm => &layer.attention_norm,
                    LayerPart::Query | LayerPart::Key | LayerPart::Value => &layer.qkv,
                    LayerPart::AttentionOut => &layer.attention_out,
                    LayerPart::FfnNorm => &layer.ffn_norm,
                    LayerPart::Ffn(FfnMatrix::Gate | FfnMatrix::Up) => &layer.gate_up,
                    LayerPart::Ffn(FfnMatrix::Down) => &layer.down,
                    LayerPart::Router | LayerPart::Expert { .. } => no_experts(),
                }
            }
        };
        tensor.rows(rows.first..rows.first + rows.n).f32()
    }

    /// The values of one weight as files name them, to be written.
    ///
    /// # Panics
    /// When the model has no such weight.
    pub fn weight_mut(&mut self, name: WeightName) -> &mut [f32] {
        let rows = WeightRows::of(name, &self.config);
        let tensor = match name {
            WeightName::Embedding => &mut self.embedding,
            WeightName::FinalNorm => &mut self.final_norm,
            WeightName::Head => self.head.as_mut().expect("the head is not tied"),
            WeightName::Layer { layer_idx, part } => {
                let layer = &mut self.layers[layer_idx];
                match part {
                    LayerPart::AttentionNorm => &mut layer.attention_norm,
                    LayerPart::Query | LayerPart::Key | LayerPart::Value => &mut layer.qkv,
                    LayerPart::AttentionOut => &mut layer.attention_out,
                    LayerPart::FfnNorm => &mut layer.ffn_norm,
                    LayerPart::Ffn(FfnMatrix::Gate | FfnMatrix::Up) => &mut layer.gate_up,
                    LayerPart::Ffn(FfnMatrix::Down) => &mut layer.down,
                    LayerPart::Router | LayerPart::Expert { .. } => no_experts(),
                }
            }
        };
        tensor.rows_mut(rows.first..rows.first + rows.n).f32()
    }
}

fn no_experts() -> ! {
    panic!("parameters of a model without experts");
}

/// Where a weight of a file lies within the tensor that holds it.
struct WeightRows {
    first: usize,
    n: usize,
}

impl WeightRows {
    fn of(name: WeightName, config: &ModelConfig) -> Self {
        let shape = name.shape(config);
        // A vector is one row.
        let n = if shape.len() == 1 { 1 } else { shape[0] };
        let WeightName::Layer { part, .. } = name else { return Self { first: 0, n } };
        let first = match part {
            LayerPart::Key => config.n_heads * config.head_dim,
            LayerPart::Value => (config.n_heads + config.n_kv_heads) * config.head_dim,
            LayerPart::Ffn(FfnMatrix::Up) => config.ffn_dim,
            _ => 0,
        };
        Self { first, n }
    }
}

/// Uniform numbers from SplitMix64 (Steele, Lea, Flood 2014): integer arithmetic, equal on every machine.
pub(crate) struct UniformStream {
    pub(crate) state: u64,
}

impl UniformStream {
    fn fill(&mut self, tensor: &mut Tensor, std: f32) {
        // The standard deviation of a uniform number in -1..1 is 1 / sqrt(3).
        let half_width = 3.0_f32.sqrt() * std;
        for value in tensor.f32_mut() {
            *value = (self.next_in_unit() * 2.0 - 1.0) * half_width;
        }
    }

    /// In 0..1, in steps of 2^-24, which f32 holds exactly.
    pub(crate) fn next_in_unit(&mut self) -> f32 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1_u64 << 24) as f32
    }
}
