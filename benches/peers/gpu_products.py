#!/usr/bin/env python3
"""What a GPU does at most, measured by PyTorch: products of matrices in bf16, copying, reading.

One line of JSON each, `{"work": "product", "detail": "8192x8192x8192", "tflops": 790.1, ...}`: a product of `[m, k]` by `[n, k]`
transposed, as a layer does it, of random numbers (zeros are faster). Copying counts the bytes read and written. Operands
rotate among several sets, so that they come from memory and not from the cache.
"""

import argparse
import itertools

import torch

import gpu_speed

DEFAULT = ["8192x8192x8192", "32768x3072x768", "16384x16384x2048", "256x28672x4096", "1x28672x4096"]
# Sets of operands together have at least so many bytes.
ROTATED_BYTES = 1 << 30


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=DEFAULT, metavar="MxNxK", help=f"products (default {' '.join(DEFAULT)})")
    parser.add_argument("--gib", type=float, default=4.0, help="size of what is copied and read (default 4)")
    parser.add_argument("--runs", type=int, default=50, help="measured runs, of which the median counts (default 50)")
    parser.add_argument("--device", default="cuda", help="cuda or cpu (default cuda)")
    return parser.parse_args()


def product(arguments, shape):
    m, n, k = map(int, shape.split("x"))
    set_bytes = 2 * (m * k + n * k + m * n)
    random = lambda rows: torch.randn(rows, k, device=arguments.device).to(torch.bfloat16)
    n_sets = max(2, min(32, ROTATED_BYTES // set_bytes)) if gpu_speed.is_gpu(arguments.device) else 1
    sets = itertools.cycle([(random(m), random(n), torch.empty(m, n, device=arguments.device, dtype=torch.bfloat16)) for _ in range(n_sets)])

    def work():
        x, weight, out = next(sets)
        torch.mm(x, weight.T, out=out)

    seconds = gpu_speed.median_seconds(arguments.device, work, arguments.runs, warm_up=5)
    gpu_speed.print_figure(
        arguments.device, work="product", detail=shape, tflops=round(2 * m * n * k / seconds / 1e12, 1),
        gb_per_s=round(set_bytes / seconds / 1e9, 1), microseconds=round(seconds * 1e6, 1), settings="bf16, torch.mm",
    )


def memory(arguments):
    n = int(arguments.gib * 2**30) // 4
    source, target = torch.randn(n, device=arguments.device), torch.empty(n, device=arguments.device)
    for work, run, n_bytes in (("copy", lambda: target.copy_(source), 8 * n), ("read", source.sum, 4 * n)):
        seconds = gpu_speed.median_seconds(arguments.device, run, 10)
        gpu_speed.print_figure(arguments.device, work=work, detail=f"{arguments.gib:g} GiB", gb_per_s=round(n_bytes / seconds / 1e9, 1))


def main():
    arguments = parse_arguments()
    for shape in arguments.shapes:
        product(arguments, shape)
    memory(arguments)


if __name__ == "__main__":
    main()
