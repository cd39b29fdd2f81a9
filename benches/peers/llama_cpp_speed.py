#!/usr/bin/env python3
"""Speed of llama.cpp on what `galerne bench prefill|decode|batch --peer` measures beside it.

One figure of one GGUF file, as one line of JSON, `{"value": 25.3, "unit": "tokens/s", ...}`:

- `prefill N`: reading N tokens, in pieces of 512;
- `decode N`: writing tokens one by one after N tokens;
- `batch N`: N users, each after a prompt of 128 tokens, in all.

Flash attention is on for prefill and off for decoding, which is each time the faster setting on a CPU; `--flash` forces it.
It needs the package `llama-cpp-python` of `golden/requirements.txt`, which is built for this machine where it is installed.
"""

import argparse
import ctypes
import json
import statistics
import time

import llama_cpp as ll

PIECE = 512
PROMPT = 128
RUNS = 3
STEPS = 24


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", choices=("prefill", "decode", "batch"))
    parser.add_argument("detail", type=int)
    parser.add_argument("--model", required=True, help="a GGUF file")
    parser.add_argument("--threads", type=int, default=2, help="threads (default 2)")
    parser.add_argument("--flash", choices=("on", "off"), help="flash attention (default: on for prefill only)")
    return parser.parse_args()


@ll.llama_log_callback
def silent(_level, _text, _user_data):
    pass


class Session:
    """A model with a context of `n_sequences` sequences of up to `n_tokens` tokens."""

    def __init__(self, arguments, n_tokens, n_sequences):
        self.model = ll.llama_model_load_from_file(arguments.model.encode(), ll.llama_model_default_params())
        parameters = ll.llama_context_default_params()
        parameters.n_ctx = n_tokens * n_sequences
        parameters.n_batch, parameters.n_ubatch = max(2048, n_sequences), PIECE
        parameters.n_seq_max, parameters.kv_unified = n_sequences, False
        parameters.n_threads = parameters.n_threads_batch = arguments.threads
        flash = arguments.flash or ("on" if arguments.work == "prefill" else "off")
        parameters.flash_attn_type = int(flash == "on")
        self.flash = flash
        self.context = ll.llama_init_from_model(self.model, parameters)
        self.vocabulary = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(self.model))
        self.batch = ll.llama_batch_init(max(PIECE, n_sequences), 0, 1)

    def forget(self):
        ll.llama_memory_clear(ll.llama_get_memory(self.context), True)

    def run(self, rows, every_logit):
        """One step on rows of (position, sequence)."""
        self.batch.n_tokens = len(rows)
        for i, (position, sequence) in enumerate(rows):
            self.batch.token[i] = (position * 7919 + sequence) % self.vocabulary
            self.batch.pos[i] = position
            self.batch.n_seq_id[i] = 1
            self.batch.seq_id[i][0] = sequence
            self.batch.logits[i] = int(every_logit or i + 1 == len(rows))
        if ll.llama_decode(self.context, self.batch) != 0:
            raise SystemExit("llama_decode failed")

    def read(self, n_tokens, sequence=0):
        for first in range(0, n_tokens, PIECE):
            self.run([(at, sequence) for at in range(first, min(first + PIECE, n_tokens))], False)

    def write(self, first, n_sequences):
        """Seconds of a step, the median of STEPS."""
        seconds = []
        for step in range(STEPS + 2):
            start = time.perf_counter()
            self.run([(first + step, sequence) for sequence in range(n_sequences)], True)
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds[2:])


def measure(arguments):
    detail = arguments.detail
    if arguments.work == "prefill":
        session = Session(arguments, detail, 1)
        speeds = []
        for run in range(RUNS + 1):
            session.forget()
            start = time.perf_counter()
            session.read(detail)
            if run > 0:
                speeds.append(detail / (time.perf_counter() - start))
        return statistics.median(speeds), session.flash
    if arguments.work == "decode":
        session = Session(arguments, detail + STEPS + 2, 1)
        session.read(detail)
        return 1 / session.write(detail, 1), session.flash
    session = Session(arguments, PROMPT + STEPS + 2, detail)
    for sequence in range(detail):
        session.read(PROMPT, sequence)
    return detail / session.write(PROMPT, detail), session.flash


def main():
    arguments = parse_arguments()
    ll.llama_log_set(silent, ctypes.c_void_p(0))
    ll.llama_backend_init()
    value, flash = measure(arguments)
    print(json.dumps({
        "work": arguments.work,
        "detail": str(arguments.detail),
        "value": round(value, 2),
        "unit": "tokens/s",
        "peer": f"llama.cpp ({ll.__version__} of llama-cpp-python)",
        "flash_attention": flash,
        "system": ll.llama_print_system_info().decode().strip(),
    }))


if __name__ == "__main__":
    main()
