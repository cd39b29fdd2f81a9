#!/usr/bin/env python3
"""Makes tiny tokenizers of the Mistral and Llama family and records what the Python packages make of adversarial texts.

`tokenizer/family/NAME` is the tokenizer's file and `tokenizer/family/NAME.expected.json` has, by the package that defines the kind, the ids of
`tokenizer/family/texts.json` (null where the package would find a special token in the text) and the texts of lists of ids:

| Kind | Files | Package |
|---|---|---|
| SentencePiece BPE with byte fallback | `*.model` | sentencepiece |
| Tekken | `*.tekken.json` | mistral-common |
| tokenizer.json | `*.tokenizer.json` | tokenizers |

`tokenizer/family/words.json` has the words that the regular expressions cut out of texts, by tokenizers.

Needs sentencepiece==0.2.3, mistral-common==1.13.1, tiktoken==0.14.0, tokenizers==0.23.3. Run from the root of the
repository.
"""

import base64
import io
import json
import pathlib
import random
import struct

import sentencepiece
import tokenizers
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from random_texts import CONTROL_LIKE, EMOJI, MARKS, SPACES, WORDS, random_text

FOLDER = pathlib.Path("golden/tokenizer/family")
SEED = 11
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
PLAIN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WRITTEN = [
    "", " ", "  ", "a", " a", "▁", "▁a", " ▁ a", "[REF]", "[REF] a", " [REF][REF]b", "a[REF", "\n", "\x00\x01", "é", "漢",
    "I'll 'S 'ſ don'T 'RE", "<tool>", "a <tool>b</tool> <tools>", "<tool><tool> x", "windwindwind", "Galerne Galernes",
    "🙂🙂", "a" * 300, "ab" * 200, " " * 100, "-" * 130, "the wind of the sea " * 12, "12345 678",
]


def training_lines(source):
    """Words of many scripts in random order, now and then with runs of spaces: no text of anybody."""
    joints = [" ", " ", " ", "  ", "    "]
    return [source.choice(joints).join(source.choice(WORDS) for _ in range(source.randint(3, 12))) for _ in range(600)]


def texts_of(source):
    """The texts that every tokenizer encodes."""
    letters = [*WORDS, *SPACES, *EMOJI, *MARKS, *CONTROL_LIKE]
    found = WRITTEN + [random_text(source, letters) for _ in range(128)]
    return [text for text in found if len(text) <= 500]


def train_pieces(lines):
    """A SentencePiece model as Mistral's are made, with one user-defined piece."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=out, model_type="bpe", vocab_size=620, byte_fallback=True,
        normalization_rule_name="identity", add_dummy_prefix=True, remove_extra_whitespaces=False, split_digits=True,
        allow_whitespace_only_pieces=True, character_coverage=0.98, control_symbols=["[INST]", "[/INST]", "[control_2]"],
        user_defined_symbols=["[REF]", "[/REF]"], num_threads=1, minloglevel=2)
    return out.getvalue()


def varint(data, at):
    """A number and the position after it."""
    number = shift = 0
    while True:
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at


def pieces_of(model):
    """Positions and lengths of the piece messages: field 1 of the model."""
    at = 0
    while at < len(model):
        tag, at = varint(model, at)
        size, at = varint(model, at)
        if tag == 10:
            yield at, size
        at += size


def with_equal_scores(model):
    """The same model in which three pieces at a time share a score, as vocabularies that were extended by hand do."""
    changed = bytearray(model)
    for start, size in pieces_of(model):
        at = model.index(b"\x15", start + 2 + model[start + 1], start + size)
        score = struct.unpack("<f", model[at + 1 : at + 5])[0]
        changed[at + 1 : at + 5] = struct.pack("<f", float(score // 3))
    return bytes(changed)


def write_tekken(lines):
    """Byte-level tokens in the order of learning, some that no merges lead to, and more than are used."""
    byte_level = train_byte_level(lines, TEKKEN, 600)
    spelled = {char: byte for byte, char in bytes_to_unicode().items()}
    vocabulary = json.loads(byte_level.to_str())["model"]["vocab"]
    learned = sorted((text for text in vocabulary if len(text) > 1), key=vocabulary.get)
    tokens = [bytes([byte]) for byte in range(256)] + [bytes(spelled[c] for c in text) for text in learned]
    tokens += [token for token in [b" Galernes", b"windwind", "漢字漢".encode()] if token not in tokens]
    n_used = len(tokens)
    tokens += [b"never used", b"nor this"]
    vocab = [{"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": text_or_none(token)}
             for rank, token in enumerate(tokens)]
    config = {"pattern": TEKKEN, "num_vocab_tokens": len(tokens), "default_vocab_size": n_used + 40,
              "default_num_special_tokens": 40, "version": "v3"}
    image = {"image_patch_size": 16, "max_image_size": 1024}
    write("v3.tekken.json", {"config": config, "vocab": vocab, "image": image})
    names = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[ARGS]", "[CALL_ID]", "<pad>", "[THINK]"]
    special = [{"rank": rank, "token_str": name, "is_control": True} for rank, name in enumerate(names)]
    config = {**config, "default_vocab_size": n_used + 20, "default_num_special_tokens": 20, "version": "v13"}
    write("v13.tekken.json", {"config": config, "vocab": vocab, "special_tokens": special, "type": "Tekken",
                              "version": 1})


def bytes_to_unicode():
    """The characters that stand for bytes, as GPT-2 chose."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {**{byte: chr(byte) for byte in seen}, **{byte: chr(256 + i) for i, byte in enumerate(hidden)}}


