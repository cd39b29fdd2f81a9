//! Matrix products: `out[m, n] (+)= sum_k A[m, k] * B[n, k]`.
//!
//! Numerics, for every family: K is cut into blocks of [`K_BLOCK`]; within a block the products are summed in
//! f32 from zero, k ascending; block sums are added in ascending order, to zero or to what `out` held.
//! - `reference`, `avx2`: one product at a time, `sum = a * b + sum` rounded once (a bf16 product is exact).
//! - `avx512` on bf16: pairs of products by VDPBF16PS, odd member first, subnormals taken as zero.
//! - `amx` on bf16: 32 products at a time by TDPBF16PS: even and odd members are summed apart, then added.
//!
//! How many rows are multiplied together, how tiles are cut and which thread computes one changes none of this,
//! so a row of `out` has the same bits whatever rows stand beside it.

use crate::compute::{Compute, Family};
use crate::operand::Operand;
use crate::panels::{PANEL_WIDTH, padded_k, panel_index, panels_len};
use crate::pool::{SliceParts, TileScratch};

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

/// Length of a block of K; a multiple of every [`Operand::K_STEP`].
pub const K_BLOCK: usize = 1024;

/// Rows of one task: a multiple of the tile heights 4, 6 and 32.
const TASK_ROWS: usize = 192;

/// Columns of one task where there are many rows, and where there are few.
const TASK_COLUMNS: usize = 128;
const TASK_COLUMNS_FEW_ROWS: usize = 64;

/// The left operand, `[m, k]`.
#[derive(Clone, Copy, Debug)]
pub enum Left<'a, T> {
    /// Rows at a distance of `stride`; k must be a multiple of [`Operand::GROUP`].
    Rows {
        /// The values.
        values: &'a [T],
        /// Distance between rows.
        stride: usize,
    },
    /// Panels of the `[m, k]` matrix ([`crate::panels`]).
    Panels(&'a [T]),
}

/// Whether a product replaces what the output holds or is added to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// `out = product`
    Overwrite,
    /// `out = out + product`
    Accumulate,
}

/// One block of a product: up to [`K_BLOCK`] of K, all pointers at its first value. Groups have 4 bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    /// First group of the left operand.
    pub(crate) a: *const u32,
    /// Distances in the left operand, in groups: between rows, between bundles of 16 rows, between groups of one
    /// row. So one formula ([`Block::a_row`]) covers rows and panels.
    pub(crate) a_row_stride: usize,
    pub(crate) a_bundle_stride: usize,
    pub(crate) a_group_stride: usize,
    /// First group of the first panel.
    pub(crate) b: *const u32,
    /// Distance between panels, in groups.
    pub(crate) b_panel_stride: usize,
    pub(crate) out: *mut f32,
    pub(crate) out_stride: usize,
    pub(crate) n_rows: usize,
    pub(crate) n_columns: usize,
    pub(crate) n_groups: usize,
    pub(crate) write: Write,
}

impl Block {
    /// Offset of a row of the left operand, in groups.
    #[inline(always)]
    pub(crate) fn a_row(&self, row: usize) -> usize {
        row / PANEL_WIDTH * self.a_bundle_stride + row % PANEL_WIDTH * self.a_row_stride
    }
}

/// Matrix product on all threads: `out[m, n] (+)= sum_k a[m, k] * b[n, k]`.
///
/// Shapes: a `[m, k]`; b panels of `[n, k]`; out `[m, n]`. Numerics: module documentation.
///
/// # Panics
/// When a slice does not fit the shape.
#[expect(unsafe_code, reason = "tasks write disjoint tiles of one matrix")]
pub fn matmul<T: Operand>(
    compute: &Compute,
    a: Left<'_, T>,
    b: &[T],
    [m, n, k]: [usize; 3],
    out: &mut [f32],
    write: Write,
) {
    check_shapes(a, b, [m, n, k]);
    assert_eq!(out.len(), m * n, "out is [{m}, {n}]");
    let task_columns = if m <= TASK_ROWS / 4 { TASK_COLUMNS_FEW_ROWS } else { TASK_COLUMNS };
    let (n_row_tasks, n_column_tasks) = (m.div_ceil(TASK_ROWS), n.div_ceil(task_columns));
    let parts = SliceParts::new(out);
    let family = compute.family();
    compute.pool().run(n_row_tasks * n_column_tasks, |task_idx, scratch| {
        let (row, column) =
            (task_idx % n_row_tasks * TASK_ROWS, task_idx / n_row_tasks * task_columns);
        let region = Region {
            row,
            n_rows: TASK_ROWS.min(m - row),
            column,
            n_columns: task_columns.min(n - column),
        };
        // SAFETY: shapes were checked above; regions of different tasks do not overlap.
        unsafe {
            let out = parts.pointer(row * n + column);
            multiply_region(family, &mut scratch.tiles, a, b, k, region, out, n, write);
        }
    });
}

