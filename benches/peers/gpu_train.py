#!/usr/bin/env python3
"""Speed of PyTorch on a GPU on the training step that `galerne bench train` measures there.

A Llama decoder: RMS norms, rotary positions, grouped queries, SwiGLU; forward, backward, clipping to norm 1 and fused AdamW.
Masters, gradients and the optimiser's state are f32; products, attention and the residual stream are bf16. The model and its
loss are compiled by torch.compile, as a whole or block by block, and attention has the fastest backend of this GPU. One line
of JSON for each:

    {"work": "train_step", "model": "124m", "tokens_per_s": 900000.0, "tflops": 400.0, "peak_memory_gib": 20.0, ...}
"""

import argparse
import gc
import sys
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import sdpa_kernel

import gpu_speed
from gpu_speed import SHAPES, attend, rms_norm, rotate

# Tokens of a step and rows of a micro-batch.
SIZES = {"tiny": (512, 2), "124m": (131072, 32), "1b": (65536, 8)}
WARM_UP_STEPS = 3
MODES = ("default", "max-autotune-no-cudagraphs")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=tuple(SIZES), default="124m", help="model (default 124m)")
    parser.add_argument("--tokens-per-step", type=int, metavar="N", help="default 131072 for 124m, 65536 for 1b")
    parser.add_argument("--seq-len", type=int, metavar="N", help="tokens of a row (default: the model's context)")
    parser.add_argument("--micro-batch", type=int, metavar="N", help="rows computed at once (default 32 for 124m, 8 for 1b)")
    parser.add_argument("--steps", type=int, default=8, help="measured steps, after three that are not (default 8)")
    parser.add_argument("--compile", nargs="+", choices=("whole", "blocks", "none"), default=["whole"],
                        help="what is compiled at once, each measured in turn; blocks takes less time to compile (default whole)")
    parser.add_argument("--mode", choices=MODES, default=MODES[0], help="mode of torch.compile (default default)")
    parser.add_argument("--device", default="cuda", help="cuda or cpu (default cuda)")
    return parser.parse_args()


class Linear(torch.nn.Module):
    """A product in bf16 by weights kept in f32."""

    def __init__(self, n_in, n_out):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(n_out, n_in) * 0.02)

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype))


