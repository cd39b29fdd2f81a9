//! AMX for many rows: the left operand lies in tiles, and sums are written to the output while the next are computed.
//!
//! Rows at a distance of a power of two fall into few sets of a cache, and every tile load of them misses; tiles of 1 KiB that
//! follow one another do not. Two panels of up to [`L1_STEPS`] steps of K stay in the first-level cache while all rows of the
//! task pass by; sums of a longer K wait in working memory, where nothing is rounded. Storing tiles straight into rows of the
//! output would stop the products until lines of the output have come.
#![expect(unsafe_code, reason = "tile instructions exist only in inline assembly")]

use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

use super::{TILE_GROUPS, TILE_ROWS, TileConfig, write_rows};
use crate::matmul::{Block, Write};
use crate::panels::PANEL_WIDTH;
use crate::prefetch::prefetch;

/// Rows and columns of four tiles of sums.
pub(crate) const SQUARE: usize = 2 * PANEL_WIDTH;
pub(crate) const SQUARE_LEN: usize = SQUARE * SQUARE;

/// Bytes of a row of a square.
pub(crate) const SQUARE_ROW: usize = SQUARE * size_of::<f32>();

/// Sums that are made and yet to be written.
pub(crate) const WAITING_LEN: usize = 2 * SQUARE_LEN;

/// Bytes of a line of a cache, and of a row of a tile.
const LINE: usize = 64;

/// Groups of a tile of the left operand.
const TILE_LEN: usize = TILE_ROWS * TILE_GROUPS;

/// Steps of K whose two panels stay in the first-level cache: 32 KiB of 48, where what passes by asks for little of it.
const L1_STEPS: usize = 16;

/// Rows of earlier sums that are written in one step of K.
const ROWS_PER_STEP: usize = 4;

/// Groups of each half of the two panels that come next that are brought into the second-level cache in one step of K: a line. Four
/// places at a time are asked for because a line of a run takes longer to come than one of another page.
const NEXT_PER_STEP: usize = 16;

/// Bytes of a task's output from which on it is not brought into the caches before it is overwritten.
const STREAMED_BYTES: usize = 512 << 10;

/// Groups of a left operand in tiles.
pub(in crate::matmul) fn tiles_len(n_rows: usize, n_groups: usize) -> usize {
    n_rows.next_multiple_of(SQUARE) * n_groups.next_multiple_of(TILE_GROUPS)
}

/// Numbers in the working memory of [`multiply`]: two squares of sums, and those that are held for later parts of K, of two
/// panels or, where K comes in several calls, of all.
pub(in crate::matmul) fn sums_len([n_rows, n_columns]: [usize; 2], n_parts: usize) -> usize {
    let n_held = if n_parts > 1 { n_columns.div_ceil(SQUARE) } else { 1 };
    WAITING_LEN + n_rows.div_ceil(SQUARE) * n_held * SQUARE_LEN
}

/// Which part of K a call of [`multiply`] has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    pub(crate) is_first: bool,
    pub(crate) is_last: bool,
}

/// What is brought into the second-level cache while rows pass by.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ahead<'a> {
    /// The panels that come next.
    Panels,
    /// Of all these bytes, each pair of bundles its share: of the first as much as there are steps, of the others at once.
    Bytes { steadily: &'a [u8], at_once: [&'a [u8]; 4] },
}

/// One of `n` equal shares of some bytes, in whole lines; nothing behind the last.
pub(crate) fn share(bytes: &[u8], [i, n]: [usize; 2]) -> &[u8] {
    let len = bytes.len().div_ceil(n).next_multiple_of(LINE).max(LINE);
    bytes.chunks(len).nth(i).unwrap_or_default()
}

