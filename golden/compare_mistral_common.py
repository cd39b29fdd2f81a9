#!/usr/bin/env python3
"""Compares `galerne tokenizer encode` and `decode` with mistral-common on the tokenizer files that it brings.

Texts are drawn from a seeded generator: all planes of Unicode, controls, lone marks, spaces of all kinds, emoji, many
scripts, code, numbers, long runs, and text that looks like control tokens. Each is encoded without BOS and EOS and
decoded again; besides, lists of random ids are decoded, so that characters are cut and control tokens stand anywhere.
Prints one JSON line per tokenizer; exits with 1 if anything differs.

Needs mistral-common==1.13.1, sentencepiece==0.2.3, tiktoken==0.14.0. DIR is `mistral_common/data` of the installed
package by default; `tokenizer.model` files of Llama's kind may be put there too.

Run: compare_mistral_common.py --galerne PROGRAM [--n 100000] [--data DIR] [--only PART_OF_NAME]
"""

import argparse
import json
import pathlib
import random
import subprocess
import sys
import time

import mistral_common
from mistral_common.tokens.tokenizers.sentencepiece import SentencePieceTokenizer
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from random_texts import random_text

SEED = 7


def random_ids(source, n_ids, encoded):
    """Ids anywhere in the vocabulary, or a cut out of encoded text with some ids exchanged."""
    if not encoded or source.randrange(2):
        return [source.randrange(n_ids) for _ in range(source.randint(0, 12))]
    start = source.randrange(len(encoded))
    ids = encoded[start : start + 20]
    for _ in range(source.randint(0, 3)):
        ids[source.randrange(len(ids))] = source.randrange(min(n_ids, 1300))
    return ids


def run_galerne(program, command, tokenizer, values):
    """One JSON value per line in and out."""
    lines = "".join(json.dumps(value) + "\n" for value in values)
    arguments = [program, "tokenizer", command, "--tokenizer", str(tokenizer), "--json"]
    done = subprocess.run(arguments, input=lines, capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}: {done.stderr}")
    # Only the newline ends a line here: splitlines would also cut at other separators inside a text.
    return [json.loads(line) for line in done.stdout.split("\n") if line]


def differences(what, inputs, got, expected):
    """Counts them and shows the first few on stderr."""
    if len(got) != len(expected):
        raise SystemExit(f"{what}: {len(got)} answers, expected {len(expected)}")
    found = [index for index, (one, other) in enumerate(zip(got, expected)) if one != other]
    for index in found[:5]:
        print(f"{what} of {inputs[index]!r:.400}\n  got      {got[index]!r:.400}\n  expected {expected[index]!r:.400}",
              file=sys.stderr)
    return len(found)


def open_reference(path):
    """mistral-common's tokenizer, its vocabulary as text, and ids that are not decoded: the unknown token is a control
    token for Galerne and the sign U+2047 for sentencepiece."""
    if path.suffix == ".json":
        return Tekkenizer.from_file(path), set()
    reference = SentencePieceTokenizer(str(path))
    return reference, {reference.unk_id}


def compare(program, path, n_texts):
    """Figures of one tokenizer."""
    source = random.Random(SEED)
    reference, excluded = open_reference(path)
    vocabulary = [text.replace("▁", " ") for text in reference.vocab() if text]
    texts = [random_text(source, vocabulary) for _ in range(n_texts)]
    expected = [reference.encode(text, bos=False, eos=False) for text in texts]
    started = time.monotonic()
    encoded = run_galerne(program, "encode", path, texts)
    seconds = time.monotonic() - started
    wrong = differences(f"{path.name}: encoding", texts, encoded, expected)
    lists = [random_ids(source, reference.n_words, ids) for ids in expected]
    lists = expected + [[token for token in ids if token not in excluded] for ids in lists]
    decoded = run_galerne(program, "decode", path, lists)
    wrong_decoded = differences(f"{path.name}: decoding", lists, decoded, [reference.decode(ids) for ids in lists])
    return {
        "tokenizer": path.name,
        "texts": n_texts,
        "bytes": sum(len(text.encode()) for text in texts),
        "tokens": sum(map(len, expected)),
        "encoding_differences": wrong,
        "decoded_lists": len(lists),
        "decoding_differences": wrong_decoded,
        "seconds_with_json": round(seconds, 2),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--galerne", required=True)
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path(mistral_common.__file__).parent / "data")
    parser.add_argument("--only", default="", help="part of the names of the files to compare")
    arguments = parser.parse_args()
    paths = [path for path in sorted(arguments.data.iterdir())
             if (".model" in path.name or "tekken" in path.name) and arguments.only in path.name]
    if not paths:
        raise SystemExit(f"{arguments.data} holds no tokenizer")
    n_wrong = 0
    for path in paths:
        figures = compare(arguments.galerne, path, arguments.n)
        n_wrong += figures["encoding_differences"] + figures["decoding_differences"]
        print(json.dumps(figures), flush=True)
    sys.exit(1 if n_wrong else 0)


if __name__ == "__main__":
    main()
