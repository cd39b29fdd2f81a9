//! Gradients by central differences in f64, to check hand-written backward passes.

use crate::close::Tolerance;

/// `df/dx[i]` for each `i` of `indices`, by `(f(x + h e_i) - f(x - h e_i)) / 2h` with `h = cbrt(epsilon) * max(1, |x[i]|)`.
///
/// Numerics: for an `f` computed in f64 with values and third derivatives near 1 the error is near 1e-10.
/// Calls `f` twice per index.
///
/// # Panics
/// When an index is outside `x`.
#[track_caller]
pub fn gradient(f: impl Fn(&[f64]) -> f64, x: &[f64], indices: &[usize]) -> Vec<f64> {
    let mut point = x.to_vec();
    let mut slopes = Vec::with_capacity(indices.len());
    for &i in indices {
        assert!(i < x.len(), "index {i} is outside the {} variables", x.len());
        let step = f64::EPSILON.cbrt() * x[i].abs().max(1.0);
        let (above, below) = (x[i] + step, x[i] - step);
        point[i] = above;
        let value_above = f(&point);
        point[i] = below;
        let value_below = f(&point);
        point[i] = x[i];
        // The distance as represented, not the one that was asked for.
        slopes.push((value_above - value_below) / (above - below));
    }
    slopes
}

/// Asserts that `analytic[i]` is the derivative of `f` at `x` for each `i` of `indices`. `analytic` has one entry per
/// variable, like `x`.
///
/// # Panics
/// Naming the worst of the checked variables and both derivatives, when one is outside the tolerance.
#[track_caller]
pub fn assert_gradient(
    analytic: &[f64],
    f: impl Fn(&[f64]) -> f64,
    x: &[f64],
    indices: &[usize],
    tolerance: Tolerance,
) {
    assert_eq!(analytic.len(), x.len(), "one derivative per variable");
    let numeric = gradient(f, x, indices);
    let excess = |(&i, &slope): (&usize, &f64)| {
        let difference = (analytic[i] - slope).abs();
        let allowed = tolerance.absolute + tolerance.relative * slope.abs();
        // NaN on either side is as bad as can be.
        let excess = difference - allowed;
        (i, slope, if excess.is_nan() { f64::INFINITY } else { excess })
    };
    let worst = indices.iter().zip(&numeric).map(excess).max_by(|a, b| a.2.total_cmp(&b.2));
    if let Some((i, slope, excess)) = worst {
        assert!(
            excess <= 0.0,
            "derivative by variable {i}: analytic {}, by differences {slope} (allowed {:e} + {:e} * |value|)",
            analytic[i],
            tolerance.absolute,
            tolerance.relative,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::{assert_gradient, gradient};
    use crate::close::{Tolerance, assert_close};

    fn product_and_sine(x: &[f64]) -> f64 {
        x[0] * x[1] + (3.0 * x[2]).sin()
    }

    fn its_gradient(x: &[f64]) -> Vec<f64> {
        vec![x[1], x[0], 3.0 * (3.0 * x[2]).cos()]
    }

    #[test]
    fn central_differences_find_known_derivatives() {
        let x = [2.0, -500.0, 0.3];
        let slopes = gradient(product_and_sine, &x, &[2, 0, 1]);
        let exact = its_gradient(&x);
        assert_close(&slopes, &[exact[2], exact[0], exact[1]], Tolerance::relative(1e-8));
    }

    #[test]
    fn the_right_gradient_is_accepted() {
        let x = [0.5, 1.5, -0.7];
        let tolerance = Tolerance::relative(1e-8);
        assert_gradient(&its_gradient(&x), product_and_sine, &x, &[0, 1, 2], tolerance);
    }

    #[test]
    #[should_panic(expected = "derivative by variable 1: analytic 0.6,")]
    fn a_wrong_component_is_named() {
        let x = [0.5, 1.5, -0.7];
        let mut wrong = its_gradient(&x);
        wrong[1] += 0.1;
        assert_gradient(&wrong, product_and_sine, &x, &[0, 1, 2], Tolerance::relative(1e-6));
    }

    #[test]
    #[should_panic(expected = "analytic NaN")]
    fn a_nan_derivative_is_refused() {
        assert_gradient(&[f64::NAN], |x| x[0], &[1.0], &[0], Tolerance::absolute(1.0));
    }
}
