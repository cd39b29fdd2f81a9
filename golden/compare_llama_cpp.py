#!/usr/bin/env python3
"""Compares greedy tokens and logits with llama.cpp's on GGUF files. Needs llama-cpp-python and numpy, in any environment.

Prints for each file how many of 40 greedy tokens agree, the largest difference of a logit after 20 random tokens, the standard
deviation of the logits, and the share of tokens after which the likeliest token is the same.

Run: python golden/compare_llama_cpp.py --galerne target/release/galerne MODEL.gguf ...
"""

import argparse
import json
import pathlib
import subprocess
import tempfile

import llama_cpp
import numpy as np

PROMPT = [1, 5, 9, 17, 33, 21]
N_GREEDY = 40
N_RANDOM = 20


def ours(galerne, path, token_ids, n_tokens, logits=None):
    ids = ",".join(map(str, token_ids))
    command = [galerne, "generate", "--model", path, "--token-ids", ids, "--max-tokens", str(n_tokens), "--temperature", "0", "--json"]
    if logits:
        command += ["--logits", logits]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["token_ids"]


def our_logits(galerne, path, token_ids):
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "logits.safetensors"
        ours(galerne, path, token_ids, 1, str(file))
        content = file.read_bytes()
    n_header = int.from_bytes(content[:8], "little")
    tensor = json.loads(content[8 : 8 + n_header])["logits"]
    begin, end = (8 + n_header + offset for offset in tensor["data_offsets"])
    return np.frombuffer(content[begin:end], dtype=np.float32).reshape(tensor["shape"])


def open_llama(path):
    return llama_cpp.Llama(model_path=path, n_ctx=256, logits_all=True, verbose=False)


def greedy(path, n_tokens, end_id):
    model = open_llama(path)
    model.eval(PROMPT)
    token_ids = []
    while len(token_ids) < n_tokens:
        token_id = int(np.argmax(model.scores[model.n_tokens - 1]))
        if token_id == end_id:
            break
        token_ids.append(token_id)
        model.eval([token_id])
    return token_ids


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--galerne", required=True)
    parser.add_argument("--end-id", type=int, default=2)
    parser.add_argument("models", nargs="+")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    for path in arguments.models:
        theirs = greedy(path, N_GREEDY, arguments.end_id)
        found = ours(arguments.galerne, path, PROMPT, N_GREEDY)
        found = found[: found.index(arguments.end_id)] if arguments.end_id in found else found
        n_same = next((i for i, pair in enumerate(zip(theirs, found)) if pair[0] != pair[1]), min(len(theirs), len(found)))
        model = open_llama(path)
        token_ids = [1] + rng.integers(3, min(model.n_vocab(), 4096), N_RANDOM - 1).tolist()
        model.eval(token_ids)
        expected = np.array(model.scores[: len(token_ids)])
        got = our_logits(arguments.galerne, path, token_ids)
        print(json.dumps({
            "model": pathlib.Path(path).name,
            "greedy_same": n_same,
            "greedy": max(len(theirs), len(found)),
            "max_difference": round(float(np.abs(expected - got).max()), 5),
            "deviation": round(float(expected.std()), 3),
            "same_likeliest": float((expected.argmax(1) == got.argmax(1)).mean()),
        }))


if __name__ == "__main__":
    main()
