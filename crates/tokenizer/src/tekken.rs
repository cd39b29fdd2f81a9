//! `tekken.json`, the byte-level vocabularies of Mistral's models since 2024.
//!
//! The ids of the special tokens come first; the token of rank r has the id r + `default_num_special_tokens`. The file
//! holds more tokens than are used: `default_vocab_size` says where to cut. Merges are implied by the ranks, and a word
//! that is a token is that token. What the file says of images and sound does not concern text and is skipped.
//! Source: mistral-common 1.13.1, `tokens/tokenizers/tekken.py`, and tiktoken 0.14.0, which it encodes with.

use crate::base64;
use crate::encode::{WordCaches, WordEncoder};
use crate::error::Error;
use crate::implied::{self, MAX_TOKEN_BYTES, Ranked, Unit};
use crate::split::Split;
use crate::symbols::Symbols;
use crate::text::Decoding;
use crate::tokenizer::{Origin, Prefix, Tokenizer};
use crate::vocabulary::{Controls, Kind, Vocabulary};
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::borrow::Cow;
use std::collections::HashSet;

pub(crate) const TEKKEN_FILE: &str = "tekken.json";

/// Most special tokens that are believed: names are made up for those that the file does not list.
const MAX_SPECIAL_TOKENS: usize = 1 << 16;

/// Names of the special tokens of files that list none, which no version above 7 does.
const FIRST_SPECIAL_TOKENS: [&str; 20] = [
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
];

/// The versions of Mistral's series.
const VERSIONS: [u32; 7] = [1, 2, 3, 7, 11, 13, 15];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File<'a> {
    config: Config,
    #[serde(borrow)]
    vocab: Vec<Entry<'a>>,
    #[serde(default)]
    special_tokens: Option<Vec<Special>>,
    #[serde(default, rename = "version")]
    _version: IgnoredAny,
    #[serde(default, rename = "type")]
    _type: IgnoredAny,
    #[serde(default, rename = "image")]
    _image: IgnoredAny,
    #[serde(default, rename = "multimodal")]
    _multimodal: IgnoredAny,
    #[serde(default, rename = "audio")]
    _audio: IgnoredAny,
    #[serde(default, rename = "model_settings_builder")]
    _model_settings_builder: IgnoredAny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    pattern: String,
    #[serde(rename = "num_vocab_tokens")]
    _num_vocab_tokens: IgnoredAny,
    default_vocab_size: usize,
    default_num_special_tokens: usize,
    version: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry<'a> {
    rank: usize,
    #[serde(borrow)]
    token_bytes: Cow<'a, str>,
    #[serde(rename = "token_str")]
    _token_str: IgnoredAny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Special {
    rank: usize,
    token_str: String,
    #[serde(default, rename = "is_control")]
    _is_control: IgnoredAny,
}

impl Tokenizer {
    /// Reads the contents of a `tekken.json`.
    ///
    /// # Errors
    /// [`Error::Json`], [`Error::Unsupported`], [`Error::Inconsistent`]; never a panic.
    pub fn from_tekken(json: &[u8]) -> Result<Tokenizer, Error> {
        let file: File<'_> = serde_json::from_slice(json)
            .map_err(|source| Error::Json { file: TEKKEN_FILE, source })?;
        let split = Split::of_pattern(&file.config.pattern).ok_or_else(|| {
            let known = Split::Cased.pattern().unwrap_or_default();
            unsupported("config.pattern", file.config.pattern.clone(), known)
        })?;
        let number = file.config.version.strip_prefix('v').and_then(|text| text.parse().ok());
        let version = number.filter(|number| VERSIONS.contains(number)).ok_or_else(|| {
            unsupported("config.version", file.config.version.clone(), format!("v, {VERSIONS:?}"))
        })?;
        let (vocabulary, n_special) = vocabulary(&file, version)?;
        let controls = Controls::find(&vocabulary, None, None).map_err(|name| {
            inconsistent("special_tokens", format!("the control token `{name}` is missing"))
        })?;
        let words = encoder(&vocabulary, n_special)?;
        Ok(Tokenizer {
            vocabulary,
            controls,
            split,
            prefix: Prefix::Never,
            decoding: Decoding::Parted,
            words,
            added: None,
            adds_bos: Some(true),
            version: Some(version),
            origin: Origin::File { name: TEKKEN_FILE, contents: json.to_vec() },
            caches: WordCaches::default(),
        })
    }
}

