//! Causal attention within the documents of a batch, and its gradient, as [`kernels::attention`] defines them. Keys and values are
//! read from the rows of `qkv`.
//!
//! bf16 with heads of 64 or 128 runs on tensor cores (`kernels/attention_hopper.cu` and `attention_hopper_backward.cu` on Hopper, `kernels/attention_packed.cu` elsewhere): P and dS are rounded to bf16, sums are f32 over
//! keys (queries) ascending, and a running maximum is kept while scores pass it by less than a factor of 256. Everything else runs in
//! `kernels/attention_plain.cu`. A document's numbers have the same bits whatever else is in the batch. Forward takes
//! `4 n_heads head_dim` FLOP for each pair of a row and a key that it sees, backward 10 by the formula, of which 14 are done on tensor
//! cores, as each of the two kernels makes the probabilities anew and nothing is added across blocks.

use std::cmp::Reverse;

use kernels::attention::HeadShape;
use kernels::rope::Direction;

use super::rope::{DeviceRopeTable, rotate_in_place};
use crate::gpu::{Argument, Gpu, Grid};
use crate::memory::{Matrix, MatrixMut, Memory, NumberType};

/// Rows of a tile in `attention_packed.cu`.
const TILE: u32 = 128;
/// Bytes of what says where one is.
const TILE_BYTES: usize = 16;
/// Blocks that a launch may have in y.
const MAX_BLOCKS_Y: usize = 65_535;
/// Threads of a block of it, but for the gradients of keys.
const THREADS: usize = 128;
/// Threads of a block of `attention_hopper.cu`.
const HOPPER_THREADS: usize = 256;
/// Threads of a block of `attention_packed.cu` that multiplies rows of `out` and `d_out`.
const DELTA_THREADS: usize = 256;
/// Warps of a block of `attention_plain.cu`.
const PLAIN_WARPS: usize = 4;
/// The largest head that it takes.
const MAX_HEAD_DIM: usize = 1024;

/// The documents of a batch, on the GPU: made once for all layers.
#[derive(Debug)]
pub struct PackedRows {
    n_rows: usize,
    n_documents: usize,
    starts: Memory,
    /// Tiles of 128 rows, `[n_tiles, 4]`: first row of the document, its rows, first row of the tile within it, 0. Those of a document
    /// are together, so that what they read stays in the second cache; long documents come first and in each the tile of the most
    /// keys, so that the last blocks of a launch are short.
    query_tiles: Memory,
    /// The same tiles, in each document those that the most queries see first.
    key_tiles: Memory,
}

impl PackedRows {
    /// Of the rows where documents begin, ascending from 0, and the number of rows.
    ///
    /// # Panics
    /// When they do not ascend from 0.
    #[must_use]
    pub fn new(gpu: &Gpu, segment_starts: &[u32]) -> Self {
        assert!(segment_starts.first() == Some(&0), "documents begin at row 0");
        assert!(segment_starts.is_sorted(), "documents overlap");
        let mut tiles = Vec::new();
        for document in segment_starts.windows(2) {
            let n_rows = document[1] - document[0];
            let firsts = (0..n_rows).step_by(TILE as usize);
            tiles.extend(firsts.map(|first| [document[0], n_rows, first, 0]));
        }
        let uploaded = |tiles: &[[u32; 4]]| gpu.upload(tiles.as_flattened());
        tiles.sort_by_key(|&[start, n_rows, first, _]| (Reverse(n_rows), start, Reverse(first)));
        let query_tiles = uploaded(&tiles);
        tiles.sort_by_key(|&[start, n_rows, first, _]| (Reverse(n_rows), start, first));
        Self {
            n_rows: segment_starts.last().map_or(0, |&n_rows| n_rows as usize),
            n_documents: segment_starts.len() - 1,
            starts: gpu.upload(segment_starts),
            query_tiles,
            key_tiles: uploaded(&tiles),
        }
    }

