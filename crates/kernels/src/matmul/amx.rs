//! AMX: two by two tiles of 16 rows by 16 columns of sums, 32 values of K at a time.
//!
//! Tiles 0 to 3 hold the sums (row bundle x panel), 4 and 5 two bundles of 16 rows of the left operand, 6 and 7 a
//! line block of two panels. The panel layout is the layout a tile wants, so panels are loaded as they are. A tile of
//! fewer rows gives each row the same bits.
#![expect(unsafe_code, reason = "tile instructions exist only in inline assembly")]

use std::arch::asm;
use std::arch::x86_64::*;

use super::{Block, Write};
use crate::panels::PANEL_WIDTH;

pub(crate) mod packed;
pub(super) mod region;

/// Groups (pairs of bf16) in a row of a tile.
const TILE_GROUPS: usize = 16;
const TILE_ROWS: usize = 16;

/// The 64 bytes that LDTILECFG reads (Intel SDM, volume 1, 18.2). Unused fields must be zero.
#[repr(C, align(64))]
pub(crate) struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    n_rows: [u8; 16],
}

impl TileConfig {
    /// Tiles of the numbers of rows and of bytes in a row given. A tile of no rows must have no bytes either.
    pub(crate) fn new(shapes: [[usize; 2]; 8]) -> Self {
        let mut config = Self {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [0; 16],
            n_rows: [0; 16],
        };
        for (tile, [n_rows, row_bytes]) in shapes.into_iter().enumerate() {
            config.n_rows[tile] = u8::try_from(n_rows).expect("a tile has at most 16 rows");
            config.row_bytes[tile] = u16::try_from(row_bytes).expect("a row has at most 64 bytes");
        }
        config
    }

