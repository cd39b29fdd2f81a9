//! Products of rounded rows with quantised weights: `out[t, n] (+)= sum_k x[t, k] * W[n, k]`.
//!
//! The weight's blocks are packed once ([`pack()`]) without changing a number or adding a bit; rows are rounded to 8 bits, in the family `amx`
//! to bf16, per product ([`round_rows`]). Few rows cost what reading the packed weight costs, and the unpacking of many is shared by all of
//! them.
//!
//! Numerics, for any number of rows and threads. K is cut into groups of 32, ascending, and sums begin at zero ([`Write::Overwrite`]) or at
//! what `out` held ([`Write::Accumulate`]).
//!
//! Families `reference`, `avx2` and `avx512`, the same bits in each. A row's group has a scale `s`, codes `q` in -127..=127 and their sum `X`; a weight's group has unsigned codes `c`:
//! - `acc = fma(s, t, acc)`;
//! - `Q4_0`, `Q5_0`, `Q8_0`: `t = d * I`, `I = sum (c - o) q` with `o` 8, 16, 128;
//! - `Q4_1`, `Q5_1`, `Q4_K`, `Q5_K`: `t = fma(-X, m, w * I)`, `I = sum c q`. `w` is `d` or `d * scale`, `m` is the negated minimum
//!   or `dmin * minimum`, each one f32 product;
//! - `Q6_K`: `t = fma(w1, I1, w0 * I0)`, `I = sum (c - 32) q` over each half of the group, `w = d * scale`.
//!
//! `I` and `X` are whole numbers below 2^24, so they are exact, as integers or as f32, however they are summed: only
//! the roundings written above exist. Against the product with the weight's own numbers the error of an output is at most
//! `sum over groups of s / 2 * sum |W|`, plus the f32 roundings.
//!
//! Family `amx`. A row is rounded to bf16. A weight's number is cut to the upper 16 bits of `fma(2^e + c, a, -((2^e + o) a + m))`, where `a` and
//! `m` (zero where there is none) are the factors above times `1 + 0.5 / (128 * 1.44)`, so that cut numbers are right on average, and `2^e` is
//! the power of two in whose mantissa the code was put: 2^15, and for codes of 4 bits 2^11 in the first half of a group and 2^7 in the
//! second. A group's products of even and of odd members are summed apart, each by fma from
//! zero, then `acc = acc + (even + odd)`; numbers below 2^-126 are taken as zero (TDPBF16PS). Against the product with the weight's own numbers
//! the error is at most about `sum |x| (|W| / 85 + |a| / 512)`, for the addend is rounded too; on average it is far less than that of 8 bits.
//!
//! A value of a row that is not finite leaves no finite number in that row (in 8 bits: NaN alone), a factor of a block that is not finite none in
//! its column.

use crate::blocks::BlockKind;
use crate::compute::{Compute, Family};
use crate::matmul::Write;
use crate::panels::PANEL_WIDTH;
use crate::paths::KernelPath;
use crate::pool::{SliceParts, TileScratch};

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod layout;
mod pack;
mod reference;
mod round;

use layout::{GROUP, Layout};
pub use pack::pack;
pub use round::round_rows;

/// Version of the order of bytes that [`pack()`] writes: another order has another number, so that packed bytes that someone kept
/// are not taken for it.
pub const ORDER_VERSION: u32 = 1;

/// Rows that stand together in [`Rows`], so that a tile of them is read in one piece.
const BUNDLE: usize = 16;

/// Bytes of one row in a group of [`Form::Codes`]: 32 codes, then as f32 the scale and the sums of all codes and of each half of them.
const RECORD: usize = GROUP + 16;

/// The same of [`Form::Bf16`], which is the larger.
const BF16_RECORD: usize = GROUP * size_of::<u16>();

/// Groups of a chunk of rows in bf16: two panels of so many fill 32 KiB of the nearest cache. Whole blocks of every kind.
const CHUNK: usize = 16;

/// Groups whose lines are unpacked together: 20 KiB, which stay in the nearest cache.
#[cfg(target_arch = "x86_64")]
const SPAN: usize = 32;

/// Rows of one task. Its panels are unpacked once for all of them.
const TASK_ROWS: usize = 512;
/// Most panels of one task, and of one with few rows, where reading them is the work.
const TASK_PANELS: usize = 8;
const TASK_PANELS_OF_FEW_ROWS: usize = 4;
/// Tiles of AMX are so fast that bringing the rows from afar takes longer than a few panels by them.
const TASK_PANELS_OF_TILES: usize = 16;
/// Tasks for each thread, where there are panels enough: what one thread does alone at the end is a small part.
const TASKS_PER_THREAD: usize = 4;

