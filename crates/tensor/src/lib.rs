//! Tensors: number type, shape and storage, and one function per operation that runs it on the tensors' device.
//!
//! Every tensor is a matrix of rows: activations have one row per token, a weight one row per output. There is no
//! gradient tape: layers have hand-written backward passes made of the functions here. Never here: a model, a file.
//!
//! ```
//! use kernels::{Compute, Family};
//! use tensor::{DType, Device, Tensor, ops};
//!
//! # fn main() -> Result<(), kernels::ComputeError> {
//! let device = Device::Cpu(Compute::forced(Family::Reference, 1)?);
//! let x = Tensor::from_f32(&[3.0, 4.0], 2);
//! let mut rounded = Tensor::zeroed(DType::Bf16, 1, 2);
//! ops::convert(&device, x.view(), rounded.view_mut());
//! assert_eq!(rounded.to_f32(), [3.0, 4.0]);
//! # Ok(())
//! # }
//! ```

mod batch;
mod key_blocks;
mod linear;
mod low_rank;
pub mod ops;
mod tensor;
mod weighted_sum;

pub use batch::{CachedBatch, PackedRows, RopeTable};
pub use cuda::PinnedNumbers;
pub use cuda::ops::attention_paged::CachedSequence;
pub use key_blocks::KeyBlocks;
pub use linear::{
    BlockBytes, BlockOrder, BlockRows, Linear, LinearScratch, OperandScratch, Passes,
};
pub use low_rank::{LowRank, LowRankGradients, LowRankScratch};
pub use tensor::{DType, Tensor, View, ViewMut};
pub use weighted_sum::WeightedSum;

use cuda::Gpu;
use kernels::Compute;

/// Where operations run.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Device {
    /// This machine's processors.
    Cpu(Compute),
    /// An NVIDIA GPU.
    Cuda {
        /// The GPU.
        gpu: Gpu,
        /// What is computed beside it: angles of positions, the numbers of files.
        host: Compute,
    },
}

impl Device {
    /// [`Device::family_name`] of a GPU.
    pub const CUDA: &str = "cuda";

    /// [`Device::logit_rows`] of the processors.
    pub const CPU_LOGIT_ROWS: usize = 512;

    /// This machine's processors: the device, or those beside it.
    #[must_use]
    pub fn compute(&self) -> &Compute {
        match self {
            Self::Cpu(compute) | Self::Cuda { host: compute, .. } => compute,
        }
    }

    /// What rounds: the kernel family of the processors, or `cuda`.
    #[must_use]
    pub fn family_name(&self) -> &'static str {
        match self {
            Self::Cpu(compute) => compute.family().name(),
            Self::Cuda { .. } => Self::CUDA,
        }
    }

    /// Whether queries and keys are rotated, and logits that are learnt become their gradient, where the product wrote them.
    #[must_use]
    pub fn works_in_place(&self) -> bool {
        matches!(self, Self::Cuda { .. })
    }

    /// Whether a backward pass is to find the output of the gated activation of every layer: a GPU reads it faster than it reads and
    /// writes what the output is computed of once more.
    #[must_use]
    pub fn keeps_activated(&self) -> bool {
        matches!(self, Self::Cuda { .. })
    }

    /// Whether the gradient of a norm is computed of the norm's input, rounded: a GPU, whose speed is that of its memory, computes it of
    /// the output, which is kept for the gradient of the next weight anyway.
    #[must_use]
    pub fn keeps_norm_inputs(&self) -> bool {
        matches!(self, Self::Cpu(_))
    }

    /// Rows of logits to have in memory at a time: enough to keep the device busy.
    #[must_use]
    pub fn logit_rows(&self) -> usize {
        match self {
            Self::Cpu(_) => Self::CPU_LOGIT_ROWS,
            Self::Cuda { .. } => 8192,
        }
    }

    /// Rows of logits that are learnt at a time. On a GPU they may have half the bytes of others, and each chunk reads and writes the
    /// gradient of the head.
    #[must_use]
    pub fn learnt_logit_rows(&self) -> usize {
        match self {
            Self::Cpu(_) => Self::CPU_LOGIT_ROWS,
            Self::Cuda { .. } => 16384,
        }
    }

    /// The GPU.
    pub(crate) fn gpu(&self) -> &Gpu {
        match self {
            Self::Cuda { gpu, .. } => gpu,
            Self::Cpu(_) => panic!("a tensor on a GPU, computed on the processors"),
        }
    }
}
