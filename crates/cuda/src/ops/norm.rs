//! Root-mean-square norm and its gradient.

use crate::gpu::{Argument, Gpu, Grid};
use crate::memory::{Matrix, MatrixMut, NumberType};

/// Numbers of a row that one thread has (`norm.cu`).
const PER_THREAD: usize = 16;
/// Threads of a block, where rows do not need more.
const THREADS: usize = 256;
/// The most threads of a row, and of a row in the gradient.
const MAX_THREADS: usize = 512;
const MAX_BACKWARD_THREADS: usize = 256;
/// Columns of a block that adds the partial sums of the weight's gradient, and its threads.
const PARTIALS_COLUMNS: usize = 32;
const PARTIALS_THREADS: usize = 1024;
/// Blocks of the gradient that there are to be, where rows are many: enough for every multiprocessor to have several.
const N_CHUNKS: usize = 1024;

/// Threads of a row, a power of two; none where the width is not in fours or needs more than `max`.
fn threads_per_row(width: usize, max: usize) -> Option<usize> {
    let threads = width.div_ceil(PER_THREAD).next_power_of_two().max(32);
    (width.is_multiple_of(4) && threads <= max).then_some(threads)
}

/// [`kernels::norm::rms_norm`]: `x` is the f32 residual stream, `out` the operand of a product. `kept` gets `x` rounded to the
/// type of `out`, which backward needs.
///
/// # Panics
/// When the shapes or types do not fit.
pub fn rms_norm(
    gpu: &Gpu,
    x: Matrix<'_>,
    weight: Matrix<'_>,
    eps: f32,
    out: MatrixMut<'_>,
    inverse_rms: MatrixMut<'_>,
    kept: Option<MatrixMut<'_>>,
) {
    let (n_rows, width) = (x.n_rows(), x.width());
    assert_eq!([out.n_rows(), out.width()], [n_rows, width], "out is [tokens, hidden]");
    assert_eq!(weight.n_values(), width, "weight is [hidden]");
    assert_eq!(inverse_rms.n_values(), n_rows, "inverse_rms is [tokens]");
    let types = [x.number_type(), weight.number_type(), inverse_rms.number_type()];
    assert_eq!(types, [NumberType::F32; 3], "x, weight and inverse_rms");
    if let Some(kept) = &kept {
        assert_eq!(kept.n_values(), x.n_values(), "kept is [tokens, hidden]");
        assert_eq!(kept.number_type(), out.number_type(), "types of kept and out");
    }
    if x.n_values() == 0 {
        return;
    }
    let suffix = out.number_type().suffix();
    let mut arguments = vec![
        Argument::Pointer(x.address()),
        Argument::Pointer(weight.address()),
        Argument::F32(eps),
        Argument::Pointer(out.address()),
        Argument::Pointer(inverse_rms.address()),
        Argument::Pointer(kept.map_or(0, |kept| kept.address())),
    ];
    if let Some(threads_per_row) = threads_per_row(width, MAX_THREADS) {
        let threads = threads_per_row.max(THREADS);
        let blocks = [n_rows.div_ceil(threads / threads_per_row), 1, 1];
        arguments.extend([n_rows, width, threads_per_row].map(Argument::count));
        let grid = Grid { blocks, threads, shared_bytes: 0 };
        gpu.launch_early(&format!("rms_norm_{suffix}"), grid, &arguments);
    } else {
        arguments.push(Argument::count(width));
        let grid = Grid { blocks: [n_rows, 1, 1], threads: MAX_THREADS, shared_bytes: 0 };
        gpu.launch_early(&format!("rms_norm_any_{suffix}"), grid, &arguments);
    }
}

/// What [`rms_norm_backward`] writes.
#[derive(Debug)]
pub struct NormGradients<'a> {
    /// `[tokens, hidden]`, f32. Accumulates.
    pub d_x: MatrixMut<'a>,
    /// The new `d_x`, rounded to the type of `d_out`: the operand of the products before. Overwritten.
    pub rounded: Option<MatrixMut<'a>>,
    /// `[hidden]`, f32. Accumulates. None of a frozen weight.
    pub d_weight: Option<MatrixMut<'a>>,
}