/// Packs rows into tiles: `[n_rows / 16, n_steps, 16, 16]` groups, zeros behind the last of K. Rows behind the last keep what they held.
///
/// # Safety
/// `values` are readable for `n_rows` rows of `n_groups` groups at a distance of `stride` groups.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(in crate::matmul) unsafe fn pack_rows(
    values: *const u32,
    stride: usize,
    [n_rows, n_groups]: [usize; 2],
    tiles: &mut [f32],
) {
    let n_steps = n_groups.div_ceil(TILE_GROUPS);
    assert!(tiles.len() >= tiles_len(n_rows, n_groups), "tiles of [{n_rows}, {n_groups}] groups");
    for row in 0..n_rows {
        let source = values.wrapping_add(row * stride);
        let bundle = row / TILE_ROWS * n_steps * TILE_LEN + row % TILE_ROWS * TILE_GROUPS;
        for step in 0..n_steps {
            let n_left = (n_groups - step * TILE_GROUPS).min(TILE_GROUPS);
            let mask = u16::MAX >> (TILE_GROUPS - n_left);
            // SAFETY: the mask keeps the load within the row, by the caller's promise; the tiles were checked above.
            unsafe {
                let groups =
                    _mm512_maskz_loadu_epi32(mask, source.wrapping_add(step * TILE_GROUPS).cast());
                let out = tiles.as_mut_ptr().add(bundle + step * TILE_LEN);
                _mm512_storeu_si512(out.cast(), groups);
            }
        }
    }
}

/// The product of a part of K of bf16 whose left operand lies in tiles ([`pack_rows`]), over whole steps of K. `sums` has
/// [`sums_len`], and keeps its numbers from part to part.
///
/// # Safety
/// As [`crate::matmul::multiply_block`], but for the left operand, of which `tiles` has [`tiles_len`]; in a process that may use AMX.
#[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl")]
pub(in crate::matmul) unsafe fn multiply(
    block: &Block,
    part: Part,
    tiles: &[f32],
    sums: &mut [f32],
) {
    let n_parts = if part.is_first && part.is_last { 1 } else { 2 };
    let size = [block.n_rows, block.n_columns];
    assert!(sums.len() >= sums_len(size, n_parts), "sums of {block:?}");
    let (waiting, held) = sums.split_at_mut(WAITING_LEN);
    let bytes = block.n_rows * block.n_columns * block.out_bytes();
    let way = Way::of(block, bytes >= STREAMED_BYTES);
    // SAFETY: f32 are bytes too.
    let tiles =
        unsafe { std::slice::from_raw_parts(tiles.as_ptr().cast::<u8>(), size_of_val(tiles)) };
    // SAFETY: the process may use AMX; all tiles have 16 rows of 64 bytes. The rest is the caller's promise.
    unsafe {
        TileConfig::new([[TILE_ROWS, 4 * TILE_GROUPS]; 8]).load();
        multiply_panels(block, part, way, Ahead::Panels, tiles, [waiting, held]);
        // Stores that pass by the caches are seen by other threads after this.
        _mm_sfence();
        TileConfig::release();
    }
}

/// As [`multiply`], where tiles are configured to be whole and stores that pass by the caches are waited for by the caller. `waiting` has
/// [`WAITING_LEN`], `held` a square for each pair of bundles and, where K comes in several calls, of panels.
///
/// # Safety
/// As [`multiply`].
#[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl")]
pub(crate) unsafe fn multiply_panels(
    block: &Block,
    part: Part,
    way: Way,
    ahead: Ahead<'_>,
    tiles: &[u8],
    [waiting, held]: [&mut [f32]; 2],
) {
    let n_steps = block.n_groups.div_ceil(TILE_GROUPS);
    let n_tile_bytes = 4 * tiles_len(block.n_rows, block.n_groups);
    assert!(tiles.len() >= n_tile_bytes, "tiles of {block:?}");
    assert!(!block.is_rounded || block.write == Write::Overwrite, "{block:?}");
    let n_held = if part.is_first && part.is_last { 1 } else { block.n_columns.div_ceil(SQUARE) };
    let held_len = block.n_rows.div_ceil(SQUARE) * n_held * SQUARE_LEN;
    assert!(waiting.len() >= WAITING_LEN && held.len() >= held_len, "sums of {block:?}");
    let steps_together = n_steps.div_ceil(n_steps.div_ceil(L1_STEPS));
    // Pointers, for what waits is read after the next one was begun.
    let (waiting, held) = (waiting.as_mut_ptr(), held.as_mut_ptr());
    let tiles = tiles.as_ptr().cast();
    let (pending, n_made) = (None, 0);
    let mut squares =
        Squares { block, part, way, ahead, n_steps, tiles, waiting, held, pending, n_made };
    for column in (0..block.n_columns).step_by(SQUARE) {
        for first_step in (0..n_steps).step_by(steps_together) {
            let steps = first_step..n_steps.min(first_step + steps_together);
            // SAFETY: the caller's promise, cut to two panels; lengths were checked above.
            unsafe { squares.multiply_steps(column, steps) };
        }
    }
    // SAFETY: the last sums wait, and their place is in the block.
    unsafe { squares.write_pending(0) };
}

