//! The softmax of attention: rows of a bundle over one step of keys (numerics: [`super`]).

use std::ops::Range;

use super::{BUNDLE, KEY_STEP};
use crate::compute::Family;
use crate::lanes::{LaneKernel, Lanes, dispatch};
use crate::operand::Operand;
use crate::prefetch::prefetch_near;
use crate::reference;

/// Partial sums of a divisor, by position modulo their number: as many as the widest vector has lanes.
pub(crate) const DIVISOR_LANES: usize = 16;

/// Columns whose vectors are computed side by side.
const COLUMNS: usize = 32;

/// Probabilities of rows for the keys of a step, and what follows for what the rows have seen: maxima, divisors and sums rescaled.
///
/// Shapes: scores `[rows, KEY_STEP]`, negative infinity where a row does not see the key; probabilities alike. Columns are whole blocks.
pub(crate) struct SoftmaxStep<'a, T> {
    pub(crate) scores: &'a [f32],
    /// Keys of the step that a row may see; others are neither read nor written.
    pub(crate) columns: Range<usize>,
    pub(crate) scale: f32,
    /// What the products with the values are to be multiplied by.
    pub(crate) value_scales: Option<&'a [f32; KEY_STEP]>,
    pub(crate) probabilities: &'a mut [T],
    /// `[rows]`: the largest score so far.
    pub(crate) maxima: &'a mut [f32],
    /// `[rows, DIVISOR_LANES]`
    pub(crate) divisors: &'a mut [f32],
    /// `[rows, sum_stride]`: the output, not yet divided.
    pub(crate) sums: &'a mut [f32],
    pub(crate) sum_stride: usize,
}

impl<T: Operand> SoftmaxStep<'_, T> {
    pub(crate) fn update(self, family: Family) {
        match family {
            Family::Reference => reference::softmax_step(self),
            family => dispatch(family, self),
        }
    }

    /// The new maxima of the rows, or the least finite number where a row has seen nothing but negative infinity: what is subtracted from scores.
    #[inline(always)]
    fn shifts<L: Lanes>(&mut self, lanes: L, old_maxima: &mut [f32; BUNDLE]) -> [f32; BUNDLE] {
        let mut shifts = [0.0; BUNDLE];
        let mut largest = [f32::NEG_INFINITY; BUNDLE];
        let is_whole = self.columns.len() == KEY_STEP;
        for (scores, largest) in self.scores.as_chunks::<KEY_STEP>().0.iter().zip(&mut largest) {
            // A length that is known lets the loop be unrolled.
            let max = if is_whole {
                largest_of(lanes, scores)
            } else {
                largest_of(lanes, &scores[self.columns.clone()])
            };
            *largest = lanes.reduce_max(max);
        }
        let n_rows = self.maxima.len();
        old_maxima[..n_rows].copy_from_slice(self.maxima);
        for i in (0..BUNDLE).step_by(L::N) {
            let max = lanes.max(lanes.load(&largest[i..]), lanes.load(&old_maxima[i..]));
            lanes.store(max, &mut largest[i..]);
            // As where every score is negative infinity: those of a row that sees nothing are.
            let lowest = lanes.splat(f32::MIN);
            let is_above = lanes.max(max, lowest);
            lanes.store(is_above, &mut shifts[i..]);
        }
        self.maxima.copy_from_slice(&largest[..n_rows]);
        shifts
    }
}

/// The largest score in each lane.
#[inline(always)]
fn largest_of<L: Lanes>(lanes: L, scores: &[f32]) -> L::F {
    let mut maxima = [lanes.splat(f32::NEG_INFINITY); 2];
    for scores in scores.as_chunks::<COLUMNS>().0 {
        for i in (0..COLUMNS).step_by(L::N) {
            let at = i / L::N % 2;
            maxima[at] = lanes.max(maxima[at], lanes.load(&scores[i..]));
        }
    }
    lanes.max(maxima[0], maxima[1])
}

/// What a row's probabilities are made with.
struct Exponent<'a, F> {
    shift: F,
    scale: F,
    value_scales: Option<&'a [f32]>,
}

/// Probabilities of one row, and their sums by lane.
#[inline(always)]
fn probabilities<L: Lanes, T: Operand>(
    lanes: L,
    exponent: Exponent<'_, L::F>,
    scores: &[f32],
    out: &mut [T],
) -> [L::F; 2] {
    let mut partial = [lanes.splat(0.0); 2];
    let chunks = scores.as_chunks::<COLUMNS>().0.iter().zip(out.as_chunks_mut::<COLUMNS>().0);
    for (block, (scores, out)) in chunks.enumerate() {
        for i in (0..COLUMNS).step_by(2 * L::N) {
            let mut p = [lanes.splat(0.0); 2];
            for half in 0..2 {
                let i = i + half * L::N;
                let score = lanes.sub(lanes.load(&scores[i..]), exponent.shift);
                p[half] = lanes.exp2(lanes.mul(score, exponent.scale));
                let at = i % DIVISOR_LANES / L::N;
                partial[at] = lanes.add(partial[at], p[half]);
                if let Some(scales) = exponent.value_scales {
                    p[half] = lanes.mul(p[half], lanes.load(&scales[block * COLUMNS + i..]));
                }
            }
            T::store_two(lanes, p[0], p[1], &mut out[i..]);
        }
    }
    partial
}