    /// Rows of the batch.
    #[must_use]
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }
}

/// Which kernels run, where the shape has kernels on tensor cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorCores {
    /// `attention_packed.cu`: every GPU.
    Ampere,
    /// `attention_hopper.cu`, `attention_hopper_backward.cu`: compute capability 9.0.
    Hopper,
}

/// Which kernels run for each pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionKernels {
    /// Forward.
    pub forward: TensorCores,
    /// The gradient.
    pub backward: TensorCores,
}

impl AttentionKernels {
    /// Those that run on every GPU.
    pub const AMPERE: Self = Self::all(TensorCores::Ampere);
    /// Those for Hopper.
    pub const HOPPER: Self = Self::all(TensorCores::Hopper);

    const fn all(cores: TensorCores) -> Self {
        Self { forward: cores, backward: cores }
    }

    /// The fastest on this GPU.
    #[must_use]
    pub fn fastest(gpu: &Gpu) -> Self {
        match gpu.description().capability {
            (9, 0) => Self::HOPPER,
            _ => Self::AMPERE,
        }
    }
}

/// What the gradient of attention is computed from.
#[derive(Clone, Copy, Debug)]
pub struct AttentionBackward<'a> {
    /// Queries, keys and values of the forward pass, `[tokens, n_heads + 2 n_kv_heads, head_dim]`; queries and keys were rotated.
    pub qkv: Matrix<'a>,
    /// The output of the forward pass, `[tokens, n_heads, head_dim]`.
    pub out: Matrix<'a>,
    /// The log-sum-exp of the forward pass, `[tokens, n_heads]`, f32.
    pub log_sum_exp: Matrix<'a>,
    /// Gradient of the output, `[tokens, n_heads, head_dim]`.
    pub d_out: Matrix<'a>,
    /// What queries and keys were rotated by.
    pub rope: &'a DeviceRopeTable,
}

/// Causal attention, see [`kernels::attention::attention`]. Overwrites all of `out` `[tokens, n_heads, head_dim]`, of the type of `qkv`,
/// and `log_sum_exp` `[tokens, n_heads]`, f32.
///
/// # Panics
/// When a shape or type does not fit.
pub fn attention(
    gpu: &Gpu,
    shape: HeadShape,
    qkv: Matrix<'_>,
    rows: &PackedRows,
    out: MatrixMut<'_>,
    log_sum_exp: MatrixMut<'_>,
) {
    attention_with(gpu, AttentionKernels::fastest(gpu), shape, qkv, rows, out, log_sum_exp);
}

/// As [`attention`], with these kernels.
///
/// # Panics
/// As [`attention`], and when the GPU has no such kernels.
pub fn attention_with(
    gpu: &Gpu,
    kernels: AttentionKernels,
    shape: HeadShape,
    qkv: Matrix<'_>,
    rows: &PackedRows,
    out: MatrixMut<'_>,
    log_sum_exp: MatrixMut<'_>,
) {
    check_shape(shape);
    let number_type = qkv.number_type();
    check("qkv", qkv, number_type, [rows.n_rows, shape.qkv_width()]);
    check("out", out.as_ref(), number_type, [rows.n_rows, shape.n_heads * shape.head_dim]);
    check("log_sum_exp", log_sum_exp.as_ref(), NumberType::F32, [rows.n_rows, shape.n_heads]);
    if rows.n_rows == 0 {
        return;
    }
    let outputs = [Argument::Pointer(out.address()), Argument::Pointer(log_sum_exp.address())];
    if is_packed(shape, number_type) {
        let HeadShape { n_heads, head_dim, .. } = shape;
        let launch = match kernels.forward {
            TensorCores::Ampere => TileLaunch {
                kernel: format!("attention_packed_{head_dim}"),
                n_heads,
                blocks_per_tile: 1,
                threads: THREADS,
                // 128 queries; 64 keys and values, twice.
                shared_bytes: (128 + 2 * 2 * 64) * head_dim * 2,
            },
            TensorCores::Hopper => TileLaunch {
                kernel: format!("attention_hopper_{head_dim}"),
                n_heads,
                blocks_per_tile: 1,
                threads: HOPPER_THREADS,
                // 128 queries; keys and values, 128 of each three times, or 64 twice.
                shared_bytes: (128 + 2 * if head_dim == 64 { 3 * 128 } else { 2 * 64 })
                    * head_dim
                    * 2,
            },
        };
        let arguments = [&outputs[..], &packed_arguments(shape)].concat();
        launch.run(gpu, qkv, &rows.query_tiles, &arguments);
    } else {
        let arguments =
            [&plain_rows(qkv, rows)[..], &outputs, &plain_arguments(shape, rows)].concat();
        let kernel = format!("attention_plain_{}", number_type.suffix());
        gpu.launch(&kernel, plain_grid(rows.n_rows * shape.n_heads), &arguments);
    }
}

