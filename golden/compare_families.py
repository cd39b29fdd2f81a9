#!/usr/bin/env python3
"""Compares `galerne generate --logits` with transformers for every architecture, layout and kernel family.

The models and the exact logits are those of golden/architectures. Each model is computed in the numbers of its files, from all of its layouts, which must give
the same bits; and with its weights widened to f32. Prints one JSON line per architecture, family and number type: the largest difference.
Exits with 1 where one is larger than its bound: 2e-5 in f32, where sums differ in their order only; in bf16 what transformers' own
rounding to bf16 makes, and half more for models in blocks, which are multiplied with 8-bit rows. A family that the machine does not run is left
out by name.

Run: python golden/compare_families.py --galerne PROGRAM
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from safetensors.torch import load_file, save_file

FAMILIES = ["reference", "avx2", "avx512", "amx"]
LAYOUTS = ["hf", "native", "gguf"]
MOST_IN_F32 = 2e-5
ARCHITECTURES = pathlib.Path(__file__).parent / "architectures"


def generate(program, model, token_ids, family, *more):
    ids = ",".join(str(token_id) for token_id in token_ids)
    command = [program, "generate", "--model", f"{model}/", "--token-ids", ids, "--max-tokens", "1", "--temperature", "0"]
    return subprocess.run([*command, "--kernels", family, *more, "--json"], capture_output=True, text=True, check=False)


def logits_of(program, model, token_ids, family, folder):
    file = folder / "logits.safetensors"
    file.unlink(missing_ok=True)
    run = generate(program, model, token_ids, family, "--logits", file)
    if run.returncode:
        sys.exit(f"{model} {family}: {run.stderr}")
    return load_file(file)["logits"].numpy()


def families(program):
    for family in FAMILIES:
        run = generate(program, ARCHITECTURES / "mistral" / "hf", [1], family)
        if run.returncode == 0:
            yield family
        elif "cannot run on this machine" in run.stderr:
            print(json.dumps({"family": family, "left_out": "this machine does not run it"}))
        else:
            sys.exit(run.stderr)


def widened(directory, folder):
    """A copy of a Hugging Face directory with weights in f32."""
    out = folder / f"{directory.parent.name}-f32"
    out.mkdir(exist_ok=True)
    config = json.loads((directory / "config.json").read_text())
    config.pop("torch_dtype", None)
    (out / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
    weights = load_file(directory / "model.safetensors")
    save_file({name: weight.float() for name, weight in weights.items()}, out / "model.safetensors")
    return out


def comparisons(directory, exact, rounded, folder):
    """Number type, models that must give the same bits, and the bound."""
    theirs = float(np.abs(rounded - exact).max())
    layouts = [directory / layout for layout in LAYOUTS if (directory / layout).is_dir()]
    if directory.name.startswith("quantised"):
        return [("blocks", layouts, 1.5 * theirs)]
    f32 = ("f32", [widened(directory / "hf", folder)], MOST_IN_F32)
    is_f32 = json.loads((directory / "hf" / "config.json").read_text()).get("dtype") == "float32"
    return [("f32", layouts, MOST_IN_F32)] if is_f32 else [f32, ("as stored", layouts, theirs)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--galerne", required=True)
    arguments = parser.parse_args()
    n_compared = n_far = 0
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for family in families(arguments.galerne):
            for directory in sorted(path for path in ARCHITECTURES.iterdir() if path.is_dir()):
                expected = {name: tensor.float().numpy() for name, tensor in load_file(directory / "expected.safetensors").items()}
                vocab_size = expected["logits"].shape[-1]
                exact, rounded = (expected[name].reshape(-1, vocab_size) for name in ("logits", "logits_bf16"))
                token_ids = expected["token_ids"].reshape(-1).astype(int)
                for numbers, models, most in comparisons(directory, exact, rounded, folder):
                    found = [logits_of(arguments.galerne, model, token_ids, family, folder) for model in models]
                    difference = max(float(np.abs(logits - exact).max()) for logits in found)
                    same = all(np.array_equal(found[0], logits) for logits in found[1:])
                    agrees = difference <= most and same
                    print(json.dumps({
                        "architecture": directory.name, "numbers": numbers, "family": family, "layouts": [model.name for model in models],
                        "max_difference": float(f"{difference:.2e}"), "bound": float(f"{most:.2e}"), "layouts_equal": same, "agrees": agrees,
                    }))
                    n_compared += len(found)
                    n_far += not agrees
    if n_compared == 0:
        sys.exit("nothing was compared")
    sys.exit(n_far > 0)


if __name__ == "__main__":
    main()
