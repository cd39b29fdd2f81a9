//! Rows of one length for pre-training.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use super::PackedBatch;
use super::shuffle::permutation;
use crate::DataError;
use crate::shard::TokenDocuments;

/// Documents shuffled anew in each epoch, concatenated without end and cut into rows of exactly `seq_len` tokens.
///
/// Nothing is lost or repeated: the stream of one epoch is followed by that of the next, and a row may hold the end of
/// the one and the beginning of the other. A document cut by the end of a row goes on in another row as a new segment,
/// and the last token before the cut still has its target. So that neighbouring rows come from different documents
/// even when documents are long, rows are visited in a shuffled order too, in blocks of as many whole rows as an epoch
/// has.
///
/// Memory: the tokens, and for each of at most four cached epochs 12 bytes per document and 4 per row. Time of a row:
/// O(seq_len + log n_documents); O(n_documents + rows of an epoch) once per epoch.
#[derive(Debug)]
pub struct PretrainingRows {
    sets: Vec<TokenDocuments>,
    /// Set and number in the set of every document that has tokens.
    documents: Vec<(u32, u32)>,
    seq_len: u64,
    seed: u64,
    n_tokens: u64,
    plans: Mutex<BTreeMap<u64, Arc<EpochPlan>>>,
}

/// The order of one epoch.
#[derive(Debug)]
struct EpochPlan {
    /// Documents in the order of the stream.
    order: Vec<u32>,
    /// Where each of them begins in the epoch's stream, and the end: `[n_documents + 1]`.
    starts: Vec<u64>,
    /// Order in which the rows of the block with this number are visited.
    rows: Vec<u32>,
}

/// Epochs whose order is kept: a row at a border needs two, and ranks may be one apart.
const N_CACHED_PLANS: usize = 4;
/// Keeps the order of rows apart from the order of documents.
const ROW_STREAM: u64 = 1 << 63;

impl PretrainingRows {
    /// Prepares rows of `seq_len` tokens from the documents of all sets.
    ///
    /// # Errors
    /// When no document has a token, when there are more than 2^32 - 1, or when `seq_len` is not in 2..=2^24.
    pub fn new(sets: Vec<TokenDocuments>, seq_len: usize, seed: u64) -> Result<Self, DataError> {
        super::check_seq_len(seq_len)?;
        let mut documents = Vec::new();
        let mut n_tokens = 0;
        for (set_idx, set) in sets.iter().enumerate() {
            for document_idx in 0..set.n_documents() {
                if set.document_len(document_idx) > 0 {
                    documents.push((super::to_u32(set_idx)?, super::to_u32(document_idx)?));
                }
            }
            n_tokens += set.n_tokens();
        }
        super::to_u32(documents.len())?;
        // Documents of one token have nothing to predict.
        if n_tokens == documents.len() as u64 {
            let n_samples = sets.iter().map(TokenDocuments::n_documents).sum();
            return Err(DataError::NothingToTrain { n_samples, n_too_long: 0, seq_len });
        }
        let plans = Mutex::default();
        Ok(Self { sets, documents, seq_len: seq_len as u64, seed, n_tokens, plans })
    }

    /// Tokens of a row.
    #[must_use]
    pub fn seq_len(&self) -> usize {
        self.seq_len as usize
    }

    /// Tokens of one epoch, each of them input exactly once per epoch.
    #[must_use]
    pub fn n_tokens(&self) -> u64 {
        self.n_tokens
    }

    /// Documents that have tokens.
    #[must_use]
    pub fn n_documents(&self) -> usize {
        self.documents.len()
    }

    /// Whole rows that an epoch fills, at least 1; what is left over begins the next one.
    #[must_use]
    pub fn rows_per_epoch(&self) -> u64 {
        (self.n_tokens / self.seq_len).max(1)
    }

    /// Row `row_idx` as a batch of its own.
    #[must_use]
    pub fn row(&self, row_idx: u64) -> PackedBatch {
        self.batch(row_idx, 1)
    }

