//! Packed lines to lines of bytes, and headers to f32 factors.

use std::arch::x86_64::*;

use super::LANES;
use crate::packed_blocks::PackedBlocks;
use crate::packed_blocks::layout::{BYTE_LINES, FACTOR, LINE, Layout, SUPER_GROUPS, Scales};
use crate::panels::PANEL_WIDTH;

/// Groups of a panel from `first_group` on, which begins a block: `lines` gets the codes, `factors` those of the groups,
/// `[groups, 2, 16]`.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn span(
    weight: PackedBlocks<'_>,
    panel: usize,
    first_group: usize,
    lines: &mut [u8],
    factors: &mut [f32],
) {
    let layout = weight.layout;
    let n_groups = lines.len() / (BYTE_LINES * LINE);
    let (header, packed) = weight.panel(panel);
    let header = layout.blocks_header(header, first_group, n_groups);
    let packed = &packed[first_group * layout.group_len()..][..n_groups * layout.group_len()];
    assert!(factors.len() >= n_groups * 2 * PANEL_WIDTH, "factors of {n_groups} groups");
    // SAFETY: the slices were cut to `n_groups` groups, which are whole blocks.
    unsafe {
        self::factors(layout, header.as_ptr(), n_groups, factors.as_mut_ptr());
        for half in 0..2 {
            let (packed, lines) = (packed.as_ptr(), lines.as_mut_ptr());
            let (packed, lines) = (packed.wrapping_add(half * 32), lines.wrapping_add(half * 32));
            match layout.bits {
                4 => byte_lines::<4>(packed, n_groups, lines),
                5 => byte_lines::<5>(packed, n_groups, lines),
                6 => byte_lines::<6>(packed, n_groups, lines),
                _ => byte_lines::<8>(packed, n_groups, lines),
            }
        }
    }
}

/// Half of each line.
///
/// # Safety
/// `packed` has `n_groups` groups of `BITS` lines, `out` as many of eight.
#[target_feature(enable = "avx2")]
unsafe fn byte_lines<const BITS: usize>(packed: *const u8, n_groups: usize, out: *mut u8) {
    for g in 0..n_groups {
        for j in 0..4 {
            // SAFETY: the caller's promise.
            unsafe {
                let pair = pair::<BITS>(packed.add(g * BITS * LINE), j);
                let out = out.add((g * BYTE_LINES + j) * LINE);
                _mm256_storeu_si256(out.cast(), pair[0]);
                _mm256_storeu_si256(out.add(4 * LINE).cast(), pair[1]);
            }
        }
    }
}

/// Half of line `j`.
///
/// # Safety
/// `lines` are the halves of so many lines.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn load(lines: *const u8, j: usize) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe { _mm256_loadu_si256(lines.add(j * LINE).cast()) }
}

/// Halves of the byte lines `j` and `4 + j` of a group.
///
/// # Safety
/// `lines` are the halves of the group's `BITS` lines; j is below 4.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn pair<const BITS: usize>(lines: *const u8, j: usize) -> [__m256i; 2] {
    // SAFETY: the caller's promise.
    let line = |i: usize| unsafe { load(lines, i) };
    if BITS == 8 {
        return [line(j), line(4 + j)];
    }
    let low_bits = _mm256_set1_epi8(15);
    let low = _mm256_and_si256(line(j), low_bits);
    let high = _mm256_and_si256(_mm256_srli_epi16::<4>(line(j)), low_bits);
    let (planes, mask) = match BITS {
        5 => ([shifted(line(4), 4 - j as i32), shifted(line(4), -(j as i32))], 0x10),
        6 => ([4, 5].map(|i| shifted(line(i), 4 - 2 * j as i32)), 0x30),
        _ => return [low, high],
    };
    let mask = _mm256_set1_epi8(mask);
    [
        _mm256_or_si256(low, _mm256_and_si256(planes[0], mask)),
        _mm256_or_si256(high, _mm256_and_si256(planes[1], mask)),
    ]
}

