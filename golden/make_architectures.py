#!/usr/bin/env python3
"""Writes golden/architectures/NAME/: a tiny random model of each architecture and the logits transformers computes from it.

`hf/` is the model as transformers writes it; `native/` holds the same weights under Mistral's own names, queries and keys
in the order of its rotation, for those architectures that are published so; `gguf/model.gguf` holds them as llama.cpp's
converter writes them. Beside the architectures, `quantised_a` and `quantised_b` are GGUF files whose matrices are random blocks
of all kinds; their logits are computed from the numbers in the blocks. `expected.safetensors` holds

    token_ids    i64 [100]           one sequence, more than twice the windows and the original contexts
    logits       f32 [100, vocab]    computed in f32 from the stored (rounded) weights
    logits_bf16  bf16 [100, vocab]   computed with the weights and the arithmetic in bf16

Run: target/peers/bin/python golden/make_architectures.py
"""

import argparse
import json
import pathlib
import shutil

import gguf
import numpy as np
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


def interleaved(weight, head_dim):
    """Rows of each head from half-split to neighbouring pairs."""
    rows, columns = weight.shape
    heads = weight.view(rows // head_dim, 2, head_dim // 2, columns)
    return heads.transpose(1, 2).reshape(rows, columns).contiguous()


def write_native(folder, weights, params, config):
    folder.mkdir(parents=True)
    tensors = {}
    for name, weight in weights.items():
        is_rotated = "q_proj" in name or "k_proj" in name
        tensors[native_name(name)] = interleaved(weight, HEAD_DIM) if is_rotated else weight
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


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.down_proj": "ffn_down",
    "mlp.up_proj": "ffn_up",
    "block_sparse_moe.gate": "ffn_gate_inp",
}
EXPERT_NAMES = {"w1": "ffn_gate_exps", "w2": "ffn_down_exps", "w3": "ffn_up_exps"}


def gguf_name(name):
    for hf, own in GGUF_NAMES.items():
        name = name.replace(hf, own)
    return name


def gguf_header(writer, architecture, config):
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if architecture == "mistral3":
        writer.add_rope_scaling_yarn_log_mul(rope["mscale_all_dim"])
        writer.add_attn_temperature_scale(rope["llama_4_scaling_beta"])
    if getattr(config, "num_local_experts", 0):
        writer.add_expert_count(config.num_local_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    window = getattr(config, "sliding_window", None)
    if window:
        writer.add_sliding_window(window)
        types = getattr(config, "layer_types", None) or []
        if "full_attention" in types:
            writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in types])


