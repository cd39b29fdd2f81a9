//! Rows in 8 bits, or in bf16.

use half::bf16;

use super::{BF16_RECORD, BUNDLE, CHUNK, Form, GROUP, RECORD, Rows, chunk_range, rows_len};
use crate::compute::{Compute, Family};
use crate::lanes::{LaneKernel, Lanes, dispatch};
use crate::operand::Operand;
use crate::pool::SliceParts;

/// Groups of one task.
const TASK_GROUPS: usize = 64;

/// Below this the inverse of a scale would be infinite.
const SMALLEST_PEAK: f32 = 1.0 / (1_u128 << 120) as f32;

/// The codes that the largest magnitude of a group may get. One that is a little smaller than 127 makes the steps larger by less
/// than it may save: which values lie near to a step is chance, and the best of six chances has 12 % to 17 % less error.
const PEAK_CODES: [f32; 6] = [127.0, 126.0, 125.0, 124.0, 123.0, 122.0];

/// Parts of a step in which errors are compared: whole numbers, whose squares add up exactly in any order.
const ERROR_PARTS: f32 = 256.0;

/// Rows as the family multiplies them: in bf16 (`amx`), to nearest even, subnormals taken as zero; else in 8 bits, with a scale for each 32
/// values: `q[t, k] = round(x[t, k] * (n / max|x|))`, `s = max|x| / n`, the maximum being that of the group, and `n` the one of 127, 126, ... 122
/// whose steps leave the smallest sum of squared errors, the largest of equals.
///
/// Shapes: x `[m, k]`; out [`rows_len`], which the result views. Overwrites.
/// Numerics in 8 bits, the same for every such family: each quotient and product is rounded to f32, the code to the nearest whole number, ties
/// to even; codes are in -127..=127. Errors are compared as whole 256ths of a step. A group whose maximum is below 2^-120 is zero. One with a
/// value that is not finite gets the scale NaN.
///
/// # Panics
/// When a slice does not fit the shape, or k is not whole groups of 32.
pub fn round_rows<'a, T: Operand>(
    compute: &Compute,
    x: &[T],
    [m, k]: [usize; 2],
    out: &'a mut [u8],
) -> Rows<'a> {
    assert_eq!(out.len(), rows_len([m, k]), "bytes of [{m}, {k}]");
    assert_eq!(Some(x.len()), m.checked_mul(k), "x is [{m}, {k}]");
    let form = Form::of(compute.family());
    match form {
        Form::Codes => quantise_codes(compute, x, [m, k], out),
        Form::Bf16 => round_to_bf16(compute, x, [m, k], out),
    }
    Rows { bytes: out, form, m, k }
}

#[expect(unsafe_code, reason = "tasks write disjoint groups of a bundle")]
fn quantise_codes<T: Operand>(compute: &Compute, x: &[T], [m, k]: [usize; 2], out: &mut [u8]) {
    let n_groups = k / GROUP;
    let n_group_tasks = n_groups.div_ceil(TASK_GROUPS);
    let parts = SliceParts::new(out);
    let family = compute.family();
    compute.pool().run(m.div_ceil(BUNDLE) * n_group_tasks, |task_idx, _| {
        let row = task_idx / n_group_tasks * BUNDLE;
        let first_group = task_idx % n_group_tasks * TASK_GROUPS;
        let n_rows = BUNDLE.min(m - row);
        let n_task_groups = TASK_GROUPS.min(n_groups - first_group);
        let start = (row * n_groups + first_group * n_rows) * RECORD;
        // SAFETY: groups of different tasks do not overlap, and each index is run once.
        let out = unsafe { parts.range(start, n_task_groups * n_rows * RECORD) };
        let x = &x[row * k + first_group * GROUP..];
        let task = Quantise { x, k, n_rows, out };
        match family {
            Family::Reference => {
                task.quantise(|x, codes| quantise_group(x.each_ref().map(|x| x.to_f32()), codes));
            }
            family => dispatch(family, task),
        }
    });
}

