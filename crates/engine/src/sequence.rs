//! One request while it is worked on.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tracing::error;

use crate::EngineError;
use crate::blocks::SequenceBlocks;
use crate::events::{Event, EventSender, FinishReason};
use crate::queue::Pending;
use crate::request::{GenerationRequest, StopDecision, StopMatcher};
use crate::sampler::{Drawn, Sampler, SamplerScratch};

/// A request, what was generated for it, and where its keys and values are.
pub(crate) struct Sequence {
    /// The prompt, then what was generated.
    pub(crate) token_ids: Vec<u32>,
    /// Tokens of `token_ids` whose keys and values are in `blocks`.
    pub(crate) n_cached: usize,
    /// Tokens of `token_ids` that this step computes.
    pub(crate) n_step: usize,
    /// Tokens of the prompt that did not have to be computed when the request was first admitted.
    n_reused_tokens: usize,
    /// How often it gave its blocks back to others.
    pub(crate) n_preemptions: u32,
    pub(crate) blocks: SequenceBlocks,
    pub(crate) events: EventSender,
    n_prompt_tokens: usize,
    max_tokens: usize,
    sampler: Sampler,
    stop: Box<dyn StopMatcher>,
    /// Tokens the stop matcher wants to keep back.
    held: Vec<Drawn>,
}

/// Whether a sequence stays in the batch.
#[derive(PartialEq)]
pub(crate) enum Next {
    GoesOn,
    IsOver,
}

impl Sequence {
    /// A request whose first `n_reused_tokens` tokens are in `blocks`.
    pub(crate) fn new(
        pending: Pending,
        (blocks, n_reused_tokens): (SequenceBlocks, usize),
    ) -> Self {
        let Pending { request, max_tokens, events } = pending;
        let GenerationRequest { prompt: mut token_ids, sampling, stop, .. } = request;
        let n_prompt_tokens = token_ids.len();
        let sampler = Sampler::new(sampling, &token_ids);
        token_ids.reserve_exact(max_tokens);
        Self {
            token_ids,
            n_cached: n_reused_tokens,
            n_step: 0,
            n_reused_tokens,
            n_preemptions: 0,
            blocks,
            events,
            n_prompt_tokens,
            max_tokens,
            sampler,
            stop,
            held: Vec::new(),
        }
    }

    /// Tokens that are to be computed before the next one can be drawn.
    pub(crate) fn n_uncached(&self) -> usize {
        self.token_ids.len() - self.n_cached
    }

    /// Tokens of prompt and answer at most.
    pub(crate) fn max_len(&self) -> usize {
        self.n_prompt_tokens + self.max_tokens
    }

    /// Draws a token and hands it over, or notes that it is held back.
    pub(crate) fn take_token(&mut self, logits: &[f32], scratch: &mut SamplerScratch) -> Next {
        let draw = AssertUnwindSafe(|| self.sampler.draw(logits, scratch));
        let drawn = match catch_unwind(draw) {
            Ok(Some(drawn)) => drawn,
            Ok(None) => return self.fail(EngineError::NotFinite { n_tokens: self.n_cached }),
            Err(panic) => {
                let detail = panic_message(panic.as_ref());
                error!(detail, "sampler panicked");
                return self.fail(EngineError::SamplerPanicked { detail });
            }
        };
        self.token_ids.push(drawn.token_id);
        self.held.push(drawn);
        let stop = &mut self.stop;
        let decision = match catch_unwind(AssertUnwindSafe(|| stop.push(drawn.token_id))) {
            Ok(decision) => decision,
            Err(panic) => {
                let detail = panic_message(panic.as_ref());
                error!(detail, "stop matcher panicked");
                return self.fail(EngineError::MatcherPanicked { detail });
            }
        };
        let reason = match decision {
            StopDecision::Stop => Some(FinishReason::Stop),
            _ if self.token_ids.len() == self.max_len() => Some(FinishReason::Length),
            _ => None,
        };
        if reason.is_some() || decision == StopDecision::Continue {
            for Drawn { token_id, logprob } in self.held.drain(..) {
                self.events.send(Event::Token { token_id, logprob });
            }
        }
        let Some(reason) = reason else { return Next::GoesOn };
        self.finish(reason);
        Next::IsOver
    }

    fn fail(&self, error: EngineError) -> Next {
        self.events.send(Event::Failed(error));
        Next::IsOver
    }

    /// Says that the answer is complete.
    pub(crate) fn finish(&self, reason: FinishReason) {
        self.events.send(Event::Finished {
            reason,
            n_prompt_tokens: self.n_prompt_tokens,
            n_reused_tokens: self.n_reused_tokens,
            n_generated: self.token_ids.len() - self.n_prompt_tokens,
        });
    }
}

/// What a panic said.
pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}
