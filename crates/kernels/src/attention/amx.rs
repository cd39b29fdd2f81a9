//! AMX: the products of a bundle of up to 32 rows, two by two tiles at a time.
//!
//! Tiles 0 to 3 hold sums (16 rows x panel), 4 and 5 the left operand, 6 and 7 lines of two panels. Tiles are configured once for all
//! products of a task; a tile of fewer rows gives each row the same bits.
#![expect(unsafe_code, reason = "tile instructions exist only in inline assembly")]

use std::arch::asm;

use super::{BUNDLE, KEY_BLOCK, KEY_STEP, STEP_BLOCKS};
use crate::matmul::amx::{Target, TileConfig, tiles_1x2, tiles_2x2};
use crate::operand::Operand;
use crate::panels::PANEL_WIDTH;

const TILE_ROWS: usize = 16;
/// Values of a row of a tile of operands.
const TILE_K: usize = 32;
/// Values in a tile of operands.
const TILE_LEN: usize = TILE_ROWS * TILE_K;

/// The configured tiles of this thread.
pub(super) struct Tiles {
    /// Rows of a tile of the left operand.
    n_rows: usize,
}

impl Tiles {
    /// Tiles for tasks of `n_rows` rows of bf16.
    ///
    /// # Safety
    /// The process may use AMX. Nothing else configures this thread's tiles while these live.
    pub(super) unsafe fn configure(n_rows: usize) -> Self {
        let n_rows = n_rows.min(TILE_ROWS);
        let [left, right] = [[n_rows, 64], [TILE_ROWS, 64]];
        let config = TileConfig::new([left, left, left, left, left, left, right, right]);
        // SAFETY: the caller's promise; the shapes are those of whole rows.
        unsafe { config.load() };
        Self { n_rows }
    }

    /// Rows that products of `n_rows` rows read and write: more than these where they fill no tile.
    fn tile_rows(&self, n_rows: usize) -> usize {
        let n_tiles = n_rows.div_ceil(TILE_ROWS);
        assert!(n_tiles <= BUNDLE / TILE_ROWS && (n_tiles == 1 || self.n_rows == TILE_ROWS));
        (n_tiles - 1) * TILE_ROWS + self.n_rows
    }

    /// Scores of `n_rows` queries, `[rows, stride]`, for a block of keys in panels: out `[rows, KEY_STEP]`, of which the first
    /// [`KEY_BLOCK`] columns are overwritten. Rows are there for whole tiles.
    pub(super) fn scores<T: Operand>(
        &self,
        queries: &[T],
        stride: usize,
        n_rows: usize,
        keys: &[T],
        out: &mut [f32],
    ) {
        let tile_rows = self.tile_rows(n_rows);
        assert!(T::GROUP == 2 && stride.is_multiple_of(TILE_K) && stride > 0);
        assert!(queries.len() >= tile_rows * stride && keys.len() == KEY_BLOCK * stride);
        assert!(out.len() >= (tile_rows - 1) * KEY_STEP + KEY_BLOCK);
        let row = |row: usize| queries.as_ptr().wrapping_add(row * stride).cast::<u32>();
        let panel =
            |panel: usize| keys.as_ptr().wrapping_add(panel * PANEL_WIDTH * stride).cast::<u32>();
        let b = [panel(0), panel(1)];
        let (a_stride, n_steps) = (stride * size_of::<T>(), stride / TILE_K);
        let top = out.as_mut_ptr();
        let bottom = top.wrapping_add(TILE_ROWS * KEY_STEP);
        let target = Target { top, bottom, stride: KEY_STEP };
        // SAFETY: operands and output hold the tiles, just checked.
        unsafe {
            if n_rows > TILE_ROWS {
                tiles_2x2([row(0), row(TILE_ROWS)], a_stride, b, n_steps, target);
            } else {
                tiles_1x2(row(0), a_stride, b, n_steps, target);
            }
        }
    }

