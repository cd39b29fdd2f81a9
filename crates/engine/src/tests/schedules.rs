//! Many requests in any order, with little cache: each says what it says alone, and no block is lost.

use super::*;

/// Prompts, most tokens of answers, and how they are drawn.
fn requests_that_begin_alike(rng: &mut Rng, vocab_size: usize) -> Vec<(Vec<u32>, usize, Sampling)> {
    let random =
        |rng: &mut Rng, n| -> Vec<u32> { (0..n).map(|_| rng.below(vocab_size) as u32).collect() };
    let beginnings = [random(rng, 70), random(rng, 40), Vec::new()];
    (0..24)
        .map(|i| {
            let beginning = &beginnings[rng.below(3)];
            let n_more = 1 + rng.below(50);
            let prompt = [beginning.clone(), random(rng, n_more)].concat();
            let sampling = if rng.below(2) == 0 {
                Sampling::GREEDY
            } else {
                Sampling { frequency_penalty: 0.3, ..sampled(i) }
            };
            (prompt, 1 + rng.below(90), sampling)
        })
        .collect()
}

/// Requests whose prompts begin alike, in any order of arrival, with cache for few of them and steps of few tokens, some of them
/// given up: what each says is what it says alone.
#[test]
fn any_schedule_gives_the_bits_of_a_request_alone() {
    let (mut n_reused, mut n_preemptions, mut n_draft_tokens, mut n_right) = (0, 0, 0, 0);
    use {
        CacheKind::{Int8, Operands},
        Speculation::{Always, Off},
    };
    for (seed, windows, cache_kind, is_drafted) in [
        (1, [None, None], Int8, false),
        (2, [Some(20), None], Operands, false),
        (3, [Some(40), Some(7)], Int8, true),
    ] {
        let decoder = Arc::new(decoder_with(windows));
        let config = decoder.config();
        let mut rng = Rng::new(seed);
        let requests = requests_that_begin_alike(&mut rng, config.vocab_size);
        let submit = |engine: &EngineHandle, i: usize| {
            let (prompt, max_tokens, sampling) = &requests[i];
            engine.submit(request(prompt.clone(), *max_tokens, sampling.clone())).unwrap()
        };
        let alone: Vec<_> = (0..requests.len())
            .map(|i| {
                let limits =
                    EngineLimits { cache_kind, speculation: Off, ..EngineLimits::default() };
                let limits = EngineLimits { step_tokens: CONTEXT_LEN, ..limits };
                drain_bits(submit(
                    &Engine::start(Arc::clone(&decoder), device(), limits).unwrap(),
                    i,
                ))
            })
            .collect();
        // One that is seldom right, and one that always is.
        let [other, same] = [Arc::new(decoder_of(config, 4)), Arc::clone(&decoder)];
        for (max_running, step_tokens, room, speculation, draft) in [
            (6, 16, 200, Off, None),
            (3, 7, 160, Always, Some(other)),
            (8, 64, 320, Always, Some(same)),
        ] {
            let cache_bytes =
                KvBlocks::bytes_for(config, DType::F32, cache_kind, room, step_tokens);
            let limits = EngineLimits { max_running, step_tokens, ..EngineLimits::default() };
            let limits = EngineLimits { cache_bytes, cache_kind, speculation, ..limits };
            let model = Arc::clone(&decoder);
            let draft = draft.filter(|_| is_drafted);
            let engine = Engine::start_with_draft_model(model, draft, device(), limits).unwrap();
            let mut order: Vec<usize> = (0..requests.len()).collect();
            order.sort_by_cached_key(|_| rng.next_u64());
            let running: Vec<_> = order.iter().map(|&i| (i, submit(&engine, i))).collect();
            for (n, (i, events)) in running.into_iter().enumerate() {
                if n % 5 == 4 {
                    drop(events);
                } else {
                    assert_eq!(drain_bits(events), alone[i], "{windows:?}, {limits:?}, {i}");
                }
            }
            let load = engine.load();
            n_reused += load.n_reused_tokens;
            n_preemptions += load.n_preemptions;
            n_draft_tokens += load.n_draft_tokens;
            n_right += load.n_accepted_tokens;
        }
    }
    assert!(n_reused > 0 && n_preemptions > 0, "{n_reused} {n_preemptions}");
    assert!(0 < n_right && n_right < n_draft_tokens, "{n_right} of {n_draft_tokens} guesses");
}

