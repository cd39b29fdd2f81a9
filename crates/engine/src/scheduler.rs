//! The engine's thread: forms one ragged batch a step from all running requests.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use model::{CachedRows, KEY_BLOCK, Likeliest, LogitsRow, OnLogits, RowLogits, Wanted};
use tracing::{debug, error, warn};

use crate::blocks::{Beginning, BlockPool, SequenceBlocks};
use crate::counters::Counters;
use crate::draft::{self, ASSUMED_RATE, Drafter, MAX_DRAFT, MAX_DRAFT_ROWS, RowCost};
use crate::draft_model::DraftModel;
use crate::drawing::{Drawers, Drawing, Rows};
use crate::events::Event;
use crate::handle::{CachePlan, EngineLimits, Speculation};
use crate::mask::Masked;
use crate::queue::RequestQueue;
use crate::sequence::{Next, Sequence, panic_message};
use crate::{EngineError, FinishReason, ScoredToken};

/// Rows of prompts that are scored in one step: each takes a look at the whole vocabulary, for which all others wait.
const SCORED_ROWS: usize = 32;

/// Stack of the thread that finds out masks: libraries of grammars recurse.
const MASKS_STACK: usize = 16 << 20;

/// Everything the engine's thread owns.
pub(crate) struct Scheduler<F> {
    limits: EngineLimits,
    vocab_size: usize,
    queue: Arc<RequestQueue>,
    counters: Arc<Counters>,
    forward: F,
    pool: BlockPool,
    /// In the order of their arrival.
    running: Vec<Sequence>,
    /// Without blocks, in the order of their arrival; all of them arrived before what waits in the queue.
    preempted: VecDeque<Sequence>,
    /// After the last token of each sequence whose tokens are all computed, and after the guesses of what follows it, `[rows, vocab_size]`;
    /// of those that draw the likeliest token, that.
    logits: Vec<f32>,
    likeliest: Vec<Option<Likeliest>>,
    row_cost: RowCost,
    draft_model: Option<DraftModel>,
    /// Requests that were admitted.
    n_admitted: u64,
    /// Tokens of prompts that this step scored, and the index of their sequences.
    scored: Vec<(usize, Option<ScoredToken>)>,
    /// Of each running sequence that drew in this step, or failed: whether it goes on, and how many guesses came true.
    outcomes: Vec<Option<(Next, usize)>>,
    drawers: Drawers,
}

