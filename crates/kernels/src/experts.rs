//! Routed experts: which tokens go to which expert, and back.

use crate::compute::Compute;
use crate::operand::Operand;
use crate::pool::RowsOut;

/// Rows of one task.
const TASK_ROWS: usize = 16;

/// The rows of a batch that go to each expert, and their weights.
#[derive(Clone, Debug)]
pub struct Routes {
    experts: Vec<Route>,
    /// The experts of the row at hand, by their logits.
    order: Vec<u32>,
}

/// The rows of one expert, ascending, and the weight of its output in each.
#[derive(Clone, Debug, Default)]
pub struct Route {
    /// Rows of the batch.
    pub rows: Vec<u32>,
    /// One for each row.
    pub weights: Vec<f32>,
}

impl Routes {
    /// No routes yet, with room for `max_rows` rows in each expert.
    #[must_use]
    pub fn with_capacity(n_experts: usize, max_rows: usize) -> Self {
        let route =
            || Route { rows: Vec::with_capacity(max_rows), weights: Vec::with_capacity(max_rows) };
        Self {
            experts: (0..n_experts).map(|_| route()).collect(),
            order: Vec::with_capacity(n_experts),
        }
    }

    /// Bytes of [`Routes::with_capacity`].
    #[must_use]
    pub fn bytes_for(n_experts: usize, max_rows: usize) -> usize {
        n_experts * (max_rows * (size_of::<u32>() + size_of::<f32>()) + size_of::<u32>())
    }

    /// Bytes that there is room for.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        let of = |Route { rows, weights }: &Route| {
            rows.capacity() * size_of::<u32>() + weights.capacity() * size_of::<f32>()
        };
        self.experts.iter().map(of).sum::<usize>() + self.order.capacity() * size_of::<u32>()
    }

    /// The route of an expert.
    #[must_use]
    pub fn expert(&self, expert_idx: usize) -> &Route {
        &self.experts[expert_idx]
    }

    /// Sends each row to the `n_active` experts of largest logits, of equal ones to the first; the weights are the softmax over
    /// the chosen logits. A NaN counts as the largest logit, and it or `inf` makes the row's weights NaN.
    ///
    /// Shapes: logits `[tokens, n_experts]`. Numerics: f32. Source: arXiv 2401.04088, section 2.1.
    ///
    /// # Panics
    /// When the logits are not whole rows, or more experts are active than there are.
    pub fn set(&mut self, logits: &[f32], n_active: usize) {
        let Self { experts, order } = self;
        let n_experts = experts.len();
        assert!(logits.len().is_multiple_of(n_experts), "{} logits", logits.len());
        assert!((1..=n_experts).contains(&n_active), "{n_active} of {n_experts} experts");
        for route in &mut *experts {
            route.rows.clear();
            route.weights.clear();
        }
        // A NaN is the largest, whatever its sign, so that it is seen in the weights.
        let key = |logit: f32| if logit.is_nan() { f32::NAN } else { logit };
        for (row, logits) in logits.chunks_exact(n_experts).enumerate() {
            order.clear();
            order.extend(0..n_experts as u32);
            // Of equal logits the first expert comes first. A stable sort would take memory.
            let logit = |expert: u32| logits[expert as usize];
            let descending = |a: &u32, b: &u32| key(logit(*b)).total_cmp(&key(logit(*a)));
            order.sort_unstable_by(|a, b| descending(a, b).then(a.cmp(b)));
            let chosen = &mut order[..n_active];
            let max = logit(chosen[0]);
            chosen.sort_unstable();
            let sum: f32 = chosen.iter().map(|&expert| (logit(expert) - max).exp()).sum();
            for &expert in &*chosen {
                let route = &mut experts[expert as usize];
                route.rows.push(row as u32);
                route.weights.push((logit(expert) - max).exp() / sum);
            }
        }
    }
}

/// The rows of an expert: `out[i] = x[rows[i]]`.
///
/// Shapes: x `[tokens, width]`; out `[rows, width]`. Overwrites.
///
/// # Panics
/// When a slice does not fit the shape or a row is not in `x`.
pub fn gather_rows<T: Operand>(
    compute: &Compute,
    x: &[T],
    rows: &[u32],
    width: usize,
    out: &mut [T],
) {
    assert_eq!(out.len(), rows.len() * width, "out is [rows, {width}]");
    let outputs = (RowsOut::new(out, width), RowsOut::<u8>::none(), RowsOut::<u8>::none());
    compute.pool().run_rows(rows.len(), TASK_ROWS, outputs, |first, n, (out, ..)| {
        for (row, out) in rows[first..first + n].iter().zip(out.chunks_exact_mut(width)) {
            out.copy_from_slice(&x[*row as usize * width..][..width]);
        }
    });
}