/// Its gradient, see [`kernels::attention::attention_backward`], then [`kernels::rope::rotate`] backward: that of queries, keys and
/// values before queries and keys were rotated. On Hopper's tensor cores both are one, rounded once. Overwrites all of `d_qkv`, of the
/// shape and type of `qkv`.
///
/// # Panics
/// When a shape or type does not fit.
pub fn attention_backward(
    gpu: &Gpu,
    shape: HeadShape,
    inputs: AttentionBackward<'_>,
    rows: &PackedRows,
    d_qkv: MatrixMut<'_>,
) {
    attention_backward_with(gpu, AttentionKernels::fastest(gpu), shape, inputs, rows, d_qkv);
}

/// As [`attention_backward`], with these kernels.
///
/// # Panics
/// As [`attention_backward`], and when the GPU has no such kernels.
pub fn attention_backward_with(
    gpu: &Gpu,
    kernels: AttentionKernels,
    shape: HeadShape,
    inputs: AttentionBackward<'_>,
    rows: &PackedRows,
    d_qkv: MatrixMut<'_>,
) {
    check_shape(shape);
    let AttentionBackward { qkv, out, log_sum_exp, d_out, rope } = inputs;
    let number_type = qkv.number_type();
    let out_width = shape.n_heads * shape.head_dim;
    check("qkv", qkv, number_type, [rows.n_rows, shape.qkv_width()]);
    check("out", out, number_type, [rows.n_rows, out_width]);
    check("log_sum_exp", log_sum_exp, NumberType::F32, [rows.n_rows, shape.n_heads]);
    check("d_out", d_out, number_type, [rows.n_rows, out_width]);
    check("d_qkv", d_qkv.as_ref(), number_type, [rows.n_rows, shape.qkv_width()]);
    assert_eq!([rope.n_rows(), rope.head_dim()], [rows.n_rows, shape.head_dim], "shape of rope");
    if rows.n_rows == 0 {
        return;
    }
    let delta = gpu.memory(rows.n_rows * shape.n_heads * size_of::<f32>());
    let gradient = [log_sum_exp.address(), delta.address(), d_out.address(), d_qkv.address()]
        .map(Argument::Pointer);
    let products = [out.address(), d_out.address(), delta.address()].map(Argument::Pointer);
    let is_packed = is_packed(shape, number_type);
    if is_packed && kernels.backward == TensorCores::Hopper {
        let gradient = [&gradient[..], &rope.arguments()].concat();
        packed_backward(gpu, kernels.backward, shape, qkv, rows, products, &gradient);
        return;
    }
    if is_packed {
        packed_backward(gpu, kernels.backward, shape, qkv, rows, products, &gradient);
    } else {
        plain_backward(gpu, shape, qkv, rows, products, gradient);
    }
    rotate_in_place(gpu, d_qkv, rope, shape.rotated(), Direction::Backward);
}

