//! AMX: two by two tiles of 16 rows by 16 columns of sums, 32 values of K at a time.
//!
//! Tiles 0 to 3 hold the sums (row bundle x panel), 4 and 5 two bundles of 16 rows of the left operand, 6 and 7 a
//! line block of two panels. The panel layout is the layout a tile wants, so panels are loaded as they are. A tile of
//! fewer rows gives each row the same bits.
#![expect(unsafe_code, reason = "tile instructions exist only in inline assembly")]

use std::arch::asm;
use std::arch::x86_64::*;

use half::bf16;

use super::Block;
use super::avx512::write_sums;
use crate::panels::PANEL_WIDTH;
use crate::pool::{TileScratch, reinterpret};

/// Groups (pairs of bf16) in a row of a tile.
const TILE_GROUPS: usize = 16;
const TILE_ROWS: usize = 16;
/// Values in a tile of sums.
const TILE_LEN: usize = TILE_ROWS * PANEL_WIDTH;

/// The 64 bytes that LDTILECFG reads (Intel SDM, volume 1, 18.2). Unused fields must be zero.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    n_rows: [u8; 16],
}

impl TileConfig {
    /// Sums and left operand with `rows[0]` and `rows[1]` rows, panels with 16.
    fn new(rows: [usize; 2]) -> Self {
        let [top, bottom] = rows.map(|n| u8::try_from(n).expect("a tile has at most 16 rows"));
        let mut config = Self {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [0; 16],
            n_rows: [0; 16],
        };
        let used = [top, top, bottom, bottom, top, bottom, 16, 16];
        for (tile, n_rows) in used.into_iter().enumerate() {
            // A tile of no rows must have no bytes either.
            config.row_bytes[tile] = if n_rows == 0 { 0 } else { 64 };
            config.n_rows[tile] = n_rows;
        }
        config
    }
}

/// The product of a block of bf16.
///
/// # Safety
/// As [`super::multiply_block`], in a process that may use AMX.
#[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl")]
pub(super) unsafe fn multiply(block: &Block, scratch: &mut TileScratch) {
    let n_tile_groups = block.n_groups.next_multiple_of(TILE_GROUPS);
    let [rows, sums] = scratch.floats([block.n_rows * n_tile_groups, 4 * TILE_LEN]);
    let mut block = *block;
    // A tile wants the groups of a row side by side and whole steps of 32 values.
    if block.a_group_stride != 1 || block.n_groups != n_tile_groups {
        // SAFETY: the block's left operand is readable by the caller's promise.
        unsafe { copy_rows(&block, n_tile_groups, reinterpret::<bf16>(rows)) };
        block.a = rows.as_ptr().cast();
        block.a_row_stride = n_tile_groups;
        block.a_bundle_stride = PANEL_WIDTH * n_tile_groups;
        block.a_group_stride = 1;
        block.n_groups = n_tile_groups;
    }
    for row in (0..block.n_rows).step_by(2 * TILE_ROWS) {
        let n_rows = (block.n_rows - row).min(2 * TILE_ROWS);
        let top = n_rows.min(TILE_ROWS);
        let config = TileConfig::new([top, n_rows - top]);
        // SAFETY: the process may use AMX; the configuration is valid.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly)) };
        for column in (0..block.n_columns).step_by(2 * PANEL_WIDTH) {
            let two_panels = block.n_columns - column > PANEL_WIDTH;
            // SAFETY: the tiles lie in the block, and the configuration fits their rows.
            unsafe { multiply_tiles(&block, row, n_rows, column / PANEL_WIDTH, two_panels, sums) };
        }
    }
    // SAFETY: the process may use AMX. Without live tiles the system saves less on a thread switch.
    unsafe { asm!("tilerelease", options(nostack, nomem)) };
}

/// Copies the left operand into rows of `n_tile_groups` groups, zeros at their ends.
///
/// # Safety
/// The block's left operand is readable.
unsafe fn copy_rows(block: &Block, n_tile_groups: usize, out: &mut [bf16]) {
    let out: &mut [[bf16; 2]] = out.as_chunks_mut().0;
    for row in 0..block.n_rows {
        let start = block.a_row(row);
        for group in 0..n_tile_groups {
            out[row * n_tile_groups + group] = if group < block.n_groups {
                // SAFETY: within the row of the block; two bf16 have the size of a group.
                unsafe {
                    let source = block.a.add(start + group * block.a_group_stride);
                    source.cast::<[bf16; 2]>().read_unaligned()
                }
            } else {
                [bf16::ZERO; 2]
            };
        }
    }
}

