//! Matrix products: `out[m, n] (+)= sum_k A[m, k] * B[n, k]`.
//!
//! Numerics, for every family but `amx` on bf16: K is cut into blocks of [`K_BLOCK`]; within a block the products are summed in
//! f32 from zero, k ascending; block sums are added in ascending order, to zero or to what `out` held.
//! - `reference`, `avx2`, `avx512`, and `amx` on f32: one product at a time, `sum = a * b + sum` rounded once (a bf16 product is exact). Why not by
//!   VDPBF16PS: `docs/decisions/0017-widened-products.md`.
//! - `amx` on bf16: all of K is one block. 32 products at a time by TDPBF16PS: even and odd members are summed apart, then added to
//!   the sum, which then is added to what `out` held.
//!
//! An output of bf16 gets each sum rounded (`avx512`, `amx`: subnormal ones to zero), or, where products are added, the sum of what it held and the product, which then began at zero.
//!
//! How many rows are multiplied together, how tiles are cut and which thread computes one changes none of this,
//! so a row of `out` has the same bits whatever rows stand beside it. A value that is not finite reaches the row or the column
//! of `out` that it is a factor of, and a NaN all of it.

use crate::blocks::BlockMatrix;
use crate::compute::{Compute, Family};
use crate::lanes::{LaneKernel, Lanes, dispatch};
use crate::operand::Operand;
use crate::panels::{PANEL_WIDTH, padded_k, panel_index, panels_len};
use crate::paths::KernelPath;
use crate::pool::{Scratch, SliceParts, TileScratch, reinterpret};
use crate::transpose::transpose;

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod widened;

/// Length of a block of K; a multiple of every [`Operand::K_STEP`] and of what quantised rows are unpacked by. On AMX, where it cuts no
/// sum, the K of rows that are packed together where there is too much of it to stay near.
pub const K_BLOCK: usize = 1024;

/// Rows and columns of one task where there are many rows, and where there are few. Rows are a multiple of the tile heights
/// 4, 6 and 32.
const TASK_OF_ROWS: [usize; 2] = [192, 256];
const TASK_OF_FEW_ROWS: [usize; 2] = [192, 64];

/// The most where each task transposes its rows first, which pays over many columns.
const TASK_OF_COLUMNS: [usize; 2] = [192, 1024];

/// Most rows and columns of a task of rows and panels that are widened: beside the rows, which take at most 1 MiB, stand the panels of a tile. Of
/// long rows it has half as many, and half the columns where sums wait to be rounded.
const WIDENED_TASK: [usize; 2] = [384, 512];

/// Most rows that are few. On AMX they are multiplied as they lie, as packing them would take longer than it saves, but for the last ones of
/// a product whose sums are rounded within it.
const FEW_ROWS: usize = 48;

/// The most of K for which rows that are packed on AMX stay in the second-level cache while all columns of a task pass by.
const AMX_WHOLE_K: usize = 2048;

/// Most rows and columns of a task of bf16 on AMX, whose rows are packed: at most 1 MiB of them, or half of that and 1 MiB of sums that are held
/// from part to part of K.
const AMX_TASK: [usize; 2] = [512, 1024];
const AMX_TASK_OF_LONG_ROWS: [usize; 2] = [256, 1024];

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
    /// The transposed matrix, `[k, m]`, its rows at a distance of `stride`. Each task turns its own part over.
    Columns {
        /// The values.
        values: &'a [T],
        /// Distance between rows of the transposed matrix.
        stride: usize,
    },
}

/// The right operand, `[n, k]`.
#[derive(Clone, Copy, Debug)]
pub enum Right<'a, T> {
    /// Panels ([`crate::panels`]).
    Panels(&'a [T]),
    /// Quantised rows, whose numbers are rounded to the operand type ([`crate::blocks`]).
    Blocks(BlockMatrix<'a>),
}

/// Whether a product replaces what the output holds or is added to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// `out = product`
    Overwrite,
    /// `out = out + product`
    Accumulate,
}

