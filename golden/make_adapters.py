#!/usr/bin/env python3
"""Writes golden/adapters: random adapters for golden/architectures/mistral, and what `peft` makes of the model with them.

`peft/` is a directory as PEFT writes it; `native/lora.safetensors` the same adapter under the names and in the row order of
mistral-finetune, with its scaling in `params.json`. `expected.safetensors` holds every changed matrix after `merge_and_unload`, and
`token_ids` with their `logits` before the adapter is merged, all in f32.
Needs the versions of golden/requirements.txt. Run from the root of the repository.
"""
import json
import pathlib
import shutil

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

HERE = pathlib.Path(__file__).parent
BASE = HERE / "architectures/mistral/hf"
OUT = HERE / "adapters"
RANK, ALPHA = 3, 7
N_TOKENS = 40
MATRICES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
NATIVE = {
    "self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
}


def native_rows(b, head_dim):
    """Rows of the two halves of a head become neighbours."""
    heads = b.view(-1, 2, head_dim // 2, b.shape[1])
    return heads.transpose(1, 2).reshape(b.shape).contiguous()


def main():
    torch.manual_seed(5)
    torch.set_num_threads(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=MATRICES, init_lora_weights=False)
    model = peft.get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter) * 0.2
    shutil.rmtree(OUT, ignore_errors=True)
    model.save_pretrained(OUT / "peft")
    (OUT / "peft/README.md").unlink(missing_ok=True)
    written = json.loads((OUT / "peft/adapter_config.json").read_text())
    # Where the script ran, and the order of a set, are nobody's business.
    written |= {"base_model_name_or_path": "architectures/mistral/hf", "target_modules": MATRICES}
    (OUT / "peft/adapter_config.json").write_text(json.dumps(written, indent=2) + "\n")
    head_dim = model.config.head_dim
    native = {}
    for name, tensor in load_file(OUT / "peft/adapter_model.safetensors").items():
        layer, rest = name.removeprefix("base_model.model.model.layers.").split(".", 1)
        matrix, side = rest.split(".lora_")
        if side.startswith("B") and matrix in ["self_attn.q_proj", "self_attn.k_proj"]:
            tensor = native_rows(tensor, head_dim)
        native[f"layers.{layer}.{NATIVE[matrix]}.lora_{side}"] = tensor
    (OUT / "native").mkdir()
    save_file(native, OUT / "native/lora.safetensors")
    params = {"lora": {"enable": True, "rank": RANK, "dropout": 0.0, "scaling": ALPHA / RANK}}
    (OUT / "native/params.json").write_text(json.dumps(params) + "\n")
    before = {name: tensor.clone() for name, tensor in transformers.AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).state_dict().items()}
    token_ids = torch.randint(0, model.config.vocab_size, (1, N_TOKENS))
    with torch.no_grad():
        logits = model(token_ids).logits[0]
    merged = model.merge_and_unload().state_dict()
    changed = {name: tensor.contiguous() for name, tensor in merged.items() if not torch.equal(tensor, before[name])}
    run = {"token_ids": token_ids[0].contiguous(), "logits": logits.contiguous()}
    save_file(changed | run, OUT / "expected.safetensors")
    for path in OUT.rglob("*.safetensors"):
        path.chmod(0o644)
    largest = max(float((tensor - before[name]).abs().max()) for name, tensor in changed.items())
    print(json.dumps({"golden": "adapters", "changed_matrices": len(changed), "largest_change": round(largest, 3), "peft": peft.__version__}))


if __name__ == "__main__":
    main()
