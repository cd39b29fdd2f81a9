//! The vocabulary of a GGUF file, `tokenizer.ggml.*`, read and written. What it means is the tokenizer's matter.

use crate::FormatError;

use super::write::Entries;
use super::{Array, GgufFile, Value};

/// Tokens and how text becomes tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct GgufVocabulary {
    /// Texts by id; of [`GgufEncoding::Bytes`] with a character for each byte.
    pub tokens: Vec<String>,
    /// What each token is; as long as `tokens`.
    pub kinds: Vec<GgufTokenKind>,
    /// How text becomes tokens.
    pub encoding: GgufEncoding,
    /// The token that begins a text.
    pub bos_id: Option<u32>,
    /// The token that ends a text.
    pub eos_id: Option<u32>,
    /// Whether BOS stands before a text.
    pub adds_bos: bool,
    /// The model's chat template, in Jinja.
    pub chat_template: Option<String>,
}

/// How text becomes tokens.
#[derive(Clone, Debug, PartialEq)]
pub enum GgufEncoding {
    /// Characters are merged to the piece with the highest score.
    Pieces {
        /// As long as the tokens, or empty.
        scores: Vec<f32>,
        /// Whether a space stands before a text.
        adds_space: bool,
    },
    /// Bytes are merged, within words.
    Bytes {
        /// Two texts with a space between, the first to be merged first.
        merges: Vec<String>,
        /// The rule that cuts text, by the name that llama.cpp gives it.
        split: Option<String>,
    },
}

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GgufTokenKind {
    /// A piece of text.
    Normal,
    /// What text without a token becomes.
    Unknown,
    /// Nothing that text can hold.
    Control,
    /// Found in text wherever it stands.
    UserDefined,
    /// An id that no text has.
    Unused,
    /// One byte.
    Byte,
}

impl GgufTokenKind {
    /// Every kind, in the order of their numbers, which begin at 1.
    const ALL: [Self; 6] =
        [Self::Normal, Self::Unknown, Self::Control, Self::UserDefined, Self::Unused, Self::Byte];
}

/// What the model of a vocabulary is called, in the order of [`GgufEncoding`], and that of a file without one.
const PIECES: &str = "llama";
const BYTES: &str = "gpt2";
const NONE: &str = "none";
/// The split of pieces, which are not cut.
const NO_SPLIT: &str = "default";
/// Score of an id that no text has.
const NO_SCORE: f32 = -10_000.0;

const MODEL: &str = "tokenizer.ggml.model";
const SPLIT: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const KINDS: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";
pub(super) const BOS: &str = "tokenizer.ggml.bos_token_id";
pub(super) const EOS: &str = "tokenizer.ggml.eos_token_id";
/// The token that ends an answer, where it is another.
pub(super) const EOT: &str = "tokenizer.ggml.eot_token_id";
const ADDS_BOS: &str = "tokenizer.ggml.add_bos_token";
const ADDS_SPACE: &str = "tokenizer.ggml.add_space_prefix";
/// The tensor that has a row for each token.
const EMBEDDING: &str = "token_embd.weight";
const TEMPLATE: &str = "tokenizer.chat_template";

impl GgufFile {
    /// The vocabulary; `None` of a file that has none. What the file does not say is what llama.cpp takes for granted.
    ///
    /// # Errors
    /// When it is of a kind that is not known, an entry has another type than it should, or the lists differ in length; the error
    /// names the key.
    pub fn vocabulary(&self) -> Result<Option<GgufVocabulary>, FormatError> {
        self.check_number_of_tokens()?;
        let tokens = self.texts(TOKENS)?;
        let n_tokens = tokens.len();
        let kind = |value| match value {
            Value::Signed(number) => {
                let idx = usize::try_from(number).ok()?.checked_sub(1)?;
                GgufTokenKind::ALL.get(idx).copied()
            }
            _ => None,
        };
        let (encoding, adds_bos) = match self.text(MODEL)?.as_deref() {
            None | Some(NONE) => return Ok(None),
            Some(PIECES) => {
                let scores = self.scores(n_tokens)?;
                let adds_space = self.flag(ADDS_SPACE)?.unwrap_or(true);
                (GgufEncoding::Pieces { scores, adds_space }, true)
            }
            Some(BYTES) => {
                let split = self.text(SPLIT)?;
                let adds_bos = split.as_deref().is_some_and(|split| {
                    split.starts_with("llama") || ["tekken", "pixtral"].contains(&split)
                });
                (GgufEncoding::Bytes { merges: self.texts(MERGES)?, split }, adds_bos)
            }
            Some(_) => {
                let expected = format!("{PIECES}, {BYTES} or {NONE}");
                return Err(self.bad(MODEL, self.get(MODEL), expected));
            }
        };
        let kinds = self.list(KINDS, "1 to 6 for each token", kind)?;
        let kinds = kinds.unwrap_or_else(|| vec![GgufTokenKind::Normal; n_tokens]);
        if kinds.len() != n_tokens {
            return Err(self.wrong_length(KINDS, n_tokens));
        }
        Ok(Some(GgufVocabulary {
            tokens,
            kinds,
            encoding,
            bos_id: self.id(BOS, n_tokens)?,
            eos_id: self.id(EOS, n_tokens)?,
            adds_bos: self.flag(ADDS_BOS)?.unwrap_or(adds_bos),
            chat_template: self.text(TEMPLATE)?,
        }))
    }

