//! Numbers of rows, on the device.

use crate::gpu::{Argument, Gpu};
use crate::memory::Memory;

/// Numbers of rows of a matrix: token ids, targets, the rows of an expert.
#[derive(Debug)]
pub struct RowNumbers {
    memory: Memory,
    n: usize,
    /// One more than the largest.
    end: usize,
    ascends: bool,
}

impl RowNumbers {
    /// A copy of these numbers.
    #[must_use]
    pub fn new(gpu: &Gpu, numbers: &[u32]) -> Self {
        Self {
            memory: gpu.upload(numbers),
            n: numbers.len(),
            end: numbers.iter().max().map_or(0, |&max| max as usize + 1),
            ascends: numbers.is_sorted_by(|a, b| a < b),
        }
    }

    /// How many there are.
    #[must_use]
    pub fn n(&self) -> usize {
        self.n
    }

    /// One more than the largest; 0 where there are none.
    pub(crate) fn end(&self) -> usize {
        self.end
    }

    /// Whether each is larger than the one before.
    pub(crate) fn ascends(&self) -> bool {
        self.ascends
    }

    pub(crate) fn argument(&self) -> Argument {
        Argument::Pointer(self.memory.address())
    }
}