/// Most rows that a family multiplies while it reads packed lines.
fn few_rows(family: Family) -> usize {
    match family {
        #[cfg(target_arch = "x86_64")]
        Family::Amx => amx::FEW_ROWS,
        _ => BUNDLE,
    }
}

/// Whether weights of this kind are packed.
#[must_use]
pub fn is_packed(kind: BlockKind) -> bool {
    Layout::of(kind).is_some()
}

/// Bytes of a packed `[n, k]` matrix: those of its blocks, n rounded up to 16, and at most 32 for each 16 rows.
///
/// # Panics
/// When the kind is not packed, k is not whole blocks or the number overflows.
#[must_use]
pub fn packed_len(kind: BlockKind, [n, k]: [usize; 2]) -> usize {
    let panel = Layout::expect(kind).panel_len(k);
    n.div_ceil(PANEL_WIDTH).checked_mul(panel).expect("the number of bytes fits usize")
}

/// Bytes that have room for `m` rounded rows of `k` values in the form of any family.
///
/// # Panics
/// When k is not whole groups of 32 or the number overflows.
#[must_use]
pub fn rows_len([m, k]: [usize; 2]) -> usize {
    assert!(k.is_multiple_of(GROUP), "k {k} is no multiple of {GROUP}");
    let row = (k / GROUP).checked_mul(BF16_RECORD);
    let len = row.zip(bf16_rows(m)).and_then(|(row, m)| row.checked_mul(m));
    len.expect("the number of bytes fits usize")
}

/// What a family rounds rows to.
///
/// Tiles of AMX multiply whole numbers twice as fast as bf16, but the sums of each group would leave them to be scaled, which takes four
/// times as long as the products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// 8 bits and a scale for each group. A group has the codes of all rows of a bundle, then all scales, all sums, all sums of first
    /// halves, all of second halves.
    Codes,
    /// bf16: for each [`CHUNK`] of groups and bundle the tiles of AMX, `[groups, rows of the bundle, 32]`, so that a chunk of many rows lies
    /// together and does not crowd into few places of the second cache. Up to 16 rows are a bundle of so many; more are whole pairs of
    /// bundles of 16, the last rows of which may be any numbers.
    Bf16,
}

impl Form {
    fn of(family: Family) -> Self {
        if family == Family::Amx { Self::Bf16 } else { Self::Codes }
    }
}

/// Rows that have a place in bf16.
fn bf16_rows(m: usize) -> Option<usize> {
    if m <= BUNDLE { Some(m) } else { m.checked_next_multiple_of(2 * BUNDLE) }
}

/// Where the bf16 chunk from a group on lies.
fn chunk_range([m, k]: [usize; 2], first_group: usize) -> std::ops::Range<usize> {
    let row_bytes = bf16_rows(m).expect("the rows are in memory") * BF16_RECORD;
    let n_groups = k / GROUP;
    first_group * row_bytes..(first_group + CHUNK).min(n_groups) * row_bytes
}

/// Rounded rows `[m, k]`, as [`round_rows`] wrote them.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    bytes: &'a [u8],
    form: Form,
    m: usize,
    k: usize,
}

impl<'a> Rows<'a> {
    /// Rows of a bundle in bf16.
    #[cfg(target_arch = "x86_64")]
    fn bf16_bundle_rows(&self) -> usize {
        self.m.min(BUNDLE)
    }

    /// The bf16 chunk from `first_group` on, which begins a chunk, of the bundle at `row` and those behind it.
    #[cfg(target_arch = "x86_64")]
    fn chunk(&self, row: usize, first_group: usize) -> &'a [u8] {
        let chunk = chunk_range([self.m, self.k], first_group);
        &self.bytes[chunk][row * BF16_RECORD * CHUNK.min(self.k / GROUP - first_group)..]
    }

    /// The groups of codes of the 16 rows (fewer at the end) from `row` on, and how many rows they are.
    fn bundle(&self, row: usize) -> (&'a [u8], usize) {
        assert!(row.is_multiple_of(BUNDLE) && row < self.m, "row {row} of {}", self.m);
        let n_rows = BUNDLE.min(self.m - row);
        let row_bytes = self.k / GROUP * RECORD;
        (&self.bytes[row * row_bytes..][..n_rows * row_bytes], n_rows)
    }
}

