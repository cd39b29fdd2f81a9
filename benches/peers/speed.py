"""What the scripts share that measure a peer's inference: arguments, tokens, the loops that are timed, the line of JSON.

A peer is a function from arguments, tokens and sequences to a session, which has

- `vocabulary`: number of ids;
- `settings`: the settings it runs with, in words;
- `piece`: tokens of a prompt that are read at once;
- `forget()`: empties the cache;
- `step(token_ids, first, every)`: appends `token_ids [n_sequences, n]`, which stand at `first` and after, to each sequence;
- `logits()`: those of the last step, `[n_sequences, n or 1, vocabulary]`: of every token where `every` asked for them, else of the last.
"""

import argparse
import json
import statistics
import time

import numpy as np

PROMPT = 128
RUNS = 3
STEPS = 24


def parse_arguments(doc, add_options=lambda parser: None):
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("work", choices=("prefill", "decode", "batch"))
    parser.add_argument("detail", type=int, help="length of the prompt, context, users")
    parser.add_argument("--model", required=True, help="a GGUF file")
    parser.add_argument("--threads", type=int, default=2, help="threads (default 2)")
    parser.add_argument("--logits", metavar="FILE", help="also write the logits of a short prompt, f32 [tokens, vocabulary]")
    parser.add_argument("--logits-tokens", type=int, default=64, metavar="N", help="tokens of that prompt (default 64)")
    add_options(parser)
    return parser.parse_args()


def tokens(session, n_sequences, first, n):
    """Pseudo-random ids; those of the first sequence are the ones that `galerne bench` reads."""
    at = np.arange(first, first + n, dtype=np.int64)[None, :] * 7919
    return (at + np.arange(n_sequences)[:, None]) % session.vocabulary


def read(session, n_sequences, n_tokens):
    piece = max(1, session.piece // n_sequences)
    for first in range(0, n_tokens, piece):
        session.step(tokens(session, n_sequences, first, min(piece, n_tokens - first)), first, False)


def write(session, n_sequences, first):
    """Seconds of a step, the median of STEPS."""
    seconds = []
    for step in range(STEPS + 2):
        start = time.perf_counter()
        session.step(tokens(session, n_sequences, first + step, 1), first + step, False)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[2:])


def read_speed(session, n_tokens):
    speeds = []
    for run in range(RUNS + 1):
        session.forget()
        start = time.perf_counter()
        read(session, 1, n_tokens)
        if run > 0:
            speeds.append(n_tokens / (time.perf_counter() - start))
    return statistics.median(speeds)


def prompt_logits(session, n_sequences, n_tokens, at_once):
    """Of the first sequence, computed as what is timed: the prompt at once, or token by token beside the other sequences."""
    session.forget()
    if at_once:
        session.step(tokens(session, n_sequences, 0, n_tokens), 0, True)
        return session.logits()[0]
    rows = []
    for at in range(n_tokens):
        session.step(tokens(session, n_sequences, at, 1), at, False)
        rows.append(np.array(session.logits()[0, -1]))
    return np.array(rows)


def measure(peer, arguments):
    """The session and its tokens per second; writes the logits that are asked for."""
    work, detail = arguments.work, arguments.detail
    n_sequences, n_read = {"prefill": (1, detail), "decode": (1, detail), "batch": (detail, PROMPT)}[work]
    n_tokens = n_read if work == "prefill" else n_read + STEPS + 2
    session = peer(arguments, max(n_tokens, arguments.logits_tokens), n_sequences)
    if work == "prefill":
        value = read_speed(session, detail)
    else:
        read(session, n_sequences, n_read)
        value = n_sequences / write(session, n_sequences, n_read)
    if arguments.logits:
        logits = prompt_logits(session, n_sequences, arguments.logits_tokens, work == "prefill")
        np.ascontiguousarray(logits, np.float32).tofile(arguments.logits)
    return session, value


def print_figure(arguments, name, session, value, **more):
    print(json.dumps({
        "work": arguments.work,
        "detail": str(arguments.detail),
        "value": round(value, 2),
        "unit": "tokens/s",
        "peer": name,
        "settings": session.settings,
        **more,
    }))