/// One block of a product, all pointers at its first value: up to [`K_BLOCK`] of K, on AMX all of it for rows that are multiplied as they lie.
/// Groups have 4 bytes. `a` is not used where the left operand was packed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    /// First group of the left operand.
    pub(crate) a: *const u32,
    /// Distance between rows of the left operand, in groups.
    pub(crate) a_row_stride: usize,
    /// First group of the first panel.
    pub(crate) b: *const u32,
    /// Distance between panels, in groups.
    pub(crate) b_panel_stride: usize,
    /// Distance between the lines of a panel, in groups; only products of vectors know another than [`PANEL_WIDTH`].
    pub(crate) b_group_stride: usize,
    /// First value of the output: bf16 where sums are rounded.
    pub(crate) out: *mut f32,
    pub(crate) out_stride: usize,
    /// Only where all of K is multiplied at once, and the output is overwritten.
    pub(crate) is_rounded: bool,
    pub(crate) n_rows: usize,
    pub(crate) n_columns: usize,
    pub(crate) n_groups: usize,
    pub(crate) write: Write,
}

impl Block {
    /// Nothing, to be filled in.
    pub(crate) const NONE: Self = Self {
        a: std::ptr::null(),
        a_row_stride: 0,
        b: std::ptr::null(),
        b_panel_stride: 0,
        b_group_stride: PANEL_WIDTH,
        out: std::ptr::null_mut(),
        out_stride: 0,
        is_rounded: false,
        n_rows: 0,
        n_columns: 0,
        n_groups: 0,
        write: Write::Overwrite,
    };

    /// Bytes of a value of the output.
    fn out_bytes(&self) -> usize {
        if self.is_rounded { size_of::<u16>() } else { size_of::<f32>() }
    }

    /// Where the output of a row and a column is: bf16 where sums are rounded.
    #[inline(always)]
    fn out_at(&self, row: usize, column: usize) -> *mut f32 {
        let offset = (row * self.out_stride + column) * self.out_bytes();
        self.out.cast::<u8>().wrapping_add(offset).cast()
    }

    /// Rows that a tile of vectors has at most: where it widens bf16, registers hold the odd members beside the even ones.
    #[cfg(target_arch = "x86_64")]
    const fn tile_rows(is_bf16: bool) -> usize {
        if is_bf16 { 4 } else { 6 }
    }

    /// Where rows of the left operand begin, as a loop over K best has them: in a register each.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    #[expect(unsafe_code, reason = "an empty instruction")]
    fn row_pointers<const ROWS: usize>(&self, row: usize) -> [*const u32; ROWS] {
        let mut pointers = [self.a; ROWS];
        for (i, pointer) in pointers.iter_mut().enumerate() {
            *pointer = self.a.wrapping_add(self.a_row(row + i));
            // Knowing that rows are equally far apart, the compiler would add distances one after the other, for each group again.
            // SAFETY: it is no instruction; the value stays.
            unsafe {
                std::arch::asm!(
                    "/* {0} */",
                    inout(reg) * pointer,
                    options(pure, readonly, nostack, preserves_flags)
                );
            }
        }
        pointers
    }

    /// Asks for what the output holds where a tile of rows by panels is written at its end.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn prefetch_out(&self, [row, n_rows]: [usize; 2], column: usize, n_panels: usize) {
        for row in row..row + n_rows {
            let len = n_panels * PANEL_WIDTH * self.out_bytes();
            crate::prefetch::prefetch_near(self.out_at(row, column).cast(), len);
        }
    }

    /// Offset of a row of the left operand, in groups.
    #[inline(always)]
    pub(crate) fn a_row(&self, row: usize) -> usize {
        row * self.a_row_stride
    }
}

/// Matrix product on all threads: `out[m, n] (+)= sum_k a[m, k] * b[n, k]`.
///
/// Shapes: a `[m, k]`; b `[n, k]`; out `[m, n]`. Numerics: module documentation.
///
/// # Panics
/// When a slice does not fit the shape.
pub fn matmul<T: Operand, O: Operand>(
    compute: &Compute,
    a: Left<'_, T>,
    b: Right<'_, T>,
    [m, n, k]: [usize; 3],
    out: &mut [O],
    write: Write,
) {
    assert_eq!(Some(out.len()), m.checked_mul(n), "out is [{m}, {n}]");
    matmul_columns(compute, a, b, [m, n, k], out, n, write);
}

