//! What a GPU can do at most.

use cuda::{DeviceMatrix, Gpu, NumberType, ops};
use kernels::matmul::Write;
use serde::Serialize;

/// A GPU and its measured limits.
#[derive(Clone, Debug, Serialize)]
pub struct GpuMachine {
    /// As the driver calls it.
    pub name: String,
    /// Its memory.
    pub memory_bytes: usize,
    /// Version of CUDA that the driver supports.
    pub driver: String,
    /// Version of cuBLASLt, as it counts.
    pub blas_version: usize,
    /// bf16 products, operations per second.
    pub bf16_flops: f64,
    /// A copy within its memory, bytes read and written per second.
    pub copy_bytes_per_s: f64,
}

/// Rows, columns and inner dimension of a product of several milliseconds.
const PRODUCT: usize = 8192;
/// Far more than any cache.
const COPIED_BYTES: usize = 2 << 30;

impl GpuMachine {
    /// Looks at the GPU and measures its limits; takes about a second and 4 GiB of its memory.
    #[must_use]
    pub fn measure(gpu: &Gpu) -> Self {
        let about = gpu.description();
        let (major, minor) = about.driver_version;
        Self {
            name: about.name.clone(),
            memory_bytes: about.memory_bytes,
            driver: format!("{major}.{minor}"),
            blas_version: about.blas_version,
            bf16_flops: product_speed(gpu),
            copy_bytes_per_s: copy_speed(gpu),
        }
    }
}

/// The fastest of some times, for it is a limit.
fn fastest(gpu: &Gpu, mut work: impl FnMut()) -> f64 {
    work();
    (0..5).map(|_| gpu.timed(&mut work)).fold(f64::INFINITY, f64::min)
}

fn product_speed(gpu: &Gpu) -> f64 {
    let random = |seed| {
        let mut matrix = DeviceMatrix::uninitialised(gpu, NumberType::Bf16, PRODUCT, PRODUCT);
        ops::elementwise::fill_uniform(gpu, matrix.view_mut(), seed, 1.0);
        matrix
    };
    let (x, w) = (random(1), random(2));
    let mut y = DeviceMatrix::uninitialised(gpu, NumberType::Bf16, PRODUCT, PRODUCT);
    let seconds = fastest(gpu, || {
        ops::product(gpu, x.view(), w.view(), y.view_mut(), 0, Write::Overwrite);
    });
    2.0 * (PRODUCT as f64).powi(3) / seconds
}

fn copy_speed(gpu: &Gpu) -> f64 {
    let width = 4096;
    let n_rows = COPIED_BYTES / width / 4;
    let mut from = DeviceMatrix::uninitialised(gpu, NumberType::F32, n_rows, width);
    ops::elementwise::fill_uniform(gpu, from.view_mut(), 3, 1.0);
    let mut to = DeviceMatrix::uninitialised(gpu, NumberType::F32, n_rows, width);
    2.0 * COPIED_BYTES as f64 / fastest(gpu, || from.view().copy_to(to.view_mut()))
}
