#!/usr/bin/env python3
"""Speed of PyTorch on a GPU on what `galerne bench decode` and `bench batch` measure there: a Llama decoder in bf16, random weights.

- `single`: one sequence, token by token. Blocks are compiled with coordinate descent, which makes products by one row as fast
  as memory; a whole step, argmax included, is one CUDA graph that the processor only starts. Attention is that of PyTorch, or
  written out, each measured;
- `batch`: 256 sequences of the same length, prompts of 128 tokens read and 512 tokens written by each. Blocks are compiled
  around attention, which sees just the tokens that there are: the fastest of this GPU for reading, FlashAttention for writing;
- `transformers`: one sequence by `generate` with a static cache, which compiles the whole model.

One line of JSON each: `{"work": "decode", "model": "7b", "detail": "512", "tokens_per_s": 290.0, "gb_per_s": 4200.0, ...}`.
"""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import gpu_speed
from gpu_speed import SHAPES, attend, rms_norm, rotate

RUNS = 3
# Sequences whose prompts are read together.
PREFILL_SEQUENCES = 64


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", nargs="+", choices=("single", "batch", "transformers"), default=["single", "batch"],
                        help="what is measured, in this order (default single and batch)")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="7b", help="model (default 7b)")
    parser.add_argument("--context", type=int, default=512, help="tokens before those of single (default 512)")
    parser.add_argument("--steps", type=int, default=128, help="tokens of a run of single, of which there are three (default 128)")
    parser.add_argument("--sequences", type=int, default=256, help="of the batch (default 256)")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt of the batch (default 128)")
    parser.add_argument("--answer", type=int, default=512, help="tokens that each of the batch writes (default 512)")
    parser.add_argument("--attention", nargs="+", choices=("written", "sdpa"), default=["written", "sdpa"],
                        help="attention of single, each measured (default both)")
    parser.add_argument("--device", default="cuda", help="cuda or cpu (default cuda)")
    return parser.parse_args()


class Weights:
    """Random matrices `[n_out, n_in]` in bf16; those that have one input are one matrix."""

    def __init__(self, shape, device):
        def random(n_out, n_in):
            return torch.randn(n_out, n_in, device=device, dtype=torch.bfloat16).mul_(n_in**-0.5)

        torch.manual_seed(1)
        ones = torch.ones(shape.hidden_dim, device=device, dtype=torch.bfloat16)
        self.embedding = random(shape.vocab_size, shape.hidden_dim)
        self.head = random(shape.vocab_size, shape.hidden_dim)
        self.norm = ones
        self.layers = [
            (
                (ones, random(shape.qkv_width, shape.hidden_dim)),
                (
                    random(shape.hidden_dim, shape.n_heads * shape.head_dim),
                    ones,
                    random(2 * shape.ffn_dim, shape.hidden_dim),
                    random(shape.hidden_dim, shape.ffn_dim),
                ),
            )
            for _ in range(shape.n_layers)
        ]


def before_attention(shape, x, positions, cos, sin, k_cache, v_cache, norm, qkv_weight):
    """The queries of `x [batch, n, hidden]`, which stands at `positions [n]`; keys and values go into `[batch, m, n_kv_heads, head_dim]`."""
    batch, n, _ = x.shape
    qkv = F.linear(rms_norm(x, norm), qkv_weight).view(batch, n, -1, shape.head_dim)
    q, k, v = qkv.split((shape.n_heads, shape.n_kv_heads, shape.n_kv_heads), 2)
    cos, sin = cos[positions, None], sin[positions, None]
    k_cache[:, positions] = rotate(k, cos, sin)
    v_cache[:, positions] = v
    return rotate(q, cos, sin)


def after_attention(x, heads, output, norm, gate_up, down):
    x = x + F.linear(heads.reshape(*x.shape[:2], -1), output)
    gate, up = F.linear(rms_norm(x, norm), gate_up).chunk(2, -1)
    return x + F.linear(F.silu(gate) * up, down)


def next_ids(x, norm, head):
    return F.linear(rms_norm(x[:, -1], norm), head).argmax(-1)


def written_attention(shape, q, k_cache, v_cache, position):
    """Of one token with the whole cache, which the compiler makes sums of; what stands after `position [1]` counts nothing."""
    k, v = k_cache[0].transpose(0, 1).float(), v_cache[0].transpose(0, 1).float()
    q = q.view(shape.n_kv_heads, -1, shape.head_dim).float()
    scores = (q[:, :, None] * k[:, None]).sum(-1) * shape.head_dim**-0.5
    is_after = torch.arange(k.shape[1], device=q.device) > position
    probabilities = scores.masked_fill(is_after, float("-inf")).softmax(-1)
    return (probabilities[..., None] * v[:, None]).sum(-2).to(v_cache.dtype)


