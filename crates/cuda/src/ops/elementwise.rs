//! Conversions, sums and updates over whole matrices, and copies of rows.

use kernels::adamw::AdamW;

use crate::gpu::{Argument, Gpu, Grid};
use crate::memory::{Matrix, MatrixMut, Memory, NumberType};
use crate::ops::row_numbers::RowNumbers;

const THREADS: usize = 256;
/// Numbers of a thread of the conversions (`elementwise.cu`).
const CONVERTED_PER_THREAD: usize = 16;
/// Numbers of a thread of the update, of scaled numbers, and of random ones.
const UPDATED_PER_THREAD: usize = 4;
/// Numbers of one sum of squares, which is part of its arithmetic, and the threads of its block.
const SQUARES_CHUNK: usize = 65536;
const SQUARES_THREADS: usize = 512;
/// Threads of the one block of a weighted sum, which are part of its arithmetic.
const WEIGHTED_THREADS: usize = 1024;
/// 16-byte units, or numbers, of a lane where a warp copies a piece of a row.
const UNITS_PER_LANE: usize = 4;

/// A grid of blocks that have `per_thread` numbers for each thread.
fn grid(n_values: usize, per_thread: usize) -> Grid {
    let blocks = [n_values.div_ceil(THREADS * per_thread), 1, 1];
    Grid { blocks, threads: THREADS, shared_bytes: 0 }
}

/// A grid with a warp for each piece of each row.
pub(crate) fn pieces_grid(n_rows: usize, units_per_row: usize) -> Grid {
    let warps = n_rows * units_per_row.div_ceil(32 * UNITS_PER_LANE);
    Grid { blocks: [warps.div_ceil(THREADS / 32), 1, 1], threads: THREADS, shared_bytes: 0 }
}

/// `out[i] = x[i]`, rounded where `out` is bf16 and `x` is not.
///
/// # Panics
/// When the counts differ.
pub fn convert(gpu: &Gpu, x: Matrix<'_>, out: MatrixMut<'_>) {
    let n = x.n_values();
    assert_eq!(n, out.n_values(), "numbers to be converted");
    let kernel = match (x.number_type(), out.number_type()) {
        (NumberType::F32, NumberType::Bf16) => "convert_f32_bf16",
        (NumberType::Bf16, NumberType::F32) => "convert_bf16_f32",
        _ => return x.copy_to(out),
    };
    if n > 0 {
        let arguments =
            [Argument::Pointer(x.address()), Argument::Pointer(out.address()), Argument::long(n)];
        gpu.launch(kernel, grid(n, CONVERTED_PER_THREAD), &arguments);
    }
}

/// `out[i] = factor x[i]` of f32 numbers, rounded to the type of `out`.
///
/// # Panics
/// When the counts differ, or x is not f32.
pub fn scale(gpu: &Gpu, x: Matrix<'_>, factor: f32, out: MatrixMut<'_>) {
    let n = x.n_values();
    assert_eq!(n, out.n_values(), "numbers to be scaled");
    assert_eq!(x.number_type(), NumberType::F32, "type of x");
    if n > 0 {
        let arguments = [
            Argument::Pointer(x.address()),
            Argument::Pointer(out.address()),
            Argument::long(n),
            Argument::F32(factor),
        ];
        let kernel = format!("scale_{}", out.number_type().suffix());
        gpu.launch(&kernel, grid(n, UPDATED_PER_THREAD), &arguments);
    }
}

/// `out[i]` is `x[i]` rounded to bf16, as f32.
///
/// # Panics
/// When the counts differ, or one is not f32.
pub fn round_to_bf16(gpu: &Gpu, x: Matrix<'_>, out: MatrixMut<'_>) {
    let n = x.n_values();
    assert_eq!(n, out.n_values(), "numbers to be rounded");
    assert_eq!([x.number_type(), out.number_type()], [NumberType::F32; 2], "x and out");
    if n > 0 {
        let arguments =
            [Argument::Pointer(x.address()), Argument::Pointer(out.address()), Argument::long(n)];
        gpu.launch("round_to_bf16", grid(n, CONVERTED_PER_THREAD), &arguments);
    }
}

