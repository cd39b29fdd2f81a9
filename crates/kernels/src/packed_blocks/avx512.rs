//! AVX-512 with VNNI: a lane is a row of the matrix, VPDPBUSD multiplies a line by four codes of a row.
//!
//! A tile is up to 8 rows by a panel: 16 integer sums, 8 sums, a pair of lines. The rows of one bundle read packed lines and unpack them in
//! registers; for more, spans of a panel are unpacked to bytes in the nearest cache first.
#![expect(unsafe_code, reason = "AVX-512 intrinsics on pointers into checked slices")]

use std::arch::x86_64::*;

use super::layout::{BYTE_LINES, GROUP, LINE, SUPER_GROUPS, term};
use super::{BUNDLE, Part, RECORD, SPAN};
use crate::lanes::avx512::mask;
use crate::matmul::Write;
use crate::panels::PANEL_WIDTH;
use crate::pool::{TileScratch, reinterpret};
use crate::prefetch::{self, prefetch};

pub(super) mod unpack;

/// Most rows of a tile.
pub(super) const TILE_ROWS: usize = 8;

/// # Safety
/// As [`super::multiply`], on a processor with AVX-512 F, BW and VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) unsafe fn multiply(part: &Part<'_>, scratch: &mut TileScratch) {
    let layout = part.weight.layout;
    // SAFETY: the caller's promise.
    unsafe {
        match (part.n_rows <= BUNDLE, layout.bits, layout.term()) {
            (true, 4, term::OFFSET) => packed_panels::<4, { term::OFFSET }>(part),
            (true, 4, _) => packed_panels::<4, { term::MINIMUM }>(part),
            (true, 5, term::OFFSET) => packed_panels::<5, { term::OFFSET }>(part),
            (true, 5, _) => packed_panels::<5, { term::MINIMUM }>(part),
            (true, 6, _) => packed_panels::<6, { term::HALVES }>(part),
            (true, ..) => packed_panels::<8, { term::OFFSET }>(part),
            (false, _, term::OFFSET) => unpacked_panels::<{ term::OFFSET }>(part, scratch),
            (false, _, term::MINIMUM) => unpacked_panels::<{ term::MINIMUM }>(part, scratch),
            (false, ..) => unpacked_panels::<{ term::HALVES }>(part, scratch),
        }
    }
}

/// Some rows of a bundle by a panel, over consecutive groups.
#[derive(Clone, Copy)]
struct Tile {
    /// Record of the first group.
    records: *const u8,
    /// Rows of the bundle.
    n_rows: usize,
    /// First row of the tile in the bundle.
    row: usize,
    /// First line of the first group.
    lines: *const u8,
    /// `[groups, 2, 16]`.
    factors: *const f32,
    n_groups: usize,
    /// Of codes.
    offset: f32,
    out: *mut f32,
    out_stride: usize,
    mask: u16,
    write: Write,
}

/// The rows of a bundle by panels whose lines are unpacked in registers.
///
/// # Safety
/// As [`multiply`], for the weight's bits and term.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn packed_panels<const BITS: usize, const TERM: u8>(part: &Part<'_>) {
    let layout = part.weight.layout;
    assert_eq!(layout.bits, BITS, "lines of a group");
    let (records, n_rows) = part.rows.bundle(part.row);
    let n_groups = part.rows.k / GROUP;
    for panel in part.panels() {
        let (header, lines) = part.weight.panel(panel);
        for (row, rows) in tile_rows(n_rows) {
            let mut factors = [[_mm512_setzero_ps(); 2]; SUPER_GROUPS];
            for first in (0..n_groups.max(1)).step_by(SUPER_GROUPS) {
                let n_span = SUPER_GROUPS.min(n_groups - first);
                let header = layout.blocks_header(header, first, n_span);
                prefetch(header.as_ptr().wrapping_add(prefetch::DISTANCE), header.len());
                let tile = Tile {
                    records: records[first * n_rows * RECORD..].as_ptr(),
                    n_rows,
                    row,
                    lines: lines[first * BITS * LINE..].as_ptr(),
                    factors: factors.as_mut_ptr().cast(),
                    n_groups: n_span,
                    offset: f32::from(layout.offset()),
                    out: part.out_at(part.row + row, panel),
                    out_stride: part.out_stride,
                    mask: mask(part.width(panel)),
                    write: part.write_at(first),
                };
                // SAFETY: header, lines and records have `n_span` groups, of whole blocks; the rest is the caller's promise.
                unsafe {
                    unpack::factors(layout, header.as_ptr(), n_span, tile.factors.cast_mut());
                    choose_tile::<BITS, TERM, true>(&tile, rows);
                }
            }
        }
    }
}