class Block(torch.nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.attention_norm = torch.nn.Parameter(torch.ones(shape.hidden_dim))
        self.ffn_norm = torch.nn.Parameter(torch.ones(shape.hidden_dim))
        self.qkv = Linear(shape.hidden_dim, shape.qkv_width)
        self.output = Linear(shape.n_heads * shape.head_dim, shape.hidden_dim)
        self.gate_up = Linear(shape.hidden_dim, 2 * shape.ffn_dim)
        self.down = Linear(shape.ffn_dim, shape.hidden_dim)

    def forward(self, x, cos, sin):
        rows, seq_len, _ = x.shape
        shape = self.shape
        qkv = self.qkv(rms_norm(x, self.attention_norm)).view(rows, seq_len, -1, shape.head_dim)
        q, k, v = qkv.split((shape.n_heads, shape.n_kv_heads, shape.n_kv_heads), 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        heads = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), True)
        x = x + self.output(heads.transpose(1, 2).reshape(rows, seq_len, -1))
        gate, up = self.gate_up(rms_norm(x, self.ffn_norm)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Decoder(torch.nn.Module):
    def __init__(self, shape, seq_len, device):
        super().__init__()
        self.embedding = torch.nn.Parameter(torch.randn(shape.vocab_size, shape.hidden_dim) * 0.02)
        self.blocks = torch.nn.ModuleList(Block(shape) for _ in range(shape.n_layers))
        self.norm = torch.nn.Parameter(torch.ones(shape.hidden_dim))
        self.head = None if shape.tied else torch.nn.Parameter(torch.randn(shape.vocab_size, shape.hidden_dim) * 0.02)
        for name, table in zip(("cos", "sin"), gpu_speed.rope_tables(seq_len, shape.head_dim, device)):
            self.register_buffer(name, table[:, None, :], persistent=False)

    def forward(self, token_ids, targets):
        """The mean loss."""
        x = F.embedding(token_ids, self.embedding).to(torch.bfloat16)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return self.loss(x, targets)

    def loss(self, x, targets):
        weight = self.embedding if self.head is None else self.head
        logits = F.linear(rms_norm(x, self.norm), weight.to(x.dtype))
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def attention_backends(shape, rows, seq_len, device):
    """By their speed on this shape, forward and backward."""
    def heads(n):
        values = torch.randn(rows, seq_len, n, shape.head_dim, device=device, dtype=torch.bfloat16)
        return values.transpose(1, 2).requires_grad_()

    q, k, v = heads(shape.n_heads), heads(shape.n_kv_heads), heads(shape.n_kv_heads)
    gradient = torch.randn_like(q)
    return gpu_speed.attention_backends(device, lambda: torch.autograd.grad(attend(q, k, v, True), (q, k, v), gradient))


def compiled(model, how, mode):
    """What computes the loss."""
    if how == "none":
        return model
    if how == "whole":
        return torch.compile(model, mode=mode, dynamic=False, fullgraph=True)
    for block in model.blocks:
        block.compile(mode=mode, dynamic=False, fullgraph=True)
    model.loss = torch.compile(model.loss, mode=mode, dynamic=False, fullgraph=True)
    return model


def measure(arguments, shape, seq_len, n_rows, rows, how):
    device = arguments.device
    torch._dynamo.reset()
    gc.collect()
    torch.manual_seed(1)
    with torch.device(device):
        model = Decoder(shape, seq_len, device)
    if gpu_speed.is_gpu(device):
        torch.cuda.reset_peak_memory_stats()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    loss_of = compiled(model, how, arguments.mode)
    tokens = torch.randint(0, shape.vocab_size, (n_rows, seq_len + 1), device=device)
    losses = []

    def step():
        total = 0.0
        for micro in tokens.split(rows):
            loss = loss_of(micro[:, :-1], micro[:, 1:]) * (rows / n_rows)
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(total)

    start = time.perf_counter()
    step()
    gpu_speed.synchronize(device)
    first_s = time.perf_counter() - start
    seconds = gpu_speed.median_seconds(device, step, arguments.steps, WARM_UP_STEPS - 1)
    tokens_per_s = n_rows * seq_len / seconds
    peak = torch.cuda.max_memory_allocated() / 2**30 if gpu_speed.is_gpu(device) else 0.0
    return {
        "tokens_per_s": round(tokens_per_s, 1),
        "tflops": round(tokens_per_s * shape.train_flops_per_token(seq_len) / 1e12, 2),
        "peak_memory_gib": round(peak, 2),
        "step_ms": round(seconds * 1e3, 2),
        "first_step_s": round(first_s, 1),
        "first_loss": round(float(losses[0]), 4),
        "last_loss": round(float(losses[-1]), 4),
    }


def first_that_compiles(backends, work):
    """What `work` gives by the first of the backends that the compiler takes, and that backend."""
    for backend in backends:
        try:
            with sdpa_kernel(backend):
                return work(), backend
        except RuntimeError as error:
            print(f"{backend.name} does not do: {error}", file=sys.stderr, flush=True)
    raise SystemExit("no backend of attention can be compiled")


def main():
    arguments = parse_arguments()
    shape = SHAPES[arguments.shape]
    tokens_per_step, rows = SIZES[arguments.shape]
    tokens_per_step, rows = arguments.tokens_per_step or tokens_per_step, arguments.micro_batch or rows
    seq_len = arguments.seq_len or shape.context_len
    n_rows = tokens_per_step // seq_len
    if n_rows == 0 or n_rows * seq_len != tokens_per_step or n_rows % rows != 0:
        raise SystemExit(f"{tokens_per_step} tokens of a step are no micro-batches of {rows} rows of {seq_len}")
    backends = attention_backends(shape, rows, seq_len, arguments.device)
    for how in arguments.compile:
        figures, backend = first_that_compiles(backends, lambda: measure(arguments, shape, seq_len, n_rows, rows, how))
        gpu_speed.print_figure(
            arguments.device, work="train_step", model=arguments.shape, **figures, tokens_per_step=tokens_per_step,
            seq_len=seq_len, micro_batch=rows,
            settings=f"bf16 products, f32 masters, torch.compile of {how} ({arguments.mode}), {backend.name.lower()}, fused AdamW",
        )


if __name__ == "__main__":
    main()
