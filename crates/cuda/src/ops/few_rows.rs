//! Products of few rows, which take as long as reading the weight once.

use kernels::matmul::Write;

use crate::chain::{self, Link, LinkKind};
use crate::gpu::{Argument, Gpu, Grid, int};
use crate::memory::{Matrix, MatrixMut, NumberType};

/// Threads of a block, and outputs that it computes.
const THREADS: usize = 256;
const TILE: usize = 16;

/// The most rows that [`product_few_rows`] takes.
#[must_use]
pub fn max_few_rows(number_type: NumberType) -> usize {
    match number_type {
        NumberType::F32 => 16,
        NumberType::Bf16 => 8,
    }
}

/// Matrix product of few rows: `y[t, first_column + o] (+)= sum_i x[t, i] w[o, i]`; other columns of `y` are not touched.
///
/// Shapes: x `[tokens, n_in]` with at most [`max_few_rows`] tokens; w `[n_out, n_in]`; y `[tokens, width]`. x and w are of one number
/// type, y of the same or f32. Numerics: sums in f32, in an order that depends on `n_in` alone, so that a row has the same bits
/// whatever rows stand beside it (`few_rows.cu`); but one row of bf16 that is launched with other operations has the order of `chain.cu`.
/// Accumulating into bf16 rounds once.
///
/// # Panics
/// When a shape or number type does not fit.
pub fn product_few_rows(
    gpu: &Gpu,
    x: Matrix<'_>,
    w: Matrix<'_>,
    y: MatrixMut<'_>,
    first_column: usize,
    write: Write,
) {
    let (n_rows, n_out, n_in) = (x.n_rows(), w.n_rows(), w.width());
    check_shapes(x, [n_out, n_in], &y, first_column);
    assert!(n_rows <= max_few_rows(x.number_type()), "{n_rows} rows are not few");
    assert_eq!(x.number_type(), w.number_type(), "types of x and w");
    let to_f32 = y.number_type() == NumberType::F32;
    assert!(to_f32 || x.number_type() == NumberType::Bf16, "a product of f32 numbers as bf16");
    if n_rows == 0 || n_out == 0 {
        return;
    }
    let name = match x.number_type() {
        NumberType::F32 => {
            let most = match n_rows {
                1 => 1,
                2..=4 => 4,
                _ => 16,
            };
            format!("product_few_rows_{most}_f32")
        }
        NumberType::Bf16 => {
            let any = if n_in.is_multiple_of(8) { "" } else { "_any" };
            let suffix = if to_f32 { "bf16_to_f32" } else { "bf16" };
            format!("product_few_rows{any}_{suffix}")
        }
    };
    let address = column_address(&y, first_column);
    let grid = Grid { blocks: [n_out.div_ceil(TILE), 1, 1], threads: THREADS, shared_bytes: 0 };
    let arguments = [
        Argument::Pointer(x.address()),
        Argument::Pointer(w.address()),
        Argument::Pointer(address),
        Argument::count(n_rows),
        Argument::count(n_out),
        Argument::count(n_in),
        Argument::count(y.width()),
        Argument::I32((write == Write::Accumulate).into()),
    ];
    let kind = match (to_f32, write) {
        (false, Write::Overwrite) => Some(LinkKind::ProductBf16),
        (true, Write::Overwrite) => Some(LinkKind::ProductF32),
        (true, Write::Accumulate) => Some(LinkKind::AddedF32),
        (false, Write::Accumulate) => None,
    };
    let part = chain::part_of(n_rows, [n_out, n_in]);
    let (Some(kind), Some(part), NumberType::Bf16) = (kind, part, x.number_type()) else {
        return gpu.launch_early(&name, grid, &arguments);
    };
    let [n_out, n_in, part] = [n_out, n_in, part].map(int);
    let [from, w, y] = [x.address(), w.address(), address];
    let link = Link { kind, from, w, y, n_out, n_in, part, ..Link::default() };
    gpu.launch_linked(name, grid, arguments.to_vec(), link);
}

/// That `x` and `y` fit a weight `[n_out, n_in]`.
pub(super) fn check_shapes(
    x: Matrix<'_>,
    [n_out, n_in]: [usize; 2],
    y: &MatrixMut<'_>,
    first_column: usize,
) {
    assert_eq!(x.width(), n_in, "numbers of a row of x and of w");
    assert_eq!(x.n_rows(), y.n_rows(), "rows of x and y");
    assert!(
        first_column + n_out <= y.width(),
        "columns from {first_column} on of {}, for {n_out} outputs",
        y.width()
    );
}

/// Where a column begins.
pub(super) fn column_address(y: &MatrixMut<'_>, column: usize) -> u64 {
    y.address() + (column * y.number_type().bytes()) as u64
}
