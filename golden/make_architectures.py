#!/usr/bin/env python3
"""Writes golden/architectures/NAME/: a tiny random model of each architecture and the logits transformers computes from it.

`hf/` is the model as transformers writes it; `native/` holds the same weights under Mistral's own names, queries and keys
in the order of its rotation, for those architectures that are published so. `expected.safetensors` holds

    token_ids    i64 [100]           one sequence, more than twice the windows and the original contexts
    logits       f32 [100, vocab]    computed in f32 from the stored (rounded) weights
    logits_bf16  bf16 [100, vocab]   computed with the weights and the arithmetic in bf16

Run: target/peers/bin/python golden/make_architectures.py
"""

import argparse
import json
import pathlib
import shutil

import safetensors.torch
import torch
import transformers

SEQ_LEN = 100
VOCAB_SIZE = 128
HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FFN = 48, 4, 2, 16, 64
WINDOW = 24
ORIGINAL_CONTEXT = 32
YARN = {"factor": 4.0, "original_max_position_embeddings": ORIGINAL_CONTEXT, "beta_fast": 32.0, "beta_slow": 1.0}


def rope(kind="default", theta=1e4, **settings):
    return {"rope_type": kind, "rope_theta": theta, **settings}


# Name: (config class, model class, stored type, settings, native params or None).
ARCHITECTURES = {
    # Mistral 7B v0.1: a window in every layer, base 1e4. Its params.json had no base.
    "mistral_window": (
        transformers.MistralConfig,
        transformers.MistralForCausalLM,
        torch.bfloat16,
        {"sliding_window": WINDOW, "rope_parameters": rope()},
        {"sliding_window": WINDOW, "rope_theta": 1e4},
    ),
    # Mistral 7B v0.2 and v0.3, Nemo, Small, Large: no window, another base, heads wider than hidden / heads.
    "mistral": (
        transformers.MistralConfig,
        transformers.MistralForCausalLM,
        torch.bfloat16,
        {"sliding_window": None, "rope_parameters": rope(theta=1e6)},
        {"rope_theta": 1e6},
    ),
    # Ministral 8B: one full layer, then three with a window.
    "ministral": (
        transformers.MinistralConfig,
        transformers.MinistralForCausalLM,
        torch.bfloat16,
        {
            "num_hidden_layers": 4,
            "sliding_window": WINDOW,
            "layer_types": ["full_attention"] + 3 * ["sliding_attention"],
            "rope_parameters": rope(theta=1e8),
        },
        {"sliding_window": [None, WINDOW, WINDOW, WINDOW], "rope_theta": 1e8},
    ),
    # Ministral 3: tied head, YaRN without its factor, growing queries.
    "ministral3": (
        transformers.Ministral3Config,
        transformers.Ministral3ForCausalLM,
        torch.bfloat16,
        {
            "tie_word_embeddings": True,
            "rope_parameters": rope("yarn", 1e6, **YARN, mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.1),
        },
        {
            "rope_theta": 1e6,
            "tied_embeddings": True,
            "yarn": {
                "factor": 4.0,
                "original_max_position_embeddings": ORIGINAL_CONTEXT,
                "beta": 32.0,
                "alpha": 1.0,
                "apply_scale": False,
            },
            "llama_4_scaling": {"beta": 0.1, "original_max_position_embeddings": ORIGINAL_CONTEXT},
        },
    ),
    # Mixtral: routed experts.
    "mixtral": (
        transformers.MixtralConfig,
        transformers.MixtralForCausalLM,
        torch.bfloat16,
        {"num_local_experts": 4, "num_experts_per_tok": 2, "rope_parameters": rope(theta=1e6)},
        {"rope_theta": 1e6, "moe": {"num_experts": 4, "num_experts_per_tok": 2}},
    ),
    # Llama 2: one key and value head for each query head, f16 files.
    "llama2": (
        transformers.LlamaConfig,
        transformers.LlamaForCausalLM,
        torch.float16,
        {"num_key_value_heads": HEADS, "rope_parameters": rope()},
        None,
    ),
    # Llama 3.1 and later.
    "llama3": (
        transformers.LlamaConfig,
        transformers.LlamaForCausalLM,
        torch.bfloat16,
        {
            "rope_parameters": rope(
                "llama3",
                5e5,
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=ORIGINAL_CONTEXT,
            )
        },
        None,
    ),
    # YaRN with its factor on queries and keys, as in fine-tunes for long contexts.
    "yarn": (
        transformers.LlamaConfig,
        transformers.LlamaForCausalLM,
        torch.bfloat16,
        {"rope_parameters": rope("yarn", 1e4, **YARN)},
        None,
    ),
    "linear": (
        transformers.LlamaConfig,
        transformers.LlamaForCausalLM,
        torch.bfloat16,
        {"rope_parameters": rope("linear", 1e4, factor=4.0)},
        None,
    ),
}


