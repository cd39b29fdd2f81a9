#!/usr/bin/env python3
"""Writes golden/train_steps/: ten AdamW steps of a tiny tied Mistral model in PyTorch f32.

`initial/` is the model before the first step, as a Hugging Face directory. `expected.safetensors` holds

    token_ids     i64 [10, 4, 32]  per step, four independent sequences
    losses        f32 [10]         mean over the 4 * 31 next-token targets, before the step's update
    grad_norms    f32 [10]         Euclidean norm of the whole gradient, before clipping
    learning_rates f32 [10]        3e-3 * min(1, (step + 1) / 3)
    grad.NAME     f32              gradient of the first step, before clipping
    final.NAME    f32              weights after the tenth step

The rule of a step: gradient scaled by min(1, 1.0 / (norm + 1e-6)); AdamW with betas 0.9 and 0.95, eps 1e-8 added to
the root of the corrected second moment; decay 0.1 * learning rate on matrices other than the embedding, before the
update; none on norms and the embedding.

Run: target/peers/bin/python golden/make_train_steps.py
"""

import argparse
import json
import pathlib

import safetensors.torch
import torch

import tiny_mistral

STEPS = 10
SEQUENCES = 4
SEQ_LEN = 32
PEAK_LEARNING_RATE = 3e-3
WARM_UP_STEPS = 3


def learning_rate(step):
    return PEAK_LEARNING_RATE * min(1.0, (step + 1) / WARM_UP_STEPS)


def make_optimizer(model):
    """AdamW with weight decay on matrices only; the embedding, shared with the head, has none."""
    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.dim() == 2 and "embed_tokens" not in name
        (decayed if is_matrix else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_LEARNING_RATE, betas=(0.9, 0.95), eps=1e-8, fused=False, foreach=False)


def train(model, token_ids):
    """Runs the steps and returns what `expected.safetensors` holds beside the tokens and the final weights."""
    optimizer = make_optimizer(model)
    losses, norms, record = [], [], {}
    for step, batch in enumerate(token_ids):
        logits = model(input_ids=batch, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        if step == 0:
            record = {f"grad.{name}": value.grad.clone() for name, value in model.named_parameters()}
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    record["losses"] = torch.tensor(losses)
    record["grad_norms"] = torch.tensor(norms)
    record["learning_rates"] = torch.tensor([learning_rate(step) for step in range(STEPS)])
    return record


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent / "train_steps")
    out = parser.parse_args().out
    # One thread, so that the order of every sum is the same wherever the files are remade.
    torch.set_num_threads(1)
    model = tiny_mistral.build(seed=21, tied=True).train()
    # Sixteen of the tokens only: ten steps then lower the loss visibly, and most embedding rows move by the head alone.
    token_ids = tiny_mistral.random_tokens(1021, (STEPS, SEQUENCES, SEQ_LEN)) % 16
    model.save_pretrained(out / "initial")
    (out / "initial" / "generation_config.json").unlink(missing_ok=True)
    record = train(model, token_ids)
    record["token_ids"] = token_ids
    for name, parameter in model.named_parameters():
        record[f"final.{name}"] = parameter.detach().clone()
    safetensors.torch.save_file(record, out / "expected.safetensors")
    print(json.dumps({
        "golden": "train_steps",
        "losses": [round(value, 4) for value in record["losses"].tolist()],
        "grad_norms": [round(value, 3) for value in record["grad_norms"].tolist()],
    }))


if __name__ == "__main__":
    main()
