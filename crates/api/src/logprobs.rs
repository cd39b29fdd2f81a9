//! How likely the tokens of an answer in a chat were.

use serde::Serialize;

/// A token of an answer and its log-probability. Serialised as an entry of `logprobs.content` of a chat.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TokenLogprob {
    /// The token, with bytes that are no UTF-8 by themselves as U+FFFD.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// The token's own bytes.
    pub bytes: Vec<u8>,
    /// The likeliest tokens at its place.
    pub top_logprobs: Vec<TopLogprob>,
}

/// One of the likeliest tokens at a place.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TopLogprob {
    /// As in [`TokenLogprob`].
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// The token's own bytes.
    pub bytes: Vec<u8>,
}

/// `logprobs` of a choice of a chat.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct ChatLogprobs {
    /// The tokens in order.
    pub content: Vec<TokenLogprob>,
    /// Always null.
    pub refusal: Option<()>,
}
