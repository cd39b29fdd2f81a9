//! Panels: the layout of the right operand of matrix products.
//!
//! A matrix `B [n, k]` (for a weight: n outputs, k inputs) is cut into panels of 16 of its n rows. A panel is stored
//! as `[k_padded / group, 16, group]`: the values of one group of k (2 bf16 or 1 f32, 4 bytes) of 16 rows make one
//! 64-byte line, which is one AVX-512 register, two AVX2 registers, or one row of an AMX tile. n is padded with
//! zero rows to a multiple of 16, k with zeros to a multiple of [`Operand::K_STEP`].
//!
//! The layout is private to the families of this crate and never an exchange format.

#[cfg(target_arch = "x86_64")]
mod avx512;

use crate::buffer::Buffer;
use crate::compute::{Compute, Family};
use crate::lanes::{LaneKernel, Lanes, dispatch};
use crate::operand::Operand;
use crate::prefetch::prefetch;

/// Rows of the matrix in a panel.
pub const PANEL_WIDTH: usize = 16;

/// Panels that one task packs: their rows of the source fill whole cache lines.
const PANELS_TOGETHER: usize = 4;
/// Groups of k that are packed for one panel after the other.
const GROUPS_TOGETHER: usize = 16;

/// k rounded up to what panels hold.
#[must_use]
pub fn padded_k<T: Operand>(k: usize) -> usize {
    k.next_multiple_of(T::K_STEP)
}

/// Values in the panels of an `[n, k]` matrix.
#[must_use]
pub fn panels_len<T: Operand>(n: usize, k: usize) -> usize {
    let padded_n = n.checked_next_multiple_of(PANEL_WIDTH);
    let padded_k = k.checked_next_multiple_of(T::K_STEP);
    let len = padded_n.zip(padded_k).and_then(|(n, k)| n.checked_mul(k));
    len.expect("the number of values fits usize")
}

/// Position of value (n, k) within the panels of a matrix with `k_padded` padded columns.
#[must_use]
pub fn panel_index<T: Operand>(n: usize, k: usize, k_padded: usize) -> usize {
    let (panel, lane) = (n / PANEL_WIDTH, n % PANEL_WIDTH);
    let (group, offset) = (k / T::GROUP, k % T::GROUP);
    panel * PANEL_WIDTH * k_padded + (group * PANEL_WIDTH + lane) * T::GROUP + offset
}

/// How the source of a packing lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceOrder {
    /// `[n, k]`: value (n, k) at `n * stride + k`.
    RowsOfN,
    /// `[k, n]`: value (n, k) at `k * stride + n`.
    RowsOfK,
}

/// A matrix to be packed.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a, S> {
    /// The values.
    pub values: &'a [S],
    /// Distance between rows.
    pub stride: usize,
    /// Which dimension the rows are.
    pub order: SourceOrder,
}

impl<'a, S> Source<'a, S> {
    /// A dense `[n, k]` matrix.
    pub fn rows_of_n(values: &'a [S], k: usize) -> Self {
        Self { values, stride: k, order: SourceOrder::RowsOfN }
    }

    /// A dense `[k, n]` matrix.
    pub fn rows_of_k(values: &'a [S], n: usize) -> Self {
        Self { values, stride: n, order: SourceOrder::RowsOfK }
    }
}

/// An owned matrix in panels.
#[derive(Clone, Debug)]
pub struct Panels<T: Operand> {
    n: usize,
    k: usize,
    values: Buffer<T>,
}

impl<T: Operand> Panels<T> {
    /// A matrix of zeros.
    #[must_use]
    pub fn zeroed(n: usize, k: usize) -> Self {
        Self { n, k, values: Buffer::zeroed(panels_len::<T>(n, k)) }
    }

    /// Packs `source` into a new matrix.
    #[must_use]
    pub fn packed<S: Operand>(
        compute: &Compute,
        source: Source<'_, S>,
        n: usize,
        k: usize,
    ) -> Self {
        let mut panels = Self::zeroed(n, k);
        panels.pack(compute, source);
        panels
    }

