//! Wire types of the API dialects: what clients send, what they get back.
//!
//! This crate turns the bytes of a request body into a checked request, and answers into JSON. It does no IO, knows no
//! HTTP framework, no tokenizer and no model. A request that comes out of [`ChatRequest::parse`] or
//! [`CompletionRequest::parse`] is right ever after: every count, size and number is within its bound.
//!
//! What happens to a field, so that nothing is dropped in silence:
//!
//! * supported fields are read and checked; a wrong type or range is an error that names the field;
//! * fields of the published schemas that would change the answer and are not supported (tools, audio,
//!   efforts of thought, ...) are refused unless they hold the value that changes nothing;
//! * fields that cannot change the answer (`user`, `metadata`, `store`, ...) are accepted;
//! * fields that no known schema has are accepted too, because clients add their own, and are listed in
//!   `ignored_fields`; the server names them in the header `x-galerne-ignored-fields` of its response.
//!
//! ```
//! let body = br#"{"model": "base", "messages": [{"role": "user", "content": "Bonjour"}], "seed": 7, "colour": 1}"#;
//! let request = api::ChatRequest::parse(body).expect("the body is well formed");
//! assert_eq!(request.messages[0].content, "Bonjour");
//! assert_eq!(request.sampling.seed, Some(7));
//! assert_eq!(request.ignored_fields, ["colour"]);
//!
//! let refused = api::ChatRequest::parse(br#"{"model": "base", "messages": [], "n": 2}"#);
//! assert_eq!(refused.expect_err("no message").param(), Some("messages"));
//! ```

mod chat;
mod completion;
mod error;
mod fields;
mod format;
mod logprobs;
mod models;
mod sampling;
mod usage;

pub use chat::{
    ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion, ChatDelta, ChatMessage, ChatReply,
    ChatRequest, ChatRole,
};
pub use completion::{Completion, CompletionChoice, CompletionRequest, PromptInput};
pub use error::{ErrorBody, ErrorObject, RequestError};
pub use format::AnswerFormat;
pub use logprobs::{ChatLogprobs, CompletionLogprobs, TokenLogprob, TopByText, TopLogprob};
pub use models::{
    Capabilities, LoadState, ModelCard, ModelList, ModelRequest, ModelState, ModelStates,
    ModelStatus, ModelsChanged,
};
pub use sampling::{SamplingFields, StreamFields};
pub use usage::{FinishReason, Usage};

/// Most messages one conversation may have.
pub const MAX_MESSAGES: usize = 1024;
/// Most content parts one message may have.
pub const MAX_CONTENT_PARTS: usize = 64;
/// Most choices of one answer: prompts times answers to each.
pub const MAX_CHOICES: usize = 32;
/// Most stop strings of one request.
pub const MAX_STOP_STRINGS: usize = 16;
/// Most likeliest tokens that are named beside each token.
pub const MAX_TOP_LOGPROBS: usize = 20;
/// Longest stop string, in bytes.
pub const MAX_STOP_BYTES: usize = 256;
/// Longest model name, in bytes.
pub const MAX_MODEL_NAME_BYTES: usize = 256;
/// Most unknown fields that are remembered by name; one more entry says that there are others.
pub const MAX_IGNORED_FIELDS: usize = 16;
