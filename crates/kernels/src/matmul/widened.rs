//! Products of many rows of bf16 in families that multiply f32: both operands are widened once for all tiles of a block.
//!
//! Widening is exact, and the products are added in the order of K either way: no bit depends on it.
#![expect(unsafe_code, reason = "kernels take pointers")]

use half::bf16;

use super::{Block, FEW_ROWS, multiply_block};
use crate::compute::Family;
use crate::lanes::{LaneKernel, Lanes, dispatch};
use crate::operand::Operand;
use crate::panels::PANEL_WIDTH;

/// Most columns that are few. Widening the rows takes a share of the time of a product that falls with its columns: those of attention are too
/// few.
const FEW_COLUMNS: usize = 128;

/// Numbers between two rows. Rows that lie a power of two apart would have the same few places of the nearest cache.
const ROW_GAP: usize = 16;

/// Whether a family widens operands of bf16.
pub(super) fn is_of(family: Family) -> bool {
    matches!(family, Family::Avx2 | Family::Avx512)
}

/// Whether the rows and columns of a region are so many that its operands are widened.
pub(super) fn is_used<T: Operand>(family: Family, [n_rows, n_columns]: [usize; 2]) -> bool {
    T::GROUP == 2 && is_of(family) && n_rows > FEW_ROWS && n_columns > FEW_COLUMNS
}

/// Panels of a tile, which are widened together.
fn tile_panels(family: Family) -> usize {
    #[cfg(target_arch = "x86_64")]
    if family == Family::Avx512 {
        return super::avx512::TILE_PANELS;
    }
    let _ = family;
    1
}

/// Lengths of the working memory of a block of so many rows and numbers of K: widened rows and panels.
pub(super) fn scratch_lens(family: Family, n_rows: usize, n_k: usize) -> [usize; 2] {
    [n_rows * (n_k + ROW_GAP), tile_panels(family) * PANEL_WIDTH * n_k]
}

/// The product of a block of bf16.
///
/// # Safety
/// As [`multiply_block`].
pub(super) unsafe fn multiply(family: Family, block: &Block, [rows, panels]: [&mut [f32]; 2]) {
    assert_eq!(block.b_group_stride, PANEL_WIDTH, "{block:?}");
    let n_k = 2 * block.n_groups;
    let row_len = n_k + ROW_GAP;
    dispatch(family, WidenRows { block, out: &mut rows[..block.n_rows * row_len] });
    let n_panels = block.n_columns.div_ceil(PANEL_WIDTH);
    let most = tile_panels(family);
    for panel in (0..n_panels).step_by(most) {
        let n_together = most.min(n_panels - panel);
        let out = &mut panels[..n_together * PANEL_WIDTH * n_k];
        let range = panel..panel + n_together;
        dispatch(family, WidenPanels { block, range, out });
        let column = panel * PANEL_WIDTH;
        let wide = Block {
            a: rows.as_ptr().cast(),
            a_row_stride: row_len,
            b: panels.as_ptr().cast(),
            b_panel_stride: PANEL_WIDTH,
            b_group_stride: n_together * PANEL_WIDTH,
            out: block.out_at(0, column),
            n_columns: (n_together * PANEL_WIDTH).min(block.n_columns - column),
            n_groups: n_k,
            ..*block
        };
        // SAFETY: the operands were written above; the output is the caller's.
        unsafe { multiply_block::<f32>(family, wide) };
    }
}

/// The left operand, `[n_rows, n_k + ROW_GAP]`.
struct WidenRows<'a> {
    block: &'a Block,
    out: &'a mut [f32],
}

impl LaneKernel for WidenRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let n_k = 2 * self.block.n_groups;
        for (row, out) in self.out.chunks_exact_mut(n_k + ROW_GAP).enumerate() {
            let values = self.block.a.wrapping_add(self.block.a_row(row)).cast::<bf16>();
            // SAFETY: a row of the block.
            let values = unsafe { std::slice::from_raw_parts(values, n_k) };
            for i in (0..n_k).step_by(L::N) {
                lanes.store(lanes.load_bf16(&values[i..]), &mut out[i..n_k]);
            }
        }
    }
}

/// Panels of the right operand, `[n_k, n_panels, 16]`, by a loop that the compiler makes as wide as the family's registers.
struct WidenPanels<'a> {
    block: &'a Block,
    range: std::ops::Range<usize>,
    out: &'a mut [f32],
}

impl LaneKernel for WidenPanels<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, _lanes: L) {
        let Self { block, range, out } = self;
        let n_panels = range.len();
        for (j, panel) in range.enumerate() {
            let lines =
                block.b.wrapping_add(panel * block.b_panel_stride).cast::<[u32; PANEL_WIDTH]>();
            for (group, out) in out.chunks_exact_mut(2 * n_panels * PANEL_WIDTH).enumerate() {
                // SAFETY: a line of the block.
                let line = unsafe { lines.add(group).read_unaligned() };
                let (even, odd) = out.split_at_mut(n_panels * PANEL_WIDTH);
                let even = &mut even[j * PANEL_WIDTH..][..PANEL_WIDTH];
                let odd = &mut odd[j * PANEL_WIDTH..][..PANEL_WIDTH];
                for i in 0..PANEL_WIDTH {
                    even[i] = f32::from_bits(line[i] << 16);
                    odd[i] = f32::from_bits(line[i] & 0xFFFF_0000);
                }
            }
        }
    }
}