def text_or_none(token):
    """The token as text, where it is UTF-8."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return None


def write_words(source):
    """What the regular expressions cut: tokens show it only where some token reaches across a cut."""
    signs = ["a", "b", "A", "B", "É", "é", "ǅ", "漢", "ª", "ʰ", "\u0301", "\u093f", "1", "٣", "½", " ", " ", "  ", "\t", "\u00a0",
             "\u2003", "\u2028", "\n", "\r\n", "!", "-", "/", "//", "'", "'s", "'ll", "'VE", "'ſ", "'D", "🙂", "\u200d", "_", "\x00"]
    texts = ["".join(source.choice(signs) for _ in range(source.randint(1, 14))) for _ in range(300)]
    cut = {}
    for pattern in [TEKKEN, LLAMA_3, PLAIN, GPT_2]:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        cut[pattern] = [[word for word, _ in split.pre_tokenize_str(text)] for text in texts]
    write("words.json", cut)


def train_byte_level(lines, pattern, vocab_size):
    """Byte-level BPE on a pattern; without one, that of GPT-2."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    if pattern:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, spell])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def special(name):
    """A control token."""
    return AddedToken(name, normalized=False, special=True)


def bos_template(tokenizer, name):
    """BOS before a text."""
    bos_id = tokenizer.token_to_id(name)
    return processors.TemplateProcessing(single=f"{name} $A", pair=f"{name} $A {name}:1 $B:1",
                                         special_tokens=[(name, bos_id)])


def write_byte_level(lines):
    """Files of the kinds of Llama 3, Mistral Nemo and GPT-2."""
    llama = train_byte_level(lines, LLAMA_3, 520)
    file = json.loads(llama.to_str())
    file["model"]["ignore_merges"] = True
    for word in ["ĠGalernes", "windwind"]:
        file["model"]["vocab"].setdefault(word, len(file["model"]["vocab"]))
    llama = tokenizers.Tokenizer.from_str(json.dumps(file))
    llama.add_special_tokens([special(name) for name in ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]])
    llama.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), bos_template(llama, "<|begin_of_text|>")])
    write("llama3.tokenizer.json", json.loads(llama.to_str()))

    nemo = train_byte_level(lines, TEKKEN, 500)
    nemo.add_special_tokens([special(name) for name in ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]])
    nemo.add_tokens([AddedToken(name, normalized=normalized) for name, normalized in
                     [("<tool>", False), ("</tool>", True), ("<tools>", True), ("la mer", False)]])
    nemo.post_processor = bos_template(nemo, "<s>")
    write("nemo.tokenizer.json", json.loads(nemo.to_str()))

    plain = train_byte_level(lines, PLAIN, 480)
    plain.add_special_tokens([special(name) for name in ["<s>", "</s>"]])
    write("plain.tokenizer.json", json.loads(plain.to_str()))

    gpt2 = train_byte_level(lines, None, 480)
    gpt2.add_special_tokens([special(name) for name in ["<s>", "</s>"]])
    gpt2.post_processor = processors.ByteLevel(trim_offsets=False)
    write("gpt2.tokenizer.json", json.loads(gpt2.to_str()))


