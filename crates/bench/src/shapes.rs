//! The shapes that are measured.

use formats::{DecoderConfig, Rope, WeightDtype};
use model::{ModelConfig, ModelError};

/// A named shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Name in reports.
    pub name: &'static str,
    /// Width, layers, query heads, KV heads, head size, feed-forward width, vocabulary, context.
    pub(crate) dims: [usize; 8],
    pub(crate) tied_embeddings: bool,
    /// Base of the rotary angles.
    pub(crate) rope_theta: u32,
}

/// The shape whose training step PyTorch is compared on: 15.7 million parameters.
pub const TRAIN_STEP_SHAPE: Shape = Shape {
    name: "15.7m",
    dims: [384, 8, 6, 2, 64, 1024, 8192, 512],
    tied_embeddings: true,
    rope_theta: 10_000,
};

impl Shape {
    /// Every named shape.
    pub const ALL: [Self; 5] = [
        TRAIN_STEP_SHAPE,
        Self { name: "124m", dims: [768, 12, 12, 12, 64, 2048, 32768, 1024], ..TRAIN_STEP_SHAPE },
        Self {
            name: "1b",
            dims: [2048, 16, 32, 8, 64, 8192, 32768, 32768],
            tied_embeddings: false,
            ..TRAIN_STEP_SHAPE
        },
        Self {
            name: "7b",
            dims: [4096, 32, 32, 8, 128, 14336, 32768, 32768],
            tied_embeddings: false,
            ..TRAIN_STEP_SHAPE
        },
        // That of Llama 3.1 8B, without the scaling of its angles.
        Self {
            name: "8b",
            dims: [4096, 32, 32, 8, 128, 14336, 128_256, 8192],
            tied_embeddings: false,
            rope_theta: 500_000,
        },
    ];

    /// The shape of a name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|shape| shape.name == name)
    }

    /// The configuration of the shape.
    ///
    /// # Errors
    /// When its numbers do not go together; never for the named shapes.
    pub fn config(self) -> Result<ModelConfig, ModelError> {
        let [hidden_dim, n_layers, n_heads, n_kv_heads, head_dim, ffn_dim, vocab_size, context_len] =
            self.dims;
        ModelConfig::new(DecoderConfig {
            vocab_size,
            hidden_dim,
            n_layers,
            n_heads,
            n_kv_heads,
            head_dim,
            ffn_dim,
            context_len,
            rope: Rope::plain(f64::from(self.rope_theta)),
            query_scaling: None,
            rms_norm_eps: 1e-5,
            tied_embeddings: self.tied_embeddings,
            sliding_windows: Vec::new(),
            experts: None,
            bos_id: Some(1),
            eos_ids: vec![2],
            dtype: WeightDtype::Bf16,
        })
    }
}
