//! Comparison of computed and expected numbers.

use std::fmt::Display;

/// How far a value may be from the expected one: `|actual - expected| <= absolute + relative * |expected|`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// In the unit of the values.
    pub absolute: f64,
    /// As a fraction of the expected magnitude.
    pub relative: f64,
}

impl Tolerance {
    /// Equal values only (zeros of both signs are equal).
    pub const EXACT: Self = Self { absolute: 0.0, relative: 0.0 };

    /// An absolute tolerance alone.
    pub const fn absolute(absolute: f64) -> Self {
        Self { absolute, relative: 0.0 }
    }

    /// A relative tolerance alone.
    pub const fn relative(relative: f64) -> Self {
        Self { absolute: 0.0, relative }
    }

    /// Whether `actual` is close to `expected`. A NaN is close to a NaN only, an infinity to itself only.
    pub fn allows(self, actual: f64, expected: f64) -> bool {
        let difference = difference(actual, expected);
        // An infinite or NaN expectation allows no difference, and a matching value has none.
        difference == 0.0 || difference <= self.at(expected) && difference.is_finite()
    }

    /// The largest difference from `expected`.
    fn at(self, expected: f64) -> f64 {
        self.absolute + self.relative * expected.abs()
    }
}

/// Asserts that every element is within the tolerance ([`Tolerance::allows`]).
///
/// # Panics
/// When lengths differ, or naming the element that exceeds the tolerance by the largest factor, with both values.
#[track_caller]
pub fn assert_close<T>(actual: &[T], expected: &[T], tolerance: Tolerance)
where
    T: Copy + Into<f64> + Display,
{
    assert_eq!(actual.len(), expected.len(), "lengths of actual and expected values");
    let mut n_outside = 0;
    let mut worst_idx = 0;
    let mut worst_excess = 0.0;
    for i in 0..actual.len() {
        if tolerance.allows(actual[i].into(), expected[i].into()) {
            continue;
        }
        let difference = difference(actual[i].into(), expected[i].into());
        let allowed = tolerance.at(expected[i].into());
        n_outside += 1;
        let excess = if allowed > 0.0 { difference / allowed } else { f64::INFINITY };
        if n_outside == 1 || excess > worst_excess {
            worst_idx = i;
            worst_excess = excess;
        }
    }
    assert!(
        n_outside == 0,
        "{n_outside} of {n} values differ; worst at index {worst_idx}: actual {a}, expected {e}, difference {d:e} \
         (allowed {absolute:e} + {relative:e} * |expected|)",
        n = actual.len(),
        a = actual[worst_idx],
        e = expected[worst_idx],
        d = difference(actual[worst_idx].into(), expected[worst_idx].into()),
        absolute = tolerance.absolute,
        relative = tolerance.relative,
    );
}

/// The largest absolute difference; zero for empty slices, infinite where a NaN or an infinity meets anything else.
///
/// # Panics
/// When lengths differ.
#[track_caller]
pub fn max_abs_diff<T>(actual: &[T], expected: &[T]) -> f64
where
    T: Copy + Into<f64>,
{
    assert_eq!(actual.len(), expected.len(), "lengths of actual and expected values");
    actual.iter().zip(expected).map(|(&a, &e)| difference(a.into(), e.into())).fold(0.0, f64::max)
}

fn difference(actual: f64, expected: f64) -> f64 {
    if actual == expected || actual.is_nan() && expected.is_nan() {
        return 0.0;
    }
    let difference = (actual - expected).abs();
    if difference.is_nan() { f64::INFINITY } else { difference }
}

#[cfg(test)]
mod tests {
    use super::{Tolerance, assert_close, max_abs_diff};

    #[test]
    fn values_within_either_part_of_the_tolerance_pass() {
        let tolerance = Tolerance { absolute: 0.1, relative: 0.01 };
        assert_close(&[1.1_f64, 1009.0, 0.0], &[1.0, 1000.0, -0.1], tolerance);
    }

    #[test]
    #[should_panic(
        expected = "2 of 3 values differ; worst at index 2: actual 5, expected 3, difference 2e0"
    )]
    fn the_worst_element_is_named_with_both_values() {
        assert_close(&[1.0_f32, 2.5, 5.0], &[1.0, 2.0, 3.0], Tolerance::absolute(0.25));
    }

    #[test]
    fn nan_equals_nan_and_infinity_itself() {
        let values = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
        assert_close(&values, &values, Tolerance::EXACT);
        assert_eq!(max_abs_diff(&values, &values), 0.0);
    }

    #[test]
    #[should_panic(expected = "worst at index 0: actual 1, expected NaN")]
    fn nan_expected_refuses_a_number_at_any_tolerance() {
        assert_close(&[1.0_f32], &[f32::NAN], Tolerance::absolute(f64::INFINITY));
    }

    #[test]
    #[should_panic(expected = "worst at index 1: actual NaN, expected 2")]
    fn a_nan_is_worse_than_no_difference() {
        assert_close(&[1.0_f32, f32::NAN], &[1.0, 2.0], Tolerance::relative(0.5));
    }

    #[test]
    #[should_panic(expected = "expected inf")]
    fn a_finite_value_is_not_close_to_infinity() {
        assert_close(&[1.0_f32], &[f32::INFINITY], Tolerance::relative(0.5));
    }

    #[test]
    #[should_panic(expected = "lengths of actual and expected values")]
    fn lengths_must_agree() {
        assert_close(&[1.0_f32], &[1.0, 2.0], Tolerance::EXACT);
    }

    #[test]
    fn max_abs_diff_is_the_largest() {
        assert_eq!(max_abs_diff(&[1.0_f64, -4.0, 2.0], &[1.5, -1.0, 2.0]), 3.0);
        assert_eq!(max_abs_diff::<f32>(&[], &[]), 0.0);
        assert_eq!(max_abs_diff(&[f32::NAN], &[1.0]), f64::INFINITY);
    }
}
