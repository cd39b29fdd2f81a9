//! The two kinds of training rows behind one counter.

use data::DataError;
use data::packing::{ConversationRows, PackedBatch, PretrainingRows};

/// Rows of tokens to train on; row `i` is a function of the data, the seed and `i`.
#[derive(Debug)]
pub enum Rows {
    /// A stream of documents cut into rows.
    Pretraining(PretrainingRows),
    /// Whole conversations and documents.
    Conversations(ConversationRows),
}

impl Rows {
    /// Samples that are not learnt: longer than a row, or without a trained token.
    #[must_use]
    pub fn n_left_out(&self) -> usize {
        match self {
            Self::Pretraining(_) => 0,
            Self::Conversations(rows) => rows.n_too_long() + rows.n_untrained(),
        }
    }

    /// Whether a row that a file names can be reached.
    ///
    /// # Errors
    /// When too many rows stand before it.
    pub fn check_reachable(&self, row_idx: u64) -> Result<(), DataError> {
        match self {
            // Every row of a stream is found at once.
            Self::Pretraining(_) => Ok(()),
            Self::Conversations(rows) => rows.check_reachable(row_idx),
        }
    }

    /// The rows `first_row..first_row + n_rows`, packed.
    #[must_use]
    pub fn batch(&self, first_row: u64, n_rows: usize) -> PackedBatch {
        match self {
            Self::Pretraining(rows) => rows.batch(first_row, n_rows),
            Self::Conversations(rows) => rows.batch(first_row, n_rows),
        }
    }
}
