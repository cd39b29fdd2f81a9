//! Draws one token from a row of logits.

use crate::Sampling;

/// A token and its log-probability.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Drawn {
    pub(crate) token_id: u32,
    /// Of the model's own distribution: temperature 1, no truncation.
    pub(crate) logprob: f32,
}

/// A candidate and its weight, `exp((logit - max) / temperature)`.
type Candidate = (f64, u32);

/// The random numbers of one request and the buffer they are applied to.
///
/// The i-th draw depends on the seed and on i alone (SplitMix64, Steele et al. 2014, output i), so an answer is the same
/// whatever other requests are running.
pub(crate) struct Sampler {
    sampling: Sampling,
    n_drawn: u64,
}

impl Sampler {
    pub(crate) fn new(sampling: Sampling) -> Self {
        Self { sampling, n_drawn: 0 }
    }

    /// Draws a token; none if the largest logit is not finite or one is no number.
    ///
    /// O(vocab_size), plus sorting of the tokens that can be within `top_p`. `candidates` is scratch.
    pub(crate) fn draw(
        &mut self,
        logits: &[f32],
        candidates: &mut Vec<Candidate>,
    ) -> Option<Drawn> {
        let (likeliest, max) = argmax(logits)?;
        let log_sum = log_sum_exp(logits, max);
        let logprob = |token_id: u32| (f64::from(logits[token_id as usize]) - log_sum) as f32;
        let Sampling { temperature, top_k, top_p, seed } = self.sampling;
        if temperature == 0.0 || top_k == Some(1) || top_p == 0.0 {
            return Some(Drawn { token_id: likeliest, logprob: logprob(likeliest) });
        }
        candidates.clear();
        candidates.extend(logits.iter().zip(0_u32..).map(|(&logit, token_id)| {
            let scaled = (f64::from(logit) - f64::from(max)) / f64::from(temperature);
            (scaled.exp(), token_id)
        }));
        keep_top_k(candidates, top_k);
        keep_top_p(candidates, f64::from(top_p));
        let uniform = uniform(seed, self.n_drawn);
        self.n_drawn += 1;
        let token_id = pick(candidates, uniform);
        Some(Drawn { token_id, logprob: logprob(token_id) })
    }
}

/// The largest logit, of equals the first; none if it is not finite.
fn argmax(logits: &[f32]) -> Option<(u32, f32)> {
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

fn log_sum_exp(logits: &[f32], max: f32) -> f64 {
    let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - f64::from(max)).exp()).sum();
    f64::from(max) + sum.ln()
}

