//! Draft tokens of a smaller model that has the same vocabulary: what it would say next is a guess of what the model says.

use std::sync::Arc;
use std::time::Instant;

use model::{CacheKind, Decoder, KvBlocks, KvCache, ModelConfig, Workspace};
use tensor::{DType, Device};

use crate::draft::{MAX_DRAFT, RowCost};

/// Sequences that it follows at once: with more of them, rows are too dear for guesses.
const MAX_FOLLOWED: usize = 4;

/// Steps in which it is not asked before it is asked again, in case it does better now: twice as many each time, up to a bound, for it must
/// then read what was said meanwhile.
const STEPS_BEFORE_TRYING: usize = 128;
const MOST_STEPS_BEFORE_TRYING: usize = 4096;

/// Cost of one step of it, a step of the model being 1, before it is known.
const ASSUMED_COST: f32 = 0.2;

/// Weight of the newest step in the time of one.
const NEWEST: f64 = 0.1;

/// How much a draft model follows: the shape of the models, and the bounds of the engine.
#[derive(Debug, Clone)]
pub(crate) struct DraftPlan {
    pub(crate) n_followed: usize,
    /// Tokens of a sequence.
    max_tokens: usize,
    /// Tokens of a step.
    max_rows: usize,
}

impl DraftPlan {
    /// For an engine of up to `max_running` sequences of up to `max_len` tokens.
    pub(crate) fn new(
        draft: &ModelConfig,
        [max_running, max_len, step_tokens]: [usize; 3],
    ) -> Self {
        Self {
            n_followed: max_running.min(MAX_FOLLOWED),
            max_tokens: max_len.min(draft.context_len),
            // What is guessed and taken back again is as much at most.
            max_rows: step_tokens.max(MAX_DRAFT),
        }
    }

    /// Bytes that it takes beside its weights.
    pub(crate) fn bytes(&self, draft: &ModelConfig, dtype: DType) -> usize {
        let of_one =
            KvBlocks::bytes_for(draft, dtype, CacheKind::Operands, self.max_tokens, self.max_rows)
                + self.max_tokens * size_of::<u32>();
        self.n_followed * (of_one + draft.vocab_size * size_of::<f32>())
            + Workspace::max_bytes_for_decoder(draft, dtype, self.max_rows)
    }
}

/// A draft model, and what it has read of the sequences that it follows.
pub(crate) struct DraftModel {
    decoder: Arc<Decoder>,
    device: Device,
    plan: DraftPlan,
    cache: KvCache,
    workspace: Workspace,
    /// After the last token of each sequence of the last step, `[sequences, vocab]`.
    logits: Vec<f32>,
    followed: Vec<Followed>,
    /// Of a step of a row or two of each sequence.
    step_seconds: Option<f64>,
    n_steps_unasked: usize,
    steps_before_trying: usize,
}

/// A place of the cache.
#[derive(Debug)]
struct Followed {
    sequence_id: Option<u64>,
    /// The tokens whose keys and values it holds.
    token_ids: Vec<u32>,
}

impl DraftModel {
    pub(crate) fn new(decoder: Arc<Decoder>, device: Device, plan: DraftPlan) -> Self {
        let DraftPlan { n_followed, max_tokens, max_rows } = plan;
        let (config, dtype) = (decoder.config(), decoder.dtype());
        let kind = CacheKind::Operands;
        let place = |_| Followed { sequence_id: None, token_ids: Vec::with_capacity(max_tokens) };
        Self {
            cache: KvCache::new(config, dtype, kind, n_followed, max_tokens, max_rows),
            workspace: Workspace::for_decoder(&decoder, max_rows),
            logits: Vec::with_capacity(n_followed * config.vocab_size),
            followed: (0..n_followed).map(place).collect(),
            step_seconds: None,
            n_steps_unasked: 0,
            steps_before_trying: STEPS_BEFORE_TRYING,
            decoder,
            device,
            plan,
        }
    }

    /// Leaves the places of sequences that are not among these to others.
    pub(crate) fn keep(&mut self, mut is_running: impl FnMut(u64) -> bool) {
        for followed in &mut self.followed {
            followed.sequence_id.take_if(|id| !is_running(*id));
        }
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
        let cost = self.step_seconds.zip(row_cost.seconds_of_first());
        let cost = cost.map_or(ASSUMED_COST, |(own, of_model)| (own / of_model) as f32);
        let n_worth = |chance| {
            most_tokens_for_time(chance, [n_sequences, n_rows], row_cost.of_one_more(), cost)
        };
        let n = n_worth(chance);
        if n > 0 {
            (self.n_steps_unasked, self.steps_before_trying) = (0, STEPS_BEFORE_TRYING);
            return n;
        }
        self.n_steps_unasked += usize::from(n_worth(1.0) > 0);
        if self.n_steps_unasked < self.steps_before_trying {
            return 0;
        }
        self.n_steps_unasked = 0;
        self.steps_before_trying = (2 * self.steps_before_trying).min(MOST_STEPS_BEFORE_TRYING);
        1
    }

