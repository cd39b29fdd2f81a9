//! Packed lines to lines of bytes, and headers to f32 factors.

use std::arch::x86_64::*;

use crate::packed_blocks::PackedBlocks;
use crate::packed_blocks::layout::{BYTE_LINES, FACTOR, LINE, Layout, SUPER_GROUPS, Scales};
use crate::panels::PANEL_WIDTH;

/// Groups of a panel from `first_group` on, which begins a block: `lines` gets the codes less `subtracted`, `factors` those of
/// the groups, `[groups, 2, 16]`.
#[target_feature(enable = "avx512f,avx512bw")]
pub(in crate::packed_blocks) fn span(
    weight: PackedBlocks<'_>,
    panel: usize,
    first_group: usize,
    subtracted: u8,
    lines: &mut [u8],
    factors: &mut [f32],
) {
    let layout = weight.layout;
    let n_groups = lines.len() / (BYTE_LINES * LINE);
    let (header, packed) = weight.panel(panel);
    let header = layout.blocks_header(header, first_group, n_groups);
    let packed = &packed[first_group * layout.group_len()..][..n_groups * layout.group_len()];
    assert!(factors.len() >= n_groups * 2 * PANEL_WIDTH, "factors of {n_groups} groups");
    let subtracted = _mm512_set1_epi8(subtracted.cast_signed());
    // SAFETY: the slices were cut to `n_groups` groups, which are whole blocks.
    unsafe {
        self::factors(layout, header.as_ptr(), n_groups, factors.as_mut_ptr());
        let (packed, lines) = (packed.as_ptr(), lines.as_mut_ptr());
        match layout.bits {
            4 => byte_lines::<4>(packed, n_groups, subtracted, lines),
            5 => byte_lines::<5>(packed, n_groups, subtracted, lines),
            6 => byte_lines::<6>(packed, n_groups, subtracted, lines),
            _ => byte_lines::<8>(packed, n_groups, subtracted, lines),
        }
    }
}

/// # Safety
/// `packed` has `n_groups` groups of `BITS` lines, `out` as many of eight.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn byte_lines<const BITS: usize>(
    packed: *const u8,
    n_groups: usize,
    subtracted: __m512i,
    out: *mut u8,
) {
    for g in 0..n_groups {
        for j in 0..4 {
            // SAFETY: the caller's promise.
            unsafe {
                let pair = pair::<BITS>(packed.add(g * BITS * LINE), j);
                let out = out.add((g * BYTE_LINES + j) * LINE);
                _mm512_storeu_si512(out.cast(), _mm512_sub_epi8(pair[0], subtracted));
                _mm512_storeu_si512(out.add(4 * LINE).cast(), _mm512_sub_epi8(pair[1], subtracted));
            }
        }
    }
}

/// # Safety
/// 64 bytes are readable.
#[inline]
#[target_feature(enable = "avx512f")]
pub(in crate::packed_blocks) unsafe fn load(line: *const u8) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe { _mm512_loadu_si512(line.cast()) }
}

/// The byte lines `j` and `4 + j` of a group.
///
/// # Safety
/// `lines` has the `BITS` lines of the group; j is below 4.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(in crate::packed_blocks) unsafe fn pair<const BITS: usize>(
    lines: *const u8,
    j: usize,
) -> [__m512i; 2] {
    // SAFETY: the caller's promise.
    let line = |i: usize| unsafe { load(lines.add(i * LINE)) };
    if BITS == 8 {
        return [line(j), line(4 + j)];
    }
    let low_bits = _mm512_set1_epi8(15);
    let low = _mm512_and_si512(line(j), low_bits);
    let high = _mm512_and_si512(_mm512_srli_epi16::<4>(line(j)), low_bits);
    let (planes, mask) = match BITS {
        5 => ([shifted(line(4), 4 - j as i32), shifted(line(4), -(j as i32))], 0x10),
        6 => ([4, 5].map(|i| shifted(line(i), 4 - 2 * j as i32)), 0x30),
        _ => return [low, high],
    };
    let mask = _mm512_set1_epi8(mask);
    [
        _mm512_or_si512(low, _mm512_and_si512(planes[0], mask)),
        _mm512_or_si512(high, _mm512_and_si512(planes[1], mask)),
    ]
}