    /// The rows `first_row..first_row + n_rows`, one after another: `n_rows * seq_len` tokens.
    ///
    /// # Panics
    /// When the batch has 2^32 tokens or more, or the rows are beyond 2^64 tokens.
    #[must_use]
    pub fn batch(&self, first_row: u64, n_rows: usize) -> PackedBatch {
        let n_tokens = n_rows * self.seq_len as usize;
        let mut batch = PackedBatch::new();
        batch.token_ids.reserve_exact(n_tokens);
        batch.targets.reserve_exact(n_tokens);
        batch.target_weights.reserve_exact(n_tokens);
        for row_idx in first_row..first_row + n_rows as u64 {
            self.append_row(row_idx, &mut batch);
        }
        batch
    }

    fn append_row(&self, row_idx: u64, batch: &mut PackedBatch) {
        let rows_per_block = self.rows_per_epoch();
        let block = row_idx / rows_per_block;
        let visited = self.plan(block).rows[(row_idx % rows_per_block) as usize];
        let stream_row = block * rows_per_block + u64::from(visited);
        let mut position = stream_row * self.seq_len;
        let end = position + self.seq_len;
        while position < end {
            let plan = self.plan(position / self.n_tokens);
            let epoch_start = position - position % self.n_tokens;
            let within = epoch_start..end.min(epoch_start + self.n_tokens);
            position = self.append_epoch_part(&plan, position, within, batch);
        }
    }

    /// Appends the stream from `position` to the end of `within`, both counted over all epochs. Returns that end.
    fn append_epoch_part(
        &self,
        plan: &EpochPlan,
        mut position: u64,
        within: Range<u64>,
        batch: &mut PackedBatch,
    ) -> u64 {
        // `partition_point` finds the first document that begins behind the position; the one before holds it.
        let offset = position - within.start;
        let mut place = plan.starts.partition_point(|&start| start <= offset) - 1;
        while position < within.end {
            let begin = position - within.start - plan.starts[place];
            let document_len = plan.starts[place + 1] - plan.starts[place];
            let end = document_len.min(begin + (within.end - position));
            self.append_segment(plan.order[place], begin..end, batch);
            position += end - begin;
            place += 1;
        }
        position
    }

    fn append_segment(&self, document: u32, range: Range<u64>, batch: &mut PackedBatch) {
        let (set_idx, document_idx) = self.documents[document as usize];
        let (set, document_idx) = (&self.sets[set_idx as usize], document_idx as usize);
        let n_targets = set.document_len(document_idx).min(range.end + 1) - (range.start + 1);
        let n_trained = n_targets as usize;
        let targets = range.start + 1..range.start + 1 + n_targets;
        set.extend_from_document(document_idx, range, &mut batch.token_ids);
        set.extend_from_document(document_idx, targets, &mut batch.targets);
        batch.target_weights.resize(batch.target_weights.len() + n_trained, 1.0);
        // The last token of the document has no target.
        batch.targets.resize(batch.token_ids.len(), 0);
        batch.target_weights.resize(batch.token_ids.len(), 0.0);
        batch.end_segment();
    }

    fn plan(&self, epoch: u64) -> Arc<EpochPlan> {
        // A thread that panicked here left the cache whole: plans are inserted complete.
        let mut plans = self.plans.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(plan) = plans.get(&epoch) {
            return Arc::clone(plan);
        }
        let order = permutation(self.documents.len(), self.seed, epoch);
        let mut starts = Vec::with_capacity(order.len() + 1);
        let mut start = 0;
        starts.push(0);
        for &document in &order {
            let (set_idx, document_idx) = self.documents[document as usize];
            start += self.sets[set_idx as usize].document_len(document_idx as usize);
            starts.push(start);
        }
        let n_rows = self.rows_per_epoch() as usize;
        let rows = permutation(n_rows, self.seed, epoch | ROW_STREAM);
        let plan = Arc::new(EpochPlan { order, starts, rows });
        while plans.len() >= N_CACHED_PLANS {
            // The lowest epoch is the one least likely to be asked for again.
            plans.pop_first();
        }
        plans.insert(epoch, Arc::clone(&plan));
        plan
    }
}
