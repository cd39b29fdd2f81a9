//! Draft tokens of a smaller model that has the same tokens: what it would say next is a guess of what the model says.

use std::sync::Arc;
use std::time::Instant;

use kernels::likeliest::argmax;
use model::{CacheKind, Decoder, KEY_BLOCK, KvBlocks, KvCache, ModelConfig, Workspace};
use tensor::{DType, Device};

use crate::EngineLimits;
use crate::draft::{ASSUMED_RATE, MAX_DRAFT, RowCost};

/// Sequences that it follows at once: with more of them, rows are too dear for guesses.
const MAX_FOLLOWED: usize = 4;

/// Tokens that it reads before it guesses, for each token that was generated: an answer is expected to go on for as long as it has been.
const UNREAD_PER_GENERATED: usize = 8;

/// Steps in which it is not asked before it is tried again, in case it does better now: twice as many each time, up to a bound, for it must
/// then read what was said meanwhile.
const STEPS_BEFORE_TRYING: usize = 128;
const MOST_STEPS_BEFORE_TRYING: usize = 4096;

/// Steps of a trial that give a guess: as many as make a bad name good.
const STEPS_OF_TRIAL: usize = 16;

/// Cost of one step of it, a step of the model being 1, before so many steps were timed.
const ASSUMED_COST: f32 = 0.2;
const N_TIMED_BEFORE_KNOWN: u32 = 3;

/// Weight of the newest step in the time of one, and of the newest sequences in how often guesses come true.
const NEWEST: f64 = 0.1;

/// How much a draft model follows.
#[derive(Debug, Clone)]
pub(crate) struct DraftPlan {
    cache_kind: CacheKind,
    n_followed: usize,
    /// Tokens of a sequence.
    max_tokens: usize,
    /// Tokens of a step.
    max_rows: usize,
}

impl DraftPlan {
    /// For an engine of these limits, whose sequences have up to `max_len` tokens: as many sequences, then as long ones, as
    /// [`EngineLimits::cache_bytes`] has room for.
    pub(crate) fn new(
        draft: &ModelConfig,
        dtype: DType,
        limits: &EngineLimits,
        max_len: usize,
    ) -> Self {
        let mut plan = Self {
            cache_kind: limits.cache_kind,
            n_followed: limits.max_running.min(MAX_FOLLOWED),
            max_tokens: max_len.min(draft.context_len),
            // What is guessed and taken back again is as much at most.
            max_rows: limits.step_tokens.max(MAX_DRAFT),
        };
        while plan.cache_bytes(draft, dtype) > limits.cache_bytes && plan.max_tokens > 0 {
            if plan.n_followed > 1 {
                plan.n_followed -= 1;
            } else {
                plan.max_tokens -= plan.max_tokens.min(KEY_BLOCK);
            }
        }
        plan
    }

    fn cache_bytes(&self, draft: &ModelConfig, dtype: DType) -> usize {
        let Self { cache_kind, n_followed, max_tokens, max_rows } = *self;
        n_followed * KvBlocks::bytes_for(draft, dtype, cache_kind, max_tokens, max_rows)
    }

    /// Bytes that it takes beside its weights.
    pub(crate) fn bytes(&self, draft: &ModelConfig, dtype: DType) -> usize {
        let tables = draft.n_layers * self.max_tokens.div_ceil(KEY_BLOCK) * size_of::<u32>();
        let of_one =
            tables + self.max_tokens * size_of::<u32>() + draft.vocab_size * size_of::<f32>();
        self.cache_bytes(draft, dtype)
            + self.n_followed * of_one
            + Workspace::max_bytes_for_decoder(draft, dtype, self.max_rows)
    }
}

/// A draft model, and what it has read of the sequences that it follows.
pub(crate) struct DraftModel {
    decoder: Arc<Decoder>,
    device: Device,
    plan: DraftPlan,
    /// Token ids below this are those of both models.
    n_ids: usize,
    cache: KvCache,
    workspace: Workspace,
    /// After the last token of each sequence of the last step, `[sequences, vocab]`.
    logits: Vec<f32>,
    followed: Vec<Followed>,
    /// Seconds of a step of a row or two of each sequence, and how many were timed.
    step_seconds: f64,
    n_timed: u32,
    /// Of all sequences lately.
    acceptance_rate: f32,
    n_steps_unasked: usize,
    steps_before_trying: usize,
    n_steps_of_trial: usize,
}

