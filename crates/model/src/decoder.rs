//! The weights of a decoder, packed for the kernels.

use kernels::rope::RopeFrequencies;
use tensor::{DType, Device, Linear, Passes, Tensor, ops};

use crate::config::ModelConfig;
use crate::feed_forward::FeedForward;
use crate::parameters::{LayerParameters, Parameters};

/// A decoder, ready to compute.
#[derive(Clone, Debug)]
pub struct Decoder {
    /// Where its weights are.
    pub(crate) device: Device,
    pub(crate) config: ModelConfig,
    pub(crate) dtype: DType,
    /// `[vocab, hidden]`; the head too when tied.
    pub(crate) embedding: Linear,
    pub(crate) layers: Vec<Layer>,
    /// `[1, hidden]`.
    pub(crate) final_norm: Tensor,
    /// `[vocab, hidden]`, when not tied.
    pub(crate) head: Option<Linear>,
    pub(crate) rope: RopeFrequencies,
}

/// One layer; shapes as in the parameters of the same names.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    pub(crate) attention_norm: Tensor,
    pub(crate) qkv: Linear,
    pub(crate) attention_out: Linear,
    pub(crate) ffn_norm: Tensor,
    pub(crate) ffn: FeedForward,
}

impl Layer {
    fn zeroed(device: &Device, config: &ModelConfig, dtype: DType, passes: Passes) -> Self {
        let hidden = config.hidden_dim;
        let shape = config.head_shape();
        let norm = || Tensor::zeroed_on(device, DType::F32, 1, hidden);
        let linear = |n_out, n_in| Linear::zeroed(device, dtype, n_out, n_in, passes);
        Self {
            attention_norm: norm(),
            qkv: linear(shape.qkv_width(), hidden),
            attention_out: linear(hidden, shape.n_heads * shape.head_dim),
            ffn_norm: norm(),
            ffn: FeedForward::zeroed(device, config, dtype, passes),
        }
    }

    fn pack(&mut self, device: &Device, dtype: DType, parameters: &LayerParameters) {
        pack_norm(device, &mut self.attention_norm, &parameters.attention_norm, dtype);
        self.qkv.pack(device, parameters.qkv.view());
        self.attention_out.pack(device, parameters.attention_out.view());
        pack_norm(device, &mut self.ffn_norm, &parameters.ffn_norm, dtype);
        let ffn = self.ffn.dense_mut();
        ffn.gate_up.pack(device, parameters.gate_up.view());
        ffn.down.pack(device, parameters.down.view());
    }
}

/// Norm weights are f32, but hold what the model's number type can hold: a bf16 model is written with bf16 norm weights.
fn pack_norm(device: &Device, norm: &mut Tensor, parameter: &Tensor, dtype: DType) {
    ops::round_to(device, dtype, parameter.view(), norm.view_mut());
}

impl Decoder {
    /// A decoder of zeros: matrices in `dtype`, packed for the passes wanted.
    #[must_use]
    pub fn zeroed(device: &Device, config: &ModelConfig, dtype: DType, passes: Passes) -> Self {
        let vocabulary =
            || Linear::zeroed(device, dtype, config.vocab_size, config.hidden_dim, passes);
        let layer = |_| Layer::zeroed(device, config, dtype, passes);
        Self {
            device: device.clone(),
            config: config.clone(),
            dtype,
            embedding: vocabulary(),
            layers: (0..config.n_layers).map(layer).collect(),
            final_norm: Tensor::zeroed_on(device, DType::F32, 1, config.hidden_dim),
            head: (!config.tied_embeddings).then(vocabulary),
            rope: crate::rope::frequencies(config),
        }
    }

