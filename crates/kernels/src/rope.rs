//! Rotary position embedding.

use crate::compute::{Compute, Family};
use crate::lanes::{LaneKernel, Lanes, dispatch};
use crate::operand::Operand;
use crate::pool::RowsOut;
use crate::reference;

/// Rows of one task.
const TASK_ROWS: usize = 16;

/// Cosines and sines of every angle: `angle[position, i] = position * theta^(-2 i / head_dim)`, i < head_dim / 2.
#[derive(Clone, Debug)]
pub struct RopeTable {
    half_dim: usize,
    /// `[context_len, 2, head_dim / 2]`: cosines, then sines, of a position.
    values: Vec<f32>,
}

impl RopeTable {
    /// The table of `context_len` positions. Angles are computed in f64.
    ///
    /// # Panics
    /// When `head_dim` is odd.
    #[must_use]
    pub fn new(context_len: usize, head_dim: usize, theta: f64) -> Self {
        assert!(head_dim.is_multiple_of(2), "head_dim {head_dim} is odd");
        let half_dim = head_dim / 2;
        let mut values = Vec::with_capacity(context_len * head_dim);
        let frequencies: Vec<f64> =
            (0..half_dim).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64)).collect();
        for position in 0..context_len {
            let angle = |i: usize| position as f64 * frequencies[i];
            values.extend((0..half_dim).map(|i| angle(i).cos() as f32));
            values.extend((0..half_dim).map(|i| angle(i).sin() as f32));
        }
        Self { half_dim, values }
    }

    /// Size of a head.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        2 * self.half_dim
    }

    /// Cosines and sines of a position, each `[head_dim / 2]`.
    ///
    /// # Panics
    /// When the position is not in the table.
    #[must_use]
    #[inline(always)]
    pub fn at(&self, position: u32) -> (&[f32], &[f32]) {
        let start = position as usize * 2 * self.half_dim;
        self.values[start..start + 2 * self.half_dim].split_at(self.half_dim)
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

/// Rotates heads by the angles of their position: with `x1 = x[.., i]`, `x2 = x[.., i + head_dim / 2]`,
/// `out1 = x1 cos - x2 sin`, `out2 = x2 cos + x1 sin`. Heads from `n_rotated` on are copied.
///
/// Shapes: x, out `[tokens, n_heads, head_dim]` with any number of heads; positions `[tokens]`. Overwrites `out`.
/// Numerics: f32, out rounded to the operand type. Source: arXiv 2104.09864, eq. 34, in the half-split order of
/// Hugging Face checkpoints.
///
/// # Panics
/// When a slice does not fit the shape or a position is not in the table.
pub fn rotate<T: Operand>(
    compute: &Compute,
    x: &[f32],
    positions: &[u32],
    table: &RopeTable,
    n_rotated: usize,
    direction: Direction,
    out: &mut [T],
) {
    assert_eq!(x.len(), out.len(), "x and out have one shape");
    if positions.is_empty() {
        return;
    }
    let width = x.len() / positions.len();
    assert_eq!(x.len(), positions.len() * width, "x is [tokens, heads, head_dim]");
    assert!(
        width.is_multiple_of(table.head_dim()),
        "rows of {width}, heads of {}",
        table.head_dim()
    );
    assert!(n_rotated * table.head_dim() <= width, "{n_rotated} heads in rows of {width}");
    let family = compute.family();
    let outputs = (RowsOut::new(out, width), RowsOut::<u8>::none(), RowsOut::<u8>::none());
    compute.pool().run_rows(positions.len(), TASK_ROWS, outputs, |row, n, (out, ..)| {
        let (x, positions) = (&x[row * width..][..n * width], &positions[row..row + n]);
        if family == Family::Reference {
            reference::rotate(x, positions, table, n_rotated, direction, out);
        } else {
            dispatch(family, Rotate { x, positions, table, n_rotated, direction, out });
        }
    });
}

struct Rotate<'a, T> {
    x: &'a [f32],
    positions: &'a [u32],
    table: &'a RopeTable,
    n_rotated: usize,
    direction: Direction,
    out: &'a mut [T],
}