struct Quantise<'a, T> {
    /// From the first group of the first row on.
    x: &'a [T],
    k: usize,
    n_rows: usize,
    out: &'a mut [u8],
}

impl<T: Operand> Quantise<'_, T> {
    #[inline(always)]
    fn quantise(self, group_numbers: impl Fn(&[T; GROUP], &mut [u8; GROUP]) -> [f32; 4]) {
        let n_rows = self.n_rows;
        for (group, out) in self.out.chunks_exact_mut(n_rows * RECORD).enumerate() {
            let (codes, factors) = out.split_at_mut(n_rows * GROUP);
            for (row, codes) in codes.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
                let x = self.x[row * self.k + group * GROUP..].first_chunk().expect("a group");
                for (i, number) in group_numbers(x, codes).into_iter().enumerate() {
                    factors[(i * n_rows + row) * 4..][..4].copy_from_slice(&number.to_ne_bytes());
                }
            }
        }
    }
}

impl<T: Operand> LaneKernel for Quantise<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        self.quantise(|x, codes| quantise_group_on(lanes, x, codes));
    }
}

/// Chunks of rows in bf16.
#[expect(unsafe_code, reason = "tasks write disjoint bundles")]
fn round_to_bf16<T: Operand>(compute: &Compute, x: &[T], [m, k]: [usize; 2], out: &mut [u8]) {
    let n_bundles = m.div_ceil(BUNDLE);
    let parts = SliceParts::new(out);
    compute.pool().run(n_bundles * (k / GROUP).div_ceil(CHUNK), |task_idx, _| {
        let (row, first_group) = (task_idx % n_bundles * BUNDLE, task_idx / n_bundles * CHUNK);
        let n_groups = CHUNK.min(k / GROUP - first_group);
        let record = n_groups * BF16_RECORD;
        let start = chunk_range([m, k], first_group).start + row * record;
        // SAFETY: bundles of different tasks do not overlap, and each index is run once.
        let out = unsafe { parts.range(start, m.min(BUNDLE) * record) };
        let n_rows = BUNDLE.min(m - row);
        let x = &x[row * k + first_group * GROUP..];
        dispatch(compute.family(), Round { x, k, n_rows, n_groups, out });
    });
}

/// The rows of a bundle over a chunk.
struct Round<'a, T> {
    /// From the first group of the first row on.
    x: &'a [T],
    k: usize,
    n_rows: usize,
    n_groups: usize,
    out: &'a mut [u8],
}

impl<T: Operand> LaneKernel for Round<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let Self { x, k, n_rows, n_groups, out } = self;
        let mut rounded = [bf16::ZERO; GROUP];
        for (group, out) in out.chunks_exact_mut(out.len() / n_groups).enumerate() {
            for (row, out) in
                out.as_chunks_mut::<BF16_RECORD>().0.iter_mut().enumerate().take(n_rows)
            {
                let x = &x[row * k + group * GROUP..][..GROUP];
                for i in (0..GROUP).step_by(L::N) {
                    lanes.store_bf16(T::load(lanes, &x[i..]), &mut rounded[i..]);
                }
                for (out, rounded) in out.as_chunks_mut().0.iter_mut().zip(rounded) {
                    *out = rounded.to_ne_bytes();
                }
            }
        }
    }
}

