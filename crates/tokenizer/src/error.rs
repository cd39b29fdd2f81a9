//! What can go wrong.

use crate::chat::Role;
use std::path::PathBuf;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not JSON, or not of the form of a `tokenizer.json`.
    #[error("tokenizer.json: {0}")]
    Json(#[from] serde_json::Error),
    /// A field asks for something that is not supported.
    #[error("field `{field}` of tokenizer.json is {got}, expected {expected}")]
    Unsupported {
        /// Dotted path of the field.
        field: String,
        /// What is supported.
        expected: String,
        /// What the file says, shortened.
        got: String,
    },
    /// An entry of the vocabulary, of the merges or of the added tokens contradicts the rest.
    #[error("field `{field}` of tokenizer.json: {problem}")]
    Inconsistent {
        /// Dotted path of the entry.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The vocabulary asked of training cannot hold the control tokens and the 256 bytes.
    #[error(
        "vocab_size is {vocab_size}, expected at least {minimum} (control tokens and 256 bytes)"
    )]
    VocabTooSmall {
        /// What was asked for.
        vocab_size: usize,
        /// The least that is possible.
        minimum: usize,
    },
    /// The text does not repeat itself enough to fill the vocabulary asked for.
    #[error(
        "the text supports a vocabulary of {reached} entries, {vocab_size} were asked for: \
         give more text or a smaller vocab_size"
    )]
    TextTooSmall {
        /// What was asked for.
        vocab_size: usize,
        /// What the text supports: from there on no pair of tokens is seen twice.
        reached: usize,
    },
    /// The distinct words of the text exceed what positions of 32 bits can address.
    #[error("the distinct words of the text take {n_bytes} bytes, expected fewer than {limit}")]
    TextTooLarge {
        /// Bytes of all distinct words.
        n_bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// A message that may not stand where it stands.
    #[error("messages[{message_idx}] has role {got}, expected {expected}")]
    UnexpectedRole {
        /// Index of the message, from 0.
        message_idx: usize,
        /// Its role.
        got: Role,
        /// The roles that may stand there.
        expected: &'static str,
    },
    /// A message without text.
    #[error("messages[{message_idx}] has empty content, expected text")]
    EmptyContent {
        /// Index of the message, from 0.
        message_idx: usize,
    },
    /// A conversation that ends too early, or with the wrong role for its use.
    #[error("the conversation ends after {n_messages} messages, expected {expected}")]
    UnexpectedEnd {
        /// How many messages there are.
        n_messages: usize,
        /// What should follow or stand last.
        expected: &'static str,
    },
}
