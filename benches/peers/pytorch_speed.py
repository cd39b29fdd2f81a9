#!/usr/bin/env python3
"""Speed of compiled PyTorch on what `galerne bench prefill|decode|batch --peer=pytorch` measures beside it.

The numbers of the GGUF file, rounded to bf16, in transformers with a static cache, compiled by torch.compile with frozen weights.
Prints one line of JSON, as `llama_cpp_speed.py`. It needs the packages of `golden/requirements.txt`, and g++.
"""

import numpy as np
import torch
import torch._inductor.config
import transformers

import converted
import speed


class Forward(torch.nn.Module):
    """Logits of the last token, or of every one."""

    def __init__(self, model, every):
        super().__init__()
        self.model, self.every = model, every

    def forward(self, token_ids, positions, cache):
        hidden = self.model.model(input_ids=token_ids, position_ids=positions, past_key_values=cache).last_hidden_state
        return self.model.lm_head(hidden if self.every else hidden[:, -1:])


class Session:
    def __init__(self, arguments, n_tokens, n_sequences):
        torch.set_num_threads(arguments.threads)
        torch.set_grad_enabled(False)
        torch._inductor.config.freezing = True
        path = converted.hf_directory(arguments.model)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
        self.vocabulary = self.model.config.vocab_size
        self.settings = f"transformers, torch.compile with frozen weights, bf16, static cache, {arguments.threads} threads"
        # All at once: a piece would be compared with the whole cache.
        self.piece = n_tokens if arguments.work == "prefill" else 512
        self.n_tokens, self.n_sequences = n_tokens, n_sequences
        self.compiled = {every: torch.compile(Forward(self.model, every), dynamic=False) for every in (False, True)}
        self.out = None
        self.forget()

    def forget(self):
        self.cache = transformers.StaticCache(config=self.model.config, max_cache_len=self.n_tokens)

    def step(self, token_ids, first, every):
        positions = torch.arange(first, first + token_ids.shape[1])[None, :].expand(len(token_ids), -1)
        # Writing runs the compiled step for one token; the prompt before it, of any length, does not have to be fast.
        is_timed = token_ids.shape[1] == 1 or self.piece == self.n_tokens
        run = self.compiled[every] if is_timed else Forward(self.model, every)
        self.out = run(torch.from_numpy(np.ascontiguousarray(token_ids)), positions, self.cache)

    def logits(self):
        return self.out.float().numpy()


def main():
    arguments = speed.parse_arguments(__doc__)
    session, value = speed.measure(Session, arguments)
    speed.print_figure(arguments, f"PyTorch {torch.__version__}", session, value, transformers=transformers.__version__)


if __name__ == "__main__":
    main()
