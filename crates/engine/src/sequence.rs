//! One request while it is worked on.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use model::{KEY_BLOCK, LoadedAdapter, RowLogits, Wanted};
use tracing::error;

use crate::EngineError;
use crate::blocks::{Beginning, SequenceBlocks};
use crate::draft::{Drafter, MAX_DRAFT};
use crate::events::{Event, EventSender, FinishReason, ScoredToken};
use crate::mask::Masked;
use crate::queue::Pending;
use crate::request::{GenerationRequest, Logprobs, StopDecision, StopMatcher};
use crate::sampler::{Sampler, SamplerScratch, score};

/// A request, what was generated for it, and where its keys and values are.
pub(crate) struct Sequence {
    /// Which it is, of all that the engine had.
    pub(crate) id: u64,
    /// The prompt, then what was generated.
    pub(crate) token_ids: Vec<u32>,
    /// Tokens of `token_ids` whose keys and values are in `blocks`.
    pub(crate) n_cached: usize,
    /// Tokens of `token_ids` that this step computes.
    pub(crate) n_step: usize,
    /// Guesses of what comes after `token_ids` that this step computes too.
    pub(crate) n_drafted: usize,
    pub(crate) drafter: Drafter,
    /// The last token and the guesses of this step.
    with_draft: Vec<u32>,
    /// Tokens of the prompt that did not have to be computed when the request was first admitted.
    n_reused_tokens: usize,
    /// How often it gave its blocks back to others.
    pub(crate) n_preemptions: u32,
    pub(crate) blocks: SequenceBlocks,
    pub(crate) adapter: Option<Arc<LoadedAdapter>>,
    pub(crate) events: EventSender,
    n_prompt_tokens: usize,
    max_tokens: usize,
    logprobs: Logprobs,
    /// Tokens of the prompt of which was said how likely they are, the first included.
    n_scored: usize,
    sampler: Sampler,
    /// What is to be known of the logits of its rows. It follows from the request, and not from what else a step computes: on a GPU
    /// the likeliest token's logarithm may have other last bits than the processors would give it.
    pub(crate) wanted: Wanted,
    mask: Option<Masked>,
    stop: Box<dyn StopMatcher>,
    /// Tokens the stop matcher wants to keep back.
    held: Vec<ScoredToken>,
}

/// Whether a sequence stays in the batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Next {
    GoesOn,
    IsOver,
}

impl Sequence {
    /// A request whose first `n_reused_tokens` tokens are in `blocks`, to a model of `vocab_size` tokens.
    pub(crate) fn new(
        id: u64,
        pending: Pending,
        drafter: Drafter,
        (blocks, n_reused_tokens): (SequenceBlocks, usize),
        vocab_size: usize,
    ) -> Self {
        let Pending { request, max_tokens, events } = pending;
        let GenerationRequest { prompt, sampling, logprobs, adapter, mask, stop, .. } = request;
        let mut token_ids = prompt;
        let n_prompt_tokens = token_ids.len();
        let sampler = Sampler::new(sampling, &token_ids);
        let is_plain = logprobs == Logprobs::default() && mask.is_none();
        let wanted = match is_plain && sampler.draws_likeliest() {
            true => Wanted::Likeliest,
            false => Wanted::Logits,
        };
        token_ids.reserve_exact(max_tokens);
        Self {
            id,
            token_ids,
            n_cached: n_reused_tokens,
            n_step: 0,
            n_drafted: 0,
            drafter,
            with_draft: Vec::with_capacity(1 + MAX_DRAFT),
            n_reused_tokens,
            n_preemptions: 0,
            blocks,
            adapter,
            events,
            n_prompt_tokens,
            max_tokens,
            logprobs,
            n_scored: if logprobs.of_prompt { 1 } else { n_prompt_tokens },
            sampler,
            wanted,
            mask: mask.map(|mask| Masked::new(mask, vocab_size)),
            stop,
            held: Vec::new(),
        }
    }

