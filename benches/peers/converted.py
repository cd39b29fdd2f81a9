"""A GGUF file as a Hugging Face directory of bf16 numbers, for peers that read no GGUF; made once, in `target/peers-models`."""

import os
import pathlib
import shutil

import gguf
import torch
import transformers

FOLDER = pathlib.Path("target/peers-models")
# Kinds of blocks, and what a peer that quantises by itself is asked for.
BITS = {"Q8_0": "int8", "Q4_K": "int4", "Q4_0": "int4", "BF16": "bf16", "F16": "bf16", "F32": "bf16"}


def kind(file):
    """`bf16`, `int8` or `int4`: that of the first feed-forward matrix."""
    tensors = gguf.GGUFReader(file).tensors
    found = next(tensor.tensor_type.name for tensor in tensors if tensor.name == "blk.0.ffn_up.weight")
    if found not in BITS:
        raise SystemExit(f"{file}: blk.0.ffn_up.weight is {found}, expected one of {', '.join(BITS)}")
    return BITS[found]


def folder(file, suffix):
    """Where what is made of a file is kept: another file of the same name has another place."""
    state = os.stat(file)
    return FOLDER / f"{pathlib.Path(file).stem}-{state.st_size:x}-{int(state.st_mtime):x}-{suffix}"


def make(target, write):
    """`target`, made by `write(folder)` if it is not there; what was begun and not ended is not taken for it."""
    if not target.exists():
        begun = target.with_name(f"{target.name}.tmp{os.getpid()}")
        begun.mkdir(parents=True)
        try:
            write(begun)
            begun.rename(target)
        finally:
            shutil.rmtree(begun, ignore_errors=True)
    return target


def load(file):
    """The model of a GGUF file, its numbers rounded to bf16."""
    path = pathlib.Path(file)
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.bfloat16)
    # Its numbers are decoded, and it is an ordinary model from now on; else it refuses to be saved.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model


def hf_directory(file):
    return make(folder(file, "hf"), lambda target: load(file).save_pretrained(target))