/// As [`matmul`], into some columns of a wider matrix: `out` begins at the first of them, its rows are `out_stride` apart, and
/// other columns are not touched.
///
/// # Panics
/// When a slice does not fit the shape.
#[expect(unsafe_code, reason = "tasks write disjoint tiles of one matrix")]
pub fn matmul_columns<T: Operand, O: Operand>(
    compute: &Compute,
    a: Left<'_, T>,
    b: Right<'_, T>,
    [m, n, k]: [usize; 3],
    out: &mut [O],
    out_stride: usize,
    write: Write,
) {
    check_shapes(a, b, [m, n, k]);
    if m == 0 || n == 0 {
        return;
    }
    assert!(out_stride >= n && out.len() >= rows_len(m, out_stride, n), "out is [{m}, {n}]");
    compute.count(if size_of::<T>() == size_of::<f32>() {
        KernelPath::ProductF32
    } else {
        KernelPath::ProductBf16
    });
    let rounding = Rounding::of::<T, O>(compute.family(), a, [m, k], write);
    let tasks = Tasks::new(compute, a, b, [m, n, k], rounding);
    let parts = SliceParts::new(out);
    let family = compute.family();
    let job = compute.pool().job_number();
    compute.pool().run(tasks.n(), |task_idx, scratch| {
        let region = tasks.region(job, task_idx);
        let (row, column) = (region.row, region.column);
        let operands = (a, b, k);
        // SAFETY: shapes were checked above; regions of different tasks do not overlap.
        unsafe {
            let out = parts.pointer(row * out_stride + column);
            write_region(family, scratch, operands, region, rounding, (out, out_stride), write);
        }
    });
}

/// Where sums of an output of bf16 are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rounding {
    /// Nowhere: the output is f32.
    None,
    /// Where the product writes them.
    WithinProduct,
    /// In working memory, after the product.
    AfterProduct,
}

impl Rounding {
    fn of<T: Operand, O: Operand>(
        family: Family,
        a: Left<'_, T>,
        [m, k]: [usize; 2],
        write: Write,
    ) -> Self {
        if O::GROUP == 1 {
            return Self::None;
        }
        let is_within = match family {
            Family::Reference => false,
            Family::Amx if T::GROUP == 2 => matches!(a, Left::Columns { .. }) || m > FEW_ROWS,
            Family::Avx2 | Family::Avx512 | Family::Amx => k <= K_BLOCK,
        };
        match is_within && k > 0 && write == Write::Overwrite {
            true => Self::WithinProduct,
            false => Self::AfterProduct,
        }
    }
}

/// All of K for a region whose column is a multiple of 16, into numbers of any type.
///
/// # Safety
/// As [`multiply_region`].
#[expect(unsafe_code, reason = "see Safety")]
unsafe fn write_region<T: Operand, O: Operand>(
    family: Family,
    scratch: &mut Scratch,
    (a, b, k): (Left<'_, T>, Right<'_, T>, usize),
    region: Region,
    rounding: Rounding,
    (out, out_stride): (*mut O, usize),
    write: Write,
) {
    let Region { n_rows, n_columns, .. } = region;
    if rounding != Rounding::AfterProduct {
        let tiles = &mut scratch.tiles;
        let is_rounded = rounding == Rounding::WithinProduct;
        let block = Block {
            out: out.cast(),
            out_stride,
            is_rounded,
            n_rows,
            n_columns,
            write,
            ..Block::NONE
        };
        // SAFETY: the caller's promise.
        return unsafe { multiply_region(family, tiles, a, b, k, region, block) };
    }
    let (mut slices, tiles) = scratch.slices(1);
    let sums = slices.take::<f32>(n_rows * n_columns);
    let block = Block {
        out: sums.as_mut_ptr(),
        out_stride: n_columns,
        n_rows,
        n_columns,
        write: Write::Overwrite,
        ..Block::NONE
    };
    // SAFETY: the caller's promise, but for the output, which is `sums`.
    unsafe { multiply_region(family, tiles, a, b, k, region, block) };
    for (row, sums) in sums.chunks_exact(n_columns).enumerate() {
        // SAFETY: a row of the region, by the caller's promise.
        let out = unsafe { std::slice::from_raw_parts_mut(out.add(row * out_stride), n_columns) };
        RoundSums { sums, out, write }.run_on(family);
    }
}

/// One row of sums, rounded or, where products are added, added to what is there and rounded.
struct RoundSums<'a, O> {
    sums: &'a [f32],
    out: &'a mut [O],
    write: Write,
}

