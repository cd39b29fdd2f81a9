//! The vocabulary, the merges and the added tokens of `tokenizer.json`.

use super::{AddedToken, MergeIn, inconsistent};
use crate::encode::Merge;
use crate::error::Error;
use crate::sentencepiece::byte_of;
use crate::split::SPACE_SIGN;
use crate::vocabulary::{Kind, Vocabulary};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::collections::HashMap;

/// The longest word of `model.vocab`, in the bytes that it stands for: whoever waits for a token, such as the stream of an
/// answer, holds that much. Published vocabularies have runs of 128 spaces (Llama 3, Qwen) and some longer ones, so this
/// leaves room; merges are listed in the file, and need no tighter bound as implied ones do.
const MAX_WORD_BYTES: usize = 1024;

/// Entries in the order of the file; a map would swallow repeated keys.
pub(super) struct VocabIn(pub(super) Vec<(String, u32)>);

impl<'de> Deserialize<'de> for VocabIn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<VocabIn, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
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
        deserializer.deserialize_map(Pairs)
    }
}

/// How the file writes the bytes of a token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Spelling {
    /// A character for each byte.
    ByteLevel,
    /// As it is, with U+2581 for the space, and `<0x0A>` for single bytes.
    Pieces,
}

/// What an entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Entry {
    /// Of `model.vocab`.
    Word,
    /// An added token that is found in text.
    Added,
    /// An added token that text does not yield.
    Control,
}

/// All tokens of the file, by text and by id.
pub(super) struct Entries {
    id_of: HashMap<String, u32>,
    /// `None` where an id is missing, until the check for gaps.
    kinds: Vec<Option<Entry>>,
}

impl Entries {
    pub(super) fn new(vocab: Vec<(String, u32)>, added: &[AddedToken]) -> Result<Entries, Error> {
        let mut id_of = HashMap::with_capacity(vocab.len() + added.len());
        let mut kinds = vec![None; vocab.len() + added.len()];
        for (text, id) in vocab {
            let field = || format!("model.vocab[{text:?}]");
            let kind = kinds.get_mut(id as usize).ok_or_else(|| {
                inconsistent(field(), format!("the id {id} is not below the number of tokens"))
            })?;
            if kind.replace(Entry::Word).is_some() {
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
                (Some(_), Some(Entry::Control | Entry::Added)) => {
                    return Err(inconsistent(field(), "the token is there twice"));
                }
                (None, Some(_)) => {
                    let problem = format!("the id {} has another token", token.id);
                    return Err(inconsistent(field(), problem));
                }
                _ => *kind = Some(if token.special { Entry::Control } else { Entry::Added }),
            }
            id_of.insert(token.content.clone(), token.id);
        }
        kinds.truncate(id_of.len());
        Ok(Entries { id_of, kinds })
    }

    fn kind(&self, id: u32) -> Option<Entry> {
        self.kinds.get(id as usize).copied().flatten()
    }

