//! The operations of a model on an NVIDIA GPU: matrices in its memory in, matrices out.
//!
//! The driver and cuBLASLt are opened at run time: the program builds without CUDA and starts without a GPU. The kernels are
//! written in CUDA C++ (`kernels/*.cu`), compiled ahead by `cargo xtask cuda-kernels` and embedded. Contracts are those of
//! the crate `kernels`, with one difference of number types: a model of bf16 keeps the outputs of products in bf16 too
//! (`docs/decisions/0015-gpu.md`). Tests run the same kernels without a GPU, in an emulator (`testkit::cuda_emulator`).
//!
//! Never here: a model, a file.

mod blas;
mod chain;
mod compiled;
pub mod conformance;
mod driver;
mod error;
mod gpu;
mod library;
mod memory;
pub mod ops;
mod staging;

pub use error::CudaError;
pub use gpu::{DRIVER, Gpu, GpuDescription, KernelTime};
pub use library::LibraryPath;
pub use memory::{
    DeviceMatrix, Matrix, MatrixMut, NumberType, PinnedNumbers, out_of_memory_as_error,
};
