//! AMX: a tile of 16 rows by 16 columns of integer sums for each group (or each half of one, where halves have their own scales),
//! which AVX-512 scales and adds to sums that stay in registers. Signed codes are unpacked once for all rows of a task. Up to
//! [`avx512::TILE_ROWS`] rows take the path of AVX-512, which has the same bits.
//!
//! While the sums of a group are scaled, the tile of the next one is under way.
#![expect(unsafe_code, reason = "tile instructions exist only in inline assembly")]

use std::arch::asm;
use std::arch::x86_64::*;

use super::avx512::{self, mask, start, unpack};
use super::layout::{BYTE_LINES, GROUP, LINE, term};
use super::{BUNDLE, Part, RECORD, SPAN, few_rows};
use crate::compute::Family;
use crate::matmul::amx::TileConfig;
use crate::panels::PANEL_WIDTH;
use crate::pool::{TileScratch, reinterpret};

/// Integer sums of a group: two tiles.
const N_SUMS: usize = 2 * BUNDLE * PANEL_WIDTH;

/// # Safety
/// As [`super::multiply`], in a process that may use AMX, on a processor with AVX-512 F, BW and VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) unsafe fn multiply(part: &Part<'_>, scratch: &mut TileScratch) {
    // SAFETY: the caller's promise.
    unsafe {
        if part.n_rows <= few_rows(Family::Amx) {
            return avx512::multiply(part, scratch);
        }
        match part.weight.layout.term() {
            term::OFFSET => bundles::<{ term::OFFSET }>(part, scratch),
            term::MINIMUM => bundles::<{ term::MINIMUM }>(part, scratch),
            _ => bundles::<{ term::HALVES }>(part, scratch),
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
/// As [`multiply`], for the weight's term.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn bundles<const TERM: u8>(part: &Part<'_>, scratch: &mut TileScratch) {
    let lens = [SPAN * BYTE_LINES * LINE / size_of::<f32>(), SPAN * 2 * PANEL_WIDTH, 2 * N_SUMS];
    let [lines, factors, sums] = scratch.floats(lens);
    let lines = reinterpret::<u8>(lines);
    let n_all = part.rows.k / GROUP;
    let config = configuration::<TERM>(part.n_rows % BUNDLE);
    // SAFETY: the process may use AMX; the configuration is valid.
    unsafe { config.load() };
    for panel in part.panels() {
        for first_group in (0..n_all.max(1)).step_by(SPAN) {
            let n_groups = SPAN.min(n_all - first_group);
            let lines = &mut lines[..n_groups * BYTE_LINES * LINE];
            let offset = part.weight.layout.offset();
            unpack::span(part.weight, panel, first_group, offset, lines, factors);
            let span = Span { lines, factors, first_group, n_groups, panel };
            for bundle in part.bundles() {
                // SAFETY: the tiles are configured for whole bundles and the part's last; the rest is the caller's promise.
                unsafe {
                    if part.rows.bundle(bundle).1 == BUNDLE {
                        multiply_bundle::<TERM, true>(part, &span, bundle, sums);
                    } else {
                        multiply_bundle::<TERM, false>(part, &span, bundle, sums);
                    }
                }
            }
        }
    }
    // SAFETY: the process may use AMX.
    unsafe { TileConfig::release() };
}

/// Tiles 0 and 1 have sums and 2 the rows of a whole bundle, 3 the lines; 4, 5 and 6 are as 0, 1 and 2 for a bundle of fewer rows.
fn configuration<const TERM: u8>(n_last_rows: usize) -> TileConfig {
    let depth = if TERM == term::HALVES { GROUP / 2 } else { GROUP };
    let sums = |n_rows: usize| [n_rows, if n_rows == 0 { 0 } else { LINE }];
    let codes = |n_rows: usize| [n_rows, if n_rows == 0 { 0 } else { depth }];
    let (whole, last) = (BUNDLE, n_last_rows);
    TileConfig::new([
        sums(whole),
        sums(whole),
        codes(whole),
        [depth / 4, LINE],
        sums(last),
        sums(last),
        codes(last),
        [0, 0],
    ])
}

/// The rows of a bundle by a panel over a span.
///
/// # Safety
/// As [`bundles`]; the tiles are configured for the bundle's rows, which are 16 where it `IS_WHOLE`.
#[target_feature(enable = "avx512f")]
unsafe fn multiply_bundle<const TERM: u8, const IS_WHOLE: bool>(
    part: &Part<'_>,
    span: &Span<'_>,
    bundle: usize,
    sums: &mut [f32],
) {
    let (records, n_rows) = part.rows.bundle(bundle);
    let n_rows = if IS_WHOLE { BUNDLE } else { n_rows };
    let records = &records[span.first_group * n_rows * RECORD..][..span.n_groups * n_rows * RECORD];
    assert!(span.lines.len() == span.n_groups * BYTE_LINES * LINE && sums.len() >= 2 * N_SUMS);
    assert!(span.factors.len() >= span.n_groups * 2 * PANEL_WIDTH, "factors of the groups");
    let mask = mask(part.width(span.panel));
    let out = part.out_at(bundle, span.panel);
    let write = part.write_at(span.first_group);
    let mut acc = [_mm512_setzero_ps(); BUNDLE];
    let sums = sums.as_mut_ptr();
    // SAFETY: records and span have `n_groups` groups, `sums` has two times two tiles; the output is the caller's.
    unsafe {
        for r in 0..n_rows {
            acc[r] = start(write, mask, out.wrapping_add(r * part.out_stride));
        }
        let multiply_group = |g: usize| {
            let record = records.as_ptr().add(g * n_rows * RECORD);
            let lines = span.lines.as_ptr().add(g * BYTE_LINES * LINE);
            let sums = sums.add(g % 2 * N_SUMS);
            if TERM == term::HALVES {
                tiles_of_halves::<IS_WHOLE>(record, lines, sums);
            } else {
                tile_of_group::<IS_WHOLE>(record, lines, sums);
            }
        };
        if span.n_groups > 0 {
            multiply_group(0);
        }
        for g in 0..span.n_groups {
            if g + 1 < span.n_groups {
                multiply_group(g + 1);
            }
            let numbers = records.as_ptr().add(g * n_rows * RECORD + n_rows * GROUP).cast::<f32>();
            let factors = span.factors.as_ptr().add(g * 2 * PANEL_WIDTH);
            let factors = [_mm512_loadu_ps(factors), _mm512_loadu_ps(factors.add(PANEL_WIDTH))];
            let sums = sums.add(g % 2 * N_SUMS).cast::<i32>();
            for r in 0..n_rows {
                acc[r] = add_group::<TERM>(
                    acc[r],
                    sums.add(r * PANEL_WIDTH),
                    factors,
                    numbers.add(r),
                    n_rows,
                );
            }
        }
        for r in 0..n_rows {
            _mm512_mask_storeu_ps(out.wrapping_add(r * part.out_stride), mask, acc[r]);
        }
    }
}

/// `acc + s * t` from the integer sums of a row with signed codes.
///
/// # Safety
/// `sums` is a row of a tile, with a second tile behind the first; `numbers` is readable at two distances of `stride`.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn add_group<const TERM: u8>(
    acc: __m512,
    sums: *const i32,
    [first, second]: [__m512; 2],
    numbers: *const f32,
    stride: usize,
) -> __m512 {
    // SAFETY: the caller's promise.
    let number = |i: usize| unsafe { _mm512_set1_ps(numbers.add(i * stride).read_unaligned()) };
    // SAFETY: as above.
    let sum = |tile: usize| unsafe {
        let sums = sums.add(tile * BUNDLE * PANEL_WIDTH);
        _mm512_cvtepi32_ps(_mm512_loadu_si512(sums.cast()))
    };
    let t = _mm512_mul_ps(first, sum(0));
    let t = match TERM {
        term::OFFSET => t,
        term::MINIMUM => _mm512_fnmadd_ps(number(1), second, t),
        _ => _mm512_fmadd_ps(second, sum(1), t),
    };
    _mm512_fmadd_ps(number(0), t, acc)
}

