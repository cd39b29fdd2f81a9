"""What the scripts share that measure PyTorch on a GPU: shapes, random weights, time, the fastest attention, the line of JSON.

A `--device cpu` is for trying the scripts, with the shape `tiny`.
"""

import dataclasses
import json
import statistics
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

RMS_NORM_EPS = 1e-5
ROPE_THETA = 10000.0


@dataclasses.dataclass(frozen=True)
class Shape:
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_dim: int
    vocab_size: int
    context_len: int
    tied: bool = False

    @property
    def qkv_width(self):
        return (self.n_heads + 2 * self.n_kv_heads) * self.head_dim

    @property
    def layer_parameters(self):
        """Of the matrices of a layer."""
        return self.hidden_dim * (self.qkv_width + self.n_heads * self.head_dim + 3 * self.ffn_dim)

    @property
    def product_parameters(self):
        """Of all matrices that a token passes."""
        return self.n_layers * self.layer_parameters + self.vocab_size * self.hidden_dim

    def train_flops_per_token(self, seq_len):
        """As `train_flops_per_token` of `crates/model/src/config.rs`: causal attention counts half of its square."""
        attention = self.n_layers * self.n_heads * self.head_dim * seq_len
        return 3 * 2 * (self.product_parameters + attention)


SHAPES = {
    "tiny": Shape(64, 2, 4, 2, 16, 96, 512, 128),
    "124m": Shape(768, 12, 12, 12, 64, 2048, 32768, 1024, tied=True),
    "1b": Shape(2048, 16, 32, 8, 64, 8192, 32768, 2048),
    "7b": Shape(4096, 32, 32, 8, 128, 14336, 32768, 2048),
}


def rms_norm(x, weight):
    """In f32, rounded once; the compiler makes one kernel of it."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + RMS_NORM_EPS) * weight).to(x.dtype)


def rope_tables(n_positions, head_dim, device):
    """Cosine and sine, `[n_positions, head_dim / 2]`."""
    frequencies = ROPE_THETA ** (-torch.arange(0, head_dim, 2, device=device).float() / head_dim)
    angles = torch.outer(torch.arange(n_positions, device=device).float(), frequencies)
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    """`x [..., heads, head_dim]` by `cos`, `sin [..., 1, head_dim / 2]`: the halves of a head are the pairs."""
    first, second = x.float().chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)


def is_gpu(device):
    return torch.device(device).type == "cuda"


def synchronize(device):
    if is_gpu(device):
        torch.cuda.synchronize()


def seconds_of(device, work, runs):
    """Seconds of each run of `work`, by the clock of the GPU where there is one; nothing waits between the runs."""
    if not is_gpu(device):
        seconds = []
        for _ in range(runs):
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
        return seconds
    events = [torch.cuda.Event(enable_timing=True) for _ in range(runs + 1)]
    events[0].record()
    for event in events[1:]:
        work()
        event.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in zip(events, events[1:])]


def median_seconds(device, work, runs, warm_up=3):
    for _ in range(warm_up):
        work()
    synchronize(device)
    return statistics.median(seconds_of(device, work, runs))


def attention_backends(device, work):
    """The backends that can do `work`, the fastest first."""
    candidates = [SDPBackend.MATH]
    if is_gpu(device):
        candidates = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]
    times = {}
    for backend in candidates:
        try:
            with sdpa_kernel(backend):
                times[backend] = median_seconds(device, work, 5)
        except RuntimeError:
            continue
    if not times:
        raise SystemExit("no backend of scaled_dot_product_attention does this attention")
    return sorted(times, key=times.get)


def attend(q, k, v, causal):
    """Heads before tokens: `q [batch, n_heads, n, head_dim]`, `k`, `v [batch, n_kv_heads, m, head_dim]`."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1])


def print_figure(device, **figure):
    """At once: what is still to come may not fit the time."""
    name = torch.cuda.get_device_name() if is_gpu(device) else "cpu"
    print(json.dumps({**figure, "peer": f"PyTorch {torch.__version__}", "device": name}), flush=True)
