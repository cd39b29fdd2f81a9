//! AMX: rows in bf16, and groups of a panel unpacked to the 16 lines of 16 pairs of bf16 that TDPBF16PS takes.
//!
//! The sums of up to [`FEW_ROWS`] rows stay in tiles over all of K: a group is unpacked and multiplied at once, and reading packed lines is
//! the work. For more rows, a chunk of two panels is unpacked for all rows of the task, whose sums wait in blocks of 32 by 32 between chunks.
#![expect(unsafe_code, reason = "tile instructions exist only in inline assembly")]

use std::arch::asm;
use std::arch::x86_64::*;

use super::layout::{GROUP, LINE, SUPER_GROUPS, term};
use super::{BUNDLE, CHUNK, Part};
use crate::lanes::avx512::mask;
use crate::matmul::amx::TileConfig;
use crate::matmul::amx::packed::{self, Ahead, SQUARE, SQUARE_LEN, SQUARE_ROW, Way, share};
use crate::matmul::{Block, Write, clear_block};
use crate::panels::PANEL_WIDTH;
use crate::pool::{TileScratch, reinterpret};
use crate::prefetch::{self, prefetch};

mod unpack;

/// Bytes of a group of 16 columns in bf16, and of a group of 16 rows.
const GROUP_TILE: usize = GROUP / 2 * LINE;

/// Groups that are unpacked before one is multiplied: a tile cannot be loaded before what was stored has reached the cache.
const DELAY: usize = 1;

/// Most rows that are multiplied while a group is unpacked: two bundles, whose sums by two panels fill four tiles.
pub(super) const FEW_ROWS: usize = 2 * BUNDLE;

/// # Safety
/// As [`super::multiply`], in a process that may use AMX, on a processor with AVX-512 F, BW, VL and BF16.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn multiply(part: &Part<'_>, scratch: &mut TileScratch) {
    let layout = part.weight.layout;
    // SAFETY: the caller's promise.
    unsafe {
        match (layout.bits, layout.term()) {
            (4, term::OFFSET) => panels::<4, { term::OFFSET }>(part, scratch),
            (4, _) => panels::<4, { term::MINIMUM }>(part, scratch),
            (5, term::OFFSET) => panels::<5, { term::OFFSET }>(part, scratch),
            (5, _) => panels::<5, { term::MINIMUM }>(part, scratch),
            (6, _) => panels::<6, { term::HALVES }>(part, scratch),
            _ => panels::<8, { term::OFFSET }>(part, scratch),
        }
        TileConfig::release();
    }
}

/// # Safety
/// As [`multiply`], for the weight's bits and term.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn panels<const BITS: usize, const TERM: u8>(part: &Part<'_>, scratch: &mut TileScratch) {
    // SAFETY: the caller's promise.
    unsafe {
        match part.n_rows.div_ceil(BUNDLE) {
            1 => few_rows::<BITS, TERM, 1>(part, scratch),
            2 => few_rows::<BITS, TERM, 2>(part, scratch),
            _ => many_rows::<BITS, TERM>(part, scratch),
        }
    }
}

