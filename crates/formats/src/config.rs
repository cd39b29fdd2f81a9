//! The shape and constants of a decoder, whatever file it was described in.
//!
//! `hf` reads and writes Hugging Face `config.json`, `native` Mistral's `params.json`. In both, each key of the
//! file is translated, or known to have no effect on the computation, or must have the one value that this family
//! computes with. A key that is none of these is refused by name: a setting that is silently dropped is a model that
//! silently answers something else.

use std::f64::consts::TAU;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::FormatError;
use crate::names::WeightName;

pub(crate) mod hf;
pub(crate) mod native;

pub use hf::{parse_config, to_hf_json};

/// Number type of stored weights; `f32` and `bf16` in our own files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightDtype {
    /// 32-bit float.
    F32,
    /// 16-bit float of IEEE 754; in models of others.
    F16,
    /// The upper half of a 32-bit float.
    Bf16,
}

impl WeightDtype {
    /// Bytes of one number.
    #[must_use]
    pub const fn n_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// The shape and constants of a decoder of the Mistral and Llama family: RMSNorm, rotary positions, grouped-query
/// attention, SwiGLU in one block or in routed experts, no bias.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecoderConfig {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_dim: usize,
    /// Number of layers.
    pub n_layers: usize,
    /// Number of query heads.
    pub n_heads: usize,
    /// Number of key and value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// Width of the feed-forward block, or of each expert.
    pub ffn_dim: usize,
    /// Most positions the model was made for.
    pub context_len: usize,
    /// Rotary positions.
    pub rope: Rope,
    /// Growth of the queries with their position; `None` for none.
    pub query_scaling: Option<QueryScaling>,
    /// Added to the mean square inside the norm's square root.
    pub rms_norm_eps: f64,
    /// Whether the output head is the embedding.
    pub tied_embeddings: bool,
    /// Positions that a position of a layer sees, itself included, `None` for all before it: a pattern that is repeated
    /// over the layers. An empty one is no window anywhere.
    pub sliding_windows: Vec<Option<usize>>,
    /// Routed experts in place of one feed-forward block.
    pub experts: Option<Experts>,
    /// Token put before a text.
    pub bos_id: Option<u32>,
    /// Tokens that end an answer.
    pub eos_ids: Vec<u32>,
    /// Number type of the stored weights.
    pub dtype: WeightDtype,
}

/// What a configuration file describes.
#[derive(Clone, Debug, PartialEq)]
pub struct ReadConfig {
    /// The decoder.
    pub decoder: DecoderConfig,
    /// The model that the decoder is the text part of, such as `mistral3`; its other parts are not read.
    pub text_part_of: Option<String>,
}

/// How queries and keys are rotated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rope {
    /// Base of the frequencies: pair `i` of a head turns by `theta^(-2 i / head_dim)` per position.
    pub theta: f64,
    /// What changes the frequencies for contexts longer than those of the first training.
    pub scaling: RopeScaling,
}

impl Rope {
    /// Plain rotary positions.
    #[must_use]
    pub const fn plain(theta: f64) -> Self {
        Self { theta, scaling: RopeScaling::None }
    }
}

/// A change of the rotary frequencies.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum RopeScaling {
    /// None.
    None,
    /// Every frequency is divided by `factor`. Source: arXiv 2306.15595.
    Linear {
        /// By what.
        factor: f64,
    },
    /// Low frequencies are divided by `factor`, high ones kept, those between interpolated, as in Llama 3.1.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// A wave longer than `original_context_len / low_freq_factor` is low.
        low_freq_factor: f64,
        /// A wave shorter than `original_context_len / high_freq_factor` is high.
        high_freq_factor: f64,
        /// Positions of the first training.
        original_context_len: usize,
    },
    /// Each frequency has a divisor of its own: what GGUF files keep of `Llama3`.
    Divided {
        /// `[head_dim / 2]`.
        divisors: Vec<f32>,
    },
    /// As `Llama3` with a ramp over the pairs, and a factor on queries and keys. Source: arXiv 2309.00071.
    Yarn {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Turns within the original context from which a frequency is high.
        beta_fast: f64,
        /// Turns up to which it is low.
        beta_slow: f64,
        /// Positions of the first training.
        original_context_len: usize,
        /// Factor of cosines and sines.
        attention_factor: f64,
        /// Whether the ends of the ramp are rounded to whole pairs.
        is_truncated: bool,
    },
}

