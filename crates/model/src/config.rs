//! A configuration that is known to be computable.

use std::ops::Deref;

use formats::{DecoderConfig, Experts, Rope, WeightDtype};
use kernels::attention::HeadShape;
use tensor::DType;

/// Why a model cannot be built.
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum ModelError {
    /// A dimension that must be positive is zero.
    #[error("{field} is 0, expected at least 1")]
    Zero {
        /// The field.
        field: &'static str,
    },
    /// A dimension is beyond what sums of sizes can hold on every machine.
    #[error("{field} is {got}, expected at most {limit}")]
    TooLarge {
        /// The field.
        field: &'static str,
        /// Its value.
        got: usize,
        /// The largest value.
        limit: usize,
    },
    /// Query heads cannot share the KV heads evenly.
    #[error("n_heads {n_heads} is no multiple of n_kv_heads {n_kv_heads}")]
    Heads {
        /// Query heads.
        n_heads: usize,
        /// Key and value heads.
        n_kv_heads: usize,
    },
    /// A dimension of matrix products is odd: operands are read in pairs.
    #[error("{field} is {got}, expected an even number")]
    Odd {
        /// The field.
        field: &'static str,
        /// Its value.
        got: usize,
    },
    /// A window of no positions.
    #[error("sliding window {pattern:?} has a width of 0, expected at least 1")]
    EmptyWindow {
        /// The pattern over the layers.
        pattern: Vec<Option<usize>>,
    },
    /// More experts for a token than there are, or none.
    #[error("n_active {n_active} of n_experts {n_experts}: expected 1..=n_experts")]
    Experts {
        /// Experts for a token.
        n_active: usize,
        /// Experts of a layer.
        n_experts: usize,
    },
    /// A setting of an adapter that cannot be trained.
    #[error("the adapter's {setting} is {got}, expected {expected}")]
    Adapter {
        /// The setting.
        setting: &'static str,
        /// Its value.
        got: String,
        /// What would do.
        expected: String,
    },
    /// A model whose backward pass is not computed.
    #[error("a model of routed experts cannot be trained yet ({n_experts} experts)")]
    Untrainable {
        /// Experts of a layer.
        n_experts: usize,
    },
}

/// A checked configuration; reads as a [`DecoderConfig`].
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig(DecoderConfig);

impl ModelConfig {
    /// Checks that the model can be computed.
    ///
    /// # Errors
    /// When it cannot, naming the field.
    pub fn new(config: DecoderConfig) -> Result<Self, ModelError> {
        let scaled_context_len =
            config.query_scaling.map_or(1, |scaling| scaling.original_context_len);
        // Far beyond every published model, and small enough that no plan of memory overflows.
        let dimensions = [
            ("vocab_size", config.vocab_size, 1 << 22),
            ("hidden_dim", config.hidden_dim, 1 << 18),
            ("n_layers", config.n_layers, 1 << 10),
            ("n_heads", config.n_heads, 1 << 12),
            ("n_kv_heads", config.n_kv_heads, 1 << 12),
            ("head_dim", config.head_dim, 1 << 10),
            ("ffn_dim", config.ffn_dim, 1 << 20),
            ("context_len", config.context_len, 1 << 24),
            ("query_scaling.original_context_len", scaled_context_len, 1 << 28),
        ];
        for (field, got, limit) in dimensions {
            if got == 0 {
                return Err(ModelError::Zero { field });
            }
            if got > limit {
                return Err(ModelError::TooLarge { field, got, limit });
            }
        }
        if !config.n_heads.is_multiple_of(config.n_kv_heads) {
            let (n_heads, n_kv_heads) = (config.n_heads, config.n_kv_heads);
            return Err(ModelError::Heads { n_heads, n_kv_heads });
        }
        let paired = [
            ("hidden_dim", config.hidden_dim),
            ("head_dim", config.head_dim),
            ("ffn_dim", config.ffn_dim),
            ("vocab_size", config.vocab_size),
        ];
        for (field, got) in paired {
            if !got.is_multiple_of(2) {
                return Err(ModelError::Odd { field, got });
            }
        }
        if config.sliding_windows.contains(&Some(0)) {
            return Err(ModelError::EmptyWindow { pattern: config.sliding_windows });
        }
        if let Some(Experts { n_experts, n_active }) = config.experts
            && !(1..=n_experts.min(1 << 12)).contains(&n_active)
        {
            return Err(ModelError::Experts { n_active, n_experts });
        }
        Ok(Self(config))
    }

    /// A tiny configuration for examples and tests.
    #[must_use]
    pub fn example() -> DecoderConfig {
        DecoderConfig {
            vocab_size: 32,
            hidden_dim: 16,
            n_layers: 2,
            n_heads: 4,
            n_kv_heads: 2,
            head_dim: 4,
            ffn_dim: 24,
            context_len: 64,
            rope: Rope::plain(1e4),
            query_scaling: None,
            rms_norm_eps: 1e-5,
            tied_embeddings: true,
            sliding_windows: Vec::new(),
            experts: None,
            bos_id: Some(1),
            eos_ids: vec![2],
            dtype: WeightDtype::F32,
        }
    }