def base_settings():
    return {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "attn_implementation": "eager",
    }


def randomise(model, seed, dtype):
    """Weights in which an error in any part shows in the logits, rounded to the stored type."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                noise = 1.0 + 0.2 * noise
            elif "embed_tokens" in name or "lm_head" in name:
                noise = 0.06 * noise
            else:
                noise = 1.5 * noise / parameter.shape[-1] ** 0.5
            parameter.copy_(noise.to(dtype).float())


def native_name(name):
    """The native name of a Hugging Face weight."""
    table = {
        "model.embed_tokens.weight": "tok_embeddings.weight",
        "model.norm.weight": "norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in table:
        return table[name]
    for hf, native in {
        "model.layers.": "layers.",
        "self_attn.q_proj": "attention.wq",
        "self_attn.k_proj": "attention.wk",
        "self_attn.v_proj": "attention.wv",
        "self_attn.o_proj": "attention.wo",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.down_proj": "feed_forward.w2",
        "mlp.up_proj": "feed_forward.w3",
        "block_sparse_moe.": "feed_forward.",
    }.items():
        name = name.replace(hf, native)
    return name


def interleaved(weight):
    """Rows of each head from half-split to neighbouring pairs."""
    rows, columns = weight.shape
    heads = weight.view(rows // HEAD_DIM, 2, HEAD_DIM // 2, columns)
    return heads.transpose(1, 2).reshape(rows, columns).contiguous()


def write_native(folder, weights, params, config):
    folder.mkdir(parents=True)
    tensors = {}
    for name, weight in weights.items():
        is_rotated = "q_proj" in name or "k_proj" in name
        tensors[native_name(name)] = interleaved(weight) if is_rotated else weight
    safetensors.torch.save_file(tensors, folder / "consolidated.safetensors")
    common = {
        "dim": HIDDEN,
        "n_layers": config.num_hidden_layers,
        "head_dim": HEAD_DIM,
        "hidden_dim": FFN,
        "n_heads": HEADS,
        "n_kv_heads": config.num_key_value_heads,
        "norm_eps": 1e-5,
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": 256,
    }
    (folder / "params.json").write_text(json.dumps({**common, **params}, indent=2) + "\n")


def logits_of(model, token_ids):
    with torch.no_grad():
        return model(input_ids=token_ids[None], use_cache=False).logits[0]


def write_architecture(folder, name, seed):
    config_class, model_class, dtype, settings, params = ARCHITECTURES[name]
    shutil.rmtree(folder, ignore_errors=True)
    config = config_class(**{**base_settings(), **settings})
    model = model_class(config).float().eval()
    randomise(model, seed, dtype)
    token_ids = torch.randint(0, VOCAB_SIZE, (SEQ_LEN,), generator=torch.Generator().manual_seed(seed + 1000))
    logits = logits_of(model, token_ids)
    logits_bf16 = logits_of(model.to(torch.bfloat16), token_ids)
    model = model.float()
    # bf16 and back loses what f16 holds: the weights are made again.
    randomise(model, seed, dtype)
    model.to(dtype).save_pretrained(folder / "hf")
    (folder / "hf" / "generation_config.json").unlink(missing_ok=True)
    if params is not None:
        stored = safetensors.torch.load_file(folder / "hf" / "model.safetensors")
        write_native(folder / "native", stored, params, config)
    safetensors.torch.save_file(
        {"token_ids": token_ids, "logits": logits.contiguous(), "logits_bf16": logits_bf16.contiguous()},
        folder / "expected.safetensors",
    )
    return {
        "logits_std": round(logits.std().item(), 3),
        "bf16_max_difference": round((logits - logits_bf16.float()).abs().max().item(), 4),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent / "architectures")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    for i, name in enumerate(ARCHITECTURES):
        print(json.dumps({"golden": f"architectures/{name}", **write_architecture(out / name, name, 50 + i)}))


if __name__ == "__main__":
    main()