/// Shifted left, or right where `left` is negative. Bits wander into neighbouring bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn shifted(line: __m512i, left: i32) -> __m512i {
    match left {
        4 => _mm512_slli_epi16::<4>(line),
        3 => _mm512_slli_epi16::<3>(line),
        2 => _mm512_slli_epi16::<2>(line),
        1 => _mm512_slli_epi16::<1>(line),
        -1 => _mm512_srli_epi16::<1>(line),
        -2 => _mm512_srli_epi16::<2>(line),
        -3 => _mm512_srli_epi16::<3>(line),
        _ => line,
    }
}

/// The factors of groups that are whole blocks, `[groups, 2, 16]`; where there is one, the second place is left as it is.
///
/// # Safety
/// `header` has the blocks, `out` room for the factors.
#[target_feature(enable = "avx512f,avx512bw")]
pub(in crate::packed_blocks) unsafe fn factors(
    layout: Layout,
    header: *const u8,
    n_groups: usize,
    out: *mut f32,
) {
    let n_blocks = n_groups / layout.block_groups;
    for block in 0..n_blocks {
        // SAFETY: the caller's promise; a block has the parts that its layout says.
        unsafe {
            let header = header.add(block * layout.block_header());
            let out = out.add(block * layout.block_groups * 2 * PANEL_WIDTH);
            match layout.scales {
                Scales::One => _mm512_storeu_ps(out, halves(header)),
                Scales::WithMinimum => {
                    let minimum = _mm512_sub_ps(_mm512_set1_ps(-0.0), halves(header.add(FACTOR)));
                    _mm512_storeu_ps(out, halves(header));
                    _mm512_storeu_ps(out.add(PANEL_WIDTH), minimum);
                }
                Scales::SixBits => six_bit_factors(header, out),
                Scales::Halves => {
                    let (d, scales) = (halves(header), header.add(FACTOR));
                    for part in 0..2 * SUPER_GROUPS {
                        let scale = _mm_loadu_si128(scales.add(part * PANEL_WIDTH).cast());
                        let scale = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(scale));
                        _mm512_storeu_ps(out.add(part * PANEL_WIDTH), _mm512_mul_ps(d, scale));
                    }
                }
            }
        }
    }
}

/// # Safety
/// `header` has a block of [`Scales::SixBits`], `out` room for its factors.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn six_bit_factors(header: *const u8, out: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        let (d, d_min) = (halves(header), halves(header.add(FACTOR)));
        let lines = [0, 1, 2].map(|i| load(header.add(2 * FACTOR + i * LINE)));
        let high = |line: __m512i, mask: i8| _mm512_and_si512(line, _mm512_set1_epi8(mask));
        let last = _mm512_or_si512(
            _mm512_or_si512(
                high(_mm512_srli_epi16::<6>(lines[0]), 3),
                high(_mm512_srli_epi16::<4>(lines[1]), 12),
            ),
            high(_mm512_srli_epi16::<2>(lines[2]), 48),
        );
        let mut entries = [last; 4];
        for i in 0..3 {
            entries[i] = high(lines[i], 63);
        }
        let entries = entries.as_ptr().cast::<u8>();
        for group in 0..SUPER_GROUPS {
            for (i, factor) in [d, d_min].into_iter().enumerate() {
                let at = (i * SUPER_GROUPS + group) * PANEL_WIDTH;
                let entry = _mm512_cvtepu8_epi32(_mm_loadu_si128(entries.add(at).cast()));
                let product = _mm512_mul_ps(factor, _mm512_cvtepi32_ps(entry));
                _mm512_storeu_ps(out.add((2 * group + i) * PANEL_WIDTH), product);
            }
        }
    }
}

/// The f16 factors of 16 rows.
///
/// # Safety
/// 32 bytes are readable.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn halves(factors: *const u8) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(factors.cast())) }
}