impl<T: Operand> LaneKernel for SoftmaxStep<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(mut self, lanes: L) {
        let mut rescale = [0.0; BUNDLE];
        let shifts = self.shifts(lanes, &mut rescale);
        let scale = lanes.splat(self.scale * std::f32::consts::LOG2_E);
        for i in (0..BUNDLE).step_by(L::N) {
            let change = lanes.sub(lanes.load(&rescale[i..]), lanes.load(&shifts[i..]));
            lanes.store(lanes.exp2(lanes.mul(change, scale)), &mut rescale[i..]);
        }
        let columns = self.columns.clone();
        let is_whole = columns.len() == KEY_STEP;
        for row in 0..self.maxima.len() {
            let scores = &self.scores[row * KEY_STEP..][..KEY_STEP];
            let out = &mut self.probabilities[row * KEY_STEP..][..KEY_STEP];
            let shift = lanes.splat(shifts[row]);
            // The products with the values come next, and load all sums at once.
            let sums = &mut self.sums[row * self.sum_stride..][..self.sum_stride];
            prefetch_near(sums.as_ptr().cast(), size_of_val(sums));
            // What is known when this is compiled lets loops be unrolled.
            let partial = if is_whole && self.value_scales.is_none() {
                let exponent = Exponent { shift, scale, value_scales: None };
                probabilities(lanes, exponent, scores, out)
            } else if let (true, Some(scales)) = (is_whole, self.value_scales) {
                let exponent = Exponent { shift, scale, value_scales: Some(scales) };
                probabilities(lanes, exponent, scores, out)
            } else {
                let value_scales = self.value_scales.map(|scales| &scales[columns.clone()]);
                let exponent = Exponent { shift, scale, value_scales };
                let out = &mut out[columns.clone()];
                probabilities(lanes, exponent, &scores[columns.clone()], out)
            };
            let factor = lanes.splat(rescale[row]);
            let divisors = &mut self.divisors[row * DIVISOR_LANES..][..DIVISOR_LANES];
            for i in (0..DIVISOR_LANES).step_by(L::N) {
                let divisor = lanes.load(&divisors[i..]);
                let divisor = lanes.mul_add(divisor, factor, partial[i / L::N]);
                lanes.store(divisor, &mut divisors[i..]);
            }
            if rescale[row] != 1.0 {
                for sums in sums.as_chunks_mut::<DIVISOR_LANES>().0 {
                    for i in (0..DIVISOR_LANES).step_by(L::N) {
                        lanes.store(lanes.mul(lanes.load(&sums[i..]), factor), &mut sums[i..]);
                    }
                }
            }
        }
    }
}

/// Rows of scores, `[rows, KEY_STEP]`, times the scales of their keys.
pub(crate) struct ScaleScores<'a> {
    pub(crate) scores: &'a mut [f32],
    pub(crate) columns: Range<usize>,
    pub(crate) scales: &'a [f32; KEY_STEP],
}

impl ScaleScores<'_> {
    pub(crate) fn update(self, family: Family) {
        match family {
            Family::Reference => reference::scale_scores(self),
            family => dispatch(family, self),
        }
    }
}

impl LaneKernel for ScaleScores<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let scales = &self.scales[self.columns.clone()];
        for scores in self.scores.as_chunks_mut::<KEY_STEP>().0 {
            let scores = &mut scores[self.columns.clone()];
            for (scores, scales) in scores.chunks_exact_mut(L::N).zip(scales.chunks_exact(L::N)) {
                lanes.store(lanes.mul(lanes.load(scores), lanes.load(scales)), scores);
            }
        }
    }
}

/// `out = sums / (sum of divisors)`, rounded. Gives the divisor.
pub(crate) struct DivideRow<'a, O> {
    pub(crate) sums: &'a [f32],
    pub(crate) divisors: &'a [f32],
    pub(crate) out: &'a mut [O],
}

impl<O: Operand> DivideRow<'_, O> {
    pub(crate) fn divide(self, family: Family) -> f32 {
        match family {
            Family::Reference => reference::divide_row(self),
            family => dispatch(family, self),
        }
    }
}

impl<O: Operand> LaneKernel for DivideRow<'_, O> {
    type Output = f32;

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> f32 {
        let mut sum = lanes.load(self.divisors);
        for i in (L::N..DIVISOR_LANES).step_by(L::N) {
            sum = lanes.add(sum, lanes.load(&self.divisors[i..]));
        }
        let divisor = lanes.reduce_sum(sum);
        for i in (0..self.out.len()).step_by(L::N) {
            let value = lanes.div(lanes.load(&self.sums[i..]), lanes.splat(divisor));
            O::store(lanes, value, &mut self.out[i..]);
        }
        divisor
    }
}
