//! How often operations were dispatched each way, by all of their rows, so that tests can assert that the fast way is reached.

use std::sync::atomic::{AtomicU64, Ordering};

/// A way through the kernels. The family of a [`Compute`](crate::Compute) says with which instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelPath {
    /// A matrix product of f32 operands.
    ProductF32,
    /// A matrix product of bf16 operands.
    ProductBf16,
    /// Few rounded rows with packed blocks, which are unpacked while they are multiplied.
    PackedFewRows,
    /// Many rounded rows with packed blocks, which are unpacked once for all rows.
    PackedManyRows,
    /// Attention over keys and values as products take them.
    Attention,
    /// Attention over keys and values in 8 bits.
    AttentionInt8,
    /// The backward pass of attention.
    AttentionBackward,
}

const N_PATHS: usize = KernelPath::AttentionBackward as usize + 1;

/// Calls of each path.
#[derive(Debug, Default)]
pub(crate) struct PathCounts([AtomicU64; N_PATHS]);

impl PathCounts {
    pub(crate) fn count(&self, path: KernelPath) {
        self.0[path as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn n_calls(&self, path: KernelPath) -> u64 {
        self.0[path as usize].load(Ordering::Relaxed)
    }
}