/// [`kernels::adamw::adamw_step`]; all are f32.
///
/// # Panics
/// When the counts differ.
pub fn adamw_step(
    gpu: &Gpu,
    step: AdamW,
    weight: MatrixMut<'_>,
    grad: Matrix<'_>,
    m: MatrixMut<'_>,
    v: MatrixMut<'_>,
) {
    let n = weight.n_values();
    assert_eq!([grad.n_values(), m.n_values(), v.n_values()], [n; 3], "grad, m and v of a weight");
    let types = [weight.number_type(), grad.number_type(), m.number_type(), v.number_type()];
    assert_eq!(types, [NumberType::F32; 4], "weight, grad, m and v");
    if n == 0 {
        return;
    }
    let AdamW {
        learning_rate,
        beta1,
        beta2,
        eps,
        weight_decay,
        grad_scale,
        bias_correction1,
        bias_correction2,
    } = step;
    let arguments = [
        Argument::Pointer(weight.address()),
        Argument::Pointer(grad.address()),
        Argument::Pointer(m.address()),
        Argument::Pointer(v.address()),
        Argument::long(n),
        Argument::F32(learning_rate),
        Argument::F32(beta1),
        Argument::F32(beta2),
        Argument::F32(eps),
        Argument::F32(weight_decay),
        Argument::F32(grad_scale),
        Argument::F32(bias_correction1),
        Argument::F32(bias_correction2),
    ];
    gpu.launch("adamw", grid(n, UPDATED_PER_THREAD), &arguments);
}

