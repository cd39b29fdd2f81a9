#!/usr/bin/env python3
"""Speed of PyTorch on the training step that `galerne bench train` measures.

The step: a Mistral decoder of 15.7 million parameters, 16 rows of 512 tokens, forward, backward, clipping to norm 1
and fused AdamW. Prints one JSON line per measured mode:

    {"work": "train_step", "detail": "bf16-compiled", "value": 3970.0, "unit": "tokens/s", ...}

Run it with the environment of `cargo xtask oracle`: `target/peers/bin/python benches/peers/pytorch_train_step.py`.
"""

import argparse
import json
import statistics
import time

import torch
import transformers

SHAPE = {
    "vocab_size": 8192,
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
ROWS = 16
ROW_TOKENS = 512
WARM_UP_STEPS = 3


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mode", choices=("bf16", "autocast", "fp32"), default="bf16",
                        help="bf16: weights in bf16; autocast: f32 weights, bf16 products; fp32: all f32")
    parser.add_argument("--compiled", action="store_true", help="compile the model with torch.compile")
    parser.add_argument("--steps", type=int, default=8, help="measured steps, after three that are not (default 8)")
    parser.add_argument("--threads", type=int, default=2, help="threads (default 2)")
    return parser.parse_args()


def build_model(mode):
    """The decoder of SHAPE with random weights in the dtype of `mode`."""
    torch.manual_seed(1)
    config = transformers.MistralConfig(**SHAPE, sliding_window=None, attn_implementation="sdpa")
    model = transformers.MistralForCausalLM(config).train()
    return model.to(torch.bfloat16) if mode == "bf16" else model


def step_seconds(model, callable_model, optimizer, tokens, mode):
    """Runs one training step and returns how long it took."""
    started = time.perf_counter()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mode == "autocast"):
        logits = callable_model(input_ids=tokens[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return time.perf_counter() - started


def measure(arguments):
    """Times the steps and returns the JSON record."""
    torch.set_num_threads(arguments.threads)
    model = build_model(arguments.mode)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    callable_model = torch.compile(model) if arguments.compiled else model
    tokens = torch.randint(0, SHAPE["vocab_size"], (ROWS, ROW_TOKENS + 1))
    for _ in range(WARM_UP_STEPS):
        step_seconds(model, callable_model, optimizer, tokens, arguments.mode)
    seconds = [
        step_seconds(model, callable_model, optimizer, tokens, arguments.mode) for _ in range(arguments.steps)
    ]
    median = statistics.median(seconds)
    # Six operations per parameter and token; attention adds 12 * hidden per key, half of the keys masked.
    attention = 6 * SHAPE["num_hidden_layers"] * SHAPE["hidden_size"] * ROW_TOKENS * ROW_TOKENS * ROWS
    flops = 6 * n_parameters * ROWS * ROW_TOKENS + attention
    return {
        "work": "train_step",
        "detail": arguments.mode + ("-compiled" if arguments.compiled else ""),
        "value": round(ROWS * ROW_TOKENS / median, 1),
        "unit": "tokens/s",
        "best": round(ROWS * ROW_TOKENS / min(seconds), 1),
        "gflop_per_s": round(flops / median / 1e9, 1),
        "parameters": n_parameters,
        "threads": arguments.threads,
        "steps": arguments.steps,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


if __name__ == "__main__":
    print(json.dumps(measure(parse_arguments())), flush=True)