/// How sums reach the output.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    Overwrite,
    /// Without bringing lines of the output into the caches.
    Stream,
    Round,
    /// Rounded, and streamed.
    RoundAndStream,
    Accumulate,
}

impl Way {
    /// How those of a block do, whose output is large or not.
    pub(crate) fn of(block: &Block, is_large: bool) -> Self {
        let row_bytes = block.out_stride * block.out_bytes();
        let is_aligned = block.out.addr().is_multiple_of(LINE) && row_bytes.is_multiple_of(LINE);
        match (block.write, block.is_rounded, is_aligned && is_large) {
            (Write::Accumulate, ..) => Self::Accumulate,
            (Write::Overwrite, false, false) => Self::Overwrite,
            (Write::Overwrite, false, true) => Self::Stream,
            (Write::Overwrite, true, false) => Self::Round,
            (Write::Overwrite, true, true) => Self::RoundAndStream,
        }
    }
}

/// The squares of sums of a block, one after the other.
struct Squares<'a> {
    block: &'a Block,
    part: Part,
    way: Way,
    ahead: Ahead<'a>,
    /// Steps of K of the block.
    n_steps: usize,
    tiles: *const u32,
    /// Two squares.
    waiting: *mut f32,
    held: *mut f32,
    /// The last square, where it is not written yet.
    pending: Option<Pending>,
    n_made: usize,
}

/// Sums of whole squares that are yet to be written.
#[derive(Clone, Copy)]
struct Pending {
    from: *const f32,
    /// In the output.
    to: *mut u8,
}

/// Some steps of K of one square.
struct Product {
    a: [*const u32; 2],
    b: [*const u32; 2],
    n_steps: usize,
    /// What is asked for meanwhile: [`NEXT_PER_STEP`] groups in each step, there and half of the steps behind, of two panels. It need
    /// not be readable.
    next: [*const u32; 2],
    to: *mut f32,
    /// Sums of the steps before of the product that comes next, which are loaded at the end; null where there are none.
    next_sums: *const f32,
    /// Where the sums will be written: asked for meanwhile, unless they pass by the caches. It need not be readable.
    out: *const u8,
}