/// Sums of up to 32 rows by up to 2 panels, through `sums` into the output.
///
/// # Safety
/// As [`multiply`]; the tiles are configured for `n_rows` rows.
#[target_feature(enable = "avx512f")]
unsafe fn multiply_tiles(
    block: &Block,
    row: usize,
    n_rows: usize,
    panel: usize,
    two_panels: bool,
    sums: &mut [f32],
) {
    let n_steps = block.n_groups / TILE_GROUPS;
    let a_top = block.a.wrapping_add(block.a_row(row));
    let a_bottom = block.a.wrapping_add(block.a_row(row + TILE_ROWS));
    let b_left = block.b.wrapping_add(panel * block.b_panel_stride);
    let b_right = b_left.wrapping_add(block.b_panel_stride);
    let a_stride = block.a_row_stride * size_of::<u32>();
    let out = sums.as_mut_ptr();
    // SAFETY: operands lie in the block (whole steps of K by `multiply`), `sums` holds four tiles.
    unsafe {
        match (n_rows > TILE_ROWS, two_panels) {
            (true, true) => tiles_2x2([a_top, a_bottom], a_stride, [b_left, b_right], n_steps, out),
            (true, false) => tiles_2x1([a_top, a_bottom], a_stride, b_left, n_steps, out),
            (false, true) => tiles_1x2(a_top, a_stride, [b_left, b_right], n_steps, out),
            (false, false) => tiles_1x1(a_top, a_stride, b_left, n_steps, out),
        }
        for i in 0..n_rows {
            for j in 0..=usize::from(two_panels) {
                let tile = 2 * (i / TILE_ROWS) + j;
                let start = tile * TILE_LEN + i % TILE_ROWS * PANEL_WIDTH;
                write_sums(
                    block,
                    row + i,
                    panel + j,
                    _mm512_loadu_ps(sums[start..][..16].as_ptr()),
                );
            }
        }
    }
}

/// # Safety
/// `a` and `b` are readable for `n_steps` steps, `out` is writable for four tiles, tiles are configured.
unsafe fn tiles_2x2(
    a: [*const u32; 2],
    a_stride: usize,
    b: [*const u32; 2],
    n_steps: usize,
    out: *mut f32,
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
            "tilestored [{out} + {line}], tmm0", "tilestored [{out} + {line} + 1024], tmm1",
            "tilestored [{out} + {line} + 2048], tmm2", "tilestored [{out} + {line} + 3072], tmm3",
            a0 = inout(reg) a[0] => _, a1 = inout(reg) a[1] => _,
            b0 = inout(reg) b[0] => _, b1 = inout(reg) b[1] => _,
            n = inout(reg) n_steps => _, a_stride = in(reg) a_stride, line = in(reg) 64_usize,
            out = in(reg) out,
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
    out: *mut f32,
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
            "tilestored [{out} + {line}], tmm0", "tilestored [{out} + {line} + 2048], tmm2",
            a0 = inout(reg) a[0] => _, a1 = inout(reg) a[1] => _, b = inout(reg) b => _,
            n = inout(reg) n_steps => _, a_stride = in(reg) a_stride, line = in(reg) 64_usize,
            out = in(reg) out,
            out("tmm0") _, out("tmm2") _, out("tmm4") _, out("tmm5") _, out("tmm6") _,
            options(nostack),
        );
    }
}

/// # Safety
/// As [`tiles_2x2`].
unsafe fn tiles_1x2(
    a: *const u32,
    a_stride: usize,
    b: [*const u32; 2],
    n_steps: usize,
    out: *mut f32,
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
            "tilestored [{out} + {line}], tmm0", "tilestored [{out} + {line} + 1024], tmm1",
            a = inout(reg) a => _, b0 = inout(reg) b[0] => _, b1 = inout(reg) b[1] => _,
            n = inout(reg) n_steps => _, a_stride = in(reg) a_stride, line = in(reg) 64_usize,
            out = in(reg) out,
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// # Safety
/// As [`tiles_2x2`].
unsafe fn tiles_1x1(a: *const u32, a_stride: usize, b: *const u32, n_steps: usize, out: *mut f32) {
    // SAFETY: as in `tiles_2x2`.
    unsafe {
        asm!(
            "tilezero tmm0",
            "2:",
            "tileloadd tmm4, [{a} + {a_stride}]", "tileloadd tmm6, [{b} + {line}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "add {a}, 64", "add {b}, 1024",
            "dec {n}", "jnz 2b",
            "tilestored [{out} + {line}], tmm0",
            a = inout(reg) a => _, b = inout(reg) b => _,
            n = inout(reg) n_steps => _, a_stride = in(reg) a_stride, line = in(reg) 64_usize,
            out = in(reg) out,
            out("tmm0") _, out("tmm4") _, out("tmm6") _,
            options(nostack),
        );
    }
}