/// A place of the cache.
#[derive(Debug)]
struct Followed {
    sequence_id: Option<u64>,
    /// The tokens whose keys and values it holds.
    token_ids: Vec<u32>,
}

/// A sequence that draft tokens are made for.
#[derive(Debug, Clone, Copy)]
struct Drafting {
    sequence_idx: usize,
    place: usize,
    /// The last of its draft tokens.
    last: [u32; 1],
}

impl DraftModel {
    /// For a model of `vocab_size` tokens.
    pub(crate) fn new(
        decoder: Arc<Decoder>,
        device: Device,
        plan: DraftPlan,
        vocab_size: usize,
    ) -> Self {
        let DraftPlan { cache_kind, n_followed, max_tokens, max_rows } = plan;
        let config = decoder.config();
        let place = |_| Followed { sequence_id: None, token_ids: Vec::with_capacity(max_tokens) };
        Self {
            n_ids: vocab_size.min(config.vocab_size),
            cache: KvCache::new(&decoder, cache_kind, n_followed, max_tokens, max_rows),
            workspace: Workspace::for_decoder(&decoder, max_rows),
            logits: Vec::with_capacity(n_followed * config.vocab_size),
            followed: (0..n_followed).map(place).collect(),
            step_seconds: f64::INFINITY,
            n_timed: 0,
            acceptance_rate: ASSUMED_RATE,
            n_steps_unasked: 0,
            steps_before_trying: STEPS_BEFORE_TRYING,
            n_steps_of_trial: 0,
            decoder,
            device,
            plan,
        }
    }

    /// How often its guesses came true lately.
    pub(crate) fn acceptance_rate(&self) -> f32 {
        self.acceptance_rate
    }

    /// Leaves the places of sequences that are not among these to others.
    pub(crate) fn keep(&mut self, mut is_running: impl FnMut(u64) -> bool) {
        for followed in &mut self.followed {
            if followed.sequence_id.is_some_and(|id| !is_running(id)) {
                followed.sequence_id = None;
            }
        }
    }

    /// Whether it guesses what a sequence says: there is a place, the sequence fits it and has tokens that it knows; and, of one of which
    /// so many tokens were generated, it has not too much to read.
    pub(crate) fn follows(
        &mut self,
        id: u64,
        token_ids: &[u32],
        n_generated: Option<usize>,
    ) -> bool {
        let place = self.place_of(id);
        let n_read =
            place.map_or(0, |place| common_len(&self.followed[place].token_ids, token_ids));
        let unread = &token_ids[n_read..];
        let is_known = unread.iter().all(|&id| (id as usize) < self.n_ids);
        if token_ids.len() + MAX_DRAFT > self.plan.max_tokens || !is_known {
            // Others may have its place.
            if let Some(place) = place {
                self.followed[place].sequence_id = None;
            }
            return false;
        }
        let most_unread =
            n_generated.map_or(usize::MAX, |n| n.saturating_mul(UNREAD_PER_GENERATED));
        let has_place = place.is_some() || self.free_place().is_some();
        has_place && unread.len() <= most_unread
    }

    fn place_of(&self, id: u64) -> Option<usize> {
        self.followed.iter().position(|followed| followed.sequence_id == Some(id))
    }

    fn free_place(&self) -> Option<usize> {
        self.followed.iter().position(|followed| followed.sequence_id.is_none())
    }