impl<F> Scheduler<F>
where
    F: FnMut(&[CachedRows<'_>], &mut OnLogits<'_>),
{
    pub(crate) fn new(
        plan: &CachePlan,
        limits: EngineLimits,
        (queue, counters): (Arc<RequestQueue>, Arc<Counters>),
        drawers: Drawers,
        draft_model: Option<DraftModel>,
        forward: F,
    ) -> Self {
        let vocab_size = plan.config.vocab_size;
        Self {
            limits,
            vocab_size,
            queue,
            counters,
            forward,
            pool: BlockPool::new(plan.clone()),
            running: Vec::with_capacity(limits.max_running),
            preempted: VecDeque::new(),
            logits: Vec::with_capacity(max_logits(&limits) * vocab_size),
            likeliest: Vec::with_capacity(max_logits(&limits)),
            row_cost: RowCost::default(),
            draft_model,
            n_admitted: 0,
            scored: Vec::new(),
            outcomes: Vec::with_capacity(limits.max_running),
            drawers,
        }
    }

    /// Works until the queue is closed. Sleeps while there is nothing to do.
    pub(crate) fn run(&mut self) {
        // However this ends, callers must not go on queueing for a thread that is gone.
        let closer = CloseOnDrop(Arc::clone(&self.queue));
        while self.queue.is_open() {
            retire(&mut self.running, &mut self.pool, |sequence, _| {
                !sequence.events.is_cancelled()
            });
            self.preempted.retain(|sequence| !sequence.events.is_cancelled());
            self.admit();
            if self.running.is_empty() {
                if !self.queue.wait() {
                    break;
                }
                continue;
            }
            self.plan_step();
            if self.compute_step() {
                self.hand_over();
            }
        }
        drop(closer);
    }

    /// The blocks, once it has ended.
    #[cfg(test)]
    pub(crate) fn into_pool(self) -> BlockPool {
        let mut pool = self.pool;
        for sequence in self.running {
            pool.release(sequence.blocks);
        }
        pool
    }

    /// Takes requests in the order of their arrival while there is a place and there are blocks for the first of them.
    fn admit(&mut self) {
        while self.running.len() < self.limits.max_running {
            let admitted = match self.preempted.pop_front() {
                Some(sequence) => self.readmit(sequence),
                None => self.admit_waiting(),
            };
            if !admitted {
                break;
            }
        }
        self.counters.set_sequences(self.running.len(), self.preempted.len());
    }

    /// Takes the first request of the queue; false if there is none, or not enough blocks.
    fn admit_waiting(&mut self) -> bool {
        let (pool, running) = (&mut self.pool, &self.running);
        let mut claimed = None;
        let pending = self.queue.pop_if(|first| {
            let (prompt, of_prompt) = (&first.request.prompt, first.request.logprobs.of_prompt);
            claimed = if first.max_tokens == 0 && !of_prompt {
                Some((SequenceBlocks::default(), 0))
            } else {
                let max_len = prompt.len() + first.max_tokens;
                let lens = [promised_len(prompt.len(), max_len, 0), max_len];
                let prompt = if of_prompt { &[] } else { &prompt[..] };
                claim(pool, running, (prompt, first.request.adapter.as_ref()), lens)
            };
            // Soon there will be more to reuse: waiting costs less than computing it twice.
            let is_soon = |claimed: &(SequenceBlocks, usize)| {
                first.max_tokens > 0
                    && !of_prompt
                    && running.iter().any(|other| other.will_share(&first.request, claimed.1))
            };
            if let Some((blocks, _)) = claimed.take_if(|claimed| is_soon(claimed)) {
                pool.release(blocks);
            }
            claimed.is_some()
        });
        let (Some(pending), Some(claimed)) = (pending, claimed) else { return false };
        let (n_prompt_tokens, n_reused_tokens) = (pending.request.prompt.len(), claimed.1);
        debug!(n_prompt_tokens, n_reused_tokens, "generation admitted");
        self.counters.count_prompt(n_prompt_tokens, n_reused_tokens);
        self.n_admitted += 1;
        let drafter = Drafter::new(match &self.draft_model {
            Some(draft_model) => draft_model.acceptance_rate(),
            None => ASSUMED_RATE,
        });
        let sequence = Sequence::new(self.n_admitted, pending, drafter, claimed, self.vocab_size);
        if sequence.blocks.tables().is_empty() {
            sequence.finish(FinishReason::Length);
        } else {
            self.running.push(sequence);
        }
        true
    }

    /// Takes a request that was preempted; false, after putting it back, if there are not enough blocks.
    fn readmit(&mut self, mut sequence: Sequence) -> bool {
        let lens = [promise_to(&sequence), sequence.max_len()];
        let claimed = claim(&mut self.pool, &self.running, sequence.reusable(), lens);
        let Some((blocks, n_cached)) = claimed else {
            self.preempted.push_front(sequence);
            return false;
        };
        (sequence.blocks, sequence.n_cached) = (blocks, n_cached);
        self.running.push(sequence);
        true
    }

    /// Gives each generating sequence its one token, then the rest of the budget to what is to be read, oldest first; and takes
    /// blocks for all of them.
    fn plan_step(&mut self) {
        let (mut budget, mut scored) = (self.limits.step_tokens, SCORED_ROWS);
        for sequence in &mut self.running {
            sequence.set_draft(0);
            sequence.n_step = usize::from(sequence.n_uncached() == 1);
            budget -= sequence.n_step;
        }
        for sequence in self.running.iter_mut().filter(|sequence| sequence.n_uncached() > 1) {
            let most = if sequence.is_scoring() { scored } else { budget };
            sequence.n_step = budget.min(most).min(sequence.n_uncached());
            budget -= sequence.n_step;
            scored -= if sequence.is_scoring() { sequence.n_step } else { 0 };
        }
        let mut idx = 0;
        while idx < self.running.len() {
            let sequence = &mut self.running[idx];
            let end = sequence.n_cached + sequence.n_step;
            if sequence.n_step == 0 || self.pool.extend(&mut sequence.blocks, end) {
                idx += 1;
            } else {
                self.preempt_latest();
            }
        }
        self.plan_drafts(budget);
    }

    /// Gives guesses of what the generating sequences say next up to `budget` rows, where blocks are free for them.
    fn plan_drafts(&mut self, budget: usize) {
        let speculation = self.limits.speculation;
        if speculation == Speculation::Off {
            return;
        }
        let n_rows = self.running.iter().map(|sequence| sequence.n_step).sum();
        for sequence in self.running.iter_mut().filter(|sequence| sequence.draws()) {
            sequence.drafter.look_up(&sequence.token_ids);
        }
        self.ask_draft_model(n_rows, budget);
        let drawing = || self.running.iter().filter(|sequence| sequence.draws());
        let drafters = drawing().map(|sequence| (&sequence.drafter, sequence.n_draftable()));
        let chosen = match speculation {
            Speculation::Always => draft::choose(drafters, n_rows, budget, 0.0),
            _ => draft::choose(drafters, n_rows, budget, self.row_cost.of_one_more()),
        };
        let drawing = self.running.iter_mut().filter(|sequence| sequence.draws());
        for (sequence, n) in drawing.zip(chosen) {
            let end = sequence.n_cached + sequence.n_step;
            let within_block = n.min(end.next_multiple_of(KEY_BLOCK) - end);
            for n in [n, within_block] {
                if n > 0 && self.pool.extend_with_free(&mut sequence.blocks, end + n) {
                    sequence.set_draft(n);
                    break;
                }
            }
        }
    }

    /// Has the draft model guess for those who lack better guesses, where that pays in a step of `n_rows` rows and room for `budget` more.
    fn ask_draft_model(&mut self, n_rows: usize, budget: usize) {
        let Some(draft_model) = &mut self.draft_model else { return };
        let (running, always) = (&self.running, self.limits.speculation == Speculation::Always);
        draft_model.keep(|id| running.iter().any(|sequence| sequence.id == id));
        let (mut rates, mut most) = (0.0, 0);
        let mut asking: Vec<&mut Sequence> = Vec::new();
        for sequence in self.running.iter_mut().filter(|sequence| sequence.n_draftable() > 0) {
            let Some(rate) = sequence.drafter.wanted_model_rate() else { continue };
            let n_generated = (!always).then(|| sequence.n_generated());
            if draft_model.follows(sequence.id, &sequence.token_ids, n_generated) {
                rates += rate;
                most = most.max(sequence.n_draftable());
                asking.push(sequence);
            }
        }
        let n_asking = asking.len();
        let most = most.min(MAX_DRAFT).min(budget.min(MAX_DRAFT_ROWS) / n_asking.max(1));
        if most == 0 {
            return;
        }
        let n = if always {
            most
        } else {
            let rate = rates / n_asking as f32;
            draft_model.n_worth(rate, n_asking, n_rows, &self.row_cost).min(most)
        };
        if n == 0 {
            return;
        }
        let sequences: Vec<(u64, &[u32])> =
            asking.iter().map(|sequence| (sequence.id, &sequence.token_ids[..])).collect();
        match catch_unwind(AssertUnwindSafe(|| draft_model.draft(&sequences, n))) {
            Ok(drafts) => {
                for (sequence, draft) in asking.into_iter().zip(drafts) {
                    sequence.drafter.set_model_draft(&draft);
                }
            }
            Err(panic) => {
                let detail = panic_message(panic.as_ref());
                error!(detail, "the draft model panicked: it is not asked any more");
                self.draft_model = None;
            }
        }
    }

    /// Takes all blocks from the request that arrived last. The first to arrive has what it needs in the end: alone it has all blocks,
    /// and no request is accepted that these are too few for. So each request ends, one after the other if need be.
    fn preempt_latest(&mut self) {
        let mut sequence = self.running.pop().expect("a request that lacks blocks is running");
        debug!(n_tokens = sequence.token_ids.len(), "generation preempted for want of blocks");
        self.pool.release(std::mem::take(&mut sequence.blocks));
        sequence.n_cached = 0;
        sequence.n_preemptions += 1;
        self.counters.count_preemption();
        // All that are there arrived later: while one is, nothing else is admitted.
        self.preempted.push_front(sequence);
    }

    /// Runs the model on the planned rows; false if that panicked, after failing the requests concerned.
    fn compute_step(&mut self) -> bool {
        let mut masks = take_masks(&mut self.running);
        let running = &self.running;
        let stepped: Vec<usize> = (0..running.len()).filter(|&i| running[i].n_step > 0).collect();
        let rows: Vec<CachedRows<'_>> = stepped
            .iter()
            .map(|&i| &running[i])
            .map(|sequence| CachedRows {
                token_ids: sequence.step_tokens(),
                n_logits: sequence.n_logits(),
                wanted: sequence.wanted,
                adapter: sequence.adapter.as_deref(),
                first_position: sequence.n_cached,
                block_tables: sequence.blocks.tables(),
            })
            .collect();
        let (logits, likeliest) = (&mut self.logits, &mut self.likeliest);
        let (scored, scratch) = (&mut self.scored, self.drawers.scratch());
        logits.clear();
        likeliest.clear();
        scored.clear();
        let mut on_logits = |of: LogitsRow, row: RowLogits<'_>| {
            let idx = stepped[of.sequence_idx];
            let sequence = &running[idx];
            let row = match row {
                RowLogits::Likeliest(found) => return likeliest.push(found),
                RowLogits::Logits(row) => row,
            };
            if let Some(score) = sequence.score_prompt(of.row_idx, row, scratch) {
                scored.push((idx, score));
            } else if of.row_idx + 1 >= sequence.n_uncached() {
                logits.extend_from_slice(row);
            }
        };
        let forward = &mut self.forward;
        // After a panic the blocks of this step are given back, to be written before they are read, and the workspace holds
        // nothing between steps.
        let has_masks = !masks.is_empty();
        let (outcome, seconds) = beside(
            || masks.iter_mut().for_each(|(_, mask)| mask.prepare()),
            has_masks,
            || {
                let start = Instant::now();
                let outcome = catch_unwind(AssertUnwindSafe(|| forward(&rows, &mut on_logits)));
                (outcome, start.elapsed().as_secs_f64())
            },
        );
        if outcome.is_ok() && running.iter().all(|sequence| sequence.n_step <= 1) {
            let n_rows = rows.iter().map(|row| row.token_ids.len()).sum();
            self.row_cost.observe(n_rows, seconds);
        }
        for (idx, mask) in masks {
            *self.running[idx].mask_mut() = Some(mask);
        }
        let Err(panic) = outcome else {
            for sequence in &mut self.running {
                let n_step = sequence.n_step;
                advance(&mut self.pool, sequence, n_step);
            }
            return true;
        };
        let detail = panic_message(panic.as_ref());
        error!(detail, n_sequences = self.running.len(), "step of the model panicked");
        retire(&mut self.running, &mut self.pool, |sequence, _| {
            if sequence.n_step > 0 {
                let detail = detail.clone();
                sequence.events.send(Event::Failed(EngineError::StepPanicked { detail }));
            }
            sequence.n_step == 0
        });
        false
    }

    /// Hands over scored tokens of prompts, and the next tokens of each sequence whose tokens are all computed.
    fn hand_over(&mut self) {
        let mut outcomes = std::mem::take(&mut self.outcomes);
        outcomes.clear();
        outcomes.resize(self.running.len(), None);
        for (idx, score) in std::mem::take(&mut self.scored) {
            if outcomes[idx].is_none() && self.running[idx].take_score(score) == Next::IsOver {
                outcomes[idx] = Some((Next::IsOver, 0));
            }
        }
        self.draw_tokens(&mut outcomes);
        let (counters, mut rest) = (&self.counters, outcomes.iter());
        retire(&mut self.running, &mut self.pool, |sequence, pool| {
            let outcome = rest.next().expect("an outcome for each sequence");
            let Some((next, n_right)) = *outcome else { return true };
            counters.count_drafts(sequence.n_drafted, n_right);
            advance(pool, sequence, n_right);
            next == Next::GoesOn
        });
        self.outcomes = outcomes;
    }

    /// Draws the tokens that come next and hands them over, for sequences that have no outcome yet.
    fn draw_tokens(&mut self, outcomes: &mut [Option<(Next, usize)>]) {
        let vocab_size = self.vocab_size;
        let (mut logits, mut likeliest) = (&self.logits[..], &self.likeliest[..]);
        let mut drawing = Vec::with_capacity(self.running.len());
        let sequences = self.running.iter_mut().zip(outcomes);
        for (sequence, outcome) in sequences.filter(|(sequence, _)| sequence.awaits_token()) {
            let n_rows = 1 + sequence.n_drafted;
            let rows = match sequence.wanted {
                Wanted::Likeliest => Rows::Likeliest(take(&mut likeliest, n_rows)),
                Wanted::Logits => Rows::Logits(take(&mut logits, n_rows * vocab_size)),
            };
            if outcome.is_none() {
                drawing.push(Drawing { sequence, rows, outcome });
            }
        }
        self.drawers.run(drawing);
    }
}