/// Rows whose sums stay in tiles, two panels at a time: one product waits for the one before it, and another panel's is done meanwhile.
///
/// # Safety
/// As [`panels`], for `BUNDLES` bundles.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn few_rows<const BITS: usize, const TERM: u8, const BUNDLES: usize>(
    part: &Part<'_>,
    scratch: &mut TileScratch,
) {
    const GROUP_FACTORS: usize = 2 * PANEL_WIDTH;
    let layout = part.weight.layout;
    assert!(layout.bits == BITS && part.n_rows.div_ceil(BUNDLE) == BUNDLES, "bits and bundles");
    let n_tiles = 2 * (DELAY + 1);
    let lens =
        [n_tiles * GROUP_TILE / size_of::<f32>(), 2 * SUPER_GROUPS * GROUP_FACTORS, SQUARE_LEN];
    let [tiles, factors, sums] = scratch.floats(lens);
    let (tiles, factors) = (reinterpret::<u8>(tiles).as_mut_ptr(), factors.as_mut_ptr());
    let tile = |g: usize, i: usize| tiles.wrapping_add((2 * g + i) % n_tiles * GROUP_TILE);
    let n_groups = part.rows.k / GROUP;
    let panel_len = layout.panel_len(part.rows.k);
    // SAFETY: the process may use AMX and the configuration is valid; rows have `n_groups` groups, the weight as many; the output is the caller's.
    unsafe {
        configuration([part.n_rows.min(BUNDLE), part.n_rows.saturating_sub(BUNDLE)]).load();
        let multiply_group = |g: usize| {
            let first_group = g / CHUNK * CHUNK;
            let group_bytes = part.rows.bf16_bundle_rows() * LINE;
            let bundle_bytes = CHUNK.min(n_groups - first_group) * group_bytes;
            let a = part.rows.chunk(part.row, first_group).as_ptr().add(g % CHUNK * group_bytes);
            add_group::<BUNDLES>([a, a.wrapping_add(bundle_bytes)], [tile(g, 0), tile(g, 1)]);
        };
        for panel in part.panels().step_by(2) {
            let n_panels = (part.panel + part.n_panels - panel).min(2);
            let pair = Part { panel, n_panels, ..*part };
            start_sums(&pair, sums);
            load_square(sums.as_ptr(), BUNDLES);
            // The last one alone is multiplied twice, and counts once.
            let panels = [panel, panel + n_panels - 1].map(|panel| part.weight.panel(panel));
            for first_group in (0..n_groups).step_by(SUPER_GROUPS) {
                let n_span = SUPER_GROUPS.min(n_groups - first_group);
                for (i, (header, _)) in panels.into_iter().enumerate() {
                    let header = layout.blocks_header(header, first_group, n_span);
                    prefetch(header.as_ptr().wrapping_add(prefetch::DISTANCE), header.len());
                    let factors = factors.add(i * SUPER_GROUPS * GROUP_FACTORS);
                    super::avx512::unpack::factors(layout, header.as_ptr(), n_span, factors);
                }
                for g in first_group..first_group + n_span {
                    for (i, (_, lines)) in panels.into_iter().enumerate() {
                        let ahead = g * BITS * LINE + prefetch::DISTANCE;
                        // Behind the end comes the other panel of the pair, which is here already.
                        let ahead = if ahead < lines.len() { ahead } else { ahead + panel_len };
                        prefetch(lines.as_ptr().wrapping_add(ahead), BITS * LINE);
                        let lines = lines.as_ptr().add(g * BITS * LINE);
                        let group = i * SUPER_GROUPS + g - first_group;
                        let factors = factors.add(group * GROUP_FACTORS);
                        unpack::group::<BITS, TERM>(lines, factors, layout.offset(), tile(g, i));
                    }
                    if let Some(g) = g.checked_sub(DELAY) {
                        multiply_group(g);
                    }
                }
            }
            for g in n_groups.saturating_sub(DELAY)..n_groups {
                multiply_group(g);
            }
            store_square(sums.as_mut_ptr(), BUNDLES);
            write_square(&pair, sums);
        }
    }
}

/// Adds the products of a group of one or two bundles `a` and two panels `b` to the sums in tiles 0 to 3.
///
/// # Safety
/// `a` is readable for the bundles, `b` for tiles; the tiles are configured.
#[inline(always)]
unsafe fn add_group<const BUNDLES: usize>(a: [*const u8; 2], b: [*const u8; 2]) {
    // SAFETY: the caller's promise.
    unsafe {
        if BUNDLES == 1 {
            asm!(
                "tileloadd tmm4, [{a} + {line}]",
                "tileloadd tmm6, [{b0} + {line}]", "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b1} + {line}]", "tdpbf16ps tmm1, tmm4, tmm7",
                a = in(reg) a[0], b0 = in(reg) b[0], b1 = in(reg) b[1], line = in(reg) LINE,
                out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                options(nostack, readonly),
            );
        } else {
            asm!(
                "tileloadd tmm4, [{a0} + {line}]", "tileloadd tmm5, [{a1} + {line}]",
                "tileloadd tmm6, [{b0} + {line}]",
                "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm2, tmm5, tmm6",
                "tileloadd tmm7, [{b1} + {line}]",
                "tdpbf16ps tmm1, tmm4, tmm7", "tdpbf16ps tmm3, tmm5, tmm7",
                a0 = in(reg) a[0], a1 = in(reg) a[1], b0 = in(reg) b[0], b1 = in(reg) b[1],
                line = in(reg) LINE,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, readonly),
            );
        }
    }
}

/// Tiles 0 to 3 have sums (two bundles by two panels), 4 and 5 the rows of two bundles, 6 and 7 a group of two panels.
fn configuration([top, bottom]: [usize; 2]) -> TileConfig {
    let used = [top, top, bottom, bottom, top, bottom, BUNDLE, BUNDLE];
    TileConfig::new(used.map(|n_rows| [n_rows, if n_rows == 0 { 0 } else { LINE }]))
}

