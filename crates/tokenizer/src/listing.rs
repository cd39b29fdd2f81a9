//! A vocabulary as a plain list of tokens, which is how GGUF files hold it, from and to a tokenizer.
//!
//! A list is turned into the file that it once came from, `tokenizer.model` or `tokenizer.json`, and that is read: so
//! there is one reader of each kind, and the tokenizer can be written as a file again.

mod tekken_merges;

use crate::error::Error;
use crate::json::{self, char_of_byte};
use crate::sentencepiece::{self, MODEL_FILE};
use crate::split::{DigitGroup, OWN_SPLIT, Split};
use crate::tekken::TEKKEN_FILE;
use crate::tokenizer::{Origin, Tokenizer};
use crate::vocabulary::Kind;
use serde_json::{Map, Value, json};
use std::collections::HashSet;

/// Tokens by id, and how text becomes tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct VocabularyListing {
    /// Texts and kinds; in [`Encoding::Bytes`] with a character for each byte, as in `tokenizer.json`.
    pub tokens: Vec<(String, ListedKind)>,
    /// How text becomes tokens.
    pub encoding: Encoding,
    /// The token that begins a text.
    pub bos_id: Option<u32>,
    /// The token that ends a text.
    pub eos_id: Option<u32>,
    /// Whether BOS stands before a text.
    pub adds_bos: bool,
}

/// What a listed token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListedKind {
    /// A piece of text.
    Normal,
    /// What text without a token becomes.
    Unknown,
    /// Nothing that text can hold.
    Control,
    /// Found in text wherever it stands.
    UserDefined,
    /// One byte of a character without a token.
    Byte,
}

/// How text becomes tokens.
#[derive(Clone, Debug, PartialEq)]
pub enum Encoding {
    /// As SentencePiece: characters are merged to the piece with the highest score.
    Pieces {
        /// By id.
        scores: Vec<f32>,
        /// Whether a space stands before a text.
        adds_space: bool,
    },
    /// Bytes are merged, within words.
    Bytes {
        /// Two texts with a space between, the first to be merged first.
        merges: Vec<String>,
        /// The rule that cuts text, by the name that llama.cpp gives it.
        split: String,
    },
}

/// The rules that llama.cpp and we know: its names, and whether a word that is a token is that token.
const SPLITS: [(&[&str], Split, bool); 4] = [
    (&["qwen2", "stablelm2"], OWN_SPLIT, false),
    (&["llama-bpe", "llama3", "llama-v3"], Split::Contractions(DigitGroup::Three), true),
    (&["tekken", "pixtral"], Split::Cased, true),
    (&["gpt-2"], Split::Gpt2, false),
];

impl Tokenizer {
    /// The tokenizer of a list.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a rule that is not known, and those of [`Tokenizer::from_json`] and
    /// [`Tokenizer::from_sentencepiece`], which name the place in the file that the list becomes.
    pub fn from_listing(listing: &VocabularyListing) -> Result<Tokenizer, Error> {
        let listing = &with_controls(listing);
        let name = |id: Option<u32>| Some(listing.tokens.get(id? as usize)?.0.as_str());
        let (bos, eos) = (name(listing.bos_id), name(listing.eos_id));
        let mut tokenizer = match &listing.encoding {
            Encoding::Pieces { scores, adds_space } => {
                let file = sentencepiece::write(&listing.tokens, scores, *adds_space, [bos, eos]);
                Tokenizer::from_sentencepiece(&file)?
            }
            Encoding::Bytes { merges, split } => {
                let file = byte_level_json(listing, merges, split, bos)?;
                Tokenizer::from_json_with(&file, bos, eos)?
            }
        };
        tokenizer.adds_bos = Some(listing.adds_bos);
        Ok(tokenizer)
    }

    /// The list of a tokenizer.
    ///
    /// # Errors
    /// [`Error::NotListed`] for a tokenizer that such a list cannot describe.
    pub fn listing(&self) -> Result<VocabularyListing, Error> {
        let (encoding, tokens) = match &self.origin {
            Origin::Own { merges } => {
                let joined =
                    |left, right| format!("{} {}", self.spelled(left), self.spelled(right));
                let merges = merges.iter().map(|merge| joined(merge.left, merge.right)).collect();
                (Encoding::Bytes { merges, split: SPLITS[0].0[0].to_string() }, self.byte_tokens())
            }
            Origin::File { name, contents } if *name == MODEL_FILE => {
                let (tokens, scores, adds_space) = sentencepiece::list(contents)?;
                (Encoding::Pieces { scores, adds_space }, tokens)
            }
            Origin::File { name, contents } => {
                let (split, takes_whole_words) = self.split_of_llama_cpp()?;
                let merges = match *name {
                    TEKKEN_FILE => tekken_merges::merges(self),
                    _ => json::listed_merges(contents, takes_whole_words)?,
                };
                (Encoding::Bytes { merges, split: split.to_string() }, self.byte_tokens())
            }
        };
        Ok(VocabularyListing {
            tokens,
            encoding,
            bos_id: Some(self.bos_id()),
            eos_id: Some(self.eos_id()),
            adds_bos: self.adds_bos != Some(false),
        })
    }