/// Adds an expert's output where its rows came from: `out[rows[i]] += weights[i] x[i]`.
///
/// Shapes: x `[rows, width]`; out `[tokens, width]`. Accumulates. Numerics: f32, product and sum rounded apart.
///
/// # Panics
/// When a slice does not fit the shape, a row is not in `out`, or rows do not ascend.
#[expect(unsafe_code, reason = "tasks write disjoint rows")]
pub fn add_weighted_rows(
    compute: &Compute,
    x: &[f32],
    route: &Route,
    width: usize,
    out: &mut [f32],
) {
    let n_rows = route.rows.len();
    assert_eq!(x.len(), n_rows * width, "x is [rows, {width}]");
    assert!(route.rows.is_sorted_by(|a, b| a < b), "a row is there twice");
    let n_tokens = out.len() / width.max(1);
    assert!(route.rows.last().is_none_or(|&row| (row as usize) < n_tokens), "rows of the batch");
    let parts = crate::pool::SliceParts::new(out);
    compute.pool().run(n_rows.div_ceil(TASK_ROWS), |task_idx, _| {
        let first = task_idx * TASK_ROWS;
        for i in first..n_rows.min(first + TASK_ROWS) {
            // SAFETY: rows are within `out` and ascend, so no two tasks have the same.
            let out = unsafe { parts.range(route.rows[i] as usize * width, width) };
            for (out, x) in out.iter_mut().zip(&x[i * width..][..width]) {
                *out += route.weights[i] * x;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{LARGE, check_special_values, computes, normal};
    use testkit::close::Tolerance;

    /// An operation like `inf - inf` gives a NaN with a sign, which must not make it the least of all logits.
    #[test]
    fn a_nan_of_either_sign_is_chosen_and_seen() {
        let mut routes = Routes::with_capacity(4, 8);
        for nan in [f32::NAN, -f32::NAN] {
            for at in 0..4 {
                let mut logits = [3.0, f32::INFINITY, 1.0, 2.0, 0.0, 1.0, 2.0, 3.0];
                logits[at] = nan;
                routes.set(&logits, 2);
                let weights: Vec<(u32, f32)> = (0..4)
                    .map(|expert| routes.expert(expert))
                    .flat_map(|route| route.rows.iter().copied().zip(route.weights.iter().copied()))
                    .collect();
                assert!(routes.expert(at).rows.contains(&0), "{nan} of expert {at} is left out");
                assert_eq!(weights.len(), 4);
                assert!(weights.iter().all(|&(row, weight)| weight.is_nan() == (row == 0)));
            }
        }
    }

    #[test]
    fn special_values_stay_in_their_rows() {
        let (width, rows) = (7, [0, 2, 3]);
        let run = |compute: &Compute, [x, weights]: &[Vec<f32>; 2]| {
            let mut taken = vec![7.0; rows.len() * width];
            gather_rows(compute, x, &rows, width, &mut taken);
            let route = Route { rows: rows.to_vec(), weights: weights.clone() };
            let mut out = vec![1.0; x.len()];
            add_weighted_rows(compute, &taken, &route, width, &mut out);
            out
        };
        let reaches = |input, place: usize, output: usize| match input {
            0 => rows.contains(&((place / width) as u32)) && place == output,
            _ => rows[place] as usize == output / width,
        };
        let inputs = [normal(3, 4 * width, 1.0), normal(4, rows.len(), 1.0)];
        check_special_values(inputs, LARGE, Tolerance::EXACT, run, reaches);
    }

    #[test]
    fn the_largest_logits_are_chosen_and_weighted_by_their_softmax() {
        let mut routes = Routes::with_capacity(4, 8);
        // The second row has equal logits: the first experts of them are taken. NaN does not panic.
        let logits =
            [0.0, 3.0, 1.0, 2.0, 5.0, 5.0, 5.0, 5.0, f32::NAN, 1.0, 0.0, f32::NEG_INFINITY];
        for _ in 0..2 {
            routes.set(&logits, 2);
            let e = 1.0_f32.exp();
            assert_eq!(routes.expert(1).rows, [0, 1, 2]);
            assert!((routes.expert(1).weights[0] - e / (1.0 + e)).abs() < 1e-6);
            assert_eq!(routes.expert(3).rows, [0]);
            assert!((routes.expert(3).weights[0] - 1.0 / (1.0 + e)).abs() < 1e-6);
            assert_eq!(routes.expert(0).rows, [1, 2]);
            assert_eq!((routes.expert(0).weights[0], routes.expert(1).weights[1]), (0.5, 0.5));
            assert!(routes.expert(2).rows.is_empty());
        }
    }

    #[test]
    fn of_many_equal_logits_the_first_are_chosen_in_the_memory_that_was_planned() {
        let (n_experts, n_active) = (64, 30);
        let logits: Vec<f32> = (0..n_experts).map(|expert| (expert * 7 % 3) as f32).collect();
        let mut order: Vec<usize> = (0..n_experts).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        let mut routes = Routes::with_capacity(n_experts, 1);
        routes.set(&logits, n_active);
        for expert in 0..n_experts {
            let is_chosen = order[..n_active].contains(&expert);
            assert_eq!(!routes.expert(expert).rows.is_empty(), is_chosen, "expert {expert}");
        }
        assert_eq!(routes.n_bytes(), Routes::bytes_for(n_experts, 1));
        let of_order = Routes::bytes_for(n_experts, 0);
        assert_eq!(of_order, n_experts * size_of::<u32>(), "the order of a row's experts counts");
    }

    #[test]
    fn rows_come_back_weighted_to_where_they_were_taken() {
        let width = 37;
        let x = normal(1, 50 * width, 1.0);
        let rows: Vec<u32> = (0..50).filter(|row| row % 3 != 1).collect();
        let weights = normal(2, rows.len(), 1.0);
        let route = Route { rows: rows.clone(), weights: weights.clone() };
        for compute in computes(2) {
            let mut taken = vec![7.0; rows.len() * width];
            gather_rows(&compute, &x, &rows, width, &mut taken);
            let mut out = vec![1.0; x.len()];
            add_weighted_rows(&compute, &taken, &route, width, &mut out);
            for row in 0..50 {
                let weight =
                    rows.iter().position(|&r| r as usize == row).map_or(0.0, |i| weights[i]);
                for i in row * width..(row + 1) * width {
                    assert_eq!(out[i], 1.0 + weight * x[i]);
                }
            }
        }
    }
}