/// As [`quantise_group`], which is the definition.
#[inline(always)]
fn quantise_group_on<T: Operand, L: Lanes>(
    lanes: L,
    x: &[T; GROUP],
    codes: &mut [u8; GROUP],
) -> [f32; 4] {
    let zero = lanes.splat(0.0);
    let (mut peak, mut not_finite) = (zero, zero);
    for i in (0..GROUP).step_by(L::N) {
        let x = T::load(lanes, &x[i..]);
        peak = lanes.max(peak, lanes.max(x, lanes.sub(zero, x)));
        // Zero, or NaN.
        not_finite = lanes.mul_add(x, zero, not_finite);
    }
    let (peak, is_finite) = (lanes.reduce_max(peak), lanes.reduce_sum(not_finite) == 0.0);
    if !is_finite || peak < SMALLEST_PEAK {
        codes.fill(0);
        return [if is_finite { 0.0 } else { f32::NAN }, 0.0, 0.0, 0.0];
    }
    // Not a closure that is passed on: it would be compiled without the vectors of the family.
    let mut best = BestPeak::default();
    for n in PEAK_CODES {
        best.consider(n, squared_errors_on(lanes, x, n / peak));
    }
    let n = best.n;
    let inverse = lanes.splat(n / peak);
    let mut sums = [zero; 2];
    for i in (0..GROUP).step_by(L::N) {
        let q = lanes.round(lanes.mul(T::load(lanes, &x[i..]), inverse));
        lanes.store_bytes(q, &mut codes[i..]);
        sums[i / (GROUP / 2)] = lanes.add(sums[i / (GROUP / 2)], q);
    }
    // Sums of small whole numbers are exact in any order.
    let [first, second] = sums.map(|sum| lanes.reduce_sum(sum));
    [peak / n, first + second, first, second]
}

/// The sum of squared errors, in whole [`ERROR_PARTS`] of a step, of values multiplied by `inverse`.
#[inline(always)]
fn squared_errors_on<T: Operand, L: Lanes>(lanes: L, x: &[T; GROUP], inverse: f32) -> f32 {
    let (inverse, parts) = (lanes.splat(inverse), lanes.splat(ERROR_PARTS));
    let mut squares = lanes.splat(0.0);
    for i in (0..GROUP).step_by(L::N) {
        let steps = lanes.mul(T::load(lanes, &x[i..]), inverse);
        let error = lanes.sub(steps, lanes.round(steps));
        let error = lanes.round(lanes.mul(error, parts));
        squares = lanes.mul_add(error, error, squares);
    }
    lanes.reduce_sum(squares)
}

/// The peak code with the smallest error so far.
#[derive(Clone, Copy)]
struct BestPeak {
    n: f32,
    error: f32,
}

impl Default for BestPeak {
    fn default() -> Self {
        Self { n: PEAK_CODES[0], error: f32::INFINITY }
    }
}

impl BestPeak {
    #[inline(always)]
    fn consider(&mut self, n: f32, squared_errors: f32) {
        // In squares of the peak: a step is `peak / n`.
        let error = squared_errors / (n * n);
        if error < self.error {
            *self = Self { n, error };
        }
    }
}

/// Writes the codes; gives the scale, their sum, and the sums of both halves.
fn quantise_group(x: [f32; GROUP], codes: &mut [u8; GROUP]) -> [f32; 4] {
    // As whole numbers magnitudes have the order of their values, infinity and NaN being above all.
    let peak = f32::from_bits(x.iter().fold(0, |peak, x| peak.max(x.abs().to_bits())));
    if !peak.is_finite() || peak < SMALLEST_PEAK {
        codes.fill(0);
        return [if peak.is_finite() { 0.0 } else { f32::NAN }, 0.0, 0.0, 0.0];
    }
    let mut best = BestPeak::default();
    for n in PEAK_CODES {
        let steps = x.map(|x| x * (n / peak));
        let errors = steps.map(|x| ((x - x.round_ties_even()) * ERROR_PARTS).round_ties_even());
        best.consider(n, errors.iter().map(|error| error * error).sum());
    }
    let n = best.n;
    let q = x.map(|x| (x * (n / peak)).round_ties_even());
    for (code, q) in codes.iter_mut().zip(q) {
        *code = (q as i8).cast_unsigned();
    }
    let (first, second) = q.split_at(GROUP / 2);
    // From +0, as the lanes do; `sum` begins with -0.
    let sum = |codes: &[f32]| codes.iter().fold(0.0_f32, |sum, code| sum + code);
    let (first, second) = (sum(first), sum(second));
    [peak / n, first + second, first, second]
}
