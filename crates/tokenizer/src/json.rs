//! `tokenizer.json` as the `tokenizers` library reads and writes it.
//!
//! Two kinds are read: byte-level BPE, and BPE over characters with bytes for the characters without a token, which is
//! what SentencePiece models become. What is supported is exact: a file that asks for anything else is refused by the
//! name of the field. All allocations are in proportion to the length of the file.

mod entries;
mod parts;
mod write;

use crate::added::AddedTokens;
use crate::encode::{Merge, WordCaches, WordEncoder};
use crate::error::Error;
use crate::implied::MAX_TOKEN_BYTES;
use crate::split::{Neighbours, OWN_SPLIT, Split};
use crate::symbols::{Characters, Symbols};
use crate::text::Decoding;
use crate::tokenizer::{Origin, Prefix, Tokenizer};
use crate::vocabulary::{CONTROL_TOKENS, Controls, Kind, Vocabulary};
pub(crate) use entries::char_of_byte;
use entries::{Entries, Spelling, VocabIn};
use parts::Before;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub(crate) use write::{byte_level_decoder, byte_level_pre_tokenizer};

pub(crate) const TOKENIZER_FILE: &str = "tokenizer.json";

/// The members of the file; absent ones count as null.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileIn {
    #[serde(rename = "version")]
    _version: IgnoredAny,
    #[serde(default, deserialize_with = "parts::read")]
    truncation: Value,
    #[serde(default, deserialize_with = "parts::read")]
    padding: Value,
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    #[serde(default, deserialize_with = "parts::read")]
    normalizer: Value,
    #[serde(default, deserialize_with = "parts::read")]
    pre_tokenizer: Value,
    #[serde(default, deserialize_with = "parts::read")]
    post_processor: Value,
    #[serde(default, deserialize_with = "parts::read")]
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
    #[serde(default, deserialize_with = "parts::read")]
    dropout: Value,
    /// Without effect, as `fuse_unk`: every byte has a token, so that nothing is unknown.
    #[serde(default, rename = "unk_token")]
    _unk_token: Option<String>,
    #[serde(default, deserialize_with = "parts::read")]
    continuing_subword_prefix: Value,
    #[serde(default, deserialize_with = "parts::read")]
    end_of_word_suffix: Value,
    #[serde(default, rename = "fuse_unk")]
    _fuse_unk: Option<bool>,
    #[serde(default)]
    byte_fallback: Option<bool>,
    #[serde(default)]
    ignore_merges: Option<bool>,
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

/// Looks at the type of the model alone, so that other models are refused by type and not by their first odd field.
#[derive(Deserialize)]
struct Probe {
    model: ProbeModel,
}

#[derive(Deserialize)]
struct ProbeModel {
    #[serde(rename = "type", default, deserialize_with = "parts::read")]
    model_type: Value,
}

/// What the parts of the file say, beside the vocabulary and the merges.
struct Rules {
    spelling: Spelling,
    /// `None` if only the merges restrict where words end.
    split: Option<Split>,
    prefix: Prefix,
    decoding: Decoding,
    /// Whether a word that is a token is that token, whatever the merges say.
    takes_whole_words: bool,
}

impl Tokenizer {
    /// Reads the contents of a `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::Json`], [`Error::Unsupported`], [`Error::Inconsistent`]; never a panic.
    pub fn from_json(json: &[u8]) -> Result<Tokenizer, Error> {
        Tokenizer::from_json_with(json, None, None)
    }

