//! Panels of a source with rows of n: 16 rows by 16 groups at a time.
#![expect(unsafe_code, reason = "AVX-512 intrinsics on pointers checked by the caller")]

use std::arch::x86_64::*;

use super::PANEL_WIDTH;
use crate::operand::Operand;
use crate::transpose::avx512::transpose_groups;

/// Groups of a row that are loaded at once.
const TILE_GROUPS: usize = 16;

/// One panel: `width` rows of `k` values at a distance of `stride` from `values` on, rounded, and zeros up to the end of `panel`.
///
/// # Safety
/// The rows are readable, on a processor with AVX-512 F, BW, VL and BF16; `panel` holds groups of all of k.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn gather_panel<S: Operand, T: Operand>(
    values: *const S,
    stride: usize,
    [width, k]: [usize; 2],
    panel: &mut [T],
) {
    let (step_len, line_len) = (TILE_GROUPS * T::GROUP, PANEL_WIDTH * T::GROUP);
    for (step, lines) in panel.chunks_mut(TILE_GROUPS * line_len).enumerate() {
        let first_k = step * step_len;
        let n_left = k.saturating_sub(first_k).min(step_len);
        let mut rows = [_mm512_setzero_si512(); PANEL_WIDTH];
        for (row, groups) in rows.iter_mut().enumerate().take(width) {
            let source = values.wrapping_add(row * stride + first_k);
            // SAFETY: the row has `n_left` values from here on, by the caller's promise.
            *groups = unsafe { load::<S, T>(source, n_left) };
        }
        let rows = transpose_groups(rows);
        for (line, groups) in lines.chunks_exact_mut(line_len).zip(rows) {
            // SAFETY: a line has 64 bytes.
            unsafe { _mm512_storeu_si512(line.as_mut_ptr().cast(), groups) };
        }
    }
}

/// Sixteen groups of a row of which `n` values are there, zeros behind them.
///
/// # Safety
/// As [`gather_panel`], for the values.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn load<S: Operand, T: Operand>(values: *const S, n: usize) -> __m512i {
    let mask = u32::MAX.checked_shr(32 - n as u32).unwrap_or(0);
    let (low, high) = (mask as u16, (mask >> 16) as u16);
    // SAFETY: masks keep loads within the values, by the caller's promise.
    unsafe {
        match (S::GROUP, T::GROUP) {
            (2, 2) => _mm512_maskz_loadu_epi16(mask, values.cast()),
            (1, 1) => _mm512_maskz_loadu_epi32(low, values.cast()),
            (1, 2) => {
                let first = _mm512_maskz_loadu_ps(low, values.cast());
                let second = _mm512_maskz_loadu_ps(high, values.wrapping_add(16).cast());
                std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first))
            }
            _ => {
                let bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(low, values.cast()));
                _mm512_slli_epi32::<16>(bits)
            }
        }
    }
}
