//! AVX2: a lane is a row of the matrix, eight at a time. VPMADDUBSW multiplies half a line by four codes of a row; its
//! 16-bit sums are added over as many lines as cannot overflow, then widened. Where the processor has AVX-VNNI, VPDPBUSD adds
//! products in 32 bits instead: as these are whole numbers, the bits are the same.
//!
//! A tile is up to 4 rows by half a panel. The rows of one bundle read packed lines and unpack them in registers; for more,
//! spans of a panel are unpacked to bytes in the nearest cache first.
#![expect(unsafe_code, reason = "AVX2 intrinsics on pointers into checked slices")]

use std::arch::asm;
use std::arch::x86_64::*;

use super::layout::{BYTE_LINES, GROUP, LINE, SUPER_GROUPS, term};
use super::{BUNDLE, Part, RECORD, SPAN};
use crate::lanes::avx2::mask;
use crate::matmul::Write;
use crate::panels::PANEL_WIDTH;
use crate::pool::{TileScratch, reinterpret};
use crate::prefetch::{self, prefetch};

mod unpack;

/// Most rows of a tile.
const TILE_ROWS: usize = 4;

/// Lanes of a register.
const LANES: usize = 8;

/// How sums of products of bytes are added.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Adding {
    /// In 32 bits, by AVX-VNNI.
    Vnni,
    /// In 16 bits over so many lines, then in 32.
    Lines(usize),
    /// In 32 bits, line by line, codes being taken as signed.
    SignedLines,
}

/// For each number of bits of a code the lines whose products are added in 16 bits: `127 * 2 * lines * (2^bits - 1)` is below 2^15. Eight
/// bits are taken as signed: `127 * 2 * 128` is below 2^15 too.
const fn adding(code_bits: usize, has_vnni: bool) -> Adding {
    match code_bits {
        _ if has_vnni => Adding::Vnni,
        4 => Adding::Lines(8),
        5 => Adding::Lines(4),
        6 => Adding::Lines(2),
        _ => Adding::SignedLines,
    }
}

/// # Safety
/// As [`super::multiply`], on a processor with AVX2, FMA and F16C, and AVX-VNNI if `VNNI`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn multiply<const VNNI: bool>(part: &Part<'_>, scratch: &mut TileScratch) {
    let layout = part.weight.layout;
    // SAFETY: the caller's promise.
    unsafe {
        match (part.n_rows <= BUNDLE, layout.bits, layout.term()) {
            (true, 4, term::OFFSET) => packed_panels::<4, VNNI, { term::OFFSET }>(part),
            (true, 4, _) => packed_panels::<4, VNNI, { term::MINIMUM }>(part),
            (true, 5, term::OFFSET) => packed_panels::<5, VNNI, { term::OFFSET }>(part),
            (true, 5, _) => packed_panels::<5, VNNI, { term::MINIMUM }>(part),
            (true, 6, _) => packed_panels::<6, VNNI, { term::HALVES }>(part),
            (true, ..) => packed_panels::<8, VNNI, { term::OFFSET }>(part),
            // With AVX-VNNI codes are bytes, whatever their bits.
            (_, _, term::OFFSET) if VNNI => {
                unpacked_panels::<8, true, { term::OFFSET }>(part, scratch)
            }
            (_, _, term::MINIMUM) if VNNI => {
                unpacked_panels::<8, true, { term::MINIMUM }>(part, scratch)
            }
            _ if VNNI => unpacked_panels::<8, true, { term::HALVES }>(part, scratch),
            (_, 4, term::OFFSET) => unpacked_panels::<4, false, { term::OFFSET }>(part, scratch),
            (_, 4, _) => unpacked_panels::<4, false, { term::MINIMUM }>(part, scratch),
            (_, 5, term::OFFSET) => unpacked_panels::<5, false, { term::OFFSET }>(part, scratch),
            (_, 5, _) => unpacked_panels::<5, false, { term::MINIMUM }>(part, scratch),
            (_, 6, _) => unpacked_panels::<6, false, { term::HALVES }>(part, scratch),
            _ => unpacked_panels::<8, false, { term::OFFSET }>(part, scratch),
        }
    }
}

