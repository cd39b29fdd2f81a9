//! Rotary position embedding.

use crate::compute::{Compute, Family};
use crate::lanes::{LaneKernel, Lanes, dispatch};
use crate::operand::Operand;
use crate::pool::RowsOut;
use crate::reference;

/// Rows of one task.
const TASK_ROWS: usize = 16;

/// How the pairs of a head turn with the position.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeFrequencies {
    /// Angle of each pair per position, `[head_dim / 2]`, in radians.
    pub radians: Vec<f64>,
    /// Factor of cosines and sines.
    pub amplitude: f64,
    /// Queries grow with the position: `(beta, original_context_len)` of `1 + beta ln(1 + floor(position / original_context_len))`.
    pub query_growth: Option<(f64, u32)>,
}

impl RopeFrequencies {
    /// `theta^(-2 i / head_dim)`, without any scaling.
    ///
    /// # Panics
    /// When `head_dim` is odd.
    #[must_use]
    pub fn plain(head_dim: usize, theta: f64) -> Self {
        assert!(head_dim.is_multiple_of(2), "head_dim {head_dim} is odd");
        let radians =
            (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64)).collect();
        Self { radians, amplitude: 1.0, query_growth: None }
    }

    fn query_factor(&self, position: u32) -> f32 {
        let Some((beta, original_context_len)) = self.query_growth else { return 1.0 };
        (1.0 + beta * f64::from(position / original_context_len).ln_1p()) as f32
    }
}

/// Cosines and sines of the positions of a batch: one entry for each different position.
#[derive(Clone, Debug)]
pub struct RopeTable {
    half_dim: usize,
    /// The different positions, ascending.
    positions: Vec<u32>,
    /// `[positions, 2, head_dim / 2]`: cosines, then sines.
    values: Vec<f32>,
    /// `[positions]`.
    query_factors: Vec<f32>,
    /// The entry of each row.
    entries: Vec<u32>,
}

/// What rotates a row.
#[derive(Clone, Copy, Debug)]
pub struct RowAngles<'a> {
    /// `[head_dim / 2]`.
    pub cosines: &'a [f32],
    /// `[head_dim / 2]`.
    pub sines: &'a [f32],
    /// Factor of the row's queries.
    pub query_factor: f32,
}

impl RopeTable {
    /// An empty table with room for `max_rows` rows.
    #[must_use]
    pub fn with_capacity(max_rows: usize, head_dim: usize) -> Self {
        Self {
            half_dim: head_dim / 2,
            positions: Vec::with_capacity(max_rows),
            values: Vec::with_capacity(max_rows * head_dim),
            query_factors: Vec::with_capacity(max_rows),
            entries: Vec::with_capacity(max_rows),
        }
    }

    /// Bytes of a table with room for `max_rows` rows.
    #[must_use]
    pub fn bytes_for(max_rows: usize, head_dim: usize) -> usize {
        max_rows * (head_dim + 3) * 4
    }

    /// Bytes that there is room for.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        let Self { half_dim: _, positions, values, query_factors, entries } = self;
        (positions.capacity() + entries.capacity()) * size_of::<u32>()
            + (values.capacity() + query_factors.capacity()) * size_of::<f32>()
    }

    /// The table of a batch whose rows have the positions given. Angles are computed in f64, and rounded once they are cosines
    /// and sines.
    ///
    /// # Panics
    /// When the frequencies are those of another size of head.
    pub fn set(&mut self, compute: &Compute, frequencies: &RopeFrequencies, positions: &[u32]) {
        assert_eq!(frequencies.radians.len(), self.half_dim, "frequencies of a head");
        self.positions.clear();
        self.positions.extend_from_slice(positions);
        self.positions.sort_unstable();
        self.positions.dedup();
        self.entries.clear();
        self.entries.extend(positions.iter().map(|position| {
            let entry = self.positions.binary_search(position).expect("the position is among them");
            entry as u32
        }));
        self.query_factors.clear();
        let factors = self.positions.iter().map(|&position| frequencies.query_factor(position));
        self.query_factors.extend(factors);
        let (half_dim, positions) = (self.half_dim, &self.positions);
        self.values.resize(positions.len() * 2 * half_dim, 0.0);
        compute.pool().run_chunks(&mut self.values, 2 * half_dim, |entry, values, _| {
            let (cosines, sines) = values.split_at_mut(half_dim);
            for (i, radians) in frequencies.radians.iter().enumerate() {
                let (sine, cosine) = (f64::from(positions[entry]) * radians).sin_cos();
                cosines[i] = (frequencies.amplitude * cosine) as f32;
                sines[i] = (frequencies.amplitude * sine) as f32;
            }
        });
    }

    /// Size of a head.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        2 * self.half_dim
    }

    /// Rows of the batch.
    #[must_use]
    pub fn n_rows(&self) -> usize {
        self.entries.len()
    }

    /// Cosines and sines of each entry, `[entries, 2, head_dim / 2]`.
    #[must_use]
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Factor of the queries of each entry, `[entries]`.
    #[must_use]
    pub fn query_factors(&self) -> &[f32] {
        &self.query_factors
    }

    /// The entry of each row of the batch.
    #[must_use]
    pub fn entries(&self) -> &[u32] {
        &self.entries
    }

    /// What rotates a row of the batch.
    ///
    /// # Panics
    /// When the batch has no such row.
    #[must_use]
    #[inline(always)]
    pub fn row(&self, row: usize) -> RowAngles<'_> {
        let entry = self.entries[row] as usize;
        let values = &self.values[entry * 2 * self.half_dim..][..2 * self.half_dim];
        let (cosines, sines) = values.split_at(self.half_dim);
        RowAngles { cosines, sines, query_factor: self.query_factors[entry] }
    }
}

