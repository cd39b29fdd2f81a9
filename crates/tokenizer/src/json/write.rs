//! Writing a tokenizer that was trained here.

use super::entries::char_of_byte;
use super::{AddedToken, TOKENIZER_FILE};
use crate::encode::Merge;
use crate::split::{OWN_SPLIT, Split};
use crate::tokenizer::{Origin, Tokenizer};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

impl Tokenizer {
    /// The contents of a `tokenizer.json`; equal tokenizers of the kind that is trained here give equal bytes, others
    /// the file that they were read from. `None` for those that come from another kind of file.
    pub fn to_json(&self) -> Option<String> {
        match &self.origin {
            Origin::Own { merges } => Some(self.own_json(merges)),
            Origin::File { name, contents } if *name == TOKENIZER_FILE => {
                Some(String::from_utf8_lossy(contents).into_owned())
            }
            Origin::File { .. } => None,
        }
    }

    pub(crate) fn own_json(&self, merges: &[Merge]) -> String {
        let added_tokens: Vec<AddedToken> = (0..self.vocab_size() as u32)
            .filter(|&id| self.is_control(id))
            .map(|id| AddedToken {
                id,
                content: self.token_text(id),
                single_word: false,
                lstrip: false,
                rstrip: false,
                normalized: false,
                special: true,
            })
            .collect();
        let file = FileOut {
            version: "1.0",
            truncation: (),
            padding: (),
            added_tokens,
            normalizer: (),
            pre_tokenizer: sorted(byte_level_pre_tokenizer(&OWN_SPLIT)),
            post_processor: (),
            decoder: sorted(byte_level_decoder()),
            model: ModelOut {
                model_type: "BPE",
                dropout: (),
                unk_token: (),
                continuing_subword_prefix: (),
                end_of_word_suffix: (),
                fuse_unk: false,
                byte_fallback: false,
                ignore_merges: false,
                vocab: VocabOut(self),
                merges: merges
                    .iter()
                    .map(|m| format!("{} {}", self.token_text(m.left), self.token_text(m.right)))
                    .collect(),
            },
        };
        let mut text = serde_json::to_string_pretty(&file).expect("all keys are strings");
        text.push('\n');
        text
    }

    /// A token as the file spells it.
    fn token_text(&self, token_id: u32) -> String {
        let bytes = self.bytes_or_replacement(token_id);
        if self.is_control(token_id) {
            String::from_utf8_lossy(bytes).into_owned()
        } else {
            bytes.iter().map(|&byte| char_of_byte(byte)).collect()
        }
    }
}

/// A part with its fields in alphabetical order. Which order a [`Value`] keeps depends on what else the program is built with, and the digest
/// is one of these bytes.
fn sorted(mut part: Value) -> Value {
    part.sort_all_objects();
    part
}

#[derive(Serialize)]
struct FileOut<'a> {
    version: &'static str,
    truncation: (),
    padding: (),
    added_tokens: Vec<AddedToken>,
    normalizer: (),
    pre_tokenizer: Value,
    post_processor: (),
    decoder: Value,
    model: ModelOut<'a>,
}

#[derive(Serialize)]
struct ModelOut<'a> {
    #[serde(rename = "type")]
    model_type: &'static str,
    dropout: (),
    unk_token: (),
    continuing_subword_prefix: (),
    end_of_word_suffix: (),
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    vocab: VocabOut<'a>,
    merges: Vec<String>,
}

/// A map in the order of the ids.
struct VocabOut<'a>(&'a Tokenizer);

impl Serialize for VocabOut<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.vocab_size()))?;
        for id in 0..self.0.vocab_size() as u32 {
            map.serialize_entry(&self.0.token_text(id), &id)?;
        }
        map.end()
    }
}

/// GPT-2's rule has a name of its own.
pub(crate) fn byte_level_pre_tokenizer(split: &Split) -> Value {
    if *split == Split::Gpt2 {
        return json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    }
    let pattern = split.pattern();
    json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
    ]})
}

pub(crate) fn byte_level_decoder() -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true})
}
