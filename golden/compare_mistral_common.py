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

SEED = 7
CONTROL_LIKE = [
    "[INST]", "[/INST]", "<s>", "</s>", "<unk>", "<pad>", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[IMG]", "[REF]",
    "[/REF]", "[REFERENCE_DOC_1]", "[REFERENCE_DOC_12]", "[REFERENCE_DOC_", "[control_8]", "<0x0A>", "<0xE2>", "▁",
    "▁▁▁", "<SPECIAL_30>", "[SYSTEM_PROMPT]", "[PREFIX]", "<|endoftext|>", "[INST", "s>", "</", "⁇", " ⁇ ", "\u2581a",
]
SPACES = list(" \t\n\r\v\f\x85\xa0\u1680\u2000\u2003\u2009\u200a\u2028\u2029\u202f\u205f\u3000") + [
    "  ", "   ", "\r\n", "\n\n", "\n \n", " \n", "\t\t", " " * 17, "\u200b", "\u200d", "\ufeff", "\u2060", "\u180e",
]
WORDS = (
    "the of and to in wind sea Galerne l'été d’accord qu'il aujourd'hui Straße Äpfel naïve niño città être œuvre "
    "HTTPServer getElementById snake_case CamelCase XMLHttpRequest iPhone McDonald's don't WE'VE I'm they'll "
    "слово Москва привет Ελληνικά λόγος हिन्दी नमस्ते தமிழ் বাংলা ไทย ภาษา עברית שָׁלוֹם العربية مُحَمَّد فارسی "
    "日本語 テキスト ひらがな 漢字 中文字符 한국어 텍스트 ⅣⅫ ǅungla ŉ ﬁn ｆｕｌｌ １２３ ٣٤٥ ½ ²³ ⁿ ª º ʰ ˈ ƛ"
).split()
CODE = [
    "fn main() {\n    println!(\"{}\", x[0] + 1);\n}\n", "if (a != b && c >= d) { return -1; }", "// comment //\n/* x */",
    "def f(x):\n\treturn x**2  # sq\n", "<div class=\"a\">&nbsp;</div>\r\n", "https://example.org/a/b?c=d&e=%20f#g",
    "SELECT * FROM t WHERE a = 'b';", "\\frac{1}{2}\\alpha_{i}^{2}", "{\"a\": [1, 2.5e-3, null]}", "a///b\n//\n/",
    "0xDEADBEEF 1_000_000 3.14159 12:34:56", "$$$###@@@!!!???...---___===", "--flag=value | grep -v '^#' > /dev/null",
]
EMOJI = ["🙂", "👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇫🇷🇩🇪", "☃️", "#️⃣", "🧑🏿‍🚀", "\ufe0f", "\u20e3", "🫠", "\U0001f1eb"]
MARKS = ["\u0301", "\u0308", "\u0323", "\u093f", "\u064e", "\u05b8", "\u20dd", "\u0e33", "\U000e0100", "\u3099"]
RANGES = [
    (0x20, 0x7E), (0x00, 0x1F), (0x7F, 0xA0), (0xA1, 0x24F), (0x250, 0x36F), (0x370, 0x52F), (0x530, 0x8FF),
    (0x900, 0xDFF), (0xE00, 0x1FFF), (0x2000, 0x2BFF), (0x2C00, 0x2FFF), (0x3000, 0x30FF), (0x3100, 0xA4CF),
    (0xA4D0, 0xABFF), (0xAC00, 0xD7FF), (0xE000, 0xFAFF), (0xFB00, 0xFFFF), (0x10000, 0x107FF), (0x10800, 0x16FFF),
    (0x17000, 0x1D3FF), (0x1D400, 0x1EFFF), (0x1F000, 0x1FAFF), (0x1FB00, 0x2FFFF), (0x30000, 0xDFFFF),
    (0xE0000, 0x10FFFF),
]


def random_character(source):
    """Any code point but the surrogates, every range alike."""
    first, last = source.choice(RANGES)
    return chr(source.randint(first, last))


def piece(source, vocabulary):
    """A small piece of text of one of many kinds."""
    kind = source.randrange(14)
    if kind < 2:
        return source.choice(WORDS)
    if kind == 2:
        return source.choice(CONTROL_LIKE)
    if kind == 3:
        return source.choice(SPACES)
    if kind == 4:
        return source.choice(EMOJI + MARKS)
    if kind == 5:
        return str(source.randrange(10 ** source.randint(1, 20)))
    if kind == 6:
        return source.choice(CODE)
    if kind == 7:
        first, last = source.choice(RANGES)
        return "".join(chr(source.randint(first, last)) for _ in range(source.randint(1, 12)))
    if kind == 8:
        return random_character(source)
    if kind == 9:
        return random_character(source) * source.randint(2, 70)
    if kind == 10:
        return "".join(chr(source.randint(0x20, 0x7E)) for _ in range(source.randint(1, 15)))
    if kind == 11:
        letters = "aAbBzZ éÉ漢\u0301ªʰǅ'/.\n 1"
        return "".join(source.choice(letters) for _ in range(source.randint(1, 25)))
    # Tokens of the vocabulary as text: their neighbours decide what becomes of them.
    return "".join(source.choice(vocabulary) for _ in range(source.randint(1, 5)))


def random_text(source, vocabulary):
    """A text of up to a dozen pieces, with or without spaces between them; one of a few hundred is a long run."""
    if source.randrange(400) == 0:
        unit = source.choice([random_character(source), "ab", " ", "\n", "-", "a ", "漢", "\u0301", "é", "🙂", "Aa", "/"])
        return unit * (source.choice([1000, 3000, 10000]) // len(unit))
    joint = source.choice(["", "", " ", " ", "  ", "\n"])
    return joint.join(piece(source, vocabulary) for _ in range(source.randint(0, 12)))


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