    /// Overwrites the matrix with `source`, rounding to the operand type.
    pub fn pack<S: Operand>(&mut self, compute: &Compute, source: Source<'_, S>) {
        pack(compute, source, [self.n, self.k], &mut self.values);
    }

    /// Overwrites the rows of the matrix from `first_n` on with dense rows. They fill whole panels, but for the last of the matrix.
    ///
    /// # Panics
    /// When they do not, or are not in the matrix.
    pub fn pack_rows<S: Operand>(
        &mut self,
        compute: &Compute,
        first_n: usize,
        source: Source<'_, S>,
    ) {
        let n_rows = source.values.len() / self.k.max(1);
        let end = first_n + n_rows;
        assert!(first_n.is_multiple_of(PANEL_WIDTH), "rows from {first_n} on fill no panels");
        assert!(
            end == self.n || (end < self.n && end.is_multiple_of(PANEL_WIDTH)),
            "rows up to {end} of {}",
            self.n
        );
        let start = panels_len::<T>(first_n, self.k);
        let panels = &mut self.values[start..start + panels_len::<T>(n_rows, self.k)];
        pack(compute, source, [n_rows, self.k], panels);
    }

    /// Rows of the matrix (outputs of a weight).
    #[must_use]
    pub fn n(&self) -> usize {
        self.n
    }

    /// Columns of the matrix (inputs of a weight).
    #[must_use]
    pub fn k(&self) -> usize {
        self.k
    }

    /// The values, `[n_padded / 16, k_padded / group, 16, group]`.
    #[must_use]
    pub fn values(&self) -> &[T] {
        &self.values
    }

    /// Value (n, k).
    #[must_use]
    pub fn get(&self, n: usize, k: usize) -> T {
        assert!(n < self.n && k < self.k, "({n}, {k}) outside [{}, {}]", self.n, self.k);
        self.values[panel_index::<T>(n, k, padded_k::<T>(self.k))]
    }
}

/// Packs `source`, a matrix `[n, k]`, into panels: `out[panel(n, k)] = round(source(n, k))`, padding with zeros.
///
/// Shapes: source `[n, k]` or `[k, n]` by its order; out [`panels_len`]. Overwrites all of `out`.
///
/// # Panics
/// When a slice is too short for the shape.
pub fn pack<S: Operand, T: Operand>(
    compute: &Compute,
    source: Source<'_, S>,
    [n, k]: [usize; 2],
    out: &mut [T],
) {
    let k_padded = padded_k::<T>(k);
    assert_eq!(out.len(), panels_len::<T>(n, k), "panels of [{n}, {k}]");
    check_source(source, n, k);
    let family = compute.family();
    let chunk_len = (PANELS_TOGETHER * PANEL_WIDTH * k_padded).max(1);
    compute.pool().run_chunks(out, chunk_len, |chunk_idx, panels, _| {
        pack_panels(family, source, chunk_idx * PANELS_TOGETHER * PANEL_WIDTH, [n, k], panels);
    });
}

/// As [`pack`] on the calling thread, for operands made within a task.
pub(crate) fn pack_here<S: Operand, T: Operand>(
    family: Family,
    source: Source<'_, S>,
    [n, k]: [usize; 2],
    out: &mut [T],
) {
    assert_eq!(out.len(), panels_len::<T>(n, k), "panels of [{n}, {k}]");
    check_source(source, n, k);
    pack_panels(family, source, 0, [n, k], out);
}

fn check_source<S>(source: Source<'_, S>, n: usize, k: usize) {
    let (n_rows, row_len) = match source.order {
        SourceOrder::RowsOfN => (n, k),
        SourceOrder::RowsOfK => (k, n),
    };
    assert!(row_len <= source.stride || n_rows <= 1, "rows of {row_len} overlap");
    let needed = if n_rows == 0 { 0 } else { (n_rows - 1) * source.stride + row_len };
    assert!(source.values.len() >= needed, "{} values, expected {needed}", source.values.len());
}

