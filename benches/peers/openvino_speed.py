#!/usr/bin/env python3
"""Speed of OpenVINO on what `galerne bench prefill|decode|batch --peer=openvino` measures beside it.

The numbers of the GGUF file, rounded to bf16, exported by optimum-intel: a file in BF16 as bf16, one in Q8_0 as int8, one in Q4_K as
int4 (groups of 128), which OpenVINO rounds by itself. Prefill gives the logits of the last token only. Prints one line of JSON,
as `llama_cpp_speed.py`. It needs the packages of `benches/peers/requirements-openvino.txt`, in an environment of its own.
"""

import numpy as np
import openvino as ov
from openvino import opset13

import converted
import speed

PIECE = 2048


def export(source, kind, target):
    from optimum.exporters.openvino import main_export
    from optimum.intel.openvino import OVConfig, OVWeightQuantizationConfig

    config = {
        "bf16": OVConfig(dtype="bf16"),
        "int8": OVConfig(quantization_config=OVWeightQuantizationConfig(bits=8, sym=False)),
        "int4": OVConfig(quantization_config=OVWeightQuantizationConfig(bits=4, sym=False, group_size=128)),
    }[kind]
    main_export(source, target, task="text-generation-with-past", framework="pt", convert_tokenizer=False, ov_config=config)


def exported(file, kind):
    def write(target):
        export(converted.hf_directory(file), kind, target)

    return converted.make(converted.folder(file, kind), write) / "openvino_model.xml"


def last_row_only(model):
    """Puts a slice before the head, so that it is multiplied for the last token of each sequence only."""
    node = model.output("logits").node.input_value(0).node
    while node.get_type_name() == "Convert":
        node = node.input_value(0).node
    if node.get_type_name() != "MatMul":
        raise SystemExit(f"the logits come from {node.get_type_name()}, expected MatMul")
    hidden = node.input_value(0)
    one = np.array([1], np.int64)
    last = opset13.slice(hidden, -one, np.array([np.iinfo(np.int64).max], np.int64), one, one)
    node.input(0).replace_source_output(last.output(0))


class Session:
    piece = PIECE

    def __init__(self, arguments, n_tokens, n_sequences):
        kind = converted.kind(arguments.model)
        self.path, self.threads = exported(arguments.model, kind), arguments.threads
        self.settings = f"{kind} weights, latency hint, pieces of {PIECE}, {arguments.threads} threads"
        self.request, self.every = None, None
        self.vocabulary = self.compile(False)

    def compile(self, every):
        """Takes the place of what was compiled before; only one is in memory. Returns the number of ids."""
        self.request = None
        core = ov.Core()
        model = core.read_model(self.path)
        if not every:
            last_row_only(model)
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": self.threads}
        compiled = core.compile_model(model, "CPU", options)
        self.request, self.every = compiled.create_infer_request(), every
        self.names = {name for port in compiled.inputs for name in port.get_names()}
        return compiled.output("logits").partial_shape[2].get_length()

    def forget(self):
        self.request.reset_state()

    def step(self, token_ids, first, every):
        if every and not self.every:
            if first != 0:
                raise SystemExit("every row's logits are given from the first token on")
            self.compile(True)
        n_sequences, n = token_ids.shape
        inputs = {
            "input_ids": token_ids,
            "attention_mask": np.ones((n_sequences, first + n), np.int64),
            "position_ids": np.tile(np.arange(first, first + n, dtype=np.int64), (n_sequences, 1)),
            "beam_idx": np.arange(n_sequences, dtype=np.int32),
        }
        self.request.infer({name: value for name, value in inputs.items() if name in self.names})

    def logits(self):
        return np.array(self.request.get_tensor("logits").data, np.float32)


def main():
    arguments = speed.parse_arguments(__doc__)
    session, value = speed.measure(Session, arguments)
    speed.print_figure(arguments, f"OpenVINO {ov.__version__}", session, value)


if __name__ == "__main__":
    main()
