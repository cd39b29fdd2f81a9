//! AVX2: a lane is a row of the matrix, eight at a time. VPMADDUBSW multiplies half a line of bytes by four codes of a row; its 16-bit sums
//! are added over as many lines as cannot overflow, then widened.
//!
//! A span of a panel is unpacked to bytes in the nearest cache; tiles of up to 4 rows by half a panel pass over it.
#![expect(unsafe_code, reason = "AVX2 intrinsics on pointers into checked slices")]

use std::arch::x86_64::*;

use super::layout::{BYTE_LINES, GROUP, LINE, term};
use super::{Part, RECORD};
use crate::matmul::Write;
use crate::panels::PANEL_WIDTH;
use crate::pool::{TileScratch, reinterpret};

mod unpack;

const TILE_ROWS: usize = 4;

/// Groups that are unpacked together: 10 KiB.
const SPAN: usize = 16;

/// Lanes of a register.
const LANES: usize = 8;

/// # Safety
/// As [`super::multiply`], on a processor with AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn multiply(part: &Part<'_>, scratch: &mut TileScratch) {
    let layout = part.weight.layout;
    // Lines whose products are added in 16 bits: 127 * 2 * lines * (2^bits - 1) is below 2^15. Eight bits are taken as signed, one line at a
    // time: 127 * 2 * 128 is below 2^15 too.
    // SAFETY: the caller's promise.
    unsafe {
        match (layout.bits, layout.term()) {
            (4, term::OFFSET) => panels::<{ term::OFFSET }, 8>(part, scratch),
            (4, _) => panels::<{ term::MINIMUM }, 8>(part, scratch),
            (5, term::OFFSET) => panels::<{ term::OFFSET }, 4>(part, scratch),
            (5, _) => panels::<{ term::MINIMUM }, 4>(part, scratch),
            (6, _) => panels::<{ term::HALVES }, 2>(part, scratch),
            _ => panels::<{ term::OFFSET }, 1>(part, scratch),
        }
    }
}

/// A span of an unpacked panel.
struct Span<'a> {
    lines: &'a [u8],
    /// `[groups, 2, 16]`.
    factors: &'a [f32],
    first_group: usize,
    n_groups: usize,
    panel: usize,
}

/// # Safety
/// As [`multiply`], for the weight's term and bits.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn panels<const TERM: u8, const BATCH: usize>(part: &Part<'_>, scratch: &mut TileScratch) {
    let lens = [SPAN * BYTE_LINES * LINE / size_of::<f32>(), SPAN * 2 * PANEL_WIDTH];
    let [lines, factors] = scratch.floats(lens);
    let lines = reinterpret::<u8>(lines);
    let n_all = part.rows.k / GROUP;
    for panel in part.panels() {
        for first_group in (0..n_all.max(1)).step_by(SPAN) {
            let n_groups = SPAN.min(n_all - first_group);
            let lines = &mut lines[..n_groups * BYTE_LINES * LINE];
            let subtracted = if BATCH == 1 { part.weight.layout.offset() } else { 0 };
            unpack::span(part.weight, panel, first_group, subtracted, lines, factors);
            let span = Span { lines, factors, first_group, n_groups, panel };
            for bundle in part.bundles() {
                let n_rows = part.rows.bundle(bundle).1;
                for row in (0..n_rows).step_by(TILE_ROWS) {
                    for half in 0..2 {
                        // SAFETY: the rows lie in the bundle; the rest is the caller's promise.
                        unsafe {
                            match n_rows - row {
                                1 => tile::<TERM, BATCH, 1>(part, &span, bundle, row, half),
                                2 => tile::<TERM, BATCH, 2>(part, &span, bundle, row, half),
                                3 => tile::<TERM, BATCH, 3>(part, &span, bundle, row, half),
                                _ => tile::<TERM, BATCH, 4>(part, &span, bundle, row, half),
                            }
                        }
                    }
                }
            }
        }
    }
}

