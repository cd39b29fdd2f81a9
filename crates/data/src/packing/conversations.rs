//! Whole conversations in rows of at most one length.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use super::PackedBatch;
use super::shuffle::permutation;
use crate::DataError;

/// A conversation or a document to train on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrainingSample {
    /// Tokens, `[n_tokens]`.
    pub token_ids: Vec<u32>,
    /// Whether each token is trained as a target, `[n_tokens]`. The first token is never one.
    pub trained: Vec<bool>,
}

impl TrainingSample {
    /// A document all of whose tokens are trained, in pieces that fit into rows of `seq_len` tokens. A piece begins with
    /// the last token of the piece before, so that every token but the first is trained exactly once.
    ///
    /// # Panics
    /// When `seq_len` is below 2.
    #[must_use]
    pub fn from_document(token_ids: &[u32], seq_len: usize) -> Vec<Self> {
        assert!(seq_len >= 2, "rows of {seq_len} tokens, expected 2 or more");
        let piece =
            |tokens: &[u32]| Self { token_ids: tokens.to_vec(), trained: vec![true; tokens.len()] };
        let mut pieces = Vec::new();
        let mut start = 0;
        while start + seq_len < token_ids.len() {
            pieces.push(piece(&token_ids[start..start + seq_len]));
            start += seq_len - 1;
        }
        if start < token_ids.len() {
            pieces.push(piece(&token_ids[start..]));
        }
        pieces
    }

    /// Tokens that are trained: marked ones behind the first.
    #[must_use]
    pub fn n_trained(&self) -> u64 {
        self.trained.iter().skip(1).filter(|&&is_trained| is_trained).count() as u64
    }
}

/// Samples shuffled anew in each epoch and put whole into rows of at most `seq_len` tokens.
///
/// Samples are taken in shuffled order; each goes into the first of the open rows that has room, and when none has, a
/// new row is opened. At most 64 rows are open at a time; the oldest is closed first. Samples longer than a row are
/// never cut: they are left out and counted ([`ConversationRows::n_too_long`]), and so are those without a trained
/// token ([`ConversationRows::n_untrained`]).
///
/// Epochs may differ by a few rows; the row counter runs on over all epochs. Memory: the samples, and 8 bytes per sample
/// for each of at most two cached epochs. Time: O(n_samples) per epoch, for the first row asked for in it; a row far
/// ahead needs the plans of all epochs before it once.
#[derive(Debug)]
pub struct ConversationRows {
    samples: Vec<TrainingSample>,
    seq_len: usize,
    seed: u64,
    n_too_long: usize,
    n_untrained: usize,
    n_tokens: u64,
    state: Mutex<Plans>,
}

#[derive(Debug, Default)]
struct Plans {
    /// First row of each epoch whose number of rows is known, and of the one after: `[n_known + 1]`.
    first_rows: Vec<u64>,
    cached: VecDeque<(usize, Arc<EpochPlan>)>,
}

/// The rows of one epoch.
#[derive(Debug)]
struct EpochPlan {
    /// Samples in the order of the rows, `[n_samples]`.
    samples: Vec<u32>,
    /// Where each row begins in `samples`, and the end: `[n_rows + 1]`.
    row_starts: Vec<u32>,
}

impl EpochPlan {
    fn n_rows(&self) -> u64 {
        (self.row_starts.len() - 1) as u64
    }

    fn row(&self, row_in_epoch: u64) -> &[u32] {
        let row = row_in_epoch as usize;
        &self.samples[self.row_starts[row] as usize..self.row_starts[row + 1] as usize]
    }
}

/// Rows that are still being filled.
const N_OPEN_ROWS: usize = 64;
const N_CACHED_PLANS: usize = 2;

/// Epochs and samples that may stand before a row that is asked for: half a gigabyte of first rows, and some minutes of
/// planning. No run of honest length comes near.
const MAX_EPOCHS: u64 = 1 << 26;
const MAX_PLANNED: u64 = 1 << 32;

impl ConversationRows {
    /// Prepares rows of at most `seq_len` tokens.
    ///
    /// # Errors
    /// When a sample's tokens and marks differ in number, when nothing fits into a row or nothing is trained, when there
    /// are more than 2^32 - 1 samples, or when `seq_len` is not in 2..=2^24.
    pub fn new(samples: Vec<TrainingSample>, seq_len: usize, seed: u64) -> Result<Self, DataError> {
        super::check_seq_len(seq_len)?;
        let n_samples = samples.len();
        super::to_u32(n_samples)?;
        let (mut n_too_long, mut n_untrained) = (0, 0);
        let mut kept = Vec::with_capacity(n_samples);
        for (sample_idx, sample) in samples.into_iter().enumerate() {
            let (n_tokens, n_marks) = (sample.token_ids.len(), sample.trained.len());
            if n_tokens != n_marks {
                return Err(DataError::SampleLength { sample_idx, n_tokens, n_marks });
            }
            if n_tokens > seq_len {
                n_too_long += 1;
            } else if sample.n_trained() == 0 {
                n_untrained += 1;
            } else {
                kept.push(sample);
            }
        }
        if kept.is_empty() {
            return Err(DataError::NothingToTrain { n_samples, n_too_long, seq_len });
        }
        Ok(Self {
            n_tokens: kept.iter().map(|sample| sample.token_ids.len() as u64).sum(),
            samples: kept,
            seq_len,
            seed,
            n_too_long,
            n_untrained,
            state: Mutex::new(Plans { first_rows: vec![0], cached: VecDeque::new() }),
        })
    }

    /// Most tokens of a row.
    #[must_use]
    pub fn seq_len(&self) -> usize {
        self.seq_len
    }

