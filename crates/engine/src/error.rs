//! Why a generation was refused or failed.

/// Errors of the engine. Those of [`submit`](crate::EngineHandle::submit) refuse a request before any work is done;
/// those inside [`Event::Failed`](crate::Event::Failed) end one that was accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A generation needs at least one token to start from.
    #[error("the prompt has no tokens, expected at least one")]
    EmptyPrompt,
    /// The prompt leaves no room for an answer.
    #[error(
        "the prompt has {n_prompt_tokens} tokens, expected fewer than {context_len} (the context of the model, \
         prompt and answer together)"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        n_prompt_tokens: usize,
        /// The model's context.
        context_len: usize,
    },
    /// A token id the model does not have.
    #[error("token {position} of the prompt is {token_id}, expected less than {vocab_size}")]
    UnknownToken {
        /// Index in the prompt.
        position: usize,
        /// The id found.
        token_id: u32,
        /// Ids the model has.
        vocab_size: usize,
    },
    /// A sampling setting is out of its range.
    #[error("{setting} is {got}, expected {expected}")]
    InvalidSampling {
        /// Name of the setting.
        setting: &'static str,
        /// The value found.
        got: f32,
        /// The range.
        expected: &'static str,
    },
    /// A bias for a token id the model does not have.
    #[error("logit_bias names token {token_id}, expected less than {vocab_size}")]
    UnknownBias {
        /// The id found.
        token_id: u32,
        /// Ids the model has.
        vocab_size: usize,
    },
    /// An adapter for decoders of another shape or number type.
    #[error("the adapter was made for another model")]
    ForeignAdapter,
    /// More likeliest tokens are asked for than are handed over.
    #[error("{n_top} likeliest tokens are asked for at each place, expected at most {limit}")]
    TooManyTop {
        /// As many as were asked for.
        n_top: usize,
        /// The most that there may be.
        limit: usize,
    },
    /// The request alone needs more cache than the engine may use.
    #[error("the request needs {needed_bytes} bytes of cache, the engine has {limit_bytes}")]
    CacheTooSmall {
        /// Bytes for prompt and answer.
        needed_bytes: usize,
        /// Bytes the engine may use for all requests.
        limit_bytes: usize,
    },
    /// Too many requests wait already.
    #[error("{limit} requests are waiting already, try again later")]
    QueueFull {
        /// Most requests that may wait.
        limit: usize,
    },
    /// A limit is too small to work.
    #[error("the limit {name} is {got}, expected at least {at_least}")]
    InvalidLimit {
        /// Name of the limit.
        name: &'static str,
        /// Its value.
        got: usize,
        /// The smallest value that works.
        at_least: usize,
    },
    /// The model gave logits that are not numbers.
    #[error("the model gave logits that are not finite after {n_tokens} tokens")]
    NotFinite {
        /// Tokens in the cache at that step.
        n_tokens: usize,
    },
    /// The computation of a step panicked; the requests of that step fail, the engine goes on.
    #[error("a step of the model panicked: {detail}")]
    StepPanicked {
        /// The message of the panic.
        detail: String,
    },
    /// Drawing a token of this request panicked.
    #[error("the sampler of the request panicked: {detail}")]
    SamplerPanicked {
        /// The message of the panic.
        detail: String,
    },
    /// What may come next could not be told.
    #[error("the token mask of the request failed: {detail}")]
    MaskFailed {
        /// Why.
        detail: String,
    },
    /// The stop matcher of this request panicked.
    #[error("the stop matcher of the request panicked: {detail}")]
    MatcherPanicked {
        /// The message of the panic.
        detail: String,
    },
    /// The engine ended before the request did.
    #[error("the engine has stopped")]
    Stopped,
    /// The engine's thread could not be started.
    #[error("cannot start the engine thread")]
    Thread(#[source] std::io::Error),
}