    fn split_of_llama_cpp(&self) -> Result<(&'static str, bool), Error> {
        let found = SPLITS.iter().find(|(_, split, _)| *split == self.split);
        let problem = "no rule of llama.cpp cuts text as this tokenizer does".to_string();
        found.map(|(names, _, whole)| (names[0], *whole)).ok_or(Error::NotListed { problem })
    }

    /// The tokens of a byte-level vocabulary.
    fn byte_tokens(&self) -> Vec<(String, ListedKind)> {
        let added: HashSet<u32> = self.added.iter().flat_map(|added| added.ids()).collect();
        let token = |id| {
            let kind = match self.vocabulary.kind(id) {
                Some(Kind::Control) => ListedKind::Control,
                _ if added.contains(&id) => ListedKind::UserDefined,
                _ => ListedKind::Normal,
            };
            match kind {
                ListedKind::Normal => (self.spelled(id), kind),
                _ => (String::from_utf8_lossy(self.bytes_or_replacement(id)).into_owned(), kind),
            }
        };
        (0..self.vocab_size() as u32).map(token).collect()
    }

    /// A token with a character for each byte.
    fn spelled(&self, id: u32) -> String {
        self.bytes_or_replacement(id).iter().map(|&byte| char_of_byte(byte)).collect()
    }
}

/// The list with BOS and EOS as control tokens, which llama.cpp takes them for whatever their kind is.
fn with_controls(listing: &VocabularyListing) -> VocabularyListing {
    let mut listing = listing.clone();
    for id in [listing.bos_id, listing.eos_id].into_iter().flatten() {
        if let Some((_, kind)) = listing.tokens.get_mut(id as usize) {
            *kind = ListedKind::Control;
        }
    }
    listing
}

/// The `tokenizer.json` of a byte-level list.
fn byte_level_json(
    listing: &VocabularyListing,
    merges: &[String],
    split: &str,
    bos: Option<&str>,
) -> Result<Vec<u8>, Error> {
    let known = SPLITS.iter().find(|(names, _, _)| names.contains(&split));
    let (_, rule, takes_whole_words) = known.ok_or_else(|| {
        let names = SPLITS.iter().map(|(names, _, _)| names[0]).collect::<Vec<_>>().join(", ");
        let (field, got) = ("pre-tokenizer".to_string(), split.chars().take(80).collect());
        Error::Unsupported { file: "vocabulary", field, expected: format!("one of {names}"), got }
    })?;
    let mut vocab = Map::with_capacity(listing.tokens.len());
    let mut added = Vec::new();
    for (id, (text, kind)) in listing.tokens.iter().enumerate() {
        match kind {
            ListedKind::Normal | ListedKind::Byte => {
                if vocab.insert(text.clone(), json!(id)).is_some() {
                    let (field, problem) =
                        (format!("tokens[{id}]"), format!("{text:?} is there twice"));
                    return Err(Error::Inconsistent { file: "vocabulary", field, problem });
                }
            }
            ListedKind::Unknown | ListedKind::Control | ListedKind::UserDefined => {
                added.push(json!({
                    "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": *kind != ListedKind::UserDefined,
                }));
            }
        }
    }
    let post_processor = match (listing.adds_bos, bos) {
        (true, Some(name)) => json!({
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": name, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {name: {"id": name, "ids": [listing.bos_id], "tokens": [name]}},
        }),
        _ => Value::Null,
    };
    let mut file = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": json::byte_level_pre_tokenizer(rule),
        "post_processor": post_processor,
        "decoder": json::byte_level_decoder(),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": takes_whole_words, "vocab": vocab, "merges": merges,
        },
    });
    // Which order a value keeps depends on what else the program is built with, and the digest is one of these bytes.
    file.sort_all_objects();
    Ok(file.to_string().into_bytes())
}
