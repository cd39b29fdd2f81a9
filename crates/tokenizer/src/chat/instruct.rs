//! Mistral's instruct templates, version 1 to 13: a request in, pieces out, control tokens apart from text.
//!
//! A request is brought into the form that its version knows (`normalise.rs`), checked, and written down (`render.rs`). Text is
//! ordinary text, whatever it looks like; each piece is encoded by itself. Source: the `mistral-common` package, with
//! which every version is compared on generated requests.

use super::template::Ending;

mod check;
mod encode;
mod normalise;
pub mod python_json;
mod render;
mod request;

pub use request::{
    Call, CalledFunction, Chunk, Content, Function, InstructRequest, RequestMessage, Tool,
};

/// The version of a template, which is that of the tokenizer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum InstructVersion {
    /// `[INST]` as text; system text in the first user message; no tools.
    V1,
    /// Control tokens; system text in the last user message; calls as a JSON list.
    V2,
    /// Calls and results have ids, and stay in the history.
    V3,
    /// System messages of their own; results as text.
    V7,
    /// One call after the other, by name, id and arguments.
    V11,
    /// Tools before the first user message; no ids; thinking.
    V13,
}

impl InstructVersion {
    /// Every version, ascending.
    pub const ALL: [InstructVersion; 6] =
        [Self::V1, Self::V2, Self::V3, Self::V7, Self::V11, Self::V13];

    /// The name, such as `v3`.
    pub fn name(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
            Self::V3 => "v3",
            Self::V7 => "v7",
            Self::V11 => "v11",
            Self::V13 => "v13",
        }
    }
}

/// A part of a rendered conversation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Piece {
    /// A control token by name, or text.
    pub content: PieceContent,
    /// Whether it is trained: what the assistant writes, and the end of its turn.
    pub is_trained: bool,
}

/// What a piece holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PieceContent {
    /// A control token, by name.
    Control(&'static str),
    /// Text, to be encoded by itself.
    Text(String),
}

/// Why a request cannot be rendered.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InstructError {
    /// No message.
    #[error("messages is empty, expected at least one message")]
    Empty,
    /// A message that may not follow the one before it, or stand last.
    #[error("messages[{message_idx}] has role {got}, expected {expected}")]
    Role {
        /// Index of the message, from 0.
        message_idx: usize,
        /// Its role.
        got: &'static str,
        /// What may stand there.
        expected: &'static str,
    },
    /// A message has a part that its role or the version does not know.
    #[error("messages[{message_idx}] {problem} (template {})", version.name())]
    Message {
        /// Index of the message, from 0.
        message_idx: usize,
        /// What is wrong.
        problem: &'static str,
        /// The version.
        version: InstructVersion,
    },
    /// A name that is no function's.
    #[error("`{got}` is no function name, expected 1 to 64 of letters, digits, _ and -")]
    FunctionName {
        /// The name, shortened.
        got: String,
    },
    /// Results that do not answer the calls.
    #[error("messages[{message_idx}]: {problem}")]
    Results {
        /// Index of the message where it shows.
        message_idx: usize,
        /// What is wrong.
        problem: &'static str,
    },
}

/// Renders a request, up to the place of the next answer or to the end of the last one; BOS first.
///
/// # Errors
/// When the request is not one that the version knows.
pub fn pieces(
    version: InstructVersion,
    request: &InstructRequest,
    ending: Ending,
) -> Result<Vec<Piece>, InstructError> {
    check::check(version, request, ending)?;
    let normal = normalise::normalise(version, request)?;
    render::render(version, &normal, request)
}

#[cfg(test)]
mod tests;