/// Requests that read the same blocks count them as their own, though passing such a block gives nothing back to others.
#[test]
fn requests_that_share_blocks_within_a_window_all_end() {
    let config = config_with([Some(40), Some(40)]);
    let limits = EngineLimits { max_running: 4, step_tokens: 16, ..EngineLimits::default() };
    let cache_bytes = 5 * 2 * KvBlocks::block_bytes(&config, DType::F32, CacheKind::Operands);
    let decoder = Arc::new(decoder_with([Some(40), Some(40)]));
    let engine = Engine::start(decoder, device(), EngineLimits { cache_bytes, ..limits }).unwrap();
    let prompt: Vec<u32> = (0..96).map(|i| i % 32).collect();
    let first = engine.submit(greedy(&prompt, 1)).unwrap();
    drain(first);
    let running: Vec<_> = (0..12).map(|_| engine.submit(greedy(&prompt, 60)).unwrap()).collect();
    for events in running {
        assert_eq!(drain(events).0.len(), 60);
    }
}

/// Ten thousand requests of any length, one in four given up at any time, in a cache that holds few of them: each ends, and no block
/// is lost.
#[test]
fn a_tiny_cache_serves_many_requests_and_loses_no_block() {
    let config = config_with([Some(40), None]);
    let cache_bytes =
        KvBlocks::bytes_for(&config, DType::F32, CacheKind::Operands, CONTEXT_LEN, 32) * 2;
    let limits = EngineLimits {
        max_running: 8,
        step_tokens: 32,
        cache_bytes,
        speculation: Speculation::Always,
        ..EngineLimits::default()
    };
    let plan = CachePlan::new(&config, DType::F32, &limits);
    let queue = Arc::new(RequestQueue::new(40));
    let vocab_size = config.vocab_size;
    let forward = move |rows: &[CachedRows<'_>], on_logits: &mut OnLogits<'_>| {
        for_wanted(rows, |row, of| {
            let mut logits = vec![0.0; vocab_size];
            let token_id = row.token_ids[of.row_idx] as usize;
            logits[(token_id * 5 + row.first_position + of.row_idx) % vocab_size] = 1.0;
            give(on_logits, row, of, &logits);
        });
    };
    let counters = Arc::new(Counters::default());
    let drawers = Drawers::new(compute(1), limits.max_running, vocab_size);
    let shared = (Arc::clone(&queue), Arc::clone(&counters));
    let mut scheduler = Scheduler::new(&plan, limits, shared, drawers, None, forward);
    let run = move || {
        scheduler.run();
        scheduler
    };
    let thread = std::thread::Builder::new().name("engine".to_owned()).spawn(run).unwrap();
    let mut rng = Rng::new(77);
    let mut waiting = std::collections::VecDeque::new();
    for _ in 0..10_000 {
        let n_prompt = 1 + rng.below(100);
        // Many begin alike.
        let first = rng.below(3) as u32;
        let prompt: Vec<u32> = (0..n_prompt as u32).map(|i| (first + i * i) % 32).collect();
        let max_tokens = rng.below(CONTEXT_LEN - n_prompt);
        let (events, receiver) = crate::events::channel(max_tokens + 1);
        let request = greedy(&prompt, max_tokens);
        queue.push(Pending { request, max_tokens, events }).unwrap();
        waiting.push_back((receiver, max_tokens));
        if waiting.len() > 30 {
            let (mut receiver, max_tokens) = waiting.pop_front().unwrap();
            if rng.below(4) == 0 {
                let n_read = rng.below(max_tokens + 1);
                (0..n_read).for_each(|_| drop(receiver.recv_blocking()));
            } else {
                assert_eq!(drain(receiver).0.len(), max_tokens);
            }
        }
    }
    for (receiver, max_tokens) in waiting {
        assert_eq!(drain(receiver).0.len(), max_tokens);
    }
    queue.close();
    let load = counters.load(0);
    assert!(load.n_preemptions > 100 && load.n_reused_tokens > 10_000, "{load:?}");
    assert!(0 < load.n_accepted_tokens && load.n_accepted_tokens < load.n_draft_tokens, "{load:?}");
    let (free, held, _) = thread.join().unwrap().into_pool().census();
    assert!(held == 0 && free > 0, "{free} free, {held} held");
}