    /// Whether a backward pass exists.
    ///
    /// # Errors
    /// When it does not.
    pub fn check_trainable(&self) -> Result<(), ModelError> {
        match self.experts {
            None => Ok(()),
            Some(Experts { n_experts, .. }) => Err(ModelError::Untrainable { n_experts }),
        }
    }

    /// The heads of one layer, its window included.
    #[must_use]
    pub fn layer_heads(&self, layer_idx: usize) -> HeadShape {
        HeadShape { window: self.sliding_window(layer_idx), ..self.head_shape() }
    }

    /// The heads of any layer, without its window.
    #[must_use]
    pub fn head_shape(&self) -> HeadShape {
        HeadShape {
            n_heads: self.n_heads,
            n_kv_heads: self.n_kv_heads,
            head_dim: self.head_dim,
            scale: 1.0 / (self.head_dim as f32).sqrt(),
            window: None,
        }
    }

    /// Floating-point operations of the forward pass for one token of a sequence of `seq_len`: 2 per parameter of a matrix
    /// product that the token passes (a tied head is used as one; of experts the active ones, and their router), and
    /// 2 `n_heads head_dim seq_len` per layer for causal attention.
    #[must_use]
    pub fn forward_flops_per_token(&self, seq_len: usize) -> f64 {
        self.product_flops_per_token() + self.attention_flops_per_token(seq_len)
    }

    /// Those of the products with parameters.
    fn product_flops_per_token(&self) -> f64 {
        let head = self.vocab_size * self.hidden_dim;
        let block = 3 * self.hidden_dim * self.ffn_dim;
        let ffn = match self.experts {
            None => block,
            Some(Experts { n_experts, n_active }) => n_active * block + n_experts * self.hidden_dim,
        };
        let layer = self.hidden_dim * self.head_shape().qkv_width()
            + self.n_heads * self.head_dim * self.hidden_dim
            + ffn;
        2.0 * (self.n_layers * layer + head) as f64
    }

    fn attention_flops_per_token(&self, seq_len: usize) -> f64 {
        2.0 * (self.n_layers * self.n_heads * self.head_dim * seq_len) as f64
    }

    /// Floating-point operations of one trained token: those of the forward pass, and twice as many for the gradients of
    /// both operands of each product.
    #[must_use]
    pub fn train_flops_per_token(&self, seq_len: usize) -> f64 {
        3.0 * self.forward_flops_per_token(seq_len)
    }

    /// Floating-point operations of one token with which an adapter is trained beside the model: as
    /// [`ModelConfig::train_flops_per_token`] without the gradients of parameters, so 4 per parameter of a product in place of 6.
    /// Those of the adapter itself, in proportion to its rank, are not counted.
    #[must_use]
    pub fn adapter_flops_per_token(&self, seq_len: usize) -> f64 {
        2.0 * self.product_flops_per_token() + 3.0 * self.attention_flops_per_token(seq_len)
    }
}

impl Deref for ModelConfig {
    type Target = DecoderConfig;

    fn deref(&self) -> &DecoderConfig {
        &self.0
    }
}

/// The number type in which stored weights are computed: bf16 in bf16, all others in f32, which holds them exactly.
#[must_use]
pub fn compute_dtype(stored: WeightDtype) -> DType {
    match stored {
        WeightDtype::Bf16 => DType::Bf16,
        WeightDtype::F32 | WeightDtype::F16 => DType::F32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One block was counted, so that reading a prompt seemed to reach half of the operations that it did.
    #[test]
    fn a_token_of_a_model_of_experts_passes_its_active_ones_and_the_router() {
        let dense = ModelConfig::new(ModelConfig::example()).unwrap();
        let experts = Some(Experts { n_experts: 8, n_active: 2 });
        let routed = ModelConfig::new(DecoderConfig { experts, ..ModelConfig::example() }).unwrap();
        // Queries, keys and values 16 * 32, attention's output 16 * 16, a feed-forward block 3 * 16 * 24.
        let (attention, block, head) = (16 * 32 + 16 * 16, 3 * 16 * 24, 32 * 16);
        let scores = 2 * 16 * 10;
        let expected = |ffn: usize| (2 * (2 * (attention + ffn) + head + scores)) as f64;
        assert_eq!(dense.forward_flops_per_token(10), expected(block));
        assert_eq!(routed.forward_flops_per_token(10), expected(2 * block + 8 * 16));
        assert_eq!(routed.train_flops_per_token(10), 3.0 * expected(2 * block + 8 * 16));
        let scores = (2 * scores) as f64;
        let of_adapter = 2.0 * (expected(block) - scores) + 3.0 * scores;
        assert_eq!(dense.adapter_flops_per_token(10), of_adapter);
    }
}
