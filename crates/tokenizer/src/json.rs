//! `tokenizer.json` as the `tokenizers` library reads and writes it.
//!
//! What is supported is exact: a file that asks for anything else is refused by the name of the field. All allocations
//! are in proportion to the length of the file.

use crate::encode::Merge;
use crate::error::Error;
use crate::split::DigitGroup;
use crate::tokenizer::Tokenizer;
use crate::vocabulary::{Kind, Vocabulary};
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};
use std::collections::HashMap;

/// The members of the file; absent ones count as null.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileIn {
    #[serde(rename = "version")]
    _version: IgnoredAny,
    #[serde(default)]
    truncation: Value,
    #[serde(default)]
    padding: Value,
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    model: ModelIn,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct AddedToken {
    id: u32,
    content: String,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: bool,
    special: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelIn {
    #[serde(rename = "type")]
    _model_type: IgnoredAny,
    #[serde(default)]
    dropout: Value,
    #[serde(default)]
    unk_token: Value,
    #[serde(default)]
    continuing_subword_prefix: Value,
    #[serde(default)]
    end_of_word_suffix: Value,
    #[serde(default)]
    fuse_unk: Value,
    #[serde(default)]
    byte_fallback: Value,
    #[serde(default)]
    ignore_merges: Value,
    vocab: VocabIn,
    merges: Vec<MergeIn>,
}

/// Before version 0.20 of the library a merge was one string with a space.
#[derive(Deserialize)]
#[serde(untagged)]
enum MergeIn {
    Joined(String),
    Parts(String, String),
}

/// Entries in the order of the file; a map would swallow repeated keys.
struct VocabIn(Vec<(String, u32)>);

impl<'de> Deserialize<'de> for VocabIn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<VocabIn, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = VocabIn;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a map from token to id")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<VocabIn, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(VocabIn(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// Looks at the type of the model alone, so that other models are refused by type and not by their first odd field.
#[derive(Deserialize)]
struct Probe {
    model: ProbeModel,
}

#[derive(Deserialize)]
struct ProbeModel {
    #[serde(rename = "type", default)]
    model_type: Value,
}

impl Tokenizer {
    /// Reads the contents of a `tokenizer.json`: byte-level BPE with the split of [`DigitGroup::pattern`].
    ///
    /// # Errors
    /// [`Error::Json`], [`Error::Unsupported`], [`Error::Inconsistent`]; never a panic.
    pub fn from_json(json: &[u8]) -> Result<Tokenizer, Error> {
        let probe: Probe = serde_json::from_slice(json)?;
        expect("model.type", &probe.model.model_type, &json!("BPE"))?;
        let file: FileIn = serde_json::from_slice(json)?;
        for (field, value) in [
            ("truncation", &file.truncation),
            ("padding", &file.padding),
            ("normalizer", &file.normalizer),
            ("post_processor", &file.post_processor),
            ("model.dropout", &file.model.dropout),
            ("model.unk_token", &file.model.unk_token),
        ] {
            expect(field, value, &Value::Null)?;
        }
        for (field, value, off) in [
            ("model.continuing_subword_prefix", &file.model.continuing_subword_prefix, json!("")),
            ("model.end_of_word_suffix", &file.model.end_of_word_suffix, json!("")),
            ("model.fuse_unk", &file.model.fuse_unk, json!(false)),
            ("model.byte_fallback", &file.model.byte_fallback, json!(false)),
            ("model.ignore_merges", &file.model.ignore_merges, json!(false)),
        ] {
            if !value.is_null() {
                expect(field, value, &off)?;
            }
        }
        expect("decoder", &file.decoder, &decoder())?;
        let digits = digits_of(&file.pre_tokenizer)?;
        check_added_tokens(&file.added_tokens)?;
        let entries = Entries::new(file.model.vocab.0, &file.added_tokens)?;
        let merges = entries.merges(&file.model.merges)?;
        Tokenizer::new(entries.vocabulary()?, merges, digits)
    }

    /// The contents of a `tokenizer.json`; equal tokenizers give equal bytes.
    pub fn to_json(&self) -> String {
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
            pre_tokenizer: pre_tokenizer(self.digits),
            post_processor: (),
            decoder: decoder(),
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
                merges: self
                    .merges
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

fn pre_tokenizer(digits: DigitGroup) -> Value {
    json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": digits.pattern()}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
    ]})
}

fn decoder() -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true})
}

fn digits_of(found: &Value) -> Result<DigitGroup, Error> {
    let known = DigitGroup::ALL.into_iter().find(|&digits| *found == pre_tokenizer(digits));
    known.ok_or_else(|| {
        let expected = format!("{} or its variants for digits", pre_tokenizer(DigitGroup::Two));
        unsupported("pre_tokenizer", found, expected)
    })
}

fn check_added_tokens(tokens: &[AddedToken]) -> Result<(), Error> {
    for (i, token) in tokens.iter().enumerate() {
        for (flag, got, expected) in [
            ("single_word", token.single_word, false),
            ("lstrip", token.lstrip, false),
            ("rstrip", token.rstrip, false),
            ("special", token.special, true),
        ] {
            if got != expected {
                let field = format!("added_tokens[{i}].{flag}");
                return Err(unsupported(&field, &json!(got), expected.to_string()));
            }
        }
    }
    Ok(())
}

fn expect(field: &str, got: &Value, expected: &Value) -> Result<(), Error> {
    if got == expected {
        return Ok(());
    }
    Err(unsupported(field, got, expected.to_string()))
}