    /// How many tokens to guess for each of `n_sequences`, whose guesses come true with this chance, so that a step of `n_rows` rows
    /// yields most tokens for its time. Now and then one, where none pays but would if it were right, to learn whether that has changed.
    pub(crate) fn n_worth(
        &mut self,
        chance: f32,
        n_sequences: usize,
        n_rows: usize,
        row_cost: &RowCost,
    ) -> usize {
        self.acceptance_rate += NEWEST as f32 * (chance - self.acceptance_rate);
        let known = (self.n_timed >= N_TIMED_BEFORE_KNOWN).then_some(self.step_seconds);
        let cost = known.zip(row_cost.seconds_of_first());
        let cost = cost.map_or(ASSUMED_COST, |(own, of_model)| (own / of_model) as f32);
        let n_worth = |chance| {
            most_tokens_for_time(chance, [n_sequences, n_rows], row_cost.of_one_more(), cost)
        };
        let n = n_worth(chance);
        if n > 0 {
            (self.n_steps_unasked, self.n_steps_of_trial) = (0, 0);
            self.steps_before_trying = STEPS_BEFORE_TRYING;
            return n;
        }
        if self.n_steps_of_trial > 0 {
            return 1;
        }
        self.n_steps_unasked += usize::from(n_worth(1.0) > 0);
        if self.n_steps_unasked < self.steps_before_trying {
            return 0;
        }
        self.n_steps_unasked = 0;
        self.steps_before_trying = (2 * self.steps_before_trying).min(MOST_STEPS_BEFORE_TRYING);
        self.n_steps_of_trial = STEPS_OF_TRIAL;
        1
    }

    /// Up to `n` draft tokens for each sequence, given as its id and its tokens, which [`DraftModel::follows`] holds for: none for one that
    /// others took the last place from, or that it has still to read.
    pub(crate) fn draft(&mut self, sequences: &[(u64, &[u32])], n: usize) -> Vec<Vec<u32>> {
        let mut drafts = vec![Vec::new(); sequences.len()];
        let (mut budget, mut reads, mut drafting) = (self.plan.max_rows, Vec::new(), Vec::new());
        for (sequence_idx, &(id, token_ids)) in sequences.iter().enumerate() {
            let Some(place) = self.take_place(id, token_ids) else { continue };
            let unread = &token_ids[self.cache.len(place)..];
            let n_read = unread.len().min(budget);
            budget -= n_read;
            if n_read > 0 {
                let is_all = n_read == unread.len();
                drafting.push(is_all.then_some(Drafting { sequence_idx, place, last: [0] }));
                reads.push((place, &unread[..n_read]));
            }
        }
        if reads.is_empty() {
            return drafts;
        }
        self.step(&reads);
        self.push_likeliest(&mut drafting, &mut drafts);
        // Those that have still to read what is before them are done.
        drafting.retain(Option::is_some);
        self.n_steps_of_trial -= usize::from(!drafting.is_empty()).min(self.n_steps_of_trial);
        for _ in 1..n {
            let known = drafting.iter().flatten();
            let last: Vec<(usize, [u32; 1])> = known.map(|of| (of.place, of.last)).collect();
            if last.is_empty() {
                break;
            }
            let reads: Vec<_> = last.iter().map(|(place, last)| (*place, &last[..])).collect();
            self.step(&reads);
            self.push_likeliest(&mut drafting, &mut drafts);
        }
        drafts
    }

    /// The place of a sequence, or a free one, whose cache then holds a beginning of `token_ids`, all but the last at most.
    fn take_place(&mut self, id: u64, token_ids: &[u32]) -> Option<usize> {
        let place = self.place_of(id).or_else(|| self.free_place())?;
        let followed = &mut self.followed[place];
        followed.sequence_id = Some(id);
        let n_common = common_len(&followed.token_ids, token_ids);
        let n_kept = self.cache.truncate(place, n_common);
        followed.token_ids.truncate(n_kept);
        Some(place)
    }

    /// Reads tokens of the sequences in some places.
    fn step(&mut self, reads: &[(usize, &[u32])]) {
        let start = Instant::now();
        let Self { decoder, device, cache, workspace, logits, .. } = self;
        cache.append(decoder, device, reads, workspace, logits);
        // Where all guesses came true, the last of them is read with the token after it.
        if reads.iter().all(|(_, token_ids)| token_ids.len() <= 2) {
            self.note_time(start.elapsed().as_secs_f64());
        }
        for &(place, token_ids) in reads {
            self.followed[place].token_ids.extend_from_slice(token_ids);
        }
    }

    /// The fastest of the first steps, then what they take lately; one that was held up says little.
    fn note_time(&mut self, seconds: f64) {
        if self.n_timed < N_TIMED_BEFORE_KNOWN {
            self.n_timed += 1;
            self.step_seconds = self.step_seconds.min(seconds);
        } else {
            self.step_seconds +=
                NEWEST * (seconds.min(2.0 * self.step_seconds) - self.step_seconds);
        }
    }