/// Queries at position `p`, once rotated, are multiplied by `1 + beta ln(1 + floor(p / original_context_len))`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct QueryScaling {
    /// Strength.
    pub beta: f64,
    /// Positions of the first training.
    pub original_context_len: usize,
}

/// Routed experts: each token takes the `n_active` of largest router logits, weighted by the softmax over those.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Experts {
    /// Experts of a layer.
    pub n_experts: usize,
    /// Experts that a token goes through.
    pub n_active: usize,
}

impl Rope {
    /// What each frequency is divided by, `[head_dim / 2]`: 1 for those that a scaling keeps.
    ///
    /// Numerics: f64. Source: [`RopeScaling`] names the papers; for Llama 3 the code of the model card, for YaRN the ramp of its section
    /// 3.2 over pairs, whose ends are whole pairs when the configuration says so.
    #[must_use]
    pub fn divisors(&self, head_dim: usize) -> Vec<f64> {
        let n_pairs = head_dim / 2;
        let radians = |pair: usize| self.theta.powf(-2.0 * pair as f64 / head_dim as f64);
        // Between dividing by `factor` (0) and keeping (1) the frequency itself is interpolated.
        let partly = |factor: f64, kept: f64| 1.0 / ((1.0 - kept) / factor + kept);
        match self.scaling {
            RopeScaling::None => vec![1.0; n_pairs],
            RopeScaling::Linear { factor } => vec![factor; n_pairs],
            RopeScaling::Divided { ref divisors } => {
                divisors.iter().map(|&divisor| f64::from(divisor)).collect()
            }
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context_len,
            } => (0..n_pairs)
                .map(|pair| {
                    // Turns within the original context.
                    let turns = original_context_len as f64 * radians(pair) / TAU;
                    let kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    partly(factor, kept.clamp(0.0, 1.0))
                })
                .collect(),
            RopeScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                original_context_len,
                is_truncated,
                ..
            } => {
                // The pair that makes this many turns within the original context.
                let pair_of = |turns: f64| {
                    let waves = original_context_len as f64 / (turns * TAU);
                    head_dim as f64 * waves.ln() / (2.0 * self.theta.ln())
                };
                let (mut low, mut high) = (pair_of(beta_fast), pair_of(beta_slow));
                if is_truncated {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(head_dim as f64 - 1.0));
                if low == high {
                    high += 0.001;
                }
                let ramp = |pair: usize| ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
                (0..n_pairs).map(|pair| partly(factor, 1.0 - ramp(pair))).collect()
            }
        }
    }
}

impl DecoderConfig {
    /// Number of parameters; a tied head counts once.
    #[must_use]
    pub fn n_parameters(&self) -> u64 {
        let n_of = |name: WeightName| -> u64 {
            name.shape(self).iter().map(|&axis| axis as u64).product()
        };
        WeightName::all(self).into_iter().map(n_of).sum()
    }

    /// Positions that a position of a layer sees, itself included; `None` for all before it.
    #[must_use]
    pub fn sliding_window(&self, layer_idx: usize) -> Option<usize> {
        if self.sliding_windows.is_empty() {
            return None;
        }
        self.sliding_windows[layer_idx % self.sliding_windows.len()]
    }

    /// Checks that describe no file: sizes that depend on one another.
    pub(crate) fn check_heads(
        path: &Path,
        [n_heads, n_kv_heads, head_dim]: [usize; 3],
        [kv_field, head_field]: [&str; 2],
    ) -> Result<(), FormatError> {
        let bad = |field: &str, got: usize, expected: String| FormatError::Field {
            path: path.to_owned(),
            field: field.to_owned(),
            got: got.to_string(),
            expected,
        };
        if !n_heads.is_multiple_of(n_kv_heads) {
            let expected = format!("a divisor of the {n_heads} query heads");
            return Err(bad(kv_field, n_kv_heads, expected));
        }
        if !head_dim.is_multiple_of(2) || !(2..=1024).contains(&head_dim) {
            return Err(bad(head_field, head_dim, "an even number from 2 to 1024".to_owned()));
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests;
