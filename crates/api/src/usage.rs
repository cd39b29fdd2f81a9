//! Token counts and the reason an answer ended.

use serde::{Serialize, Serializer};

/// Tokens read and written for one answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Tokens of the prompt, control tokens included.
    pub prompt_tokens: usize,
    /// Those of them that did not have to be computed again.
    pub cached_tokens: usize,
    /// Tokens generated, the end-of-turn token included.
    pub completion_tokens: usize,
}

impl Usage {
    /// The sum of two usages, for answers with several choices.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            prompt_tokens: self.prompt_tokens + other.prompt_tokens,
            cached_tokens: self.cached_tokens + other.cached_tokens,
            completion_tokens: self.completion_tokens + other.completion_tokens,
        }
    }
}

impl Serialize for Usage {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Details {
            cached_tokens: usize,
        }
        #[derive(Serialize)]
        struct Wire {
            prompt_tokens: usize,
            completion_tokens: usize,
            total_tokens: usize,
            prompt_tokens_details: Details,
        }
        Wire {
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.completion_tokens,
            total_tokens: self.prompt_tokens + self.completion_tokens,
            prompt_tokens_details: Details { cached_tokens: self.cached_tokens },
        }
        .serialize(serializer)
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended its turn, or a stop string was met.
    Stop,
    /// `max_tokens` was reached, or the context is full.
    Length,
}
