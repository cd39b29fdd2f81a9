//! Tiles of up to 6 rows by 1 panel: 12 sums, 2 half lines and a broadcast of 16 registers. Of bf16 that is widened within them up to 4 rows: 8
//! sums, 4 widened half lines and 2 broadcasts.
#![expect(unsafe_code, reason = "AVX2 intrinsics on pointers checked by the caller")]

use std::arch::x86_64::*;

use half::bf16;

use super::{Block, Write};
use crate::lanes::avx2::{mask, round_to_bf16};
use crate::panels::PANEL_WIDTH;

/// Lanes of a register.
const LANES: usize = 8;

/// The product of a block; `BF16` tells whether a group is a pair of bf16 or one f32.
///
/// # Safety
/// As [`super::multiply_block`], on a processor with AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn multiply<const BF16: bool>(block: &Block) {
    let tile_rows = Block::tile_rows(BF16);
    for panel in 0..block.n_columns.div_ceil(PANEL_WIDTH) {
        for row in (0..block.n_rows).step_by(tile_rows) {
            // SAFETY: the tile lies in the block.
            unsafe {
                match tile_rows.min(block.n_rows - row) {
                    1 => tile::<BF16, 1>(block, row, panel),
                    2 => tile::<BF16, 2>(block, row, panel),
                    3 => tile::<BF16, 3>(block, row, panel),
                    4 => tile::<BF16, 4>(block, row, panel),
                    _ if BF16 => unreachable!("a tile of bf16 has at most 4 rows"),
                    5 => tile::<BF16, 5>(block, row, panel),
                    _ => tile::<BF16, 6>(block, row, panel),
                }
            }
        }
    }
}

/// # Safety
/// As [`multiply`]; the tile lies in the block.
#[target_feature(enable = "avx2,fma")]
unsafe fn tile<const BF16: bool, const ROWS: usize>(block: &Block, row: usize, panel: usize) {
    block.prefetch_out([row, ROWS], panel * PANEL_WIDTH, 1);
    let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
    let a: [*const u32; ROWS] = block.row_pointers(row);
    let mut b = block.b.wrapping_add(panel * block.b_panel_stride);
    // Two groups at a time: what a loop takes beside its products is half as much.
    let n_even = block.n_groups / 2 * 2;
    for first in (0..n_even).step_by(2) {
        for group in first..first + 2 {
            // SAFETY: within the block.
            unsafe { add_group::<BF16, ROWS>(&mut sums, a, group, b) };
            b = b.wrapping_add(block.b_group_stride);
        }
    }
    if n_even < block.n_groups {
        // SAFETY: within the block.
        unsafe { add_group::<BF16, ROWS>(&mut sums, a, n_even, b) };
    }
    for i in 0..ROWS {
        // SAFETY: within the block's output.
        unsafe { write_sums(block, row + i, panel, sums[i]) };
    }
}

/// # Safety
/// `group` lies within the rows, and `line` is a line of a panel.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn add_group<const BF16: bool, const ROWS: usize>(
    sums: &mut [[__m256; 2]; ROWS],
    a: [*const u32; ROWS],
    group: usize,
    line: *const u32,
) {
    // SAFETY: a line has 64 bytes.
    let [left, right] =
        unsafe { [_mm256_loadu_si256(line.cast()), _mm256_loadu_si256(line.add(8).cast())] };
    let (left_even, left_odd) = widen::<BF16>(left);
    let (right_even, right_odd) = widen::<BF16>(right);
    for i in 0..ROWS {
        // SAFETY: the caller's promise.
        let group = unsafe { a[i].add(group).cast::<i32>().read_unaligned() };
        let (even, odd) = widen::<BF16>(_mm256_set1_epi32(group));
        sums[i][0] = _mm256_fmadd_ps(even, left_even, sums[i][0]);
        sums[i][1] = _mm256_fmadd_ps(even, right_even, sums[i][1]);
        if BF16 {
            sums[i][0] = _mm256_fmadd_ps(odd, left_odd, sums[i][0]);
            sums[i][1] = _mm256_fmadd_ps(odd, right_odd, sums[i][1]);
        }
    }
}

/// The even and the odd members of eight groups as f32; for f32 groups the values themselves, twice.
#[inline]
#[target_feature(enable = "avx2")]
fn widen<const BF16: bool>(groups: __m256i) -> (__m256, __m256) {
    if BF16 {
        let even = _mm256_slli_epi32::<16>(groups);
        let odd = _mm256_and_si256(groups, _mm256_set1_epi32(0xffff_0000_u32.cast_signed()));
        (_mm256_castsi256_ps(even), _mm256_castsi256_ps(odd))
    } else {
        (_mm256_castsi256_ps(groups), _mm256_castsi256_ps(groups))
    }
}

/// # Safety
/// Row and panel lie in the block's output.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn write_sums(block: &Block, row: usize, panel: usize, sums: [__m256; 2]) {
    let column = panel * PANEL_WIDTH;
    let n_left = (block.n_columns - column).min(PANEL_WIDTH);
    let out = block.out_at(row, column);
    if block.is_rounded {
        // SAFETY: the caller's promise.
        return unsafe { write_rounded(out.cast(), n_left, sums) };
    }
    for (half, mut sums) in sums.into_iter().enumerate() {
        let mask = mask(n_left.saturating_sub(half * LANES));
        let out = out.wrapping_add(half * LANES);
        // SAFETY: the caller's promise; lanes behind the last column are not touched.
        unsafe {
            if block.write == Write::Accumulate {
                sums = _mm256_add_ps(_mm256_maskload_ps(out, mask), sums);
            }
            _mm256_maskstore_ps(out, mask, sums);
        }
    }
}

/// # Safety
/// The output has `n_left` numbers.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn write_rounded(out: *mut bf16, n_left: usize, sums: [__m256; 2]) {
    let mut rounded = [bf16::ZERO; PANEL_WIDTH];
    let halves = sums.map(|sums| round_to_bf16(sums));
    // SAFETY: the array has room for both halves, and the output for what is left by the caller's promise.
    unsafe {
        let to = if n_left == PANEL_WIDTH { out } else { rounded.as_mut_ptr() };
        _mm_storeu_si128(to.cast(), halves[0]);
        _mm_storeu_si128(to.add(LANES).cast(), halves[1]);
        if n_left < PANEL_WIDTH {
            out.copy_from_nonoverlapping(rounded.as_ptr(), n_left);
        }
    }
}