/// Shifted left, or right where `left` is negative. Bits wander into neighbouring bytes.
#[inline]
#[target_feature(enable = "avx2")]
fn shifted(line: __m256i, left: i32) -> __m256i {
    match left {
        4 => _mm256_slli_epi16::<4>(line),
        3 => _mm256_slli_epi16::<3>(line),
        2 => _mm256_slli_epi16::<2>(line),
        1 => _mm256_slli_epi16::<1>(line),
        -1 => _mm256_srli_epi16::<1>(line),
        -2 => _mm256_srli_epi16::<2>(line),
        -3 => _mm256_srli_epi16::<3>(line),
        _ => line,
    }
}

/// The factors of groups that are whole blocks, `[groups, 2, 16]`; where there is one, the second place is left as it is.
///
/// # Safety
/// `header` has the blocks, `out` room for the factors.
#[target_feature(enable = "avx2,f16c")]
pub(super) unsafe fn factors(layout: Layout, header: *const u8, n_groups: usize, out: *mut f32) {
    let n_blocks = n_groups / layout.block_groups;
    for (block, half) in (0..n_blocks).flat_map(|block| [(block, 0), (block, 1)]) {
        // SAFETY: the caller's promise; a block has the parts that its layout says.
        unsafe {
            let header = header.add(block * layout.block_header());
            let out = out.add(block * layout.block_groups * 2 * PANEL_WIDTH + half * LANES);
            let d = halves(header, half);
            match layout.scales {
                Scales::One => _mm256_storeu_ps(out, d),
                Scales::WithMinimum => {
                    let minimum = halves(header.add(FACTOR), half);
                    let minimum = _mm256_sub_ps(_mm256_set1_ps(-0.0), minimum);
                    _mm256_storeu_ps(out, d);
                    _mm256_storeu_ps(out.add(PANEL_WIDTH), minimum);
                }
                Scales::SixBits => six_bit_factors(header, half, out),
                Scales::Halves => {
                    for part in 0..2 * SUPER_GROUPS {
                        let scale = header.add(FACTOR + part * PANEL_WIDTH + half * LANES);
                        let scale = _mm256_cvtepi8_epi32(_mm_loadl_epi64(scale.cast()));
                        let product = _mm256_mul_ps(d, _mm256_cvtepi32_ps(scale));
                        _mm256_storeu_ps(out.add(part * PANEL_WIDTH), product);
                    }
                }
            }
        }
    }
}

/// # Safety
/// `header` has a block of [`Scales::SixBits`], `out` room for its factors.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn six_bit_factors(header: *const u8, half: usize, out: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        let factors = [halves(header, half), halves(header.add(FACTOR), half)];
        let lines = header.add(2 * FACTOR);
        let entries =
            |at: usize| _mm256_cvtepu8_epi32(_mm_loadl_epi64(lines.add(at + half * LANES).cast()));
        for entry in 0..2 * SUPER_GROUPS {
            // The last four are in the high bits of the three lines.
            let (line, at) = (entry / 4, entry % 4 * PANEL_WIDTH);
            let value = if line < 3 {
                _mm256_and_si256(entries(line * LINE + at), _mm256_set1_epi32(63))
            } else {
                let low = _mm256_srli_epi32::<6>(entries(at));
                let middle = _mm256_srli_epi32::<6>(entries(LINE + at));
                let high = _mm256_srli_epi32::<6>(entries(2 * LINE + at));
                let low = _mm256_or_si256(low, _mm256_slli_epi32::<2>(middle));
                _mm256_or_si256(low, _mm256_slli_epi32::<4>(high))
            };
            let (i, group) = (entry / SUPER_GROUPS, entry % SUPER_GROUPS);
            let product = _mm256_mul_ps(factors[i], _mm256_cvtepi32_ps(value));
            _mm256_storeu_ps(out.add((2 * group + i) * PANEL_WIDTH), product);
        }
    }
}

/// The f16 factors of half the rows of a panel.
///
/// # Safety
/// 32 bytes are readable.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn halves(factors: *const u8, half: usize) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe { _mm256_cvtph_ps(_mm_loadu_si128(factors.add(half * 2 * LANES).cast())) }
}