fn unsupported(field: &str, got: &Value, expected: String) -> Error {
    let mut got = got.to_string();
    if let Some((cut, _)) = got.char_indices().nth(300) {
        got.truncate(cut);
        got.push_str("...");
    }
    Error::Unsupported { field: field.to_string(), expected, got }
}

fn inconsistent(field: String, problem: impl Into<String>) -> Error {
    Error::Inconsistent { field, problem: problem.into() }
}

/// All tokens of the file, by text and by id.
struct Entries {
    id_of: HashMap<String, u32>,
    /// `None` where an id is missing, until the check for gaps.
    kinds: Vec<Option<Kind>>,
}

impl Entries {
    fn new(vocab: Vec<(String, u32)>, added: &[AddedToken]) -> Result<Entries, Error> {
        let mut id_of = HashMap::with_capacity(vocab.len() + added.len());
        let mut kinds = vec![None; vocab.len() + added.len()];
        for (text, id) in vocab {
            let field = || format!("model.vocab[{text:?}]");
            let kind = kinds.get_mut(id as usize).ok_or_else(|| {
                inconsistent(field(), format!("the id {id} is not below the number of tokens"))
            })?;
            if kind.replace(Kind::Ordinary).is_some() {
                return Err(inconsistent(field(), format!("the id {id} has another token")));
            }
            if id_of.insert(text.clone(), id).is_some() {
                return Err(inconsistent(field(), "the token is there twice"));
            }
        }
        for (i, token) in added.iter().enumerate() {
            let field = || format!("added_tokens[{i}]");
            let known = id_of.get(&token.content).copied();
            let kind = kinds.get_mut(token.id as usize).ok_or_else(|| {
                inconsistent(
                    field(),
                    format!("the id {} is not below the number of tokens", token.id),
                )
            })?;
            match (known, *kind) {
                (Some(id), _) if id != token.id => {
                    let problem = format!("`{}` has the id {id} in model.vocab", token.content);
                    return Err(inconsistent(field(), problem));
                }
                (Some(_), Some(Kind::Control)) => {
                    return Err(inconsistent(field(), "the token is there twice"));
                }
                (None, Some(_)) => {
                    let problem = format!("the id {} has another token", token.id);
                    return Err(inconsistent(field(), problem));
                }
                _ => *kind = Some(Kind::Control),
            }
            id_of.insert(token.content.clone(), token.id);
        }
        kinds.truncate(id_of.len());
        Ok(Entries { id_of, kinds })
    }

    fn merges(&self, merges: &[MergeIn]) -> Result<Vec<Merge>, Error> {
        let mut found = Vec::with_capacity(merges.len());
        let mut joined = String::new();
        for (rank, merge) in merges.iter().enumerate() {
            let field = || format!("model.merges[{rank}]");
            let (left, right) = match merge {
                MergeIn::Parts(left, right) => (left.as_str(), right.as_str()),
                MergeIn::Joined(text) => text
                    .split_once(' ')
                    .ok_or_else(|| inconsistent(field(), format!("{text:?} is not two tokens")))?,
            };
            joined.clear();
            joined.push_str(left);
            joined.push_str(right);
            let id = |text: &str| match self.id_of.get(text) {
                None => {
                    Err(inconsistent(field(), format!("the token {text:?} is not in model.vocab")))
                }
                Some(&id) if self.kinds.get(id as usize) == Some(&Some(Kind::Control)) => {
                    Err(inconsistent(field(), format!("{text:?} is a control token")))
                }
                Some(&id) => Ok(id),
            };
            found.push(Merge { left: id(left)?, right: id(right)?, result: id(&joined)? });
        }
        Ok(found)
    }

    /// Tokens by id, once no id is missing.
    fn vocabulary(&self) -> Result<Vocabulary, Error> {
        let mut texts = vec![""; self.kinds.len()];
        for (text, &id) in &self.id_of {
            *texts.get_mut(id as usize).ok_or_else(|| {
                let problem =
                    format!("the id {id} leaves a gap: there are {} tokens", self.id_of.len());
                inconsistent(format!("model.vocab[{text:?}]"), problem)
            })? = text.as_str();
        }
        let byte_of: HashMap<char, u8> = (0..=u8::MAX).map(|b| (char_of_byte(b), b)).collect();
        let mut vocabulary = Vocabulary::default();
        let mut bytes = Vec::new();
        for (id, (text, kind)) in texts.iter().zip(&self.kinds).enumerate() {
            let field = || format!("model.vocab[{text:?}]");
            let kind =
                kind.ok_or_else(|| inconsistent(field(), format!("no token has the id {id}")))?;
            if text.is_empty() {
                return Err(inconsistent(field(), "the token is empty"));
            }
            if kind == Kind::Control {
                vocabulary.push(text.as_bytes(), kind);
                continue;
            }
            bytes.clear();
            for c in text.chars() {
                bytes.push(*byte_of.get(&c).ok_or_else(|| {
                    inconsistent(field(), format!("{c:?} does not stand for a byte"))
                })?);
            }
            vocabulary.push(&bytes, kind);
        }
        Ok(vocabulary)
    }
}

/// The character that stands for a byte, as GPT-2 chose: itself if it can be seen, else one from U+0100 on.
fn char_of_byte(byte: u8) -> char {
    let shifted = match byte {
        0..=0x20 => u32::from(byte),
        0x7F..=0xA0 => u32::from(byte) - 0x7F + 0x21,
        0xAD => 0x43,
        _ => return char::from(byte),
    };
    char::from_u32(0x100 + shifted).expect("U+0100 to U+0143 are characters")
}