fn packed_backward(
    gpu: &Gpu,
    cores: TensorCores,
    shape: HeadShape,
    qkv: Matrix<'_>,
    rows: &PackedRows,
    products: [Argument; 3],
    gradient: &[Argument],
) {
    let HeadShape { n_heads, head_dim, .. } = shape;
    let n = rows.n_rows * n_heads;
    let blocks = [(n * head_dim / 8).div_ceil(DELTA_THREADS), 1, 1];
    let grid = Grid { blocks, threads: DELTA_THREADS, shared_bytes: 0 };
    let arguments = [&products[..], &[Argument::long(n)]].concat();
    gpu.launch(&format!("attention_packed_delta_{head_dim}"), grid, &arguments);

    let arguments = [gradient, &packed_arguments(shape)].concat();
    keys_launch(cores, shape).run(gpu, qkv, &rows.key_tiles, &arguments);
    queries_launch(cores, shape).run(gpu, qkv, &rows.query_tiles, &arguments);
}

fn keys_launch(
    cores: TensorCores,
    HeadShape { n_kv_heads, head_dim, .. }: HeadShape,
) -> TileLaunch {
    // Keys of a block, queries that it takes at a time, how many times it has room for these, as the kernels are compiled.
    let [keys, queries, stages] = match (cores, head_dim) {
        (TensorCores::Ampere, 64) => [64, 32, 2],
        (TensorCores::Ampere, _) => [128, 64, 2],
        (TensorCores::Hopper, 64) => [64, 64, 3],
        (TensorCores::Hopper, _) => [64, 64, 2],
    };
    // Keys and values; queries and d_out; log_sum_exp and delta, twice.
    let shared_bytes =
        (2 * keys + stages * 2 * queries) * head_dim * 2 + 2 * 2 * queries * size_of::<f32>();
    let (kernel, exchanged_bytes) = match cores {
        // P is handed from warp to warp.
        TensorCores::Ampere => ("packed", keys * queries * 2),
        TensorCores::Hopper => ("hopper", 0),
    };
    TileLaunch {
        kernel: format!("attention_{kernel}_backward_keys_{head_dim}"),
        n_heads: n_kv_heads,
        blocks_per_tile: TILE as usize / keys,
        threads: 2 * keys,
        shared_bytes: shared_bytes + exchanged_bytes,
    }
}

fn queries_launch(
    cores: TensorCores,
    HeadShape { n_heads, head_dim, .. }: HeadShape,
) -> TileLaunch {
    // 128 queries and their d_out; keys and values, 32 twice or 64 three times.
    let (kernel, threads, keys) = match cores {
        TensorCores::Ampere => ("packed", THREADS, 2 * 32),
        TensorCores::Hopper => ("hopper", HOPPER_THREADS, 3 * 64),
    };
    TileLaunch {
        kernel: format!("attention_{kernel}_backward_queries_{head_dim}"),
        n_heads,
        blocks_per_tile: 1,
        threads,
        shared_bytes: 2 * (128 + keys) * head_dim * 2,
    }
}

/// A launch of a kernel of `attention_packed.cu` for all tiles.
struct TileLaunch {
    kernel: String,
    n_heads: usize,
    blocks_per_tile: usize,
    threads: usize,
    shared_bytes: usize,
}

impl TileLaunch {
    /// `arguments` are those after `qkv` and the tiles.
    fn run(&self, gpu: &Gpu, qkv: Matrix<'_>, tiles: &Memory, arguments: &[Argument]) {
        let n_tiles = tiles.n_bytes() / TILE_BYTES;
        let at_a_time = MAX_BLOCKS_Y / self.blocks_per_tile;
        for first in (0..n_tiles).step_by(at_a_time) {
            let n = at_a_time.min(n_tiles - first);
            let grid = Grid {
                blocks: [self.n_heads, n * self.blocks_per_tile, 1],
                threads: self.threads,
                shared_bytes: self.shared_bytes,
            };
            let tiles = tiles.address() + (first * TILE_BYTES) as u64;
            let inputs = [qkv.address(), tiles].map(Argument::Pointer);
            gpu.launch(&self.kernel, grid, &[&inputs[..], arguments].concat());
        }
    }
}

