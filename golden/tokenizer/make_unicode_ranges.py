#!/usr/bin/env python3
"""Writes crates/tokenizer/src/split/unicode_ranges.rs from the regular-expression engine of the `tokenizers` package.

The split of text into words must agree with that engine for every code point, whatever Unicode version the Rust
standard library follows. Needs tokenizers==0.23.3. Run from the root of the repository, then `cargo fmt -p tokenizer`.
"""
import pathlib

import tokenizers
from tokenizers import Regex, pre_tokenizers

OUT = pathlib.Path("crates/tokenizer/src/split/unicode_ranges.rs")
CLASSES = [
    ("LETTERS", r"\p{L}", "Letters"),
    ("NUMBERS", r"\p{N}", "Numbers"),
    ("SPACES", r"\s", "White space"),
    ("UPPER", r"[\p{Lu}\p{Lt}]", "Capital and title-case letters"),
    ("LOWER", r"\p{Ll}", "Small letters"),
    ("MARKS", r"\p{M}", "Marks"),
]


def ranges(pattern):
    """Inclusive code point ranges that the pattern matches."""
    points = [p for p in range(0x110000) if not 0xD800 <= p <= 0xDFFF]
    text = "".join(map(chr, points))
    split = pre_tokenizers.Split(Regex(pattern), "removed")
    matched = [True] * len(points)
    for _, (start, end) in split.pre_tokenize_str(text):
        matched[start:end] = [False] * (end - start)
    found = []
    for point, hit in zip(points, matched):
        if hit and found and found[-1][1] == point - 1:
            found[-1][1] = point
        elif hit:
            found.append([point, point])
    return found


def main():
    lines = [
        f"//! Code point classes, inclusive ranges, as tokenizers {tokenizers.__version__} sees them.",
        "//! Written by `golden/tokenizer/make_unicode_ranges.py`; not edited by hand.",
    ]
    for name, pattern, title in CLASSES:
        found = ranges(pattern)
        lines += ["", f"/// {title}: `{pattern}`.", "#[rustfmt::skip]",
                  f"pub(super) const {name}: [(u32, u32); {len(found)}] = ["]
        cells = [f"(0x{a:X}, 0x{b:X})," for a, b in found]
        lines += ["    " + " ".join(cells[i:i + 5]) for i in range(0, len(cells), 5)]
        lines += ["];"]
    OUT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
