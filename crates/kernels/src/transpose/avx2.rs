//! Tiles of 8 rows by 8 groups; what is left at the edges goes value by value.
#![expect(unsafe_code, reason = "AVX2 intrinsics on pointers checked by the caller")]

use std::arch::x86_64::*;

use super::Job;
use crate::operand::Operand;

const TILE: usize = 8;

/// # Safety
/// The job's pointers cover its shape, on a processor with AVX2.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn transpose<T: Operand>(job: &Job<T>) {
    for row in (0..job.n_rows).step_by(TILE) {
        for group in (0..job.out_groups).step_by(TILE) {
            let is_whole = row + TILE <= job.n_rows
                && group + TILE <= job.out_groups
                && (group + TILE) * T::GROUP <= job.n_k;
            // SAFETY: the tile begins in the job, and lies in it if it is whole.
            unsafe {
                if is_whole { transpose_tile(job, row, group) } else { move_tile(job, row, group) }
            }
        }
    }
}

/// A tile at an edge of the source or of the output.
///
/// # Safety
/// As [`transpose`]; the tile begins in the job.
unsafe fn move_tile<T: Operand>(job: &Job<T>, first_row: usize, first_group: usize) {
    let first_k = first_group * T::GROUP;
    let end_k = ((first_group + TILE) * T::GROUP).min(job.out_groups * T::GROUP);
    for row in first_row..job.n_rows.min(first_row + TILE) {
        for k in first_k..end_k {
            // SAFETY: within the source if below n_k, and within the output's row.
            unsafe {
                let value = if k < job.n_k {
                    job.source.add(k * job.stride + row).read()
                } else {
                    T::from_f32(0.0)
                };
                job.out.cast::<T>().add(row * job.out_groups * T::GROUP + k).write(value);
            }
        }
    }
}

/// # Safety
/// As [`transpose`]; the tile lies in the job.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn transpose_tile<T: Operand>(job: &Job<T>, row: usize, group: usize) {
    let mut lines = [_mm256_setzero_si256(); TILE];
    for (i, line) in lines.iter_mut().enumerate() {
        let source = job.source.wrapping_add((group + i) * T::GROUP * job.stride + row);
        // SAFETY: eight values of one or two rows of the source.
        *line = unsafe {
            if T::GROUP == 1 {
                _mm256_loadu_si256(source.cast())
            } else {
                let first = _mm256_cvtepu16_epi32(_mm_loadu_si128(source.cast()));
                let second = _mm_loadu_si128(source.add(job.stride).cast());
                _mm256_or_si256(first, _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(second)))
            }
        };
    }
    // Four by four within 128-bit lanes, then the lanes.
    for quad in lines.as_chunks_mut::<4>().0 {
        let [a, b, c, d] = *quad;
        let (ab_low, ab_high) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
        let (cd_low, cd_high) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
        *quad = [
            _mm256_unpacklo_epi64(ab_low, cd_low),
            _mm256_unpackhi_epi64(ab_low, cd_low),
            _mm256_unpacklo_epi64(ab_high, cd_high),
            _mm256_unpackhi_epi64(ab_high, cd_high),
        ];
    }
    for j in 0..4 {
        let (left, right) = (lines[j], lines[4 + j]);
        let rows = [
            _mm256_permute2x128_si256::<0x20>(left, right),
            _mm256_permute2x128_si256::<0x31>(left, right),
        ];
        for (half, row_groups) in rows.into_iter().enumerate() {
            let out = job.out.wrapping_add((row + 4 * half + j) * job.out_groups + group);
            // SAFETY: eight groups of a row of the output.
            unsafe { _mm256_storeu_si256(out.cast(), row_groups) };
        }
    }
}