    /// Appends the likeliest token after each sequence of the last step, `drafting` being as its rows, to the sequence's draft.
    fn push_likeliest(&self, drafting: &mut [Option<Drafting>], drafts: &mut [Vec<u32>]) {
        let rows = self.logits.chunks_exact(self.decoder.config().vocab_size);
        for (drafting, row) in drafting.iter_mut().zip(rows) {
            let Some(of) = drafting else { continue };
            // Logits that are not numbers are a guess like another.
            let (token_id, _) = argmax(&row[..self.n_ids]).unwrap_or_default();
            of.last = [token_id];
            drafts[of.sequence_idx].push(token_id);
        }
    }
}

/// Tokens that a sequence begins with as `read` does, without its last.
fn common_len(read: &[u32], token_ids: &[u32]) -> usize {
    let before_last = &token_ids[..token_ids.len() - 1];
    read.iter().zip(before_last).take_while(|(a, b)| a == b).count()
}

/// How many tokens to guess for each sequence, from 0 to [`MAX_DRAFT`], for the most tokens a time: of chance `c` each, `n` of them yield
/// `1 + c + ... + c^n` tokens.
fn most_tokens_for_time(
    chance: f32,
    [n_sequences, n_rows]: [usize; 2],
    cost_of_row: f32,
    cost_of_draft_step: f32,
) -> usize {
    let (mut tokens, mut power) = (1.0, 1.0);
    let mut cost = 1.0 + cost_of_row * n_rows.saturating_sub(1) as f32;
    let (mut best, mut best_n) = (tokens / cost, 0);
    for n in 1..=MAX_DRAFT {
        power *= chance;
        tokens += power;
        cost += cost_of_row * n_sequences as f32 + cost_of_draft_step;
        if tokens / cost > best {
            (best, best_n) = (tokens / cost, n);
        }
    }
    best_n
}

#[cfg(test)]
mod tests {
    use model::Parameters;
    use tensor::Passes;

    use super::*;

    const MAX_LEN: usize = 160;

    fn draft_model(change: impl FnOnce(&mut EngineLimits)) -> DraftModel {
        let mut config = ModelConfig::example();
        config.context_len = MAX_LEN;
        let config = ModelConfig::new(config).unwrap();
        let compute = kernels::Compute::forced(kernels::Family::Reference, 1).unwrap();
        let device = Device::Cpu(compute);
        let mut decoder = Decoder::zeroed(&device, &config, DType::F32, Passes::Forward);
        decoder.pack(&device, &Parameters::random(&config, 3));
        let mut limits = EngineLimits::default();
        change(&mut limits);
        let plan = DraftPlan::new(&config, DType::F32, &limits, MAX_LEN);
        DraftModel::new(Arc::new(decoder), device, plan, config.vocab_size)
    }

    /// Row costs of a model whose steps take so long.
    fn row_cost(seconds: f64) -> RowCost {
        let mut cost = RowCost::default();
        (0..20).for_each(|_| cost.observe(1, seconds));
        cost
    }

    #[test]
    fn as_many_are_guessed_as_pay() {
        let of = |chance, cost| most_tokens_for_time(chance, [1, 1], 0.1, cost);
        assert_eq!(of(0.95, 0.05), MAX_DRAFT);
        assert_eq!(of(0.05, 0.05), 0, "the row alone costs more");
        assert_eq!(of(0.95, 1.0), 0, "it takes as long as the model");
        let some = of(0.7, 0.1);
        assert!((2..MAX_DRAFT).contains(&some), "{some}");
        // Many rows are dear: eight users, each row a third of a step.
        assert_eq!(most_tokens_for_time(0.8, [8, 8], 0.3, 0.1), 0);
    }