impl<O: Operand> RoundSums<'_, O> {
    fn run_on(self, family: Family) {
        if family != Family::Reference {
            return dispatch(family, self);
        }
        for (out, &sum) in self.out.iter_mut().zip(self.sums) {
            *out = O::from_f32(match self.write {
                Write::Overwrite => sum,
                Write::Accumulate => out.to_f32() + sum,
            });
        }
    }
}

impl<O: Operand> LaneKernel for RoundSums<'_, O> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        for i in (0..self.sums.len()).step_by(L::N) {
            let mut sum = lanes.load(&self.sums[i..]);
            if self.write == Write::Accumulate {
                sum = lanes.add(O::load(lanes, &self.out[i..]), sum);
            }
            O::store(lanes, sum, &mut self.out[i..]);
        }
    }
}

/// How a product is cut into tasks.
#[derive(Clone, Copy, Debug)]
struct Tasks {
    /// Rows and columns of the output.
    shape: [usize; 2],
    /// Rows and columns of a task.
    size: [usize; 2],
    order: Order,
}

/// Which tasks follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// Those of the same columns, whose panels are near then.
    RowsFirst,
    /// Those of the same rows, where these stay packed.
    ColumnsFirst,
}

impl Tasks {
    fn new<T: Operand>(
        compute: &Compute,
        a: Left<'_, T>,
        b: Right<'_, T>,
        [m, n, k]: [usize; 3],
        rounding: Rounding,
    ) -> Self {
        let n_threads = compute.n_threads();
        // Sums that are rounded afterwards would not stay in the second-level cache if they were those of a large task.
        let is_rounded_after = rounding == Rounding::AfterProduct;
        let is_amx = compute.family() == Family::Amx && T::GROUP == 2 && !is_rounded_after;
        let mut order = Order::RowsFirst;
        let size = match (a, b) {
            (Left::Rows { .. }, _) if m <= FEW_ROWS => TASK_OF_FEW_ROWS,
            (_, Right::Panels(_)) if is_amx => {
                if k <= AMX_WHOLE_K {
                    order = Order::ColumnsFirst;
                }
                let most = if k > K_BLOCK { AMX_TASK_OF_LONG_ROWS } else { AMX_TASK };
                shared_out(n_threads, most, [m, n])
            }
            (Left::Columns { .. }, _) => shared_out(n_threads, TASK_OF_COLUMNS, [m, n]),
            (_, Right::Panels(_)) if T::GROUP == 2 && widened::is_of(compute.family()) => {
                let [rows, columns] = WIDENED_TASK;
                let rows = if k > K_BLOCK / 2 { rows / 2 } else { rows };
                let columns = if is_rounded_after { columns / 2 } else { columns };
                shared_out(n_threads, [rows, columns], [m, n])
            }
            (Left::Rows { .. }, _) => TASK_OF_ROWS,
        };
        Self { shape: [m, n], size, order }
    }

    fn n(&self) -> usize {
        let [m, n] = self.shape;
        m.div_ceil(self.size[0]) * n.div_ceil(self.size[1])
    }

    fn region(&self, job: u64, task_idx: usize) -> Region {
        let ([m, n], [rows, columns]) = (self.shape, self.size);
        let (row_idx, column_idx) = match self.order {
            Order::RowsFirst => (task_idx % m.div_ceil(rows), task_idx / m.div_ceil(rows)),
            Order::ColumnsFirst => (task_idx / n.div_ceil(columns), task_idx % n.div_ceil(columns)),
        };
        let (row, column) = (row_idx * rows, column_idx * columns);
        let (n_rows, n_columns) = (rows.min(m - row), columns.min(n - column));
        Region { job: Some(job), row, n_rows, column, n_columns }
    }
}