    /// As [`Tokenizer::from_json`], with the names of BOS and EOS where another file gives them. What the file itself puts
    /// before a text goes before the name that is given.
    pub(crate) fn from_json_with(
        json: &[u8],
        bos: Option<&str>,
        eos: Option<&str>,
    ) -> Result<Tokenizer, Error> {
        let probe: Probe = serde_json::from_slice(json).map_err(not_json)?;
        expect("model.type", &probe.model.model_type, &json!("BPE"))?;
        let file: FileIn = serde_json::from_slice(json).map_err(not_json)?;
        for (field, value) in [
            ("truncation", &file.truncation),
            ("padding", &file.padding),
            ("model.dropout", &file.model.dropout),
        ] {
            expect(field, value, &Value::Null)?;
        }
        for (field, value) in [
            ("model.continuing_subword_prefix", &file.model.continuing_subword_prefix),
            ("model.end_of_word_suffix", &file.model.end_of_word_suffix),
        ] {
            if !value.is_null() {
                expect(field, value, &json!(""))?;
            }
        }
        let rules = rules(&file)?;
        let before = parts::before_text(&file.post_processor)?;
        check_added_tokens(&file.added_tokens, !file.normalizer.is_null())?;
        let entries = Entries::new(file.model.vocab.0, &file.added_tokens)?;
        let merges = entries.merges(&file.model.merges)?;
        let vocabulary = entries.vocabulary(rules.spelling)?;
        let results = merges.iter().filter_map(|merge| vocabulary.get(merge.result));
        let split = match &rules.split {
            Some(split) => split.clone(),
            None => Split::Unmerged(Neighbours::in_tokens(results)),
        };
        if has_own_rules(&file.post_processor, &file.added_tokens, &rules)
            && has_own_controls(&vocabulary)
        {
            return Tokenizer::new(vocabulary, merges);
        }
        let words = encoder(&rules, &vocabulary, &entries, merges)?;
        let bos_name = match &before {
            Before::Token { name, .. } => Some(name.as_str()),
            Before::Unsaid | Before::Nothing => None,
        };
        let controls =
            Controls::find(&vocabulary, bos_name.or(bos), eos).map_err(missing_control)?;
        if let Before::Token { name, id } = &before
            && controls.bos != *id
        {
            let problem = format!("`{name}` has the id {id}, in added_tokens {}", controls.bos);
            return Err(inconsistent("post_processor".to_string(), problem));
        }
        Ok(Tokenizer {
            vocabulary,
            controls,
            split,
            prefix: rules.prefix,
            decoding: rules.decoding,
            words,
            added: AddedTokens::new(entries.added_texts()),
            adds_bos: (before != Before::Unsaid).then_some(bos_name.is_some()),
            version: None,
            origin: Origin::File { name: TOKENIZER_FILE, contents: json.to_vec() },
            caches: WordCaches::default(),
        })
    }
}

/// The merges of a byte-level file that was read before, with a space between; refused where it takes whole words otherwise
/// than asked.
pub(crate) fn listed_merges(json: &[u8], takes_whole_words: bool) -> Result<Vec<String>, Error> {
    let file: FileIn = serde_json::from_slice(json).map_err(not_json)?;
    let refused = |problem: &str| Err(Error::NotListed { problem: problem.to_string() });
    if file.model.byte_fallback == Some(true) {
        return refused("its pieces have no scores, give the model's tokenizer.model");
    }
    if (file.model.ignore_merges == Some(true)) != takes_whole_words {
        return refused(
            "llama.cpp treats words that are tokens otherwise than model.ignore_merges",
        );
    }
    let joined = |merge| match merge {
        MergeIn::Joined(text) => text,
        MergeIn::Parts(left, right) => format!("{left} {right}"),
    };
    Ok(file.model.merges.into_iter().map(joined).collect())
}

fn rules(file: &FileIn) -> Result<Rules, Error> {
    let takes_whole_words = file.model.ignore_merges == Some(true);
    if file.model.byte_fallback != Some(true) {
        expect("normalizer", &file.normalizer, &Value::Null)?;
        let split = parts::byte_level_split(&file.pre_tokenizer)?;
        parts::check_byte_level_decoder(&file.decoder)?;
        return Ok(Rules {
            spelling: Spelling::ByteLevel,
            split: Some(split),
            prefix: Prefix::Never,
            decoding: Decoding::Joined,
            takes_whole_words,
        });
    }
    if takes_whole_words {
        let expected = "false where model.byte_fallback is true".to_string();
        return Err(unsupported("model.ignore_merges", &json!(true), expected));
    }
    let (split, prefix) = parts::spaces(&file.normalizer, &file.pre_tokenizer)?;
    let first = parts::piece_decoder(&file.decoder)?;
    Ok(Rules {
        spelling: Spelling::Pieces,
        split,
        prefix,
        decoding: Decoding::Pieces(first),
        takes_whole_words,
    })
}

