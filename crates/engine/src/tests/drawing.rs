//! Where and by whom tokens are drawn changes none.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

const VOCAB_SIZE: usize = 4096;

/// What sixteen requests of all kinds say of a vocabulary that is large enough for threads to share the draws. The logits are made
/// of the position and the token before.
fn said(n_threads: usize, speculation: Speculation, max_running: usize) -> Vec<Vec<(u32, u32)>> {
    let mut config = ModelConfig::example();
    (config.context_len, config.vocab_size) = (CONTEXT_LEN, VOCAB_SIZE);
    let config = ModelConfig::new(config).unwrap();
    let limits = EngineLimits { max_running, speculation, ..EngineLimits::default() };
    let forward = move |rows: &[CachedRows<'_>], on_logits: &mut OnLogits<'_>| {
        for_wanted(rows, |row, of| {
            let position = row.first_position + of.row_idx;
            let token_id = row.token_ids[of.row_idx] as usize;
            let mut rng = Rng::new((position % 3 * VOCAB_SIZE + token_id) as u64);
            let logits: Vec<f32> =
                (0..VOCAB_SIZE).map(|_| rng.below(10_000) as f32 * 1e-3).collect();
            give(on_logits, row, of, &logits);
        });
    };
    let plan = CachePlan::new(&config, DType::F32, &limits);
    let engine = Engine::start_with(plan, limits, compute(n_threads), None, forward).unwrap();
    let requests = (0..16_u64).map(|i| {
        let cold = Sampling { temperature: 0.1, ..sampled(i) };
        let sampling = match i % 5 {
            0 => Sampling::GREEDY,
            1 => cold,
            2 => Sampling { frequency_penalty: 0.5, ..cold },
            3 => Sampling { top_k: Some(1), ..Sampling::PLAIN },
            _ => Sampling { repetition_penalty: 1.2, ..Sampling::GREEDY },
        };
        let logprobs = Logprobs { n_top: i as usize % 3, of_prompt: i % 4 == 3 };
        let prompt = vec![i as u32 % 4, 7, 9, 7, 9];
        GenerationRequest { logprobs, ..request(prompt, 40, sampling) }
    });
    let running: Vec<_> = requests.map(|request| engine.submit(request).unwrap()).collect();
    running.into_iter().map(drain_bits).collect()
}

#[test]
fn tokens_have_the_same_bits_whoever_draws_them() {
    let alone = said(1, Speculation::Off, 1);
    let distinct: std::collections::HashSet<u32> =
        alone.iter().flatten().map(|(token_id, _)| *token_id).collect();
    assert!(distinct.len() > 20, "{distinct:?}");
    for (n_threads, speculation) in
        [(1, Speculation::Always), (3, Speculation::Off), (2, Speculation::Always)]
    {
        assert_eq!(said(n_threads, speculation, 16), alone, "{n_threads} threads, {speculation:?}");
    }
}

/// What is wanted of logits follows from the request: not from what else is computed in its steps, nor from guesses.
#[test]
fn all_logits_are_wanted_only_by_those_who_look_at_them() {
    let n_whole = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&n_whole);
    let limits = EngineLimits { speculation: Speculation::Always, ..one_at_a_time() };
    let forward = move |rows: &[CachedRows<'_>], on_logits: &mut OnLogits<'_>| {
        for_wanted(rows, |row, of| {
            counted.fetch_add(usize::from(row.wanted == Wanted::Logits), Ordering::Relaxed);
            let mut logits = vec![0.0; 32];
            logits[7] = 1.0;
            give(on_logits, row, of, &logits);
        });
    };
    let plan = CachePlan::new(&config(), DType::F32, &limits);
    let engine = Engine::start_with(plan, limits, compute(1), None, forward).unwrap();
    let n_wanted = |request| {
        assert_eq!(drain(engine.submit(request).unwrap()).0, [7; 9]);
        n_whole.swap(0, Ordering::Relaxed)
    };
    assert_eq!(n_wanted(greedy(&[7; 3], 9)), 0, "guesses are checked by their likeliest tokens");
    let top = Logprobs { n_top: 1, of_prompt: false };
    assert!(n_wanted(GenerationRequest { logprobs: top, ..greedy(&[7; 3], 9) }) >= 9);
    let scored = Logprobs { n_top: 0, of_prompt: true };
    assert!(n_wanted(GenerationRequest { logprobs: scored, ..greedy(&[7; 3], 9) }) >= 2 + 9);
    let biased = Sampling { logit_bias: vec![(7, 1.0)], ..Sampling::GREEDY };
    assert!(n_wanted(request(vec![7; 3], 9, biased)) >= 9);
    assert!(
        n_wanted(request(
            vec![7; 3],
            9,
            Sampling { top_k: Some(2), temperature: 1e-9, ..Sampling::PLAIN }
        )) >= 9
    );
}
