//! Byte-level BPE, tokenizer.json, chat templates with loss masks.
