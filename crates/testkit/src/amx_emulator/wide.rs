//! The sums of a bf16 product, eight columns at a time: an emulated kernel is only useful when it is not much slower.
//! Same bits as the definition in `arithmetic`, which is used where the CPU lacks AVX2 and FMA.
#![expect(unsafe_code, reason = "vector loads and stores, and the call after detection")]

use super::arithmetic::{COLUMNS, bf16_at, flush, multiply_add};
use super::tile::Row;
use std::arch::x86_64::{
    __m256, _CMP_EQ_OQ, _CMP_LT_OQ, _mm256_and_ps, _mm256_and_si256, _mm256_andnot_ps,
    _mm256_blendv_ps, _mm256_castsi256_ps, _mm256_cmp_ps, _mm256_fmadd_ps, _mm256_loadu_ps,
    _mm256_loadu_si256, _mm256_movemask_ps, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps,
    _mm256_slli_epi32, _mm256_storeu_ps,
};

/// The sums over even and over odd elements of one row, or nothing without AVX2 and FMA.
pub(super) fn bf16_row_sums(left: &Row, right: &[Row]) -> Option<[[f32; COLUMNS]; 2]> {
    // Detection reads a cached atomic, which a signal handler may do.
    if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
        // SAFETY: the CPU has both, just checked.
        return Some(unsafe { avx2_row_sums(left, right) });
    }
    None
}

#[target_feature(enable = "avx2,fma")]
fn avx2_row_sums(left: &Row, right: &[Row]) -> [[f32; COLUMNS]; 2] {
    let high_half = _mm256_set1_epi32(0xFFFF_0000_u32.cast_signed());
    // [even or odd][columns 0 to 7 or 8 to 15]
    let mut sums = [[_mm256_setzero_ps(); 2]; 2];
    for (k, right_row) in right.iter().enumerate() {
        let a_even = _mm256_set1_ps(flush(bf16_at(left, 2 * k)));
        let a_odd = _mm256_set1_ps(flush(bf16_at(left, 2 * k + 1)));
        for part in 0..2 {
            let bytes: &[u8] = &right_row[32 * part..32 * part + 32];
            // SAFETY: 32 bytes are there; no alignment is needed.
            let pairs = unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) };
            let b_even = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs));
            let b_odd = _mm256_castsi256_ps(_mm256_and_si256(pairs, high_half));
            sums[0][part] = avx2_multiply_add(a_even, avx2_flush(b_even), sums[0][part]);
            sums[1][part] = avx2_multiply_add(a_odd, avx2_flush(b_odd), sums[1][part]);
        }
    }
    let mut out = [[0.0; COLUMNS]; 2];
    for half in 0..2 {
        for part in 0..2 {
            let eight: &mut [f32] = &mut out[half][8 * part..8 * part + 8];
            // SAFETY: eight floats are there; no alignment is needed.
            unsafe { _mm256_storeu_ps(eight.as_mut_ptr(), sums[half][part]) };
        }
    }
    out
}

/// [`multiply_add`] on flushed inputs.
#[target_feature(enable = "avx2,fma")]
fn avx2_multiply_add(a: __m256, b: __m256, c: __m256) -> __m256 {
    let sum = _mm256_fmadd_ps(a, b, c);
    let least = _mm256_set1_ps(f32::MIN_POSITIVE);
    let magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0), sum);
    // A sum that the subnormal grid rounded up to the least normal number may be tiny all the same.
    if _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_EQ_OQ>(magnitude, least)) != 0 {
        let (a, b, c) = (lanes(a), lanes(b), lanes(c));
        let exact: [f32; 8] = std::array::from_fn(|i| multiply_add(a[i], b[i], c[i]));
        // SAFETY: eight floats are there; no alignment is needed.
        return unsafe { _mm256_loadu_ps(exact.as_ptr()) };
    }
    avx2_flush(sum)
}

#[target_feature(enable = "avx2,fma")]
fn avx2_flush(x: __m256) -> __m256 {
    let sign = _mm256_set1_ps(-0.0);
    let magnitude = _mm256_andnot_ps(sign, x);
    let tiny = _mm256_cmp_ps::<_CMP_LT_OQ>(magnitude, _mm256_set1_ps(f32::MIN_POSITIVE));
    _mm256_blendv_ps(x, _mm256_and_ps(x, sign), tiny)
}

#[target_feature(enable = "avx2,fma")]
fn lanes(x: __m256) -> [f32; 8] {
    let mut out = [0.0; 8];
    // SAFETY: eight floats are there; no alignment is needed.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), x) };
    out
}
