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
use crate::matmul::Write;
use crate::matmul::amx::TileConfig;
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

/// Rows and columns of a block of sums: two by two tiles.
const BLOCK: usize = 2 * BUNDLE;

/// Values of a tile of sums.
const TILE: usize = BUNDLE * PANEL_WIDTH;

/// # Safety
/// As [`super::multiply`], in a process that may use AMX, on a processor with AVX-512 F and BW.
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
        [n_tiles * GROUP_TILE / size_of::<f32>(), 2 * SUPER_GROUPS * GROUP_FACTORS, BLOCK * BLOCK];
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
            load_block(sums.as_ptr(), BUNDLES);
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
            store_block(sums.as_mut_ptr(), BUNDLES);
            write_block(&pair, 0, sums.as_ptr(), false);
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
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn many_rows<const BITS: usize, const TERM: u8>(part: &Part<'_>, scratch: &mut TileScratch) {
    let n_groups = part.rows.k / GROUP;
    let n_pairs = part.n_panels.div_ceil(2);
    let pair_sums = part.n_rows.div_ceil(BLOCK) * BLOCK * BLOCK;
    let n_tiles = 2 * CHUNK * GROUP_TILE / size_of::<f32>();
    let lens = [n_tiles, CHUNK * 2 * PANEL_WIDTH, n_pairs * pair_sums, BLOCK * BLOCK];
    let [tiles, factors, sums, zeros] = scratch.floats(lens);
    let (tiles, zeros) = (reinterpret::<u8>(tiles), &mut zeros[..BLOCK * BLOCK]);
    let sums = &mut sums[..n_pairs * pair_sums];
    zeros.fill(0.0);
    // SAFETY: the output is the caller's; the process may use AMX, and the configuration is valid.
    unsafe {
        if part.write == Write::Accumulate {
            load_sums(part, sums);
        }
        configuration([BUNDLE; 2]).load();
    }
    for first_group in (0..n_groups).step_by(CHUNK) {
        let n_chunk = CHUNK.min(n_groups - first_group);
        for (pair, sums) in sums.chunks_exact_mut(pair_sums).enumerate() {
            let panel = part.panel + 2 * pair;
            let n_panels = (part.panel + part.n_panels - panel).min(2);
            for (i, tiles) in tiles.chunks_exact_mut(CHUNK * GROUP_TILE).enumerate().take(n_panels)
            {
                let tiles = &mut tiles[..n_chunk * GROUP_TILE];
                // SAFETY: the caller's promise; `tiles` and `factors` have room.
                unsafe { unpack_chunk::<BITS, TERM>(part, panel + i, first_group, factors, tiles) };
            }
            // Where there is no second panel, tiles of an earlier one stand in its place, and its sums are not written.
            // While these are multiplied, what comes next comes nearer: the next panels, and this pair's share of the next chunk of rows.
            let (next_pair, next_group) = if pair + 1 < n_pairs {
                (pair + 1, first_group)
            } else {
                (0, first_group + n_chunk)
            };
            let is_zero = first_group == 0 && part.write == Write::Overwrite;
            let chunk = Chunk {
                part: &Part { panel, n_panels, ..*part },
                first_group,
                n_groups: n_chunk,
                tiles,
                from: is_zero.then_some(&*zeros),
                rows_ahead: rows_ahead(part, first_group + n_chunk, [pair, n_pairs]),
                panels_ahead: panels_ahead(part, part.panel + 2 * next_pair, next_group),
            };
            // SAFETY: as above.
            unsafe { multiply_chunk(&chunk, sums) };
        }
    }
    if n_groups == 0 && part.write == Write::Overwrite {
        for panel in part.panels().step_by(2) {
            let n_panels = (part.panel + part.n_panels - panel).min(2);
            let pair = Part { panel, n_panels, ..*part };
            for row in (0..part.n_rows).step_by(BLOCK) {
                // SAFETY: the output is the caller's.
                unsafe { write_block(&pair, row, zeros.as_ptr(), false) };
            }
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

/// One of `n` equal shares of some bytes, in whole lines; nothing behind the last.
fn share(bytes: &[u8], [i, n]: [usize; 2]) -> &[u8] {
    let len = bytes.len().div_ceil(n).next_multiple_of(LINE).max(LINE);
    bytes.chunks(len).nth(i).unwrap_or_default()
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

/// A chunk of up to two panels, the part's only ones.
struct Chunk<'a> {
    part: &'a Part<'a>,
    first_group: usize,
    n_groups: usize,
    /// The chunk of two panels.
    tiles: &'a [u8],
    /// The block that sums begin with, where they are not there yet.
    from: Option<&'a [f32]>,
    /// What will be used soon.
    rows_ahead: &'a [u8],
    panels_ahead: [&'a [u8]; 4],
}

/// All rows by two panels over a chunk; sums are blocks of four tiles, those of two bundles by two panels. After the last chunk each block is
/// written while the next is multiplied.
///
/// # Safety
/// As [`panels`]; `sums` has a block for each 32 rows, all tiles are configured to be whole.
#[target_feature(enable = "avx512f")]
unsafe fn multiply_chunk(chunk: &Chunk<'_>, sums: &mut [f32]) {
    let Chunk { part, first_group, n_groups, tiles, from, rows_ahead, panels_ahead } = *chunk;
    let n_blocks = part.n_rows.div_ceil(BLOCK);
    let bundle = n_groups * GROUP_TILE;
    let rows = &part.rows.chunk(part.row, first_group)[..2 * n_blocks * bundle];
    assert!(tiles.len() == 2 * CHUNK * GROUP_TILE && sums.len() == n_blocks * BLOCK * BLOCK);
    let b = [tiles.as_ptr(), tiles[CHUNK * GROUP_TILE..].as_ptr()];
    let is_last = first_group + n_groups == part.rows.k / GROUP;
    let is_streamed = is_streamed(part);
    let sums = sums.as_mut_ptr();
    let block = |i: usize| sums.wrapping_add(i % n_blocks * BLOCK * BLOCK);
    let start = |i: usize| from.map_or(block(i).cast_const(), <[f32]>::as_ptr);
    // SAFETY: all tiles lie in `rows`, `tiles`, `sums` and `from`; the output is the caller's.
    unsafe {
        load_block(start(0), 2);
        for i in 0..n_blocks {
            for panel in panels_ahead {
                let lines = share(panel, [i, n_blocks]);
                prefetch(lines.as_ptr(), lines.len());
            }
            let ahead = share(rows_ahead, [i, n_blocks]);
            let ahead = if ahead.is_empty() { b[0] } else { ahead.as_ptr() };
            let a = rows[2 * i * bundle..].as_ptr();
            multiply_block([a, a.add(bundle)], b, n_groups, block(i), start(i + 1), ahead);
            if is_last && i > 0 {
                write_block(part, (i - 1) * BLOCK, block(i - 1), is_streamed);
            }
        }
        if is_last {
            write_block(part, (n_blocks - 1) * BLOCK, block(n_blocks - 1), is_streamed);
        }
    }
}

/// Bytes of the rows of an output from which on they are not brought into the caches before they are overwritten.
const STREAMED_BYTES: usize = 1 << 20;

/// Whether lines of the output are written past the caches.
fn is_streamed(part: &Part<'_>) -> bool {
    let is_aligned = part.out.addr().is_multiple_of(LINE) && part.out_stride.is_multiple_of(16);
    let bytes = part.n_rows * part.out_stride * size_of::<f32>();
    part.write == Write::Overwrite && is_aligned && bytes >= STREAMED_BYTES
}

/// Writes a block of sums of up to two panels to the output, from a row of the part on.
///
/// # Safety
/// `sums` is a block; the output holds the rows and columns of the part.
#[target_feature(enable = "avx512f")]
unsafe fn write_block(part: &Part<'_>, first_row: usize, sums: *const f32, is_streamed: bool) {
    for row in 0..BLOCK.min(part.n_rows - first_row) {
        for i in 0..part.n_panels {
            let panel = part.panel + i;
            let out = part.out_at(part.row + first_row + row, panel);
            let place = (row / BUNDLE * 2 + i) * TILE + row % BUNDLE * PANEL_WIDTH;
            // SAFETY: the caller's promise; the mask keeps to the columns.
            unsafe {
                let sums = _mm512_loadu_ps(sums.add(place));
                match is_streamed && part.width(panel) == PANEL_WIDTH {
                    true => _mm512_stream_ps(out, sums),
                    false => _mm512_mask_storeu_ps(out, mask(part.width(panel)), sums),
                }
            }
        }
    }
}

/// What sums begin with.
///
/// # Safety
/// As [`load_sums`].
#[target_feature(enable = "avx512f")]
unsafe fn start_sums(part: &Part<'_>, sums: &mut [f32]) {
    match part.write {
        Write::Overwrite => sums.fill(0.0),
        // SAFETY: the caller's promise.
        Write::Accumulate => unsafe { load_sums(part, sums) },
    }
}

/// From the output into blocks of sums, `[pairs of panels, 32 rows, 4 tiles]`.
///
/// # Safety
/// The output holds the rows and columns of the part.
#[target_feature(enable = "avx512f")]
unsafe fn load_sums(part: &Part<'_>, sums: &mut [f32]) {
    let n_blocks = part.n_rows.div_ceil(BLOCK);
    for row in 0..part.n_rows {
        for panel in 0..part.n_panels {
            let mask = mask(part.width(part.panel + panel));
            let out = part.out_at(part.row + row, part.panel + panel);
            let block = panel / 2 * n_blocks + row / BLOCK;
            let tile = 4 * block + row / BUNDLE % 2 * 2 + panel % 2;
            let sums = &mut sums[tile * TILE + row % BUNDLE * PANEL_WIDTH..][..PANEL_WIDTH];
            // SAFETY: the caller's promise; the mask keeps to the columns, a row of a tile has 16 sums.
            unsafe {
                _mm512_storeu_ps(sums.as_mut_ptr(), _mm512_maskz_loadu_ps(mask, out));
            }
        }
    }
}

/// The sums of one or two bundles into tiles 0 to 3, which keep them from one instruction block to the next: nothing but these functions uses
/// tiles meanwhile.
///
/// # Safety
/// `sums` is a block; the tiles are configured.
#[inline(always)]
unsafe fn load_block(sums: *const f32, n_bundles: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "tileloadd tmm0, [{sums} + {line}]", "tileloadd tmm1, [{sums} + {line} + 1024]",
            sums = in(reg) sums, line = in(reg) LINE, out("tmm0") _, out("tmm1") _,
            options(nostack, readonly),
        );
        if n_bundles > 1 {
            asm!(
                "tileloadd tmm2, [{sums} + {line} + 2048]", "tileloadd tmm3, [{sums} + {line} + 3072]",
                sums = in(reg) sums, line = in(reg) LINE, out("tmm2") _, out("tmm3") _,
                options(nostack, readonly),
            );
        }
    }
}

/// Tiles 0 to 3 into sums.
///
/// # Safety
/// As [`load_block`].
#[inline(always)]
unsafe fn store_block(sums: *mut f32, n_bundles: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "tilestored [{sums} + {line}], tmm0", "tilestored [{sums} + {line} + 1024], tmm1",
            sums = in(reg) sums, line = in(reg) LINE, options(nostack),
        );
        if n_bundles > 1 {
            asm!(
                "tilestored [{sums} + {line} + 2048], tmm2", "tilestored [{sums} + {line} + 3072], tmm3",
                sums = in(reg) sums, line = in(reg) LINE, options(nostack),
            );
        }
    }
}