impl Squares<'_> {
    /// Some steps of K of two panels and all rows.
    ///
    /// # Safety
    /// The block, tiles and sums have room for it.
    #[target_feature(enable = "avx512f")]
    unsafe fn multiply_steps(&mut self, column: usize, steps: Range<usize>) {
        let (block, n_steps) = (self.block, self.n_steps);
        let is_first = self.part.is_first && steps.start == 0;
        let is_last = self.part.is_last && steps.end == n_steps;
        let n_pairs = block.n_rows.div_ceil(SQUARE);
        let is_whole = self.part.is_first && self.part.is_last;
        let held_of = |column: usize| {
            let first_held = if is_whole { 0 } else { column / SQUARE * n_pairs };
            self.held.wrapping_add(first_held * SQUARE_LEN)
        };
        let held = held_of(column);
        // After the last pair come the next steps, or the next panels.
        let is_last_column = column + SQUARE >= block.n_columns;
        let first_sums_of_next = match (steps.end < n_steps, self.part.is_first || is_last_column) {
            (true, _) => held,
            (false, true) => std::ptr::null_mut(),
            (false, false) => held_of(column + SQUARE),
        };
        if column == 0 && steps.start == 0 {
            let first = if is_first { std::ptr::null() } else { held.cast_const() };
            // SAFETY: the caller's promise.
            unsafe { begin_sums(first) };
        }
        let n_columns = SQUARE.min(block.n_columns - column);
        let panel = column / PANEL_WIDTH * block.b_panel_stride + steps.start * TILE_LEN;
        let b_left = block.b.wrapping_add(panel);
        // Where there is no second panel, the first is multiplied twice.
        let right = if n_columns > PANEL_WIDTH { block.b_panel_stride } else { 0 };
        for (pair, row) in (0..block.n_rows).step_by(SQUARE).enumerate() {
            let first_tile = 2 * pair * n_steps + steps.start;
            let a_top = self.tiles.wrapping_add(first_tile * TILE_LEN);
            let held = held.wrapping_add(pair * SQUARE_LEN);
            let waiting = self.waiting.wrapping_add(self.n_made % 2 * SQUARE_LEN);
            let offset = (row * block.out_stride + column) * block.out_bytes();
            let out = block.out.cast::<u8>().wrapping_add(offset);
            let product = Product {
                next: match self.ahead {
                    Ahead::Panels => self.next_panels(column, &steps, pair),
                    Ahead::Bytes { steadily, at_once } => {
                        at_once
                            .map(|bytes| share(bytes, [pair, n_pairs]))
                            .iter()
                            .for_each(|bytes| prefetch(bytes.as_ptr(), bytes.len()));
                        self.next_bytes(steadily, steps.len(), pair)
                    }
                },
                out,
                a: [a_top, a_top.wrapping_add(n_steps * TILE_LEN)],
                b: [b_left, b_left.wrapping_add(right)],
                n_steps: steps.len(),
                to: if is_last { waiting } else { held },
                next_sums: match (pair + 1 < n_pairs, is_first) {
                    (true, true) => std::ptr::null(),
                    (true, false) => held.wrapping_add(SQUARE_LEN),
                    (false, _) => first_sums_of_next,
                },
            };
            // SAFETY: the caller's promise. Squares wait in turns, so that the one that is written is not the one that is made.
            unsafe {
                self.multiply(&product);
                if is_last {
                    let size = [SQUARE.min(block.n_rows - row), n_columns];
                    self.take(Pending { from: product.to, to: out }, size);
                }
            }
        }
    }

    /// What to ask for while a pair of bundles is multiplied: a part of the next steps of K, of both panels.
    fn next_panels(&self, column: usize, steps: &Range<usize>, pair: usize) -> [*const u32; 2] {
        let block = self.block;
        let (column, step) =
            if steps.end < self.n_steps { (column, steps.end) } else { (column + SQUARE, 0) };
        let first = pair * steps.len() * NEXT_PER_STEP;
        if first >= steps.len() * TILE_LEN / 2 || column >= block.n_columns {
            // There is nothing to ask for: these lines are in the cache.
            return [block.b; 2];
        }
        let start = column / PANEL_WIDTH * block.b_panel_stride + step * TILE_LEN + first;
        let left = block.b.wrapping_add(start);
        let is_single = column + PANEL_WIDTH >= block.n_columns;
        [left, if is_single { left } else { left.wrapping_add(block.b_panel_stride) }]
    }

    /// What to ask for of some bytes while a pair of bundles is multiplied: a line of each of four parts of them in each step.
    fn next_bytes(&self, bytes: &[u8], n_steps: usize, pair: usize) -> [*const u32; 2] {
        // As far apart as the product has the lines that it asks for.
        let part_len = n_steps * TILE_LEN * 2;
        let at = pair * n_steps * LINE;
        let at = at / part_len * 2 * part_len + at % part_len;
        if 2 * at >= bytes.len() {
            return [self.block.b; 2];
        }
        let first = bytes.as_ptr().wrapping_add(at);
        [first, first.wrapping_add(bytes.len() / 2 / LINE * LINE)].map(<*const u8>::cast)
    }

    /// Multiplies, and writes pending sums meanwhile.
    ///
    /// # Safety
    /// The product's operands are readable, its sums have the length of squares; pending ones are not among them.
    #[target_feature(enable = "avx512f")]
    unsafe fn multiply(&mut self, product: &Product) {
        let steps = self.pending.map_or(0, |_| product.n_steps.min(SQUARE / ROWS_PER_STEP));
        let nothing = Pending { from: std::ptr::null(), to: std::ptr::null_mut() };
        let pending = self.pending.unwrap_or(nothing);
        let stride = self.block.out_stride * self.block.out_bytes();
        // SAFETY: the caller's promise; the steps write no more rows than a square has.
        unsafe {
            match self.way {
                Way::Overwrite => overwrite_and_multiply(product, pending, steps, stride),
                Way::Stream => stream_and_multiply(product, pending, steps, stride),
                Way::Round => round_and_multiply(product, pending, steps, stride),
                Way::RoundAndStream => {
                    round_stream_and_multiply(product, pending, steps, stride);
                }
                Way::Accumulate => accumulate_and_multiply(product, pending, steps, stride),
            }
            self.write_pending(steps * ROWS_PER_STEP);
        }
    }

    /// Takes sums that are made: a whole square waits, parts of one are written.
    ///
    /// # Safety
    /// The sums are those of rows and columns of the block.
    #[target_feature(enable = "avx512f")]
    unsafe fn take(&mut self, made: Pending, size: [usize; 2]) {
        self.n_made += 1;
        if size == [SQUARE; 2] {
            self.pending = Some(made);
            return;
        }
        // SAFETY: the caller's promise.
        unsafe {
            let sums = std::slice::from_raw_parts(made.from, SQUARE_LEN);
            self.write(sums, size, made.to);
        }
    }

    /// Writes what waits, from a row on.
    ///
    /// # Safety
    /// Pending sums are still there.
    #[target_feature(enable = "avx512f")]
    unsafe fn write_pending(&mut self, first_row: usize) {
        let Some(Pending { from, to }) = self.pending.take().filter(|_| first_row < SQUARE) else {
            return;
        };
        let n_rows = SQUARE - first_row;
        // SAFETY: a square of sums and of the output, by the caller's promise and that of `take`.
        unsafe {
            let sums = std::slice::from_raw_parts(from.add(first_row * SQUARE), n_rows * SQUARE);
            let to = to.add(first_row * self.block.out_stride * self.block.out_bytes());
            self.write(sums, [n_rows, SQUARE], to);
        }
    }

    /// Writes rows of sums, which are as wide as squares, to a place in the output.
    ///
    /// # Safety
    /// The output has the rows and columns there.
    #[target_feature(enable = "avx512f")]
    unsafe fn write(&self, sums: &[f32], size: [usize; 2], to: *mut u8) {
        let (stride, write) = (self.block.out_stride, self.block.write);
        // SAFETY: the caller's promise.
        unsafe {
            match self.block.is_rounded {
                true => round_rows(sums, size, to.cast(), stride),
                false => write_rows(sums, size, to.cast(), stride, write),
            }
        }
    }
}

