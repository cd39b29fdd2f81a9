//! The decoder of the Mistral and Llama family: configuration, forward pass, hand-written backward pass, cache.
//!
//! Training, scoring and serving run the same forward pass of a [`Decoder`] on packed rows of tokens; only the attention
//! context differs: packed documents, or a cache. Never here: files, threads, sampling, text.
//!
//! ```
//! use kernels::{Compute, Family};
//! use model::{Decoder, ModelConfig, Parameters, Workspace};
//! use tensor::{DType, Device, Passes};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = Device::Cpu(Compute::forced(Family::Reference, 1)?);
//! let config = ModelConfig::new(ModelConfig::example())?;
//! let mut decoder = Decoder::zeroed(&device, &config, DType::F32, Passes::Forward);
//! decoder.pack(&device, &Parameters::random(&config, 1));
//! let mut workspace = Workspace::new(&device, &config, DType::F32, 8, Passes::Forward);
//! let losses = decoder.token_losses(&device, &[1, 5, 9], &[5, 9, 2], &[0, 3], &mut workspace);
//! assert_eq!(losses.len(), 3);
//! # Ok(())
//! # }
//! ```

mod adapted;
mod adapter_backward;
mod adapter_parameters;
mod backward;
mod block_kind;
mod cache;
mod config;
mod decoder;
mod feed_forward;
mod forward;
mod frozen;
mod load;
mod merge;
mod packing;
mod parameters;
mod quantise;
mod rope;
mod workspace;

#[cfg(test)]
mod tests;

pub use adapted::LoadedAdapter;
pub use adapter_backward::Learnt;
pub use adapter_parameters::{AdapterParameters, AdapterSettings};
pub use backward::{GradientWorkspace, TrainingRows};
pub use cache::{CachedRows, KvBlocks, KvCache, LogitsRow, OnLogits, RowLogits, Wanted};
pub use config::{ModelConfig, ModelError, compute_dtype};
pub use decoder::Decoder;
pub use kernels::attention::{CacheKind, KEY_BLOCK};
pub use kernels::likeliest::Likeliest;
pub use merge::add_low_rank;
pub use packing::{PackedBytes, PackedPlan};
pub use parameters::{ParameterKind, Parameters};
pub use quantise::{FileQuantiser, Quantisation};
pub use workspace::Workspace;