/// A packed matrix `[n, k]`, as [`pack()`] wrote it.
#[derive(Clone, Copy, Debug)]
pub struct PackedBlocks<'a> {
    bytes: &'a [u8],
    layout: Layout,
    n: usize,
    k: usize,
}

impl<'a> PackedBlocks<'a> {
    /// Views bytes that [`pack()`] wrote for this kind and shape. Panels are read fastest where the bytes begin at a multiple of 64.
    ///
    /// # Panics
    /// When their number is another.
    #[must_use]
    pub fn new(kind: BlockKind, bytes: &'a [u8], [n, k]: [usize; 2]) -> Self {
        assert_eq!(bytes.len(), packed_len(kind, [n, k]), "bytes of packed [{n}, {k}] in {kind:?}");
        Self { bytes, layout: Layout::expect(kind), n, k }
    }

    /// `[n, k]`.
    #[must_use]
    pub fn shape(&self) -> [usize; 2] {
        [self.n, self.k]
    }

    fn n_panels(&self) -> usize {
        self.n.div_ceil(PANEL_WIDTH)
    }

    /// The row `row` as f32, `[k]`: the numbers of its blocks. Overwrites.
    ///
    /// # Panics
    /// When there is no such row or `out` has another length.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.n && out.len() == self.k, "row {row} of [{}, {}]", self.n, self.k);
        for (group, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
            *out = reference::numbers(*self, row, group);
        }
    }

    /// The factors of a panel, block by block, and its lines, group by group.
    fn panel(&self, panel: usize) -> (&'a [u8], &'a [u8]) {
        let len = self.layout.panel_len(self.k);
        self.bytes[panel * len..][..len].split_at(self.layout.header_len(self.k))
    }
}

/// A part of a product: all of K for some rows and some panels.
#[derive(Clone, Copy, Debug)]
struct Part<'a> {
    rows: Rows<'a>,
    weight: PackedBlocks<'a>,
    /// A multiple of [`BUNDLE`].
    row: usize,
    n_rows: usize,
    panel: usize,
    n_panels: usize,
    /// Value (0, 0) of the weight's output.
    out: *mut f32,
    out_stride: usize,
    write: Write,
}

impl Part<'_> {
    /// Where the outputs of a row and a panel begin.
    fn out_at(&self, row: usize, panel: usize) -> *mut f32 {
        self.out.wrapping_add(row * self.out_stride + panel * PANEL_WIDTH)
    }

    /// Columns of a panel that the output has.
    fn width(&self, panel: usize) -> usize {
        PANEL_WIDTH.min(self.weight.n - panel * PANEL_WIDTH)
    }

    /// What sums begin with at a group of K: zero, or what the output holds.
    fn write_at(&self, group: usize) -> Write {
        if group == 0 { self.write } else { Write::Accumulate }
    }

    /// First rows of the bundles.
    fn bundles(&self) -> impl Iterator<Item = usize> + use<> {
        (self.row..self.row + self.n_rows).step_by(BUNDLE)
    }

    /// The panels.
    fn panels(&self) -> std::ops::Range<usize> {
        self.panel..self.panel + self.n_panels
    }
}

/// A packed matrix and the column of the output where its products begin.
#[derive(Clone, Copy, Debug)]
pub struct PackedColumns<'a> {
    /// The matrix.
    pub weight: PackedBlocks<'a>,
    /// The column of its first row.
    pub first_column: usize,
}

/// Product of rounded rows with a packed weight on all threads: `out[t, n] (+)= sum_k rows[t, k] * weight[n, k]`.
///
/// Shapes: rows `[m, k]`; weight `[n, k]`; out `[m, n]`. Overwrites or accumulates, as `write` says. Numerics: module
/// documentation. Source: the integer product per group of rows in 8 bits follows ggml `vec_dot_q4_K_q8_K` and its kin, with a scale for each 32 values
/// of a row instead of 256.
///
/// # Panics
/// When a slice does not fit the shape.
pub fn matmul(
    compute: &Compute,
    rows: Rows<'_>,
    weight: PackedBlocks<'_>,
    out: &mut [f32],
    write: Write,
) {
    assert_eq!(Some(out.len()), rows.m.checked_mul(weight.n), "out is [{}, {}]", rows.m, weight.n);
    let weights = std::iter::once(PackedColumns { weight, first_column: 0 });
    matmul_columns(compute, rows, weights, out, weight.n, write);
}