    /// `sums[row] += probabilities[row] . values` over blocks of values in panels, one block after the other.
    ///
    /// Shapes: probabilities `[rows, KEY_STEP]`, from the column of the first block on; sums `[rows, stride]`, the stride being a multiple of
    /// two panels: what stands beside the last of an odd number of panels is overwritten. Rows are there for whole tiles.
    pub(super) fn mix<T: Operand>(
        &self,
        probabilities: &[T],
        n_rows: usize,
        values: &[&[T]],
        sums: &mut [f32],
        stride: usize,
    ) {
        let Some(first) = values.first() else { return };
        let tile_rows = self.tile_rows(n_rows);
        let n_panels = first.len() / TILE_LEN;
        assert!(T::GROUP == 2 && values.len() <= STEP_BLOCKS);
        assert!(values.iter().all(|values| values.len() == n_panels * TILE_LEN));
        assert!(stride == n_panels.next_multiple_of(2) * PANEL_WIDTH);
        assert!(sums.len() >= tile_rows * stride);
        let p_len = (tile_rows - 1) * KEY_STEP + values.len() * KEY_BLOCK;
        assert!(probabilities.len() >= p_len);
        let p = probabilities.as_ptr().cast::<u8>();
        for panel in (0..n_panels).step_by(2) {
            let mut b = [[std::ptr::null(); 2]; STEP_BLOCKS];
            for (b, values) in b.iter_mut().zip(values) {
                let right = (panel + 1).min(n_panels - 1);
                *b = [panel, right].map(|panel| values[panel * TILE_LEN..].as_ptr().cast::<u8>());
            }
            let sums = sums[panel * PANEL_WIDTH..].as_mut_ptr();
            let b = &b[..values.len()];
            // SAFETY: operands and sums hold the tiles, just checked.
            unsafe {
                if n_rows > TILE_ROWS {
                    mix_2x2(p, b, sums, stride * size_of::<f32>());
                } else {
                    mix_1x2(p, b, sums, stride * size_of::<f32>());
                }
            }
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: the process may use AMX, by the promise to `configure`.
        unsafe { TileConfig::release() };
    }
}

/// Bytes between rows of probabilities, which are bf16.
const P_STRIDE: usize = KEY_STEP * 2;

/// # Safety
/// `p` is readable for 32 rows of as many blocks as `b` has, each of its pointers for a tile, `sums` usable for 32 rows of two panels, `stride`
/// bytes apart; tiles are configured; `b` is not empty.
unsafe fn mix_2x2(p: *const u8, b: &[[*const u8; 2]], sums: *mut f32, stride: usize) {
    // SAFETY: the caller's promise; all tiles used are declared as clobbered.
    unsafe {
        asm!(
            "tileloadd tmm0, [{top} + {stride}]", "tileloadd tmm1, [{top} + {stride} + 64]",
            "tileloadd tmm2, [{bottom} + {stride}]", "tileloadd tmm3, [{bottom} + {stride} + 64]",
            "2:",
            "mov {b}, [{table}]",
            "tileloadd tmm4, [{p} + {p_stride}]", "tileloadd tmm6, [{b} + {line}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "mov {b}, [{table} + 8]", "tileloadd tmm7, [{b} + {line}]",
            "tdpbf16ps tmm1, tmm4, tmm7", "tileloadd tmm5, [{p} + {p_stride} + {below}]",
            "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7",
            "add {p}, 64", "add {table}, 16",
            "dec {n}", "jnz 2b",
            "tilestored [{top} + {stride}], tmm0", "tilestored [{top} + {stride} + 64], tmm1",
            "tilestored [{bottom} + {stride}], tmm2", "tilestored [{bottom} + {stride} + 64], tmm3",
            p = inout(reg) p => _, table = inout(reg) b.as_ptr() => _, n = inout(reg) b.len() => _,
            b = out(reg) _, top = in(reg) sums,
            bottom = in(reg) sums.wrapping_byte_add(TILE_ROWS * stride), stride = in(reg) stride,
            p_stride = in(reg) P_STRIDE, line = in(reg) 64_usize,
            below = const TILE_ROWS * P_STRIDE,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// # Safety
/// As [`mix_2x2`], for the rows of one tile.
unsafe fn mix_1x2(p: *const u8, b: &[[*const u8; 2]], sums: *mut f32, stride: usize) {
    // SAFETY: as in `mix_2x2`.
    unsafe {
        asm!(
            "tileloadd tmm0, [{sums} + {stride}]", "tileloadd tmm1, [{sums} + {stride} + 64]",
            "2:",
            "mov {b}, [{table}]",
            "tileloadd tmm4, [{p} + {p_stride}]", "tileloadd tmm6, [{b} + {line}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "mov {b}, [{table} + 8]", "tileloadd tmm7, [{b} + {line}]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "add {p}, 64", "add {table}, 16",
            "dec {n}", "jnz 2b",
            "tilestored [{sums} + {stride}], tmm0", "tilestored [{sums} + {stride} + 64], tmm1",
            p = inout(reg) p => _, table = inout(reg) b.as_ptr() => _, n = inout(reg) b.len() => _,
            b = out(reg) _, sums = in(reg) sums, stride = in(reg) stride,
            p_stride = in(reg) P_STRIDE, line = in(reg) 64_usize,
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
