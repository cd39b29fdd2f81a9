//! Root-mean-square norm and its gradient.

use crate::chain::{self, Link, LinkKind, Source};
use crate::gpu::{Argument, Gpu, Grid, int};
use crate::memory::{Matrix, MatrixMut, NumberType};

/// Threads of a block, where rows do not need more.
const THREADS: usize = 256;
/// The most threads of a row, and of a row in the gradient.
const MAX_THREADS: usize = 512;
const MAX_BACKWARD_THREADS: usize = 256;
/// Columns of a block that adds the partial sums of the weight's gradient, and its threads.
const PARTIALS_COLUMNS: usize = 32;
const PARTIALS_THREADS: usize = 1024;
/// The most blocks of the gradient: enough for every multiprocessor to have several.
const N_CHUNKS: usize = 512;

/// How a row is cut among threads that keep it.
struct Cut {
    threads_per_row: usize,
    /// What the name of the kernel has before its number type.
    kind: &'static str,
}

impl Cut {
    /// None where the width is not in fours or needs more than `max` threads. A thread has 24 numbers where that leaves none of them
    /// idle, else 16 (`norm.cu`).
    fn of(width: usize, max: usize) -> Option<Self> {
        if !width.is_multiple_of(4) {
            return None;
        }
        let of_24 = width / 24;
        if width.is_multiple_of(24) && of_24.is_power_of_two() && (32..=THREADS).contains(&of_24) {
            return Some(Self { threads_per_row: of_24, kind: "24_" });
        }
        let threads_per_row = width.div_ceil(16).next_power_of_two().max(32);
        (threads_per_row <= max).then_some(Self { threads_per_row, kind: "" })
    }
}

/// [`kernels::norm::rms_norm`]: `x` is the f32 residual stream, `out` the operand of a product. A weight nearer to 0 than 2^-100 counts
/// as 2^-100 or -2^-100, so that [`rms_norm_backward`] finds in `out` what it needs of `x`. One row that is launched with other operations
/// is summed in the order of `chain.cu`.
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
) {
    let (n_rows, width) = (x.n_rows(), x.width());
    assert_eq!([out.n_rows(), out.width()], [n_rows, width], "out is [tokens, hidden]");
    assert_eq!(weight.n_values(), width, "weight is [hidden]");
    assert_eq!(inverse_rms.n_values(), n_rows, "inverse_rms is [tokens]");
    let types = [x.number_type(), weight.number_type(), inverse_rms.number_type()];
    assert_eq!(types, [NumberType::F32; 3], "x, weight and inverse_rms");
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
    ];
    if let Some(Cut { threads_per_row, kind }) = Cut::of(width, MAX_THREADS) {
        let threads = threads_per_row.max(THREADS);
        let blocks = [n_rows.div_ceil(threads / threads_per_row), 1, 1];
        arguments.extend([n_rows, width, threads_per_row].map(Argument::count));
        let grid = Grid { blocks, threads, shared_bytes: 0 };
        let name = format!("rms_norm_{kind}{suffix}");
        if !chain::fits_operand(n_rows, out.number_type(), width) {
            return gpu.launch_early(&name, grid, &arguments);
        }
        let (kind, source, n_in) = (LinkKind::Operand, Source::Norm, int(width));
        let [from, norm_weight] = [x, weight].map(|matrix| matrix.address());
        let [x, scale] = [out, inverse_rms].map(|matrix| matrix.address());
        let operand = Link { kind, source, from, norm_weight, x, scale, ..Link::default() };
        let link = Link { n_in, eps, ..operand };
        gpu.launch_linked(name, grid, arguments, link);
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

/// [`kernels::norm::rms_norm_backward`], of the output of the forward pass in place of its input; `d_out` is of its type.
/// `d_weight` is summed over chunks of rows whose size depends on the number of rows, then over chunks, both in a fixed order.
///
/// # Panics
/// When the shapes or types do not fit.
pub fn rms_norm_backward(
    gpu: &Gpu,
    out: Matrix<'_>,
    weight: Matrix<'_>,
    inverse_rms: Matrix<'_>,
    d_out: Matrix<'_>,
    gradients: NormGradients<'_>,
) {
    let NormGradients { d_x, rounded, d_weight } = gradients;
    let (n_rows, width) = (out.n_rows(), out.width());
    assert_eq!([d_out.n_rows(), d_out.width()], [n_rows, width], "d_out is [tokens, hidden]");
    assert_eq!([d_x.n_rows(), d_x.width()], [n_rows, width], "d_x is [tokens, hidden]");
    assert_eq!(weight.n_values(), width, "weight is [hidden]");
    assert_eq!(inverse_rms.n_values(), n_rows, "inverse_rms is [tokens]");
    assert_eq!(out.number_type(), d_out.number_type(), "types of out and d_out");
    let types = [weight, inverse_rms, d_x.as_ref()].map(|m| m.number_type());
    assert_eq!(types, [NumberType::F32; 3], "weight, inverse_rms and d_x");
    if let Some(d_weight) = &d_weight {
        let d_weight = (d_weight.n_values(), d_weight.number_type());
        assert_eq!(d_weight, (width, NumberType::F32), "d_weight is [hidden], f32");
    }
    if let Some(rounded) = &rounded {
        assert_eq!(rounded.n_values(), out.n_values(), "rounded is [tokens, hidden]");
        assert_eq!(rounded.number_type(), d_out.number_type(), "types of rounded and d_out");
    }
    if out.n_values() == 0 {
        return;
    }
    // Of a multiple of the groups of a block, which are at most 8.
    let rows_per_chunk = n_rows.div_ceil(N_CHUNKS).next_multiple_of(8);
    let n_chunks = n_rows.div_ceil(rows_per_chunk);
    let partials = gpu.memory(n_chunks * width * size_of::<f32>());
    let suffix = out.number_type().suffix();
    let mut arguments = vec![
        Argument::Pointer(out.address()),
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
    if let Some(Cut { threads_per_row, kind }) = Cut::of(width, MAX_BACKWARD_THREADS) {
        arguments.push(Argument::count(threads_per_row));
        let grid = Grid { blocks, threads: THREADS, shared_bytes: width * size_of::<f32>() };
        gpu.launch_early(&format!("rms_norm_backward_{kind}{suffix}"), grid, &arguments);
    } else {
        let grid = Grid { blocks, threads: MAX_THREADS, shared_bytes: 0 };
        gpu.launch_early(&format!("rms_norm_backward_any_{suffix}"), grid, &arguments);
    }
    let Some(d_weight) = d_weight else { return };
    let blocks = [width.div_ceil(PARTIALS_COLUMNS), 1, 1];
    gpu.launch_early(
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