fn encoder(
    rules: &Rules,
    vocabulary: &Vocabulary,
    entries: &Entries,
    merges: Vec<Merge>,
) -> Result<WordEncoder, Error> {
    let kind = match rules.spelling {
        Spelling::ByteLevel => Kind::Ordinary,
        Spelling::Pieces => Kind::Byte,
    };
    let byte_ids = vocabulary.byte_ids(kind).map_err(missing_byte)?;
    let symbols = match rules.spelling {
        Spelling::ByteLevel => Symbols::bytes(byte_ids),
        Spelling::Pieces => {
            let mut characters = Characters::new(byte_ids);
            for (character, id) in entries.characters() {
                characters.set(character, id);
            }
            characters.alias(' ', '\u{2581}');
            Symbols::Characters(Box::new(characters))
        }
    };
    if let Some(rank) = merges
        .iter()
        .position(|m| [m.left, m.right].iter().any(|&id| vocabulary.kind(id) == Some(Kind::Byte)))
    {
        let problem = "a merge of a byte token is not supported";
        return Err(inconsistent(format!("model.merges[{rank}]"), problem));
    }
    let ranked: Vec<(u32, Merge)> = (0..).zip(merges).collect();
    let mut words = WordEncoder::new(symbols, ranked.into_iter()).map_err(repeated_merge)?;
    if rules.takes_whole_words {
        words.set_whole_words(entries.words().filter_map(|id| Some((id, vocabulary.get(id)?))));
    }
    Ok(words)
}

/// Whether nothing in the file is beyond what training here makes, but for the vocabulary.
fn has_own_rules(post_processor: &Value, added: &[AddedToken], rules: &Rules) -> bool {
    rules.split == Some(OWN_SPLIT)
        && post_processor.is_null()
        && !rules.takes_whole_words
        && added.iter().all(|token| token.special)
}

fn has_own_controls(vocabulary: &Vocabulary) -> bool {
    Controls::find(vocabulary, None, None)
        .is_ok_and(|controls| CONTROL_TOKENS.into_iter().all(|name| controls.id(name).is_some()))
}

fn check_added_tokens(tokens: &[AddedToken], is_normalizing: bool) -> Result<(), Error> {
    for (i, token) in tokens.iter().enumerate() {
        let matched_normalized = is_normalizing && token.normalized && !token.special;
        for (flag, got) in [
            ("single_word", token.single_word),
            ("lstrip", token.lstrip),
            ("rstrip", token.rstrip),
            ("normalized", matched_normalized),
        ] {
            if got {
                let field = format!("added_tokens[{i}].{flag}");
                return Err(unsupported(&field, &json!(got), "false".to_string()));
            }
        }
        let n_bytes = token.content.len();
        if n_bytes == 0 || n_bytes > MAX_TOKEN_BYTES {
            let problem = format!("the token has {n_bytes} bytes, expected 1 to {MAX_TOKEN_BYTES}");
            return Err(inconsistent(format!("added_tokens[{i}]"), problem));
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
    Error::Unsupported { file: TOKENIZER_FILE, field: field.to_string(), expected, got }
}

fn inconsistent(field: String, problem: impl Into<String>) -> Error {
    Error::Inconsistent { file: TOKENIZER_FILE, field, problem: problem.into() }
}

fn not_json(source: serde_json::Error) -> Error {
    Error::Json { file: TOKENIZER_FILE, source }
}

/// Also what a vocabulary of the kind that is trained here lacks.
pub(crate) fn missing_control(name: String) -> Error {
    let problem = format!("the control token `{name}` is missing");
    inconsistent("added_tokens".to_string(), problem)
}

pub(crate) fn missing_byte(byte: u8) -> Error {
    let problem = format!("there is no token for the byte 0x{byte:02X}");
    inconsistent("model.vocab".to_string(), problem)
}

pub(crate) fn repeated_merge(rank: usize) -> Error {
    inconsistent(format!("model.merges[{rank}]"), "the same pair has an earlier merge")
}
