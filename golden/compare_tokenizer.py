#!/usr/bin/env python3
"""Compares `galerne tokenizer encode` and `decode` with the tokenizers package, on a model's `tokenizer.json` and on those of golden/tokenizer/family.

The texts are written here or drawn from the seeded generators of random_texts.py. Those that hold a token which the package finds as a whole are left
out: Galerne reads such text as ordinary. Prints one JSON line per tokenizer; exits with 1 at the first difference.

Run: compare_tokenizer.py --galerne PROGRAM --model DIRECTORY [--n TEXTS]
"""

import argparse
import json
import pathlib
import random
import subprocess
import sys

import tokenizers

from random_texts import random_text

WRITTEN = [
    "",
    " ",
    "a",
    "Il était une fois, au bord de la mer, un vent qu'on appelait la galerne.",
    "L'été, j'aime « la pêche » ; l'hiver, non !",
    "Don't you'll WE'VE it's I'm he'd",
    "Der Fluß fließt über die Brücke, 12 Äpfel kosten 3,50 €.",
    "¿Dónde está la niña? ¡Aquí!",
    "Perché così? Più di 1.234.567 città.",
    "1 12 123 1234 12345 3.14159 1e-5 0x7f",
    "two  spaces,   three,\ttab,\n newline,\n\n two newlines \r\n and more   ",
    "   leading and trailing   ",
    "naïve café — “quotes” … ellipsis",
    "e\u0301 is not é; \u00a0 no-break; \u200b zero width; \ufeff mark",
    "日本語のテキスト 中文 한국어 العربية עברית हिन्दी Ελληνικά Русский",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈",
    "fn main() { println!(\"{}\", x[0] + 1); } // comment",
    "x" * 500,
    "ab" * 300,
    "\x00\x01\x7f",
]
SEED = 21
FAMILY = pathlib.Path(__file__).parent / "tokenizer" / "family"


def texts_for(reference, n):
    """The texts written above, and `n` random ones."""
    added = [token.content for token in reference.get_added_tokens_decoder().values()]
    source, vocabulary, texts = random.Random(SEED), list(reference.get_vocab()), list(WRITTEN)
    while len(texts) < len(WRITTEN) + n:
        text = random_text(source, vocabulary)
        if not any(token in text for token in added):
            texts.append(text)
    return texts


def run_galerne(program, command, tokenizer, values):
    """One JSON value per line in and out."""
    lines = "".join(json.dumps(value) + "\n" for value in values)
    arguments = [program, "tokenizer", command, "--tokenizer", str(tokenizer), "--json"]
    done = subprocess.run(arguments, input=lines, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}: {done.stderr}")
    # Only the newline ends a line here: splitlines would also cut at other separators inside a text.
    return [json.loads(line) for line in done.stdout.split("\n") if line]


def first_difference(what, texts, got, expected):
    """Ends the program at the first pair that differs."""
    if len(got) != len(expected):
        raise SystemExit(f"{what}: {len(got)} answers, expected {len(expected)}")
    for text, one, other in zip(texts, got, expected):
        if one != other:
            raise SystemExit(f"{what} of {text!r} is {one}, expected {other}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--galerne", required=True)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--n", type=int, default=100_000, help="random texts for each tokenizer")
    arguments = parser.parse_args()
    files = [arguments.model / "tokenizer.json", *sorted(FAMILY.glob("*.tokenizer.json"))]
    if len(files) < 2:
        raise SystemExit(f"no tokenizers in {FAMILY}")
    for file in files:
        reference = tokenizers.Tokenizer.from_file(str(file))
        texts = texts_for(reference, arguments.n)
        expected = [encoding.ids for encoding in reference.encode_batch(texts, add_special_tokens=False)]
        encoded = run_galerne(arguments.galerne, "encode", file, texts)
        first_difference("encoding", texts, encoded, expected)
        if file.parent == arguments.model:
            decoded = run_galerne(arguments.galerne, "decode", file, encoded)
            first_difference("decoding", texts, decoded, reference.decode_batch(encoded, skip_special_tokens=False))
        print(json.dumps({
            "tokenizer": file.name, "texts": len(texts), "tokens": sum(map(len, expected)), "entries": reference.get_vocab_size(), "agrees": True,
        }))
    sys.exit(0)


if __name__ == "__main__":
    main()