/// Which heads of a row are rotated: queries, then keys; the others are copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RotatedHeads {
    /// Query heads, which also grow with the position.
    pub n_query: usize,
    /// Key heads.
    pub n_key: usize,
    /// Heads behind them, which are copied.
    pub n_copied: usize,
}

impl RotatedHeads {
    /// Heads of a row.
    #[must_use]
    pub fn n_all(self) -> usize {
        self.n_query + self.n_key + self.n_copied
    }

    /// One of them.
    pub(crate) fn only(self, head: usize) -> Self {
        let is_key = (self.n_query..self.n_query + self.n_key).contains(&head);
        let [n_query, n_key] = [head < self.n_query, is_key].map(usize::from);
        Self { n_query, n_key, n_copied: 1 - n_query - n_key }
    }
}

/// Which way to rotate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// By the angle, as in the forward pass.
    Forward,
    /// By minus the angle: the gradient of the forward rotation.
    Backward,
}

/// Rotates heads by the angles of their row: with `x1 = x[.., i]`, `x2 = x[.., i + head_dim / 2]`,
/// `out1 = x1 cos - x2 sin`, `out2 = x2 cos + x1 sin`, cosine and sine of a query times the row's query factor.
///
/// Shapes: x, out `[tokens, heads, head_dim]`; the table's rows are the tokens. Overwrites `out`.
/// Numerics: f32, out rounded to the operand type; a value that is not finite reaches its pair only. Source: arXiv 2104.09864,
/// eq. 34, in the half-split order of Hugging Face checkpoints.
///
/// # Panics
/// When a slice does not fit the shape.
pub fn rotate<T: Operand>(
    compute: &Compute,
    x: &[f32],
    table: &RopeTable,
    heads: RotatedHeads,
    direction: Direction,
    out: &mut [T],
) {
    let width = heads.n_all() * table.head_dim();
    assert_eq!(x.len(), table.n_rows() * width, "x is [tokens, heads, head_dim]");
    assert_eq!(x.len(), out.len(), "x and out have one shape");
    if x.is_empty() {
        return;
    }
    let family = compute.family();
    let outputs = (RowsOut::new(out, width), RowsOut::<u8>::none(), RowsOut::<u8>::none());
    compute.pool().run_rows(table.n_rows(), TASK_ROWS, outputs, |first_row, n, (out, ..)| {
        let x = &x[first_row * width..][..n * width];
        Rotate { x, x_stride: width, table, first_row, heads, direction, out }.run_on(family);
    });
}

/// Some rows of [`rotate`], from `first_row` of the table on.
pub(crate) struct Rotate<'a, T> {
    pub(crate) x: &'a [f32],
    /// Distance between rows of x.
    pub(crate) x_stride: usize,
    pub(crate) table: &'a RopeTable,
    pub(crate) first_row: usize,
    pub(crate) heads: RotatedHeads,
    pub(crate) direction: Direction,
    pub(crate) out: &'a mut [T],
}

