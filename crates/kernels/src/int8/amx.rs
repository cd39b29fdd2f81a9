//! AMX: rows in bf16, and groups of a panel unpacked to the 16 lines of 16 pairs of bf16 that TDPBF16PS takes.
//!
//! Up to [`FEW_ROWS`] rows are at most four bundles, whose sums stay in tiles over all of K: a group is unpacked and multiplied
//! at once, and reading packed lines is the work. For more rows, a span of two panels is unpacked for all rows of the task, whose
//! sums wait in dense blocks of 32 by 32 between spans.
#![expect(unsafe_code, reason = "tile instructions exist only in inline assembly")]

use std::arch::asm;
use std::arch::x86_64::*;

use super::avx512::{mask, start};
use super::layout::{GROUP, LINE, SUPER_GROUPS, term};
use super::{BUNDLE, CHUNK, Part};
use crate::matmul::Write;
use crate::matmul::amx::TileConfig;
use crate::panels::PANEL_WIDTH;
use crate::pool::{TileScratch, reinterpret};
use crate::prefetch::{self, prefetch};

mod unpack;

/// Bytes of a group of 16 columns in bf16, and of a group of 16 rows.
const GROUP_TILE: usize = GROUP / 2 * LINE;

/// Groups that are unpacked before one is multiplied: a tile cannot be loaded before what was stored has reached the cache.
const DELAY: usize = 2;
const N_TILES: usize = 4;

/// Most bundles whose sums stay in tiles.
const FEW_BUNDLES: usize = 4;

/// Most rows that are multiplied while a group is unpacked.
pub(super) const FEW_ROWS: usize = FEW_BUNDLES * BUNDLE;

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
            3 => few_rows::<BITS, TERM, 3>(part, scratch),
            FEW_BUNDLES => few_rows::<BITS, TERM, FEW_BUNDLES>(part, scratch),
            _ => many_rows::<BITS, TERM>(part, scratch),
        }
    }
}

/// Rows whose sums stay in tiles: those of the last bundle in tile 3, of the others from tile 0 on. Tile 4 has rows of a whole bundle, 5
/// of the last, 6 the group.
///
/// # Safety
/// As [`panels`], for `BUNDLES` bundles.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn few_rows<const BITS: usize, const TERM: u8, const BUNDLES: usize>(
    part: &Part<'_>,
    scratch: &mut TileScratch,
) {
    let layout = part.weight.layout;
    assert!(layout.bits == BITS && part.n_rows.div_ceil(BUNDLE) == BUNDLES, "bits and bundles");
    let lens =
        [N_TILES * GROUP_TILE / size_of::<f32>(), SUPER_GROUPS * 2 * PANEL_WIDTH, BUNDLES * TILE];
    let [tiles, factors, sums] = scratch.floats(lens);
    let (tiles, factors) = (reinterpret::<u8>(tiles).as_mut_ptr(), factors.as_mut_ptr());
    let n_groups = part.rows.k / GROUP;
    let n_last = part.n_rows - (BUNDLES - 1) * BUNDLE;
    let (whole, last) = ([BUNDLE, LINE], [n_last, LINE]);
    let config = TileConfig::new([whole, whole, whole, last, whole, last, whole, [0, 0]]);
    // SAFETY: the process may use AMX and the configuration is valid; rows have `n_groups` groups, the weight as many; the output is the caller's.
    unsafe {
        config.load();
        let multiply_group = |g: usize, tile: *const u8| {
            let first_group = g / CHUNK * CHUNK;
            let group_bytes = part.rows.bf16_bundle_rows() * LINE;
            let bundle_bytes = CHUNK.min(n_groups - first_group) * group_bytes;
            let chunk = part.rows.chunk(part.row, first_group).as_ptr();
            let first = chunk.add(g % CHUNK * group_bytes);
            Sums::<BUNDLES>::add(
                first,
                bundle_bytes,
                first.add((BUNDLES - 1) * bundle_bytes),
                tile,
            );
        };
        for panel in part.panels() {
            let (header, lines) = part.weight.panel(panel);
            load_sums(part, panel, sums);
            Sums::<BUNDLES>::load(sums.as_ptr());
            for first_group in (0..n_groups).step_by(SUPER_GROUPS) {
                let n_span = SUPER_GROUPS.min(n_groups - first_group);
                let header = layout.blocks_header(header, first_group, n_span);
                prefetch(header.as_ptr().wrapping_add(prefetch::DISTANCE), header.len());
                super::avx512::unpack::factors(layout, header.as_ptr(), n_span, factors);
                for g in first_group..first_group + n_span {
                    let lines = lines.as_ptr().add(g * BITS * LINE);
                    prefetch(lines.wrapping_add(prefetch::DISTANCE), BITS * LINE);
                    let factors = factors.add((g - first_group) * 2 * PANEL_WIDTH);
                    let tile = |g: usize| tiles.add(g % N_TILES * GROUP_TILE);
                    unpack::group::<BITS, TERM>(lines, factors, layout.offset(), tile(g));
                    if let Some(g) = g.checked_sub(DELAY) {
                        multiply_group(g, tile(g));
                    }
                }
            }
            for g in n_groups.saturating_sub(DELAY)..n_groups {
                multiply_group(g, tiles.add(g % N_TILES * GROUP_TILE));
            }
            Sums::<BUNDLES>::store(sums.as_mut_ptr());
            store_sums(part, panel, sums);
        }
    }
}