/// `sum_i x[i]^2` over all matrices: f32 sums of up to 128 squares, added in f64. Waits, once for all. NaN if a value is; infinite
/// if one is, or if a sum overflows f32.
///
/// # Panics
/// When one is not f32.
#[must_use]
pub fn sum_of_squares(gpu: &Gpu, xs: &[Matrix<'_>]) -> f64 {
    let n_chunks = |x: &Matrix<'_>| x.n_values().div_ceil(SQUARES_CHUNK);
    let mut sums = vec![0.0_f64; xs.iter().map(n_chunks).sum()];
    let there = gpu.memory(size_of_val(&*sums));
    let mut address = there.address();
    for x in xs {
        assert_eq!(x.number_type(), NumberType::F32, "what is squared");
        let blocks = [n_chunks(x), 1, 1];
        if blocks[0] > 0 {
            gpu.launch(
                "sum_of_squares",
                Grid { blocks, threads: SQUARES_THREADS, shared_bytes: 0 },
                &[
                    Argument::Pointer(x.address()),
                    Argument::Pointer(address),
                    Argument::long(x.n_values()),
                ],
            );
        }
        address += (blocks[0] * size_of::<f64>()) as u64;
    }
    there.read(&mut sums);
    sums.iter().sum()
}

/// A sum in f64 on the device.
#[derive(Debug)]
pub struct DeviceSum {
    memory: Memory,
}

impl DeviceSum {
    /// Zero.
    #[must_use]
    pub fn zero(gpu: &Gpu) -> Self {
        Self { memory: gpu.upload(&[0.0_f64]) }
    }

    /// Adds `sum_i weights[i] x[i]`, products and sums in f64, in an order of their count alone. Does not wait.
    ///
    /// # Panics
    /// When the counts differ, or one is not f32.
    pub fn add_weighted(&mut self, gpu: &Gpu, x: Matrix<'_>, weights: Matrix<'_>) {
        let n = x.n_values();
        assert_eq!(weights.n_values(), n, "weights of what is added");
        assert_eq!([x.number_type(), weights.number_type()], [NumberType::F32; 2], "x and weights");
        let arguments = [
            Argument::Pointer(x.address()),
            Argument::Pointer(weights.address()),
            Argument::Pointer(self.memory.address()),
            Argument::long(n),
        ];
        let grid = Grid { blocks: [1, 1, 1], threads: WEIGHTED_THREADS, shared_bytes: 0 };
        gpu.launch("add_weighted_sum", grid, &arguments);
    }

    /// What was added so far. Waits.
    #[must_use]
    pub fn read(&self) -> f64 {
        let mut sum = [0.0];
        self.memory.read(&mut sum);
        sum[0]
    }
}

/// `out[i]` is uniform in `-half_width..half_width`: output `i` of SplitMix64 from the seed.
pub fn fill_uniform(gpu: &Gpu, out: MatrixMut<'_>, seed: u64, half_width: f32) {
    let n = out.n_values();
    if n > 0 {
        let kernel = format!("fill_uniform_{}", out.number_type().suffix());
        let arguments = [
            Argument::Pointer(out.address()),
            Argument::long(n),
            Argument::U64(seed),
            Argument::F32(half_width),
        ];
        gpu.launch(&kernel, grid(n, UPDATED_PER_THREAD), &arguments);
    }
}

/// [`kernels::experts::gather_rows`]: `out[i] = x[rows[i]]`, of one type.
///
/// # Panics
/// When the shapes do not fit, or a row is not in `x`.
pub fn gather_rows(gpu: &Gpu, x: Matrix<'_>, rows: &RowNumbers, out: MatrixMut<'_>) {
    let (n_rows, width) = (rows.n(), x.width());
    assert_eq!([out.n_rows(), out.width()], [n_rows, width], "out is [rows, width]");
    assert_eq!(x.number_type(), out.number_type(), "types of x and out");
    assert!(rows.end() <= x.n_rows(), "row {} of {}", rows.end() - 1, x.n_rows());
    if out.n_values() == 0 {
        return;
    }
    let per_pack = 16 / x.number_type().bytes();
    let n_units = if width.is_multiple_of(per_pack) { width / per_pack } else { width };
    let arguments = [
        Argument::Pointer(x.address()),
        rows.argument(),
        Argument::Pointer(out.address()),
        Argument::count(n_rows),
        Argument::count(width),
    ];
    let kernel = format!("gather_rows_{}", x.number_type().suffix());
    gpu.launch(&kernel, pieces_grid(n_rows, n_units), &arguments);
}

/// [`kernels::experts::add_weighted_rows`]: `out[rows[i]] += weights[i] x[i]`; all are f32.
///
/// # Panics
/// When the shapes do not fit, a row is not in `out`, or rows do not ascend.
pub fn add_weighted_rows(
    gpu: &Gpu,
    x: Matrix<'_>,
    rows: &RowNumbers,
    weights: Matrix<'_>,
    out: MatrixMut<'_>,
) {
    let (n_rows, width) = (rows.n(), out.width());
    assert_eq!([x.n_rows(), x.width()], [n_rows, width], "x is [rows, width]");
    assert_eq!(weights.n_values(), n_rows, "one weight for each row");
    let types = [x.number_type(), weights.number_type(), out.number_type()];
    assert_eq!(types, [NumberType::F32; 3], "x, weights and out");
    assert!(rows.ascends(), "a row is there twice");
    assert!(rows.end() <= out.n_rows(), "row {} of {}", rows.end() - 1, out.n_rows());
    if x.n_values() == 0 {
        return;
    }
    let n_units = if width.is_multiple_of(4) { width / 4 } else { width };
    let arguments = [
        Argument::Pointer(x.address()),
        rows.argument(),
        Argument::Pointer(weights.address()),
        Argument::Pointer(out.address()),
        Argument::count(n_rows),
        Argument::count(width),
    ];
    gpu.launch("add_weighted_rows", pieces_grid(n_rows, n_units), &arguments);
}