/// Some rows of a bundle by half a panel, over consecutive groups.
#[derive(Clone, Copy)]
struct Tile {
    /// Record of the first group.
    records: *const u8,
    /// Rows of the bundle.
    n_rows: usize,
    /// First row of the tile in the bundle.
    row: usize,
    /// Half of the first line of the first group.
    lines: *const u8,
    /// The half's, in `[groups, 2, 16]`.
    factors: *const f32,
    n_groups: usize,
    /// Of codes.
    offset: f32,
    out: *mut f32,
    out_stride: usize,
    /// Columns that the output has.
    n_columns: usize,
    write: Write,
}

/// Operands of the tiles of a bundle and a panel.
#[derive(Clone, Copy)]
struct Span {
    bundle: usize,
    panel: usize,
    first_group: usize,
    n_groups: usize,
    lines: *const u8,
    factors: *const f32,
}

/// The rows of a bundle by panels whose lines are unpacked in registers.
///
/// # Safety
/// As [`multiply`], for the weight's bits and term.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn packed_panels<const BITS: usize, const VNNI: bool, const TERM: u8>(part: &Part<'_>) {
    let layout = part.weight.layout;
    assert_eq!(layout.bits, BITS, "lines of a group");
    let n_all = part.rows.k / GROUP;
    for panel in part.panels() {
        let (header, lines) = part.weight.panel(panel);
        let mut factors = [0.0; SUPER_GROUPS * 2 * PANEL_WIDTH];
        for first_group in (0..n_all.max(1)).step_by(SUPER_GROUPS) {
            let n_groups = SUPER_GROUPS.min(n_all - first_group);
            let header = layout.blocks_header(header, first_group, n_groups);
            prefetch(header.as_ptr().wrapping_add(prefetch::DISTANCE), header.len());
            let lines = lines[first_group * BITS * LINE..].as_ptr();
            let bundle = part.row;
            // SAFETY: header and lines have `n_groups` groups, of whole blocks; the rest is the caller's promise.
            unsafe {
                unpack::factors(layout, header.as_ptr(), n_groups, factors.as_mut_ptr());
                let factors = factors.as_ptr();
                let span = Span { bundle, panel, first_group, n_groups, lines, factors };
                tiles::<BITS, VNNI, TERM, true>(part, span);
            }
        }
    }
}

/// All rows of a part by panels whose lines are unpacked to bytes first.
///
/// # Safety
/// As [`multiply`], for the weight's bits and term.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn unpacked_panels<const BITS: usize, const VNNI: bool, const TERM: u8>(
    part: &Part<'_>,
    scratch: &mut TileScratch,
) {
    let lens = [SPAN * BYTE_LINES * LINE / size_of::<f32>(), SPAN * 2 * PANEL_WIDTH];
    let [lines, factors] = scratch.floats(lens);
    let lines = reinterpret::<u8>(lines);
    let n_all = part.rows.k / GROUP;
    // Rows of a span stay in the second cache for all panels.
    for first_group in (0..n_all.max(1)).step_by(SPAN) {
        let n_groups = SPAN.min(n_all - first_group);
        let lines = &mut lines[..n_groups * BYTE_LINES * LINE];
        for panel in part.panels() {
            unpack::span(part.weight, panel, first_group, lines, factors);
            let (lines, factors) = (lines.as_ptr(), factors.as_ptr());
            for bundle in part.bundles() {
                let span = Span { bundle, panel, first_group, n_groups, lines, factors };
                // SAFETY: lines and factors have `n_groups` groups; the rest is the caller's promise.
                unsafe { tiles::<BITS, VNNI, TERM, false>(part, span) };
            }
        }
    }
}

/// # Safety
/// As [`multiply`]; lines and factors have the span's groups.
#[target_feature(enable = "avx2,fma")]
unsafe fn tiles<const BITS: usize, const VNNI: bool, const TERM: u8, const IS_PACKED: bool>(
    part: &Part<'_>,
    span: Span,
) {
    let (records, n_rows) = part.rows.bundle(span.bundle);
    let records = &records[span.first_group * n_rows * RECORD..];
    let width = part.width(span.panel);
    for row in (0..n_rows).step_by(TILE_ROWS) {
        for half in 0..width.div_ceil(LANES) {
            let tile = Tile {
                records: records.as_ptr(),
                n_rows,
                row,
                lines: span.lines.wrapping_add(half * LINE / 2),
                factors: span.factors.wrapping_add(half * LANES),
                n_groups: span.n_groups,
                offset: f32::from(part.weight.layout.offset()),
                out: part.out_at(span.bundle + row, span.panel).wrapping_add(half * LANES),
                out_stride: part.out_stride,
                n_columns: LANES.min(width - half * LANES),
                write: part.write_at(span.first_group),
            };
            // SAFETY: the rows lie in the bundle; the rest is the caller's promise.
            unsafe {
                match n_rows - row {
                    1 => multiply_tile::<BITS, VNNI, TERM, IS_PACKED, 1>(&tile),
                    2 => multiply_tile::<BITS, VNNI, TERM, IS_PACKED, 2>(&tile),
                    3 => multiply_tile::<BITS, VNNI, TERM, IS_PACKED, 3>(&tile),
                    _ => multiply_tile::<BITS, VNNI, TERM, IS_PACKED, 4>(&tile),
                }
            }
        }
    }
}