/// Writes sums, rows as wide as squares, rounded to bf16.
///
/// # Safety
/// `out` is writable for the rows and columns.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn round_rows(
    sums: &[f32],
    [n_rows, n_columns]: [usize; 2],
    out: *mut u16,
    out_stride: usize,
) {
    let mask = u32::MAX >> (SQUARE - n_columns);
    for (row, sums) in sums.as_chunks::<SQUARE>().0.iter().enumerate().take(n_rows) {
        // SAFETY: the mask keeps the store within the columns of the row.
        unsafe {
            let (first, second) = (sums.as_ptr(), sums.as_ptr().add(PANEL_WIDTH));
            let both = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(second), _mm512_loadu_ps(first));
            let both = std::mem::transmute::<__m512bh, __m512i>(both);
            _mm512_mask_storeu_epi16(out.wrapping_add(row * out_stride).cast(), mask, both);
        }
    }
}

/// The sums that the first product begins with, in tiles 0 to 3, which keep what each product leaves there for the next; zeros where the
/// pointer is null.
///
/// # Safety
/// A square is readable there; the tiles are configured, and nothing but products uses them until the last.
unsafe fn begin_sums(sums: *const f32) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "test {sums}, {sums}", "jz 2f",
            "tileloadd tmm0, [{sums} + {row}]", "tileloadd tmm1, [{sums} + {row} + 64]",
            "tileloadd tmm2, [{sums} + {row} + 2048]", "tileloadd tmm3, [{sums} + {row} + 2112]",
            "jmp 3f",
            "2:", "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "3:",
            sums = in(reg) sums, row = in(reg) SQUARE_ROW,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            options(nostack, readonly),
        );
    }
}