def write_pieces(model):
    """Files of the kinds that SentencePiece models are converted to."""
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    vocabulary = {pieces.id_to_piece(index): index for index in range(pieces.get_piece_size())}
    normal = {text: index for text, index in vocabulary.items()
              if not (pieces.is_control(index) or pieces.is_unknown(index) or pieces.is_byte(index) or text[0] == "[")}
    merges = [(normal[text[:cut] + text[cut:]], (text[:cut], text[cut:])) for text in normal
              for cut in range(1, len(text)) if text[:cut] in normal and text[cut:] in normal]
    merges = [pair for _, pair in sorted(merges, key=lambda merge: (merge[0], normal[merge[1][0]]))]

    def fresh():
        made = tokenizers.Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        made.add_special_tokens([special(name) for name in ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]])
        made.post_processor = bos_template(made, "<s>")
        parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        made.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)])
        return made

    llama = fresh()
    llama.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    llama.add_tokens([AddedToken("<tool>", normalized=False)])
    write("llama2.tokenizer.json", json.loads(llama.to_str()))
    for name, scheme, split in [("first", "first", False), ("always", "always", True), ("never", "never", False)]:
        made = fresh()
        made.pre_tokenizer = pre_tokenizers.Metaspace("▁", scheme, split)
        made.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("</tool>", normalized=True)])
        if scheme == "never":
            parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
            made.decoder = decoders.Sequence(parts)
        write(f"{name}.tokenizer.json", json.loads(made.to_str()))


def write(name, value):
    """One file of the folder."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    (FOLDER / name).write_text(text + "\n", encoding="utf-8")


def reference_of(path):
    """Functions that encode and decode, and the number of ids."""
    if path.suffix == ".model":
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
        return pieces.encode, pieces.decode, pieces.get_piece_size()
    if path.name.endswith(".tekken.json"):
        tekken = Tekkenizer.from_file(path)
        return lambda text: tekken.encode(text, bos=False, eos=False), tekken.decode, tekken.n_words
    made = tokenizers.Tokenizer.from_file(str(path))
    control = [token.content for token in made.get_added_tokens_decoder().values() if token.special]

    def encode(text):
        if any(name in text for name in control):
            return None
        return made.encode(text, add_special_tokens=False).ids

    return encode, made.decode, made.get_vocab_size()


def record(path, texts, source):
    """Writes what the package makes of texts and of ids."""
    encode, decode, n_ids = reference_of(path)
    encoded = [encode(text) for text in texts]
    lists = [ids for ids in encoded if ids]
    # The tokenizers package decodes a run of byte tokens all or nothing: cut characters are recorded for the others.
    if path.name.endswith((".model", ".tekken.json")) or "ByteFallback" not in path.read_text(encoding="utf-8"):
        cut = [ids[source.randrange(len(ids)) :][:12] for ids in lists]
        lists += cut + [[source.randrange(1, n_ids) for _ in range(8)] for _ in range(40)]
    decoded = [{"ids": ids, "text": decode(ids)} for ids in lists[-70:]]
    write(f"{path.name}.expected.json", {"ids": encoded, "decoded": decoded})
    return {"tokenizer": path.name, "texts": sum(ids is not None for ids in encoded), "decoded": len(decoded)}


def main():
    source = random.Random(SEED)
    FOLDER.mkdir(exist_ok=True)
    for path in FOLDER.iterdir():
        path.unlink()
    lines = training_lines(source)
    model = train_pieces(lines)
    (FOLDER / "tiny.model").write_bytes(model)
    (FOLDER / "equal_scores.model").write_bytes(with_equal_scores(model))
    write_tekken(lines)
    write_byte_level(lines)
    write_pieces(model)
    paths = sorted(FOLDER.iterdir())
    texts = texts_of(source)
    write("texts.json", texts)
    write_words(source)
    for path in paths:
        print(json.dumps(record(path, texts, source)))


if __name__ == "__main__":
    main()
