//! Token ids in, token ids out: one thread that runs a model for many callers at once.
//!
//! An engine owns a named thread. Callers hand it [`GenerationRequest`]s through a bounded queue and read [`Event`]s from
//! an [`EventReceiver`], blocking or async. Each step the scheduler forms one ragged batch: a token for every request that
//! is generating, and pieces of prompts with what is left of the budget, so that a long prompt does not stall the others.
//!
//! What holds:
//!
//! * the tokens of a request depend on the model, its prompt and its settings only, never on what else is running (on a GPU
//!   products may round otherwise with another number of rows, which tells where two tokens are about as likely);
//! * keys and values lie in blocks, at most [`EngineLimits::cache_bytes`], taken when the engine starts; requests that do not fit wait
//!   in a queue of [`EngineLimits::max_waiting`], and beyond that are refused; where blocks run out, the latest request is preempted,
//!   and computed again later, to the same tokens;
//! * a prompt that begins as an earlier one did reads the blocks of that one, and gives the same tokens;
//! * what repeats itself is guessed, or what a smaller model says, and the guesses are checked in the rows of one step: the same tokens,
//!   sooner;
//! * dropping the receiver cancels the request within one step;
//! * a panic in the model fails the requests of that step, not the process; an idle engine sleeps.
//!
//! It never sees text and knows no protocol: a [`StopMatcher`] from the caller decides when an answer is complete, a [`TokenMask`]
//! which tokens may come next.
//!
//! ```
//! use std::sync::Arc;
//!
//! use engine::{Engine, EngineLimits, Event, GenerationRequest, Logprobs, Sampling, StopAtIds};
//! use kernels::Compute;
//! use model::{Decoder, ModelConfig, Parameters};
//! use tensor::{DType, Device, Passes};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = Device::Cpu(Compute::detect()?);
//! let config = ModelConfig::new(ModelConfig::example())?;
//! let mut decoder = Decoder::zeroed(&device, &config, DType::F32, Passes::Forward);
//! decoder.pack(&device, &Parameters::random(&config, 1));
//! let engine = Engine::start(Arc::new(decoder), device, EngineLimits::default())?;
//! let mut events = engine.submit(GenerationRequest {
//!     prompt: vec![1, 15, 9],
//!     max_tokens: Some(4),
//!     sampling: Sampling { temperature: 0.7, top_p: 0.9, seed: 42, ..Sampling::PLAIN },
//!     logprobs: Logprobs::default(),
//!     adapter: None,
//!     mask: None,
//!     stop: Box::new(StopAtIds(vec![2])),
//! })?;
//! let mut token_ids = Vec::new();
//! while let Some(event) = events.recv_blocking() {
//!     if let Event::Token(token) = event {
//!         token_ids.push(token.token_id);
//!     }
//! }
//! assert!((1..=4).contains(&token_ids.len()));
//! # Ok(())
//! # }
//! ```

mod blocks;
mod counters;
mod draft;
mod draft_model;
mod drawing;
mod error;
mod events;
mod handle;
mod mask;
mod prefix;
mod queue;
mod request;
mod sampler;
mod scheduler;
mod sequence;
#[cfg(test)]
mod tests;

pub use counters::EngineLoad;
pub use error::EngineError;
pub use events::{Event, EventReceiver, FinishReason, ScoredToken};
pub use handle::{Engine, EngineEnd, EngineHandle, EngineLimits, Speculation};
pub use mask::{TokenMask, TokenSet};
pub use model::{CacheKind, LoadedAdapter};
pub use request::{GenerationRequest, Logprobs, Sampling, StopAtIds, StopDecision, StopMatcher};
