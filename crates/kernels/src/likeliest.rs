//! The likeliest token of a row of logits, and how likely it is.

use crate::compute::Compute;

/// A token and how likely it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Likeliest {
    /// Its id.
    pub token_id: u32,
    /// Natural logarithm of its probability.
    pub logprob: f32,
}

/// The likeliest token of some rows: `out[i].token_id = argmax_j logits[rows[i], j]`, of equals the first, and
/// `out[i].logprob = max_j logits[rows[i], j] - ln(sum_j exp(logits[rows[i], j]))`; none as [`argmax`].
///
/// Shapes: logits `[n_rows, vocab]`; rows, out `[wanted]`. Overwrites. Numerics: as [`log_sum_exp`], one after the other in all families.
///
/// # Panics
/// When there is no such row, or not one place for each.
pub fn likeliest(
    compute: &Compute,
    logits: &[f32],
    vocab_size: usize,
    rows: &[u32],
    out: &mut [Option<Likeliest>],
) {
    assert_eq!(rows.len(), out.len(), "places for rows");
    compute.pool().run_chunks(out, 1, |i, out, _| {
        out[0] = likeliest_of(&logits[rows[i] as usize * vocab_size..][..vocab_size]);
    });
}

/// As [`likeliest`], of one row.
#[must_use]
pub fn likeliest_of(logits: &[f32]) -> Option<Likeliest> {
    let (token_id, max) = argmax(logits)?;
    let logprob = (f64::from(max) - log_sum_exp(logits, max)) as f32;
    Some(Likeliest { token_id, logprob })
}

/// The largest logit, of equals the first; none if it is not finite or one is NaN.
#[must_use]
pub fn argmax(logits: &[f32]) -> Option<(u32, f32)> {
    let mut best = (0_u32, f32::NEG_INFINITY);
    for (&logit, token_id) in logits.iter().zip(0_u32..) {
        if logit.is_nan() {
            return None;
        }
        if logit > best.1 {
            best = (token_id, logit);
        }
    }
    best.1.is_finite().then_some(best)
}

/// `ln(sum_j exp(logits[j]))`, summed in f64 relative to the largest.
#[must_use]
pub fn log_sum_exp(logits: &[f32], max: f32) -> f64 {
    let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - f64::from(max)).exp()).sum();
    f64::from(max) + sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Family;

    #[test]
    fn the_first_of_the_largest_is_found_with_its_probability() {
        let rows = [[0.5, 2.0, -1.0, 2.0], [f32::NEG_INFINITY, 3.0, f32::NEG_INFINITY, -50.0]];
        for n_threads in [1, 2] {
            let compute = Compute::forced(Family::Reference, n_threads).unwrap();
            let mut out = [None; 3];
            likeliest(&compute, rows.as_flattened(), 4, &[1, 0, 1], &mut out);
            assert_eq!(out[0], Some(Likeliest { token_id: 1, logprob: 0.0 }));
            let Some(Likeliest { token_id: 1, logprob }) = out[1] else { panic!("{out:?}") };
            let sum: f32 = rows[0].iter().map(|x| x.exp()).sum();
            assert!((logprob - (2.0_f32.exp() / sum).ln()).abs() < 1e-6, "{logprob}");
            assert_eq!(out[2], out[0]);
        }
    }

    #[test]
    fn logits_that_are_not_numbers_have_no_likeliest() {
        for logits in [[f32::NAN, 1.0], [1.0, f32::INFINITY], [f32::NEG_INFINITY; 2]] {
            assert_eq!(likeliest_of(&logits), None, "{logits:?}");
        }
    }
}