/// Heavier first, of equals the lower id.
fn by_weight(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

fn keep_top_k(candidates: &mut Vec<Candidate>, top_k: Option<u32>) {
    let Some(k) = top_k.map(|k| k as usize) else { return };
    if k < candidates.len() {
        candidates.select_nth_unstable_by(k, by_weight);
        candidates.truncate(k);
        candidates.sort_unstable_by(by_weight);
    }
}

/// Keeps the smallest prefix of the sorted candidates whose weights reach `top_p` of their sum.
fn keep_top_p(candidates: &mut Vec<Candidate>, top_p: f64) {
    if top_p >= 1.0 {
        return;
    }
    let total: f64 = candidates.iter().map(|candidate| candidate.0).sum();
    // Tokens lighter than this weigh less than 1 - top_p all together, so none of them is needed to reach top_p; what
    // remains is short enough to sort.
    let floor = (1.0 - top_p) * total / candidates.len() as f64;
    candidates.retain(|candidate| candidate.0 >= floor);
    candidates.sort_unstable_by(by_weight);
    let mut reached = 0.0;
    let n_kept = candidates.iter().position(|candidate| {
        reached += candidate.0;
        reached >= top_p * total
    });
    if let Some(last_idx) = n_kept {
        candidates.truncate(last_idx + 1);
    }
}

/// The candidate at `uniform` of the way along the weights.
fn pick(candidates: &[Candidate], uniform: f64) -> u32 {
    let total: f64 = candidates.iter().map(|candidate| candidate.0).sum();
    let target = uniform * total;
    let mut reached = 0.0;
    let mut last = candidates[0].1;
    for &(weight, token_id) in candidates {
        if weight > 0.0 {
            last = token_id;
            reached += weight;
            if reached > target {
                break;
            }
        }
    }
    last
}

/// Output `index` of SplitMix64 from `seed`, as a number in `[0, 1)`.
fn uniform(seed: u64, index: u64) -> f64 {
    let mut z = seed.wrapping_add((index.wrapping_add(1)).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^= z >> 31;
    (z >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw_many(sampling: Sampling, logits: &[f32], n: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(sampling);
        let mut scratch = Vec::new();
        (0..n).map(|_| sampler.draw(logits, &mut scratch).unwrap().token_id).collect()
    }

    #[test]
    fn greedy_takes_the_lowest_id_of_equals() {
        let logits = [0.5, 2.0, -1.0, 2.0];
        assert_eq!(draw_many(Sampling::GREEDY, &logits, 3), [1, 1, 1]);
    }

    #[test]
    fn logprob_is_that_of_the_untruncated_distribution() {
        let logits = [0.0, 0.0, 0.0, 0.0];
        let mut sampler = Sampler::new(Sampling { top_k: Some(1), ..Sampling::GREEDY });
        let drawn = sampler.draw(&logits, &mut Vec::new()).unwrap();
        assert!((drawn.logprob - 0.25_f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn frequencies_follow_the_probabilities() {
        let logits = [1.0_f32.ln(), 2.0_f32.ln(), 7.0_f32.ln()];
        let sampling = Sampling { temperature: 1.0, top_k: None, top_p: 1.0, seed: 5 };
        let drawn = draw_many(sampling, &logits, 10_000);
        let share = |id| drawn.iter().filter(|&&other| other == id).count() as f64 / 10_000.0;
        // Three standard deviations of a share of 10,000 draws are below 0.015.
        for (id, expected) in [(0, 0.1), (1, 0.2), (2, 0.7)] {
            assert!((share(id) - expected).abs() < 0.015, "{id}: {}", share(id));
        }
    }

    #[test]
    fn top_k_and_top_p_keep_only_the_likeliest() {
        let logits = [3.0_f32, 2.0, 1.0, 0.0, -1.0];
        let base = Sampling { temperature: 1.0, top_k: None, top_p: 1.0, seed: 9 };
        let two = draw_many(Sampling { top_k: Some(2), ..base }, &logits, 500);
        assert!(two.iter().all(|&id| id < 2) && two.contains(&1));
        // softmax = 0.636, 0.234, 0.086, ...: 0.8 needs two tokens, 0.9 three.
        let p80 = draw_many(Sampling { top_p: 0.8, ..base }, &logits, 500);
        assert!(p80.iter().all(|&id| id < 2) && p80.contains(&1));
        let p90 = draw_many(Sampling { top_p: 0.9, ..base }, &logits, 500);
        assert!(p90.iter().all(|&id| id < 3) && p90.contains(&2));
    }

    #[test]
    fn equal_seeds_repeat_and_other_seeds_differ() {
        let logits: Vec<f32> = (0..50).map(|i| (i as f32 * 0.37).sin()).collect();
        let sampling = Sampling { temperature: 1.0, top_k: None, top_p: 0.95, seed: 1 };
        let first = draw_many(sampling, &logits, 40);
        assert_eq!(first, draw_many(sampling, &logits, 40));
        assert_ne!(first, draw_many(Sampling { seed: 2, ..sampling }, &logits, 40));
    }

    #[test]
    fn extreme_temperatures_draw_a_token_of_the_vocabulary() {
        let logits = [-1e30_f32, 5.0, 4.999, 1e-3];
        let sampling = Sampling { temperature: 1e-30, top_k: None, top_p: 1.0, seed: 3 };
        assert_eq!(draw_many(sampling, &logits, 5), [1; 5]);
        let hot = Sampling { temperature: 2.0, ..sampling };
        assert!(draw_many(hot, &logits, 200).iter().all(|&id| id != 0));
    }

    #[test]
    fn logits_that_are_not_numbers_are_refused() {
        let mut sampler = Sampler::new(Sampling::GREEDY);
        assert!(sampler.draw(&[f32::NAN, 1.0], &mut Vec::new()).is_none());
        assert!(sampler.draw(&[f32::NEG_INFINITY], &mut Vec::new()).is_none());
    }

    #[test]
    fn uniform_is_splitmix64() {
        // First outputs of the reference implementation for seed 1234567.
        let expected = [6_457_827_717_110_365_317_u64, 3_203_168_211_198_807_973];
        for (i, bits) in (0..).zip(expected) {
            let value = (bits >> 11) as f64 / (1_u64 << 53) as f64;
            assert!((uniform(1_234_567, i) - value).abs() < 1e-18);
        }
    }
}