    pub(super) fn merges(&self, merges: &[MergeIn]) -> Result<Vec<Merge>, Error> {
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
                Some(&id) if self.kind(id) == Some(Entry::Control) => {
                    Err(inconsistent(field(), format!("{text:?} is a control token")))
                }
                Some(&id) => Ok(id),
            };
            found.push(Merge { left: id(left)?, right: id(right)?, result: id(&joined)? });
        }
        Ok(found)
    }

    /// Tokens that are one character.
    pub(super) fn characters(&self) -> impl Iterator<Item = (char, u32)> {
        self.id_of.iter().filter(|(_, id)| self.kind(**id) != Some(Entry::Control)).filter_map(
            |(text, id)| {
                let mut rest = text.chars();
                let first = rest.next()?;
                rest.next().is_none().then_some((first, *id))
            },
        )
    }

    /// Ids of `model.vocab` that are no control token.
    pub(super) fn words(&self) -> impl Iterator<Item = u32> {
        (0..self.kinds.len() as u32).filter(|&id| self.kind(id) == Some(Entry::Word))
    }

    /// Added tokens that are found in text.
    pub(super) fn added_texts(&self) -> HashMap<String, u32> {
        let added = self.id_of.iter().filter(|(_, id)| self.kind(**id) == Some(Entry::Added));
        added.map(|(text, id)| (text.clone(), *id)).collect()
    }

    /// Tokens by id, once no id is missing.
    pub(super) fn vocabulary(&self, spelling: Spelling) -> Result<Vocabulary, Error> {
        let mut texts = vec![""; self.kinds.len()];
        for (text, &id) in &self.id_of {
            *texts.get_mut(id as usize).ok_or_else(|| {
                let problem =
                    format!("the id {id} leaves a gap: there are {} tokens", self.id_of.len());
                inconsistent(format!("model.vocab[{text:?}]"), problem)
            })? = text.as_str();
        }
        let byte_of_char: HashMap<char, u8> = (0..=u8::MAX).map(|b| (char_of_byte(b), b)).collect();
        let mut vocabulary = Vocabulary::default();
        let mut bytes = Vec::new();
        for (id, (text, kind)) in texts.iter().zip(&self.kinds).enumerate() {
            let field = || format!("model.vocab[{text:?}]");
            let kind =
                kind.ok_or_else(|| inconsistent(field(), format!("no token has the id {id}")))?;
            if text.is_empty() {
                return Err(inconsistent(field(), "the token is empty"));
            }
            match (kind, spelling) {
                (Entry::Control, _) => vocabulary.push(text.as_bytes(), Kind::Control),
                (Entry::Added, Spelling::ByteLevel) => {
                    vocabulary.push(text.as_bytes(), Kind::Ordinary);
                }
                (Entry::Word, Spelling::ByteLevel) => {
                    bytes.clear();
                    for c in text.chars() {
                        bytes.push(*byte_of_char.get(&c).ok_or_else(|| {
                            inconsistent(field(), format!("{c:?} does not stand for a byte"))
                        })?);
                    }
                    check_length(&bytes, id)?;
                    vocabulary.push(&bytes, Kind::Ordinary);
                }
                (Entry::Added | Entry::Word, Spelling::Pieces) => match byte_of(text) {
                    Some(byte) => vocabulary.push(&[byte], Kind::Byte),
                    None => {
                        let text = text.replace(SPACE_SIGN, " ");
                        check_length(text.as_bytes(), id)?;
                        vocabulary.push(text.as_bytes(), Kind::Ordinary);
                    }
                },
            }
        }
        Ok(vocabulary)
    }
}

/// Names a word by its id: a message does not repeat what is too long.
fn check_length(bytes: &[u8], id: usize) -> Result<(), Error> {
    let n_bytes = bytes.len();
    if n_bytes <= MAX_WORD_BYTES {
        return Ok(());
    }
    let problem = format!("the token has {n_bytes} bytes, expected at most {MAX_WORD_BYTES}");
    Err(inconsistent(format!("model.vocab, id {id}"), problem))
}

/// The character that stands for a byte, as GPT-2 chose: itself if it can be seen, else one from U+0100 on.
pub(crate) fn char_of_byte(byte: u8) -> char {
    let shifted = match byte {
        0..=0x20 => u32::from(byte),
        0x7F..=0xA0 => u32::from(byte) - 0x7F + 0x21,
        0xAD => 0x43,
        _ => return char::from(byte),
    };
    char::from_u32(0x100 + shifted).expect("U+0100 to U+0143 are characters")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_bounded_by_the_bytes_that_they_stand_for() {
        // Two bytes of the file for each space.
        let spaces = |n: usize| vec![("\u{120}".repeat(n), 0)];
        let entries = |words| Entries::new(words, &[]).unwrap();
        assert!(entries(spaces(1024)).vocabulary(Spelling::ByteLevel).is_ok());
        let pieces = vec![("a".repeat(1025), 0)];
        for (words, spelling) in [(spaces(1025), Spelling::ByteLevel), (pieces, Spelling::Pieces)] {
            let error = entries(words).vocabulary(spelling).err().unwrap().to_string();
            assert!(error.contains("1025 bytes") && error.len() < 200, "{error}");
        }
    }
}
