"""Logits of the golden models on a GPU against those of the processors.

    python3 golden_logits.py PROGRAM GOLDEN

PROGRAM is `galerne`, GOLDEN the folder `golden` of the repository. Each model computes the logits of 48 tokens on both devices;
one line says how far they are apart, relative to the norm of those of the processors. Exit 1 if a difference is over its limit.
"""

import pathlib
import subprocess
import sys
import tempfile

import numpy
from safetensors.numpy import load_file

# f32: another order of sums; bf16 and quantised weights: operands of 8 bits, and on a GPU the outputs of products too.
LIMITS = {"f32": 1e-5, "bf16": 3e-2}
N_TOKENS = 48


def logits(program, model, device, out):
    token_ids = ",".join(str(3 + 7 * i % 23) for i in range(N_TOKENS))
    command = [program, "generate", "--model", model, "--token-ids", token_ids, "--max-tokens", "1", "--temperature", "0"]
    command += ["--logits", out, "--device", device, "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: {done.stderr}")
    return load_file(out)["logits"].astype(numpy.float64)


def models(golden):
    yield from sorted(golden.glob("logits/*"))
    for architecture in sorted(golden.glob("architectures/*")):
        for layout in sorted(architecture.iterdir()):
            if layout.is_dir():
                yield layout


def main():
    program, golden = sys.argv[1], pathlib.Path(sys.argv[2])
    n_over = 0
    with tempfile.TemporaryDirectory() as folder:
        for i, model in enumerate(models(golden)):
            files = sorted(model.glob("*.gguf")) or [model]
            here = logits(program, str(files[0]), "cpu", f"{folder}/{i}-cpu.safetensors")
            there = logits(program, str(files[0]), "cuda", f"{folder}/{i}-cuda.safetensors")
            difference = numpy.linalg.norm(there - here) / numpy.linalg.norm(here)
            is_f32 = difference < LIMITS["f32"]
            is_over = not difference < LIMITS["bf16"]
            n_over += is_over
            verdict = "DIFFERS" if is_over else "as in f32" if is_f32 else "as in bf16"
            print(f"{str(model.relative_to(golden)):44} {difference:8.1e}  {verdict}", flush=True)
    sys.exit(1 if n_over else 0)


main()
