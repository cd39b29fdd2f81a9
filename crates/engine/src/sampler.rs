//! Draws one token from a row of logits.

use std::collections::HashMap;

use kernels::likeliest::{argmax, log_sum_exp};

use crate::{Sampling, ScoredToken, TokenSet};

/// Candidates that are looked at first where most are not needed.
const FEW: usize = 256;

/// A candidate and its weight, `exp((logit - max) / temperature)`.
type Candidate = (f64, u32);

/// Working memory of all samplers of an engine.
#[derive(Debug)]
pub(crate) struct SamplerScratch {
    logits: Vec<f32>,
    candidates: Vec<Candidate>,
    /// Distances from the mean surprise, and their candidates.
    by_distance: Vec<(f64, Candidate)>,
}

impl SamplerScratch {
    pub(crate) fn new(vocab_size: usize) -> Self {
        Self {
            logits: Vec::with_capacity(vocab_size),
            candidates: Vec::with_capacity(vocab_size),
            by_distance: Vec::with_capacity(vocab_size),
        }
    }

    /// Bytes that it takes.
    pub(crate) fn bytes_for(vocab_size: usize) -> usize {
        vocab_size * (size_of::<f32>() + size_of::<Candidate>() + size_of::<(f64, Candidate)>())
    }
}

/// The settings of one request, and what its next draw depends on besides the logits.
///
/// The i-th draw depends on the seed, on i and on the tokens before alone (SplitMix64, Steele et al. 2014, output i), so an answer is
/// the same whatever other requests are running.
pub(crate) struct Sampler {
    sampling: Sampling,
    n_drawn: u64,
    /// How often a token was generated; those of the prompt are there with 0. Empty without penalties.
    n_generated_by_id: HashMap<u32, u32>,
}

impl Sampler {
    pub(crate) fn new(sampling: Sampling, prompt: &[u32]) -> Self {
        let counted = if sampling.has_penalties() { prompt } else { &[] };
        let n_generated_by_id = counted.iter().map(|&token_id| (token_id, 0)).collect();
        Self { sampling, n_drawn: 0, n_generated_by_id }
    }

    /// Bytes that one takes at most, for a sequence of so many different tokens. A hash table grows to 16/7 of what it holds, and while
    /// it grows there is half of it again.
    pub(crate) fn max_bytes(n_ids: usize) -> usize {
        4 * n_ids * (size_of::<(u32, u32)>() + 1)
    }

    /// Whether it draws the likeliest token of the model's own distribution, if no mask forbids it: what
    /// [`kernels::likeliest::likeliest`] gives is then all that [`Sampler::draw`] would find out, but for other likely tokens.
    pub(crate) fn draws_likeliest(&self) -> bool {
        let is_plain = !self.sampling.has_penalties() && self.sampling.logit_bias.is_empty();
        is_plain && self.sampling.takes_largest()
    }

    /// Draws a token, of those in `allowed` where that is given; none if the largest logit of these is not finite or one is no number.
    /// `n_top` likeliest tokens are named with it.
    ///
    /// O(vocab_size), plus sorting of the tokens that can be within `top_p`, and of about those that `typical_p` keeps.
    pub(crate) fn draw(
        &mut self,
        logits: &[f32],
        allowed: Option<&TokenSet>,
        n_top: usize,
        scratch: &mut SamplerScratch,
    ) -> Option<ScoredToken> {
        let token_id = self.pick_token(logits, allowed, scratch)?;
        if self.sampling.has_penalties() {
            *self.n_generated_by_id.entry(token_id).or_default() += 1;
        }
        score(logits, token_id, n_top, scratch)
    }

    fn pick_token(
        &mut self,
        logits: &[f32],
        allowed: Option<&TokenSet>,
        scratch: &mut SamplerScratch,
    ) -> Option<u32> {
        let logits = self.changed(logits, allowed, &mut scratch.logits);
        let (likeliest, max) = argmax(logits)?;
        if self.sampling.takes_largest() {
            return Some(likeliest);
        }
        let Sampling { temperature, top_k, typical_p, top_p, min_p, seed, .. } = self.sampling;
        let candidates = &mut scratch.candidates;
        candidates.clear();
        candidates.extend(logits.iter().zip(0_u32..).map(|(&logit, token_id)| {
            let scaled = (f64::from(logit) - f64::from(max)) / f64::from(temperature);
            (scaled.exp(), token_id)
        }));
        if allowed.is_some() {
            candidates.retain(|candidate| candidate.0 > 0.0);
        }
        keep_top_k(candidates, top_k);
        keep_typical(candidates, f64::from(typical_p), &mut scratch.by_distance);
        keep_top_p(candidates, f64::from(top_p));
        let floor = f64::from(min_p) * heaviest(candidates);
        candidates.retain(|candidate| candidate.0 >= floor);
        let uniform = uniform(seed, self.n_drawn);
        self.n_drawn += 1;
        Some(pick(candidates, uniform))
    }

