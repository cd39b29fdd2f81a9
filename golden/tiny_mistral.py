"""Tiny Mistral models with random weights, built by transformers, for the golden files of this folder."""

import torch
import transformers

VOCAB_SIZE = 160


def build(seed, hidden_dim=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, ffn_dim=96, tied=True):
    """A model in f32 in which an error in any part shows in the logits, whose standard deviation is near 0.5.

    The usual standard deviation of 0.02 would leave attention nearly uniform and the norms' gains untested, hence the
    larger matrices and the gains away from one. The embedding is small, so that rounding the logits themselves to
    bf16 stays well under the tolerance of 0.1.
    """
    config = transformers.MistralConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=hidden_dim,
        intermediate_size=ffn_dim,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        num_key_value_heads=n_kv_heads,
        head_dim=head_dim,
        max_position_embeddings=256,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        sliding_window=None,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation="eager",
    )
    model = transformers.MistralForCausalLM(config).float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.copy_(1.0 + 0.2 * noise)
            elif "embed_tokens" in name or "lm_head" in name:
                parameter.copy_(0.06 * noise)
            else:
                parameter.copy_(noise / parameter.shape[1] ** 0.5)
    return model


def random_tokens(seed, shape):
    """Token ids drawn uniformly from the vocabulary."""
    return torch.randint(0, VOCAB_SIZE, shape, generator=torch.Generator().manual_seed(seed))