    /// Configures this thread's tiles.
    ///
    /// # Safety
    /// The process may use AMX; the shapes are valid.
    pub(crate) unsafe fn load(&self) {
        // SAFETY: the caller's promise.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) std::ptr::from_ref(self), options(nostack, readonly))
        };
    }

    /// Ends the use of tiles. Without live tiles the system saves less on a thread switch.
    ///
    /// # Safety
    /// The process may use AMX.
    pub(crate) unsafe fn release() {
        // SAFETY: the caller's promise.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// Sums and left operand with `rows[0]` and `rows[1]` rows, panels with 16.
fn configuration([top, bottom]: [usize; 2]) -> TileConfig {
    let used = [top, top, bottom, bottom, top, bottom, TILE_ROWS, TILE_ROWS];
    TileConfig::new(used.map(|n_rows| [n_rows, if n_rows == 0 { 0 } else { 64 }]))
}

/// The product of a block of bf16. `rows` has room for the block's left operand at whole steps of K, `sums` for four tiles.
///
/// # Safety
/// As [`super::multiply_block`], in a process that may use AMX.
#[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl")]
pub(super) unsafe fn multiply(block: &Block, rows: &mut [f32], sums: &mut [f32]) {
    let n_tile_groups = block.n_groups.next_multiple_of(TILE_GROUPS);
    let mut block = *block;
    if block.n_groups != n_tile_groups {
        // SAFETY: the block's left operand is readable by the caller's promise.
        unsafe { pad_rows(&block, n_tile_groups, rows) };
        block.a = rows.as_ptr().cast();
        block.a_row_stride = n_tile_groups;
        block.n_groups = n_tile_groups;
    }
    let mut configured = None;
    for row in (0..block.n_rows).step_by(2 * TILE_ROWS) {
        let n_rows = (block.n_rows - row).min(2 * TILE_ROWS);
        if configured != Some(n_rows) {
            let top = n_rows.min(TILE_ROWS);
            let config = configuration([top, n_rows - top]);
            // SAFETY: the process may use AMX; the configuration is valid.
            unsafe { config.load() };
            configured = Some(n_rows);
        }
        for column in (0..block.n_columns).step_by(2 * PANEL_WIDTH) {
            // SAFETY: the tiles lie in the block, and the configuration fits their rows.
            unsafe { multiply_tiles(&block, row, n_rows, column, sums) };
        }
    }
    // SAFETY: the process may use AMX.
    unsafe { TileConfig::release() };
}

/// Copies the left operand into rows of `n_tile_groups` groups, zeros at their ends: a tile reads whole steps of K, and what
/// lies behind a row might be no number.
///
/// # Safety
/// The block's left operand is readable.
unsafe fn pad_rows(block: &Block, n_tile_groups: usize, out: &mut [f32]) {
    for (row, out) in out.chunks_exact_mut(n_tile_groups).enumerate().take(block.n_rows) {
        let (groups, padding) = out.split_at_mut(block.n_groups);
        let source = block.a.wrapping_add(block.a_row(row)).cast::<u8>();
        let target = groups.as_mut_ptr().cast::<u8>();
        // SAFETY: a row of the block has `n_groups` groups of 4 bytes, as many as `groups`; rows may lie at odd addresses.
        unsafe { std::ptr::copy_nonoverlapping(source, target, size_of_val(groups)) };
        padding.fill(0.0);
    }
}

/// Sums of up to 32 rows by up to 32 columns: straight into an output that they replace as whole tiles, else through `sums`.
///
/// # Safety
/// As [`multiply`]; the tiles are configured for `n_rows` rows.
#[target_feature(enable = "avx512f")]
unsafe fn multiply_tiles(
    block: &Block,
    row: usize,
    n_rows: usize,
    column: usize,
    sums: &mut [f32],
) {
    let n_columns = (block.n_columns - column).min(2 * PANEL_WIDTH);
    let n_panels = n_columns.div_ceil(PANEL_WIDTH);
    let n_steps = block.n_groups / TILE_GROUPS;
    let a_top = block.a.wrapping_add(block.a_row(row));
    let a = [a_top, block.a.wrapping_add(block.a_row(row + TILE_ROWS))];
    let b_left = block.b.wrapping_add(column / PANEL_WIDTH * block.b_panel_stride);
    let b = [b_left, b_left.wrapping_add(block.b_panel_stride)];
    let a_stride = block.a_row_stride * size_of::<u32>();
    let out = block.out.wrapping_add(row * block.out_stride + column);
    let is_direct = block.write == Write::Overwrite && n_columns == n_panels * PANEL_WIDTH;
    let (target, stride) =
        if is_direct { (out, block.out_stride) } else { (sums.as_mut_ptr(), 2 * PANEL_WIDTH) };
    let target = Target { top: target, bottom: target.wrapping_add(TILE_ROWS * stride), stride };
    // SAFETY: operands lie in the block (whole steps of K by `multiply`), the target holds the tiles.
    unsafe {
        match (n_rows > TILE_ROWS, n_panels > 1) {
            (true, true) => tiles_2x2(a, a_stride, b, n_steps, target),
            (true, false) => tiles_2x1(a, a_stride, b_left, n_steps, target),
            (false, true) => tiles_1x2(a_top, a_stride, b, n_steps, target),
            (false, false) => tiles_1x1(a_top, a_stride, b_left, n_steps, target),
        }
        if !is_direct {
            write_rows(sums, [n_rows, n_columns], out, block.out_stride, block.write);
        }
    }
}

/// Writes or adds sums, rows of 32, to the output.
///
/// # Safety
/// `out` is writable for the rows and columns.
#[target_feature(enable = "avx512f")]
unsafe fn write_rows(
    sums: &[f32],
    [n_rows, n_columns]: [usize; 2],
    out: *mut f32,
    out_stride: usize,
    write: Write,
) {
    let mask = u32::MAX >> (2 * PANEL_WIDTH - n_columns);
    let masks = [mask as u16, (mask >> PANEL_WIDTH) as u16];
    for (row, sums) in sums.as_chunks::<{ 2 * PANEL_WIDTH }>().0.iter().enumerate().take(n_rows) {
        for (half, mask) in masks.into_iter().enumerate() {
            // SAFETY: the mask keeps loads and stores within the columns of the row.
            unsafe {
                let sums = _mm512_loadu_ps(sums.as_ptr().add(half * PANEL_WIDTH));
                let out = out.wrapping_add(row * out_stride + half * PANEL_WIDTH);
                let sums = match write {
                    Write::Overwrite => sums,
                    Write::Accumulate => _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out), sums),
                };
                _mm512_mask_storeu_ps(out, mask, sums);
            }
        }
    }
}

/// Where tiles of sums go: rows at a distance of `stride` values, a second panel beside the first.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    pub(crate) top: *mut f32,
    /// The seventeenth row.
    pub(crate) bottom: *mut f32,
    pub(crate) stride: usize,
}

