//! Sixteen lanes.
#![expect(unsafe_code, reason = "AVX-512 intrinsics; `Avx512` is the proof that they exist")]

use std::arch::x86_64::*;

use half::bf16;

use super::{LaneKernel, Lanes};

/// Proof that AVX-512 F, BW, DQ, VL and BF16 are there.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

/// Where the numbers of two halves of a vector stand when they alternate.
const INTERLEAVED: [u16; 32] = {
    let mut places = [0; 32];
    let mut i = 0;
    while i < 32 {
        places[i] = (i / 2 + i % 2 * 16) as u16;
        i += 1;
    }
    places
};

/// Runs a kernel in a function compiled for AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma,f16c")]
pub(super) fn run<K: LaneKernel>(kernel: K) -> K::Output {
    kernel.run(Avx512(()))
}

/// A mask of the first `len` lanes.
#[inline(always)]
pub(crate) fn mask(len: usize) -> u16 {
    if len >= 16 { u16::MAX } else { (1 << len) - 1 }
}

// SAFETY of every block below: the instructions exist because `self` does; loads and stores are bounded by the
// slice through the mask.
#[expect(clippy::undocumented_unsafe_blocks, reason = "one argument for all of them, above")]
impl Lanes for Avx512 {
    const N: usize = 16;
    type F = __m512;

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    fn load(self, values: &[f32]) -> __m512 {
        if values.len() >= 16 {
            unsafe { _mm512_loadu_ps(values.as_ptr()) }
        } else {
            unsafe { _mm512_maskz_loadu_ps(mask(values.len()), values.as_ptr()) }
        }
    }

    #[inline(always)]
    fn load_bf16(self, values: &[bf16]) -> __m512 {
        let bits = if values.len() >= 16 {
            unsafe { _mm256_loadu_si256(values.as_ptr().cast()) }
        } else {
            unsafe { _mm256_maskz_loadu_epi16(mask(values.len()), values.as_ptr().cast()) }
        };
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits))) }
    }

    #[inline(always)]
    fn store(self, value: __m512, out: &mut [f32]) {
        if out.len() >= 16 {
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), value) }
        } else {
            unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr(), mask(out.len()), value) }
        }
    }

    #[inline(always)]
    fn store_bf16(self, value: __m512, out: &mut [bf16]) {
        let bits: __m256i = unsafe { std::mem::transmute(_mm512_cvtneps_pbh(value)) };
        if out.len() >= 16 {
            unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), bits) }
        } else {
            unsafe { _mm256_mask_storeu_epi16(out.as_mut_ptr().cast(), mask(out.len()), bits) }
        }
    }

    #[inline(always)]
    fn store_two_bf16(self, a: __m512, b: __m512, out: &mut [bf16]) {
        let out: &mut [bf16; 32] = out.first_chunk_mut().expect("32 values");
        unsafe {
            // One store of a line: a tile load of the line waits less than for two.
            let both: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(b, a));
            _mm512_storeu_si512(out.as_mut_ptr().cast(), both);
        }
    }

    #[inline(always)]
    fn store_interleaved(self, a: __m512, b: __m512, out: &mut [bf16]) {
        let out: &mut [bf16; 32] = out.first_chunk_mut().expect("32 values");
        unsafe {
            let both: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(b, a));
            let places = _mm512_loadu_si512(INTERLEAVED.as_ptr().cast());
            _mm512_storeu_si512(out.as_mut_ptr().cast(), _mm512_permutexvar_epi16(places, both));
        }
    }

    #[inline(always)]
    fn store_bytes(self, value: __m512, out: &mut [u8]) {
        let out: &mut [u8; 16] = out.first_chunk_mut().expect("16 bytes");
        unsafe {
            let bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(value));
            _mm_storeu_si128(out.as_mut_ptr().cast(), bytes);
        }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    fn sqrt(self, a: __m512) -> __m512 {
        unsafe { _mm512_sqrt_ps(a) }
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }

    #[inline(always)]
    fn round(self, a: __m512) -> __m512 {
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }

    #[inline(always)]
    fn exp2(self, x: __m512) -> __m512 {
        unsafe {
            // What would come out subnormal takes hundreds of cycles, so it is never computed.
            let normal = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, _mm512_set1_ps(-126.0));
            let r = _mm512_reduce_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(x);
            _mm512_maskz_scalef_ps(normal, self.exp2_of_fraction(r), x)
        }
    }

    #[inline(always)]
    fn reduce_sum(self, a: __m512) -> f32 {
        unsafe { _mm512_reduce_add_ps(a) }
    }

    #[inline(always)]
    fn reduce_max(self, a: __m512) -> f32 {
        unsafe { _mm512_reduce_max_ps(a) }
    }
}