    /// A decoder of random weights for measurements, packed for the passes wanted: on a GPU they are made there, in seconds
    /// whatever the size.
    ///
    /// # Panics
    /// When it has experts and is to be in this machine's memory: their parameters are not made.
    #[must_use]
    pub fn random(
        device: &Device,
        config: &ModelConfig,
        dtype: DType,
        passes: Passes,
        seed: u64,
    ) -> Self {
        let mut decoder = Self::zeroed(device, config, dtype, passes);
        if let Device::Cpu(_) = device {
            decoder.pack(device, &Parameters::random(config, seed));
            return decoder;
        }
        let mut seeds = seed..;
        let mut fill = |linear: &mut Linear, std: f32| {
            let seed = seeds.next().expect("there is always a next number");
            linear.fill_uniform(device, seed, std);
        };
        fill(&mut decoder.embedding, 0.02);
        decoder.head.iter_mut().for_each(|head| fill(head, 0.02));
        for layer in &mut decoder.layers {
            let ffn = layer.ffn.linears_mut();
            for linear in [&mut layer.qkv, &mut layer.attention_out].into_iter().chain(ffn) {
                let std = 1.0 / (linear.n_in() as f32).sqrt();
                fill(linear, std);
            }
        }
        let norms = decoder
            .layers
            .iter_mut()
            .flat_map(|layer| [&mut layer.attention_norm, &mut layer.ffn_norm]);
        let ones = vec![1.0; config.hidden_dim];
        norms.chain([&mut decoder.final_norm]).for_each(|norm| norm.write_f32(&ones));
        decoder
    }

    /// Takes over the parameters, which are on its device, rounding matrices and norms to the decoder's number type.
    ///
    /// # Panics
    /// When the parameters are those of another configuration.
    pub fn pack(&mut self, device: &Device, parameters: &Parameters) {
        assert_eq!(parameters.layers.len(), self.layers.len(), "layers of the parameters");
        let dtype = self.dtype;
        self.embedding.pack(device, parameters.embedding.view());
        pack_norm(device, &mut self.final_norm, &parameters.final_norm, dtype);
        if let (Some(head), Some(parameter)) = (&mut self.head, &parameters.head) {
            head.pack(device, parameter.view());
        }
        for (layer, parameters) in self.layers.iter_mut().zip(&parameters.layers) {
            layer.pack(device, dtype, parameters);
        }
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Number type of the matrices and of their operands.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Whether some of its weights are packed blocks, whose products round their inputs.
    #[must_use]
    pub fn has_packed_blocks(&self) -> bool {
        let of_layer = |layer: &Layer| {
            layer.qkv.has_packed_blocks()
                || layer.attention_out.has_packed_blocks()
                || layer.ffn.has_packed_blocks()
        };
        self.head().has_packed_blocks() || self.layers.iter().any(of_layer)
    }

    /// Bytes that the weights take.
    #[must_use]
    pub fn bytes_for(config: &ModelConfig, dtype: DType, passes: Passes) -> usize {
        let (hidden, shape) = (config.hidden_dim, config.head_shape());
        let linear = |n_out, n_in| Linear::bytes_for(dtype, n_out, n_in, passes);
        let layer = linear(shape.qkv_width(), hidden)
            + linear(hidden, shape.n_heads * shape.head_dim)
            + FeedForward::bytes_for(config, dtype, passes)
            + 2 * hidden * 4;
        let n_vocabularies = if config.tied_embeddings { 1 } else { 2 };
        n_vocabularies * linear(config.vocab_size, hidden) + config.n_layers * layer + hidden * 4
    }

    /// Bytes of weights that one step reads: all but the embedding, of which it reads a row for each token, where that is not the head too.
    #[must_use]
    pub fn n_bytes_of_step(&self) -> usize {
        let rows = if self.head.is_some() { self.embedding.n_bytes() } else { 0 };
        self.n_bytes() - rows
    }

    /// Bytes of the buffers that the decoder holds.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        let layers = self.layers.iter().map(|layer| {
            layer.qkv.n_bytes()
                + layer.attention_out.n_bytes()
                + layer.ffn.n_bytes()
                + layer.attention_norm.n_bytes()
                + layer.ffn_norm.n_bytes()
        });
        self.embedding.n_bytes()
            + self.head.as_ref().map_or(0, Linear::n_bytes)
            + layers.sum::<usize>()
            + self.final_norm.n_bytes()
    }

    /// The output head.
    pub(crate) fn head(&self) -> &Linear {
        self.head.as_ref().unwrap_or(&self.embedding)
    }
}