impl<T: Operand> Rotate<'_, T> {
    pub(crate) fn run_on(self, family: Family) {
        match family {
            Family::Reference => reference::rotate(self),
            family => dispatch(family, self),
        }
    }
}

impl<T: Operand> LaneKernel for Rotate<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let half = self.table.half_dim;
        let width = self.heads.n_all() * 2 * half;
        let n_rotated = self.heads.n_query + self.heads.n_key;
        let sign = match self.direction {
            Direction::Forward => 1.0,
            Direction::Backward => -1.0,
        };
        let rows = self.x.chunks(self.x_stride).zip(self.out.chunks_exact_mut(width));
        for (row, (x, out)) in rows.enumerate() {
            let angles = self.table.row(self.first_row + row);
            let (rotated, plain) = out.split_at_mut(n_rotated * 2 * half);
            for (head, out) in rotated.chunks_exact_mut(2 * half).enumerate() {
                let factor = if head < self.heads.n_query { angles.query_factor } else { 1.0 };
                let (factor, signed) = (lanes.splat(factor), lanes.splat(sign * factor));
                let (x1, x2) = x[head * 2 * half..][..2 * half].split_at(half);
                let (out1, out2) = out.split_at_mut(half);
                for i in (0..half).step_by(L::N) {
                    let (a, b) = (lanes.load(&x1[i..]), lanes.load(&x2[i..]));
                    let cosine = lanes.mul(factor, lanes.load(&angles.cosines[i..]));
                    let sine = lanes.mul(signed, lanes.load(&angles.sines[i..]));
                    let first = lanes.sub(lanes.mul(a, cosine), lanes.mul(b, sine));
                    T::store(lanes, first, &mut out1[i..]);
                    T::store(lanes, lanes.mul_add(b, cosine, lanes.mul(a, sine)), &mut out2[i..]);
                }
            }
            let x = &x[n_rotated * 2 * half..width];
            for i in (0..plain.len()).step_by(L::N) {
                T::store(lanes, lanes.load(&x[i..]), &mut plain[i..]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use testkit::close::{Tolerance, assert_close};

    use super::*;
    use crate::test_support::{
        LARGE, bits, check_rows_alone_and_among_others, check_special_values, computes,
        fast_computes, normal, reference, rows,
    };
    use half::bf16;
    use proptest::prelude::*;

    const POSITIONS: [u32; 5] = [0, 1, 5, 63, 1];
    const HEADS: RotatedHeads = RotatedHeads { n_query: 1, n_key: 1, n_copied: 1 };

    fn run(
        compute: &Compute,
        x: &[f32],
        frequencies: &RopeFrequencies,
        direction: Direction,
    ) -> Vec<f32> {
        let mut out = vec![7.0; x.len()];
        let mut table = RopeTable::with_capacity(8, 2 * frequencies.radians.len());
        // A batch of other rows came before.
        table.set(compute, frequencies, &[9, 8, 7, 6, 5, 4]);
        table.set(compute, frequencies, &POSITIONS);
        rotate(compute, x, &table, HEADS, direction, &mut out);
        out
    }

    /// Amplitude and query growth differ from one.
    fn scaled(head_dim: usize) -> RopeFrequencies {
        RopeFrequencies {
            amplitude: 1.25,
            query_growth: Some((0.5, 5)),
            ..RopeFrequencies::plain(head_dim, 1e4)
        }
    }

    #[test]
    fn fast_rotations_equal_the_definition() {
        for head_dim in [2, 6, 16, 34, 64] {
            for frequencies in [RopeFrequencies::plain(head_dim, 1e4), scaled(head_dim)] {
                let x = normal(1, POSITIONS.len() * 3 * head_dim, 1.0);
                for direction in [Direction::Forward, Direction::Backward] {
                    let expected = run(&reference(), &x, &frequencies, direction);
                    for compute in fast_computes(2) {
                        // Two products and a sum, with and without fused rounding.
                        let tolerance = Tolerance { absolute: 2e-6, relative: 1e-6 };
                        let got = run(&compute, &x, &frequencies, direction);
                        assert_close(&got, &expected, tolerance);
                    }
                }
            }
        }
    }

    #[test]
    fn the_definition_is_the_formula() {
        let x = normal(4, POSITIONS.len() * 3 * 4, 1.0);
        let out = run(&reference(), &x, &scaled(4), Direction::Forward);
        for (row, position) in POSITIONS.into_iter().enumerate() {
            let factors = [1.0 + 0.5 * (1.0 + f64::from(position / 5)).ln(), 1.0];
            for (head, factor) in factors.into_iter().enumerate() {
                for (i, radians) in [1.0, 0.01].into_iter().enumerate() {
                    let at = row * 12 + head * 4 + i;
                    let angle = f64::from(position) * radians;
                    let (x1, x2) = (f64::from(x[at]), f64::from(x[at + 2]));
                    let expected = factor * 1.25 * (x1 * angle.cos() - x2 * angle.sin());
                    assert!((f64::from(out[at]) - expected).abs() < 1e-5, "{} {expected}", out[at]);
                }
            }
        }
    }

    #[test]
    fn backward_undoes_forward_and_plain_heads_are_copied() {
        let frequencies = RopeFrequencies::plain(16, 1e4);
        let x = normal(2, POSITIONS.len() * 3 * 16, 1.0);
        for compute in computes(1) {
            let rotated = run(&compute, &x, &frequencies, Direction::Forward);
            let back = run(&compute, &rotated, &frequencies, Direction::Backward);
            // A rotation is orthogonal: its transpose, which is the gradient, is its inverse.
            assert_close(&back, &x, Tolerance { absolute: 1e-5, relative: 1e-5 });
            for token in 0..POSITIONS.len() {
                let plain = token * 48 + 32..token * 48 + 48;
                assert_eq!(rotated[plain.clone()], x[plain]);
            }
        }
    }

    #[test]
    fn special_values_stay_in_their_pairs_and_are_copied_as_they_are() {
        let (head_dim, half) = (42, 21);
        let frequencies = scaled(head_dim);
        let inputs = [normal(5, POSITIONS.len() * 3 * head_dim, 1.0)];
        let reaches = |_, place: usize, output: usize| match place / head_dim % 3 {
            2 => place == output,
            _ => place / head_dim == output / head_dim && place % half == output % half,
        };
        for direction in [Direction::Forward, Direction::Backward] {
            let tolerance = Tolerance { absolute: 2e-6, relative: 1e-6 };
            let run = |compute: &Compute, [x]: &[Vec<f32>; 1]| {
                let out = run(compute, x, &frequencies, direction);
                for (out, x) in out.chunks(3 * head_dim).zip(x.chunks(3 * head_dim)) {
                    let [out, x] = [out, x].map(|row| bits(&row[2 * head_dim..]));
                    assert!(out == x, "{} copies", compute.family());
                }
                out
            };
            check_special_values(inputs.clone(), LARGE, tolerance, run, reaches);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8))]

        #[test]
        fn a_row_has_the_same_bits_whatever_rows_stand_beside_it(seed: u64, half in 1_usize..40) {
            let (width, frequencies) = (3 * 2 * half, scaled(2 * half));
            let x = normal(seed, 512 * width, 1.0);
            let positions: Vec<u32> = (0..512).map(|row| row * 37 % 200).collect();
            check_rows_alone_and_among_others(seed, |compute, range| {
                let mut table = RopeTable::with_capacity(512, 2 * half);
                table.set(compute, &frequencies, &positions[range.clone()]);
                let x = &x[range.start * width..range.end * width];
                let mut out = vec![bf16::ONE; x.len()];
                rotate(compute, x, &table, HEADS, Direction::Forward, &mut out);
                rows(&out.into_iter().map(bf16::to_f32).collect::<Vec<_>>(), width)
            });
        }
    }

    #[test]
    fn scores_depend_on_distance_only() {
        let frequencies = RopeFrequencies::plain(8, 1e4);
        let heads = RotatedHeads { n_query: 1, n_key: 0, n_copied: 0 };
        let x = normal(3, 8, 1.0);
        let score = |a: u32, b: u32| {
            let mut out = [0.0; 16];
            let both: Vec<f32> = x.iter().chain(&x).copied().collect();
            let mut table = RopeTable::with_capacity(2, 8);
            table.set(&reference(), &frequencies, &[a, b]);
            rotate(&reference(), &both, &table, heads, Direction::Forward, &mut out);
            out[..8].iter().zip(&out[8..]).map(|(a, b)| a * b).sum::<f32>()
        };
        assert!((score(3, 10) - score(40, 47)).abs() < 1e-4);
        assert!((score(3, 10) - score(3, 20)).abs() > 1e-3);
    }
}
