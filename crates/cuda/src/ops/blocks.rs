//! Quantised weights: blocks as GGUF files hold them, and 8-bit floats, in the memory of a GPU.

use std::ops::Range;
use std::sync::Arc;

use kernels::blocks::BlockKind;
use kernels::matmul::Write;

use super::few_rows::{check_shapes, column_address};
use crate::gpu::{Argument, Gpu, Grid};
use crate::memory::{Matrix, MatrixMut, Memory, NumberType};

/// The most rows that [`product_few_rows_of_blocks`] takes.
pub const MAX_FEW_ROWS_OF_BLOCKS: usize = 8;

/// A matrix `[n, k]` of blocks or of 8-bit floats, row by row. A clone shares them.
#[derive(Clone, Debug)]
pub struct DeviceBlocks {
    numbers: Stored,
    n: usize,
    k: usize,
    /// Up to a multiple of 16 bytes, which are copied at a time.
    memory: Arc<Memory>,
}

/// How numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stored {
    Blocks(BlockKind),
    /// E4M3, times a scale.
    F8 {
        scale: f32,
        has_nan: bool,
    },
}

impl DeviceBlocks {
    /// A copy of a matrix whose rows are whole blocks.
    ///
    /// # Panics
    /// When they are not, or the bytes are not those of the shape.
    #[must_use]
    pub fn new(gpu: &Gpu, kind: BlockKind, bytes: &[u8], [n, k]: [usize; 2]) -> Self {
        let expected = n.checked_mul(kind.bytes_of(k));
        assert_eq!(Some(bytes.len()), expected, "bytes of [{n}, {k}] in {kind:?}");
        Self::of_bytes(gpu, Stored::Blocks(kind), bytes, [n, k])
    }

    /// A copy of a matrix of 8-bit floats (E4M3), all of which are multiplied by a scale.
    ///
    /// # Panics
    /// When the bytes are not those of the shape.
    #[must_use]
    pub fn of_f8(gpu: &Gpu, scale: f32, bytes: &[u8], [n, k]: [usize; 2]) -> Self {
        assert_eq!(Some(bytes.len()), n.checked_mul(k), "bytes of [{n}, {k}] in 8 bits");
        // The product of few rows knows no NaN.
        let has_nan = bytes.iter().any(|byte| byte & 0x7f == 0x7f);
        Self::of_bytes(gpu, Stored::F8 { scale, has_nan }, bytes, [n, k])
    }

    fn of_bytes(gpu: &Gpu, numbers: Stored, bytes: &[u8], [n, k]: [usize; 2]) -> Self {
        let memory = gpu.memory(bytes.len().next_multiple_of(16));
        memory.write(bytes);
        Self { numbers, n, k, memory: Arc::new(memory) }
    }

    /// Whether [`product_few_rows_of_blocks`] multiplies with them.
    #[must_use]
    pub fn has_product_of_few_rows(&self) -> bool {
        self.few_rows().is_some()
    }

    /// How the kernel of few rows is called and the shared memory that it takes, in bytes; none where there is no such product.
    fn few_rows(&self) -> Option<(String, usize)> {
        let (name, [n_stages, pitch]) = match self.numbers {
            Stored::Blocks(kind) => (name(kind), stages(kind)?),
            Stored::F8 { has_nan, .. } if has_nan || !self.k.is_multiple_of(16) => return None,
            Stored::F8 { .. } => ("f8_e4m3".to_owned(), [3, 272]),
        };
        Some((name, 8 * n_stages * 16 * pitch))
    }

    /// `[n, k]`.
    #[must_use]
    pub fn shape(&self) -> [usize; 2] {
        [self.n, self.k]
    }

    /// Bytes that they take.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        self.memory.n_bytes()
    }
}

