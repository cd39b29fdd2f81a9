//! Requests of different adapters and of none in one engine.

use model::LoadedAdapter;

use super::*;

fn adapter(decoder: &Decoder, seed: u64) -> Arc<LoadedAdapter> {
    Arc::new(LoadedAdapter::random(&device(), decoder.config(), DType::F32, 3, seed))
}

fn adapted(
    prompt: &[u32],
    max_tokens: usize,
    adapter: Option<&Arc<LoadedAdapter>>,
) -> GenerationRequest {
    GenerationRequest { adapter: adapter.cloned(), ..greedy(prompt, max_tokens) }
}

/// Prompts that begin alike, with cache for few of them: each says what it says alone, and nothing is shared between adapters.
#[test]
fn requests_of_different_adapters_say_among_others_what_they_say_alone() {
    let decoder = Arc::new(decoder());
    let adapters = [None, Some(adapter(&decoder, 1)), Some(adapter(&decoder, 2))];
    let mut rng = Rng::new(4);
    let beginning: Vec<u32> = (0..70).map(|_| rng.below(32) as u32).collect();
    let requests: Vec<(Vec<u32>, usize)> =
        (0..12).map(|i| ([&beginning[..], &[i, 2 * i]].concat(), i as usize % 3)).collect();
    let submit = |engine: &EngineHandle, i: usize| {
        let (prompt, of) = &requests[i];
        engine.submit(adapted(prompt, 60, adapters[*of].as_ref())).unwrap()
    };
    let alone: Vec<_> = (0..requests.len())
        .map(|i| {
            let limits = EngineLimits { speculation: Speculation::Off, ..EngineLimits::default() };
            drain_bits(submit(&Engine::start(Arc::clone(&decoder), device(), limits).unwrap(), i))
        })
        .collect();
    assert_ne!(alone[0], alone[1]);
    assert_ne!(alone[1], alone[2]);
    let limits = EngineLimits { max_running: 5, step_tokens: 24, ..EngineLimits::default() };
    let limits = EngineLimits { speculation: Speculation::Always, ..room_for(400, limits) };
    let engine = Engine::start(Arc::clone(&decoder), device(), limits).unwrap();
    let running: Vec<_> = (0..requests.len()).map(|i| submit(&engine, i)).collect();
    for (i, events) in running.into_iter().enumerate() {
        assert_eq!(drain_bits(events), alone[i], "request {i}");
    }
    let load = engine.load();
    assert!(load.n_reused_tokens > 0 && load.n_accepted_tokens > 0, "{load:?}");
}

#[test]
fn what_one_adapter_computed_is_not_read_by_another() {
    let decoder = Arc::new(decoder());
    let (one, other) = (adapter(&decoder, 1), adapter(&decoder, 2));
    let engine = Engine::start(Arc::clone(&decoder), device(), EngineLimits::default()).unwrap();
    let n_reused = |adapter: Option<&Arc<LoadedAdapter>>| {
        let (_, last) = drain(engine.submit(adapted(&[5; 70], 1, adapter)).unwrap());
        let Event::Finished { n_reused_tokens, .. } = last else { panic!("{last:?}") };
        n_reused_tokens
    };
    for adapter in [None, Some(&one), Some(&other)] {
        assert_eq!(n_reused(adapter), 0);
        assert_eq!(n_reused(adapter), 64);
    }
    // Gone, its memory is free, and a new one in its place is another.
    let weak = Arc::downgrade(&one);
    drop(one);
    assert!(weak.upgrade().is_none(), "an idle engine keeps no adapter");
    assert_eq!(n_reused(Some(&adapter(&decoder, 3))), 0);
}

#[test]
fn an_adapter_for_another_model_is_refused() {
    let engine = Engine::start(Arc::new(decoder()), device(), EngineLimits::default()).unwrap();
    let foreign = adapter(&decoder_with([Some(20), None]), 1);
    let refused = engine.submit(adapted(&[1], 1, Some(&foreign)));
    assert!(matches!(refused, Err(EngineError::ForeignAdapter)));
}
