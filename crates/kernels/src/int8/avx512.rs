//! AVX-512 with VNNI: a lane is a row of the matrix, VPDPBUSD multiplies a line by four codes of a row.
//!
//! Few rows: lines are unpacked in registers and used at once. Many: a span of two panels is unpacked to bytes in the nearest cache, and
//! tiles of up to 6 rows by 2 panels (12 integer sums, 12 sums, 2 lines and 1 broadcast of 32 registers) pass over it.
#![expect(unsafe_code, reason = "AVX-512 intrinsics on pointers into checked slices")]

use std::arch::x86_64::*;

use super::layout::{BYTE_LINES, GROUP, LINE, SUPER_GROUPS, term};
use super::{Part, RECORD};
use crate::matmul::Write;
use crate::panels::PANEL_WIDTH;
use crate::pool::{TileScratch, reinterpret};

pub(super) mod unpack;

/// Most rows for which lines are unpacked in registers.
pub(super) const STREAM_ROWS: usize = 4;

/// Bytes that are asked for ahead of those in use.
const PREFETCH: usize = 2048;

const TILE_PANELS: usize = 2;

/// Groups that are unpacked together: with two panels 20 KiB.
const SPAN: usize = 16;

/// # Safety
/// As [`super::multiply`], on a processor with AVX-512 F, BW and VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) unsafe fn multiply(part: &Part<'_>, scratch: &mut TileScratch) {
    let layout = part.weight.layout;
    // SAFETY: the caller's promise.
    unsafe {
        match (part.n_rows <= STREAM_ROWS, layout.bits, layout.term()) {
            (true, 4, term::OFFSET) => stream_panels::<4, { term::OFFSET }>(part),
            (true, 4, _) => stream_panels::<4, { term::MINIMUM }>(part),
            (true, 5, term::OFFSET) => stream_panels::<5, { term::OFFSET }>(part),
            (true, 5, _) => stream_panels::<5, { term::MINIMUM }>(part),
            (true, 6, _) => stream_panels::<6, { term::HALVES }>(part),
            (true, ..) => stream_panels::<8, { term::OFFSET }>(part),
            (false, _, term::OFFSET) => tiles::<{ term::OFFSET }, 6>(part, scratch),
            (false, _, term::MINIMUM) => tiles::<{ term::MINIMUM }, 6>(part, scratch),
            // Twice the integer sums: fewer rows fit.
            (false, ..) => tiles::<{ term::HALVES }, 4>(part, scratch),
        }
    }
}

/// # Safety
/// As [`multiply`], for up to [`STREAM_ROWS`] rows and the weight's bits and term.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn stream_panels<const BITS: usize, const TERM: u8>(part: &Part<'_>) {
    for panel in part.panels() {
        // SAFETY: the caller's promise.
        unsafe {
            match part.n_rows {
                1 => stream::<BITS, TERM, 1>(part, panel),
                2 => stream::<BITS, TERM, 2>(part, panel),
                3 => stream::<BITS, TERM, 3>(part, panel),
                _ => stream::<BITS, TERM, 4>(part, panel),
            }
        }
    }
}

/// # Safety
/// As [`stream_panels`]; the part has `ROWS` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn stream<const BITS: usize, const TERM: u8, const ROWS: usize>(
    part: &Part<'_>,
    panel: usize,
) {
    let layout = part.weight.layout;
    let (header, lines) = part.weight.panel(panel);
    let (records, n_rows) = part.rows.bundle(part.row);
    assert_eq!((n_rows, layout.bits), (ROWS, BITS), "rows and bits");
    let n_groups = part.rows.k / GROUP;
    let (out, mask) = (part.out_at(part.row, panel), mask(part.width(panel)));
    let offset = _mm512_set1_ps(f32::from(layout.offset()));
    let mut factors = [[_mm512_setzero_ps(); 2]; SUPER_GROUPS];
    // SAFETY: header, lines and records have `n_groups` groups, of whole blocks, by the layouts; the output is the caller's.
    unsafe {
        let mut acc = [_mm512_setzero_ps(); ROWS];
        for r in 0..ROWS {
            acc[r] = start(part.write, mask, out.wrapping_add(r * part.out_stride));
        }
        for first in (0..n_groups).step_by(SUPER_GROUPS) {
            let n_span = SUPER_GROUPS.min(n_groups - first);
            let header = header.as_ptr().add(first / layout.block_groups * layout.block_header());
            unpack::factors(layout, header, n_span, factors.as_mut_ptr().cast());
            for g in 0..n_span {
                let lines = lines.as_ptr().add((first + g) * BITS * LINE);
                let record = records.as_ptr().add((first + g) * ROWS * RECORD);
                for line in 0..BITS {
                    _mm_prefetch::<_MM_HINT_T0>(lines.wrapping_add(PREFETCH + line * LINE).cast());
                }
                let mut sums = [[_mm512_setzero_si512(); 2]; ROWS];
                for j in 0..4 {
                    let pair = unpack::pair::<BITS>(lines, j);
                    for r in 0..ROWS {
                        let codes = record.add(r * GROUP + 4 * j);
                        sums[r][0] = _mm512_dpbusd_epi32(sums[r][0], pair[0], quad(codes));
                        sums[r][1] = _mm512_dpbusd_epi32(sums[r][1], pair[1], quad(codes.add(16)));
                    }
                }
                for r in 0..ROWS {
                    let numbers = record.add(ROWS * GROUP).cast::<f32>().add(r);
                    acc[r] = add_group::<TERM>(acc[r], sums[r], factors[g], offset, numbers, ROWS);
                }
            }
        }
        for r in 0..ROWS {
            _mm512_mask_storeu_ps(out.wrapping_add(r * part.out_stride), mask, acc[r]);
        }
    }
}