/// Matrix product on the calling thread, into rows of `out` at a distance of `out_stride`.
///
/// # Panics
/// When a slice does not fit the shape.
#[expect(unsafe_code, reason = "kernels take pointers; all lengths are checked here")]
#[expect(clippy::too_many_arguments, reason = "the operands of a product and their shapes")]
pub(crate) fn matmul_here<T: Operand>(
    family: Family,
    scratch: &mut TileScratch,
    a: Left<'_, T>,
    b: &[T],
    [m, n, k]: [usize; 3],
    out: &mut [f32],
    out_stride: usize,
    write: Write,
) {
    check_shapes(a, b, [m, n, k]);
    if m == 0 || n == 0 {
        return;
    }
    assert!(out_stride >= n && out.len() >= (m - 1) * out_stride + n, "out is [{m}, {n}]");
    let region = Region { row: 0, n_rows: m, column: 0, n_columns: n };
    // SAFETY: shapes were checked above, and `out` is borrowed mutably.
    unsafe {
        multiply_region(family, scratch, a, b, k, region, out.as_mut_ptr(), out_stride, write);
    }
}

fn check_shapes<T: Operand>(a: Left<'_, T>, b: &[T], [m, n, k]: [usize; 3]) {
    assert_eq!(b.len(), panels_len::<T>(n, k), "b is panels of [{n}, {k}]");
    match a {
        Left::Rows { values, stride } => {
            assert!(k.is_multiple_of(T::GROUP), "k {k} is no multiple of {}", T::GROUP);
            assert!(
                stride >= k && stride.is_multiple_of(T::GROUP),
                "stride {stride} of rows of {k}"
            );
            assert!(m == 0 || values.len() >= (m - 1) * stride + k, "a is [{m}, {k}]");
        }
        Left::Panels(values) => {
            assert_eq!(values.len(), panels_len::<T>(m, k), "a is panels of [{m}, {k}]");
        }
    }
}

/// A rectangle of the output.
#[derive(Clone, Copy, Debug)]
struct Region {
    row: usize,
    n_rows: usize,
    column: usize,
    n_columns: usize,
}

/// All of K for a region whose column is a multiple of 16, and whose row is one too if `a` is in panels.
///
/// # Safety
/// `a` and `b` fit the shapes (`check_shapes`); `out` points to the region's first value in memory that holds the
/// region at rows of `out_stride`, and nobody else uses it meanwhile.
#[expect(unsafe_code, reason = "see Safety")]
#[expect(clippy::too_many_arguments, reason = "the operands of a product and their shapes")]
unsafe fn multiply_region<T: Operand>(
    family: Family,
    scratch: &mut TileScratch,
    a: Left<'_, T>,
    b: &[T],
    k: usize,
    region: Region,
    out: *mut f32,
    out_stride: usize,
    write: Write,
) {
    let k_padded = padded_k::<T>(k);
    if k == 0 {
        return clear_region(region, out, out_stride, write);
    }
    for first_k in (0..k).step_by(K_BLOCK) {
        let block_k = K_BLOCK.min(k - first_k);
        let write = if first_k == 0 { write } else { Write::Accumulate };
        let b_start = panel_index::<T>(region.column, first_k, k_padded);
        let (a_start, a_row_stride, a_bundle_stride, a_group_stride) = match a {
            Left::Rows { values, stride } => {
                let groups = stride / T::GROUP;
                (&values[region.row * stride + first_k..], groups, PANEL_WIDTH * groups, 1)
            }
            Left::Panels(values) => {
                let start = panel_index::<T>(region.row, first_k, k_padded);
                (&values[start..], 1, PANEL_WIDTH * k_padded / T::GROUP, PANEL_WIDTH)
            }
        };
        let block = Block {
            a: a_start.as_ptr().cast(),
            a_row_stride,
            a_bundle_stride,
            a_group_stride,
            b: b[b_start..].as_ptr().cast(),
            b_panel_stride: PANEL_WIDTH * k_padded / T::GROUP,
            out,
            out_stride,
            n_rows: region.n_rows,
            n_columns: region.n_columns,
            n_groups: block_k.div_ceil(T::GROUP),
            write,
        };
        // SAFETY: the caller's promise, cut to this block of K.
        unsafe { multiply_block::<T>(family, scratch, block) };
    }
}

/// The product over an empty K.
#[expect(unsafe_code, reason = "writes the caller's region")]
fn clear_region(region: Region, out: *mut f32, out_stride: usize, write: Write) {
    if write == Write::Accumulate {
        return;
    }
    for row in 0..region.n_rows {
        // SAFETY: the region is the caller's (see `multiply_region`).
        unsafe { std::slice::from_raw_parts_mut(out.add(row * out_stride), region.n_columns) }
            .fill(0.0);
    }
}

/// # Safety
/// The block's pointers and strides cover its rows, columns and groups, and nobody else uses `out` meanwhile.
#[expect(unsafe_code, reason = "see Safety")]
unsafe fn multiply_block<T: Operand>(family: Family, scratch: &mut TileScratch, block: Block) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the family runs only where detection found its instructions; the rest is the caller's promise.
    unsafe {
        match (family, T::GROUP) {
            (Family::Reference, _) => crate::reference::matmul_block::<T>(&block),
            (Family::Avx2, 1) => avx2::multiply::<false>(&block),
            (Family::Avx2, _) => avx2::multiply::<true>(&block),
            (Family::Avx512 | Family::Amx, 1) => avx512::multiply::<false>(&block),
            (Family::Avx512, _) => avx512::multiply::<true>(&block),
            (Family::Amx, _) => amx::multiply(&block, scratch),
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: the caller's promise.
    unsafe {
        let _ = (family, scratch);
        crate::reference::matmul_block::<T>(&block);
    }
}

#[cfg(test)]
mod tests;