    /// Guesses up to `n` tokens after each sequence, given as its id and its tokens: none for one that it cannot follow, or has still
    /// to read.
    pub(crate) fn guess(&mut self, sequences: &[(u64, &[u32])], n: usize) -> Vec<Vec<u32>> {
        let mut guesses = vec![Vec::new(); sequences.len()];
        let (mut budget, mut reads, mut guessing) = (self.plan.max_rows, Vec::new(), Vec::new());
        for (idx, &(id, token_ids)) in sequences.iter().enumerate() {
            let Some(place) = self.place_of(id, token_ids, n) else { continue };
            let unread = &token_ids[self.cache.len(place)..];
            let n_read = unread.len().min(budget);
            budget -= n_read;
            if n_read > 0 {
                let is_all = n_read == unread.len();
                guessing.push(is_all.then_some((idx, place)));
                reads.push((place, &unread[..n_read]));
            }
        }
        if reads.is_empty() || n == 0 {
            return guesses;
        }
        self.step(&reads);
        let mut last = self.likeliest(&guessing, &mut guesses);
        for _ in 1..n {
            let reads: Vec<_> = last.iter().map(|(_, place, token)| (*place, &token[..])).collect();
            if reads.is_empty() {
                break;
            }
            self.step(&reads);
            let guessing: Vec<_> = last.iter().map(|&(idx, place, _)| Some((idx, place))).collect();
            last = self.likeliest(&guessing, &mut guesses);
        }
        guesses
    }

    /// The place of a sequence, whose cache holds a beginning of `token_ids`, all but the last at most; `None` where all places are
    /// taken or too small.
    fn place_of(&mut self, id: u64, token_ids: &[u32], n_more: usize) -> Option<usize> {
        if token_ids.len() + n_more > self.plan.max_tokens {
            return None;
        }
        let mine = self.followed.iter().position(|followed| followed.sequence_id == Some(id));
        let place = mine
            .or_else(|| self.followed.iter().position(|followed| followed.sequence_id.is_none()))?;
        let followed = &mut self.followed[place];
        followed.sequence_id = Some(id);
        let pairs = followed.token_ids.iter().zip(&token_ids[..token_ids.len() - 1]);
        let n_common = pairs.take_while(|(a, b)| a == b).count();
        // More than guesses is taken back only of another sequence's tokens.
        let is_near = followed.token_ids.len() - n_common <= self.plan.max_rows;
        let len = if is_near { n_common } else { 0 };
        followed.token_ids.truncate(len);
        self.cache.truncate(place, len);
        Some(place)
    }

    /// Reads tokens of the sequences in some places.
    fn step(&mut self, reads: &[(usize, &[u32])]) {
        let start = Instant::now();
        let Self { decoder, device, cache, workspace, logits, .. } = self;
        cache.append(decoder, device, reads, workspace, logits);
        // Where all guesses came true, the last of them is read with the token after it.
        if reads.iter().all(|(_, token_ids)| token_ids.len() <= 2) {
            let seconds = start.elapsed().as_secs_f64();
            let known = self.step_seconds.get_or_insert(seconds);
            *known += NEWEST * (seconds - *known);
        }
        for &(place, token_ids) in reads {
            self.followed[place].token_ids.extend_from_slice(token_ids);
        }
    }

    /// Appends the likeliest token after each sequence of the last step to its guesses.
    fn likeliest(
        &self,
        guessing: &[Option<(usize, usize)>],
        guesses: &mut [Vec<u32>],
    ) -> Vec<(usize, usize, [u32; 1])> {
        let rows = self.logits.chunks_exact(self.decoder.config().vocab_size);
        let wanted =
            guessing.iter().zip(rows).filter_map(|(guessing, row)| Some(((*guessing)?, row)));
        wanted
            .map(|((idx, place), row)| {
                let best =
                    (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best });
                guesses[idx].push(best as u32);
                (idx, place, [best as u32])
            })
            .collect()
    }
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
    use super::*;

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
}
