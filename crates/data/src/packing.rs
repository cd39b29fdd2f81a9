//! Packing: documents and conversations become rows of tokens without padding.
//!
//! [`PretrainingRows`] cuts a shuffled stream of documents into rows of one length; [`ConversationRows`] puts whole
//! conversations into rows. In both, row `i` is a function of the data, the seed and `i` alone, however it is reached:
//! the position of a run is one counter, independent of the number of ranks, and resuming needs nothing else.

mod batch;
mod conversations;
mod pretraining;
mod shuffle;

pub use batch::PackedBatch;
pub use conversations::{ConversationRows, TrainingSample};
pub use pretraining::PretrainingRows;

pub(crate) use shuffle::permutation;

use crate::DataError;

/// Most tokens of a row: with it, no sum of positions overflows.
const MAX_SEQ_LEN: usize = 1 << 24;

fn check_seq_len(seq_len: usize) -> Result<(), DataError> {
    if (2..=MAX_SEQ_LEN).contains(&seq_len) {
        return Ok(());
    }
    let got = seq_len.to_string();
    Err(DataError::Setting { field: "seq_len", got, expected: "2 to 16777216 tokens" })
}

fn to_u32(n: usize) -> Result<u32, DataError> {
    u32::try_from(n).map_err(|_| DataError::Setting {
        field: "number of documents",
        got: n.to_string(),
        expected: "at most 2^32 - 1",
    })
}

#[cfg(test)]
mod tests;