/// # Safety
/// Records have `n_groups` groups with `ROWS` rows from the tile's first on, lines as many of `BITS` lines, or of [`BYTE_LINES`] where they
/// are not packed, factors as many; the output holds the rows and columns; the processor has AVX-VNNI if `VNNI`.
#[target_feature(enable = "avx2,fma")]
unsafe fn multiply_tile<
    const BITS: usize,
    const VNNI: bool,
    const TERM: u8,
    const IS_PACKED: bool,
    const ROWS: usize,
>(
    tile: &Tile,
) {
    let Tile { n_rows, row, out, out_stride, .. } = *tile;
    let n_lines = if IS_PACKED { BITS } else { BYTE_LINES };
    let (mask, offset) = (mask(tile.n_columns), _mm256_set1_ps(tile.offset));
    let mut acc = [_mm256_setzero_ps(); ROWS];
    // SAFETY: the caller's promise; a record has the codes of all rows, then their numbers.
    unsafe {
        if tile.write == Write::Accumulate {
            for r in 0..ROWS {
                acc[r] = _mm256_maskload_ps(out.wrapping_add(r * out_stride), mask);
            }
        }
        for g in 0..tile.n_groups {
            let record = tile.records.add(g * n_rows * RECORD);
            let lines = tile.lines.add(g * n_lines * LINE);
            if IS_PACKED {
                prefetch(lines.wrapping_add(prefetch::DISTANCE), n_lines * LINE);
            }
            let sums = dot::<BITS, VNNI, IS_PACKED, ROWS>(lines, record.add(row * GROUP));
            let factors = tile.factors.add(g * 2 * PANEL_WIDTH);
            let factors = [_mm256_loadu_ps(factors), _mm256_loadu_ps(factors.add(PANEL_WIDTH))];
            for r in 0..ROWS {
                let numbers = record.add(n_rows * GROUP).cast::<f32>().add(row + r);
                acc[r] = add_group::<BITS, VNNI, TERM>(
                    acc[r], sums[r], factors, offset, numbers, n_rows,
                );
            }
        }
        for r in 0..ROWS {
            _mm256_maskstore_ps(out.wrapping_add(r * out_stride), mask, acc[r]);
        }
    }
}

/// The integer sums of `ROWS` rows over both halves of a group; where all lines are added in 16 bits, one has the sum of both.
///
/// # Safety
/// `lines` are the halves of the lines of a group, `codes` those of the rows; the processor has AVX-VNNI if `VNNI`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn dot<const BITS: usize, const VNNI: bool, const IS_PACKED: bool, const ROWS: usize>(
    lines: *const u8,
    codes: *const u8,
) -> [[__m256i; 2]; ROWS] {
    // SAFETY: both halves of the caller's lines and codes.
    let [first, second] = unsafe {
        if IS_PACKED && BITS < BYTE_LINES {
            let pair = |j| unpack::pair::<BITS>(lines, j);
            add_lines::<BITS, VNNI, ROWS, 2>(pair, codes)
        } else {
            // Byte lines come in any order: one half after the other needs fewer registers.
            let (middle, middle_codes) = (lines.add(4 * LINE), codes.add(GROUP / 2));
            let first = |j| [unpack::load(lines, j)];
            let second = |j| [unpack::load(middle, j)];
            let [first] = add_lines::<BITS, VNNI, ROWS, 1>(first, codes);
            let [second] = add_lines::<BITS, VNNI, ROWS, 1>(second, middle_codes);
            [first, second]
        }
    };
    let widened = |sum: __m256i| _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
    std::array::from_fn(|r| match adding(BITS, VNNI) {
        Adding::Lines(8) => {
            [widened(_mm256_add_epi16(first[r], second[r])), _mm256_setzero_si256()]
        }
        Adding::Lines(4) => [widened(first[r]), widened(second[r])],
        _ => [first[r], second[r]],
    })
}

