#!/usr/bin/env python3
"""Writes golden/lora_steps/: ten AdamW steps of a low-rank adapter beside the model of golden/train_steps/initial, by PEFT in f32.

`expected.safetensors` holds

    token_ids     i64 [10, 4, 32]  per step, four independent sequences
    losses        f32 [10]         mean over the 4 * 31 next-token targets, before the step's update
    grad_norms    f32 [10]         Euclidean norm of the whole gradient, before clipping
    start.NAME    f32              factors before the first step, named as in PEFT's files
    grad.NAME     f32              their gradient in the second step, before clipping: in the first, B is zero and A has none
    final.NAME    f32              factors after the tenth step

Rank 4, lora_alpha 6, all seven matrices of each layer. The rule of a step is that of make_train_steps.py, with ten times its learning
rates; both factors are matrices and decay.

Run: target/peers/bin/python golden/make_lora_steps.py
"""

import argparse
import json
import pathlib

import peft
import safetensors.torch
import torch
import transformers

import make_adapters
import make_train_steps
import tiny_mistral

HERE = pathlib.Path(__file__).parent
RANK, ALPHA = 4, 6


def factors(model):
    """Name in PEFT's files and parameter."""
    return {name.replace(".default", ""): value for name, value in model.named_parameters() if value.requires_grad}


def train(model, token_ids):
    optimizer = torch.optim.AdamW(
        factors(model).values(), lr=make_train_steps.PEAK_LEARNING_RATE, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1,
        fused=False, foreach=False,
    )
    losses, norms, record = [], [], {}
    for step, batch in enumerate(token_ids):
        logits = model(input_ids=batch, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        if step == 1:
            record = {f"grad.{name}": value.grad.clone() for name, value in factors(model).items()}
        norms.append(torch.nn.utils.clip_grad_norm_(factors(model).values(), 1.0).item())
        for group in optimizer.param_groups:
            group["lr"] = 10 * make_train_steps.learning_rate(step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    record["losses"] = torch.tensor(losses)
    record["grad_norms"] = torch.tensor(norms)
    return record


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "lora_steps")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    torch.manual_seed(22)
    base = transformers.AutoModelForCausalLM.from_pretrained(HERE / "train_steps/initial", dtype=torch.float32)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=make_adapters.MATRICES)
    model = peft.get_peft_model(base, config).train()
    # Sixteen of the tokens only, so that ten steps lower the loss.
    shape = (make_train_steps.STEPS, make_train_steps.SEQUENCES, make_train_steps.SEQ_LEN)
    token_ids = tiny_mistral.random_tokens(1022, shape) % 16
    start = {f"start.{name}": value.detach().clone() for name, value in factors(model).items()}
    record = start | train(model, token_ids)
    record["token_ids"] = token_ids
    record |= {f"final.{name}": value.detach().clone() for name, value in factors(model).items()}
    after = model.unload().state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items()), "the model stays as it is"
    out.mkdir(exist_ok=True)
    safetensors.torch.save_file(record, out / "expected.safetensors")
    (out / "expected.safetensors").chmod(0o644)
    print(json.dumps({
        "golden": "lora_steps",
        "losses": [round(value, 4) for value in record["losses"].tolist()],
        "grad_norms": [round(value, 3) for value in record["grad_norms"].tolist()],
        "peft": peft.__version__,
    }))


if __name__ == "__main__":
    main()