    /// Tokens that are to be computed before the next one can be drawn.
    pub(crate) fn n_uncached(&self) -> usize {
        self.token_ids.len() - self.n_cached
    }

    /// Tokens that were generated.
    pub(crate) fn n_generated(&self) -> usize {
        self.token_ids.len() - self.n_prompt_tokens
    }

    /// Tokens of prompt and answer at most.
    pub(crate) fn max_len(&self) -> usize {
        self.n_prompt_tokens + self.max_tokens
    }

    /// The tokens whose keys and values may be those of another request: none while the prompt's own logits are wanted.
    pub(crate) fn reusable(&self) -> Beginning<'_> {
        (if self.is_scoring() { &[] } else { &self.token_ids }, self.adapter.as_ref())
    }

    /// Whether tokens of the prompt are still to be scored.
    pub(crate) fn is_scoring(&self) -> bool {
        self.n_scored < self.n_prompt_tokens
    }

    /// Whether this step draws its next token.
    pub(crate) fn draws(&self) -> bool {
        self.n_step > 0 && self.n_step == self.n_uncached()
    }

    /// Guesses that could be of use: not beyond the end, whose token needs no successor; and none where a mask says what may come, for it
    /// would have to be asked between the tokens of a step, while all wait.
    pub(crate) fn n_draftable(&self) -> usize {
        if self.is_scoring() || self.mask.is_some() || self.n_uncached() != 1 {
            return 0;
        }
        (self.max_len() - self.token_ids.len()).saturating_sub(1)
    }

    /// Gives the first `n` guesses a row of this step.
    pub(crate) fn set_draft(&mut self, n: usize) {
        self.n_drafted = n;
        self.with_draft.clear();
        if n > 0 {
            self.with_draft.extend(self.token_ids.last());
            self.with_draft.extend_from_slice(&self.drafter.draft()[..n]);
        }
    }

    /// Whether this step has computed what its next token is drawn from.
    pub(crate) fn awaits_token(&self) -> bool {
        self.n_step > 0 && self.n_uncached() == 0
    }

    /// The tokens of this step.
    pub(crate) fn step_tokens(&self) -> &[u32] {
        if self.n_drafted > 0 {
            &self.with_draft
        } else {
            &self.token_ids[self.n_cached..][..self.n_step]
        }
    }

    /// What tells which tokens may be drawn next, to be taken while the model runs and put back.
    pub(crate) fn mask_mut(&mut self) -> &mut Option<Masked> {
        &mut self.mask
    }

    /// Rows of this step whose logits are wanted: that of the last token and those of guesses after it; all, while the prompt is scored.
    pub(crate) fn n_logits(&self) -> usize {
        if self.is_scoring() {
            // From the row before the first token without a score on.
            self.n_step.min((self.n_cached + self.n_step + 1).saturating_sub(self.n_scored))
        } else {
            if self.draws() { 1 + self.n_drafted } else { 0 }
        }
    }

    /// What the logits of a row of this step say of the token that comes after it, if it is one of the prompt that is to be scored;
    /// `Some(None)` if they are no numbers.
    pub(crate) fn score_prompt(
        &self,
        row_idx: usize,
        logits: &[f32],
        scratch: &mut SamplerScratch,
    ) -> Option<Option<ScoredToken>> {
        let next = self.n_cached + row_idx + 1;
        let is_wanted = (self.n_scored..self.n_prompt_tokens).contains(&next);
        is_wanted.then(|| score(logits, self.token_ids[next], self.logprobs.n_top, scratch))
    }

    /// Hands a scored token of the prompt over.
    pub(crate) fn take_score(&mut self, scored: Option<ScoredToken>) -> Next {
        match scored {
            Some(scored) => {
                self.n_scored += 1;
                self.events.send(Event::PromptToken(scored));
                Next::GoesOn
            }
            None => self.fail(self.not_finite()),
        }
    }

    /// Whether it is about to compute whole blocks that the prompt of `request` begins with, beyond its first `n_known` tokens.
    pub(crate) fn will_share(&self, request: &GenerationRequest, n_known: usize) -> bool {
        let prompt = &request.prompt;
        if self.n_uncached() < 2 || !same_adapter(self.adapter.as_ref(), request.adapter.as_ref()) {
            return false;
        }
        let pairs = self.token_ids.iter().zip(&prompt[..prompt.len() - 1]);
        let n_common = pairs.take_while(|(a, b)| a == b).count() / KEY_BLOCK * KEY_BLOCK;
        n_common > n_known && n_common > self.n_cached
    }

    /// Draws a token from each row as long as the token before it is what was guessed, and hands them over. The second number tells
    /// how many guesses came true: their keys and values are right.
    pub(crate) fn take_tokens<'a>(
        &mut self,
        rows: impl Iterator<Item = RowLogits<'a>>,
        scratch: &mut SamplerScratch,
    ) -> (Next, usize) {
        for (idx, row) in rows.enumerate() {
            if self.take_token(row, scratch) == Next::IsOver {
                return (Next::IsOver, idx);
            }
            let drawn = self.token_ids.last();
            self.drafter.observe(*drawn.expect("a token was drawn"));
            if self.with_draft.get(idx + 1) != drawn {
                return (Next::GoesOn, idx);
            }
        }
        unreachable!("a sequence that draws has a row of logits")
    }

    /// Draws a token and hands it over, or notes that it is held back.
    fn take_token(&mut self, row: RowLogits<'_>, scratch: &mut SamplerScratch) -> Next {
        if self.token_ids.len() == self.max_len() {
            // Nothing but scores of the prompt was asked for.
            self.finish(FinishReason::Length);
            return Next::IsOver;
        }
        let drawn = match row {
            RowLogits::Likeliest(found) => found.map(ScoredToken::from).ok_or(self.not_finite()),
            RowLogits::Logits(logits) => self.draw(logits, scratch),
        };
        let drawn = match drawn {
            Ok(drawn) => drawn,
            Err(error) => return self.fail(error),
        };
        let token_id = drawn.token_id;
        if let Some(Err(error)) = self.mask.as_mut().map(|mask| mask.push(token_id)) {
            return self.fail(error);
        }
        self.token_ids.push(token_id);
        self.held.push(drawn);
        let stop = &mut self.stop;
        let decision = match catch_unwind(AssertUnwindSafe(|| stop.push(token_id))) {
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
            self.held.drain(..).for_each(|token| self.events.send(Event::Token(token)));
        }
        let Some(reason) = reason else { return Next::GoesOn };
        self.finish(reason);
        Next::IsOver
    }

    fn draw(
        &mut self,
        logits: &[f32],
        scratch: &mut SamplerScratch,
    ) -> Result<ScoredToken, EngineError> {
        let allowed = self.mask.as_mut().map(Masked::allowed).transpose()?;
        let (sampler, n_top) = (&mut self.sampler, self.logprobs.n_top);
        let draw = AssertUnwindSafe(|| sampler.draw(logits, allowed, n_top, scratch));
        match catch_unwind(draw) {
            Ok(drawn) => drawn.ok_or(self.not_finite()),
            Err(panic) => {
                let detail = panic_message(panic.as_ref());
                error!(detail, "sampler panicked");
                Err(EngineError::SamplerPanicked { detail })
            }
        }
    }

    fn not_finite(&self) -> EngineError {
        EngineError::NotFinite { n_tokens: self.n_cached }
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
            n_generated: self.n_generated(),
        });
    }
}

/// Whether keys and values computed with one are those of the other.
pub(crate) fn same_adapter(
    one: Option<&Arc<LoadedAdapter>>,
    other: Option<&Arc<LoadedAdapter>>,
) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (one, other) => one.is_none() && other.is_none(),
    }
}

/// What a panic said.
pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}
