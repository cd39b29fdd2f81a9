//! The gated activation of the feed-forward part.

use crate::chain::{self, Link, LinkKind, Source};
use crate::gpu::{Argument, Gpu, Grid, int};
use crate::memory::{Matrix, MatrixMut, NumberType};

const THREADS: usize = 128;
/// 16-byte units, or numbers, of a thread (`swiglu.cu`).
const UNITS_PER_THREAD: usize = 2;

fn grid(number_type: NumberType, n_rows: usize, ffn_dim: usize) -> Grid {
    let per_pack = 16 / number_type.bytes();
    let per_row = if ffn_dim.is_multiple_of(per_pack) { ffn_dim / per_pack } else { ffn_dim };
    let n_units = n_rows * per_row;
    let per_block = THREADS * UNITS_PER_THREAD;
    assert!(u32::try_from(n_units + per_block).is_ok(), "{n_units} units");
    Grid { blocks: [n_units.div_ceil(per_block), 1, 1], threads: THREADS, shared_bytes: 0 }
}

/// [`kernels::swiglu::swiglu`] of a `gate_up` that is of the type of `out` already, as products write it.
///
/// Shapes: gate_up `[tokens, 2 * ffn]`, out `[tokens, ffn]`.
///
/// # Panics
/// When the shapes or types do not fit.
pub fn swiglu(gpu: &Gpu, gate_up: Matrix<'_>, out: MatrixMut<'_>) {
    let (n_rows, ffn_dim) = (out.n_rows(), out.width());
    assert_eq!([gate_up.n_rows(), gate_up.width()], [n_rows, 2 * ffn_dim], "gate_up");
    assert_eq!(gate_up.number_type(), out.number_type(), "types of gate_up and out");
    if out.n_values() == 0 {
        return;
    }
    let arguments = [
        Argument::Pointer(gate_up.address()),
        Argument::Pointer(out.address()),
        Argument::count(n_rows),
        Argument::count(ffn_dim),
    ];
    let kernel = format!("swiglu_{}", out.number_type().suffix());
    let grid = grid(out.number_type(), n_rows, ffn_dim);
    if !chain::fits_operand(n_rows, out.number_type(), ffn_dim) {
        return gpu.launch_early(&kernel, grid, &arguments);
    }
    let (kind, source, n_in) = (LinkKind::Operand, Source::Swiglu, int(ffn_dim));
    let (from, x) = (gate_up.address(), out.address());
    let link = Link { kind, source, from, x, n_in, ..Link::default() };
    gpu.launch_linked(kernel, grid, arguments.to_vec(), link);
}

/// The gradients of [`kernels::swiglu::swiglu_backward`], all of one type. The output of [`swiglu`], which that computes once more, is
/// kept on a GPU.
///
/// Shapes: gate_up, d_gate_up `[tokens, 2 * ffn]`; d_out `[tokens, ffn]`.
///
/// # Panics
/// When the shapes or types do not fit.
pub fn swiglu_backward(
    gpu: &Gpu,
    gate_up: Matrix<'_>,
    d_out: Matrix<'_>,
    d_gate_up: MatrixMut<'_>,
) {
    let (n_rows, ffn_dim) = (d_out.n_rows(), d_out.width());
    assert_eq!([gate_up.n_rows(), gate_up.width()], [n_rows, 2 * ffn_dim], "gate_up");
    assert_eq!([d_gate_up.n_rows(), d_gate_up.width()], [n_rows, 2 * ffn_dim], "d_gate_up");
    let number_type = d_out.number_type();
    let types = [gate_up.number_type(), d_gate_up.number_type()];
    assert_eq!(types, [number_type; 2], "types of gate_up and d_gate_up");
    if d_out.n_values() == 0 {
        return;
    }
    let arguments = [
        Argument::Pointer(gate_up.address()),
        Argument::Pointer(d_out.address()),
        Argument::Pointer(d_gate_up.address()),
        Argument::count(n_rows),
        Argument::count(ffn_dim),
    ];
    let kernel = format!("swiglu_backward_{}", number_type.suffix());
    gpu.launch_early(&kernel, grid(number_type, n_rows, ffn_dim), &arguments);
}
