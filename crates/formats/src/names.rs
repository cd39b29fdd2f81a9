//! The weights of a decoder and their names in Hugging Face, native Mistral and GGUF files.

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
    /// A projection of the feed-forward block.
    Ffn(FfnMatrix),
    /// Router of the experts, `[n_experts, hidden_dim]`.
    Router,
    /// A projection of one expert.
    Expert {
        /// Which expert, from 0.
        expert_idx: usize,
        /// Which projection.
        matrix: FfnMatrix,
    },
}

/// One projection of a feed-forward block or of an expert, `[out, in]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FfnMatrix {
    /// `[ffn_dim, hidden_dim]`.
    Gate,
    /// `[ffn_dim, hidden_dim]`.
    Up,
    /// `[hidden_dim, ffn_dim]`.
    Down,
}

impl FfnMatrix {
    /// Every matrix, in file order.
    pub const ALL: [Self; 3] = [Self::Gate, Self::Up, Self::Down];

    /// Name in Hugging Face files of a dense block.
    const fn hf_name(self) -> &'static str {
        match self {
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
        }
    }

    /// Name in native files, and in Hugging Face files of experts.
    const fn native_name(self) -> &'static str {
        match self {
            Self::Gate => "w1",
            Self::Up => "w3",
            Self::Down => "w2",
        }
    }

    /// Name in GGUF files.
    const fn gguf_name(self) -> &'static str {
        match self {
            Self::Gate => "ffn_gate",
            Self::Up => "ffn_up",
            Self::Down => "ffn_down",
        }
    }
}

/// How files name weights and order the rows of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Hugging Face: the two members of a rotated pair are half a head apart.
    HuggingFace,
    /// Mistral's own (`consolidated.safetensors`): the two members of a pair are neighbours.
    Native,
    /// GGUF: pairs as in [`Layout::Native`]; the experts of a layer are one tensor, `[n_experts, out, in]`.
    Gguf,
}

impl Layout {
    /// What messages call it.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::HuggingFace => "Hugging Face",
            Self::Native => "native",
            Self::Gguf => "GGUF",
        }
    }

    /// The order of a weight's rows in files of this layout.
    pub(crate) fn row_order(self, weight: WeightName, head_dim: usize) -> RowOrder {
        match self {
            Self::Native | Self::Gguf if weight.is_rotated() => RowOrder::Pairs { head_dim },
            _ => RowOrder::Same,
        }
    }
}

/// The order of rows in a file against that of Hugging Face, which the program computes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowOrder {
    Same,
    /// Rows `2 i` and `2 i + 1` of a head are a rotated pair.
    Pairs {
        head_dim: usize,
    },
}

impl RowOrder {
    /// Where the file has a row of the program.
    pub(crate) fn row_in_file(self, row: usize) -> usize {
        match self {
            Self::Same => row,
            Self::Pairs { head_dim } => {
                let (head, i) = (row / head_dim, row % head_dim);
                let half = head_dim / 2;
                head * head_dim + if i < half { 2 * i } else { 2 * (i - half) + 1 }
            }
        }
    }

    /// Where the program has a row of the file: the inverse of [`RowOrder::row_in_file`].
    pub(crate) fn row_of_file(self, row: usize) -> usize {
        match self {
            Self::Same => row,
            Self::Pairs { head_dim } => {
                let (head, i) = (row / head_dim, row % head_dim);
                head * head_dim + i / 2 + i % 2 * (head_dim / 2)
            }
        }
    }
}

/// The divisors of the rotary frequencies of Llama 3 and later, a tensor of GGUF files, `[head_dim / 2]`. In other layouts the
/// configuration holds them.
pub(crate) const ROPE_DIVISORS: &str = "rope_freqs.weight";

/// Names of the parts that are no feed-forward projection: part, Hugging Face, native, GGUF.
const LAYER_NAMES: [(LayerPart, &str, &str, &str); 7] = [
    (LayerPart::AttentionNorm, "input_layernorm", "attention_norm", "attn_norm"),
    (LayerPart::Query, "self_attn.q_proj", "attention.wq", "attn_q"),
    (LayerPart::Key, "self_attn.k_proj", "attention.wk", "attn_k"),
    (LayerPart::Value, "self_attn.v_proj", "attention.wv", "attn_v"),
    (LayerPart::AttentionOut, "self_attn.o_proj", "attention.wo", "attn_output"),
    (LayerPart::FfnNorm, "post_attention_layernorm", "ffn_norm", "ffn_norm"),
    (LayerPart::Router, "block_sparse_moe.gate", "feed_forward.gate", "ffn_gate_inp"),
];