/// What the sums of a panel begin with, `[rows, 16]`.
///
/// # Safety
/// The output is readable.
#[target_feature(enable = "avx512f")]
unsafe fn load_sums(part: &Part<'_>, panel: usize, sums: &mut [f32]) {
    let mask = mask(part.width(panel));
    for (r, sums) in sums.chunks_exact_mut(PANEL_WIDTH).enumerate().take(part.n_rows) {
        // SAFETY: the caller's promise; a chunk has 16 sums.
        unsafe {
            let sum = start(part.write, mask, part.out_at(part.row + r, panel));
            _mm512_storeu_ps(sums.as_mut_ptr(), sum);
        }
    }
}

/// # Safety
/// The output is writable.
#[target_feature(enable = "avx512f")]
unsafe fn store_sums(part: &Part<'_>, panel: usize, sums: &[f32]) {
    let mask = mask(part.width(panel));
    for (r, sums) in sums.chunks_exact(PANEL_WIDTH).enumerate().take(part.n_rows) {
        // SAFETY: the caller's promise; a chunk has 16 sums.
        unsafe {
            let sums = _mm512_loadu_ps(sums.as_ptr());
            _mm512_mask_storeu_ps(part.out_at(part.row + r, panel), mask, sums);
        }
    }
}

/// The tiles of sums of [`few_rows`], which live from one instruction block to the next: nothing but these functions uses tiles.
struct Sums<const BUNDLES: usize>;

impl<const BUNDLES: usize> Sums<BUNDLES> {
    /// # Safety
    /// `sums` has the rows of all bundles; the tiles are configured.
    #[inline(always)]
    unsafe fn load(sums: *const f32) {
        // SAFETY: the caller's promise.
        unsafe {
            let at = |bundle: usize| sums.add(bundle * TILE);
            let line = LINE;
            if BUNDLES > 1 {
                asm!("tileloadd tmm0, [{} + {}]", in(reg) at(0), in(reg) line, out("tmm0") _, options(nostack, readonly));
            }
            if BUNDLES > 2 {
                asm!("tileloadd tmm1, [{} + {}]", in(reg) at(1), in(reg) line, out("tmm1") _, options(nostack, readonly));
            }
            if BUNDLES > 3 {
                asm!("tileloadd tmm2, [{} + {}]", in(reg) at(2), in(reg) line, out("tmm2") _, options(nostack, readonly));
            }
            asm!("tileloadd tmm3, [{} + {}]", in(reg) at(BUNDLES - 1), in(reg) line, out("tmm3") _, options(nostack, readonly));
        }
    }

    /// # Safety
    /// As [`Sums::load`].
    #[inline(always)]
    unsafe fn store(sums: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe {
            let at = |bundle: usize| sums.add(bundle * TILE);
            let line = LINE;
            if BUNDLES > 1 {
                asm!("tilestored [{} + {}], tmm0", in(reg) at(0), in(reg) line, options(nostack));
            }
            if BUNDLES > 2 {
                asm!("tilestored [{} + {}], tmm1", in(reg) at(1), in(reg) line, options(nostack));
            }
            if BUNDLES > 3 {
                asm!("tilestored [{} + {}], tmm2", in(reg) at(2), in(reg) line, options(nostack));
            }
            asm!("tilestored [{} + {}], tmm3", in(reg) at(BUNDLES - 1), in(reg) line, options(nostack));
        }
    }

