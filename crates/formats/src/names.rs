//! The weights of a decoder and their names in Hugging Face files.

use crate::config::DecoderConfig;

/// One weight of a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WeightName {
    /// Token embedding, `[vocab_size, hidden_dim]`.
    Embedding,
    /// A weight of one layer.
    Layer {
        /// Which layer, from 0.
        layer_idx: usize,
        /// Which weight of the layer.
        part: LayerPart,
    },
    /// Gain of the last norm, `[hidden_dim]`.
    FinalNorm,
    /// Output head, `[vocab_size, hidden_dim]`; absent when it is tied to the embedding.
    Head,
}

/// One weight of a layer. Matrices are `[out, in]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LayerPart {
    /// Gain of the norm before attention, `[hidden_dim]`.
    AttentionNorm,
    /// Query projection, `[n_heads * head_dim, hidden_dim]`.
    Query,
    /// Key projection, `[n_kv_heads * head_dim, hidden_dim]`.
    Key,
    /// Value projection, `[n_kv_heads * head_dim, hidden_dim]`.
    Value,
    /// Output projection of attention, `[hidden_dim, n_heads * head_dim]`.
    AttentionOut,
    /// Gain of the norm before the feed-forward block, `[hidden_dim]`.
    FfnNorm,
    /// Gate projection, `[ffn_dim, hidden_dim]`.
    Gate,
    /// Up projection, `[ffn_dim, hidden_dim]`.
    Up,
    /// Down projection, `[hidden_dim, ffn_dim]`.
    Down,
}

impl LayerPart {
    /// Every part, in file order.
    pub const ALL: [Self; 9] = [
        Self::AttentionNorm,
        Self::Query,
        Self::Key,
        Self::Value,
        Self::AttentionOut,
        Self::FfnNorm,
        Self::Gate,
        Self::Up,
        Self::Down,
    ];

    /// The name after `model.layers.N.` in Hugging Face files.
    const fn hf_suffix(self) -> &'static str {
        match self {
            Self::AttentionNorm => "input_layernorm.weight",
            Self::Query => "self_attn.q_proj.weight",
            Self::Key => "self_attn.k_proj.weight",
            Self::Value => "self_attn.v_proj.weight",
            Self::AttentionOut => "self_attn.o_proj.weight",
            Self::FfnNorm => "post_attention_layernorm.weight",
            Self::Gate => "mlp.gate_proj.weight",
            Self::Up => "mlp.up_proj.weight",
            Self::Down => "mlp.down_proj.weight",
        }
    }
}

impl WeightName {
    /// The name in Hugging Face files.
    #[must_use]
    pub fn hf_name(self) -> String {
        match self {
            Self::Embedding => "model.embed_tokens.weight".to_owned(),
            Self::Layer { layer_idx, part } => {
                format!("model.layers.{layer_idx}.{}", part.hf_suffix())
            }
            Self::FinalNorm => "model.norm.weight".to_owned(),
            Self::Head => "lm_head.weight".to_owned(),
        }
    }

    /// The weight that a Hugging Face name means, or `None` when it is not a weight of this family.
    #[must_use]
    pub fn from_hf_name(name: &str) -> Option<Self> {
        match name {
            "model.embed_tokens.weight" => return Some(Self::Embedding),
            "model.norm.weight" => return Some(Self::FinalNorm),
            "lm_head.weight" => return Some(Self::Head),
            _ => {}
        }
        let (number, suffix) = name.strip_prefix("model.layers.")?.split_once('.')?;
        let layer_idx: usize = number.parse().ok()?;
        // `+1` and `007` parse too; they are not names that a writer gives.
        if layer_idx.to_string() != number {
            return None;
        }
        let part = LayerPart::ALL.into_iter().find(|part| part.hf_suffix() == suffix)?;
        Some(Self::Layer { layer_idx, part })
    }

    /// Every weight of a model, in file order: embedding, layers, final norm, head (unless tied).
    #[must_use]
    pub fn all(config: &DecoderConfig) -> Vec<Self> {
        let mut names = Vec::with_capacity(3 + config.n_layers * LayerPart::ALL.len());
        names.push(Self::Embedding);
        for layer_idx in 0..config.n_layers {
            names.extend(LayerPart::ALL.map(|part| Self::Layer { layer_idx, part }));
        }
        names.push(Self::FinalNorm);
        if !config.tied_embeddings {
            names.push(Self::Head);
        }
        names
    }

    /// The shape that the configuration gives this weight, slowest axis first.
    #[must_use]
    pub fn shape(self, config: &DecoderConfig) -> Vec<usize> {
        let DecoderConfig {
            vocab_size, hidden_dim, n_heads, n_kv_heads, head_dim, ffn_dim, ..
        } = *config;
        match self {
            Self::Embedding | Self::Head => vec![vocab_size, hidden_dim],
            Self::FinalNorm => vec![hidden_dim],
            Self::Layer { part, .. } => match part {
                LayerPart::AttentionNorm | LayerPart::FfnNorm => vec![hidden_dim],
                LayerPart::Query => vec![n_heads * head_dim, hidden_dim],
                LayerPart::Key | LayerPart::Value => vec![n_kv_heads * head_dim, hidden_dim],
                LayerPart::AttentionOut => vec![hidden_dim, n_heads * head_dim],
                LayerPart::Gate | LayerPart::Up => vec![ffn_dim, hidden_dim],
                LayerPart::Down => vec![hidden_dim, ffn_dim],
            },
        }
    }

    /// The names of the axes of [`WeightName::shape`], as error messages show them.
    #[must_use]
    pub fn axes(self) -> &'static str {
        match self {
            Self::Embedding | Self::Head => "(vocab_size, hidden_dim)",
            Self::FinalNorm => "(hidden_dim)",
            Self::Layer { part, .. } => match part {
                LayerPart::AttentionNorm | LayerPart::FfnNorm => "(hidden_dim)",
                LayerPart::Query => "(n_heads * head_dim, hidden_dim)",
                LayerPart::Key | LayerPart::Value => "(n_kv_heads * head_dim, hidden_dim)",
                LayerPart::AttentionOut => "(hidden_dim, n_heads * head_dim)",
                LayerPart::Gate | LayerPart::Up => "(ffn_dim, hidden_dim)",
                LayerPart::Down => "(hidden_dim, ffn_dim)",
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::tiny_config;

    #[test]
    fn every_name_is_read_back_as_itself() {
        let config = tiny_config();
        let names = WeightName::all(&config);
        assert_eq!(names.len(), 1 + 9 * config.n_layers + 1);
        for name in names {
            assert_eq!(WeightName::from_hf_name(&name.hf_name()), Some(name));
            assert_eq!(
                name.shape(&config).len(),
                name.axes().split(", ").count(),
                "{name:?} has as many axis names as axes"
            );
        }
    }

    #[test]
    fn an_untied_model_ends_with_the_head() {
        let config = DecoderConfig { tied_embeddings: false, ..tiny_config() };
        assert_eq!(WeightName::all(&config).last(), Some(&WeightName::Head));
    }

    #[test]
    fn names_of_other_weights_are_not_taken_for_ours() {
        for name in [
            "",
            "model.layers.0.self_attn.q_proj.bias",
            "model.layers.00.mlp.up_proj.weight",
            "model.layers.+1.mlp.up_proj.weight",
            "model.layers.-1.mlp.up_proj.weight",
            "model.layers.99999999999999999999999.mlp.up_proj.weight",
            "model.layers.0.self_attn.rotary_emb.inv_freq",
        ] {
            assert_eq!(WeightName::from_hf_name(name), None, "{name}");
        }
    }
}