def llama3_divisors(config):
    """The divisors of the rotary frequencies, as the published conversion computes them."""
    rope = config.rope_parameters
    frequencies = rope["rope_theta"] ** -(np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim)
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * np.pi)
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def write_gguf(path, weights, config, quantise=None):
    """Writes weights by Hugging Face names; matrices in their own type, or as `quantise(name, weight)` says."""
    path.parent.mkdir(parents=True)
    architecture = "mistral3" if config.model_type == "ministral3" else "llama"
    writer = gguf.GGUFWriter(path, architecture)
    gguf_header(writer, architecture, config)
    if config.rope_parameters["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_divisors(config))
    experts = {}
    for name, weight in weights.items():
        if "q_proj" in name or "k_proj" in name:
            weight = interleaved(weight, config.head_dim)
        if ".experts." in name:
            layer, expert, part = name.split(".")[2], name.split(".")[5], name.split(".")[6]
            experts.setdefault(f"blk.{layer}.{EXPERT_NAMES[part]}.weight", {})[int(expert)] = weight
            continue
        add_tensor(writer, gguf_name(name), weight, quantise)
    for name, parts in experts.items():
        add_tensor(writer, name, torch.stack([parts[i] for i in range(len(parts))]), quantise)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tensor(writer, name, weight, quantise):
    if weight.dim() == 1:
        writer.add_tensor(name, weight.float().numpy())
    elif quantise is not None:
        blocks, quant = quantise(name)
        writer.add_tensor(name, blocks, raw_dtype=quant)
    elif weight.dtype == torch.bfloat16:
        writer.add_tensor(name, weight.view(torch.int16).numpy().view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    else:
        writer.add_tensor(name, weight.numpy())


# Matrices of one layer, embedding and head, in the kinds of two models.
QUANTISED = {
    "quantised_a": ["Q4_K", "Q4_K", "Q6_K", "Q5_K", "Q8_0", "Q4_0", "Q3_K", "Q6_K", "Q4_K"],
    "quantised_b": ["Q5_0", "Q4_1", "F16", "Q5_1", "IQ4_NL", "IQ4_XS", "Q2_K", "Q8_0", "BF16"],
}
QUANTISED_PARTS = [
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_output",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
    "token_embd",
    "output",
]
# Offsets of the half-precision factors in a block, and the size of each: minima are as large as random numbers are on
# average.
FACTORS = {
    "Q2_K": {80: 1.0, 82: 1.5},
    "Q3_K": {108: 1.0},
    "Q4_K": {0: 1.0, 2: 7.5},
    "Q5_K": {0: 1.0, 2: 15.5},
    "Q6_K": {208: 1.0},
    "IQ4_XS": {0: 1.0},
    "IQ4_NL": {0: 1.0},
}


def random_blocks(kind, rows, columns, std, rng):
    """Rows of blocks whose numbers have the standard deviation wanted."""
    quant = gguf.GGMLQuantizationType[kind]
    if kind not in FACTORS:
        return gguf.quantize((std * rng.standard_normal((rows, columns))).astype(np.float32), quant), quant
    block_len, block_bytes = gguf.GGML_QUANT_SIZES[quant]
    blocks = rng.integers(0, 256, (rows * columns // block_len, block_bytes), dtype=np.uint8)
    factor = 1e-3
    for _ in range(2):
        for offset, size in FACTORS[kind].items():
            blocks[:, offset : offset + 2] = np.frombuffer(np.float16(size * factor).tobytes(), np.uint8)
        numbers = gguf.dequantize(blocks, quant)
        factor *= std / numbers.std()
    return blocks.reshape(rows, -1), quant


def write_quantised(folder, name, seed):
    """A GGUF file of random blocks, and the logits that transformers computes from their numbers."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    kinds = dict(zip(QUANTISED_PARTS, QUANTISED[name]))
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1, "head_dim": 64}
    settings = {**base_settings(), **sizes, "sliding_window": None, "rope_parameters": rope()}
    config = transformers.MistralConfig(**settings)
    model = transformers.MistralForCausalLM(config).float().eval()
    randomise(model, seed, torch.float32)
    rng = np.random.default_rng(seed)
    blocks = {}
    weights = model.state_dict()
    for hf_name, weight in weights.items():
        own_name = gguf_name(hf_name)
        part = own_name.removesuffix(".weight").split(".")[-1]
        if weight.dim() == 1:
            continue
        std = 0.06 if part in ("token_embd", "output") else weight.shape[1] ** -0.5
        blocks[own_name] = random_blocks(kinds[part], *weight.shape, std, rng)
        numbers = torch.from_numpy(gguf.dequantize(*blocks[own_name]).astype(np.float32).reshape(weight.shape))
        if part in ("attn_q", "attn_k"):
            numbers = half_split(numbers, config.head_dim)
        with torch.no_grad():
            weight.copy_(numbers)
    write_gguf(folder / "gguf" / "model.gguf", weights, config, lambda name: blocks[name])
    return save_expected(folder, model, seed)


def half_split(weight, head_dim):
    """Rows of each head from neighbouring pairs to half-split, the inverse of `interleaved`."""
    rows, columns = weight.shape
    heads = weight.view(rows // head_dim, head_dim // 2, 2, columns)
    return heads.transpose(1, 2).reshape(rows, columns).contiguous()


def save_expected(folder, model, seed):
    token_ids = torch.randint(0, VOCAB_SIZE, (SEQ_LEN,), generator=torch.Generator().manual_seed(seed + 1000))
    logits = logits_of(model, token_ids)
    logits_bf16 = logits_of(model.to(torch.bfloat16), token_ids)
    safetensors.torch.save_file(
        {"token_ids": token_ids, "logits": logits.contiguous(), "logits_bf16": logits_bf16.contiguous()},
        folder / "expected.safetensors",
    )
    return {
        "logits_std": round(logits.std().item(), 3),
        "bf16_max_difference": round((logits - logits_bf16.float()).abs().max().item(), 4),
    }


def logits_of(model, token_ids):
    with torch.no_grad():
        return model(input_ids=token_ids[None], use_cache=False).logits[0]


def write_architecture(folder, name, seed):
    config_class, model_class, dtype, settings, params = ARCHITECTURES[name]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = config_class(**{**base_settings(), **settings})
    model = model_class(config).float().eval()
    randomise(model, seed, dtype)
    figures = save_expected(folder, model, seed)
    model = model.float()
    # bf16 and back loses what f16 holds: the weights are made again.
    randomise(model, seed, dtype)
    model.to(dtype).save_pretrained(folder / "hf")
    (folder / "hf" / "generation_config.json").unlink(missing_ok=True)
    stored = safetensors.torch.load_file(folder / "hf" / "model.safetensors")
    if params is not None:
        write_native(folder / "native", stored, params, config)
    write_gguf(folder / "gguf" / "model.gguf", stored, config)
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent / "architectures")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    for i, name in enumerate(ARCHITECTURES):
        print(json.dumps({"golden": f"architectures/{name}", **write_architecture(out / name, name, 50 + i)}))
    for i, name in enumerate(QUANTISED):
        print(json.dumps({"golden": f"architectures/{name}", **write_quantised(out / name, name, 70 + i)}))


if __name__ == "__main__":
    main()