/// The integer sums of a group, `[rows, 16]`.
///
/// # Safety
/// `codes` has the configured rows of 32 codes, `lines` eight lines, `sums` room for a tile.
#[inline]
unsafe fn tile_of_group<const IS_WHOLE: bool>(codes: *const u8, lines: *const u8, sums: *mut f32) {
    // SAFETY: the caller's promise; all tiles used are declared as clobbered.
    unsafe {
        if IS_WHOLE {
            asm!(
                "tilezero tmm0",
                "tileloadd tmm2, [{codes} + {row}]", "tileloadd tmm3, [{lines} + {line}]",
                "tdpbssd tmm0, tmm2, tmm3",
                "tilestored [{sums} + {line}], tmm0",
                codes = in(reg) codes, lines = in(reg) lines, sums = in(reg) sums,
                row = in(reg) GROUP, line = in(reg) LINE,
                out("tmm0") _, out("tmm2") _, out("tmm3") _,
                options(nostack),
            );
        } else {
            asm!(
                "tilezero tmm4",
                "tileloadd tmm6, [{codes} + {row}]", "tileloadd tmm3, [{lines} + {line}]",
                "tdpbssd tmm4, tmm6, tmm3",
                "tilestored [{sums} + {line}], tmm4",
                codes = in(reg) codes, lines = in(reg) lines, sums = in(reg) sums,
                row = in(reg) GROUP, line = in(reg) LINE,
                out("tmm4") _, out("tmm6") _, out("tmm3") _,
                options(nostack),
            );
        }
    }
}

