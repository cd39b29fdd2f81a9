//! What the machine is and what it can do at most.

use std::time::{Duration, Instant};

use half::bf16;
use kernels::blocks::{BlockKind, BlockMatrix};
use kernels::matmul::{Left, Right, Write, matmul};
use kernels::packed_blocks::{self, PackedBlocks};
use kernels::panels::panels_len;
use kernels::{Buffer, Compute, CpuFeatures, Operand, detect_features};
use serde::Serialize;

use crate::gpu::GpuMachine;

/// The machine and the kernels in use.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Processor, as the system names it.
    pub cpu: String,
    /// Threads in use.
    pub n_threads: usize,
    /// Kernel family in use.
    pub kernel_family: &'static str,
    /// Instruction sets found.
    pub features: Vec<&'static str>,
    /// Measured limits.
    pub roofline: Roofline,
    /// The GPU, where models are computed there.
    pub gpu: Option<GpuMachine>,
}

/// Measured limits of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Roofline {
    /// Memory read by one thread, bytes per second.
    pub read_bytes_per_s_one_thread: f64,
    /// Memory read by all threads.
    pub read_bytes_per_s: f64,
    /// bf16 matrix products on all threads, operations per second.
    pub bf16_flops: f64,
    /// f32 matrix products on all threads.
    pub f32_flops: f64,
    /// Products of rounded rows with packed blocks on all threads, of codes that the family multiplies fastest.
    pub packed_ops: f64,
}

impl Machine {
    /// Looks at the machine and measures its limits; takes about two seconds and 512 MiB.
    #[must_use]
    pub fn measure(compute: &Compute) -> Self {
        Self {
            cpu: cpu_name(),
            n_threads: compute.n_threads(),
            kernel_family: compute.family().name(),
            features: feature_names(detect_features()),
            roofline: Roofline::measure(compute),
            gpu: None,
        }
    }
}

/// The processor, as the system names it.
#[must_use]
pub fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find_map(|line| line.strip_prefix("model name"));
    line.map_or_else(
        || "unknown".to_owned(),
        |name| name.trim_start_matches([' ', '\t', ':']).to_owned(),
    )
}

fn feature_names(features: CpuFeatures) -> Vec<&'static str> {
    let all = [
        ("avx2", features.avx2),
        ("avx_vnni", features.avx_vnni),
        ("avx512", features.avx512),
        ("avx512_bf16", features.avx512_bf16),
        ("avx512_vnni", features.avx512_vnni),
        ("amx", features.amx),
    ];
    all.into_iter().filter(|(_, is_there)| *is_there).map(|(name, _)| name).collect()
}

impl Roofline {
    /// Measures the limits on the threads of `compute`.
    #[must_use]
    pub fn measure(compute: &Compute) -> Self {
        let memory = Buffer::<f32>::zeroed(READ_BYTES / size_of::<f32>());
        Self {
            read_bytes_per_s_one_thread: read_speed(compute, &memory, 1),
            read_bytes_per_s: read_speed(compute, &memory, compute.n_threads()),
            bf16_flops: matmul_speed::<bf16>(compute),
            f32_flops: matmul_speed::<f32>(compute),
            packed_ops: packed_speed(compute),
        }
    }
}

/// Far more than any cache.
const READ_BYTES: usize = 512 << 20;

/// Sums the whole memory, each thread its part; the fastest of some times, for it is a limit.
fn read_speed(compute: &Compute, memory: &[f32], n_threads: usize) -> f64 {
    let part = memory.len() / n_threads;
    let speeds = (0..5).map(|_| {
        let start = Instant::now();
        compute.pool().run(n_threads, |idx, _| {
            // Sums of whole numbers come in any order, so that the compiler makes the loop as wide as registers are.
            let part = &memory[idx * part..][..part];
            std::hint::black_box(part.iter().fold(0_u32, |sum, x| sum.wrapping_add(x.to_bits())));
        });
        (part * n_threads * size_of::<f32>()) as f64 / start.elapsed().as_secs_f64()
    });
    speeds.fold(0.0, f64::max)
}

/// Rows, columns and inner dimension of a product whose operands fit the caches.
const PRODUCT: [usize; 3] = [768, 1024, 1024];

/// Operations per second of a product.
fn matmul_speed<T: Operand>(compute: &Compute) -> f64 {
    let [m, n, k] = PRODUCT;
    // Rows that straddle cache lines would halve the speed of a tile load.
    let mut values = Buffer::<T>::zeroed(m * k);
    values.fill(T::from_f32(0.5));
    let mut panels = Buffer::<T>::zeroed(panels_len::<T>(n, k));
    panels.fill(T::from_f32(0.25));
    let mut out = Buffer::<f32>::zeroed(m * n);
    product_speed(|| {
        let left = Left::Rows { values: &values, stride: k };
        let right = Right::Panels(&panels[..]);
        matmul(compute, left, right, [m, n, k], &mut out, Write::Overwrite);
    })
}

/// As [`matmul_speed`], of packed blocks of 4 bits.
fn packed_speed(compute: &Compute) -> f64 {
    let [m, n, k] = PRODUCT;
    // AVX2 without AVX-VNNI adds products of codes of 8 bits line by line; else all are alike.
    let (kind, shape) = (BlockKind::Q4_0, [n, k]);
    let mut rows = Buffer::<u8>::zeroed(packed_blocks::rows_len([m, k]));
    let rows = packed_blocks::round_rows(compute, &vec![0.5_f32; m * k], [m, k], &mut rows);
    // Blocks of zeros take as long as others.
    let blocks = vec![0; n * kind.bytes_of(k)];
    let mut packed = Buffer::<u8>::zeroed(packed_blocks::packed_len(kind, shape));
    packed_blocks::pack(compute, BlockMatrix::new(kind, &blocks, shape), &mut packed);
    let mut out = Buffer::<f32>::zeroed(m * n);
    let weight = PackedBlocks::new(kind, &packed, shape);
    product_speed(|| packed_blocks::matmul(compute, rows, weight, &mut out, Write::Overwrite))
}

/// Products are measured so long, at least some of them: on a machine that others use too, a few milliseconds may all be slow.
const PRODUCT_TIME: Duration = Duration::from_millis(100);

/// Operations per second of the fastest of some products, for it is a limit.
fn product_speed(mut product: impl FnMut()) -> f64 {
    let [m, n, k] = PRODUCT;
    let (begin, mut n_made, mut best) = (Instant::now(), 0, 0.0);
    while n_made < 7 || begin.elapsed() < PRODUCT_TIME {
        let start = Instant::now();
        product();
        best = f64::max(best, (2 * m * n * k) as f64 / start.elapsed().as_secs_f64());
        n_made += 1;
    }
    best
}
