#!/usr/bin/env python3
"""Compares the tokens of texts in llama.cpp and here, from one GGUF file that `galerne model export` makes.

For each tokenizer file (`tokenizer.json`, `tekken.json`, `tokenizer.model*`) a model of one small layer is written beside it and exported;
both programs read the vocabulary of that file alone. Prints one JSON line per tokenizer; exits with 1 if anything differs.
Needs llama-cpp-python and numpy, in any environment.

Run: compare_llama_cpp_tokens.py --galerne PROGRAM [--n 5000] [--lines FILE] TOKENIZER ...
"""

import argparse
import json
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile

import llama_cpp
import numpy as np
from random_texts import random_text

SEED = 7
HIDDEN, HEAD_DIM, FFN = 64, 32, 64


def galerne(program, *arguments, lines=None):
    done = subprocess.run([program, *map(str, arguments)], input=lines, capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, arguments))} ended with {done.returncode}: {done.stderr}")
    return done.stdout


def write_model(folder, vocab_size):
    """A Hugging Face directory with zeros for weights."""
    config = {
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_act": "silu", "hidden_size": HIDDEN,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": HEAD_DIM, "intermediate_size": FFN,
        "vocab_size": vocab_size, "max_position_embeddings": 256, "rope_theta": 10000.0, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"model.embed_tokens.weight": [vocab_size, HIDDEN], "model.norm.weight": [HIDDEN]}
    layer = "model.layers.0."
    for name, shape in {
        "input_layernorm": [HIDDEN], "post_attention_layernorm": [HIDDEN], "self_attn.q_proj": [2 * HEAD_DIM, HIDDEN],
        "self_attn.k_proj": [HEAD_DIM, HIDDEN], "self_attn.v_proj": [HEAD_DIM, HIDDEN], "self_attn.o_proj": [HIDDEN, 2 * HEAD_DIM],
        "mlp.gate_proj": [FFN, HIDDEN], "mlp.up_proj": [FFN, HIDDEN], "mlp.down_proj": [HIDDEN, FFN],
    }.items():
        shapes[f"{layer}{name}.weight"] = shape
    header, offset = {}, 0
    for name, shape in shapes.items():
        n_bytes = 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + n_bytes]}
        offset += n_bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + bytes(offset))


def compare(program, tokenizer, n_texts, lines_of, folder):
    # Under the names that a model's folder has for them.
    name = "tekken.json" if "tekken" in tokenizer.name else tokenizer.name
    name = "tokenizer" + name[name.index(".model") :] if ".model" in name else name
    shutil.copy(tokenizer, folder / name)
    vocab_size = json.loads(galerne(program, "tokenizer", "inspect", "--tokenizer", folder / name, "--json"))["vocab_size"]
    write_model(folder, vocab_size)
    file = folder / "model.gguf"
    galerne(program, "model", "export", folder, "--to", "gguf", "--out", file)
    model = llama_cpp.Llama(model_path=str(file), vocab_only=True, verbose=False)
    source = random.Random(SEED)
    ids = "".join(f"[{token_id}]\n" for token_id in range(vocab_size))
    decoded = galerne(program, "tokenizer", "decode", "--tokenizer", file, "--json", lines=ids)
    vocabulary = [piece for piece in map(json.loads, decoded.split("\n")[:-1]) if piece]
    if lines_of:
        texts = [line.rstrip("\n") for line in lines_of.open(encoding="utf-8")][:n_texts]
    else:
        # llama.cpp takes text as bytes without NUL at its end; ours is JSON.
        texts = [random_text(source, vocabulary).replace("\0", "") for _ in range(n_texts)]
    n_texts = len(texts)
    lines = "".join(json.dumps(text) + "\n" for text in texts)
    ours = [json.loads(line) for line in galerne(program, "tokenizer", "encode", "--tokenizer", file, "--json", lines=lines).split("\n") if line]
    theirs = [model.tokenize(text.encode(), add_bos=False, special=False) if text else [] for text in texts]
    wrong = [i for i in range(n_texts) if ours[i] != theirs[i]]
    for i in wrong[:5]:
        print(f"{tokenizer.name}: {texts[i]!r:.300}\n  here      {ours[i]!r:.300}\n  llama.cpp {theirs[i]!r:.300}", file=sys.stderr)
    return {"tokenizer": tokenizer.name, "texts": n_texts, "tokens": sum(map(len, theirs)), "differences": len(wrong)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--galerne", required=True)
    parser.add_argument("--n", type=int, default=5000)
    parser.add_argument("--lines", type=pathlib.Path, help="compare the lines of this file, not random texts")
    parser.add_argument("tokenizers", nargs="+", type=pathlib.Path)
    arguments = parser.parse_args()
    n_wrong = 0
    for tokenizer in arguments.tokenizers:
        with tempfile.TemporaryDirectory() as folder:
            figures = compare(arguments.galerne, tokenizer, arguments.n, arguments.lines, pathlib.Path(folder))
        n_wrong += figures["differences"]
        print(json.dumps(figures), flush=True)
    sys.exit(1 if n_wrong else 0)


if __name__ == "__main__":
    main()
