#!/usr/bin/env python3
"""Writes golden/blocks/expected.safetensors: random quantised blocks and the numbers that the gguf package reads in them.

For each kind, `KIND.blocks` (u8, whole blocks) and `KIND.numbers` (f32). Factors are small and finite; all else is random.
`written.numbers` (f32) and, for each kind that the package and this project write alike, `written.KIND` (u8).

Run: target/peers/bin/python golden/make_blocks.py
"""

import argparse
import json
import pathlib

import gguf
import numpy as np
import safetensors.numpy

# Kind: offsets of half-precision factors in a block.
KINDS = {
    "F32": None,
    "F16": None,
    "BF16": None,
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
    "IQ4_NL": [0],
    "IQ4_XS": [0],
}
N_NUMBERS = 1024
WRITTEN = ["F32", "F16", "BF16", "Q8_0"]


def random_blocks(kind, rng):
    quant = gguf.GGMLQuantizationType[kind]
    block_len, block_bytes = gguf.GGML_QUANT_SIZES[quant]
    n_blocks = N_NUMBERS // block_len
    if KINDS[kind] is None:
        return gguf.quantize(rng.standard_normal(N_NUMBERS).astype(np.float32), quant).view(np.uint8).reshape(1, -1)
    blocks = rng.integers(0, 256, (n_blocks, block_bytes), dtype=np.uint8)
    for offset in KINDS[kind]:
        factors = (0.01 * rng.standard_normal((n_blocks, 1))).astype(np.float16)
        blocks[:, offset : offset + 2] = factors.view(np.uint8)
    return blocks.reshape(1, -1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent / "blocks")
    out = parser.parse_args().out
    rng = np.random.default_rng(7)
    tensors = {}
    for kind in KINDS:
        blocks = random_blocks(kind, rng)
        quant = gguf.GGMLQuantizationType[kind]
        numbers = blocks.view(np.float32) if kind == "F32" else gguf.dequantize(blocks, quant)
        tensors[f"{kind}.blocks"] = blocks.reshape(-1).copy()
        tensors[f"{kind}.numbers"] = numbers.reshape(-1).astype(np.float32).copy()
    numbers = rng.standard_normal(N_NUMBERS).astype(np.float32)
    # Halves between two levels, a block of zeros, a block of one size.
    numbers[:32] = np.arange(32) - 15.5
    numbers[0] = 127
    numbers[32:64] = 0
    numbers[64:96] = 0.3
    tensors["written.numbers"] = numbers
    for kind in WRITTEN:
        blocks = gguf.quantize(numbers, gguf.GGMLQuantizationType[kind])
        tensors[f"written.{kind}"] = blocks.reshape(-1).view(np.uint8).copy()
    out.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(tensors, out / "expected.safetensors")
    print(json.dumps({"golden": "blocks", "kinds": len(KINDS), "numbers_per_kind": N_NUMBERS}))


if __name__ == "__main__":
    main()
