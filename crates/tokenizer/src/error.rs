//! What can go wrong.

use crate::chat::Role;
use crate::chat::instruct::InstructError;
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
    /// A folder without any file of a tokenizer.
    #[error("{path} holds no tokenizer, expected tokenizer.json, tekken.json or tokenizer.model")]
    NoTokenizer {
        /// The folder.
        path: PathBuf,
    },
    /// Not JSON, or not of the form of the file.
    #[error("{file}: {source}")]
    Json {
        /// Which kind of file.
        file: &'static str,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Not the binary form of a SentencePiece model.
    #[error("tokenizer.model: at byte {offset}: {problem}")]
    Protobuf {
        /// Where in the file.
        offset: usize,
        /// What is wrong there.
        problem: &'static str,
    },
    /// A field asks for something that is not supported.
    #[error("field `{field}` of {file} is {got}, expected {expected}")]
    Unsupported {
        /// Which kind of file.
        file: &'static str,
        /// Dotted path of the field.
        field: String,
        /// What is supported.
        expected: String,
        /// What the file says, shortened.
        got: String,
    },
    /// An entry of the vocabulary, of the merges or of the special tokens contradicts the rest.
    #[error("field `{field}` of {file}: {problem}")]
    Inconsistent {
        /// Which kind of file.
        file: &'static str,
        /// Dotted path of the entry.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A tokenizer that the vocabulary of a GGUF file cannot describe.
    #[error("the tokenizer cannot be written into a GGUF file: {problem}")]
    NotListed {
        /// Why not.
        problem: String,
    },
    /// A chat template needs a control token that the vocabulary does not have.
    #[error("the tokenizer has no control token `{name}`, which the chat template needs")]
    MissingControl {
        /// Its name.
        name: &'static str,
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
    /// A conversation that Mistral's template does not know.
    #[error(transparent)]
    Instruct(#[from] InstructError),
    /// A model's own chat template does not compile, or refuses the conversation.
    #[error("chat template{}: {problem}", line.map(|line| format!(", line {line}")).unwrap_or_default())]
    Jinja {
        /// Line of the template.
        line: Option<usize>,
        /// What is wrong; where the template refuses, its own words.
        problem: String,
    },
    /// A model's own chat template does not say which tokens are answers.
    #[error("the model's own chat template cannot be trained with: it does not mark answers")]
    NoLossMask,
    /// A conversation that holds all characters of private use.
    #[error("the conversation leaves no character for private use free, expected at least a few")]
    NoPrivateCharacter,
    /// A conversation that ends too early, or with the wrong role for its use.
    #[error("the conversation ends after {n_messages} messages, expected {expected}")]
    UnexpectedEnd {
        /// How many messages there are.
        n_messages: usize,
        /// What should follow or stand last.
        expected: &'static str,
    },
}