def masked_attention(q, k_cache, v_cache, position):
    mask = torch.arange(k_cache.shape[1], device=q.device)[None, None, None, :] <= position
    q, k, v = q.transpose(1, 2), k_cache.transpose(1, 2), v_cache.transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True).transpose(1, 2)


def caches(shape, batch, n_tokens, device):
    def random():
        return torch.randn(batch, n_tokens, shape.n_kv_heads, shape.head_dim, device=device, dtype=torch.bfloat16)

    return [(random(), random()) for _ in range(shape.n_layers)]


def single(arguments, shape, weights, attention):
    """Seconds of a token after `context` tokens, the median of three runs."""
    device = arguments.device
    n_tokens = -(-(arguments.context + arguments.steps) // 128) * 128
    kv = caches(shape, 1, n_tokens, device)
    cos, sin = gpu_speed.rope_tables(n_tokens, shape.head_dim, device)
    token_id = torch.zeros(1, device=device, dtype=torch.long)
    position = torch.zeros(1, device=device, dtype=torch.long)

    def block(x, position, k_cache, v_cache, before, after):
        q = before_attention(shape, x, position, cos, sin, k_cache, v_cache, *before)
        if attention == "written":
            heads = written_attention(shape, q, k_cache, v_cache, position)
        else:
            heads = masked_attention(q, k_cache, v_cache, position)
        return after_attention(x, heads, *after)

    torch._dynamo.reset()
    block, last = torch.compile(block, dynamic=False, fullgraph=True), torch.compile(next_ids, dynamic=False, fullgraph=True)

    def step():
        x = F.embedding(token_id, weights.embedding)[None]
        for (before, after), (k_cache, v_cache) in zip(weights.layers, kv):
            x = block(x, position, k_cache, v_cache, before, after)
        token_id.copy_(last(x, weights.norm, weights.head))
        position.add_(1)

    replay = captured(device, step)

    def run():
        position.fill_(arguments.context)
        for _ in range(arguments.steps):
            replay()

    return gpu_speed.median_seconds(device, run, RUNS, warm_up=1) / arguments.steps


def captured(device, step):
    """What repeats `step` as a graph."""
    if not gpu_speed.is_gpu(device):
        return step
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def measure_single(arguments, shape, weights):
    # Products by one row are then sums, tuned until they read as fast as memory gives.
    with torch._inductor.config.patch(coordinate_descent_tuning=True):
        for attention in arguments.attention:
            start = time.perf_counter()
            seconds = single(arguments, shape, weights, attention)
            n_bytes = 2 * shape.product_parameters
            gpu_speed.print_figure(
                arguments.device, work="decode", model=arguments.shape, detail=str(arguments.context),
                tokens_per_s=round(1 / seconds, 2), gb_per_s=round(n_bytes / seconds / 1e9, 1),
                took_s=round(time.perf_counter() - start, 1),
                settings=f"bf16, torch.compile of blocks with coordinate descent, CUDA graph of a step, attention {attention}",
            )


def batch(arguments, shape, weights):
    """Seconds of reading the prompts and of writing the answers."""
    device, n = arguments.device, arguments.sequences
    n_tokens = arguments.prompt + arguments.answer
    kv = caches(shape, n, n_tokens, device)
    cos, sin = gpu_speed.rope_tables(n_tokens, shape.head_dim, device)
    prompts = torch.randint(0, shape.vocab_size, (n, arguments.prompt), device=device)
    torch._dynamo.reset()
    compile_ = lambda work: torch.compile(work, dynamic=False, fullgraph=True)
    before_, after_, last = compile_(before_attention), compile_(after_attention), compile_(next_ids)

    def forward(token_ids, positions, rows, n_seen, backend):
        x = F.embedding(token_ids, weights.embedding)
        with sdpa_kernel(backend):
            for (before, after), cache in zip(weights.layers, kv):
                k_cache, v_cache = (part[rows] for part in cache)
                q = before_(shape, x, positions, cos, sin, k_cache, v_cache, *before).transpose(1, 2)
                k, v = k_cache[:, :n_seen].transpose(1, 2), v_cache[:, :n_seen].transpose(1, 2)
                x = after_(x, attend(q, k, v, token_ids.shape[1] > 1).transpose(1, 2), *after)
        return last(x, weights.norm, weights.head)

    sequences = min(n, PREFILL_SEQUENCES)
    q = torch.randn(sequences, arguments.prompt, shape.n_heads, shape.head_dim, device=device, dtype=torch.bfloat16).transpose(1, 2)
    k, v = (part[:sequences, : arguments.prompt].transpose(1, 2) for part in kv[0])
    reading = gpu_speed.attention_backends(device, lambda: attend(q, k, v, True))[0]
    # cuDNN makes a plan for every length, which takes longer than the step.
    writing = SDPBackend.FLASH_ATTENTION if gpu_speed.is_gpu(device) else SDPBackend.MATH
    positions = torch.arange(n_tokens, device=device)

    def read():
        ids = [
            forward(part, positions[: arguments.prompt], slice(at, at + len(part)), arguments.prompt, reading)
            for at, part in zip(range(0, n, sequences), prompts.split(sequences))
        ]
        return torch.cat(ids)

    def write(token_ids, n_steps):
        for at in range(arguments.prompt, arguments.prompt + n_steps):
            token_ids = forward(token_ids[:, None], positions[at : at + 1], slice(None), at + 1, writing)

    # Everything is compiled before it is timed.
    write(read(), 2)
    gpu_speed.synchronize(device)
    seconds = []
    start = time.perf_counter()
    token_ids = read()
    gpu_speed.synchronize(device)
    seconds.append(time.perf_counter() - start)
    start = time.perf_counter()
    # The first token of an answer is that of reading.
    write(token_ids, arguments.answer - 1)
    gpu_speed.synchronize(device)
    seconds.append(time.perf_counter() - start)
    return *seconds, f"attention {reading.name.lower()} and {writing.name.lower()}"


@torch.no_grad()
def measure_batch(arguments, shape, weights):
    start = time.perf_counter()
    read_s, write_s, settings = batch(arguments, shape, weights)
    n_read, n_written = arguments.sequences * arguments.prompt, arguments.sequences * arguments.answer
    gpu_speed.print_figure(
        arguments.device, work="batched_decode", model=arguments.shape,
        detail=f"{arguments.sequences} sequences, {arguments.prompt} in, {arguments.answer} out",
        tokens_per_s=round(n_written / (read_s + write_s), 1), write_tokens_per_s=round(arguments.sequences * (arguments.answer - 1) / write_s, 1),
        read_tokens_per_s=round(n_read / read_s, 1), took_s=round(time.perf_counter() - start, 1),
        settings=f"bf16, torch.compile around attention, static batch, {settings}",
    )


def measure_transformers(arguments, shape):
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=shape.vocab_size, hidden_size=shape.hidden_dim, intermediate_size=shape.ffn_dim, num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads, num_key_value_heads=shape.n_kv_heads, head_dim=shape.head_dim,
        max_position_embeddings=shape.context_len, tie_word_embeddings=False, bos_token_id=1, eos_token_id=None, pad_token_id=0,
    )
    start = time.perf_counter()
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(arguments.device):
        model = transformers.LlamaForCausalLM(config).eval()
    prompt = torch.randint(0, shape.vocab_size, (1, arguments.context), device=arguments.device)
    settings = {"do_sample": False, "cache_implementation": "static", "attention_mask": torch.ones_like(prompt)}

    def generate(n):
        begun = time.perf_counter()
        model.generate(prompt, max_new_tokens=n, min_new_tokens=n, **settings)
        gpu_speed.synchronize(arguments.device)
        return time.perf_counter() - begun

    # The first call compiles; another length would compile again, so what reading takes is measured by itself.
    generate(arguments.steps)
    with torch.no_grad():
        read_s = statistics.median(gpu_speed.seconds_of(arguments.device, lambda: model(prompt, use_cache=False, logits_to_keep=1), 3))
    seconds = statistics.median(generate(arguments.steps) for _ in range(RUNS)) - read_s
    gpu_speed.print_figure(
        arguments.device, work="decode", model=arguments.shape, detail=str(arguments.context),
        tokens_per_s=round((arguments.steps - 1) / seconds, 2), took_s=round(time.perf_counter() - start, 1),
        settings=f"transformers {transformers.__version__}, generate, static cache, bf16, less the time of reading",
    )


def main():
    arguments = parse_arguments()
    shape = SHAPES[arguments.shape]
    torch.set_grad_enabled(False)
    weights = None if arguments.work == ["transformers"] else Weights(shape, arguments.device)
    if "single" in arguments.work:
        measure_single(arguments, shape, weights)
    if "batch" in arguments.work:
        measure_batch(arguments, shape, weights)
    if "transformers" in arguments.work:
        del weights
        measure_transformers(arguments, shape)


if __name__ == "__main__":
    main()
