#!/usr/bin/env python3
"""Compares `galerne tokenizer encode` and `decode` with the tokenizers package on one `tokenizer.json`.

The texts are written here or drawn from seeded generators: scripts, spaces, numbers, emoji, and random code points.
Texts hold no control token, which Galerne reads as ordinary text and the package does not. Prints one JSON line;
exits with 1 at the first difference.

Run: compare_tokenizer.py --galerne PROGRAM --model DIRECTORY
"""

import argparse
import json
import pathlib
import random
import subprocess
import sys

import tokenizers

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
RANDOM_TEXTS = 2000
SEED = 6


def random_text(source):
    """Up to 60 characters out of one of several ranges, mixed with spaces."""
    ranges = ((0x20, 0x7E), (0xA0, 0x17F), (0x370, 0x52F), (0x0, 0x2FFF), (0x3040, 0x9FFF), (0x1F300, 0x1FAFF))
    first, last = source.choice(ranges)
    characters = [chr(source.randint(first, last)) for _ in range(source.randint(1, 60))]
    return "".join(source.choice((character, character, character, " ", "\n")) for character in characters)


def run_galerne(program, command, model, values):
    """One JSON value per line in and out."""
    lines = "".join(json.dumps(value) + "\n" for value in values)
    arguments = [program, "tokenizer", command, "--tokenizer", f"{model}/", "--json"]
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
    arguments = parser.parse_args()
    reference = tokenizers.Tokenizer.from_file(str(arguments.model / "tokenizer.json"))
    source = random.Random(SEED)
    texts = WRITTEN + [random_text(source) for _ in range(RANDOM_TEXTS)]
    expected = [reference.encode(text, add_special_tokens=False).ids for text in texts]
    encoded = run_galerne(arguments.galerne, "encode", arguments.model, texts)
    first_difference("encoding", texts, encoded, expected)
    decoded = run_galerne(arguments.galerne, "decode", arguments.model, encoded)
    first_difference("decoding", texts, decoded, reference.decode_batch(encoded, skip_special_tokens=False))
    print(json.dumps({
        "texts": len(texts),
        "tokens": sum(map(len, expected)),
        "entries": reference.get_vocab_size(),
        "agrees": True,
    }))
    sys.exit(0)


if __name__ == "__main__":
    main()