/// Sums of `ROWS` rows over the four lines of each of `HALVES` halves of a group: in 16 bits where so many lines cannot
/// overflow, else in 32.
///
/// # Safety
/// `codes` are those of the rows from the first of the halves on; the processor has AVX-VNNI if `VNNI`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn add_lines<const BITS: usize, const VNNI: bool, const ROWS: usize, const HALVES: usize>(
    lines: impl Fn(usize) -> [__m256i; HALVES],
    codes: *const u8,
) -> [[__m256i; ROWS]; HALVES] {
    let ones = _mm256_set1_epi16(1);
    let mut sums = [[_mm256_setzero_si256(); ROWS]; HALVES];
    let mut shorts = sums;
    for j in 0..4 {
        let lines = lines(j);
        for (half, line) in lines.into_iter().enumerate() {
            for r in 0..ROWS {
                let sum = &mut sums[half][r];
                let quad = codes.wrapping_add(r * GROUP + half * GROUP / 2 + 4 * j).cast::<i32>();
                // SAFETY: within the rows by the caller's promise.
                let quad = _mm256_set1_epi32(unsafe { quad.read_unaligned() });
                match adding(BITS, VNNI) {
                    // SAFETY: the caller's promise.
                    Adding::Vnni => *sum = unsafe { vnni_sum(*sum, line, quad) },
                    Adding::SignedLines => {
                        let products = _mm256_madd_epi16(signed_products(line, quad), ones);
                        *sum = _mm256_add_epi32(*sum, products);
                    }
                    Adding::Lines(n) => {
                        let short = &mut shorts[half][r];
                        *short = _mm256_add_epi16(*short, _mm256_maddubs_epi16(line, quad));
                        if n == 2 && j % 2 == 1 {
                            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(*short, ones));
                            *short = _mm256_setzero_si256();
                        }
                    }
                }
            }
        }
    }
    if let Adding::Lines(4 | 8) = adding(BITS, VNNI) { shorts } else { sums }
}

/// Sums of two products of bytes of a line with codes, the line's less 128.
#[inline]
#[target_feature(enable = "avx2")]
fn signed_products(line: __m256i, codes: __m256i) -> __m256i {
    let signed = _mm256_xor_si256(line, _mm256_set1_epi8(-128));
    _mm256_maddubs_epi16(_mm256_abs_epi8(signed), _mm256_sign_epi8(codes, signed))
}

/// `sum` and four products of bytes of a line with codes. In assembly: a function compiled for AVX-VNNI could not become a part
/// of those compiled for AVX2.
///
/// # Safety
/// The processor has AVX-VNNI.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn vnni_sum(mut sum: __m256i, line: __m256i, codes: __m256i) -> __m256i {
    // SAFETY: the caller's promise; it changes nothing but its first register.
    unsafe {
        asm!(
            "{{vex}} vpdpbusd {sum}, {line}, {codes}",
            sum = inout(ymm_reg) sum,
            line = in(ymm_reg) line,
            codes = in(ymm_reg) codes,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

/// `acc + s * t` from the integer sums over both halves of a group.
///
/// # Safety
/// `numbers` is readable at four distances of `stride`: scale and sums of a row's group.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn add_group<const BITS: usize, const VNNI: bool, const TERM: u8>(
    acc: __m256,
    sums: [__m256i; 2],
    [first, second]: [__m256; 2],
    offset: __m256,
    numbers: *const f32,
    stride: usize,
) -> __m256 {
    // SAFETY: the caller's promise.
    let number = |i: usize| unsafe { _mm256_set1_ps(numbers.add(i * stride).read_unaligned()) };
    let sum = || _mm256_cvtepi32_ps(_mm256_add_epi32(sums[0], sums[1]));
    let t = match TERM {
        term::OFFSET if adding(BITS, VNNI) == Adding::SignedLines => _mm256_mul_ps(first, sum()),
        term::OFFSET => _mm256_mul_ps(first, _mm256_fnmadd_ps(offset, number(1), sum())),
        term::MINIMUM => _mm256_fnmadd_ps(number(1), second, _mm256_mul_ps(first, sum())),
        _ => {
            let half =
                |i: usize| _mm256_fnmadd_ps(offset, number(2 + i), _mm256_cvtepi32_ps(sums[i]));
            _mm256_fmadd_ps(second, half(1), _mm256_mul_ps(first, half(0)))
        }
    };
    _mm256_fmadd_ps(number(0), t, acc)
}