/// `acc + s * t` from the integer sums over both halves of a group of unsigned codes.
///
/// # Safety
/// `numbers` is readable at four distances of `stride`: scale and sums of a row's group.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn add_group<const TERM: u8>(
    acc: __m512,
    sums: [__m512i; 2],
    [first, second]: [__m512; 2],
    offset: __m512,
    numbers: *const f32,
    stride: usize,
) -> __m512 {
    // SAFETY: the caller's promise.
    let number = |i: usize| unsafe { _mm512_set1_ps(numbers.add(i * stride).read_unaligned()) };
    let sum = || _mm512_cvtepi32_ps(_mm512_add_epi32(sums[0], sums[1]));
    let t = match TERM {
        term::OFFSET => _mm512_mul_ps(first, _mm512_fnmadd_ps(offset, number(1), sum())),
        term::MINIMUM => _mm512_fnmadd_ps(number(1), second, _mm512_mul_ps(first, sum())),
        _ => {
            let half =
                |i: usize| _mm512_fnmadd_ps(offset, number(2 + i), _mm512_cvtepi32_ps(sums[i]));
            _mm512_fmadd_ps(second, half(1), _mm512_mul_ps(first, half(0)))
        }
    };
    _mm512_fmadd_ps(number(0), t, acc)
}

/// Four codes of a row in every lane.
///
/// # Safety
/// They are readable.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn quad(codes: *const u8) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe { _mm512_set1_epi32(codes.cast::<i32>().read_unaligned()) }
}

/// The lanes of a panel of which the output has `width` columns.
pub(super) fn mask(width: usize) -> u16 {
    u16::MAX >> (PANEL_WIDTH - width)
}

/// What sums begin with.
///
/// # Safety
/// To accumulate, `out` is readable where the mask is set.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn start(write: Write, mask: u16, out: *const f32) -> __m512 {
    match write {
        Write::Overwrite => _mm512_setzero_ps(),
        // SAFETY: the caller's promise.
        Write::Accumulate => unsafe { _mm512_maskz_loadu_ps(mask, out) },
    }
}

/// A span of unpacked panels.
#[derive(Clone, Copy)]
struct Span {
    /// Byte lines of the first panel.
    lines: *const u8,
    /// Distance between panels, in bytes.
    lines_stride: usize,
    /// `[panels, SPAN, 2, 16]`.
    factors: *const f32,
    first_group: usize,
    n_groups: usize,
    panel: usize,
}

/// All rows of a part, in tiles of up to `TILE_ROWS` rows, by two panels at a time.
///
/// # Safety
/// As [`multiply`], for the weight's term.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn tiles<const TERM: u8, const TILE_ROWS: usize>(
    part: &Part<'_>,
    scratch: &mut TileScratch,
) {
    const PANEL_LINES: usize = SPAN * BYTE_LINES * LINE;
    const PANEL_FACTORS: usize = SPAN * 2 * PANEL_WIDTH;
    let lens = [TILE_PANELS * PANEL_LINES / size_of::<f32>(), TILE_PANELS * PANEL_FACTORS];
    let [lines, factors] = scratch.floats(lens);
    let lines = reinterpret::<u8>(lines);
    let n_all = part.rows.k / GROUP;
    for panel in part.panels().step_by(TILE_PANELS) {
        let n_panels = TILE_PANELS.min(part.panels().end - panel);
        for first_group in (0..n_all.max(1)).step_by(SPAN) {
            let n_groups = SPAN.min(n_all - first_group);
            for i in 0..n_panels {
                let lines = &mut lines[i * PANEL_LINES..][..n_groups * BYTE_LINES * LINE];
                let factors = &mut factors[i * PANEL_FACTORS..][..PANEL_FACTORS];
                unpack::span(part.weight, panel + i, first_group, 0, lines, factors);
            }
            let span = Span {
                lines: lines.as_ptr(),
                lines_stride: PANEL_LINES,
                factors: factors.as_ptr(),
                first_group,
                n_groups,
                panel,
            };
            for bundle in part.bundles() {
                let n_rows = part.rows.bundle(bundle).1;
                for row in (0..n_rows).step_by(TILE_ROWS) {
                    let rows = TILE_ROWS.min(n_rows - row);
                    // SAFETY: the rows lie in the bundle, the panels in the span; the rest is the caller's promise.
                    unsafe { choose_tile::<TERM>(part, &span, bundle, row, rows, n_panels) };
                }
            }
        }
    }
}