fn plain_backward(
    gpu: &Gpu,
    shape: HeadShape,
    qkv: Matrix<'_>,
    rows: &PackedRows,
    products: [Argument; 3],
    gradient: [Argument; 4],
) {
    let suffix = qkv.number_type().suffix();
    let counts = [rows.n_rows, shape.n_heads, shape.head_dim].map(Argument::count);
    let arguments = [&products[..], &counts].concat();
    let grid = plain_grid(rows.n_rows * shape.n_heads);
    gpu.launch(&format!("attention_plain_delta_{suffix}"), grid, &arguments);
    let arguments = [&plain_rows(qkv, rows)[..], &gradient, &plain_arguments(shape, rows)].concat();
    gpu.launch(&format!("attention_plain_backward_queries_{suffix}"), grid, &arguments);
    let grid = plain_grid(rows.n_rows * shape.n_kv_heads);
    gpu.launch(&format!("attention_plain_backward_keys_{suffix}"), grid, &arguments);
}

/// Whether `attention_packed.cu` has the shape: it compares scores before they are scaled.
fn is_packed(shape: HeadShape, number_type: NumberType) -> bool {
    number_type == NumberType::Bf16 && matches!(shape.head_dim, 64 | 128) && shape.scale > 0.0
}

fn packed_arguments(shape: HeadShape) -> [Argument; 4] {
    let HeadShape { n_heads, n_kv_heads, scale, .. } = shape;
    [
        Argument::count(n_heads),
        Argument::count(n_kv_heads),
        Argument::F32(scale),
        window_argument(shape),
    ]
}

/// Keys that a row sees at most. Without a window a number that no document reaches, and which positions may be added to.
fn window_argument(shape: HeadShape) -> Argument {
    let unlimited = 1 << 30;
    Argument::count(shape.window.map_or(unlimited, |window| window.min(unlimited)))
}

fn plain_rows(qkv: Matrix<'_>, rows: &PackedRows) -> [Argument; 3] {
    let starts = Argument::Pointer(rows.starts.address());
    [Argument::Pointer(qkv.address()), starts, Argument::count(rows.n_documents)]
}

fn plain_arguments(shape: HeadShape, rows: &PackedRows) -> [Argument; 6] {
    let HeadShape { n_heads, n_kv_heads, head_dim, scale, .. } = shape;
    let [n_rows, n_heads, n_kv_heads, head_dim] =
        [rows.n_rows, n_heads, n_kv_heads, head_dim].map(Argument::count);
    [n_rows, n_heads, n_kv_heads, head_dim, Argument::F32(scale), window_argument(shape)]
}

fn plain_grid(n_warps: usize) -> Grid {
    let blocks = [n_warps.div_ceil(PLAIN_WARPS), 1, 1];
    Grid { blocks, threads: PLAIN_WARPS * 32, shared_bytes: 0 }
}

fn check_shape(shape: HeadShape) {
    let HeadShape { n_heads, n_kv_heads, head_dim, window, .. } = shape;
    assert!(
        n_kv_heads > 0 && n_heads.is_multiple_of(n_kv_heads),
        "{n_heads} heads of {n_kv_heads} KV heads"
    );
    assert!((1..=MAX_HEAD_DIM).contains(&head_dim), "heads of {head_dim}, at most {MAX_HEAD_DIM}");
    assert!(window != Some(0), "a row sees itself");
}

fn check(name: &str, matrix: Matrix<'_>, number_type: NumberType, shape: [usize; 2]) {
    assert_eq!(matrix.number_type(), number_type, "type of {name}");
    assert_eq!([matrix.n_rows(), matrix.width()], shape, "shape of {name}");
}
