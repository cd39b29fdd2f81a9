//! Eight lanes.
#![expect(unsafe_code, reason = "AVX2 intrinsics; `Avx2` is the proof that they exist")]

use std::arch::x86_64::*;

use half::bf16;

use super::{LaneKernel, Lanes};

/// Proof that AVX2, FMA and F16C are there.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

/// Runs a kernel in a function compiled for AVX2.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn run<K: LaneKernel>(kernel: K) -> K::Output {
    kernel.run(Avx2(()))
}

/// A mask of the first `len` lanes.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn mask(len: usize) -> __m256i {
    _mm256_cmpgt_epi32(_mm256_set1_epi32(len as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
}

// SAFETY of every block below: the instructions exist because `self` does; loads and stores are bounded by the
// slice, through a mask or a copy on the stack where it is short.
#[expect(clippy::undocumented_unsafe_blocks, reason = "one argument for all of them, above")]
impl Lanes for Avx2 {
    const N: usize = 8;
    type F = __m256;

    #[inline(always)]
    fn splat(self, value: f32) -> __m256 {
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    fn load(self, values: &[f32]) -> __m256 {
        if values.len() >= 8 {
            unsafe { _mm256_loadu_ps(values.as_ptr()) }
        } else {
            unsafe { _mm256_maskload_ps(values.as_ptr(), mask(values.len())) }
        }
    }

    #[inline(always)]
    fn load_bf16(self, values: &[bf16]) -> __m256 {
        let bits = if values.len() >= 8 {
            unsafe { _mm_loadu_si128(values.as_ptr().cast()) }
        } else {
            let mut padded = [bf16::ZERO; 8];
            padded[..values.len()].copy_from_slice(values);
            unsafe { _mm_loadu_si128(padded.as_ptr().cast()) }
        };
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits))) }
    }

    #[inline(always)]
    fn store(self, value: __m256, out: &mut [f32]) {
        if out.len() >= 8 {
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), value) }
        } else {
            unsafe { _mm256_maskstore_ps(out.as_mut_ptr(), mask(out.len()), value) }
        }
    }

    #[inline(always)]
    fn store_bf16(self, value: __m256, out: &mut [bf16]) {
        let rounded = unsafe { round_to_bf16(value) };
        if out.len() >= 8 {
            unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), rounded) }
        } else {
            let mut padded = [bf16::ZERO; 8];
            unsafe { _mm_storeu_si128(padded.as_mut_ptr().cast(), rounded) };
            out.copy_from_slice(&padded[..out.len()]);
        }
    }

    #[inline(always)]
    fn store_interleaved(self, a: __m256, b: __m256, out: &mut [bf16]) {
        let out: &mut [bf16; 16] = out.first_chunk_mut().expect("16 values");
        unsafe {
            let (low, high) = (round_to_bf16(a), round_to_bf16(b));
            _mm_storeu_si128(out.as_mut_ptr().cast(), _mm_unpacklo_epi16(low, high));
            _mm_storeu_si128(out.as_mut_ptr().add(8).cast(), _mm_unpackhi_epi16(low, high));
        }
    }

    #[inline(always)]
    fn store_bytes(self, value: __m256, out: &mut [u8]) {
        let out: &mut [u8; 8] = out.first_chunk_mut().expect("8 bytes");
        unsafe {
            let words = _mm256_cvtps_epi32(value);
            let (low, high) = (_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            let halves = _mm_packs_epi32(low, high);
            _mm_storel_epi64(out.as_mut_ptr().cast(), _mm_packs_epi16(halves, halves));
        }
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_div_ps(a, b) }
    }

    #[inline(always)]
    fn sqrt(self, a: __m256) -> __m256 {
        unsafe { _mm256_sqrt_ps(a) }
    }

    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_max_ps(a, b) }
    }

    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_min_ps(a, b) }
    }

    #[inline(always)]
    fn round(self, a: __m256) -> __m256 {
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }

    #[inline(always)]
    fn exp2(self, x: __m256) -> __m256 {
        unsafe {
            let normal = _mm256_cmp_ps::<_CMP_NLT_UQ>(x, _mm256_set1_ps(-126.0));
            // Zero in the lanes that come to nothing: no subnormals arise in them.
            let x = _mm256_and_ps(x, normal);
            let n = _mm256_floor_ps(x);
            let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            let power = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased));
            let p = self.exp2_of_fraction(_mm256_sub_ps(x, n));
            _mm256_and_ps(_mm256_mul_ps(p, power), normal)
        }
    }

    #[inline(always)]
    fn reduce_sum(self, a: __m256) -> f32 {
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    fn reduce_max(self, a: __m256) -> f32 {
        unsafe {
            let four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }
}

/// Round to nearest even on the upper 16 bits; NaN stays NaN (quiet bit set).
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn round_to_bf16(value: __m256) -> __m128i {
    let bits = _mm256_castps_si256(value);
    let lowest_kept = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
    let bias = _mm256_add_epi32(lowest_kept, _mm256_set1_epi32(0x7fff));
    let rounded = _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, bias));
    let quiet = _mm256_or_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(0x40));
    let is_nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(value, value));
    let halves = _mm256_blendv_epi8(rounded, quiet, is_nan);
    // Packing works within 128-bit halves; the permutation puts the two results side by side.
    let packed = _mm256_packus_epi32(halves, halves);
    _mm256_castsi256_si128(_mm256_permute4x64_epi64::<0b1000>(packed))
}