/// [`kernels::norm::rms_norm_backward`], with `d_out` of the type of `x`. `d_weight` is summed over chunks of rows whose size
/// depends on the number of rows, then over chunks, both in a fixed order.
///
/// # Panics
/// When the shapes or types do not fit.
pub fn rms_norm_backward(
    gpu: &Gpu,
    x: Matrix<'_>,
    weight: Matrix<'_>,
    inverse_rms: Matrix<'_>,
    d_out: Matrix<'_>,
    gradients: NormGradients<'_>,
) {
    let NormGradients { d_x, rounded, d_weight } = gradients;
    let (n_rows, width) = (x.n_rows(), x.width());
    assert_eq!([d_out.n_rows(), d_out.width()], [n_rows, width], "d_out is [tokens, hidden]");
    assert_eq!([d_x.n_rows(), d_x.width()], [n_rows, width], "d_x is [tokens, hidden]");
    assert_eq!(weight.n_values(), width, "weight is [hidden]");
    assert_eq!(inverse_rms.n_values(), n_rows, "inverse_rms is [tokens]");
    assert_eq!(x.number_type(), d_out.number_type(), "types of x and d_out");
    let types = [weight, inverse_rms, d_x.as_ref()].map(|m| m.number_type());
    assert_eq!(types, [NumberType::F32; 3], "weight, inverse_rms and d_x");
    if let Some(d_weight) = &d_weight {
        let d_weight = (d_weight.n_values(), d_weight.number_type());
        assert_eq!(d_weight, (width, NumberType::F32), "d_weight is [hidden], f32");
    }
    if let Some(rounded) = &rounded {
        assert_eq!(rounded.n_values(), x.n_values(), "rounded is [tokens, hidden]");
        assert_eq!(rounded.number_type(), d_out.number_type(), "types of rounded and d_out");
    }
    if x.n_values() == 0 {
        return;
    }
    // Of a multiple of the groups of a block, which are at most 8.
    let rows_per_chunk = n_rows.div_ceil(N_CHUNKS).next_multiple_of(8).min(64);
    let n_chunks = n_rows.div_ceil(rows_per_chunk);
    let partials = gpu.memory(n_chunks * width * size_of::<f32>());
    let suffix = x.number_type().suffix();
    let mut arguments = vec![
        Argument::Pointer(x.address()),
        Argument::Pointer(weight.address()),
        Argument::Pointer(inverse_rms.address()),
        Argument::Pointer(d_out.address()),
        Argument::Pointer(d_x.address()),
        Argument::Pointer(rounded.map_or(0, |rounded| rounded.address())),
        Argument::Pointer(partials.address()),
        Argument::count(n_rows),
        Argument::count(width),
        Argument::count(rows_per_chunk),
    ];
    let blocks = [n_chunks, 1, 1];
    if let Some(threads_per_row) = threads_per_row(width, MAX_BACKWARD_THREADS) {
        arguments.push(Argument::count(threads_per_row));
        let grid = Grid { blocks, threads: THREADS, shared_bytes: width * size_of::<f32>() };
        gpu.launch(&format!("rms_norm_backward_{suffix}"), grid, &arguments);
    } else {
        let grid = Grid { blocks, threads: MAX_THREADS, shared_bytes: 0 };
        gpu.launch(&format!("rms_norm_backward_any_{suffix}"), grid, &arguments);
    }
    let Some(d_weight) = d_weight else { return };
    let blocks = [width.div_ceil(PARTIALS_COLUMNS), 1, 1];
    gpu.launch(
        "add_partials",
        Grid { blocks, threads: PARTIALS_THREADS, shared_bytes: 0 },
        &[
            Argument::Pointer(partials.address()),
            Argument::Pointer(d_weight.address()),
            Argument::count(n_chunks),
            Argument::count(width),
        ],
    );
}
