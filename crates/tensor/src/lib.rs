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

mod key_blocks;
mod linear;
mod low_rank;
pub mod ops;
mod tensor;

pub use key_blocks::KeyBlocks;
pub use linear::{
    BlockBytes, BlockOrder, BlockRows, Linear, LinearScratch, OperandScratch, Passes,
};
pub use low_rank::{LowRank, LowRankScratch};
pub use tensor::{DType, Tensor, View, ViewMut};

use kernels::Compute;

/// Where operations run.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Device {
    /// This machine's processors.
    Cpu(Compute),
}

impl Device {
    /// The processors behind the device.
    #[must_use]
    pub fn compute(&self) -> &Compute {
        match self {
            Self::Cpu(compute) => compute,
        }
    }
}
