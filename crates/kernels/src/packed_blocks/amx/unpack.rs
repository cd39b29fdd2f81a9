//! Packed lines of a group to the lines of a bf16 tile: byte pair `p` of a line has the numbers `2 p` and `2 p + 1` of 16 columns.
//!
//! A code is put into the mantissa of a power of two, where it counts one by one, so that no conversion is needed: with
//! `base + code` for the code, `w = fma(base + code, a, addend)`, `addend = -(base a + minimum)`. Codes of 4 bits come to
//! bit 12 or 16, where the rounded addend loses least, others to bit 8.

use std::arch::asm;
use std::arch::x86_64::*;

use super::super::avx512::unpack::{load, pair};
use crate::packed_blocks::layout::{LINE, term};
use crate::panels::PANEL_WIDTH;

/// Numbers are cut to bf16, not rounded: this much larger, they are on average as if they had been rounded. A cut takes half a unit
/// in the last place on average, which is `0.5 / 128` of a power of two, and a number is 1.44 of its power of two on average.
const GROWTH: f32 = 1.0 + 0.5 / (128.0 * 1.44);

/// The power of two in whose mantissa bit `bit` counts one.
const fn base(bit: u32) -> u32 {
    // 127 is the exponent of one, whose mantissa has 23 bits.
    (127 + 23 - bit) << 23
}

/// A group of a panel in bf16.
///
/// # Safety
/// `lines` has the `BITS` lines of a group, `factors` two times 16 factors, `tile` room for 16 lines.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn group<const BITS: usize, const TERM: u8>(
    lines: *const u8,
    factors: *const f32,
    offset: u8,
    tile: *mut u8,
) {
    let growth = _mm512_set1_ps(GROWTH);
    // SAFETY: the caller's promise.
    let factors = unsafe { [_mm512_loadu_ps(factors), _mm512_loadu_ps(factors.add(PANEL_WIDTH))] };
    let factors = factors.map(|factor| _mm512_mul_ps(factor, growth));
    let zero = _mm512_setzero_ps();
    let factor = |half: usize| if TERM == term::HALVES { factors[half] } else { factors[0] };
    let minimum = if TERM == term::MINIMUM { factors[1] } else { zero };
    // `-(base + offset) a - minimum`, where bit `bit` counts one.
    let addend = |bit: u32, a: __m512| {
        let base = _mm512_set1_ps(f32::from_bits(base(bit)) + f32::from(offset));
        _mm512_fnmsub_ps(base, a, minimum)
    };
    // SAFETY: the caller's promise.
    unsafe {
        if BITS == 4 {
            let a = factors[0];
            let addends = [addend(12, a), addend(16, a)];
            for j in 0..4 {
                let line = load(lines.add(j * LINE));
                // The low bits of byte `i` come to bit 12, the high bits to bit 16.
                let at = [
                    _mm512_slli_epi32::<12>(line),
                    _mm512_slli_epi32::<4>(line),
                    _mm512_srli_epi32::<4>(line),
                    _mm512_srli_epi32::<12>(line),
                ];
                let low = at.map(|x| _mm512_fmadd_ps(counted::<12, 0xF>(x), a, addends[0]));
                let high = at.map(|x| _mm512_fmadd_ps(counted::<16, 0xF>(x), a, addends[1]));
                store_quad(low, tile.add(2 * j * LINE));
                store_quad(high, tile.add((8 + 2 * j) * LINE));
            }
        } else {
            let (a, addends) =
                ([factor(0), factor(1)], [addend(8, factor(0)), addend(8, factor(1))]);
            for j in 0..4 {
                for (half, line) in pair::<BITS>(lines, j).into_iter().enumerate() {
                    let at = [
                        _mm512_slli_epi32::<8>(line),
                        line,
                        _mm512_srli_epi32::<8>(line),
                        _mm512_srli_epi32::<16>(line),
                    ];
                    let numbers =
                        at.map(|x| _mm512_fmadd_ps(counted::<8, 0xFF>(x), a[half], addends[half]));
                    store_quad(numbers, tile.add((8 * half + 2 * j) * LINE));
                }
            }
        }
    }
}

/// `base + code` of the code at a bit of each lane.
#[inline]
#[target_feature(enable = "avx512f")]
fn counted<const BIT: u32, const MASK: i32>(x: __m512i) -> __m512 {
    const AND_OR: i32 = 0xEA;
    let mask = _mm512_set1_epi32(MASK << BIT);
    let base = _mm512_set1_epi32(base(BIT).cast_signed());
    _mm512_castsi512_ps(_mm512_ternarylogic_epi32::<AND_OR>(x, mask, base))
}

/// Two lines of pairs of four consecutive numbers of 16 columns, cut to bf16.
///
/// # Safety
/// There is room for two lines.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn store_quad(numbers: [__m512; 4], out: *mut u8) {
    // In each lane the upper two bytes of the first number come below those of the second.
    let order = _mm512_set4_epi32(0x0F0E_0F0E, 0x0B0A_0B0A, 0x0706_0706, 0x0302_0302);
    for i in 0..2 {
        let [even, mut odd] = [numbers[2 * i], numbers[2 * i + 1]].map(|x| _mm512_castps_si512(x));
        // SAFETY: the instruction is of AVX-512 BW; the rest is the caller's promise.
        unsafe {
            // The intrinsic becomes a VPERMT2W, which takes three times as long.
            asm!(
                "vpshufb {odd}{{{low}}}, {even}, {order}",
                odd = inout(zmm_reg) odd, low = in(kreg) 0x3333_3333_3333_3333_u64,
                even = in(zmm_reg) even, order = in(zmm_reg) order,
                options(pure, nomem, nostack, preserves_flags),
            );
            _mm512_storeu_si512(out.add(i * LINE).cast(), odd);
        }
    }
}