/// Writes the numbers of some rows, each as [`BlockKind::decode`] has it or a product with the scale in f32, rounded to the number type of
/// `out`. Overwrites.
///
/// Shapes: out `[rows, k]`.
///
/// # Panics
/// When a shape does not fit.
pub fn unpack_blocks(gpu: &Gpu, blocks: &DeviceBlocks, rows: Range<usize>, out: MatrixMut<'_>) {
    let [n, k] = blocks.shape();
    assert!(rows.start <= rows.end && rows.end <= n, "rows {rows:?} of {n}");
    assert_eq!([out.n_rows(), out.width()], [rows.len(), k], "shape of the numbers");
    let kind = match blocks.numbers {
        Stored::Blocks(kind) => kind,
        Stored::F8 { scale, .. } => return unpack_f8(gpu, blocks, rows, scale, out),
    };
    let n_blocks = rows.len() * k / kind.block_len();
    // A thread decodes eight numbers, of kinds of one number one.
    let n_threads = n_blocks * (kind.block_len() / 8).max(1);
    if n_threads == 0 {
        return;
    }
    let first = blocks.memory.address() + (rows.start * kind.bytes_of(k)) as u64;
    gpu.launch(
        &format!("unpack_blocks_{}_{}", name(kind), out.number_type().suffix()),
        Grid { blocks: [n_threads.div_ceil(256), 1, 1], threads: 256, shared_bytes: 0 },
        &[Argument::Pointer(first), Argument::Pointer(out.address()), Argument::long(n_blocks)],
    );
}

fn unpack_f8(gpu: &Gpu, blocks: &DeviceBlocks, rows: Range<usize>, scale: f32, out: MatrixMut<'_>) {
    let n = rows.len() * blocks.k;
    if n == 0 {
        return;
    }
    gpu.launch(
        &format!("unpack_f8_e4m3_{}", out.number_type().suffix()),
        // A thread writes eight numbers.
        Grid { blocks: [n.div_ceil(8 * 256), 1, 1], threads: 256, shared_bytes: 0 },
        &[
            Argument::Pointer(blocks.memory.address() + (rows.start * blocks.k) as u64),
            Argument::Pointer(out.address()),
            Argument::long(n),
            Argument::I32(blocks.k.is_multiple_of(8).into()),
            Argument::F32(scale),
        ],
    );
}

/// How names of kernels say a kind.
fn name(kind: BlockKind) -> String {
    format!("{kind:?}").to_lowercase()
}

/// How many stages of 16 rows each of the eight warps of a product with a kind has, and the distance of rows (`blocks.cu`); none where there
/// is no such product.
fn stages(kind: BlockKind) -> Option<[usize; 2]> {
    match kind {
        BlockKind::Q4_K => Some([3, 144]),
        BlockKind::Q6_K => Some([3, 240]),
        BlockKind::Q8_0 => Some([2, 304]),
        _ => None,
    }
}

/// Matrix product of few rows with quantised weights: `y[t, first_column + o] (+)= sum_i x[t, i] w[o, i]`; other columns of `y` are
/// not touched.
///
/// Shapes: x `[tokens, k]` of bf16 with at most [`MAX_FEW_ROWS_OF_BLOCKS`] tokens; blocks `[n, k]`; y `[tokens, width]` of bf16 or f32.
/// Numerics: weights are not rounded, in contrast to the CPU and to products with unpacked blocks; sums in f32, in an order that
/// depends on k and the kind alone, so that a row has the same bits whatever rows stand beside it (`blocks.cu`).
///
/// # Panics
/// When a shape or number type does not fit, or the kind has no such product.
pub fn product_few_rows_of_blocks(
    gpu: &Gpu,
    x: Matrix<'_>,
    blocks: &DeviceBlocks,
    y: MatrixMut<'_>,
    first_column: usize,
    write: Write,
) {
    let n_rows = x.n_rows();
    check_shapes(x, blocks.shape(), &y, first_column);
    assert!(n_rows <= MAX_FEW_ROWS_OF_BLOCKS, "{n_rows} rows are not few");
    assert_eq!(x.number_type(), NumberType::Bf16, "type of x");
    let kernel = blocks.few_rows();
    let (name, shared_bytes) =
        kernel.unwrap_or_else(|| panic!("no product of few rows with {:?}", blocks.numbers));
    let [n, k] = blocks.shape();
    if n_rows == 0 || n == 0 {
        return;
    }
    let suffix = if y.number_type() == NumberType::F32 { "_to_f32" } else { "" };
    let mut arguments = vec![
        Argument::Pointer(x.address()),
        Argument::Pointer(blocks.memory.address()),
        Argument::Pointer(column_address(&y, first_column)),
        Argument::count(n_rows),
        Argument::count(n),
        Argument::count(k),
        Argument::count(y.width()),
        Argument::I32((write == Write::Accumulate).into()),
    ];
    if let Stored::F8 { scale, .. } = blocks.numbers {
        arguments.push(Argument::F32(scale));
    }
    gpu.launch(
        &format!("product_few_rows_{name}{suffix}"),
        Grid { blocks: [n.div_ceil(16), 1, 1], threads: 256, shared_bytes },
        &arguments,
    );
}
