#!/usr/bin/env python3
"""Compares an exported model directory with transformers: logits and greedy tokens of the same directory.

The directory is compared as it is and converted to the other of f32 and bf16. Tolerances, as the largest absolute
difference of a logit: 1e-3 in f32, 0.1 in bf16. In bf16 both programs round, so each is compared with transformers
computing the bf16 weights in f32: ours must be within the tolerance and no farther from it than transformers in bf16;
the difference of the two roundings is reported. Greedy tokens must be equal in f32; in bf16 they are only reported, since
two near-equal logits may change places. Prints one JSON line per dtype; exits with 1 if one is beyond.

Run: compare_export.py --galerne PROGRAM --model DIRECTORY
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import safetensors.torch
import torch
import transformers

TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.1}
PROMPT_TOKENS = 96
NEW_TOKENS = 32
SEED = 5


def read_with_transformers(directory, token_ids, dtype):
    """Logits of the prompt and the greedy continuation up to the end of the answer."""
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()
    prompt = torch.tensor([token_ids])
    with torch.no_grad():
        logits = model(input_ids=prompt, use_cache=False).logits[0].float()
        answer = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=NEW_TOKENS, do_sample=False, use_cache=True
        )
    return logits, answer[0, len(token_ids):].tolist()


def read_with_galerne(program, directory, token_ids, folder):
    """The same from `galerne generate`."""
    logits_file = pathlib.Path(folder) / "logits.safetensors"
    command = [
        program, "generate", "--model", f"{directory}/", "--token-ids", ",".join(map(str, token_ids)),
        "--max-tokens", str(NEW_TOKENS), "--temperature", "0", "--json", "--logits", str(logits_file),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")
    logits = safetensors.torch.load_file(logits_file)["logits"]
    return logits, json.loads(done.stdout)["token_ids"]


def convert(directory, dtype, folder):
    """Writes the model in another dtype, with the files that stand beside the weights."""
    target = pathlib.Path(folder) / "converted"
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    model.save_pretrained(target)
    for file in directory.iterdir():
        if file.is_file() and not (target / file.name).exists() and file.suffix != ".safetensors":
            shutil.copy(file, target)
    return target


def stored_dtype(directory):
    config = json.loads((directory / "config.json").read_text())
    return getattr(torch, config.get("dtype") or config["torch_dtype"])


def compare(program, directory, dtype):
    """Figures of one dtype; `agrees` says whether they are within the tolerance."""
    config = json.loads((directory / "config.json").read_text())
    generator = torch.Generator().manual_seed(SEED)
    token_ids = torch.randint(0, config["vocab_size"], (PROMPT_TOKENS,), generator=generator).tolist()
    with tempfile.TemporaryDirectory() as folder:
        if stored_dtype(directory) != dtype:
            directory = convert(directory, dtype, folder)
        exact, expected_ids = read_with_transformers(directory, token_ids, torch.float32)
        expected = exact
        if dtype != torch.float32:
            expected, expected_ids = read_with_transformers(directory, token_ids, dtype)
        got, got_ids = read_with_galerne(program, directory, token_ids, folder)
    if got.shape != expected.shape:
        raise SystemExit(f"galerne wrote logits of shape {list(got.shape)}, expected {list(expected.shape)}")
    difference = (got - exact).abs().max().item()
    others = (expected - exact).abs().max().item()
    is_same = got_ids == expected_ids
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "max_difference": difference,
        "max_difference_of_transformers": others,
        "max_difference_between": (got - expected).abs().max().item(),
        "tolerance": TOLERANCES[dtype],
        "logits_std": round(expected.std().item(), 3),
        "greedy_tokens_equal": is_same,
        "agrees": difference < TOLERANCES[dtype] and (is_same if dtype == torch.float32 else difference <= others),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--galerne", required=True)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    results = [compare(arguments.galerne, arguments.model, dtype) for dtype in TOLERANCES]
    for result in results:
        print(json.dumps(result))
    sys.exit(0 if all(result["agrees"] for result in results) else 1)


if __name__ == "__main__":
    main()