    /// Refuses more tokens than the model has embeddings before memory is taken for them.
    fn check_number_of_tokens(&self) -> Result<(), FormatError> {
        let (Some(Value::Array(tokens)), Some(embedding)) =
            (self.get(TOKENS), self.tensors().get(EMBEDDING))
        else {
            return Ok(());
        };
        let n_rows = embedding.shape.first().copied().unwrap_or(0);
        if Array::len(&tokens) <= n_rows {
            return Ok(());
        }
        let expected = format!("at most {n_rows} values (rows of {EMBEDDING})");
        Err(self.bad(TOKENS, self.get(TOKENS), expected))
    }

    fn scores(&self, n_tokens: usize) -> Result<Vec<f32>, FormatError> {
        let score = |value| match value {
            Value::Float(number) => Some(number as f32),
            _ => None,
        };
        let scores = self.list(SCORES, "a number for each token", score)?.unwrap_or_default();
        if scores.is_empty() || scores.len() == n_tokens {
            Ok(scores)
        } else {
            Err(self.wrong_length(SCORES, n_tokens))
        }
    }

    fn wrong_length(&self, key: &str, n_tokens: usize) -> FormatError {
        self.bad(key, self.get(key), format!("{n_tokens} values ({TOKENS})"))
    }

    fn text(&self, key: &str) -> Result<Option<String>, FormatError> {
        let found = self.get(key);
        match found {
            None => Ok(None),
            Some(value) => text(value)
                .map(Some)
                .ok_or_else(|| self.bad(key, found, "a text in UTF-8".to_owned())),
        }
    }

    fn texts(&self, key: &str) -> Result<Vec<String>, FormatError> {
        Ok(self.list(key, "texts in UTF-8", text)?.unwrap_or_default())
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, FormatError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            found => Err(self.bad(key, found, "true or false".to_owned())),
        }
    }

    fn id(&self, key: &str, n_tokens: usize) -> Result<Option<u32>, FormatError> {
        let found = self.get(key);
        let id = match found {
            None => return Ok(None),
            Some(Value::Unsigned(id)) => u32::try_from(id).ok(),
            Some(_) => None,
        };
        let id = id.filter(|&id| (id as usize) < n_tokens);
        let expected = || format!("a number below {n_tokens} (the number of tokens)");
        id.map(Some).ok_or_else(|| self.bad(key, found, expected()))
    }

    /// The values of a list; memory is in proportion to the bytes of the file.
    fn list<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl Fn(Value<'a>) -> Option<T>,
    ) -> Result<Option<Vec<T>>, FormatError> {
        let found = self.get(key);
        let refused = || self.bad(key, found, expected.to_owned());
        let Some(value) = found else { return Ok(None) };
        let Value::Array(array) = value else { return Err(refused()) };
        let values: Vec<T> = array.iter().map_while(read).collect();
        if values.len() == Array::len(&array) { Ok(Some(values)) } else { Err(refused()) }
    }
}

fn text(value: Value<'_>) -> Option<String> {
    match value {
        Value::Text(bytes) => Some(std::str::from_utf8(bytes).ok()?.to_owned()),
        _ => None,
    }
}

/// Writes a vocabulary, or that there is none. A model may have more ids than its tokenizer: llama.cpp wants a token for each.
pub(super) fn write(entries: &mut Entries, vocabulary: Option<&GgufVocabulary>, vocab_size: usize) {
    let Some(vocabulary) = vocabulary else { return entries.text(MODEL, NONE) };
    let padding = (vocabulary.tokens.len()..vocab_size).map(|id| format!("[PAD{id}]"));
    let tokens: Vec<String> = vocabulary.tokens.iter().cloned().chain(padding).collect();
    match &vocabulary.encoding {
        GgufEncoding::Pieces { scores, adds_space } => {
            entries.text(MODEL, PIECES);
            entries.text(SPLIT, NO_SPLIT);
            if !scores.is_empty() {
                let mut scores = scores.clone();
                scores.resize(tokens.len(), NO_SCORE);
                entries.f32s(SCORES, &scores);
            }
            entries.flag(ADDS_SPACE, *adds_space);
        }
        GgufEncoding::Bytes { merges, split } => {
            entries.text(MODEL, BYTES);
            if let Some(split) = split {
                entries.text(SPLIT, split);
            }
            entries.texts(MERGES, merges);
        }
    }
    let number = |kind| 1 + GgufTokenKind::ALL.iter().position(|&other| other == kind).unwrap_or(0);
    let mut kinds: Vec<i32> = vocabulary.kinds.iter().map(|&kind| number(kind) as i32).collect();
    kinds.resize(tokens.len(), number(GgufTokenKind::Unused) as i32);
    entries.texts(TOKENS, &tokens);
    entries.i32s(KINDS, &kinds);
    entries.flag(ADDS_BOS, vocabulary.adds_bos);
    if let Some(template) = &vocabulary.chat_template {
        entries.text(TEMPLATE, template);
    }
}