    #[test]
    fn it_is_left_alone_where_it_is_slow_and_tried_again_where_it_is_wrong() {
        let mut model = draft_model(|_| {});
        assert_eq!(model.draft(&[(1, &[5, 6, 7])], 8)[0].len(), 8);
        let n_asked = |model: &mut DraftModel, chance, n_steps, seconds| {
            let cost = row_cost(seconds);
            (0..n_steps).filter(|_| model.n_worth(chance, 1, 1, &cost) > 0).count()
        };
        // Its steps were timed; those of the model take a nanosecond, or an hour.
        assert_eq!(n_asked(&mut model, 1.0, 1000, 1e-9), 0, "too slow to be right often enough");
        assert_eq!(n_asked(&mut model, 0.9, 10, 3600.0), 10);
        assert_eq!(n_asked(&mut model, 0.01, 127, 3600.0), 0);
        // A trial goes on until it gave guesses, though much is to be read first.
        let text: Vec<u32> = (0..150).map(|i| i % 13).collect();
        let (cost, mut n_guesses, mut n_steps) = (row_cost(3600.0), 0, 0);
        while model.n_worth(0.01, 1, 1, &cost) == 1 {
            n_guesses += model.draft(&[(1, &text[..100 + n_guesses])], 1)[0].len();
            n_steps += 1;
        }
        assert_eq!((n_guesses, n_steps), (STEPS_OF_TRIAL, STEPS_OF_TRIAL));
        assert_eq!(n_asked(&mut model, 0.01, 254, 3600.0), 0, "twice as long as before");
        assert_eq!(model.n_worth(0.01, 1, 1, &cost), 1);
    }

    #[test]
    fn one_step_that_was_held_up_says_little() {
        let mut model = draft_model(|_| {});
        [0.9, 0.002, 0.002, 0.002, 0.5].into_iter().for_each(|seconds| model.note_time(seconds));
        assert!((0.002..0.0023).contains(&model.step_seconds), "{}", model.step_seconds);
    }

    #[test]
    fn long_prompts_are_read_in_pieces_once_the_answer_is_long_enough() {
        let mut model = draft_model(|limits| (limits.max_running, limits.step_tokens) = (1, 16));
        let text: Vec<u32> = (0..MAX_LEN as u32).map(|i| i % 13).collect();
        assert!(!model.follows(1, &text[..100], Some(12)), "the answer may be short");
        assert!(model.follows(1, &text[..100], Some(13)));
        let n_drafted = |model: &mut DraftModel| model.draft(&[(1, &text[..100])], 3)[0].len();
        let lens: Vec<usize> = (0..8).map(|_| n_drafted(&mut model)).collect();
        assert_eq!(lens, [0, 0, 0, 0, 0, 0, 3, 3], "16 at a time");
        assert!(model.follows(1, &text[..101], Some(14)), "what was read counts");
        assert!(!model.follows(2, &text[..20], None), "its one place is taken");
        assert!(!model.follows(1, &text[..MAX_LEN - MAX_DRAFT + 1], None), "beyond its context");
        assert!(model.follows(2, &text[..20], None), "which left its place");
        assert!(!model.follows(2, &[1, 2, 999], None), "a token that it has not");
    }

    #[test]
    fn its_cache_is_within_that_of_the_engine_and_as_planned() {
        let all = draft_model(|_| {});
        let config = all.decoder.config();
        let held = |model: &DraftModel| {
            let cache = model.cache.n_bytes();
            let ids: usize =
                model.followed.iter().map(|followed| followed.token_ids.capacity()).sum();
            cache + 4 * ids + 4 * model.logits.capacity()
        };
        let workspace = Workspace::max_bytes_for_decoder(config, DType::F32, 256);
        assert_eq!(all.followed.len(), MAX_FOLLOWED);
        assert_eq!(all.plan.bytes(config, DType::F32), held(&all) + workspace);
        let cache_bytes = all.plan.cache_bytes(config, DType::F32) / 2;
        let half = draft_model(|limits| limits.cache_bytes = cache_bytes);
        assert_eq!((half.followed.len(), half.plan.max_tokens), (2, MAX_LEN));
        let eighth = draft_model(|limits| limits.cache_bytes = cache_bytes / 4);
        assert_eq!((eighth.followed.len(), eighth.plan.max_tokens), (1, 64), "whole blocks");
        let none = draft_model(|limits| limits.cache_bytes = 0);
        assert!(none.plan.max_tokens == 0 && none.cache.n_bytes() == 0);
    }
}
