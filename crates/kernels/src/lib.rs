//! Numerical kernels: slices in, slices out.
//!
//! Every operation of the decoder family has a scalar definition, which is its meaning: in [`mod@reference`], or, of
//! blocks, their products with rounded rows, experts, embeddings and whole slices, in their own files. Fast versions for AVX2,
//! AVX-512 (BF16, VNNI) and AMX are compared with it. The family is found at run time and carried, with the thread pool,
//! by [`Compute`], which every operation takes.
//!
//! Never here: a tensor, a model, a file.
//!
//! ```
//! use kernels::{Compute, Family, norm};
//!
//! let compute = Compute::forced(Family::Reference, 1).expect("the reference family runs everywhere");
//! let (x, weight) = ([3.0_f32, 4.0], [1.0_f32, 1.0]);
//! let (mut out, mut inverse_rms) = ([0.0_f32; 2], [0.0_f32; 1]);
//! norm::rms_norm(&compute, &x, &weight, 0.0, &mut out, &mut inverse_rms, None);
//! assert!((out[1] - 4.0 / 12.5_f32.sqrt()).abs() < 1e-6);
//! ```

pub mod adamw;
pub mod attention;
pub mod blocks;
mod buffer;
mod compute;
mod cpu;
pub mod cross_entropy;
pub mod elementwise;
pub mod embedding;
pub mod experts;
mod lanes;
pub mod likeliest;
pub mod matmul;
pub mod norm;
mod operand;
pub mod packed_blocks;
pub mod panels;
mod paths;
mod pool;
mod prefetch;
pub mod reference;
pub mod rope;
pub mod swiglu;
#[cfg(test)]
mod test_support;
mod transpose;

pub use buffer::{Buffer, Element};
pub use compute::{Compute, ComputeError, Family};
pub use cpu::{CpuFeatures, detect_features};
pub use lanes::Lanes;
pub use operand::Operand;
pub use paths::KernelPath;
pub use pool::{Pool, RowsOut, Scratch, SliceParts};