/// Tasks of one size, as large as leaves enough of them for all threads.
fn shared_out(
    n_threads: usize,
    [most_rows, most_columns]: [usize; 2],
    [m, n]: [usize; 2],
) -> [usize; 2] {
    let even = |len: usize, most: usize| len.div_ceil(len.div_ceil(most)).next_multiple_of(32);
    let (mut rows, mut columns) = (even(m, most_rows), even(n, most_columns));
    let n_wanted = if n_threads == 1 { 1 } else { 2 * n_threads };
    while m.div_ceil(rows) * n.div_ceil(columns) < n_wanted {
        if columns > 256 && columns >= rows {
            columns = (columns / 2).next_multiple_of(32);
        } else if rows > 64 {
            rows = (rows / 2).next_multiple_of(32);
        } else {
            break;
        }
    }
    [rows, columns]
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
    let b = Right::Panels(b);
    check_shapes(a, b, [m, n, k]);
    if m == 0 || n == 0 {
        return;
    }
    assert!(out_stride >= n && out.len() >= rows_len(m, out_stride, n), "out is [{m}, {n}]");
    let region = Region { job: None, row: 0, n_rows: m, column: 0, n_columns: n };
    let out = out.as_mut_ptr();
    let block = Block { out, out_stride, n_rows: m, n_columns: n, write, ..Block::NONE };
    // SAFETY: shapes were checked above, and `out` is borrowed mutably.
    unsafe { multiply_region(family, scratch, a, b, k, region, block) };
}

fn check_shapes<T: Operand>(a: Left<'_, T>, b: Right<'_, T>, [m, n, k]: [usize; 3]) {
    match b {
        Right::Panels(panels) => {
            assert_eq!(panels.len(), panels_len::<T>(n, k), "b is panels of [{n}, {k}]");
        }
        Right::Blocks(blocks) => assert_eq!(blocks.shape(), [n, k], "shape of b"),
    }
    match a {
        Left::Rows { values, stride } => {
            assert!(k.is_multiple_of(T::GROUP), "k {k} is no multiple of {}", T::GROUP);
            assert!(
                stride >= k && stride.is_multiple_of(T::GROUP),
                "stride {stride} of rows of {k}"
            );
            assert!(values.len() >= rows_len(m, stride, k), "a is [{m}, {k}]");
        }
        Left::Columns { values, stride } => {
            assert!(stride >= m || k <= 1, "stride {stride} of columns of {m}");
            assert!(values.len() >= rows_len(k, stride, m), "a is [{k}, {m}], transposed");
        }
    }
}

/// Values from the first of `n_rows` rows of `width`, at a distance of `stride`, to the end of the last. A shape that
/// wrapped around would pass for a small one, and kernels trust it.
fn rows_len(n_rows: usize, stride: usize, width: usize) -> usize {
    let Some(before_last) = n_rows.checked_sub(1) else { return 0 };
    let len = before_last.checked_mul(stride).and_then(|start| start.checked_add(width));
    len.expect("the number of values fits usize")
}

/// A rectangle of the output.
#[derive(Clone, Copy, Debug)]
struct Region {
    /// The job of the task, if other regions of the same product may come before and after.
    job: Option<u64>,
    row: usize,
    n_rows: usize,
    column: usize,
    n_columns: usize,
}

