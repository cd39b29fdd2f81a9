#!/usr/bin/env python3
"""Speed of llama.cpp on what `galerne bench prefill|decode|batch --peer` measures beside it.

One figure of one GGUF file, as one line of JSON, `{"value": 25.3, "unit": "tokens/s", ...}`:

- `prefill N`: reading N tokens, in pieces of 512;
- `decode N`: writing tokens one by one after N tokens;
- `batch N`: N users, each after a prompt of 128 tokens, in all.

Flash attention is on for prefill and off for decoding, which is each time the faster setting on a CPU; `--flash` forces it.
It needs the package `llama-cpp-python` of `golden/requirements.txt`, which is built for this machine where it is installed.
"""

import ctypes

import llama_cpp as ll
import numpy as np

import speed

PIECE = 512


def add_options(parser):
    parser.add_argument("--flash", choices=("on", "off"), help="flash attention (default: on for prefill only)")


@ll.llama_log_callback
def silent(_level, _text, _user_data):
    pass


class Session:
    """A model with a context of `n_sequences` sequences of up to `n_tokens` tokens."""

    piece = PIECE

    def __init__(self, arguments, n_tokens, n_sequences):
        self.model = ll.llama_model_load_from_file(arguments.model.encode(), ll.llama_model_default_params())
        parameters = ll.llama_context_default_params()
        parameters.n_ctx = n_tokens * n_sequences
        parameters.n_batch, parameters.n_ubatch = max(2048, n_sequences), PIECE
        parameters.n_seq_max, parameters.kv_unified = n_sequences, False
        parameters.n_threads = parameters.n_threads_batch = arguments.threads
        flash = arguments.flash or ("on" if arguments.work == "prefill" else "off")
        parameters.flash_attn_type = int(flash == "on")
        self.settings = f"flash attention {flash}, pieces of {PIECE}, {arguments.threads} threads"
        self.context = ll.llama_init_from_model(self.model, parameters)
        self.vocabulary = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(self.model))
        self.batch = ll.llama_batch_init(max(PIECE, n_sequences), 0, 1)
        self.shape, self.wanted = (0, 0), []

    def forget(self):
        ll.llama_memory_clear(ll.llama_get_memory(self.context), True)

    def step(self, token_ids, first, every):
        batch, (n_sequences, n) = self.batch, token_ids.shape
        batch.n_tokens = n_sequences * n
        self.shape, self.wanted = (n_sequences, n if every else 1), []
        for i in range(n_sequences * n):
            sequence, at = divmod(i, n)
            batch.token[i], batch.pos[i] = int(token_ids[sequence, at]), first + at
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = int(every or at == n - 1)
            if batch.logits[i]:
                self.wanted.append(i)
        if ll.llama_decode(self.context, batch) != 0:
            raise SystemExit(f"llama_decode failed on {n_sequences} sequences of {n} tokens at {first}")

    def logits(self):
        rows = [ll.llama_get_logits_ith(self.context, i) for i in self.wanted]
        rows = [np.ctypeslib.as_array(row, (self.vocabulary,)) for row in rows]
        return np.array(rows).reshape(*self.shape, self.vocabulary)


def main():
    arguments = speed.parse_arguments(__doc__, add_options)
    ll.llama_log_set(silent, ctypes.c_void_p(0))
    ll.llama_backend_init()
    session, value = speed.measure(Session, arguments)
    name = f"llama.cpp ({ll.__version__} of llama-cpp-python)"
    speed.print_figure(arguments, name, session, value, system=ll.llama_print_system_info().decode().strip())


if __name__ == "__main__":
    main()