    /// The logits after penalties and biases, without the tokens that are not allowed; in `changed` where any of that is.
    fn changed<'a>(
        &self,
        logits: &'a [f32],
        allowed: Option<&TokenSet>,
        changed: &'a mut Vec<f32>,
    ) -> &'a [f32] {
        let Sampling { repetition_penalty, presence_penalty, frequency_penalty, .. } =
            self.sampling;
        let is_plain = self.n_generated_by_id.is_empty() && self.sampling.logit_bias.is_empty();
        if is_plain && allowed.is_none() {
            return logits;
        }
        changed.clear();
        changed.extend_from_slice(logits);
        for (&token_id, &n_generated) in &self.n_generated_by_id {
            let logit = &mut changed[token_id as usize];
            if *logit > 0.0 {
                *logit /= repetition_penalty;
            } else {
                *logit *= repetition_penalty;
            }
            if n_generated > 0 {
                *logit -= presence_penalty + frequency_penalty * n_generated as f32;
            }
        }
        for &(token_id, bias) in &self.sampling.logit_bias {
            changed[token_id as usize] += bias;
        }
        if let Some(allowed) = allowed {
            for (logit, token_id) in changed.iter_mut().zip(0_u32..) {
                // What is no number stays one, to be found.
                if !allowed.contains(token_id) && !logit.is_nan() {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        changed
    }
}

/// How likely a token is in the model's own distribution, and which are likeliest; none as in [`Sampler::draw`].
pub(crate) fn score(
    logits: &[f32],
    token_id: u32,
    n_top: usize,
    scratch: &mut SamplerScratch,
) -> Option<ScoredToken> {
    let (_, max) = argmax(logits)?;
    let log_sum = log_sum_exp(logits, max);
    let logprob = |logit: f64| (logit - log_sum) as f32;
    let candidates = &mut scratch.candidates;
    candidates.clear();
    if n_top > 0 {
        candidates.extend(logits.iter().zip(0_u32..).map(|(&logit, id)| (f64::from(logit), id)));
        keep_top_k(candidates, u32::try_from(n_top).ok());
        candidates.sort_unstable_by(by_weight);
    }
    let top = candidates.iter().map(|&(logit, id)| (id, logprob(logit))).collect();
    Some(ScoredToken { token_id, logprob: logprob(f64::from(logits[token_id as usize])), top })
}

/// The largest weight: 1, unless the likeliest was not typical.
fn heaviest(candidates: &[Candidate]) -> f64 {
    candidates.iter().fold(0.0, |max, candidate| max.max(candidate.0))
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

/// Keeps the candidates whose surprise `-ln p` is nearest to its mean, until their weights reach `typical_p` of the sum.
fn keep_typical(
    candidates: &mut Vec<Candidate>,
    typical_p: f64,
    by_distance: &mut Vec<(f64, Candidate)>,
) {
    if typical_p >= 1.0 {
        return;
    }
    let total: f64 = candidates.iter().map(|candidate| candidate.0).sum();
    candidates.retain(|candidate| candidate.0 / total > 0.0);
    let surprise = |weight: f64| -(weight / total).ln();
    let mean: f64 = candidates.iter().map(|&(weight, _)| weight / total * surprise(weight)).sum();
    let distance = |candidate: &Candidate| (surprise(candidate.0) - mean).abs();
    by_distance.clear();
    by_distance.extend(candidates.iter().map(|candidate| (distance(candidate), *candidate)));
    let nearer =
        |a: &(f64, Candidate), b: &(f64, Candidate)| a.0.total_cmp(&b.0).then(a.1.1.cmp(&b.1.1));
    // The nearest few are mostly enough; to sort all takes many times as long.
    let mut n = by_distance.len().min(FEW);
    while n < by_distance.len() {
        by_distance.select_nth_unstable_by(n, nearer);
        let weight: f64 = by_distance[..n].iter().map(|(_, candidate)| candidate.0).sum();
        if weight >= typical_p * total {
            break;
        }
        n = by_distance.len().min(4 * n);
    }
    by_distance.truncate(n);
    by_distance.sort_unstable_by(nearer);
    candidates.clear();
    candidates.extend(by_distance.iter().map(|(_, candidate)| *candidate));
    keep_prefix(candidates, typical_p * total);
}

/// Keeps candidates from the first on until their weights reach `needed`.
fn keep_prefix(candidates: &mut Vec<Candidate>, needed: f64) {
    let mut reached = 0.0;
    let last_idx = candidates.iter().position(|candidate| {
        reached += candidate.0;
        reached >= needed
    });
    if let Some(last_idx) = last_idx {
        candidates.truncate(last_idx + 1);
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
    // Of equal weights the mean may be rounded up.
    let floor = floor.min(heaviest(candidates));
    candidates.retain(|candidate| candidate.0 >= floor);
    candidates.sort_unstable_by(by_weight);
    keep_prefix(candidates, top_p * total);
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
        draw_after(&[], sampling, logits, n)
    }

    fn draw_after(prompt: &[u32], sampling: Sampling, logits: &[f32], n: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(sampling, prompt);
        let mut scratch = SamplerScratch::new(logits.len());
        (0..n).map(|_| sampler.draw(logits, None, 0, &mut scratch).unwrap().token_id).collect()
    }

    #[test]
    fn greedy_takes_the_lowest_id_of_equals() {
        let logits = [0.5, 2.0, -1.0, 2.0];
        assert_eq!(draw_many(Sampling::GREEDY, &logits, 3), [1, 1, 1]);
    }

    #[test]
    fn logprob_is_that_of_the_untruncated_distribution() {
        let logits = [0.0, 0.0, 0.0, 0.0];
        let mut sampler = Sampler::new(Sampling { top_k: Some(1), ..Sampling::GREEDY }, &[]);
        let drawn = sampler.draw(&logits, None, 0, &mut SamplerScratch::new(4)).unwrap();
        assert!((drawn.logprob - 0.25_f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn the_likeliest_tokens_come_in_order_with_their_logprobs() {
        let logits = [1.0_f32.ln(), 5.0_f32.ln(), 2.0_f32.ln(), 2.0_f32.ln()];
        let mut scratch = SamplerScratch::new(4);
        let scored = score(&logits, 0, 3, &mut scratch).unwrap();
        assert!((scored.logprob - 0.1_f32.ln()).abs() < 1e-6);
        assert_eq!(scored.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 2, 3]);
        assert!((scored.top[0].1 - 0.5_f32.ln()).abs() < 1e-6, "{:?}", scored.top);
        // As many as there are.
        assert_eq!(score(&logits, 0, 20, &mut scratch).unwrap().top.len(), 4);
        assert!(score(&logits, 0, 0, &mut scratch).unwrap().top.is_empty());
    }

    #[test]
    fn only_allowed_tokens_are_drawn_and_their_scores_stay_the_models_own() {
        let logits = [1.0_f32.ln(), 5.0_f32.ln(), 2.0_f32.ln(), 2.0_f32.ln()];
        let mut allowed = TokenSet::none_of(4);
        allowed.insert(0);
        allowed.insert(3);
        let mut scratch = SamplerScratch::new(4);
        let samplings = [
            Sampling { typical_p: 0.9, ..Sampling::PLAIN },
            Sampling { top_p: 0.99, min_p: 0.01, ..Sampling::PLAIN },
            Sampling { top_k: Some(3), ..Sampling::PLAIN },
            Sampling { repetition_penalty: 1.5, logit_bias: vec![(1, 9.0)], ..Sampling::PLAIN },
        ];
        for sampling in samplings {
            let mut sampler = Sampler::new(sampling, &[1]);
            let mut n_drawn = [0; 4];
            for _ in 0..200 {
                let drawn = sampler.draw(&logits, Some(&allowed), 1, &mut scratch).unwrap();
                n_drawn[drawn.token_id as usize] += 1;
                let expected = [0.1_f32, 0.5, 0.2, 0.2][drawn.token_id as usize].ln();
                assert!((drawn.logprob - expected).abs() < 1e-6);
                assert_eq!(drawn.top[0].0, 1, "the likeliest is named though it may not come");
            }
            assert!(
                n_drawn[0] > 20 && n_drawn[3] > 20 && n_drawn[1] + n_drawn[2] == 0,
                "{n_drawn:?}"
            );
        }
        let mut greedy = Sampler::new(Sampling::GREEDY, &[]);
        assert_eq!(greedy.draw(&logits, Some(&allowed), 0, &mut scratch).unwrap().token_id, 3);
        assert!(greedy.draw(&[f32::NAN; 4], Some(&allowed), 0, &mut scratch).is_none());
    }

    #[test]
    fn frequencies_follow_the_probabilities() {
        let logits = [1.0_f32.ln(), 2.0_f32.ln(), 7.0_f32.ln()];
        let sampling = Sampling { seed: 5, ..Sampling::PLAIN };
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
        let base = || Sampling { seed: 9, ..Sampling::PLAIN };
        let two = draw_many(Sampling { top_k: Some(2), ..base() }, &logits, 500);
        assert!(two.iter().all(|&id| id < 2) && two.contains(&1));
        // softmax = 0.636, 0.234, 0.086, ...: 0.8 needs two tokens, 0.9 three.
        let p80 = draw_many(Sampling { top_p: 0.8, ..base() }, &logits, 500);
        assert!(p80.iter().all(|&id| id < 2) && p80.contains(&1));
        let p90 = draw_many(Sampling { top_p: 0.9, ..base() }, &logits, 500);
        assert!(p90.iter().all(|&id| id < 3) && p90.contains(&2));
    }

    #[test]
    fn min_p_keeps_what_is_near_to_the_likeliest() {
        // Parts of the likeliest: 1, 0.37, 0.14.
        let logits = [1.0_f32, 0.0, -1.0];
        let drawn = |min_p| draw_many(Sampling { min_p, ..Sampling::PLAIN }, &logits, 500);
        assert!(drawn(0.3).iter().all(|&id| id < 2) && drawn(0.3).contains(&1));
        assert!(drawn(0.4).iter().all(|&id| id == 0));
        assert!(drawn(0.1).contains(&2));
    }

    #[test]
    fn typical_p_keeps_what_is_as_surprising_as_the_mean() {
        // p = 0.6 and four of 0.1: surprises 0.51 and 2.30, the mean 1.23; 0.6 is 0.72 away, 0.1 is 1.08.
        let even = [6.0_f32.ln(), 0.0, 0.0, 0.0, 0.0];
        let drawn = |logits: &[f32], typical_p| {
            draw_many(Sampling { typical_p, ..Sampling::PLAIN }, logits, 500)
        };
        assert!(drawn(&even, 0.4).iter().all(|&id| id == 0));
        assert!(drawn(&even, 0.65).iter().all(|&id| id < 2) && drawn(&even, 0.65).contains(&1));
        // p = 0.8 and twenty of 0.01: surprises 0.22 and 4.6, the mean 1.10. 0.8 is nearer.
        let mut uneven = vec![0.0; 21];
        uneven[0] = 80.0_f32.ln();
        assert!(drawn(&uneven, 0.5).iter().all(|&id| id == 0));
        // p = 0.3 and seventy of 0.01: the mean is 3.58, and the rare ones, 1.02 away, are more typical than 0.3, 2.38 away.
        let mut flat = vec![0.0; 71];
        flat[0] = 30.0_f32.ln();
        assert!(drawn(&flat, 0.5).iter().all(|&id| id > 0));
        // The likeliest of what is typical, and weights that are nothing beside others.
        let only = Sampling { typical_p: 0.5, top_p: 0.0, ..Sampling::PLAIN };
        assert_eq!(draw_many(only, &flat, 3), [1; 3]);
        let cold = Sampling { typical_p: 0.5, temperature: 0.001, ..Sampling::PLAIN };
        assert_eq!(draw_many(cold, &[0.0, 1.0, 0.257, 0.256], 3), [1; 3]);
    }

    #[test]
    fn penalties_fall_on_what_was_said_and_biases_on_what_is_named() {
        let logits = [1.0_f32, 0.9, 0.8, -1.0];
        let first = |sampling, prompt: &[u32], n| draw_after(prompt, sampling, &logits, n);
        let presence = Sampling { presence_penalty: 0.15, ..Sampling::GREEDY };
        // Of the answer alone, and once.
        assert_eq!(first(presence, &[0, 0], 6), [0, 1, 0, 0, 0, 0]);
        let frequency = Sampling { frequency_penalty: 0.15, ..Sampling::GREEDY };
        assert_eq!(first(frequency, &[], 4), [0, 1, 0, 2]);
        let repetition = Sampling { repetition_penalty: 1.3, ..Sampling::GREEDY };
        // Also of the prompt: 1 / 1.3 is less than 0.8.
        assert_eq!(first(repetition.clone(), &[0, 1], 2), [2, 0]);
        let bias = Sampling { logit_bias: vec![(3, 5.0), (0, -1.0)], ..Sampling::GREEDY };
        assert_eq!(first(bias, &[], 2), [3, 3]);
        // A logit below 0 is made smaller, not larger.
        let mut sampler = Sampler::new(repetition, &[3]);
        let drawn =
            sampler.draw(&[-1.2, -3.0, -3.0, -1.0], None, 0, &mut SamplerScratch::new(4)).unwrap();
        assert_eq!(drawn.token_id, 0);
        // The log-probability is the model's own: -1.2 - ln(e^-1.2 + 2 e^-3 + e^-1).
        assert!((drawn.logprob + 0.936_88).abs() < 1e-4, "{}", drawn.logprob);
    }

    #[test]
    fn equal_seeds_repeat_and_other_seeds_differ() {
        let logits: Vec<f32> = (0..50).map(|i| (i as f32 * 0.37).sin()).collect();
        let sampling = || Sampling { top_p: 0.95, seed: 1, ..Sampling::PLAIN };
        let first = draw_many(sampling(), &logits, 40);
        assert_eq!(first, draw_many(sampling(), &logits, 40));
        assert_ne!(first, draw_many(Sampling { seed: 2, ..sampling() }, &logits, 40));
    }

    #[test]
    fn extreme_temperatures_draw_a_token_of_the_vocabulary() {
        let logits = [-1e30_f32, 5.0, 4.999, 1e-3];
        let at = |temperature| Sampling { temperature, seed: 3, ..Sampling::PLAIN };
        assert_eq!(draw_many(at(1e-30), &logits, 5), [1; 5]);
        let hot = at(2.0);
        assert!(draw_many(hot, &logits, 200).iter().all(|&id| id != 0));
    }

    #[test]
    fn where_the_likeliest_is_drawn_it_is_found_without_a_draw() {
        let rows: Vec<Vec<f32>> = vec![
            (0..50).map(|i| (i as f32 * 0.37).sin() * 9.0).collect(),
            vec![-0.0, 0.0, 0.0, f32::NEG_INFINITY],
            vec![3.0, f32::NAN],
            vec![3.0, f32::INFINITY],
        ];
        let samplings = [
            (Sampling::GREEDY, true),
            (Sampling { top_k: Some(1), ..Sampling::PLAIN }, true),
            (Sampling { top_p: 0.0, ..Sampling::PLAIN }, true),
            (Sampling { min_p: 1.0, ..Sampling::PLAIN }, false),
            (Sampling { top_p: 0.0, typical_p: 0.5, ..Sampling::PLAIN }, false),
            (Sampling { logit_bias: vec![(0, 0.1)], ..Sampling::GREEDY }, false),
            (Sampling { repetition_penalty: 1.1, ..Sampling::GREEDY }, false),
            (Sampling { presence_penalty: 0.1, ..Sampling::GREEDY }, false),
            (Sampling { frequency_penalty: -0.1, ..Sampling::GREEDY }, false),
        ];
        for (sampling, expected) in samplings {
            let mut sampler = Sampler::new(sampling, &[1]);
            assert_eq!(sampler.draws_likeliest(), expected, "{:?}", sampler.sampling);
            for row in rows.iter().filter(|_| expected) {
                let drawn = sampler.draw(row, None, 0, &mut SamplerScratch::new(row.len()));
                let found = kernels::likeliest::likeliest_of(row);
                let bits = |token_id, logprob: f32| (token_id, logprob.to_bits());
                assert_eq!(
                    found.map(|found| bits(found.token_id, found.logprob)),
                    drawn.map(|drawn| bits(drawn.token_id, drawn.logprob)),
                    "{row:?}"
                );
            }
        }
    }

    #[test]
    fn logits_that_are_not_numbers_are_refused() {
        let (mut sampler, mut scratch) =
            (Sampler::new(Sampling::GREEDY, &[]), SamplerScratch::new(2));
        assert!(sampler.draw(&[f32::NAN, 1.0], None, 0, &mut scratch).is_none());
        assert!(sampler.draw(&[f32::NEG_INFINITY], None, 0, &mut scratch).is_none());
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