/// Panels that follow one another, from row `first_n` of the matrix on.
fn pack_panels<S: Operand, T: Operand>(
    family: Family,
    source: Source<'_, S>,
    first_n: usize,
    [n, k]: [usize; 2],
    panels: &mut [T],
) {
    let panel_len = (PANEL_WIDTH * padded_k::<T>(k)).max(1);
    let width = |panel_idx: usize| PANEL_WIDTH.min(n - first_n - panel_idx * PANEL_WIDTH);
    if source.order == SourceOrder::RowsOfN || family == Family::Reference {
        for (panel_idx, panel) in panels.chunks_mut(panel_len).enumerate() {
            let first_n = first_n + panel_idx * PANEL_WIDTH;
            gather_panel(family, source, first_n, [width(panel_idx), k], panel);
        }
        return;
    }
    // A few rows of k at a time, so that a cache line of the source serves all panels that it belongs to.
    let block_len = GROUPS_TOGETHER * PANEL_WIDTH * T::GROUP;
    let n_columns = (n - first_n).min(panels.len() / panel_len * PANEL_WIDTH);
    for block_start in (0..panel_len).step_by(block_len) {
        // Rows are far apart: no hardware expects the next ones.
        let next = (block_start + block_len) / PANEL_WIDTH;
        for k_idx in next.min(k)..k.min(next + block_len / PANEL_WIDTH) {
            let row = &source.values[k_idx * source.stride + first_n..][..n_columns];
            prefetch(row.as_ptr().cast(), size_of_val(row));
        }
        for (panel_idx, panel) in panels.chunks_mut(panel_len).enumerate() {
            let lines = &mut panel[block_start..panel_len.min(block_start + block_len)];
            let first_k = block_start / PANEL_WIDTH;
            let (first_n, width) = (first_n + panel_idx * PANEL_WIDTH, width(panel_idx));
            dispatch(family, InterleaveRows { source, first_n, width, first_k, k, lines });
        }
    }
}

/// One panel. The scalar code is the definition for both orders; with AVX-512 rows of n are loaded whole and transposed.
#[expect(unsafe_code, reason = "the vector version takes pointers")]
fn gather_panel<S: Operand, T: Operand>(
    family: Family,
    source: Source<'_, S>,
    first_n: usize,
    [width, k]: [usize; 2],
    panel: &mut [T],
) {
    #[cfg(target_arch = "x86_64")]
    if source.order == SourceOrder::RowsOfN && matches!(family, Family::Avx512 | Family::Amx) {
        let values = source.values.as_ptr().wrapping_add(first_n * source.stride);
        // SAFETY: `check_source` found all rows in the source; the families are there only where their instructions are.
        return unsafe { avx512::gather_panel(values, source.stride, [width, k], panel) };
    }
    let _ = family;
    let (n_stride, k_stride) = match source.order {
        SourceOrder::RowsOfN => (source.stride, 1),
        SourceOrder::RowsOfK => (1, source.stride),
    };
    for (group_idx, line) in panel.chunks_exact_mut(PANEL_WIDTH * T::GROUP).enumerate() {
        for (lane, group) in line.chunks_exact_mut(T::GROUP).enumerate() {
            for (offset, value) in group.iter_mut().enumerate() {
                let k_idx = group_idx * T::GROUP + offset;
                *value = if lane < width && k_idx < k {
                    T::from_f32(
                        source.values[(first_n + lane) * n_stride + k_idx * k_stride].to_f32(),
                    )
                } else {
                    T::from_f32(0.0)
                };
            }
        }
    }
}

/// Lines of one panel of a source with rows of k: the rows of a group are interleaved.
struct InterleaveRows<'a, S, T> {
    source: Source<'a, S>,
    first_n: usize,
    width: usize,
    first_k: usize,
    k: usize,
    lines: &'a mut [T],
}