/// As [`matmul`] with several weights at once, each into its own columns of an output whose rows are `out_stride` apart; other
/// columns are not touched.
///
/// Shapes: rows `[m, k]`; weight i `[n_i, k]`; out `[m, out_stride]`, which may end with the last column.
///
/// # Panics
/// As [`matmul`], and when columns overlap or do not ascend.
#[expect(unsafe_code, reason = "tasks write disjoint tiles of one matrix")]
pub fn matmul_columns<'a>(
    compute: &Compute,
    rows: Rows<'_>,
    weights: impl Iterator<Item = PackedColumns<'a>> + Clone + Sync,
    out: &mut [f32],
    out_stride: usize,
    write: Write,
) {
    let m = rows.m;
    let (mut n_panels, mut end) = (0, 0);
    for PackedColumns { weight, first_column } in weights.clone() {
        assert_eq!(rows.k, weight.k, "k of the rows and of the weight");
        assert!(first_column >= end, "columns from {first_column} on overlap those before {end}");
        end = first_column.checked_add(weight.n).expect("the number of columns fits usize");
        n_panels += weight.n_panels();
    }
    if m == 0 || n_panels == 0 {
        return;
    }
    let out_len = (m - 1).checked_mul(out_stride).and_then(|start| start.checked_add(end));
    assert!(
        out_stride >= end && out_len.is_some_and(|len| out.len() >= len),
        "out is [{m}, {end}]"
    );
    let family = compute.family();
    assert_eq!(rows.form, Form::of(family), "rows were rounded for another family than {family}");
    let is_few = m <= few_rows(family);
    compute.count(if is_few { KernelPath::PackedFewRows } else { KernelPath::PackedManyRows });
    // Pairs of panels share what is read of the rows. How the panels are shared out changes no bit.
    let most_panels = match family {
        _ if is_few => TASK_PANELS_OF_FEW_ROWS,
        Family::Amx => TASK_PANELS_OF_TILES,
        _ => TASK_PANELS,
    };
    let wanted_tasks = TASKS_PER_THREAD * compute.n_threads();
    let task_panels = (n_panels / wanted_tasks).clamp(1, most_panels).next_multiple_of(2);
    let panel_tasks_of = |weight: PackedBlocks<'_>| weight.n_panels().div_ceil(task_panels);
    let n_row_tasks = m.div_ceil(TASK_ROWS);
    let n_panel_tasks: usize = weights.clone().map(|columns| panel_tasks_of(columns.weight)).sum();
    let parts = SliceParts::new(out);
    compute.pool().run(n_row_tasks * n_panel_tasks, |task_idx, scratch| {
        let row = task_idx % n_row_tasks * TASK_ROWS;
        let mut panel_task = task_idx / n_row_tasks;
        let mut weights = weights.clone();
        let PackedColumns { weight, first_column } = loop {
            let columns = weights.next().expect("every task is of a weight");
            match panel_task.checked_sub(panel_tasks_of(columns.weight)) {
                Some(left) => panel_task = left,
                None => break columns,
            }
        };
        let panel = panel_task * task_panels;
        let part = Part {
            rows,
            weight,
            row,
            n_rows: TASK_ROWS.min(m - row),
            panel,
            n_panels: task_panels.min(weight.n_panels() - panel),
            out: parts.pointer(first_column),
            out_stride,
            write,
        };
        // SAFETY: the output was checked above; parts of different tasks do not overlap.
        unsafe { multiply(compute, &part, &mut scratch.tiles) };
    });
}

/// # Safety
/// The output holds the part's rows and columns, and nobody else uses them meanwhile.
#[expect(unsafe_code, reason = "see Safety")]
unsafe fn multiply(compute: &Compute, part: &Part<'_>, scratch: &mut TileScratch) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the family runs only where detection found its instructions; the rest is the caller's promise.
    unsafe {
        match compute.family() {
            Family::Reference => reference::multiply(part),
            Family::Avx2 if compute.has_avx_vnni() => avx2::multiply::<true>(part, scratch),
            Family::Avx2 => avx2::multiply::<false>(part, scratch),
            Family::Avx512 => avx512::multiply(part, scratch),
            Family::Amx => amx::multiply(part, scratch),
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: the caller's promise.
    unsafe {
        let _ = (compute, scratch);
        reference::multiply(part);
    }
}

#[cfg(test)]
mod tests;