/// Stores the sums of a product and begins those of the next, as [`begin_sums`], each tile as soon as it is free.
///
/// # Safety
/// As [`begin_sums`]; a square is writable at `to`.
#[inline(always)]
unsafe fn turn_sums(to: *mut f32, next: *const f32) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "test {next}, {next}", "jz 2f",
            "tilestored [{to} + {row}], tmm0", "tileloadd tmm0, [{next} + {row}]",
            "tilestored [{to} + {row} + 64], tmm1", "tileloadd tmm1, [{next} + {row} + 64]",
            "tilestored [{to} + {row} + 2048], tmm2", "tileloadd tmm2, [{next} + {row} + 2048]",
            "tilestored [{to} + {row} + 2112], tmm3", "tileloadd tmm3, [{next} + {row} + 2112]",
            "jmp 3f",
            "2:",
            "tilestored [{to} + {row}], tmm0", "tilezero tmm0",
            "tilestored [{to} + {row} + 64], tmm1", "tilezero tmm1",
            "tilestored [{to} + {row} + 2048], tmm2", "tilezero tmm2",
            "tilestored [{to} + {row} + 2112], tmm3", "tilezero tmm3",
            "3:",
            to = in(reg) to, next = in(reg) next, row = in(reg) SQUARE_ROW,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            options(nostack),
        );
    }
}

/// Defines a product of two by two tiles that writes four rows of earlier sums in each of its first steps, as the texts of
/// instructions say: what is done to the eight registers that hold them, if anything, how the first two rows are stored, and the others,
/// and how the lines of two rows of the output that will be written next are asked for.
macro_rules! multiply_and_write {
    ($name:ident, [$($change:literal),*], [$($first:expr),*], [$($second:expr),*], [$($ask:literal),*]) => {
        /// # Safety
        /// Operands and sums of the product are readable and writable, pending sums for four rows a step with `copy_steps` of them,
        /// and their place in an output with rows at a distance of `stride` bytes.
        unsafe fn $name(product: &Product, pending: Pending, copy_steps: usize, stride: usize) {
            // There is more than registers hold: what is in this list takes turns.
            let turns = [
                product.next[0].addr(),
                product.next[1].addr(),
                product.n_steps - copy_steps,
            ];
            // SAFETY: the caller's promise; all tiles and registers used are declared as clobbered.
            unsafe {
                asm!(
                    "mov {next}, [{turns}]",
                    "vmovq xmm24, {turns}",
                    "mov {turns}, [{turns} + 8]",
                    "test {n}, {n}", "jz 5f",
                    "4:",
                    "tileloaddt1 tmm4, [{a0} + {line}]", "tileloadd tmm6, [{b0} + {line}]",
                    "vmovups zmm16, [{from}]", "vmovups zmm17, [{from} + 64]",
                    "vmovups zmm18, [{from} + 128]", "vmovups zmm19, [{from} + 192]",
                    "tdpbf16ps tmm0, tmm4, tmm6", "tileloadd tmm7, [{b1} + {line}]",
                    "vmovups zmm20, [{from} + 256]", "vmovups zmm21, [{from} + 320]",
                    "vmovups zmm22, [{from} + 384]", "vmovups zmm23, [{from} + 448]",
                    "tdpbf16ps tmm1, tmm4, tmm7", "tileloaddt1 tmm5, [{a1} + {line}]",
                    $($change,)*
                    $($first,)*
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "lea {to}, [{to} + 2 * {stride}]",
                    $($second,)*
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "lea {to}, [{to} + 2 * {stride}]", "add {from}, 512",
                    $($ask,)*
                    "lea {place}, [{place} + 2 * {stride}]",
                    $($ask,)*
                    "lea {place}, [{place} + 2 * {stride}]",
                    "prefetcht1 [{next}]", "prefetcht1 [{next} + {half}]",
                    "prefetcht1 [{turns}]", "prefetcht1 [{turns} + {half}]",
                    "add {next}, 64", "add {turns}, 64",
                    "add {a0}, 1024", "add {a1}, 1024", "add {b0}, 1024", "add {b1}, 1024",
                    "dec {n}", "jnz 4b",
                    "5:",
                    "vmovq {n}, xmm24", "mov {n}, [{n} + 16]",
                    "test {n}, {n}", "jz 7f",
                    "6:",
                    "tileloaddt1 tmm4, [{a0} + {line}]", "tileloadd tmm6, [{b0} + {line}]",
                    "tdpbf16ps tmm0, tmm4, tmm6", "tileloadd tmm7, [{b1} + {line}]",
                    "tdpbf16ps tmm1, tmm4, tmm7", "tileloaddt1 tmm5, [{a1} + {line}]",
                    "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7",
                    "prefetcht1 [{next}]", "prefetcht1 [{next} + {half}]",
                    "prefetcht1 [{turns}]", "prefetcht1 [{turns} + {half}]",
                    "add {next}, 64", "add {turns}, 64",
                    "add {a0}, 1024", "add {a1}, 1024", "add {b0}, 1024", "add {b1}, 1024",
                    "dec {n}", "jnz 6b",
                    "7:",
                    a0 = inout(reg) product.a[0] => _, a1 = inout(reg) product.a[1] => _,
                    b0 = inout(reg) product.b[0] => _, b1 = inout(reg) product.b[1] => _,
                    n = inout(reg) copy_steps => _, half = in(reg) product.n_steps * TILE_LEN * 2,
                    line = in(reg) LINE, turns = inout(reg) turns.as_ptr() => _, next = out(reg) _,
                    from = inout(reg) pending.from => _, to = inout(reg) pending.to => _,
                    stride = in(reg) stride, place = inout(reg) product.out => _,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    out("zmm16") _, out("zmm17") _, out("zmm18") _, out("zmm19") _,
                    out("zmm20") _, out("zmm21") _, out("zmm22") _, out("zmm23") _, out("zmm24") _,
                    options(nostack),
                );
                turn_sums(product.to, product.next_sums);
            }
        }
    };
}

