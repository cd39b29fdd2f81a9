#!/usr/bin/env python3
"""Writes golden/instruct/VERSION.jsonl: generated chat requests and the pieces that mistral-common makes of them.

Each line holds `request` (messages and tools as clients write them) and either `pieces`, a list of `["control", NAME]` and
`["text", TEXT]`, or `null` when mistral-common refuses the request. A tokenizer that gives each text one number stands in for
a real one, so that no vocabulary is needed.

Run: target/peers/bin/python golden/make_instruct.py
"""

import argparse
import json
import pathlib
import random
import string

from mistral_common.exceptions import MistralCommonException
from mistral_common.protocol.instruct.normalize import get_normalizer
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.protocol.instruct.validator import ValidationMode, get_validator
from mistral_common.tokens.tokenizers import instruct
from mistral_common.tokens.tokenizers.base import TokenizerVersion
from mistral_common.tokens.tokenizers.tekken import Tekkenizer

CLASSES = {
    "v1": instruct.InstructTokenizerV1,
    "v2": instruct.InstructTokenizerV2,
    "v3": instruct.InstructTokenizerV3,
    "v7": instruct.InstructTokenizerV7,
    "v11": instruct.InstructTokenizerV11,
    "v13": instruct.InstructTokenizerV13,
}
WORDS = [
    "vent", "mer", "L'été", "naïve", "[INST]", "</s>", "日本", "🙂", " ", "  ", "\n", "\t", '"quoted"', "\\", "{}", "null",
    "[TOOL_CALLS]", "0.5", "e\u0301", "\u200b", "<s>",
]  # fmt: skip
VALUES = [0, -0.0, 1.5, 1e16, 1e-5, 123456789012345678901234, True, None, "é\n\u2028", [], {}, [1, [2]], {"b": 1, "a": {"c": []}}]


class Recorder(Tekkenizer):
    """Each text is one number, each control token another."""

    def __init__(self):
        self.pieces = []
        self._special_tokens_reverse_vocab = {"[THINK]": 0, "[/THINK]": 0}

    def add(self, kind, value):
        self.pieces.append([kind, value])
        return len(self.pieces) - 1

    @property
    def model_settings_builder(self):
        return None

    @property
    def bos_id(self):
        return self.add("control", "<s>")

    @property
    def eos_id(self):
        return self.add("control", "</s>")

    def get_special_token(self, name):
        return self.add("control", str(getattr(name, "value", name)))

    def encode(self, text, bos, eos):
        assert not bos and not eos
        return [self.add("text", text)] if text else []

    def decode(self, tokens, special_token_policy=None):
        return ""


def text(rng):
    return "".join(rng.choice(WORDS) + rng.choice(["", " ", " "]) for _ in range(rng.randint(0, 5)))


def content(rng, thoughts=0.0):
    if rng.random() < 0.7:
        return text(rng)
    chunks = []
    for _ in range(rng.randint(0, 3)):
        if rng.random() < thoughts:
            chunks.append({"type": "thinking", "thinking": text(rng), "closed": rng.random() < 0.8})
        else:
            chunks.append({"type": "text", "text": text(rng)})
    return chunks


def arguments(rng):
    kind = rng.random()
    if kind < 0.1:
        return rng.choice(["", "not json", "{", "[1,2", '"text"', "NaN", "-Infinity", " 7 "])
    members = {rng.choice("abcxyz"): rng.choice(VALUES) for _ in range(rng.randint(0, 3))}
    return json.dumps(members, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 1]))


def call_id(rng):
    alphabet = string.ascii_letters + string.digits
    usual = "".join(rng.choice(alphabet) for _ in range(9))
    return usual if rng.random() < 0.97 else rng.choice(["null", "", "short", "call-1234"])


def tools(rng):
    names = rng.sample(["search", "get_weather", "f", "x-1"], rng.randint(0, 3))
    made = []
    for name in names:
        function = {"name": name, "parameters": {"type": "object", "properties": {"z": {"type": "string"}, "a": {}}}}
        if rng.random() < 0.7:
            function["description"] = text(rng)
        if rng.random() < 0.2:
            function["strict"] = True
        made.append({"type": "function", "function": function})
    return made


def request(rng, version):
    """A conversation that is right more often than not."""
    messages = []
    thoughts = 0.3 if version == "v13" else 0.03
    if rng.random() < 0.5:
        messages.append({"role": "system", "content": content(rng, 0.2 if version == "v13" else 0.0)})
    for turn in range(rng.randint(1, 4)):
        for _ in range(rng.choice([1, 1, 1, 2])):
            messages.append({"role": "user", "content": content(rng)})
        if rng.random() < 0.1:
            messages.append({"role": "system", "content": text(rng)})
        if turn == 3 or rng.random() < 0.3:
            break
        if version != "v1" and rng.random() < 0.5:
            n_calls = rng.choice([1, 1, 2, 3]) if version != "v2" else rng.choice([1, 1, 1, 2])
            calls = []
            for _ in range(n_calls):
                function = {"name": rng.choice(["search", "get_weather", "bad name" if rng.random() < 0.02 else "f"])}
                function["arguments"] = arguments(rng)
                calls.append({"id": call_id(rng), "type": "function", "function": function})
            message = {"role": "assistant", "tool_calls": calls}
            if version >= "v7" or rng.random() < 0.05:
                message["content"] = content(rng, thoughts)
            messages.append(message)
            answered = list(calls)
            if rng.random() < 0.3:
                rng.shuffle(answered)
            if rng.random() < 0.03:
                answered = answered[1:]
            for call in answered:
                result = {"role": "tool", "content": rng.choice([arguments(rng), text(rng), [{"type": "text", "text": text(rng)}]])}
                if rng.random() < 0.98:
                    result["tool_call_id"] = call["id"]
                if rng.random() < 0.5:
                    result["name"] = call["function"]["name"]
                messages.append(result)
            if rng.random() < 0.2:
                break
        for _ in range(rng.choice([1, 1, 1, 2])):
            messages.append({"role": "assistant", "content": content(rng, thoughts)})
    if messages[-1]["role"] == "assistant" and rng.random() < 0.8:
        messages[-1]["prefix"] = True
    return {"messages": messages, "tools": tools(rng)}


def expected(version, made):
    recorder = Recorder()
    try:
        parsed = ChatCompletionRequest(**made)
        number = TokenizerVersion(version)
        get_validator(number, ValidationMode.test).validate_request(parsed)
        normal = get_normalizer(number).from_chat_completion_request(parsed)
        tokenizer = CLASSES[version](recorder)
        tokens = tokenizer.encode_instruct(normal).tokens
    except (MistralCommonException, ValueError, AssertionError):
        return None
    return [recorder.pieces[token] for token in tokens]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent / "instruct")
    parser.add_argument("--n", type=int, default=500, help="requests of each version that are rendered, not refused")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for version in CLASSES:
        rng = random.Random(f"instruct {version}")
        n_rendered = n_requests = 0
        with open(arguments.out / f"{version}.jsonl", "w", encoding="utf-8") as file:
            while n_rendered < arguments.n:
                if n_requests > 10 * arguments.n:
                    raise SystemExit(f"{version}: {n_rendered} of {n_requests} requests were rendered: mistral-common refuses too many")
                made = request(rng, version)
                pieces = expected(version, made)
                n_rendered += pieces is not None
                n_requests += 1
                file.write(json.dumps({"request": made, "pieces": pieces}, ensure_ascii=False, separators=(",", ":")) + "\n")
        print(json.dumps({"golden": f"instruct/{version}", "requests": n_requests, "rendered": n_rendered}))


if __name__ == "__main__":
    main()
