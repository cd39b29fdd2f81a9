//! Memory for keys and values.

use cuda::ops::attention_paged::DeviceKeyBlocks;
use half::bf16;
use kernels::attention::{self, CacheKind, HeadShape};

use crate::Device;
use crate::tensor::DType;

/// Blocks of keys and values ([`attention::KeyBlocks`]), by the number type of the products that take them.
#[derive(Debug)]
pub enum KeyBlocks {
    /// For products of f32.
    F32(attention::KeyBlocks<f32>),
    /// For products of bf16.
    Bf16(attention::KeyBlocks<bf16>),
    /// On a GPU.
    Cuda(DeviceKeyBlocks),
}

impl KeyBlocks {
    /// Blocks of zeros.
    #[must_use]
    pub fn zeroed(
        device: &Device,
        dtype: DType,
        kind: CacheKind,
        shape: HeadShape,
        n_blocks: usize,
    ) -> Self {
        match (device, dtype) {
            (Device::Cuda { gpu, .. }, dtype) => {
                Self::Cuda(DeviceKeyBlocks::zeroed(gpu, dtype.on_gpu(), kind, shape, n_blocks))
            }
            (Device::Cpu(_), DType::F32) => {
                Self::F32(attention::KeyBlocks::zeroed(kind, shape, n_blocks))
            }
            (Device::Cpu(_), DType::Bf16) => {
                Self::Bf16(attention::KeyBlocks::zeroed(kind, shape, n_blocks))
            }
        }
    }

    /// Bytes of one block.
    #[must_use]
    pub fn block_bytes(dtype: DType, kind: CacheKind, shape: HeadShape) -> usize {
        match dtype {
            DType::F32 => attention::KeyBlocks::<f32>::block_bytes(kind, shape),
            DType::Bf16 => attention::KeyBlocks::<bf16>::block_bytes(kind, shape),
        }
    }

    /// Bytes that they take.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        match self {
            Self::F32(blocks) => blocks.n_bytes(),
            Self::Bf16(blocks) => blocks.n_bytes(),
            Self::Cuda(blocks) => blocks.n_bytes(),
        }
    }

    /// Blocks of this shape that there are.
    #[must_use]
    pub fn n_blocks(&self, shape: HeadShape) -> usize {
        match self {
            Self::F32(blocks) => blocks.n_blocks(shape),
            Self::Bf16(blocks) => blocks.n_blocks(shape),
            Self::Cuda(blocks) => blocks.n_blocks(),
        }
    }
}