/// # Safety
/// As [`panels`]; the bundle has `ROWS` rows from `row` on.
#[target_feature(enable = "avx2,fma")]
unsafe fn tile<const TERM: u8, const BATCH: usize, const ROWS: usize>(
    part: &Part<'_>,
    span: &Span<'_>,
    bundle: usize,
    row: usize,
    half: usize,
) {
    let (records, n_rows) = part.rows.bundle(bundle);
    let records = &records[span.first_group * n_rows * RECORD..][..span.n_groups * n_rows * RECORD];
    assert!(row + ROWS <= n_rows && span.lines.len() == span.n_groups * BYTE_LINES * LINE);
    assert!(span.factors.len() >= span.n_groups * 2 * PANEL_WIDTH, "factors of the groups");
    let n_columns = part.width(span.panel).saturating_sub(half * LANES).min(LANES);
    let mask = mask(n_columns);
    let offset = _mm256_set1_ps(f32::from(part.weight.layout.offset()));
    let out_at = |r: usize| part.out_at(bundle + row + r, span.panel).wrapping_add(half * LANES);
    // SAFETY: records and span have `n_groups` groups, each record `n_rows` rows; the output is the caller's, as far as the mask is set.
    unsafe {
        let mut acc = [_mm256_setzero_ps(); ROWS];
        if part.write_at(span.first_group) == Write::Accumulate {
            for r in 0..ROWS {
                acc[r] = _mm256_maskload_ps(out_at(r), mask);
            }
        }
        for g in 0..span.n_groups {
            let record = records.as_ptr().add(g * n_rows * RECORD);
            let (codes, numbers) = (record.add(row * GROUP), record.add(n_rows * GROUP));
            let lines = span.lines.as_ptr().add(g * BYTE_LINES * LINE + half * LINE / 2);
            let factors = span.factors.as_ptr().add(g * 2 * PANEL_WIDTH + half * LANES);
            let factors = [_mm256_loadu_ps(factors), _mm256_loadu_ps(factors.add(PANEL_WIDTH))];
            let mut sums = [[_mm256_setzero_si256(); 2]; ROWS];
            for first in (0..BYTE_LINES).step_by(BATCH) {
                let products = dot::<BATCH, ROWS>(lines, codes, first);
                for r in 0..ROWS {
                    if TERM == term::HALVES && first >= BYTE_LINES / 2 {
                        sums[r][1] = _mm256_add_epi32(sums[r][1], products[r]);
                    } else {
                        sums[r][0] = _mm256_add_epi32(sums[r][0], products[r]);
                    }
                }
            }
            for r in 0..ROWS {
                let numbers = numbers.cast::<f32>().add(row + r);
                acc[r] =
                    add_group::<TERM, BATCH>(acc[r], sums[r], factors, offset, numbers, n_rows);
            }
        }
        for r in 0..ROWS {
            _mm256_maskstore_ps(out_at(r), mask, acc[r]);
        }
    }
}

/// The sums over `BATCH` lines from `first` on.
///
/// # Safety
/// `lines` are the halves of the lines of a group, `codes` those of `ROWS` rows.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn dot<const BATCH: usize, const ROWS: usize>(
    lines: *const u8,
    codes: *const u8,
    first: usize,
) -> [__m256i; ROWS] {
    let mut sums = [_mm256_setzero_si256(); ROWS];
    for line in first..first + BATCH {
        // SAFETY: within the group and the rows by the caller's promise.
        unsafe {
            let b = _mm256_loadu_si256(lines.add(line * LINE).cast());
            for r in 0..ROWS {
                let quad = codes.add(r * GROUP + 4 * line).cast::<i32>().read_unaligned();
                let quad = _mm256_set1_epi32(quad);
                let products = if BATCH == 1 {
                    _mm256_maddubs_epi16(_mm256_abs_epi8(b), _mm256_sign_epi8(quad, b))
                } else {
                    _mm256_maddubs_epi16(b, quad)
                };
                sums[r] = _mm256_add_epi16(sums[r], products);
            }
        }
    }
    let ones = _mm256_set1_epi16(1);
    sums.map(|sum| _mm256_madd_epi16(sum, ones))
}

/// `acc + s * t` from the integer sums over both halves of a group; codes are unsigned but for those of eight bits (a `BATCH` of 1).
///
/// # Safety
/// `numbers` is readable at four distances of `stride`: scale and sums of a row's group.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn add_group<const TERM: u8, const BATCH: usize>(
    acc: __m256,
    sums: [__m256i; 2],
    [first, second]: [__m256; 2],
    offset: __m256,
    numbers: *const f32,
    stride: usize,
) -> __m256 {
    // SAFETY: the caller's promise.
    let number = |i: usize| unsafe { _mm256_set1_ps(numbers.add(i * stride).read_unaligned()) };
    let sums = sums.map(|sum| _mm256_cvtepi32_ps(sum));
    let t = match TERM {
        term::OFFSET if BATCH == 1 => _mm256_mul_ps(first, sums[0]),
        term::OFFSET => _mm256_mul_ps(first, _mm256_fnmadd_ps(offset, number(1), sums[0])),
        term::MINIMUM => _mm256_fnmadd_ps(number(1), second, _mm256_mul_ps(first, sums[0])),
        _ => {
            let half = |i: usize| _mm256_fnmadd_ps(offset, number(2 + i), sums[i]);
            _mm256_fmadd_ps(second, half(1), _mm256_mul_ps(first, half(0)))
        }
    };
    _mm256_fmadd_ps(number(0), t, acc)
}

/// The first `n` lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn mask(n: usize) -> __m256i {
    _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
}