impl LayerPart {
    /// The parts of a layer of this model, in file order.
    #[must_use]
    pub fn all(config: &DecoderConfig) -> Vec<Self> {
        let mut parts = vec![
            Self::AttentionNorm,
            Self::Query,
            Self::Key,
            Self::Value,
            Self::AttentionOut,
            Self::FfnNorm,
        ];
        match config.experts {
            None => parts.extend(FfnMatrix::ALL.map(Self::Ffn)),
            Some(experts) => {
                parts.push(Self::Router);
                for expert_idx in 0..experts.n_experts {
                    parts.extend(FfnMatrix::ALL.map(|matrix| Self::Expert { expert_idx, matrix }));
                }
            }
        }
        parts
    }

    /// The name after the layer's number.
    pub(crate) fn name(self, layout: Layout) -> String {
        match (self, layout) {
            (Self::Ffn(matrix), Layout::HuggingFace) => format!("mlp.{}.weight", matrix.hf_name()),
            (Self::Ffn(matrix), Layout::Native) => {
                format!("feed_forward.{}.weight", matrix.native_name())
            }
            (Self::Ffn(matrix), Layout::Gguf) => format!("{}.weight", matrix.gguf_name()),
            (Self::Expert { expert_idx, matrix }, Layout::HuggingFace) => {
                format!("block_sparse_moe.experts.{expert_idx}.{}.weight", matrix.native_name())
            }
            (Self::Expert { expert_idx, matrix }, Layout::Native) => {
                format!("feed_forward.experts.{expert_idx}.{}.weight", matrix.native_name())
            }
            (Self::Expert { matrix, .. }, Layout::Gguf) => {
                format!("{}_exps.weight", matrix.gguf_name())
            }
            (other, layout) => {
                let names = LAYER_NAMES.iter().find(|(part, ..)| *part == other);
                let (_, hf, native, gguf) = names.expect("every other part is in the table");
                match layout {
                    Layout::HuggingFace => format!("{hf}.weight"),
                    Layout::Native => format!("{native}.weight"),
                    Layout::Gguf => format!("{gguf}.weight"),
                }
            }
        }
    }
}

impl WeightName {
    /// The name of its tensor in files of a layout; in GGUF files the experts of a layer share one.
    #[must_use]
    pub fn name(self, layout: Layout) -> String {
        let [embedding, layers, final_norm, head] = layout_names(layout);
        match self {
            Self::Embedding => embedding.to_owned(),
            Self::Layer { layer_idx, part } => format!("{layers}{layer_idx}.{}", part.name(layout)),
            Self::FinalNorm => final_norm.to_owned(),
            Self::Head => head.to_owned(),
        }
    }

    /// The name in Hugging Face files, which our own files share.
    #[must_use]
    pub fn hf_name(self) -> String {
        self.name(Layout::HuggingFace)
    }

    /// Whether it chooses the experts of a token.
    #[must_use]
    pub fn is_router(self) -> bool {
        matches!(self, Self::Layer { part: LayerPart::Router, .. })
    }

    /// Whether its rows are rotated, so that their order depends on the layout.
    fn is_rotated(self) -> bool {
        matches!(self, Self::Layer { part: LayerPart::Query | LayerPart::Key, .. })
    }

    /// The expert that it belongs to.
    pub(crate) fn expert_idx(self) -> Option<usize> {
        match self {
            Self::Layer { part: LayerPart::Expert { expert_idx, .. }, .. } => Some(expert_idx),
            _ => None,
        }
    }