/// As [`multiply_and_write`], for stores of rows of f32 by one instruction.
macro_rules! multiply_and_store {
    ($name:ident, $store:literal, [$($change:literal),*], [$($ask:literal),*]) => {
        multiply_and_write!($name, [$($change),*], [
            concat!($store, " [{to}], zmm16"), concat!($store, " [{to} + 64], zmm17"),
            concat!($store, " [{to} + {stride}], zmm18"), concat!($store, " [{to} + {stride} + 64], zmm19")
        ], [
            concat!($store, " [{to}], zmm20"), concat!($store, " [{to} + 64], zmm21"),
            concat!($store, " [{to} + {stride}], zmm22"), concat!($store, " [{to} + {stride} + 64], zmm23")
        ], [$($ask),*]);
    };
}

/// As [`multiply_and_write`], for rows that are rounded, and stores of them by one instruction.
macro_rules! multiply_and_round {
    ($name:ident, $store:literal, [$($ask:literal),*]) => {
        multiply_and_write!(
            $name,
            [
                "vcvtne2ps2bf16 zmm16, zmm17, zmm16",
                "vcvtne2ps2bf16 zmm18, zmm19, zmm18",
                "vcvtne2ps2bf16 zmm20, zmm21, zmm20",
                "vcvtne2ps2bf16 zmm22, zmm23, zmm22"
            ],
            [concat!($store, " [{to}], zmm16"), concat!($store, " [{to} + {stride}], zmm18")],
            [concat!($store, " [{to}], zmm20"), concat!($store, " [{to} + {stride}], zmm22")],
            [$($ask),*]
        );
    };
}

multiply_and_store!(
    overwrite_and_multiply,
    "vmovups",
    [],
    [
        "prefetcht1 [{place}]",
        "prefetcht1 [{place} + 64]",
        "prefetcht1 [{place} + {stride}]",
        "prefetcht1 [{place} + {stride} + 64]"
    ]
);
multiply_and_store!(stream_and_multiply, "vmovntps", [], []);
multiply_and_round!(
    round_and_multiply,
    "vmovups",
    ["prefetcht1 [{place}]", "prefetcht1 [{place} + {stride}]"]
);
multiply_and_round!(round_stream_and_multiply, "vmovntps", []);
multiply_and_store!(
    accumulate_and_multiply,
    "vmovups",
    [
        "vaddps zmm16, zmm16, [{to}]",
        "vaddps zmm17, zmm17, [{to} + 64]",
        "vaddps zmm18, zmm18, [{to} + {stride}]",
        "vaddps zmm19, zmm19, [{to} + {stride} + 64]",
        "add {to}, {stride}",
        "vaddps zmm20, zmm20, [{to} + {stride}]",
        "vaddps zmm21, zmm21, [{to} + {stride} + 64]",
        "vaddps zmm22, zmm22, [{to} + 2 * {stride}]",
        "vaddps zmm23, zmm23, [{to} + 2 * {stride} + 64]",
        "sub {to}, {stride}"
    ],
    [
        "prefetcht1 [{place}]",
        "prefetcht1 [{place} + 64]",
        "prefetcht1 [{place} + {stride}]",
        "prefetcht1 [{place} + {stride} + 64]"
    ]
);
