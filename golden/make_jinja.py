#!/usr/bin/env python3
"""Writes golden/jinja/golden.json: what `transformers` makes of the templates of golden/jinja.

Needs the versions of golden/requirements.txt. Run from the root of the repository.
"""
import json
import pathlib

import jinja2
import transformers

FOLDER = pathlib.Path(__file__).parent / "jinja"

CONVERSATIONS = [
    [("user", "Où est le port ?")],
    [("user", "wind"), ("assistant", "west"), ("user", "and the sea?")],
    [("system", "  Réponds en français.\n"), ("user", "vent"), ("assistant", "  ouest \n"), ("user", "\tmer\t")],
    [("system", "s"), ("user", "  two words, indented")],
    [("user", "JSON please: {\"a\": [1, 2.5, \"é\"], 'b': <tag> & 'q'}"), ("assistant", "json"), ("user", "j\n\nson")],
    [("user", "a"), ("user", "b")],
    [("assistant", "I speak first."), ("user", "b")],
    [("system", "s"), ("user", "u"), ("system", "t"), ("user", "v")],
    [("user", "")],
    [("user", "{{ bos_token }} {% if x %} {# no #} <b>&amp;</b> 😀 \\ \\n")],
    [("user", "< s> </ s> [ INST ] [INS")],
]


def main():
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER / "../tokenizer/model")
    cases = []
    for path in sorted(FOLDER.glob("*.jinja")):
        template = path.read_text()
        for turns in CONVERSATIONS:
            messages = [{"role": role, "content": content} for role, content in turns]
            case = {"template": path.name, "messages": messages}
            try:
                case["text"] = tokenizer.apply_chat_template(
                    messages, chat_template=template, tokenize=False, add_generation_prompt=True)
                case["ids"] = tokenizer(case["text"], add_special_tokens=False)["input_ids"]
            except jinja2.exceptions.TemplateError as error:
                case["refused"] = str(error)
            cases.append(case)
    assert sum("refused" in case for case in cases) >= 3
    versions = {"transformers": transformers.__version__, "jinja2": jinja2.__version__}
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    (FOLDER / "golden.json").write_text(f'{{"versions": {json.dumps(versions)}, "cases": [\n{lines}\n]}}\n')
    print(f"golden/jinja/golden.json: {len(cases)} cases of {versions}")


if __name__ == "__main__":
    main()