/// Products of two bundles of rows `a`, `a_stride` bytes apart, and two panels `b`, into a target.
///
/// # Safety
/// `a` and `b` are readable for `n_steps` steps, the target is writable for the configured rows of all tiles.
pub(crate) unsafe fn tiles_2x2(
    a: [*const u32; 2],
    a_stride: usize,
    b: [*const u32; 2],
    n_steps: usize,
    target: Target,
) {
    // SAFETY: the caller's promise; all tiles used are declared as clobbered.
    unsafe {
        asm!(
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{a0} + {a_stride}]", "tileloadd tmm6, [{b0} + {line}]",
            "tdpbf16ps tmm0, tmm4, tmm6", "tileloadd tmm7, [{b1} + {line}]",
            "tdpbf16ps tmm1, tmm4, tmm7", "tileloadd tmm5, [{a1} + {a_stride}]",
            "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a0}, 64", "add {a1}, 64", "add {b0}, 1024", "add {b1}, 1024",
            "dec {n}", "jnz 2b",
            "tilestored [{top} + {stride}], tmm0", "tilestored [{top} + {stride} + 64], tmm1",
            "tilestored [{bottom} + {stride}], tmm2", "tilestored [{bottom} + {stride} + 64], tmm3",
            a0 = inout(reg) a[0] => _, a1 = inout(reg) a[1] => _,
            b0 = inout(reg) b[0] => _, b1 = inout(reg) b[1] => _,
            n = inout(reg) n_steps => _, a_stride = in(reg) a_stride, line = in(reg) 64_usize,
            top = in(reg) target.top, bottom = in(reg) target.bottom,
            stride = in(reg) target.stride * size_of::<f32>(),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// # Safety
/// As [`tiles_2x2`].
unsafe fn tiles_2x1(
    a: [*const u32; 2],
    a_stride: usize,
    b: *const u32,
    n_steps: usize,
    target: Target,
) {
    // SAFETY: as in `tiles_2x2`.
    unsafe {
        asm!(
            "tilezero tmm0", "tilezero tmm2",
            "2:",
            "tileloadd tmm4, [{a0} + {a_stride}]", "tileloadd tmm6, [{b} + {line}]",
            "tdpbf16ps tmm0, tmm4, tmm6", "tileloadd tmm5, [{a1} + {a_stride}]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "add {a0}, 64", "add {a1}, 64", "add {b}, 1024",
            "dec {n}", "jnz 2b",
            "tilestored [{top} + {stride}], tmm0", "tilestored [{bottom} + {stride}], tmm2",
            a0 = inout(reg) a[0] => _, a1 = inout(reg) a[1] => _, b = inout(reg) b => _,
            n = inout(reg) n_steps => _, a_stride = in(reg) a_stride, line = in(reg) 64_usize,
            top = in(reg) target.top, bottom = in(reg) target.bottom,
            stride = in(reg) target.stride * size_of::<f32>(),
            out("tmm0") _, out("tmm2") _, out("tmm4") _, out("tmm5") _, out("tmm6") _,
            options(nostack),
        );
    }
}

/// Those of one bundle.
///
/// # Safety
/// As [`tiles_2x2`].
pub(crate) unsafe fn tiles_1x2(
    a: *const u32,
    a_stride: usize,
    b: [*const u32; 2],
    n_steps: usize,
    target: Target,
) {
    // SAFETY: as in `tiles_2x2`.
    unsafe {
        asm!(
            "tilezero tmm0", "tilezero tmm1",
            "2:",
            "tileloadd tmm4, [{a} + {a_stride}]", "tileloadd tmm6, [{b0} + {line}]",
            "tdpbf16ps tmm0, tmm4, tmm6", "tileloadd tmm7, [{b1} + {line}]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "add {a}, 64", "add {b0}, 1024", "add {b1}, 1024",
            "dec {n}", "jnz 2b",
            "tilestored [{top} + {stride}], tmm0", "tilestored [{top} + {stride} + 64], tmm1",
            a = inout(reg) a => _, b0 = inout(reg) b[0] => _, b1 = inout(reg) b[1] => _,
            n = inout(reg) n_steps => _, a_stride = in(reg) a_stride, line = in(reg) 64_usize,
            top = in(reg) target.top, stride = in(reg) target.stride * size_of::<f32>(),
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// # Safety
/// As [`tiles_2x2`].
unsafe fn tiles_1x1(a: *const u32, a_stride: usize, b: *const u32, n_steps: usize, target: Target) {
    // SAFETY: as in `tiles_2x2`.
    unsafe {
        asm!(
            "tilezero tmm0",
            "2:",
            "tileloadd tmm4, [{a} + {a_stride}]", "tileloadd tmm6, [{b} + {line}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "add {a}, 64", "add {b}, 1024",
            "dec {n}", "jnz 2b",
            "tilestored [{top} + {stride}], tmm0",
            a = inout(reg) a => _, b = inout(reg) b => _,
            n = inout(reg) n_steps => _, a_stride = in(reg) a_stride, line = in(reg) 64_usize,
            top = in(reg) target.top, stride = in(reg) target.stride * size_of::<f32>(),
            out("tmm0") _, out("tmm4") _, out("tmm6") _,
            options(nostack),
        );
    }
}