    /// Adds the products of a group. Whole bundles are `bundle_bytes` apart.
    ///
    /// # Safety
    /// Rows and tile are readable; the tiles are configured.
    #[inline(always)]
    unsafe fn add(first: *const u8, bundle_bytes: usize, last: *const u8, tile: *const u8) {
        // SAFETY: the caller's promise.
        unsafe {
            match BUNDLES {
                1 => asm!(
                    "tileloadd tmm6, [{tile} + {line}]",
                    "tileloadd tmm5, [{last} + {line}]", "tdpbf16ps tmm3, tmm5, tmm6",
                    tile = in(reg) tile, line = in(reg) LINE, last = in(reg) last,
                    out("tmm3") _, out("tmm5") _, out("tmm6") _, options(nostack, readonly),
                ),
                2 => asm!(
                    "tileloadd tmm6, [{tile} + {line}]",
                    "tileloadd tmm4, [{first} + {line}]", "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm5, [{last} + {line}]", "tdpbf16ps tmm3, tmm5, tmm6",
                    tile = in(reg) tile, line = in(reg) LINE, last = in(reg) last, first = in(reg) first,
                    out("tmm0") _, out("tmm3") _, out("tmm4") _, out("tmm5") _, out("tmm6") _,
                    options(nostack, readonly),
                ),
                3 => asm!(
                    "tileloadd tmm6, [{tile} + {line}]",
                    "tileloadd tmm4, [{first} + {line}]", "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm5, [{last} + {line}]", "tdpbf16ps tmm3, tmm5, tmm6",
                    "tileloadd tmm4, [{second} + {line}]", "tdpbf16ps tmm1, tmm4, tmm6",
                    tile = in(reg) tile, line = in(reg) LINE, last = in(reg) last, first = in(reg) first,
                    second = in(reg) first.wrapping_add(bundle_bytes),
                    out("tmm0") _, out("tmm1") _, out("tmm3") _, out("tmm4") _, out("tmm5") _, out("tmm6") _,
                    options(nostack, readonly),
                ),
                _ => asm!(
                    "tileloadd tmm6, [{tile} + {line}]",
                    "tileloadd tmm4, [{first} + {line}]", "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm5, [{last} + {line}]", "tdpbf16ps tmm3, tmm5, tmm6",
                    "tileloadd tmm4, [{second} + {line}]", "tdpbf16ps tmm1, tmm4, tmm6",
                    "tileloadd tmm4, [{third} + {line}]", "tdpbf16ps tmm2, tmm4, tmm6",
                    tile = in(reg) tile, line = in(reg) LINE, last = in(reg) last, first = in(reg) first,
                    second = in(reg) first.wrapping_add(bundle_bytes),
                    third = in(reg) first.wrapping_add(2 * bundle_bytes),
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, options(nostack, readonly),
                ),
            }
        }
    }
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
    let lens =
        [2 * CHUNK * GROUP_TILE / size_of::<f32>(), CHUNK * 2 * PANEL_WIDTH, n_pairs * pair_sums];
    let [tiles, factors, sums] = scratch.floats(lens);
    let (tiles, sums) = (reinterpret::<u8>(tiles), &mut sums[..n_pairs * pair_sums]);
    if part.write == Write::Accumulate {
        // SAFETY: the output is the caller's.
        unsafe { copy_sums::<true>(part, sums) };
    } else {
        sums.fill(0.0);
    }
    let whole = [BUNDLE, LINE];
    // SAFETY: the process may use AMX; the configuration is valid.
    unsafe { TileConfig::new([whole; 8]).load() };
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
            // While these are multiplied, what comes next comes nearer: the next panels, and this pair's share of the next chunk of rows.
            let (next_pair, next_group) = if pair + 1 < n_pairs {
                (pair + 1, first_group)
            } else {
                (0, first_group + n_chunk)
            };
            prefetch_chunk(part, part.panel + 2 * next_pair, next_group);
            let ahead = rows_ahead(part, first_group + n_chunk, [pair, n_pairs]);
            // SAFETY: as above.
            unsafe { multiply_chunk(part, [first_group, n_chunk], tiles, sums, ahead) };
        }
    }
    // SAFETY: the output is the caller's.
    unsafe { copy_sums::<false>(part, sums) };
}

