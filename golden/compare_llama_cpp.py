#!/usr/bin/env python3
"""Compares models in llama.cpp and here: greedy tokens of an exported model, and how far quantised models are from their numbers.

- `greedy`: the model is exported to GGUF. After prompts and what the directory answers here so far, llama.cpp's likeliest token
  must be the next one of the answer, or its logit no farther from the likeliest than the rounding of bf16. Nearly all must be equal.
- `q8_0`, `q4_k`: a model is quantised by `galerne model quantize`; both programs read the one file. The reference is
  transformers, in f32, on the numbers of its blocks. The mean divergence (Kullback-Leibler, in nats) of ours from it may be
  at most that of llama.cpp for `q4_k`, and 1.25 of it for `q8_0`, where the rounding of keys and values to bf16 shows beside
  that of the rows (llama.cpp keeps them in f16). The trained model is too narrow for `q4_k`, so a wide one of random weights
  stands beside it.

Prints one JSON line each; exits with 1 if one does not hold.

Run: compare_llama_cpp.py --galerne PROGRAM --model DIRECTORY
"""

import argparse
import ctypes
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import llama_cpp as ll
import numpy as np
import safetensors.torch
import torch
import transformers

SEED = 9
N_PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 8, 24, 48
SCORED_TOKENS = 256
NEAR = 0.1
MOST_DIVERGENCE = {"q8_0": 1.25, "q4_k": 1.0}
# Of llama.cpp itself: more means that one of the two did not compute this model. About four times what was seen.
MOST_OF_LLAMA_CPP = {"q8_0": 4e-3, "q4_k": 2e-2}
WIDE = {
    "vocab_size": 2048, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": False, "initializer_range": 0.06,
}


@ll.llama_log_callback
def silent(_level, _text, _user_data):
    pass


def galerne(program, *arguments, home=None):
    environment = {**os.environ, **({"GALERNE_HOME": str(home)} if home else {})}
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, arguments))} ended with {done.returncode}: {done.stderr}")
    return done.stdout


def generate(program, model, token_ids, *options):
    ids = ",".join(map(str, token_ids))
    printed = galerne(program, "generate", "--model", model, "--token-ids", ids, "--temperature", "0", "--json", *options)
    return json.loads(printed)["token_ids"]


class Llama:
    """A GGUF file in llama.cpp."""

    def __init__(self, file):
        self.model = ll.llama_model_load_from_file(str(file).encode(), ll.llama_model_default_params())
        parameters = ll.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = 512
        self.context = ll.llama_init_from_model(self.model, parameters)
        self.n_vocab = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(self.model))

    def logits(self, token_ids):
        """Of every token, `[tokens, vocab]`."""
        ll.llama_memory_clear(ll.llama_get_memory(self.context), True)
        batch = ll.llama_batch_init(len(token_ids), 0, 1)
        batch.n_tokens = len(token_ids)
        for i, token_id in enumerate(token_ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token_id, i, 1, 0, 1
        if ll.llama_decode(self.context, batch) != 0:
            raise SystemExit("llama_decode failed")
        ll.llama_batch_free(batch)
        rows = [np.ctypeslib.as_array(ll.llama_get_logits_ith(self.context, i), (self.n_vocab,)) for i in range(len(token_ids))]
        return np.array(rows)


def prompts(vocab_size, n, length):
    generator = np.random.default_rng(SEED)
    return generator.integers(3, vocab_size, (n, length)).tolist()


def compare_greedy(program, directory, folder):
    file = folder / "exported.gguf"
    galerne(program, "model", "export", f"{directory}/", "--to", "gguf", "--out", file)
    llama = Llama(file)
    n_equal, near, far = 0, 0, 0
    for prompt in prompts(llama.n_vocab, N_PROMPTS, PROMPT_TOKENS):
        # Every token of ours, against the most likely one there after the same tokens.
        answer = generate(program, f"{directory}/", prompt, "--max-tokens", NEW_TOKENS)
        logits = llama.logits(prompt + answer)[len(prompt) - 1:-1]
        for token_id, row in zip(answer, logits):
            if row.argmax() == token_id:
                n_equal += 1
            elif row.max() - row[token_id] < NEAR:
                near += 1
            else:
                far += 1
    return {"compared": "greedy", "tokens_equal": n_equal, "near_equal": near, "different": far, "agrees": far == 0 and n_equal > 20 * near and n_equal >= 100}


def log_softmax(logits):
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def divergence(reference, logits):
    exact, other = log_softmax(reference), log_softmax(logits)
    return float((np.exp(exact) * (exact - other)).sum(axis=-1).mean())


def compare_quantised(program, directory, kind, folder):
    home = folder / f"home-{kind}"
    galerne(program, "model", "quantize", f"{directory}/", "--to", kind, "--name", "quantised", home=home)
    file = home / "models" / "quantised" / "model.gguf"
    llama = Llama(file)
    token_ids = prompts(llama.n_vocab, 1, SCORED_TOKENS)[0]
    reference = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    with torch.no_grad():
        exact = reference(input_ids=torch.tensor([token_ids]), use_cache=False).logits[0].numpy()
    logits_file = folder / f"{kind}.safetensors"
    logits_file.unlink(missing_ok=True)
    generate(program, file, token_ids, "--max-tokens", 1, "--logits", logits_file)
    ours = divergence(exact, safetensors.torch.load_file(logits_file)["logits"].numpy())
    theirs = divergence(exact, llama.logits(token_ids))
    name = pathlib.Path(directory).name
    agrees = ours <= MOST_DIVERGENCE[kind] * theirs and theirs <= MOST_OF_LLAMA_CPP[kind]
    return {"compared": kind, "model": name, "divergence": ours, "divergence_of_llama_cpp": theirs, "agrees": agrees}


def write_wide(folder):
    torch.manual_seed(SEED)
    config = transformers.MistralConfig(**WIDE, sliding_window=None)
    directory = folder / "wide"
    transformers.MistralForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    return directory


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--galerne", required=True)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    ll.llama_log_set(silent, ctypes.c_void_p(0))
    ll.llama_backend_init()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        results = [compare_greedy(arguments.galerne, arguments.model, folder)]
        (folder / "trained").mkdir()
        (folder / "random").mkdir()
        results.append(compare_quantised(arguments.galerne, arguments.model, "q8_0", folder / "trained"))
        wide = write_wide(folder)
        for kind in ("q8_0", "q4_k"):
            results.append(compare_quantised(arguments.galerne, wide, kind, folder / "random"))
    for result in results:
        print(json.dumps(result))
    sys.exit(0 if all(result["agrees"] for result in results) else 1)


if __name__ == "__main__":
    main()