/// All rows of a part, chunk by chunk of two panels.
///
/// # Safety
/// As [`panels`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn many_rows<const BITS: usize, const TERM: u8>(part: &Part<'_>, scratch: &mut TileScratch) {
    let n_groups = part.rows.k / GROUP;
    let n_pairs = part.n_panels.div_ceil(2);
    let pair_sums = part.n_rows.div_ceil(SQUARE) * SQUARE_LEN;
    let n_tiles = 2 * CHUNK * GROUP_TILE / size_of::<f32>();
    let lens = [n_tiles, CHUNK * 2 * PANEL_WIDTH, n_pairs * pair_sums, packed::WAITING_LEN];
    let [tiles, factors, sums, waiting] = scratch.floats(lens);
    let tiles = reinterpret::<u8>(tiles);
    let block_of = |pair: usize| {
        let panel = part.panel + 2 * pair;
        let n_panels = (part.panel + part.n_panels - panel).min(2);
        let n_columns = (n_panels * PANEL_WIDTH).min(part.weight.n - panel * PANEL_WIDTH);
        let (out, out_stride, n_rows) =
            (part.out_at(part.row, panel), part.out_stride, part.n_rows);
        Block { out, out_stride, n_rows, n_columns, ..Block::NONE }
    };
    if n_groups == 0 {
        let write = part.write;
        return (0..n_pairs).for_each(|pair| clear_block(Block { write, ..block_of(pair) }));
    }
    // SAFETY: the output is the caller's; the process may use AMX, and the configuration is valid.
    unsafe {
        if part.write == Write::Accumulate {
            for (pair, sums) in sums.chunks_exact_mut(pair_sums).enumerate() {
                let panel = part.panel + 2 * pair;
                let n_panels = (part.panel + part.n_panels - panel).min(2);
                start_sums(&Part { panel, n_panels, ..*part }, sums);
            }
        }
        configuration([BUNDLE; 2]).load();
    }
    for first_group in (0..n_groups).step_by(CHUNK) {
        let n_chunk = CHUNK.min(n_groups - first_group);
        let rows = part.rows.chunk(part.row, first_group);
        for (pair, sums) in sums.chunks_exact_mut(pair_sums).enumerate() {
            let panel = part.panel + 2 * pair;
            let n_panels = (part.panel + part.n_panels - panel).min(2);
            for (i, tiles) in tiles.chunks_exact_mut(CHUNK * GROUP_TILE).enumerate().take(n_panels)
            {
                let tiles = &mut tiles[..n_chunk * GROUP_TILE];
                // SAFETY: the caller's promise; `tiles` and `factors` have room.
                unsafe { unpack_chunk::<BITS, TERM>(part, panel + i, first_group, factors, tiles) };
            }
            let block = Block {
                b: tiles.as_ptr().cast(),
                b_panel_stride: CHUNK * GROUP_TILE / size_of::<u32>(),
                n_groups: n_chunk * GROUP / 2,
                ..block_of(pair)
            };
            // While these are multiplied, what comes next comes nearer: the next panels, and this pair's share of the next chunk of rows.
            let (next_pair, next_group) = if pair + 1 < n_pairs {
                (pair + 1, first_group)
            } else {
                (0, first_group + n_chunk)
            };
            let ahead = Ahead::Bytes {
                steadily: rows_ahead(part, first_group + n_chunk, [pair, n_pairs]),
                at_once: panels_ahead(part, part.panel + 2 * next_pair, next_group),
            };
            let is_first = first_group == 0 && part.write == Write::Overwrite;
            let of_k = packed::Part { is_first, is_last: first_group + n_chunk == n_groups };
            let way = Way::of(&block, is_large(part));
            // SAFETY: as above.
            unsafe {
                packed::multiply_panels(&block, of_k, way, ahead, rows, [&mut *waiting, sums])
            };
        }
    }
    // Stores that pass by the caches are seen by other threads after this.
    _mm_sfence();
}

/// What [`unpack_chunk`] will read of two panels: headers and lines.
fn panels_ahead<'a>(part: &Part<'a>, panel: usize, first_group: usize) -> [&'a [u8]; 4] {
    let layout = part.weight.layout;
    let n_groups = CHUNK.min(part.rows.k / GROUP - first_group);
    let mut ahead = [&[][..]; 4];
    let panels = panel..(panel + 2).min(part.panel + part.n_panels);
    for (ahead, panel) in ahead.as_chunks_mut::<2>().0.iter_mut().zip(panels) {
        let (header, lines) = part.weight.panel(panel);
        let lines = &lines[first_group * layout.group_len()..][..n_groups * layout.group_len()];
        *ahead = [layout.blocks_header(header, first_group, n_groups), lines];
    }
    ahead
}

/// One of `n` equal shares of the chunk of the part's rows that begins with a group, or nothing behind the last.
fn rows_ahead<'a>(part: &Part<'a>, first_group: usize, of: [usize; 2]) -> &'a [u8] {
    let n_groups = part.rows.k / GROUP;
    if first_group >= n_groups {
        return &[];
    }
    let len = part.n_rows * CHUNK.min(n_groups - first_group) * LINE;
    share(&part.rows.chunk(part.row, first_group)[..len], of)
}