/// Asks for what [`unpack_chunk`] will read of two panels.
fn prefetch_chunk(part: &Part<'_>, panel: usize, first_group: usize) {
    let layout = part.weight.layout;
    let n_groups = CHUNK.min(part.rows.k / GROUP - first_group);
    for panel in panel..(panel + 2).min(part.panel + part.n_panels) {
        let (header, lines) = part.weight.panel(panel);
        let header = layout.blocks_header(header, first_group, n_groups);
        prefetch(header.as_ptr(), header.len());
        let lines = &lines[first_group * layout.group_len()..][..n_groups * layout.group_len()];
        prefetch(lines.as_ptr(), lines.len());
    }
}

/// One of `n` equal shares of the chunk of the part's rows that begins with a group, or nothing behind the last.
fn rows_ahead<'a>(part: &Part<'a>, first_group: usize, [share, n]: [usize; 2]) -> &'a [u8] {
    let n_groups = part.rows.k / GROUP;
    if first_group >= n_groups {
        return &[];
    }
    let len = part.n_rows * CHUNK.min(n_groups - first_group) * LINE;
    let share_len = len.div_ceil(n);
    part.rows.chunk(part.row, first_group)[..len].chunks(share_len).nth(share).unwrap_or_default()
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

/// All rows by two panels over a chunk; sums are blocks of four tiles, those of two bundles by two panels. `ahead` will be used soon.
///
/// # Safety
/// As [`panels`]; `tiles` has the chunk of both panels, `sums` a block for each 32 rows, all tiles are configured to be whole.
unsafe fn multiply_chunk(
    part: &Part<'_>,
    [first_group, n_groups]: [usize; 2],
    tiles: &[u8],
    sums: &mut [f32],
    ahead: &[u8],
) {
    let n_blocks = part.n_rows.div_ceil(BLOCK);
    let bundle = n_groups * GROUP_TILE;
    let rows = &part.rows.chunk(part.row, first_group)[..2 * n_blocks * bundle];
    assert!(tiles.len() == 2 * CHUNK * GROUP_TILE && sums.len() == n_blocks * BLOCK * BLOCK);
    let b = [tiles.as_ptr(), tiles[CHUNK * GROUP_TILE..].as_ptr()];
    let ahead_len = ahead.len().div_ceil(n_blocks);
    // SAFETY: all tiles lie in `rows`, `tiles` and `sums`.
    unsafe {
        load_block(sums.as_ptr());
        for i in 0..n_blocks {
            let ahead = ahead.chunks(ahead_len.max(1)).nth(i).map_or(b[0], <[u8]>::as_ptr);
            let a = rows[2 * i * bundle..].as_ptr();
            let sums = sums.as_mut_ptr();
            let next = sums.add((i + 1) % n_blocks * BLOCK * BLOCK);
            multiply_block(
                [a, a.add(bundle)],
                b,
                n_groups,
                sums.add(i * BLOCK * BLOCK),
                next,
                ahead,
            );
        }
    }
}

/// From the output into blocks of sums, `[pairs of panels, 32 rows, 4 tiles]`, or back.
///
/// # Safety
/// The output holds the rows and columns of the part.
#[target_feature(enable = "avx512f")]
unsafe fn copy_sums<const IS_LOAD: bool>(part: &Part<'_>, sums: &mut [f32]) {
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
                if IS_LOAD {
                    _mm512_storeu_ps(sums.as_mut_ptr(), _mm512_maskz_loadu_ps(mask, out));
                } else {
                    _mm512_mask_storeu_ps(out, mask, _mm512_loadu_ps(sums.as_ptr()));
                }
            }
        }
    }
}

/// A block of sums into tiles 0 to 3.
///
/// # Safety
/// `sums` is a block; the tiles are configured.
#[inline(always)]
unsafe fn load_block(sums: *const f32) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "tileloaddt1 tmm0, [{sums} + {line}]", "tileloaddt1 tmm1, [{sums} + {line} + 1024]",
            "tileloaddt1 tmm2, [{sums} + {line} + 2048]", "tileloaddt1 tmm3, [{sums} + {line} + 3072]",
            sums = in(reg) sums, line = in(reg) LINE,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            options(nostack, readonly),
        );
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
            "prefetcht1 [{ahead}]",
            "tdpbf16ps tmm0, tmm4, tmm6", "tileloadd tmm7, [{b1} + {line}]",
            "tdpbf16ps tmm1, tmm4, tmm7", "tileloaddt1 tmm5, [{a1} + {line}]",
            "prefetcht1 [{ahead} + 64]", "add {ahead}, 128",
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