/// # Safety
/// As [`tile`], for `rows` and `panels`.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn choose_tile<const TERM: u8>(
    part: &Part<'_>,
    span: &Span,
    bundle: usize,
    row: usize,
    rows: usize,
    panels: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match (rows, panels) {
            (6, 2) => tile::<TERM, 6, 2>(part, span, bundle, row),
            (5, 2) => tile::<TERM, 5, 2>(part, span, bundle, row),
            (4, 2) => tile::<TERM, 4, 2>(part, span, bundle, row),
            (3, 2) => tile::<TERM, 3, 2>(part, span, bundle, row),
            (2, 2) => tile::<TERM, 2, 2>(part, span, bundle, row),
            (_, 2) => tile::<TERM, 1, 2>(part, span, bundle, row),
            (6, _) => tile::<TERM, 6, 1>(part, span, bundle, row),
            (5, _) => tile::<TERM, 5, 1>(part, span, bundle, row),
            (4, _) => tile::<TERM, 4, 1>(part, span, bundle, row),
            (3, _) => tile::<TERM, 3, 1>(part, span, bundle, row),
            (2, _) => tile::<TERM, 2, 1>(part, span, bundle, row),
            _ => tile::<TERM, 1, 1>(part, span, bundle, row),
        }
    }
}

/// # Safety
/// As [`multiply`]; the bundle has `ROWS` rows from `row` on, the span `PANELS` panels.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn tile<const TERM: u8, const ROWS: usize, const PANELS: usize>(
    part: &Part<'_>,
    span: &Span,
    bundle: usize,
    row: usize,
) {
    let (records, n_rows) = part.rows.bundle(bundle);
    let records = records[span.first_group * n_rows * RECORD..].as_ptr();
    let offset = _mm512_set1_ps(f32::from(part.weight.layout.offset()));
    let write = part.write_at(span.first_group);
    let mut acc = [[_mm512_setzero_ps(); PANELS]; ROWS];
    let masks: [u16; PANELS] = std::array::from_fn(|p| mask(part.width(span.panel + p)));
    // SAFETY: the span and the records have `n_groups` groups, each record `n_rows` rows; the output is the caller's.
    unsafe {
        for r in 0..ROWS {
            for p in 0..PANELS {
                acc[r][p] = start(write, masks[p], part.out_at(bundle + row + r, span.panel + p));
            }
        }
        for g in 0..span.n_groups {
            let record = records.add(g * n_rows * RECORD);
            let lines = span.lines.add(g * BYTE_LINES * LINE);
            let mut sums = [[[_mm512_setzero_si512(); 2]; PANELS]; ROWS];
            for line in 0..BYTE_LINES {
                let mut b = [_mm512_setzero_si512(); PANELS];
                for p in 0..PANELS {
                    b[p] = unpack::load(lines.add(p * span.lines_stride + line * LINE));
                }
                for r in 0..ROWS {
                    let codes = quad(record.add((row + r) * GROUP + 4 * line));
                    for p in 0..PANELS {
                        if TERM == term::HALVES && line >= BYTE_LINES / 2 {
                            sums[r][p][1] = _mm512_dpbusd_epi32(sums[r][p][1], b[p], codes);
                        } else {
                            sums[r][p][0] = _mm512_dpbusd_epi32(sums[r][p][0], b[p], codes);
                        }
                    }
                }
            }
            for p in 0..PANELS {
                let factors = span.factors.add((p * SPAN + g) * 2 * PANEL_WIDTH);
                let factors = [_mm512_loadu_ps(factors), _mm512_loadu_ps(factors.add(PANEL_WIDTH))];
                for r in 0..ROWS {
                    let numbers = record.add(n_rows * GROUP).cast::<f32>().add(row + r);
                    acc[r][p] =
                        add_group::<TERM>(acc[r][p], sums[r][p], factors, offset, numbers, n_rows);
                }
            }
        }
        for r in 0..ROWS {
            for p in 0..PANELS {
                let out = part.out_at(bundle + row + r, span.panel + p);
                _mm512_mask_storeu_ps(out, masks[p], acc[r][p]);
            }
        }
    }
}