/// All rows of a part by panels whose lines are unpacked to bytes first.
///
/// # Safety
/// As [`multiply`], for the weight's term.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn unpacked_panels<const TERM: u8>(part: &Part<'_>, scratch: &mut TileScratch) {
    let lens = [SPAN * BYTE_LINES * LINE / size_of::<f32>(), SPAN * 2 * PANEL_WIDTH];
    let [lines, factors] = scratch.floats(lens);
    let lines = reinterpret::<u8>(lines);
    let n_all = part.rows.k / GROUP;
    // Rows of a span stay in the second cache for all panels.
    for first in (0..n_all.max(1)).step_by(SPAN) {
        let n_groups = SPAN.min(n_all - first);
        let lines = &mut lines[..n_groups * BYTE_LINES * LINE];
        for panel in part.panels() {
            unpack::span(part.weight, panel, first, 0, lines, factors);
            for bundle in part.bundles() {
                let (records, n_rows) = part.rows.bundle(bundle);
                for (row, rows) in tile_rows(n_rows) {
                    let tile = Tile {
                        records: records[first * n_rows * RECORD..].as_ptr(),
                        n_rows,
                        row,
                        lines: lines.as_ptr(),
                        factors: factors.as_ptr(),
                        n_groups,
                        offset: f32::from(part.weight.layout.offset()),
                        out: part.out_at(bundle + row, panel),
                        out_stride: part.out_stride,
                        mask: mask(part.width(panel)),
                        write: part.write_at(first),
                    };
                    // SAFETY: lines and factors have `n_groups` groups, the records so many more; the rest is the caller's promise.
                    unsafe { choose_tile::<BYTE_LINES, TERM, false>(&tile, rows) };
                }
            }
        }
    }
}

/// First rows and numbers of rows of the tiles of a bundle, which are about equal.
fn tile_rows(n_rows: usize) -> impl Iterator<Item = (usize, usize)> {
    let most = n_rows.div_ceil(n_rows.div_ceil(TILE_ROWS));
    (0..n_rows).step_by(most).map(move |row| (row, most.min(n_rows - row)))
}

/// # Safety
/// As [`multiply_tile`].
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn choose_tile<const BITS: usize, const TERM: u8, const IS_PACKED: bool>(
    tile: &Tile,
    rows: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match rows {
            1 => multiply_tile::<BITS, TERM, IS_PACKED, 1>(tile),
            2 => multiply_tile::<BITS, TERM, IS_PACKED, 2>(tile),
            3 => multiply_tile::<BITS, TERM, IS_PACKED, 3>(tile),
            4 => multiply_tile::<BITS, TERM, IS_PACKED, 4>(tile),
            5 => multiply_tile::<BITS, TERM, IS_PACKED, 5>(tile),
            6 => multiply_tile::<BITS, TERM, IS_PACKED, 6>(tile),
            7 => multiply_tile::<BITS, TERM, IS_PACKED, 7>(tile),
            _ => multiply_tile::<BITS, TERM, IS_PACKED, 8>(tile),
        }
    }
}

/// # Safety
/// Records have `n_groups` groups with `ROWS` rows from the tile's first on, lines as many of `BITS` lines, factors as many; the output
/// holds the rows, as far as the mask is set.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn multiply_tile<
    const BITS: usize,
    const TERM: u8,
    const IS_PACKED: bool,
    const ROWS: usize,
>(
    tile: &Tile,
) {
    let Tile { n_rows, row, out, out_stride, mask, .. } = *tile;
    let offset = _mm512_set1_ps(tile.offset);
    let mut acc = [_mm512_setzero_ps(); ROWS];
    // SAFETY: the caller's promise; a record has the codes of all rows, then their numbers.
    unsafe {
        for r in 0..ROWS {
            acc[r] = start(tile.write, mask, out.wrapping_add(r * out_stride));
        }
        for g in 0..tile.n_groups {
            let record = tile.records.add(g * n_rows * RECORD);
            let lines = tile.lines.add(g * BITS * LINE);
            if IS_PACKED {
                prefetch(lines.wrapping_add(prefetch::DISTANCE), BITS * LINE);
            }
            let mut sums = [[_mm512_setzero_si512(); 2]; ROWS];
            for j in 0..4 {
                let pair = unpack::pair::<BITS>(lines, j);
                for r in 0..ROWS {
                    let codes = record.add((row + r) * GROUP + 4 * j);
                    sums[r][0] = _mm512_dpbusd_epi32(sums[r][0], pair[0], quad(codes));
                    sums[r][1] = _mm512_dpbusd_epi32(sums[r][1], pair[1], quad(codes.add(16)));
                }
            }
            let factors = tile.factors.add(g * 2 * PANEL_WIDTH);
            let factors = [_mm512_loadu_ps(factors), _mm512_loadu_ps(factors.add(PANEL_WIDTH))];
            for r in 0..ROWS {
                let numbers = record.add(n_rows * GROUP).cast::<f32>().add(row + r);
                acc[r] = add_group::<TERM>(acc[r], sums[r], factors, offset, numbers, n_rows);
            }
        }
        for r in 0..ROWS {
            _mm512_mask_storeu_ps(out.wrapping_add(r * out_stride), mask, acc[r]);
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