    /// Samples that are trained on.
    #[must_use]
    pub fn n_samples(&self) -> usize {
        self.samples.len()
    }

    /// Samples left out because they are longer than a row.
    #[must_use]
    pub fn n_too_long(&self) -> usize {
        self.n_too_long
    }

    /// Samples left out because none of their tokens is trained.
    #[must_use]
    pub fn n_untrained(&self) -> usize {
        self.n_untrained
    }

    /// Tokens of one epoch.
    #[must_use]
    pub fn n_tokens(&self) -> u64 {
        self.n_tokens
    }

    /// The row at which an epoch begins; epoch 0 begins at row 0. So `first_row_of(n)` rows are `n` epochs.
    ///
    /// Plans all epochs before it when it is asked for the first time.
    #[cfg(test)]
    pub(super) fn first_row_of(&self, epoch: usize) -> u64 {
        let mut state = self.lock();
        while state.first_rows.len() <= epoch {
            self.plan_next(&mut state);
        }
        state.first_rows[epoch]
    }

    /// Whether the epochs before a row can be planned, for a row that a file names.
    ///
    /// # Errors
    /// When they are too many.
    pub fn check_reachable(&self, row_idx: u64) -> Result<(), DataError> {
        let rows_per_epoch = self.n_tokens.div_ceil(self.seq_len as u64);
        let n_epochs = row_idx / rows_per_epoch;
        let n_planned = n_epochs.saturating_mul(self.samples.len() as u64);
        if n_epochs <= MAX_EPOCHS && n_planned <= MAX_PLANNED {
            return Ok(());
        }
        let expected = "a row of the first 2^26 epochs and of the first 2^32 samples";
        Err(DataError::Setting { field: "next row", got: row_idx.to_string(), expected })
    }

    /// Row `row_idx` as a batch of its own.
    #[must_use]
    pub fn row(&self, row_idx: u64) -> PackedBatch {
        self.batch(row_idx, 1)
    }

    /// The rows `first_row..first_row + n_rows`, one after another; at most `n_rows * seq_len` tokens.
    ///
    /// # Panics
    /// When the batch has 2^32 tokens or more.
    #[must_use]
    pub fn batch(&self, first_row: u64, n_rows: usize) -> PackedBatch {
        let mut batch = PackedBatch::new();
        for row_idx in first_row..first_row + n_rows as u64 {
            let (plan, row_in_epoch) = self.locate(row_idx);
            for &sample in plan.row(row_in_epoch) {
                append_sample(&self.samples[sample as usize], &mut batch);
            }
        }
        batch
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Plans> {
        // A thread that panicked here left the plans whole: they are added complete.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The plan of the row's epoch, and the row's number in it.
    fn locate(&self, row_idx: u64) -> (Arc<EpochPlan>, u64) {
        let mut state = self.lock();
        while state.first_rows.last().is_some_and(|&end| end <= row_idx) {
            self.plan_next(&mut state);
        }
        let epoch = state.first_rows.partition_point(|&first| first <= row_idx) - 1;
        let row_in_epoch = row_idx - state.first_rows[epoch];
        if let Some((_, plan)) = state.cached.iter().find(|(cached, _)| *cached == epoch) {
            return (Arc::clone(plan), row_in_epoch);
        }
        let plan = Arc::new(self.plan(epoch));
        keep(&mut state.cached, epoch, &plan);
        (plan, row_in_epoch)
    }

    /// Plans the first epoch whose number of rows is not known.
    fn plan_next(&self, state: &mut Plans) {
        let epoch = state.first_rows.len() - 1;
        let plan = Arc::new(self.plan(epoch));
        let end = state.first_rows[epoch] + plan.n_rows();
        state.first_rows.push(end);
        keep(&mut state.cached, epoch, &plan);
    }

    fn plan(&self, epoch: usize) -> EpochPlan {
        let mut closed: Vec<Vec<u32>> = Vec::new();
        let mut open: VecDeque<(usize, Vec<u32>)> = VecDeque::with_capacity(N_OPEN_ROWS + 1);
        for sample in permutation(self.samples.len(), self.seed, epoch as u64) {
            let n_tokens = self.samples[sample as usize].token_ids.len();
            match open.iter_mut().find(|(n_free, _)| *n_free >= n_tokens) {
                Some((n_free, row)) => {
                    *n_free -= n_tokens;
                    row.push(sample);
                }
                None => open.push_back((self.seq_len - n_tokens, vec![sample])),
            }
            if open.len() > N_OPEN_ROWS {
                closed.extend(open.pop_front().map(|(_, row)| row));
            }
        }
        closed.extend(open.into_iter().map(|(_, row)| row));
        let mut plan = EpochPlan { samples: Vec::new(), row_starts: vec![0] };
        for row in closed {
            plan.samples.extend(row);
            // The number of samples fits, as was checked at the beginning.
            plan.row_starts.push(plan.samples.len() as u32);
        }
        plan
    }
}

fn keep(cached: &mut VecDeque<(usize, Arc<EpochPlan>)>, epoch: usize, plan: &Arc<EpochPlan>) {
    cached.push_back((epoch, Arc::clone(plan)));
    if cached.len() > N_CACHED_PLANS {
        cached.pop_front();
    }
}

fn append_sample(sample: &TrainingSample, batch: &mut PackedBatch) {
    batch.token_ids.extend_from_slice(&sample.token_ids);
    for (&target, &is_trained) in sample.token_ids.iter().zip(&sample.trained).skip(1) {
        batch.targets.push(if is_trained { target } else { 0 });
        batch.target_weights.push(if is_trained { 1.0 } else { 0.0 });
    }
    batch.targets.push(0);
    batch.target_weights.push(0.0);
    batch.end_segment();
}
