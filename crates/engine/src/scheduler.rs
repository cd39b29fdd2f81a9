//! The engine's thread: forms one ragged batch a step from all running requests.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use model::{CachedRows, KvCache};
use tracing::{debug, error};

use crate::EngineError;
use crate::events::{Event, EventSender, FinishReason};
use crate::handle::{CachePlan, EngineLimits};
use crate::queue::{Pending, RequestQueue};
use crate::request::{StopDecision, StopMatcher};
use crate::sampler::{Drawn, Sampler};

/// One running request.
struct Sequence {
    /// The prompt, then the token that was generated last.
    token_ids: Vec<u32>,
    /// Tokens of `token_ids` that are in the cache.
    n_cached: usize,
    /// Tokens of `token_ids` that this step computes.
    n_step: usize,
    n_prompt_tokens: usize,
    n_generated: usize,
    max_tokens: usize,
    cache: KvCache,
    cache_bytes: usize,
    sampler: Sampler,
    stop: Box<dyn StopMatcher>,
    /// Tokens the stop matcher wants to keep back.
    held: Vec<Drawn>,
    events: EventSender,
}

/// Whether a sequence stays in the batch.
#[derive(PartialEq)]
enum Next {
    GoesOn,
    IsOver,
}

/// Everything the engine's thread owns.
pub(crate) struct Scheduler<F> {
    plan: CachePlan,
    limits: EngineLimits,
    queue: Arc<RequestQueue>,
    n_running: Arc<AtomicUsize>,
    forward: F,
    running: Vec<Sequence>,
    cache_bytes_used: usize,
    /// `[n_sequences of the step, vocab_size]`.
    logits: Vec<f32>,
    candidates: Vec<(f64, u32)>,
}

