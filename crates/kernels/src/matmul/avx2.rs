//! Tiles of up to 4 rows by 1 panel: 8 sums, 4 widened half lines and 2 broadcasts of 16 registers.
#![expect(unsafe_code, reason = "AVX2 intrinsics on pointers checked by the caller")]

use std::arch::x86_64::*;

use super::{Block, Write};
use crate::panels::PANEL_WIDTH;

const TILE_ROWS: usize = 4;

/// The product of a block; `BF16` tells whether a group is a pair of bf16 or one f32.
///
/// # Safety
/// As [`super::multiply_block`], on a processor with AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn multiply<const BF16: bool>(block: &Block) {
    for panel in 0..block.n_columns.div_ceil(PANEL_WIDTH) {
        for row in (0..block.n_rows).step_by(TILE_ROWS) {
            // SAFETY: the tile lies in the block.
            unsafe {
                match block.n_rows - row {
                    1 => tile::<BF16, 1>(block, row, panel),
                    2 => tile::<BF16, 2>(block, row, panel),
                    3 => tile::<BF16, 3>(block, row, panel),
                    _ => tile::<BF16, 4>(block, row, panel),
                }
            }
        }
    }
}

/// # Safety
/// As [`multiply`]; the tile lies in the block.
#[target_feature(enable = "avx2,fma")]
unsafe fn tile<const BF16: bool, const ROWS: usize>(block: &Block, row: usize, panel: usize) {
    let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
    let mut a = [block.a; ROWS];
    for i in 0..ROWS {
        a[i] = block.a.wrapping_add(block.a_row(row + i));
    }
    let mut b = block.b.wrapping_add(panel * block.b_panel_stride);
    for group_idx in 0..block.n_groups {
        // SAFETY: a line of the panel has 64 bytes.
        let (left, right) =
            unsafe { (_mm256_loadu_si256(b.cast()), _mm256_loadu_si256(b.add(8).cast())) };
        let (left_even, left_odd) = widen::<BF16>(left);
        let (right_even, right_odd) = widen::<BF16>(right);
        for i in 0..ROWS {
            // SAFETY: within row `row + i` of the block.
            let group =
                unsafe { _mm256_set1_epi32(a[i].add(group_idx).read_unaligned().cast_signed()) };
            let (even, odd) = widen::<BF16>(group);
            sums[i][0] = _mm256_fmadd_ps(even, left_even, sums[i][0]);
            sums[i][1] = _mm256_fmadd_ps(even, right_even, sums[i][1]);
            if BF16 {
                sums[i][0] = _mm256_fmadd_ps(odd, left_odd, sums[i][0]);
                sums[i][1] = _mm256_fmadd_ps(odd, right_odd, sums[i][1]);
            }
        }
        b = b.wrapping_add(PANEL_WIDTH);
    }
    for i in 0..ROWS {
        // SAFETY: within the block's output.
        unsafe { write_sums(block, row + i, panel, sums[i]) };
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
    // SAFETY: the caller's promise.
    let out = unsafe {
        let start = block.out.add(row * block.out_stride + column);
        std::slice::from_raw_parts_mut(start, n_left)
    };
    let mut values = [0.0; PANEL_WIDTH];
    // SAFETY: `values` has room for both halves.
    unsafe {
        _mm256_storeu_ps(values.as_mut_ptr(), sums[0]);
        _mm256_storeu_ps(values.as_mut_ptr().add(8), sums[1]);
    }
    match block.write {
        Write::Overwrite => out.copy_from_slice(&values[..n_left]),
        Write::Accumulate => out.iter_mut().zip(values).for_each(|(out, value)| *out += value),
    }
}