    /// Every weight of a model, in file order: embedding, layers, final norm, head (unless tied).
    #[must_use]
    pub fn all(config: &DecoderConfig) -> Vec<Self> {
        let parts = LayerPart::all(config);
        let mut names = Vec::with_capacity(3 + config.n_layers * parts.len());
        names.push(Self::Embedding);
        for layer_idx in 0..config.n_layers {
            names.extend(parts.iter().map(|&part| Self::Layer { layer_idx, part }));
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
                LayerPart::Router => vec![config.experts.map_or(0, |e| e.n_experts), hidden_dim],
                LayerPart::Ffn(matrix) | LayerPart::Expert { matrix, .. } => match matrix {
                    FfnMatrix::Gate | FfnMatrix::Up => vec![ffn_dim, hidden_dim],
                    FfnMatrix::Down => vec![hidden_dim, ffn_dim],
                },
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
                LayerPart::Router => "(n_experts, hidden_dim)",
                LayerPart::Ffn(matrix) | LayerPart::Expert { matrix, .. } => match matrix {
                    FfnMatrix::Gate | FfnMatrix::Up => "(ffn_dim, hidden_dim)",
                    FfnMatrix::Down => "(hidden_dim, ffn_dim)",
                },
            },
        }
    }
}

/// Embedding, what stands before a layer's number, final norm, head.
const fn layout_names(layout: Layout) -> [&'static str; 4] {
    match layout {
        Layout::HuggingFace => {
            ["model.embed_tokens.weight", "model.layers.", "model.norm.weight", "lm_head.weight"]
        }
        Layout::Native => ["tok_embeddings.weight", "layers.", "norm.weight", "output.weight"],
        Layout::Gguf => ["token_embd.weight", "blk.", "output_norm.weight", "output.weight"],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Experts;
    use crate::config::tests::tiny_config;

    #[test]
    fn every_weight_has_a_name_of_its_own_in_each_layout() {
        let experts = Some(Experts { n_experts: 3, n_active: 2 });
        for (config, n_per_layer) in
            [(tiny_config(), 9), (DecoderConfig { experts, ..tiny_config() }, 6 + 1 + 3 * 3)]
        {
            let weights = WeightName::all(&config);
            assert_eq!(weights.len(), 1 + n_per_layer * config.n_layers + 1);
            for layout in [Layout::HuggingFace, Layout::Native, Layout::Gguf] {
                let mut names: Vec<String> = weights.iter().map(|name| name.name(layout)).collect();
                names.sort();
                names.dedup();
                // In GGUF files three tensors hold the experts of a layer.
                let shared = if layout == Layout::Gguf && config.experts.is_some() { 6 } else { 0 };
                assert_eq!(names.len(), weights.len() - shared * config.n_layers, "{layout:?}");
            }
            for name in weights {
                assert_eq!(
                    name.shape(&config).len(),
                    name.axes().split(", ").count(),
                    "{name:?} has as many axis names as axes"
                );
            }
        }
    }

    #[test]
    fn rows_come_back_from_the_order_of_every_layout() {
        let part = |part| WeightName::Layer { layer_idx: 0, part };
        for layout in [Layout::HuggingFace, Layout::Native, Layout::Gguf] {
            for weight in [part(LayerPart::Query), part(LayerPart::Key), part(LayerPart::Value)] {
                for head_dim in [2, 6, 16] {
                    let order = layout.row_order(weight, head_dim);
                    for row in 0..3 * head_dim {
                        let in_file = order.row_in_file(row);
                        assert_eq!(order.row_of_file(in_file), row, "{layout:?} {weight:?}");
                        assert_eq!(in_file / head_dim, row / head_dim, "heads stay together");
                    }
                }
            }
        }
        let pairs = Layout::Native.row_order(part(LayerPart::Key), 6);
        let in_file: Vec<usize> = (6..12).map(|row| pairs.row_in_file(row)).collect();
        assert_eq!(in_file, [6, 8, 10, 7, 9, 11], "pair `i` is at `2 i` and `2 i + 1`");
        assert_eq!(Layout::Gguf.row_order(part(LayerPart::Value), 6), RowOrder::Same);
    }

    #[test]
    fn an_untied_model_ends_with_the_head() {
        let config = DecoderConfig { tied_embeddings: false, ..tiny_config() };
        assert_eq!(WeightName::all(&config).last(), Some(&WeightName::Head));
    }
}
