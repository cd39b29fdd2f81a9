//! The products of attention: rows with blocks of [`KEY_BLOCK`] keys, values or queries in panels.

#[cfg(target_arch = "x86_64")]
use super::amx;
use super::{KEY_BLOCK, KEY_STEP};
use crate::compute::Family;
use crate::matmul::{Left, Write, matmul_here};
use crate::operand::Operand;
use crate::pool::TileScratch;

/// How products are computed.
pub(super) enum Products<'a> {
    #[cfg(target_arch = "x86_64")]
    Tiles(amx::Tiles),
    Rows(Family, &'a mut TileScratch),
}

impl<'a> Products<'a> {
    /// Those of a task of `n_rows` rows.
    #[expect(unsafe_code, reason = "configures tiles where detection found them")]
    pub(super) fn new<T: Operand>(
        family: Family,
        n_rows: usize,
        scratch: &'a mut TileScratch,
    ) -> Self {
        #[cfg(target_arch = "x86_64")]
        if family == Family::Amx && T::GROUP == 2 {
            // SAFETY: a Compute of this family exists only where the process may use AMX; a task's products are all its own.
            return Self::Tiles(unsafe { amx::Tiles::configure(n_rows) });
        }
        let _ = n_rows;
        Self::Rows(family, scratch)
    }

    /// `out[row, key] = x[row] . keys[key]` for a block of keys.
    ///
    /// Shapes: x `[n_rows, stride]`, of which `head_dim` are multiplied; keys, panels of `[KEY_BLOCK, head_dim]`; out `[n_rows, KEY_STEP]` from the
    /// column of the first key on. Where tiles multiply, x and out have the rows of whole tiles, and x zeros behind `head_dim`.
    pub(super) fn scores<T: Operand>(
        &mut self,
        [n_rows, head_dim]: [usize; 2],
        x: &[T],
        stride: usize,
        keys: &[T],
        out: &mut [f32],
    ) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Tiles(tiles) => tiles.scores(x, stride, n_rows, keys, out),
            Self::Rows(family, scratch) => {
                let left = Left::Rows { values: x, stride };
                let dims = [n_rows, KEY_BLOCK, head_dim];
                matmul_here(*family, scratch, left, keys, dims, out, KEY_STEP, Write::Overwrite);
            }
        }
    }

    /// `sums[row] += factors[row] . values` for up to two blocks of values, one after the other.
    ///
    /// Shapes: factors `[n_rows, KEY_STEP]` from the column of the first block on; each block, panels of `[n_columns, KEY_BLOCK]`; sums `[n_rows,
    /// stride]`. Where tiles multiply, factors and sums have the rows of whole tiles, and the stride is that of whole pairs of panels, whose
    /// last columns may be overwritten.
    pub(super) fn mix<T: Operand>(
        &mut self,
        [n_rows, n_columns]: [usize; 2],
        factors: &[T],
        values: &[&[T]],
        sums: &mut [f32],
        stride: usize,
    ) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Tiles(tiles) => tiles.mix(factors, n_rows, values, sums, stride),
            Self::Rows(family, scratch) => {
                for (block, values) in values.iter().enumerate() {
                    let factors = &factors[block * KEY_BLOCK..];
                    let left = Left::Rows { values: factors, stride: KEY_STEP };
                    let (dims, write) = ([n_rows, n_columns, KEY_BLOCK], Write::Accumulate);
                    matmul_here(*family, scratch, left, values, dims, sums, stride, write);
                }
            }
        }
    }
}
