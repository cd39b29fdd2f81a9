//! What a run will take, before it is taken.

use model::{Decoder, GradientWorkspace, ModelConfig, Workspace};
use serde::Serialize;
use tensor::{DType, Passes};

/// Bytes of a training run, by purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct TrainingMemory {
    /// f32 masters.
    pub masters_bytes: u64,
    /// Both moments of AdamW.
    pub optimizer_bytes: u64,
    /// f32 gradients.
    pub gradients_bytes: u64,
    /// Packed weights for forward and backward.
    pub packed_bytes: u64,
    /// Activations of the forward pass, logits and key blocks.
    pub activations_bytes: u64,
    /// Gradients of activations and packed operands of the backward pass.
    pub backward_bytes: u64,
    /// Tokens of the training data.
    pub data_bytes: u64,
}

impl TrainingMemory {
    /// The plan of training with micro-batches of `n_rows` rows of `seq_len` tokens on data of `data_bytes` in memory.
    #[must_use]
    pub fn of(
        config: &ModelConfig,
        dtype: DType,
        n_rows: usize,
        seq_len: usize,
        data_bytes: u64,
    ) -> Self {
        let parameter_bytes = 4 * config.n_parameters();
        let (n_tokens, passes) = (n_rows * seq_len, Passes::ForwardAndBackward);
        Self {
            masters_bytes: parameter_bytes,
            optimizer_bytes: 2 * parameter_bytes,
            gradients_bytes: parameter_bytes,
            packed_bytes: Decoder::bytes_for(config, dtype, passes) as u64,
            activations_bytes: Workspace::bytes_for(config, dtype, n_tokens, passes) as u64,
            backward_bytes: GradientWorkspace::bytes_for(config, dtype, n_tokens) as u64,
            data_bytes,
        }
    }

    /// All of it.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.masters_bytes
            + self.optimizer_bytes
            + self.gradients_bytes
            + self.packed_bytes
            + self.activations_bytes
            + self.backward_bytes
            + self.data_bytes
    }

    /// Bytes of one checkpoint on disk: masters and both moments.
    #[must_use]
    pub fn checkpoint_bytes(&self) -> u64 {
        self.masters_bytes + self.optimizer_bytes
    }
}