/// All of K for a region whose column is a multiple of 16. Of `block`, the output, its shape and how it is written are given.
///
/// # Safety
/// `a` and `b` fit the shapes (`check_shapes`); the output points to the region's first value in memory that holds the
/// region at rows of its stride, and nobody else uses it meanwhile.
#[expect(unsafe_code, reason = "see Safety")]
unsafe fn multiply_region<T: Operand>(
    family: Family,
    scratch: &mut TileScratch,
    a: Left<'_, T>,
    b: Right<'_, T>,
    k: usize,
    region: Region,
    block: Block,
) {
    let k_padded = padded_k::<T>(k);
    if k == 0 {
        return clear_block(block);
    }
    #[cfg(target_arch = "x86_64")]
    if family == Family::Amx && T::GROUP == 2 {
        // SAFETY: the caller's promise; the family runs only where detection found its instructions.
        return unsafe { amx::region::multiply(scratch, a, b, k, region, block) };
    }
    let max_k = K_BLOCK.min(k).next_multiple_of(T::K_STEP);
    let is_transposed = matches!(a, Left::Columns { .. });
    let transposed_len = if is_transposed { region.n_rows * max_k / T::GROUP } else { 0 };
    let [unpacking_len, panels_floats] = unpacked_lens::<T>(b, region.n_columns, K_BLOCK.min(k));
    let is_widened = widened::is_used::<T>(family, [region.n_rows, region.n_columns]);
    let [rows_floats, tile_floats] =
        if is_widened { widened::scratch_lens(family, region.n_rows, max_k) } else { [0, 0] };
    let [transposed, unpacking, unpacked, widened_rows, widened_panels] =
        scratch.floats([transposed_len, unpacking_len, panels_floats, rows_floats, tile_floats]);
    for first_k in (0..k).step_by(K_BLOCK) {
        let block_k = K_BLOCK.min(k - first_k);
        let write = if first_k == 0 { block.write } else { Write::Accumulate };
        let (b_start, b_panel_len) = match b {
            Right::Panels(panels) => {
                let start = panel_index::<T>(region.column, first_k, k_padded);
                (panels[start..].as_ptr(), PANEL_WIDTH * k_padded)
            }
            Right::Blocks(blocks) => {
                let len = panels_len::<T>(region.n_columns, block_k);
                let panels = &mut reinterpret::<T>(unpacked)[..len];
                let columns = [region.column, region.n_columns];
                blocks.unpack(family, columns, [first_k, block_k], unpacking, panels);
                (panels.as_ptr(), PANEL_WIDTH * padded_k::<T>(block_k))
            }
        };
        let (a_start, a_stride, n_k) = match a {
            Left::Rows { values, stride } => {
                (values[region.row * stride + first_k..].as_ptr(), stride, block_k)
            }
            Left::Columns { values, stride } => {
                // Zeros fill the last step of K, as they do in panels.
                let (shape, n_k) = ([region.n_rows, block_k], block_k.next_multiple_of(T::K_STEP));
                let source = &values[first_k * stride + region.row..];
                let out = &mut reinterpret::<T>(transposed)[..region.n_rows * n_k];
                transpose(family, source, stride, shape, out, n_k);
                (out.as_ptr(), n_k, n_k)
            }
        };
        let block = Block {
            a: a_start.cast(),
            a_row_stride: a_stride / T::GROUP,
            b: b_start.cast(),
            b_panel_stride: b_panel_len / T::GROUP,
            n_groups: n_k.div_ceil(T::GROUP),
            write,
            ..block
        };
        // SAFETY: the caller's promise, cut to this block of K.
        unsafe {
            if is_widened {
                widened::multiply(family, &block, [&mut *widened_rows, &mut *widened_panels]);
            } else {
                multiply_block::<T>(family, block);
            }
        }
    }
}

/// Lengths of the working memory of unpacking quantised rows, and of the panels that come out.
fn unpacked_lens<T: Operand>(b: Right<'_, T>, n_columns: usize, max_k: usize) -> [usize; 2] {
    match b {
        Right::Panels(_) => [0, 0],
        Right::Blocks(_) => {
            [BlockMatrix::scratch_len::<T>(max_k), panels_len::<T>(n_columns, max_k) / T::GROUP]
        }
    }
}

/// The product over an empty K.
#[expect(unsafe_code, reason = "writes the caller's output")]
pub(crate) fn clear_block(block: Block) {
    assert!(!block.is_rounded, "{block:?}");
    if block.write == Write::Accumulate {
        return;
    }
    for row in 0..block.n_rows {
        let out = block.out.wrapping_add(row * block.out_stride);
        // SAFETY: the output is the caller's (see `multiply_region`).
        unsafe { std::slice::from_raw_parts_mut(out, block.n_columns) }.fill(0.0);
    }
}

/// # Safety
/// The block's pointers and strides cover its rows, columns and groups, and nobody else uses `out` meanwhile.
#[expect(unsafe_code, reason = "see Safety")]
unsafe fn multiply_block<T: Operand>(family: Family, block: Block) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the family runs only where detection found its instructions; the rest is the caller's promise.
    unsafe {
        match (family, T::GROUP) {
            (Family::Reference, _) => crate::reference::matmul_block::<T>(&block),
            (Family::Avx2, 1) => avx2::multiply::<false>(&block),
            (Family::Avx2, _) => avx2::multiply::<true>(&block),
            (Family::Avx512 | Family::Amx, 1) => avx512::multiply::<false>(&block),
            (Family::Avx512 | Family::Amx, _) => avx512::multiply::<true>(&block),
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: the caller's promise.
    unsafe {
        let _ = family;
        crate::reference::matmul_block::<T>(&block);
    }
}

#[cfg(test)]
mod tests;
