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
        self.is_read_timed = arguments.work == "prefill"
        config = self.model.config
        self.cache = transformers.StaticCache(config=config, max_cache_len=n_tokens)
        # Now, or the first step would be compiled twice.
        heads = {"num_heads": config.num_key_value_heads, "head_dim": config.head_dim}
        self.cache.early_initialization(batch_size=n_sequences, **heads, dtype=torch.bfloat16, device="cpu")
        self.compiled = torch.compile(Forward(self.model, False), dynamic=False)
        self.out = None

    def forget(self):
        self.cache.reset()

    def step(self, token_ids, first, every):
        positions = torch.arange(first, first + token_ids.shape[1])[None, :].expand(len(token_ids), -1)
        # What is not timed, the prompt before writing and the rows of all logits, is not compiled.
        is_timed = not every and (self.is_read_timed or token_ids.shape[1] == 1)
        run = self.compiled if is_timed else Forward(self.model, every)
        self.out = run(torch.from_numpy(np.ascontiguousarray(token_ids)), positions, self.cache)

    def logits(self):
        return self.out.float().numpy()


def main():
    arguments = speed.parse_arguments(__doc__)
    session, value = speed.measure(Session, arguments)
    speed.print_figure(arguments, f"PyTorch {torch.__version__}", session, value, transformers=transformers.__version__)


if __name__ == "__main__":
    main()
