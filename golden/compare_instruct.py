#!/usr/bin/env python3
"""Compares `galerne tokenizer render` with mistral-common, token for token, on the requests of golden/instruct.

Prompts to fill gaps in random texts are compared too, of the files that have the tokens for them. Each tokenizer file is used
with the template version that it states; `tekken.json` files also with later ones whose control tokens they have. Prints one
JSON line per file and comparison; exits with 1 if anything differs, or if no file had gaps to compare. Needs
mistral-common[sentencepiece]==1.13.1.

Run: python golden/compare_instruct.py --galerne PROGRAM [FILE ...]
"""

import argparse
import json
import pathlib
import random
import subprocess
import sys

import mistral_common
from make_instruct import CLASSES
from mistral_common.exceptions import MistralCommonException
from mistral_common.protocol.fim.request import FIMRequest
from mistral_common.protocol.instruct.normalize import get_normalizer
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.base import TokenizerVersion
from mistral_common.tokens.tokenizers.sentencepiece import SentencePieceTokenizer
from mistral_common.tokens.tokenizers.tekken import Tekkenizer

from random_texts import random_text

N_GAPS = 1000
# Of the 500 of a version, those with control tokens that a file of this version does not have may be missing.
LEAST_REQUESTS = 300
REQUESTS = pathlib.Path(__file__).parent / "instruct"


def open_tokenizer(path):
    if ".model" in path.name:
        return SentencePieceTokenizer(path)
    return Tekkenizer.from_file(path)


def expected(version, tokenizer, made):
    number = TokenizerVersion(version)
    normal = get_normalizer(number).from_chat_completion_request(ChatCompletionRequest(**made))
    return CLASSES[version](tokenizer).encode_instruct(normal).tokens


def compare_gaps(program, path, tokenizer, version):
    """The number of prompts that differ; `None` where there are none to compare, which is printed with the reason."""
    source = random.Random(11)
    vocabulary = [piece for piece in tokenizer.vocab() if piece]
    texts = [(random_text(source, vocabulary), random_text(source, vocabulary)) for _ in range(N_GAPS)]
    # An empty suffix is none.
    gaps = [{"prompt": prompt, "suffix": suffix or "."} for prompt, suffix in texts]
    skipped = None
    if not {"[SUFFIX]", "[PREFIX]"} <= set(tokenizer.vocab()):
        # mistral-common would take the unknown token.
        skipped = "it has no [SUFFIX] and [PREFIX]"
    else:
        try:
            tokens = [CLASSES[version](tokenizer).encode_fim(FIMRequest(**gap)).tokens for gap in gaps]
        except (MistralCommonException, KeyError, ValueError) as error:
            skipped = f"{type(error).__name__}: {error}"
    if skipped:
        print(json.dumps({"file": path.name, "gaps": 0, "skipped": skipped}))
        return None
    command = [program, "tokenizer", "render", "--tokenizer", path, "--json"]
    lines = "".join(json.dumps(gap) + "\n" for gap in gaps)
    run = subprocess.run(command, input=lines, capture_output=True, text=True, check=False)
    return n_wrong(run, gaps, tokens, {"file": path.name, "gaps": len(tokens)})


def n_wrong(run, requests, tokens, what):
    """The number of answers that are not the tokens expected, or not there, or too many; printed with `what` was compared."""
    got = [json.loads(answer)["token_ids"] for answer in run.stdout.split("\n") if answer]
    differing = [i for i, pair in enumerate(zip(tokens, got)) if pair[0] != pair[1]]
    n_missing = len(tokens) - len(got)
    print(json.dumps({**what, "different": len(differing), "missing": n_missing, "exit": run.returncode}))
    if differing:
        i = differing[0]
        print(requests[i], tokens[i], got[i], sep="\n")
    if n_missing or run.returncode:
        print(run.stderr)
    return len(differing) + abs(n_missing) + (run.returncode != 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--galerne", required=True)
    parser.add_argument("files", nargs="*", type=pathlib.Path, help="tokenizer files; all that mistral-common brings by default")
    arguments = parser.parse_args()
    n_different = n_with_gaps = 0
    data = pathlib.Path(mistral_common.__file__).parent / "data"
    for path in arguments.files or sorted([*data.glob("*.model.*"), *data.glob("tekken*.json")]):
        tokenizer = open_tokenizer(path)
        own = tokenizer.version.value
        of_gaps = compare_gaps(arguments.galerne, path, tokenizer, own)
        if of_gaps is not None:
            n_different += of_gaps
            n_with_gaps += 1
        versions = [own] if ".model" in path.name else [v for v in CLASSES if int(v[1:]) >= int(own[1:].split("m")[0])]
        for version in versions:
            lines = [line for line in (REQUESTS / f"{version}.jsonl").open(encoding="utf-8") if not line.endswith(',"pieces":null}\n')]
            requests, tokens, n_left_out = [], [], 0
            for line in lines:
                made = json.loads(line)["request"]
                try:
                    tokens.append(expected(version, tokenizer, made))
                except (MistralCommonException, KeyError, ValueError):
                    # A control token that the file does not have.
                    n_left_out += 1
                    continue
                requests.append(line[len('{"request":') : line.rindex(',"pieces":')])
            if version == own and len(tokens) < LEAST_REQUESTS:
                sys.exit(f"{path.name}: {len(tokens)} requests to compare, expected {LEAST_REQUESTS}")
            if not tokens:
                print(json.dumps({"file": path.name, "version": version, "requests": 0, "left_out": n_left_out}))
                continue
            command = [arguments.galerne, "tokenizer", "render", "--tokenizer", path, "--version", version, "--json"]
            run = subprocess.run(command, input="\n".join(requests) + "\n", capture_output=True, text=True, check=False)
            n_different += n_wrong(run, requests, tokens, {
                "file": path.name, "version": version, "requests": len(tokens), "left_out": n_left_out,
            })
    if n_with_gaps == 0:
        sys.exit("no file had gaps to compare")
    sys.exit(n_different > 0)


if __name__ == "__main__":
    main()
