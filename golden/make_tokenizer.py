#!/usr/bin/env python3
"""Writes golden/tokenizer/golden.json: what `tokenizers` and `transformers` make of the tokenizer in golden/tokenizer/model.

Needs tokenizers==0.23.3 and transformers==5.23.0. Run from the root of the repository, after
`cargo run -p tokenizer --example train -- golden/tokenizer/training_text.txt 600 golden/tokenizer/model`.
"""
import json
import pathlib
import random

import tokenizers
import transformers

FOLDER = pathlib.Path(__file__).parent / "tokenizer"
CONTROLS = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "<pad>"]

FIXED = [
    "", " ", "  ", "\n", "\r\n", "\t", " \n \n", "a", " a", "  a", "a ", "a  ", "\n a", "a\n\n\nb", "a \r\n\t b",
    "The wind of the west", "la galerne, l'ouest, aujourd'hui, qu'elle", "don't DON'T it's we'll I'd they've",
    "l’été, d’où, « ainsi » — dit-il…", "1", "12", "123", "1234567890", "3.14159", "1 500", "2,750", "1e-5 0x1F",
    "٣٤٥ ४५६ Ⅷ ½ ² ①②③", "e\u0301te\u0301", "été", "İstanbul ß ẞ ŉ", "Москва Ελλάδα עברית العربية हिन्दी ไทย",
    "漢字かなカナ 한국어", "😀😀 👩‍👩‍👧‍👦 🇫🇷 ☃️", "\u00a0non\u00a0breaking\u202fspace\u2003em\u3000wide", "\u0085nel \u2028ls\u2029ps",
    "\u200bzero\u200bwidth\ufeffbom", "\u0000\u0001\u001f\u007f", "!!!???...---___***", "(x)[y]{z}<w>", "<s", "s>", "INST]",
    "[ INST ]", "</ s>", "fn main() {\n\tprintln!(\"{}\", 1 + 2);\n}\n", "https://a.example/b?c=d&e=%20#f", "a" * 100,
    "-" * 200, "ab" * 60, " " * 70 + "x", "\n" * 70, "wind" * 40, "the\u0301 wind\u0308s", "\U0010ffff\U0001f9ff\ue000",
]

ALPHABETS = [
    "abcdefghij lmnopqrstuvwxyz ", "ethe wind la galerne", "aàâäeéèêëiïîoôuùûüçœ '’-", "0123456789 .,", " \t\r\n a1.",
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ a", "漢字かな 한국 Яя Ωω", "😀👩\u200d🇫🇷\ufe0f a", "\u0301\u0308\u200b\u00a0\u2028 a1",
]


def samples():
    """Strings without the name of a control token: the library would make control tokens of them."""
    rng = random.Random(20261121)
    texts = list(FIXED)
    for alphabet in ALPHABETS:
        texts += ["".join(rng.choices(alphabet, k=rng.randint(1, 60))) for _ in range(25)]
    text = (FOLDER / "training_text.txt").read_text()
    for _ in range(60):
        start = rng.randrange(len(text))
        texts.append(text[start:start + rng.randint(1, 200)])
    points = [p for p in range(0x30000) if not 0xD800 <= p <= 0xDFFF]
    for _ in range(60):
        texts.append("".join(chr(rng.choice(points)) + rng.choice(["", "", " ", "a", "1"]) for _ in range(rng.randint(1, 25))))
    return [t for t in texts if not any(name in t for name in CONTROLS)]


CONVERSATIONS = [
    [("user", "Où est le port ?"), ("assistant", "Sur la côte.")],
    [("system", "Réponds en français."), ("user", "wind"), ("assistant", "vent"), ("user", "sea"), ("assistant", "mer")],
    [("user", "  spaces  "), ("assistant", "\n\nnew\nlines\n"), ("user", "123 456"), ("assistant", "😀")],
    [("user", "{{ bos_token }} {% if x %} <b>&amp;</b>"), ("assistant", "'quoted' \"twice\" \\ backslash")],
]


def main():
    library = tokenizers.Tokenizer.from_file(str(FOLDER / "model/tokenizer.json"))
    model = transformers.AutoTokenizer.from_pretrained(FOLDER / "model")
    rng = random.Random(7)
    encoded = []
    for text in samples():
        ids = library.encode(text, add_special_tokens=False).ids
        assert ids == model(text, add_special_tokens=False)["input_ids"] == model(text)["input_ids"], text
        encoded.append({"text": text, "ids": ids})
    decoded = []
    for _ in range(150):
        ids = [rng.randrange(library.get_vocab_size()) if rng.random() < 0.5 else 8 + rng.randrange(256)
               for _ in range(rng.randint(0, 12))]
        decoded.append({"ids": ids, "text": library.decode(ids, skip_special_tokens=True)})
    rendered = []
    for turns in CONVERSATIONS:
        for n in range(len(turns)):
            if turns[n][0] == "system":
                continue
            awaits = turns[n][0] == "user"
            messages = [{"role": role, "content": content} for role, content in turns[:n + 1]]
            options = {"add_generation_prompt": awaits}
            rendered.append({
                "messages": messages,
                "awaits_answer": awaits,
                "ids": model.apply_chat_template(messages, tokenize=True, return_dict=False, **options),
                "text": model.apply_chat_template(messages, tokenize=False, **options),
            })
    golden = {"versions": {"tokenizers": tokenizers.__version__, "transformers": transformers.__version__},
              "special": [model.bos_token_id, model.eos_token_id, model.pad_token_id],
              "encoded": encoded, "decoded": decoded, "rendered": rendered}
    lines = json.dumps(golden, ensure_ascii=True).replace("}, {", "},\n{").replace("], \"", "],\n\"")
    (FOLDER / "golden.json").write_text(lines + "\n")
    print(len(encoded), "encoded,", len(decoded), "decoded,", len(rendered), "rendered")


if __name__ == "__main__":
    main()
