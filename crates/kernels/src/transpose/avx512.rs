//! Tiles of 16 rows by 16 groups.
#![expect(unsafe_code, reason = "AVX-512 intrinsics on pointers checked by the caller")]

use std::arch::x86_64::*;

use super::Job;
use crate::operand::Operand;

const TILE: usize = 16;

/// # Safety
/// The job's pointers cover its shape, on a processor with AVX-512 F, BW and VL.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) unsafe fn transpose<T: Operand>(job: &Job<T>) {
    // Rows are neighbours in the source: for some of K, all of them.
    for group in (0..job.out_groups).step_by(TILE) {
        let is_whole =
            T::GROUP == 2 && job.out_groups - group >= TILE && job.n_k >= (group + TILE) * T::GROUP;
        let n_paired = if is_whole { job.n_rows / (2 * TILE) * (2 * TILE) } else { 0 };
        for row in (0..n_paired).step_by(2 * TILE) {
            // SAFETY: two whole tiles lie in the job.
            unsafe { transpose_two_tiles(job, row, group) };
        }
        for row in (n_paired..job.n_rows).step_by(TILE) {
            // SAFETY: the tile lies in the job.
            unsafe { transpose_tile(job, row, group) };
        }
    }
}

/// Two whole tiles of pairs, which are one cache line wide in the source: where rows of the source are a power of two apart, a line
/// that was left would have to be loaded again.
///
/// # Safety
/// As [`transpose`]; both tiles lie in the job.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn transpose_two_tiles<T: Operand>(job: &Job<T>, row: usize, group: usize) {
    let mut lines = [[_mm512_setzero_si512(); TILE]; 2];
    let source = job.source.wrapping_add(group * T::GROUP * job.stride + row);
    for i in 0..TILE {
        let pair = source.wrapping_add(2 * i * job.stride);
        // The next values of K, which no hardware expects at these distances.
        let next = pair.wrapping_add(2 * TILE * job.stride);
        _mm_prefetch::<_MM_HINT_T1>(next.cast());
        _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(job.stride).cast());
        // SAFETY: the caller's promise.
        let (even, odd) = unsafe {
            (
                _mm512_loadu_si512(pair.cast()),
                _mm512_loadu_si512(pair.wrapping_add(job.stride).cast()),
            )
        };
        // 32-bit lanes of 16 numbers each: the even ones below the odd ones.
        for (half, lines) in lines.iter_mut().enumerate() {
            let [even, odd] = [even, odd].map(|line| match half {
                0 => _mm512_castsi512_si256(line),
                _ => _mm512_extracti64x4_epi64::<1>(line),
            });
            let odd = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(odd));
            lines[i] = _mm512_or_si512(_mm512_cvtepu16_epi32(even), odd);
        }
    }
    let layout = &job.layout;
    for (half, lines) in lines.into_iter().enumerate() {
        let first = (row / TILE + half) * layout.bundle + group / TILE * layout.step;
        for (i, row_groups) in transpose_groups(lines).into_iter().enumerate() {
            let out = job.out.wrapping_add(first + i * layout.row);
            // SAFETY: the caller's promise.
            unsafe { _mm512_storeu_si512(out.cast(), row_groups) };
        }
    }
}

/// # Safety
/// As [`transpose`]; the tile begins in the job.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn transpose_tile<T: Operand>(job: &Job<T>, row: usize, group: usize) {
    let (n_rows, n_groups) = (TILE.min(job.n_rows - row), TILE.min(job.out_groups - group));
    let row_mask = u16::MAX >> (TILE - n_rows);
    let group_mask = u16::MAX >> (TILE - n_groups);
    let mut lines = [_mm512_setzero_si512(); TILE];
    for (i, line) in lines.iter_mut().enumerate().take(n_groups) {
        // SAFETY: the caller's promise; the mask keeps loads within the source's row.
        *line = unsafe { load_groups(job, row, (group + i) * T::GROUP, row_mask) };
    }
    let rows = transpose_groups(lines);
    let layout = &job.layout;
    let first = row / TILE * layout.bundle + group / TILE * layout.step;
    for (i, row_groups) in rows.into_iter().enumerate().take(n_rows) {
        let out = job.out.wrapping_add(first + i * layout.row);
        // SAFETY: the mask keeps the store within the output's row.
        unsafe { _mm512_mask_storeu_epi32(out.cast(), group_mask, row_groups) };
    }
}

/// The group of K at `k` for sixteen rows; zero where there is no row or no k.
///
/// # Safety
/// The rows of the mask lie in the job.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn load_groups<T: Operand>(job: &Job<T>, row: usize, k: usize, mask: u16) -> __m512i {
    let load = |k: usize| -> __m512i {
        if k >= job.n_k {
            return _mm512_setzero_si512();
        }
        let source = job.source.wrapping_add(k * job.stride + row);
        // SAFETY: the caller's promise.
        unsafe {
            if T::GROUP == 1 {
                _mm512_maskz_loadu_epi32(mask, source.cast())
            } else {
                _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, source.cast()))
            }
        }
    };
    if T::GROUP == 1 {
        load(k)
    } else {
        _mm512_or_si512(load(k), _mm512_slli_epi32::<16>(load(k + 1)))
    }
}

/// `out[i][j] = lines[j][i]`, 32-bit values.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn transpose_groups(mut lines: [__m512i; TILE]) -> [__m512i; TILE] {
    // Four by four within 128-bit lanes: lane l of line 4 i + j then holds row 4 l + j of the groups 4 i to 4 i + 3.
    for quad in lines.as_chunks_mut::<4>().0 {
        let [a, b, c, d] = *quad;
        let (ab_low, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (cd_low, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        *quad = [
            _mm512_unpacklo_epi64(ab_low, cd_low),
            _mm512_unpackhi_epi64(ab_low, cd_low),
            _mm512_unpacklo_epi64(ab_high, cd_high),
            _mm512_unpackhi_epi64(ab_high, cd_high),
        ];
    }
    let mut rows = [_mm512_setzero_si512(); TILE];
    for j in 0..4 {
        let (a, b, c, d) = (lines[j], lines[4 + j], lines[8 + j], lines[12 + j]);
        let (ab_low, ab_high) =
            (_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0xEE>(a, b));
        let (cd_low, cd_high) =
            (_mm512_shuffle_i32x4::<0x44>(c, d), _mm512_shuffle_i32x4::<0xEE>(c, d));
        rows[j] = _mm512_shuffle_i32x4::<0x88>(ab_low, cd_low);
        rows[4 + j] = _mm512_shuffle_i32x4::<0xDD>(ab_low, cd_low);
        rows[8 + j] = _mm512_shuffle_i32x4::<0x88>(ab_high, cd_high);
        rows[12 + j] = _mm512_shuffle_i32x4::<0xDD>(ab_high, cd_high);
    }
    rows
}