impl<T: Operand> LaneKernel for Rotate<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let half = self.table.half_dim;
        let width = self.x.len() / self.positions.len();
        let sign = lanes.splat(match self.direction {
            Direction::Forward => 1.0,
            Direction::Backward => -1.0,
        });
        for (row, &position) in self.positions.iter().enumerate() {
            let (cosines, sines) = self.table.at(position);
            let x = &self.x[row * width..][..width];
            let out = &mut self.out[row * width..][..width];
            let (rotated, plain) = out.split_at_mut(self.n_rotated * 2 * half);
            for (head, out) in rotated.chunks_exact_mut(2 * half).enumerate() {
                let (x1, x2) = x[head * 2 * half..][..2 * half].split_at(half);
                let (out1, out2) = out.split_at_mut(half);
                for i in (0..half).step_by(L::N) {
                    let (a, b) = (lanes.load(&x1[i..]), lanes.load(&x2[i..]));
                    let cosine = lanes.load(&cosines[i..]);
                    let sine = lanes.mul(sign, lanes.load(&sines[i..]));
                    let first = lanes.sub(lanes.mul(a, cosine), lanes.mul(b, sine));
                    T::store(lanes, first, &mut out1[i..]);
                    T::store(lanes, lanes.mul_add(b, cosine, lanes.mul(a, sine)), &mut out2[i..]);
                }
            }
            let x = &x[self.n_rotated * 2 * half..];
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
    use crate::test_support::{computes, fast_computes, normal, reference};

    fn run(compute: &Compute, x: &[f32], table: &RopeTable, direction: Direction) -> Vec<f32> {
        let mut out = vec![7.0; x.len()];
        rotate(compute, x, &[0, 1, 5, 63, 2], table, 2, direction, &mut out);
        out
    }

    #[test]
    fn fast_rotations_equal_the_definition() {
        for head_dim in [2, 6, 16, 34, 64] {
            let table = RopeTable::new(64, head_dim, 1e4);
            let x = normal(1, 5 * 3 * head_dim, 1.0);
            for direction in [Direction::Forward, Direction::Backward] {
                let expected = run(&reference(), &x, &table, direction);
                for compute in fast_computes(2) {
                    // Two products and a sum, with and without fused rounding.
                    let tolerance = Tolerance { absolute: 1e-6, relative: 1e-6 };
                    assert_close(&run(&compute, &x, &table, direction), &expected, tolerance);
                }
            }
        }
    }

    #[test]
    fn backward_undoes_forward_and_plain_heads_are_copied() {
        let table = RopeTable::new(64, 16, 1e4);
        let x = normal(2, 5 * 3 * 16, 1.0);
        for compute in computes(1) {
            let rotated = run(&compute, &x, &table, Direction::Forward);
            let back = run(&compute, &rotated, &table, Direction::Backward);
            // A rotation is orthogonal: its transpose, which is the gradient, is its inverse.
            assert_close(&back, &x, Tolerance { absolute: 1e-5, relative: 1e-5 });
            for token in 0..5 {
                let plain = token * 48 + 32..token * 48 + 48;
                assert_eq!(rotated[plain.clone()], x[plain]);
            }
        }
    }

    #[test]
    fn scores_depend_on_distance_only() {
        let table = RopeTable::new(64, 8, 1e4);
        let x = normal(3, 8, 1.0);
        let score = |a: u32, b: u32| {
            let mut out = [0.0; 16];
            let both: Vec<f32> = x.iter().chain(&x).copied().collect();
            rotate(&reference(), &both, &[a, b], &table, 1, Direction::Forward, &mut out);
            out[..8].iter().zip(&out[8..]).map(|(a, b)| a * b).sum::<f32>()
        };
        assert!((score(3, 10) - score(40, 47)).abs() < 1e-4);
        assert!((score(3, 10) - score(3, 20)).abs() > 1e-3);
    }
}
