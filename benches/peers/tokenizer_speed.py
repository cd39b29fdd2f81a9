#!/usr/bin/env python3
"""Speed of gigatoken on what `galerne bench tokenizer --peer` measures beside it, as one line of JSON.

- `train`: learning a vocabulary from the .txt files below a folder, reading them included;
- `encode`: the first pass over their lines on one thread, by a tokenizer.json. gigatoken remembers the words it has met, so
  that a second pass is about twice as fast; a text is encoded once.

It needs the package of `benches/peers/requirements-tokenizer.txt`.
"""

import argparse
import json
import os
import pathlib
import time


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", choices=("train", "encode"))
    parser.add_argument("--text", type=pathlib.Path, required=True, help="folder of .txt files")
    parser.add_argument("--vocab-size", type=int, default=32768, help="entries (default 32768)")
    parser.add_argument("--threads", type=int, default=2, help="threads of the training (default 2)")
    parser.add_argument("--tokenizer", type=pathlib.Path, help="tokenizer.json to encode by")
    return parser.parse_args()


def train(gigatoken, files, arguments):
    start = time.perf_counter()
    vocabulary, _merges = gigatoken.train_bpe(gigatoken.TextFileSource(files), arguments.vocab_size, ["<s>"])[:2]
    seconds = time.perf_counter() - start
    if len(vocabulary) != arguments.vocab_size:
        raise SystemExit(f"{len(vocabulary)} entries, expected {arguments.vocab_size}")
    n_bytes = sum(os.path.getsize(file) for file in files)
    return n_bytes, seconds, {"settings": f"{arguments.threads} threads"}


def encode(gigatoken, files, arguments):
    lines = []
    for file in files:
        with open(file, encoding="utf8", newline="") as text:
            lines += [line for line in text.read().split("\n") if line]
    n_bytes = sum(len(line.encode()) for line in lines)
    tokenizer = gigatoken.Tokenizer(arguments.tokenizer)
    start = time.perf_counter()
    encoded = tokenizer.encode_batch(lines, parallel=False)
    seconds = time.perf_counter() - start
    return n_bytes, seconds, {"settings": "one thread, first pass, one batch of lines", "n_tokens": sum(map(len, encoded))}


def main():
    arguments = parse_arguments()
    # It is read when the package starts its threads.
    os.environ["RAYON_NUM_THREADS"] = "1" if arguments.work == "encode" else str(arguments.threads)
    import gigatoken

    files = sorted(str(path) for path in arguments.text.rglob("*.txt") if path.is_file())
    n_bytes, seconds, more = {"train": train, "encode": encode}[arguments.work](gigatoken, files, arguments)
    print(json.dumps({
        "work": f"tokenizer_{arguments.work}",
        "value": round(n_bytes / 1e6 / seconds, 2),
        "unit": "MB/s",
        "seconds": round(seconds, 3),
        "n_bytes": n_bytes,
        "peer": "gigatoken",
        **more,
    }))


if __name__ == "__main__":
    main()