/// All tokens, and the number of special ones.
fn vocabulary(file: &File<'_>, version: u32) -> Result<(Vocabulary, usize), Error> {
    let n_special = file.config.default_num_special_tokens;
    if n_special > MAX_SPECIAL_TOKENS {
        let expected = format!("at most {MAX_SPECIAL_TOKENS}");
        return Err(unsupported("config.default_num_special_tokens", n_special, expected));
    }
    let vocab_size = file.config.default_vocab_size;
    let n_used = vocab_size.checked_sub(n_special).filter(|&n| n <= file.vocab.len());
    let entries = &file.vocab[..n_used.ok_or_else(|| {
        let (low, high) = (n_special, n_special + file.vocab.len());
        let problem = format!("{vocab_size} is not between {low} and {high}, what the file holds");
        inconsistent("config.default_vocab_size", problem)
    })?];
    let mut vocabulary = Vocabulary::default();
    for name in special_names(file, version)? {
        vocabulary.push(name.as_bytes(), Kind::Control);
    }
    let mut bytes = Vec::new();
    for (i, entry) in entries.iter().enumerate() {
        let field = || format!("vocab[{i}]");
        if entry.rank != i {
            return Err(inconsistent(field(), format!("the rank is {}", entry.rank)));
        }
        bytes.clear();
        let decoded = base64::decode_into(entry.token_bytes.as_bytes(), &mut bytes);
        if decoded.is_none() || bytes.is_empty() || bytes.len() > MAX_TOKEN_BYTES {
            let problem = format!("token_bytes is not base64 of 1 to {MAX_TOKEN_BYTES} bytes");
            return Err(inconsistent(field(), problem));
        }
        vocabulary.push(&bytes, Kind::Ordinary);
    }
    Ok((vocabulary, n_special))
}

/// The names of all special tokens, in the order of their ids.
fn special_names(file: &File<'_>, version: u32) -> Result<Vec<String>, Error> {
    let n_special = file.config.default_num_special_tokens;
    let mut names: Vec<String> = match &file.special_tokens {
        Some(tokens) => {
            if let Some((i, token)) = tokens.iter().enumerate().find(|(i, token)| token.rank != *i)
            {
                let problem = format!("the rank is {}", token.rank);
                return Err(inconsistent(format!("special_tokens[{i}]"), problem));
            }
            tokens.iter().map(|token| token.token_str.clone()).collect()
        }
        None if version > 7 => {
            let problem = format!("missing, and files of version {version} must have it");
            return Err(inconsistent("special_tokens", problem));
        }
        None => FIRST_SPECIAL_TOKENS.iter().map(|name| (*name).to_string()).collect(),
    };
    if names.len() > n_special {
        let problem = format!("there are {} of them, more than {n_special}", names.len());
        return Err(inconsistent("special_tokens", problem));
    }
    if let Some(i) = names.iter().position(|name| name.len() > MAX_TOKEN_BYTES) {
        let problem = format!("the name has more than {MAX_TOKEN_BYTES} bytes");
        return Err(inconsistent(format!("special_tokens[{i}]"), problem));
    }
    names.extend((names.len()..n_special).map(|id| format!("<SPECIAL_{id}>")));
    let mut seen = HashSet::new();
    if let Some(i) = names.iter().position(|name| name.is_empty() || !seen.insert(name)) {
        let problem = format!("the name {:?} is empty or there twice", names[i]);
        return Err(inconsistent(format!("special_tokens[{i}]"), problem));
    }
    Ok(names)
}

fn encoder(vocabulary: &Vocabulary, n_special: usize) -> Result<WordEncoder, Error> {
    let byte_ids = vocabulary.byte_ids(Kind::Ordinary).map_err(|byte| {
        inconsistent("vocab", format!("there is no token for the byte 0x{byte:02X}"))
    })?;
    let first = n_special as u32;
    let tokens: Vec<Ranked<'_>> = (first..vocabulary.len() as u32)
        .filter_map(|id| Some(Ranked { bytes: vocabulary.get(id)?, id, rank: id - first }))
        .collect();
    let mut seen = HashSet::with_capacity(tokens.len());
    if let Some(rank) = tokens.iter().position(|token| !seen.insert(token.bytes)) {
        return Err(inconsistent(format!("vocab[{rank}]"), "another token has the same bytes"));
    }
    let merges = implied::merges(&tokens, Unit::Byte);
    let mut words = WordEncoder::new(Symbols::bytes(byte_ids), merges.into_iter())
        .expect("distinct tokens have distinct halves");
    words.set_whole_words(tokens.iter().map(|token| (token.id, token.bytes)));
    Ok(words)
}

fn unsupported(field: &str, got: impl ToString, expected: impl ToString) -> Error {
    let (field, got, expected) = (field.to_string(), got.to_string(), expected.to_string());
    Error::Unsupported { file: TEKKEN_FILE, field, expected, got }
}

fn inconsistent(field: impl Into<String>, problem: impl Into<String>) -> Error {
    Error::Inconsistent { file: TEKKEN_FILE, field: field.into(), problem: problem.into() }
}