/// Adds the products of two bundles `a` and two panels `b` to the sums in tiles 0 to 3, stores them to `sums` and loads `next`, each tile as
/// soon as its place is free.
///
/// Rows are loaded with the hint that they need not stay: they come from the second cache, while the panels, which all rows use, stay in the
/// first.
///
/// # Safety
/// `a` and `b` are readable for `n` groups, at least one; `sums` and `next` are blocks; the tiles are configured.
#[inline(always)]
unsafe fn multiply_block(
    a: [*const u8; 2],
    b: [*const u8; 2],
    n: usize,
    sums: *mut f32,
    next: *const f32,
    ahead: *const u8,
) {
    // SAFETY: the caller's promise; all tiles used are declared as clobbered.
    unsafe {
        asm!(
            "2:",
            "tileloaddt1 tmm4, [{a0} + {line}]", "tileloadd tmm6, [{b0} + {line}]",
            "prefetcht1 [{ahead}]", "prefetcht1 [{ahead} + 64]",
            "tdpbf16ps tmm0, tmm4, tmm6", "tileloadd tmm7, [{b1} + {line}]",
            "tdpbf16ps tmm1, tmm4, tmm7", "tileloaddt1 tmm5, [{a1} + {line}]",
            "prefetcht1 [{ahead} + 128]", "prefetcht1 [{ahead} + 192]", "add {ahead}, 256",
            "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a0}, 1024", "add {a1}, 1024", "add {b0}, 1024", "add {b1}, 1024",
            "dec {n}", "jnz 2b",
            "tilestored [{sums} + {line}], tmm0", "tileloaddt1 tmm0, [{next} + {line}]",
            "tilestored [{sums} + {line} + 1024], tmm1", "tileloaddt1 tmm1, [{next} + {line} + 1024]",
            "tilestored [{sums} + {line} + 2048], tmm2", "tileloaddt1 tmm2, [{next} + {line} + 2048]",
            "tilestored [{sums} + {line} + 3072], tmm3", "tileloaddt1 tmm3, [{next} + {line} + 3072]",
            a0 = inout(reg) a[0] => _, a1 = inout(reg) a[1] => _,
            b0 = inout(reg) b[0] => _, b1 = inout(reg) b[1] => _,
            n = inout(reg) n => _, line = in(reg) LINE, sums = in(reg) sums, next = in(reg) next, ahead = inout(reg) ahead => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
