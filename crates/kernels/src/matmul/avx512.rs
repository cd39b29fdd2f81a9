//! Tiles of up to 6 rows by 4 panels: 24 sums, 4 lines of the panels and 1 broadcast fill 29 of 32 registers.
#![expect(unsafe_code, reason = "AVX-512 intrinsics on pointers checked by the caller")]

use std::arch::x86_64::*;

use super::{Block, Write};
use crate::panels::PANEL_WIDTH;

const TILE_ROWS: usize = 6;
const TILE_PANELS: usize = 4;

/// The product of a block; `BF16` tells whether a group is a pair of bf16 or one f32.
///
/// # Safety
/// As [`super::multiply_block`], on a processor with AVX-512 F and BF16.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn multiply<const BF16: bool>(block: &Block) {
    let n_panels = block.n_columns.div_ceil(PANEL_WIDTH);
    for panel in (0..n_panels).step_by(TILE_PANELS) {
        for row in (0..block.n_rows).step_by(TILE_ROWS) {
            let rows = TILE_ROWS.min(block.n_rows - row);
            let panels = TILE_PANELS.min(n_panels - panel);
            // SAFETY: the tile lies in the block.
            unsafe { choose_tile::<BF16>(block, row, panel, rows, panels) };
        }
    }
}

/// # Safety
/// As [`multiply`]; the tile lies in the block.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn choose_tile<const BF16: bool>(
    b: &Block,
    row: usize,
    panel: usize,
    rows: usize,
    panels: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match (rows, panels) {
            (6, 4) => tile::<BF16, 6, 4>(b, row, panel),
            (5, 4) => tile::<BF16, 5, 4>(b, row, panel),
            (4, 4) => tile::<BF16, 4, 4>(b, row, panel),
            (3, 4) => tile::<BF16, 3, 4>(b, row, panel),
            (2, 4) => tile::<BF16, 2, 4>(b, row, panel),
            (1, 4) => tile::<BF16, 1, 4>(b, row, panel),
            (rows, panels) => {
                for panel in panel..panel + panels {
                    match rows {
                        6 => tile::<BF16, 6, 1>(b, row, panel),
                        5 => tile::<BF16, 5, 1>(b, row, panel),
                        4 => tile::<BF16, 4, 1>(b, row, panel),
                        3 => tile::<BF16, 3, 1>(b, row, panel),
                        2 => tile::<BF16, 2, 1>(b, row, panel),
                        _ => tile::<BF16, 1, 1>(b, row, panel),
                    }
                }
            }
        }
    }
}

/// # Safety
/// As [`multiply`]; the tile lies in the block.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn tile<const BF16: bool, const ROWS: usize, const PANELS: usize>(
    block: &Block,
    row: usize,
    panel: usize,
) {
    let mut sums = [[_mm512_setzero_ps(); PANELS]; ROWS];
    let mut a = [block.a; ROWS];
    for i in 0..ROWS {
        a[i] = block.a.wrapping_add(block.a_row(row + i));
    }
    let mut b = block.b.wrapping_add(panel * block.b_panel_stride);
    for group_idx in 0..block.n_groups {
        let mut lines = [_mm512_setzero_ps(); PANELS];
        for j in 0..PANELS {
            // SAFETY: within panel `panel + j` of the block.
            lines[j] = unsafe { _mm512_loadu_ps(b.add(j * block.b_panel_stride).cast()) };
        }
        for i in 0..ROWS {
            // SAFETY: within row `row + i` of the block.
            let group =
                unsafe { _mm512_set1_epi32(a[i].add(group_idx).read_unaligned().cast_signed()) };
            for j in 0..PANELS {
                sums[i][j] = multiply_add::<BF16>(sums[i][j], group, lines[j]);
            }
        }
        b = b.wrapping_add(PANEL_WIDTH);
    }
    for i in 0..ROWS {
        for j in 0..PANELS {
            // SAFETY: within the block's output; the mask cuts the last panel.
            unsafe { write_sums(block, row + i, panel + j, sums[i][j]) };
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn multiply_add<const BF16: bool>(sum: __m512, group: __m512i, line: __m512) -> __m512 {
    if BF16 {
        // SAFETY: vectors of the same size, every bit pattern of which is valid.
        unsafe {
            _mm512_dpbf16_ps(
                sum,
                std::mem::transmute::<__m512i, __m512bh>(group),
                std::mem::transmute::<__m512, __m512bh>(line),
            )
        }
    } else {
        _mm512_fmadd_ps(_mm512_castsi512_ps(group), line, sum)
    }
}

/// # Safety
/// Row and panel lie in the block's output.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn write_sums(block: &Block, row: usize, panel: usize, sums: __m512) {
    let column = panel * PANEL_WIDTH;
    let n_left = block.n_columns - column;
    let mask = if n_left >= PANEL_WIDTH { u16::MAX } else { (1 << n_left) - 1 };
    // SAFETY: the caller's promise; masked lanes are not touched.
    unsafe {
        let out = block.out.add(row * block.out_stride + column);
        let sums = match block.write {
            Write::Overwrite => sums,
            Write::Accumulate => _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out), sums),
        };
        _mm512_mask_storeu_ps(out, mask, sums);
    }
}