/// The first `n`, which the rest is then without.
fn take<'a, T>(rest: &mut &'a [T], n: usize) -> &'a [T] {
    let (first, others) = rest.split_at(n);
    *rest = others;
    first
}

/// Keeps the sequences for which `stays` holds and gives back the blocks of the others.
fn retire(
    running: &mut Vec<Sequence>,
    pool: &mut BlockPool,
    mut stays: impl FnMut(&mut Sequence, &mut BlockPool) -> bool,
) {
    running.retain_mut(|sequence| {
        let keep = stays(sequence, pool);
        if !keep {
            pool.release(std::mem::take(&mut sequence.blocks));
        }
        keep
    });
}

/// Rows of logits of a step: of each request, and of guesses.
pub(crate) const fn max_logits(limits: &EngineLimits) -> usize {
    match limits.speculation {
        Speculation::Off => limits.max_running,
        _ => limits.max_running + MAX_DRAFT_ROWS,
    }
}

/// The masks of the sequences that draw in this step, and whose they are.
fn take_masks(running: &mut [Sequence]) -> Vec<(usize, Masked)> {
    let drawing = running.iter_mut().enumerate().filter(|(_, sequence)| sequence.draws());
    drawing.filter_map(|(idx, sequence)| Some((idx, sequence.mask_mut().take()?))).collect()
}