impl<F> Scheduler<F>
where
    F: FnMut(&mut [CachedRows<'_>], &mut Vec<f32>),
{
    pub(crate) fn new(
        plan: CachePlan,
        limits: EngineLimits,
        queue: Arc<RequestQueue>,
        n_running: Arc<AtomicUsize>,
        forward: F,
    ) -> Self {
        let logits = Vec::with_capacity(limits.max_running * plan.config.vocab_size);
        let candidates = Vec::with_capacity(plan.config.vocab_size);
        let running = Vec::with_capacity(limits.max_running);
        Self {
            plan,
            limits,
            queue,
            n_running,
            forward,
            running,
            cache_bytes_used: 0,
            logits,
            candidates,
        }
    }

    /// Works until the queue is closed. Sleeps while there is nothing to do.
    pub(crate) fn run(mut self) {
        // However this ends, callers must not go on queueing for a thread that is gone.
        let closer = CloseOnDrop(Arc::clone(&self.queue));
        while self.queue.is_open() {
            self.retire(|sequence| !sequence.events.is_cancelled());
            self.admit();
            if self.running.is_empty() {
                if !self.queue.wait() {
                    break;
                }
                continue;
            }
            self.plan_step();
            if self.compute_step() {
                self.draw_tokens();
            }
        }
        drop(closer);
    }

    /// Takes waiting requests while there is a place and cache for the first of them.
    fn admit(&mut self) {
        while self.running.len() < self.limits.max_running {
            let free_bytes = self.limits.cache_bytes - self.cache_bytes_used;
            let Some(pending) = self.queue.pop_if(|first| first.cache_bytes <= free_bytes) else {
                break;
            };
            if pending.max_tokens == 0 {
                finish(&pending.events, FinishReason::Length, pending.request.prompt.len(), 0);
                continue;
            }
            let sequence = self.sequence(pending);
            self.cache_bytes_used += sequence.cache_bytes;
            self.running.push(sequence);
        }
        self.n_running.store(self.running.len(), Ordering::Relaxed);
    }

    fn sequence(&self, pending: Pending) -> Sequence {
        let Pending { request, max_tokens, cache_bytes, events } = pending;
        debug!(n_prompt_tokens = request.prompt.len(), cache_bytes, "generation admitted");
        Sequence {
            n_cached: 0,
            n_step: 0,
            n_prompt_tokens: request.prompt.len(),
            n_generated: 0,
            max_tokens,
            cache: self.plan.cache(request.prompt.len() + max_tokens),
            cache_bytes,
            sampler: Sampler::new(request.sampling),
            stop: request.stop,
            held: Vec::new(),
            token_ids: request.prompt,
            events,
        }
    }

    /// Gives each generating sequence its one token, then the rest of the budget to prompts, oldest first.
    fn plan_step(&mut self) {
        let mut budget = self.limits.step_tokens;
        for sequence in &mut self.running {
            let generating = sequence.n_generated > 0;
            sequence.n_step = usize::from(generating);
            budget -= sequence.n_step;
        }
        for sequence in self.running.iter_mut().filter(|sequence| sequence.n_generated == 0) {
            sequence.n_step = budget.min(sequence.token_ids.len() - sequence.n_cached);
            budget -= sequence.n_step;
        }
    }

    /// Runs the model on the planned rows; false if that panicked, after failing the requests concerned.
    fn compute_step(&mut self) -> bool {
        let mut rows: Vec<CachedRows<'_>> = Vec::with_capacity(self.running.len());
        for sequence in self.running.iter_mut().filter(|sequence| sequence.n_step > 0) {
            let range = sequence.n_cached..sequence.n_cached + sequence.n_step;
            let token_ids = &sequence.token_ids[range];
            rows.push(CachedRows { token_ids, cache: &mut sequence.cache });
        }
        let (forward, logits) = (&mut self.forward, &mut self.logits);
        // After a panic the caches of this step are dropped, and the workspace holds nothing between steps.
        let outcome = catch_unwind(AssertUnwindSafe(|| forward(&mut rows, logits)));
        let Err(panic) = outcome else {
            for sequence in &mut self.running {
                sequence.n_cached += sequence.n_step;
            }
            return true;
        };
        let detail = panic_message(panic.as_ref());
        error!(detail, n_sequences = self.running.len(), "step of the model panicked");
        self.retire(|sequence| {
            if sequence.n_step > 0 {
                let detail = detail.clone();
                sequence.events.send(Event::Failed(EngineError::StepPanicked { detail }));
            }
            sequence.n_step == 0
        });
        false
    }

    /// Draws the next token of each sequence whose prompt is complete.
    fn draw_tokens(&mut self) {
        let vocab_size = self.plan.config.vocab_size;
        let mut logits = std::mem::take(&mut self.logits);
        let mut candidates = std::mem::take(&mut self.candidates);
        let mut rows = logits.chunks_exact(vocab_size);
        self.retire(|sequence| {
            if sequence.n_step == 0 {
                return true;
            }
            let row = rows.next().expect("the model gives a row of logits for each sequence");
            if sequence.n_cached < sequence.token_ids.len() {
                return true;
            }
            sequence.take_token(row, &mut candidates) == Next::GoesOn
        });
        logits.clear();
        self.logits = logits;
        self.candidates = candidates;
    }

    /// Keeps the sequences for which `stays` holds and gives back the cache of the others.
    fn retire(&mut self, mut stays: impl FnMut(&mut Sequence) -> bool) {
        let used = &mut self.cache_bytes_used;
        self.running.retain_mut(|sequence| {
            let keep = stays(sequence);
            if !keep {
                *used -= sequence.cache_bytes;
            }
            keep
        });
    }
}

impl Sequence {
    fn take_token(&mut self, logits: &[f32], candidates: &mut Vec<(f64, u32)>) -> Next {
        let draw = AssertUnwindSafe(|| self.sampler.draw(logits, candidates));
        let drawn = match catch_unwind(draw) {
            Ok(Some(drawn)) => drawn,
            Ok(None) => {
                let n_tokens = self.cache.len();
                self.events.send(Event::Failed(EngineError::NotFinite { n_tokens }));
                return Next::IsOver;
            }
            Err(panic) => {
                let detail = panic_message(panic.as_ref());
                error!(detail, "sampler panicked");
                self.events.send(Event::Failed(EngineError::StepPanicked { detail }));
                return Next::IsOver;
            }
        };
        self.n_generated += 1;
        self.held.push(drawn);
        let stop = &mut self.stop;
        let decision = match catch_unwind(AssertUnwindSafe(|| stop.push(drawn.token_id))) {
            Ok(decision) => decision,
            Err(panic) => {
                let detail = panic_message(panic.as_ref());
                error!(detail, "stop matcher panicked");
                self.events.send(Event::Failed(EngineError::MatcherPanicked { detail }));
                return Next::IsOver;
            }
        };
        let reason = match decision {
            StopDecision::Stop => Some(FinishReason::Stop),
            _ if self.n_generated == self.max_tokens => Some(FinishReason::Length),
            _ => None,
        };
        if reason.is_some() || decision == StopDecision::Continue {
            for Drawn { token_id, logprob } in self.held.drain(..) {
                self.events.send(Event::Token { token_id, logprob });
            }
        }
        if let Some(reason) = reason {
            finish(&self.events, reason, self.n_prompt_tokens, self.n_generated);
            return Next::IsOver;
        }
        // The prompt is in the cache now; only the new token is left to compute.
        self.token_ids.clear();
        self.token_ids.push(drawn.token_id);
        self.n_cached = 0;
        Next::GoesOn
    }
}

fn finish(events: &EventSender, reason: FinishReason, n_prompt_tokens: usize, n_generated: usize) {
    events.send(Event::Finished { reason, n_prompt_tokens, n_generated });
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}

struct CloseOnDrop(Arc<RequestQueue>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}
