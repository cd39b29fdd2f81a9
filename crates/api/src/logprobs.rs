//! How likely tokens were.

use std::collections::HashSet;

use serde::{Serialize, Serializer};

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

/// `logprobs` of a choice of a text completion: a place in each list for each token.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct CompletionLogprobs {
    /// The tokens as text.
    pub tokens: Vec<String>,
    /// Their log-probabilities; null for the first token of all, which nothing comes before.
    pub token_logprobs: Vec<Option<f32>>,
    /// The likeliest tokens at each place, with the one that is there; null where `token_logprobs` is.
    pub top_logprobs: Vec<Option<TopByText>>,
    /// Characters of the choice's text that were there before each token.
    pub text_offset: Vec<usize>,
}

/// Log-probabilities by the text of tokens, as an object; of tokens with the same text the likeliest.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TopByText(Vec<(String, f32)>);

impl CompletionLogprobs {
    /// Adds a token that comes after `n_chars` characters of text. Without a score it is the first of all.
    pub fn push(&mut self, token: String, score: Option<TokenLogprob>, n_chars: usize) {
        self.tokens.push(token);
        self.token_logprobs.push(score.as_ref().map(|score| score.logprob));
        self.top_logprobs.push(score.map(TopByText::of));
        self.text_offset.push(n_chars);
    }

    /// Adds tokens that come later.
    pub fn append(&mut self, mut later: Self) {
        self.tokens.append(&mut later.tokens);
        self.token_logprobs.append(&mut later.token_logprobs);
        self.top_logprobs.append(&mut later.top_logprobs);
        self.text_offset.append(&mut later.text_offset);
    }
}

impl TopByText {
    fn of(score: TokenLogprob) -> Self {
        let top = score.top_logprobs.into_iter().map(|top| (top.token, top.logprob));
        let all = top.chain([(score.token, score.logprob)]);
        let mut seen = HashSet::new();
        Self(all.filter(|(token, _)| seen.insert(token.clone())).collect())
    }
}

impl Serialize for TopByText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(token, logprob)| (token, logprob)))
    }
}
