//! A task of a product of bf16 on AMX: which way it goes, and its working memory.
#![expect(unsafe_code, reason = "kernels take pointers")]

use super::packed::{self, Part};
use crate::compute::Family;
use crate::matmul::{
    AMX_WHOLE_K, Block, FEW_ROWS, K_BLOCK, Left, Region, Right, rows_len, unpacked_lens,
};
use crate::operand::Operand;
use crate::panels::{PANEL_WIDTH, padded_k, panel_index, panels_len};
use crate::pool::{PackedRows, TileScratch, reinterpret};
use crate::transpose::transpose_into_tiles;

/// Values in four tiles of sums, which a product of few rows writes before they go where they belong.
const N_SUMS: usize = 4 * PANEL_WIDTH * PANEL_WIDTH;

/// All of K for a region whose column is a multiple of 16, k not 0.
///
/// # Safety
/// As [`crate::matmul::multiply_region`], in a process that may use AMX.
pub(in crate::matmul) unsafe fn multiply<T: Operand>(
    scratch: &mut TileScratch,
    a: Left<'_, T>,
    b: Right<'_, T>,
    k: usize,
    region: Region,
    block: Block,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match (a, b) {
            (Left::Rows { values, stride }, Right::Panels(panels))
                if region.n_rows <= FEW_ROWS && !block.is_rounded =>
            {
                let k_padded = padded_k::<T>(k);
                let n_padded_groups = k_padded / T::GROUP;
                let [rows, sums] = scratch.floats([region.n_rows * n_padded_groups, N_SUMS]);
                let block = Block {
                    a: values[region.row * stride..].as_ptr().cast(),
                    a_row_stride: stride / T::GROUP,
                    b: panels[panel_index::<T>(region.column, 0, k_padded)..].as_ptr().cast(),
                    b_panel_stride: PANEL_WIDTH * n_padded_groups,
                    n_groups: k / T::GROUP,
                    ..block
                };
                super::multiply(&block, rows, sums);
            }
            _ => multiply_parts(scratch, a, b, k, region, block),
        }
    }
}

/// Part after part of K, the left operand packed.
///
/// # Safety
/// As [`multiply`].
unsafe fn multiply_parts<T: Operand>(
    scratch: &mut TileScratch,
    a: Left<'_, T>,
    b: Right<'_, T>,
    k: usize,
    region: Region,
    block: Block,
) {
    let Region { job, row, n_rows, column, n_columns } = region;
    let (k_padded, max_k) = (padded_k::<T>(k), if k > AMX_WHOLE_K { K_BLOCK } else { k });
    let n_parts = k.div_ceil(max_k);
    let [unpacking_len, unpacked_len] = unpacked_lens::<T>(b, n_columns, max_k);
    let packed = job.map(|job| PackedRows { job, row, n_rows }).filter(|_| n_parts == 1);
    let lens = [
        packed::tiles_len(n_rows, padded_k::<T>(max_k) / T::GROUP),
        packed::sums_len([n_rows, n_columns], n_parts),
        unpacking_len,
        unpacked_len,
    ];
    let ([tiles, sums, unpacking, unpacked], is_packed) = scratch.floats_after(packed, lens);
    for first_k in (0..k).step_by(max_k) {
        let part_k = max_k.min(k - first_k);
        let (b, b_panel_len) = match b {
            Right::Panels(panels) => {
                let start = panel_index::<T>(column, first_k, k_padded);
                (panels[start..].as_ptr(), PANEL_WIDTH * k_padded)
            }
            Right::Blocks(blocks) => {
                let panels = &mut reinterpret::<T>(unpacked)[..panels_len::<T>(n_columns, part_k)];
                let family = Family::Amx;
                blocks.unpack(family, [column, n_columns], [first_k, part_k], unpacking, panels);
                (panels.as_ptr(), PANEL_WIDTH * padded_k::<T>(part_k))
            }
        };
        if !is_packed {
            pack_left(a, [row, first_k], [n_rows, part_k], tiles);
        }
        let block = Block {
            b: b.cast(),
            b_panel_stride: b_panel_len / T::GROUP,
            n_groups: part_k.div_ceil(T::GROUP),
            ..block
        };
        let part = Part { is_first: first_k == 0, is_last: first_k + part_k == k };
        // SAFETY: the caller's promise, cut to this part of K.
        unsafe { packed::multiply(&block, part, tiles, sums) };
    }
}

/// Packs some of K of some rows of the left operand into tiles.
fn pack_left<T: Operand>(
    a: Left<'_, T>,
    [row, first_k]: [usize; 2],
    [n_rows, n_k]: [usize; 2],
    tiles: &mut [f32],
) {
    match a {
        Left::Rows { values, stride } => {
            let values = &values[row * stride + first_k..];
            assert!(values.len() >= rows_len(n_rows, stride, n_k), "a has {n_rows} rows");
            let (shape, stride) = ([n_rows, n_k / T::GROUP], stride / T::GROUP);
            // SAFETY: the length was checked; the family AMX runs only where its instructions are.
            unsafe { packed::pack_rows(values.as_ptr().cast(), stride, shape, tiles) };
        }
        Left::Columns { values, stride } => {
            let (source, out) = (&values[first_k * stride + row..], reinterpret::<T>(tiles));
            // SAFETY: the family AMX runs only where its instructions are.
            unsafe { transpose_into_tiles(source, stride, [n_rows, n_k], out) };
        }
    }
}
