//! What the model trains on.

/// Packed rows: tokens of several documents one after another, no padding.
///
/// A segment is a stretch of one document; attention never looks from one segment into another. Positions count from 0
/// in each segment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PackedBatch {
    /// Input tokens, `[n_tokens]`.
    pub token_ids: Vec<u32>,
    /// The token after each input token in the same document, `[n_tokens]`; 0 where the weight is 0.
    pub targets: Vec<u32>,
    /// Weight of each target in the loss, `[n_tokens]`: 1 where it is trained, 0 where it is not or there is none.
    pub target_weights: Vec<f32>,
    /// Where each segment begins, and the end of the last, `[n_segments + 1]`: ascending from 0 to `n_tokens`, each
    /// segment with at least one token.
    pub segment_starts: Vec<u32>,
}

impl PackedBatch {
    /// A batch without tokens: `segment_starts` is `[0]`.
    #[must_use]
    pub fn new() -> Self {
        Self { segment_starts: vec![0], ..Self::default() }
    }

    /// Number of input tokens.
    #[must_use]
    pub fn n_tokens(&self) -> usize {
        self.token_ids.len()
    }

    /// Number of trained targets: what the loss of this batch is divided by.
    #[must_use]
    pub fn n_trained_tokens(&self) -> u64 {
        self.target_weights.iter().filter(|&&weight| weight != 0.0).count() as u64
    }

    /// Ends the current segment at the last token.
    ///
    /// # Panics
    /// When the batch has 2^32 tokens or more.
    pub(super) fn end_segment(&mut self) {
        let n_tokens = u32::try_from(self.token_ids.len()).expect("a batch fits into memory");
        debug_assert!(self.segment_starts.last() != Some(&n_tokens), "a segment has a token");
        self.segment_starts.push(n_tokens);
    }
}