/// Runs `masks` on a thread of its own while `model` runs on this one. Where the system has no thread for it, tokens are drawn all the
/// same: masks that are not prepared prepare themselves.
fn beside<T>(masks: impl FnOnce() + Send, is_needed: bool, model: impl FnOnce() -> T) -> T {
    if !is_needed {
        return model();
    }
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().name("masks".to_owned()).stack_size(MASKS_STACK);
        if let Err(source) = builder.spawn_scoped(scope, masks) {
            warn!(%source, "no thread for masks");
        }
        model()
    })
}

/// Tokens that a sequence of `len` tokens must find room for to be admitted, of `max_len` at most: a block more, so that it is not
/// preempted at once, and twice as much after each time that it was.
fn promised_len(len: usize, max_len: usize, n_preemptions: u32) -> usize {
    let ahead = KEY_BLOCK.saturating_mul(1_usize.checked_shl(n_preemptions).unwrap_or(max_len));
    max_len.min(len.saturating_add(ahead))
}

fn promise_to(sequence: &Sequence) -> usize {
    promised_len(sequence.token_ids.len(), sequence.max_len(), sequence.n_preemptions)
}

/// Takes the blocks of what is known of a beginning, if there are blocks for `n_tokens` tokens beside what running sequences were
/// promised.
fn claim(
    pool: &mut BlockPool,
    running: &[Sequence],
    beginning: Beginning<'_>,
    [n_tokens, max_len]: [usize; 2],
) -> Option<(SequenceBlocks, usize)> {
    let (blocks, n_cached) = pool.reuse(beginning, max_len);
    let promised = running.iter().map(|other| pool.missing(&other.blocks, promise_to(other)));
    let needed = promised.sum::<usize>() + pool.missing(&blocks, n_tokens);
    if needed <= pool.n_available() {
        return Some((blocks, n_cached));
    }
    pool.release(blocks);
    None
}

/// Notes that the next `n_computed` tokens of a sequence have been computed.
fn advance(pool: &mut BlockPool, sequence: &mut Sequence, n_computed: usize) {
    let n_full = sequence.n_cached / KEY_BLOCK;
    sequence.n_cached += n_computed;
    if sequence.n_cached / KEY_BLOCK > n_full {
        let computed = &sequence.token_ids[..sequence.n_cached];
        pool.remember(&sequence.blocks, (computed, sequence.adapter.as_ref()));
    }
    pool.release_passed(&mut sequence.blocks, sequence.n_cached);
}

struct CloseOnDrop(Arc<RequestQueue>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}
