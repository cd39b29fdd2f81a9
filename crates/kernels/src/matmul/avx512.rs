//! Tiles of up to 6 rows by 4 panels: 24 sums, 4 lines of the panels and 1 broadcast fill 29 of 32 registers. Of bf16 that is widened within them up
//! to 4 rows: 16 sums, 8 widened lines and 2 broadcasts.
#![expect(unsafe_code, reason = "AVX-512 intrinsics on pointers checked by the caller")]

use std::arch::x86_64::*;

use super::{Block, Write};
use crate::lanes::avx512::mask;
use crate::panels::PANEL_WIDTH;

/// Panels of a tile.
pub(super) const TILE_PANELS: usize = 4;

/// The product of a block; `BF16` tells whether a group is a pair of bf16 or one f32.
///
/// # Safety
/// As [`super::multiply_block`], on a processor with AVX-512 F, BW, VL and BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn multiply<const BF16: bool>(block: &Block) {
    let n_panels = block.n_columns.div_ceil(PANEL_WIDTH);
    let tile_rows = Block::tile_rows(BF16);
    let mut panel = 0;
    while panel < n_panels {
        let panels = match n_panels - panel {
            1 => 1,
            2 | 3 => 2,
            _ => TILE_PANELS,
        };
        for row in (0..block.n_rows).step_by(tile_rows) {
            let rows = tile_rows.min(block.n_rows - row);
            // SAFETY: the tile lies in the block.
            unsafe {
                match panels {
                    1 => choose_tile::<BF16, 1>(block, row, panel, rows),
                    2 => choose_tile::<BF16, 2>(block, row, panel, rows),
                    _ => choose_tile::<BF16, TILE_PANELS>(block, row, panel, rows),
                }
            }
        }
        panel += panels;
    }
}

/// # Safety
/// As [`multiply`]; the tile lies in the block.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn choose_tile<const BF16: bool, const PANELS: usize>(
    b: &Block,
    row: usize,
    panel: usize,
    rows: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match rows {
            1 => tile::<BF16, 1, PANELS>(b, row, panel),
            2 => tile::<BF16, 2, PANELS>(b, row, panel),
            3 => tile::<BF16, 3, PANELS>(b, row, panel),
            4 => tile::<BF16, 4, PANELS>(b, row, panel),
            _ if BF16 => unreachable!("a tile of bf16 has at most 4 rows"),
            5 => tile::<BF16, 5, PANELS>(b, row, panel),
            _ => tile::<BF16, 6, PANELS>(b, row, panel),
        }
    }
}

/// # Safety
/// As [`multiply`]; the tile lies in the block.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn tile<const BF16: bool, const ROWS: usize, const PANELS: usize>(
    block: &Block,
    row: usize,
    panel: usize,
) {
    block.prefetch_out([row, ROWS], panel * PANEL_WIDTH, PANELS);
    let mut sums = [[_mm512_setzero_ps(); PANELS]; ROWS];
    let a: [*const u32; ROWS] = block.row_pointers(row);
    let mut b = block.b.wrapping_add(panel * block.b_panel_stride);
    // Two groups at a time: what a loop takes beside its products is half as much.
    let n_even = block.n_groups / 2 * 2;
    for first in (0..n_even).step_by(2) {
        for group in first..first + 2 {
            // SAFETY: within the block.
            unsafe {
                add_group::<BF16, ROWS, PANELS>(&mut sums, a, group, b, block.b_panel_stride)
            };
            b = b.wrapping_add(block.b_group_stride);
        }
    }
    if n_even < block.n_groups {
        // SAFETY: within the block.
        unsafe { add_group::<BF16, ROWS, PANELS>(&mut sums, a, n_even, b, block.b_panel_stride) };
    }
    for i in 0..ROWS {
        for j in 0..PANELS {
            // SAFETY: within the block's output; the mask cuts the last panel.
            unsafe { write_sums(block, row + i, panel + j, sums[i][j]) };
        }
    }
}

/// # Safety
/// `group` lies within the rows, and `b` is a line of the first of the panels.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn add_group<const BF16: bool, const ROWS: usize, const PANELS: usize>(
    sums: &mut [[__m512; PANELS]; ROWS],
    a: [*const u32; ROWS],
    group: usize,
    b: *const u32,
    b_panel_stride: usize,
) {
    let mut lines = [(_mm512_setzero_ps(), _mm512_setzero_ps()); PANELS];
    for j in 0..PANELS {
        // SAFETY: a line has 64 bytes.
        lines[j] = widen::<BF16>(unsafe { _mm512_loadu_si512(b.add(j * b_panel_stride).cast()) });
    }
    for i in 0..ROWS {
        // SAFETY: the caller's promise.
        let group = unsafe { a[i].add(group).cast::<i32>().read_unaligned() };
        let (even, odd) = widen::<BF16>(_mm512_set1_epi32(group));
        for j in 0..PANELS {
            sums[i][j] = _mm512_fmadd_ps(even, lines[j].0, sums[i][j]);
            if BF16 {
                sums[i][j] = _mm512_fmadd_ps(odd, lines[j].1, sums[i][j]);
            }
        }
    }
}

/// The even and the odd members of sixteen groups as f32; for f32 groups the values themselves, twice.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn widen<const BF16: bool>(groups: __m512i) -> (__m512, __m512) {
    if BF16 {
        let even = _mm512_slli_epi32::<16>(groups);
        let odd = _mm512_and_si512(groups, _mm512_set1_epi32(0xffff_0000_u32.cast_signed()));
        (_mm512_castsi512_ps(even), _mm512_castsi512_ps(odd))
    } else {
        (_mm512_castsi512_ps(groups), _mm512_castsi512_ps(groups))
    }
}

/// # Safety
/// Row and panel lie in the block's output.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn write_sums(block: &Block, row: usize, panel: usize, sums: __m512) {
    let column = panel * PANEL_WIDTH;
    let mask = mask(block.n_columns - column);
    let out = block.out_at(row, column);
    // SAFETY: the caller's promise; masked lanes are not touched.
    unsafe {
        if block.is_rounded {
            let rounded = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(sums));
            return _mm256_mask_storeu_epi16(out.cast(), mask, rounded);
        }
        let sums = match block.write {
            Write::Overwrite => sums,
            Write::Accumulate => _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out), sums),
        };
        _mm512_mask_storeu_ps(out, mask, sums);
    }
}
