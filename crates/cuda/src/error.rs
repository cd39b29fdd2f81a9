//! What can go wrong between this program and a GPU.

/// Why a GPU cannot be used, or refused something.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// A library is nowhere.
    #[error("{name} cannot be opened: {reason} (looked in {})", places.join(", "))]
    NoLibrary {
        /// Its file name.
        name: &'static str,
        /// What the loader said last.
        reason: String,
        /// Where it was looked for.
        places: Vec<String>,
    },
    /// A library that is there and cannot be opened.
    #[error("{name} is there and cannot be opened: {reason}")]
    BrokenLibrary {
        /// Its file name.
        name: &'static str,
        /// What the loader said.
        reason: String,
    },
    /// A library that is older than what is needed from it.
    #[error("{library} has no function {symbol}: it is too old")]
    NoFunction {
        /// File name of the library.
        library: &'static str,
        /// The function.
        symbol: &'static str,
    },
    /// A driver without a device.
    #[error("the driver knows no GPU")]
    NoDevice,
    /// A GPU that none of the kernels was compiled for.
    #[error("{name} has compute capability {major}.{minor}, expected at least 8.0")]
    TooOld {
        /// The GPU.
        name: String,
        /// Of the compute capability.
        major: i32,
        /// Of the compute capability.
        minor: i32,
    },
    /// A GPU whose blocks of threads get too little shared memory.
    #[error("{name} gives a block {got} bytes of shared memory, expected at least {expected}")]
    SharedMemory {
        /// The GPU.
        name: String,
        /// Bytes that a block gets at most.
        got: usize,
        /// Bytes that the kernels take.
        expected: usize,
    },
    /// Memory that the GPU does not have.
    #[error("the GPU has no room for {needed_bytes} bytes more ({free_bytes} are free)")]
    OutOfMemory {
        /// Bytes that were asked for.
        needed_bytes: usize,
        /// Bytes that are free, not always in one piece.
        free_bytes: usize,
    },
    /// A call that the driver refused.
    #[error("{call} failed: {name} ({code})")]
    Driver {
        /// The call.
        call: &'static str,
        /// Its result.
        code: i32,
        /// What the driver calls the result.
        name: String,
    },
    /// A call that cuBLASLt refused.
    #[error("{call} failed: status {code}")]
    Blas {
        /// The call.
        call: &'static str,
        /// `cublasStatus_t`.
        code: i32,
    },
}