/// Groups of a panel in bf16.
///
/// # Safety
/// As [`panels`]; there is room for the factors of a chunk.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn unpack_chunk<const BITS: usize, const TERM: u8>(
    part: &Part<'_>,
    panel: usize,
    first_group: usize,
    factors: &mut [f32],
    tiles: &mut [u8],
) {
    let layout = part.weight.layout;
    let (header, lines) = part.weight.panel(panel);
    let n_groups = tiles.len() / GROUP_TILE;
    let factors = factors.as_mut_ptr();
    let header = layout.blocks_header(header, first_group, n_groups);
    let lines = &lines[first_group * BITS * LINE..][..n_groups * BITS * LINE];
    // SAFETY: header, lines and tiles have `n_groups` groups, of whole blocks.
    unsafe {
        super::avx512::unpack::factors(layout, header.as_ptr(), n_groups, factors);
        for (g, tile) in tiles.chunks_exact_mut(GROUP_TILE).enumerate() {
            let lines = lines.as_ptr().add(g * BITS * LINE);
            let factors = factors.add(g * 2 * PANEL_WIDTH);
            unpack::group::<BITS, TERM>(lines, factors, layout.offset(), tile.as_mut_ptr());
        }
    }
}

/// Bytes of the rows of an output from which on they are not brought into the caches before they are overwritten.
const STREAMED_BYTES: usize = 1 << 20;

/// Whether lines of the output are written past the caches: also where sums began with what it held, for nobody reads that again.
fn is_large(part: &Part<'_>) -> bool {
    part.n_rows * part.out_stride * size_of::<f32>() >= STREAMED_BYTES
}

/// Writes a square of sums of up to two bundles and two panels to the output.
///
/// # Safety
/// The output holds the rows and columns of the part.
#[target_feature(enable = "avx512f")]
unsafe fn write_square(part: &Part<'_>, sums: &[f32]) {
    for (row, sums) in sums.chunks_exact(SQUARE).enumerate().take(part.n_rows) {
        for (panel, sums) in part.panels().zip(sums.as_chunks::<PANEL_WIDTH>().0) {
            let out = part.out_at(part.row + row, panel);
            // SAFETY: the caller's promise; the mask keeps to the columns.
            unsafe {
                let sums = _mm512_loadu_ps(sums.as_ptr());
                _mm512_mask_storeu_ps(out, mask(part.width(panel)), sums);
            }
        }
    }
}

/// What the sums of up to two panels begin with, in squares of 32 rows: zeros, or what the output holds.
///
/// # Safety
/// The output holds the rows and columns of the part.
#[target_feature(enable = "avx512f")]
unsafe fn start_sums(part: &Part<'_>, sums: &mut [f32]) {
    if part.write == Write::Overwrite {
        return sums.fill(0.0);
    }
    for (row, sums) in sums.chunks_exact_mut(SQUARE).enumerate().take(part.n_rows) {
        for (panel, sums) in part.panels().zip(sums.as_chunks_mut::<PANEL_WIDTH>().0) {
            let out = part.out_at(part.row + row, panel);
            // SAFETY: the caller's promise; the mask keeps to the columns.
            unsafe {
                let held = _mm512_maskz_loadu_ps(mask(part.width(panel)), out);
                _mm512_storeu_ps(sums.as_mut_ptr(), held);
            }
        }
    }
}

/// The sums of one or two bundles into tiles 0 to 3, which keep them from one instruction block to the next: nothing but these functions uses
/// tiles meanwhile.
///
/// # Safety
/// `sums` is a square; the tiles are configured.
#[inline(always)]
unsafe fn load_square(sums: *const f32, n_bundles: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "tileloadd tmm0, [{sums} + {row}]", "tileloadd tmm1, [{sums} + {row} + 64]",
            sums = in(reg) sums, row = in(reg) SQUARE_ROW, out("tmm0") _, out("tmm1") _,
            options(nostack, readonly),
        );
        if n_bundles > 1 {
            asm!(
                "tileloadd tmm2, [{sums} + {row} + 2048]", "tileloadd tmm3, [{sums} + {row} + 2112]",
                sums = in(reg) sums, row = in(reg) SQUARE_ROW, out("tmm2") _, out("tmm3") _,
                options(nostack, readonly),
            );
        }
    }
}

/// Tiles 0 to 3 into sums.
///
/// # Safety
/// As [`load_square`].
#[inline(always)]
unsafe fn store_square(sums: *mut f32, n_bundles: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "tilestored [{sums} + {row}], tmm0", "tilestored [{sums} + {row} + 64], tmm1",
            sums = in(reg) sums, row = in(reg) SQUARE_ROW, options(nostack),
        );
        if n_bundles > 1 {
            asm!(
                "tilestored [{sums} + {row} + 2048], tmm2", "tilestored [{sums} + {row} + 2112], tmm3",
                sums = in(reg) sums, row = in(reg) SQUARE_ROW, options(nostack),
            );
        }
    }
}
