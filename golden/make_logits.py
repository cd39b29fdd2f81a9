#!/usr/bin/env python3
"""Writes golden/logits/NAME/: tiny models as Hugging Face directories and the logits transformers computes from them.

`expected.safetensors` of each model holds

    token_ids    i64 [2, 70]         two independent sequences, positions from 0
    logits       f32 [2, 70, vocab]  computed in f32
    logits_bf16  f32 [2, 70, vocab]  computed with the weights and the arithmetic in bf16, widened to f32

Run: target/peers/bin/python golden/make_logits.py
"""

import argparse
import copy
import json
import pathlib

import safetensors.torch
import torch

import tiny_mistral

SEQUENCES = 2
SEQ_LEN = 70
MODELS = {
    "tied": {"seed": 11, "tied": True},
    "untied": {"seed": 12, "tied": False},
    # n_heads * head_dim = 192 differs from the hidden dimension of 96; three query heads share a key-value head.
    "wide_heads": {"seed": 13, "tied": True, "hidden_dim": 96, "n_heads": 6, "n_kv_heads": 2, "head_dim": 32},
}


def write_model(folder, seed, **shape):
    """Writes one model with its expected logits; returns figures for the record."""
    model = tiny_mistral.build(seed, **shape)
    token_ids = tiny_mistral.random_tokens(seed + 1000, (SEQUENCES, SEQ_LEN))
    rounded = copy.deepcopy(model).to(torch.bfloat16)
    with torch.no_grad():
        logits = model(input_ids=token_ids, use_cache=False).logits
        logits_bf16 = rounded(input_ids=token_ids, use_cache=False).logits.float()
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    safetensors.torch.save_file(
        {"token_ids": token_ids, "logits": logits.contiguous(), "logits_bf16": logits_bf16.contiguous()},
        folder / "expected.safetensors",
    )
    return {
        "logits_std": round(logits.std().item(), 3),
        "bf16_max_difference": round((logits - logits_bf16).abs().max().item(), 4),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent / "logits")
    out = parser.parse_args().out
    # One thread, so that the order of every sum is the same wherever the files are remade.
    torch.set_num_threads(1)
    for name, options in MODELS.items():
        print(json.dumps({"golden": f"logits/{name}", **write_model(out / name, **options)}))


if __name__ == "__main__":
    main()
