//! Published models of the family, known by their shape.

use crate::config::DecoderConfig;

/// A published shape: vocabulary, width, layers, query heads, key and value heads, size of a head, feed-forward width, experts.
type Shape = [usize; 8];

/// Name, shape, whether the head is tied, number of parameters. Sources: the published configurations; counts agree with the
/// published sizes.
const PUBLISHED: [(&str, Shape, bool, u64); 13] = [
    ("Mistral 7B v0.1 or v0.2", [32000, 4096, 32, 32, 8, 128, 14336, 0], false, 7_241_732_096),
    ("Mistral 7B v0.3", [32768, 4096, 32, 32, 8, 128, 14336, 0], false, 7_248_023_552),
    ("Mixtral 8x7B", [32000, 4096, 32, 32, 8, 128, 14336, 8], false, 46_702_792_704),
    ("Mistral 22B", [32768, 6144, 56, 48, 8, 128, 16384, 0], false, 22_247_282_688),
    ("Mistral Nemo 12B", [131_072, 5120, 40, 32, 8, 128, 14336, 0], false, 12_247_782_400),
    ("Ministral 8B", [131_072, 4096, 36, 32, 8, 128, 12288, 0], false, 8_019_808_256),
    ("Mistral Small 3", [131_072, 5120, 40, 32, 8, 128, 32768, 0], false, 23_572_403_200),
    ("Mistral Large 2", [32768, 12288, 88, 96, 8, 128, 28672, 0], false, 122_610_069_504),
    ("Ministral 3 3B", [131_072, 3072, 26, 32, 8, 128, 9216, 0], true, 3_429_006_336),
    ("Ministral 3 8B", [131_072, 4096, 34, 32, 8, 128, 14336, 0], false, 8_489_553_920),
    ("Ministral 3 14B", [131_072, 5120, 40, 32, 8, 128, 16384, 0], false, 13_506_073_600),
    ("Llama 2 7B", [32000, 4096, 32, 32, 32, 128, 11008, 0], false, 6_738_415_616),
    ("Llama 3 8B", [128_256, 4096, 32, 32, 8, 128, 14336, 0], false, 8_030_261_248),
];

/// The published model of the same shape, and so of the same number of parameters.
#[must_use]
pub fn published(config: &DecoderConfig) -> Option<&'static str> {
    let shape = [
        config.vocab_size,
        config.hidden_dim,
        config.n_layers,
        config.n_heads,
        config.n_kv_heads,
        config.head_dim,
        config.ffn_dim,
        config.experts.map_or(0, |experts| experts.n_experts),
    ];
    let is_same = |(_, other, is_tied, _): &&(&str, Shape, bool, u64)| {
        *other == shape && *is_tied == config.tied_embeddings
    };
    PUBLISHED.iter().find(is_same).map(|&(name, ..)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Experts;
    use crate::config::tests::tiny_config;

    #[test]
    fn parameters_of_published_shapes_are_counted_as_published() {
        for (name, shape, tied_embeddings, n_parameters) in PUBLISHED {
            let [vocab_size, hidden_dim, n_layers, n_heads, n_kv_heads, head_dim, ffn_dim, n] =
                shape;
            let config = DecoderConfig {
                vocab_size,
                hidden_dim,
                n_layers,
                n_heads,
                n_kv_heads,
                head_dim,
                ffn_dim,
                tied_embeddings,
                experts: (n > 0).then_some(Experts { n_experts: n, n_active: 2 }),
                ..tiny_config()
            };
            assert_eq!(config.n_parameters(), n_parameters, "{name}");
            assert_eq!(published(&config), Some(name));
        }
        assert_eq!(published(&tiny_config()), None);
    }
}