/// The integer sums of both halves of a group, `[2, 16, 16]`.
///
/// # Safety
/// As [`tile_of_group`], with room for two tiles.
#[inline]
unsafe fn tiles_of_halves<const IS_WHOLE: bool>(
    codes: *const u8,
    lines: *const u8,
    sums: *mut f32,
) {
    // SAFETY: the caller's promise; all tiles used are declared as clobbered.
    unsafe {
        if IS_WHOLE {
            asm!(
                "tilezero tmm0", "tilezero tmm1",
                "tileloadd tmm2, [{codes} + {row}]", "tileloadd tmm3, [{lines} + {line}]",
                "tdpbssd tmm0, tmm2, tmm3",
                "tileloadd tmm2, [{codes} + {row} + 16]", "tileloadd tmm3, [{lines} + {line} + 256]",
                "tdpbssd tmm1, tmm2, tmm3",
                "tilestored [{sums} + {line}], tmm0", "tilestored [{sums} + {line} + 1024], tmm1",
                codes = in(reg) codes, lines = in(reg) lines, sums = in(reg) sums,
                row = in(reg) GROUP, line = in(reg) LINE,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                options(nostack),
            );
        } else {
            asm!(
                "tilezero tmm4", "tilezero tmm5",
                "tileloadd tmm6, [{codes} + {row}]", "tileloadd tmm3, [{lines} + {line}]",
                "tdpbssd tmm4, tmm6, tmm3",
                "tileloadd tmm6, [{codes} + {row} + 16]", "tileloadd tmm3, [{lines} + {line} + 256]",
                "tdpbssd tmm5, tmm6, tmm3",
                "tilestored [{sums} + {line}], tmm4", "tilestored [{sums} + {line} + 1024], tmm5",
                codes = in(reg) codes, lines = in(reg) lines, sums = in(reg) sums,
                row = in(reg) GROUP, line = in(reg) LINE,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm3") _,
                options(nostack),
            );
        }
    }
}