impl<S: Operand, T: Operand> LaneKernel for InterleaveRows<'_, S, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let Self { source, first_n, width, first_k, k, lines } = self;
        let row = |k_idx: usize| -> &[S] {
            if k_idx < k { &source.values[k_idx * source.stride + first_n..][..width] } else { &[] }
        };
        for (group_idx, line) in lines.chunks_exact_mut(PANEL_WIDTH * T::GROUP).enumerate() {
            let first = row(first_k + group_idx * T::GROUP);
            let second = if T::GROUP > 1 { row(first_k + group_idx * T::GROUP + 1) } else { &[] };
            for (chunk_idx, out) in line.chunks_exact_mut(L::N * T::GROUP).enumerate() {
                let start = chunk_idx * L::N;
                let a = S::load(lanes, &first[start.min(first.len())..]);
                let b = S::load(lanes, &second[start.min(second.len())..]);
                T::store_groups(lanes, a, b, out);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;
    use testkit::close::Tolerance;

    use super::*;
    use crate::test_support::{LARGE, check_special_values, normal};

    fn check<S: Operand, T: Operand>(compute: &Compute) {
        for (n, k) in [(1, 1), (16, 2), (17, 3), (40, 64), (5, 33), (33, 70)] {
            for order in [SourceOrder::RowsOfN, SourceOrder::RowsOfK] {
                let stride = 3 + if order == SourceOrder::RowsOfN { k } else { n };
                let values: Vec<S> =
                    (0..stride * n.max(k)).map(|i| S::from_f32(i as f32 * 0.37 - 50.0)).collect();
                let panels =
                    Panels::<T>::packed(compute, Source { values: &values, stride, order }, n, k);
                let mut expected_sum = 0.0;
                for n_idx in 0..n {
                    for k_idx in 0..k {
                        let position = match order {
                            SourceOrder::RowsOfN => n_idx * stride + k_idx,
                            SourceOrder::RowsOfK => k_idx * stride + n_idx,
                        };
                        let expected = T::from_f32(values[position].to_f32());
                        assert_eq!(panels.get(n_idx, k_idx), expected, "{n} {k} {n_idx} {k_idx}");
                        expected_sum += f64::from(expected.to_f32().abs());
                    }
                }
                let sum: f64 = panels.values().iter().map(|v| f64::from(v.to_f32().abs())).sum();
                assert!(
                    (sum - expected_sum).abs() < 1e-6 * expected_sum.max(1.0),
                    "padding is not zero"
                );
            }
        }
    }

    fn check_special<T: Operand>(order: SourceOrder) {
        let (n, k) = (21, 37);
        let stride = 3 + if order == SourceOrder::RowsOfN { k } else { n };
        check_special_values(
            [normal(1, stride * if order == SourceOrder::RowsOfN { n } else { k }, 1.0)],
            LARGE,
            // Subnormals of bf16 may become zero.
            Tolerance::absolute(1e-38),
            |compute, [values]| {
                let panels = Panels::<T>::packed(compute, Source { values, stride, order }, n, k);
                panels.values().iter().map(|x| x.to_f32()).collect()
            },
            |_, place, output| {
                let (row, column) = (place / stride, place % stride);
                let (n_idx, k_idx) =
                    if order == SourceOrder::RowsOfN { (row, column) } else { (column, row) };
                let is_inside = n_idx < n && k_idx < k;
                is_inside && panel_index::<T>(n_idx, k_idx, padded_k::<T>(k)) == output
            },
        );
    }

    #[test]
    fn special_values_stay_in_their_places() {
        for order in [SourceOrder::RowsOfN, SourceOrder::RowsOfK] {
            check_special::<f32>(order);
            check_special::<bf16>(order);
        }
    }

    #[test]
    fn panels_hold_every_value_and_zeros_elsewhere() {
        for compute in crate::test_support::computes(2) {
            check::<f32, f32>(&compute);
            check::<f32, bf16>(&compute);
            check::<bf16, bf16>(&compute);
        }
    }
}
