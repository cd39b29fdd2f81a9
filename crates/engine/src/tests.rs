//! The engine against plain decoding, and its promises under load.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use kernels::attention::KEY_BLOCK;
use kernels::{Compute, Family};
use model::{CachedRows, Decoder, KvCache, ModelConfig, Parameters, Workspace};
use tensor::{DType, Device, Passes};
use testkit::random::Rng;

use crate::handle::CachePlan;
use crate::{
    Engine, EngineError, EngineHandle, EngineLimits, Event, EventReceiver, FinishReason,
    GenerationRequest, Sampling, StopAtIds, StopDecision, StopMatcher,
};

const CONTEXT_LEN: usize = 160;
const SAMPLED: Sampling = Sampling { temperature: 1.0, top_k: Some(20), top_p: 0.95, seed: 11 };

fn config() -> ModelConfig {
    let mut config = ModelConfig::example();
    config.context_len = CONTEXT_LEN;
    ModelConfig::new(config).unwrap()
}

fn device() -> Device {
    Device::Cpu(Compute::forced(Family::Reference, 1).unwrap())
}

/// A tiny model whose distributions are uneven enough for greedy decoding to wander.
fn decoder() -> Decoder {
    let config = config();
    let mut parameters = Parameters::random(&config, 3);
    for tensor in parameters.iter_mut() {
        for value in tensor.f32_mut() {
            *value *= 3.0;
        }
    }
    let mut decoder = Decoder::zeroed(&config, DType::F32, Passes::Forward);
    decoder.pack(&device(), &parameters);
    decoder
}

fn request(prompt: Vec<u32>, max_tokens: usize, sampling: Sampling) -> GenerationRequest {
    let stop = Box::new(StopAtIds(Vec::new()));
    GenerationRequest { prompt, max_tokens: Some(max_tokens), sampling, stop }
}

fn greedy(prompt: &[u32], max_tokens: usize) -> GenerationRequest {
    request(prompt.to_vec(), max_tokens, Sampling::GREEDY)
}

/// Token ids, and how it ended.
fn drain(mut events: EventReceiver) -> (Vec<u32>, Event) {
    let mut token_ids = Vec::new();
    loop {
        match events.recv_blocking().expect("an event before the end") {
            Event::Token { token_id, .. } => token_ids.push(token_id),
            last => return (token_ids, last),
        }
    }
}

fn random_prompts(n: usize) -> Vec<Vec<u32>> {
    let mut rng = Rng::new(5);
    let vocab_size = config().vocab_size;
    let lens = [1, 40, 3, 97, 16, 17, 2, 64, 33, 5];
    (0..n).map(|i| (0..lens[i]).map(|_| rng.below(vocab_size) as u32).collect()).collect()
}

/// Greedy decoding without an engine: the whole prompt at once, then token by token.
fn plain_decoding(decoder: &Decoder, prompt: &[u32], n_tokens: usize) -> Vec<u32> {
    let (config, device) = (decoder.config(), device());
    let mut workspace = Workspace::new(config, DType::F32, CONTEXT_LEN, Passes::Forward);
    let mut cache = KvCache::new(config, DType::F32, CONTEXT_LEN, CONTEXT_LEN);
    let mut logits = Vec::new();
    let mut input = prompt.to_vec();
    let mut generated = Vec::new();
    while generated.len() < n_tokens {
        let mut rows = [CachedRows { token_ids: &input, cache: &mut cache }];
        decoder.forward_cached(&device, &mut rows, &mut workspace, &mut logits);
        let mut best = 0;
        for i in 1..logits.len() {
            if logits[i] > logits[best] {
                best = i;
            }
        }
        input = vec![best as u32];
        generated.push(best as u32);
    }
    generated
}

#[test]
fn batched_and_chunked_equals_plain_decoding() {
    let decoder = decoder();
    let prompts = random_prompts(10);
    let expected: Vec<Vec<u32>> =
        prompts.iter().map(|prompt| plain_decoding(&decoder, prompt, 30)).collect();
    let distinct: std::collections::HashSet<u32> = expected.concat().into_iter().collect();
    assert!(distinct.len() > 5, "the model says too little for the test to mean something");
    let limits = EngineLimits { max_running: 4, step_tokens: 16, ..EngineLimits::default() };
    let engine = Engine::start(Arc::new(decoder), device(), limits).unwrap();
    let running: Vec<EventReceiver> =
        prompts.iter().map(|prompt| engine.submit(greedy(prompt, 30)).unwrap()).collect();
    for (events, expected) in running.into_iter().zip(expected) {
        assert_eq!(drain(events).0, expected);
    }
}

#[test]
fn sampled_tokens_depend_on_the_seed_and_not_on_the_batch() {
    let decoder = Arc::new(decoder());
    let alone = |sampling| {
        let engine = Engine::start(Arc::clone(&decoder), device(), EngineLimits::default());
        drain(engine.unwrap().submit(request(vec![1, 2, 3], 40, sampling)).unwrap()).0
    };
    let expected = alone(SAMPLED);
    assert_ne!(expected, alone(Sampling { seed: 12, ..SAMPLED }));
    let limits = EngineLimits { max_running: 8, step_tokens: 24, ..EngineLimits::default() };
    let engine = Engine::start(decoder, device(), limits).unwrap();
    let mut others: Vec<EventReceiver> = random_prompts(9)
        .into_iter()
        .map(|prompt| engine.submit(request(prompt, 25, SAMPLED)).unwrap())
        .collect();
    let among = engine.submit(request(vec![1, 2, 3], 40, SAMPLED)).unwrap();
    drop(others.remove(4));
    assert_eq!(drain(among).0, expected);
}

#[test]
fn an_answer_ends_at_its_limit_at_the_context_or_at_a_stop_token() {
    let engine = Engine::start(Arc::new(decoder()), device(), EngineLimits::default()).unwrap();
    let prompt = vec![4; 20];
    let ended = |max_tokens| drain(engine.submit(greedy(&prompt, max_tokens)).unwrap());
    for (max_tokens, n_expected) in
        [(0, 0), (1, 1), (7, 7), (140, 140), (141, 140), (usize::MAX, 140)]
    {
        let (token_ids, last) = ended(max_tokens);
        assert_eq!(token_ids.len(), n_expected);
        let Event::Finished { reason, n_prompt_tokens, n_generated } = last else {
            panic!("{last:?}");
        };
        assert_eq!((reason, n_prompt_tokens), (FinishReason::Length, 20));
        assert_eq!(n_generated, n_expected);
    }
    let token_ids = ended(10).0;
    let stop_id = token_ids[5];
    let n_expected = token_ids.iter().position(|&id| id == stop_id).unwrap() + 1;
    let stopping =
        GenerationRequest { stop: Box::new(StopAtIds(vec![stop_id])), ..greedy(&prompt, 10) };
    let (stopped, last) = drain(engine.submit(stopping).unwrap());
    assert_eq!(stopped, token_ids[..n_expected]);
    assert!(matches!(last, Event::Finished { reason: FinishReason::Stop, .. }), "{last:?}");
}

#[test]
fn without_a_limit_an_answer_takes_what_cache_and_context_have_room_for() {
    let decoder = Arc::new(decoder());
    let unlimited = |prompt: &[u32]| GenerationRequest { max_tokens: None, ..greedy(prompt, 0) };
    let n_answered = |cache_bytes, prompt: &[u32]| {
        let limits = EngineLimits { cache_bytes, ..EngineLimits::default() };
        let engine = Engine::start(Arc::clone(&decoder), device(), limits).unwrap();
        engine.submit(unlimited(prompt)).map(|receiver| drain(receiver).0.len())
    };
    let bytes_of = |n_tokens| {
        KvCache::bytes_for(
            decoder.config(),
            decoder.dtype(),
            n_tokens,
            EngineLimits::default().step_tokens,
        )
    };
    let prompt = [4; 20];
    assert_eq!(n_answered(bytes_of(160), &prompt).unwrap(), 140);
    // The cache grows in blocks; at least what was asked for is there, and less than another block more.
    let n = n_answered(bytes_of(90), &prompt).unwrap();
    assert!((70..70 + KEY_BLOCK).contains(&n), "{n}");
    assert!(matches!(n_answered(bytes_of(1), &[4; 159]), Err(EngineError::CacheTooSmall { .. })));
}

#[test]
fn requests_that_cannot_work_are_refused() {
    let small = EngineLimits { cache_bytes: 40_000, ..EngineLimits::default() };
    let engine = Engine::start(Arc::new(decoder()), device(), small).unwrap();
    let refusal = |request| engine.submit(request).err().expect("a refusal").to_string();
    let hot = Sampling { temperature: f32::NAN, ..Sampling::GREEDY };
    let loose = Sampling { top_p: 1.5, ..Sampling::GREEDY };
    assert!(refusal(greedy(&[], 1)).contains("no tokens"));
    assert!(refusal(greedy(&[1; CONTEXT_LEN], 1)).contains("160 tokens, expected fewer than 160"));
    assert!(refusal(greedy(&[1, 32], 1)).contains("token 1 of the prompt is 32"));
    assert!(refusal(request(vec![1], 1, hot)).contains("temperature"));
    assert!(refusal(request(vec![1], 1, loose)).contains("top_p"));
    assert!(refusal(greedy(&[1], usize::MAX)).contains("bytes of cache"));
    let no_rows = EngineLimits { step_tokens: 3, ..EngineLimits::default() };
    let outcome = Engine::start(Arc::new(decoder()), device(), no_rows);
    let error = outcome.err().unwrap().to_string();
    assert_eq!(error, "the limit step_tokens is 3, expected at least 16");
}

/// An engine whose steps wait for the test: each reports the tokens it got, then waits to be let go.
/// Dropped first, `go` lets all further steps pass, so that the engine can end.
struct Stepped {
    go: Sender<f32>,
    engine: EngineHandle,
    steps: Receiver<Vec<Vec<u32>>>,
}

impl Stepped {
    fn start(limits: EngineLimits) -> Self {
        let (report, steps) = channel();
        let (go, gate) = channel();
        let config = config();
        let vocab_size = config.vocab_size;
        let forward = move |rows: &mut [CachedRows<'_>], logits: &mut Vec<f32>| {
            let seen = rows.iter().map(|row| row.token_ids.to_vec()).collect();
            let Ok(()) = report.send(seen) else { return };
            let value: f32 = gate.recv().unwrap_or(0.0);
            assert!(value >= 0.0 || value.is_nan(), "this step fails on purpose");
            logits.clear();
            // Always token 7, unless the test asks for something that is not a number.
            for _ in 0..rows.len() {
                logits.extend((0..vocab_size).map(|i| if i == 7 { 1.0 + value } else { value }));
            }
        };
        let plan = CachePlan { config, dtype: DType::F32, step_tokens: CONTEXT_LEN };
        Self { go, engine: Engine::start_with(plan, limits, forward).unwrap(), steps }
    }

    /// Waits for a step and lets it go.
    fn step(&self) -> Vec<Vec<u32>> {
        let seen = self.steps.recv().unwrap();
        self.go.send(0.0).unwrap();
        seen
    }
}

fn one_at_a_time() -> EngineLimits {
    EngineLimits { max_running: 1, max_waiting: 2, ..EngineLimits::default() }
}

#[test]
fn dropping_the_receiver_ends_a_generation_within_one_step() {
    let stepped = Stepped::start(one_at_a_time());
    let mut first = stepped.engine.submit(greedy(&[1], 50)).unwrap();
    assert_eq!(stepped.step(), [[1]]);
    assert!(matches!(first.recv_blocking(), Some(Event::Token { token_id: 7, .. })));
    assert_eq!(stepped.steps.recv().unwrap(), [[7]]);
    let second = stepped.engine.submit(greedy(&[2], 1)).unwrap();
    drop(first);
    stepped.go.send(0.0).unwrap();
    assert_eq!(stepped.step(), [[2]]);
    assert_eq!(drain(second).0, [7]);
}

#[test]
fn dropping_the_receiver_ends_a_long_prompt_between_its_pieces() {
    let stepped = Stepped::start(EngineLimits { step_tokens: 10, ..one_at_a_time() });
    let long = stepped.engine.submit(greedy(&[3; 100], 5)).unwrap();
    assert_eq!(stepped.steps.recv().unwrap(), [[3; 10]]);
    drop(long);
    let next = stepped.engine.submit(greedy(&[2], 1)).unwrap();
    stepped.go.send(0.0).unwrap();
    assert_eq!(stepped.step(), [[2]]);
    assert_eq!(drain(next).0, [7]);
}

#[test]
fn the_queue_is_bounded_and_a_cancelled_request_gives_its_place_up() {
    let stepped = Stepped::start(one_at_a_time());
    let _running = stepped.engine.submit(greedy(&[1], 50)).unwrap();
    stepped.steps.recv().unwrap();
    let waiting = stepped.engine.submit(greedy(&[2], 1)).unwrap();
    let _other = stepped.engine.submit(greedy(&[3], 1)).unwrap();
    assert_eq!(stepped.engine.load().n_waiting, 2);
    let full = stepped.engine.submit(greedy(&[4], 1));
    assert!(matches!(full, Err(EngineError::QueueFull { limit: 2 })));
    drop(waiting);
    assert!(stepped.engine.submit(greedy(&[5], 1)).is_ok());
}

#[test]
fn a_long_prompt_does_not_stall_an_answer_in_progress() {
    let limits = EngineLimits { max_running: 4, step_tokens: 8, ..EngineLimits::default() };
    let stepped = Stepped::start(limits);
    let answering = stepped.engine.submit(greedy(&[1], 30)).unwrap();
    assert_eq!(stepped.step(), [[1]]);
    stepped.steps.recv().unwrap();
    let long = stepped.engine.submit(greedy(&[3; 21], 1)).unwrap();
    stepped.go.send(0.0).unwrap();
    for _ in 0..3 {
        assert_eq!(stepped.step(), [vec![7], vec![3; 7]]);
    }
    assert_eq!(drain(long).0, [7]);
    drop(answering);
}

#[test]
fn requests_wait_until_the_cache_has_room_for_them() {
    let plan = CachePlan { config: config(), dtype: DType::F32, step_tokens: 64 };
    let one_request = KvCache::bytes_for(&plan.config, plan.dtype, 64, 64);
    let limits = EngineLimits { cache_bytes: one_request * 3 / 2, ..EngineLimits::default() };
    let stepped = Stepped::start(limits);
    let first = stepped.engine.submit(greedy(&[1; 62], 2)).unwrap();
    let second = stepped.engine.submit(greedy(&[2; 62], 2)).unwrap();
    assert_eq!(stepped.step(), [vec![1; 62]]);
    assert_eq!(stepped.step(), [[7]]);
    assert_eq!(stepped.step(), [vec![2; 62]]);
    assert_eq!(stepped.step(), [[7]]);
    assert_eq!((drain(first).0.len(), drain(second).0.len()), (2, 2));
}

#[test]
fn a_panic_in_a_step_fails_its_requests_and_the_engine_goes_on() {
    let stepped = Stepped::start(one_at_a_time());
    let failing = stepped.engine.submit(greedy(&[1], 5)).unwrap();
    stepped.steps.recv().unwrap();
    stepped.go.send(-1.0).unwrap();
    let (_, last) = drain(failing);
    assert!(
        matches!(&last, Event::Failed(EngineError::StepPanicked { detail }) if detail.contains("on purpose")),
        "{last:?}"
    );
    let next = stepped.engine.submit(greedy(&[2], 1)).unwrap();
    assert_eq!(stepped.step(), [[2]]);
    assert_eq!(drain(next).0, [7]);
}

#[test]
fn logits_that_are_not_numbers_fail_the_request() {
    let stepped = Stepped::start(one_at_a_time());
    let events = stepped.engine.submit(greedy(&[1], 5)).unwrap();
    stepped.steps.recv().unwrap();
    stepped.go.send(f32::NAN).unwrap();
    assert!(matches!(drain(events).1, Event::Failed(EngineError::NotFinite { .. })));
}

/// Plays a list of decisions, then panics.
struct Scripted(Vec<StopDecision>);

impl StopMatcher for Scripted {
    fn push(&mut self, _token_id: u32) -> StopDecision {
        self.0.remove(0)
    }
}

#[test]
fn a_panic_in_a_stop_matcher_fails_its_own_request_only() {
    let engine = Engine::start(Arc::new(decoder()), device(), EngineLimits::default()).unwrap();
    let stop = Box::new(Scripted(vec![StopDecision::Continue]));
    let failing = engine.submit(GenerationRequest { stop, ..greedy(&[1, 2, 3], 20) }).unwrap();
    let other = engine.submit(greedy(&[1, 2, 3], 20)).unwrap();
    assert!(matches!(drain(failing).1, Event::Failed(EngineError::MatcherPanicked { .. })));
    assert_eq!(drain(other).0.len(), 20);
}

#[test]
fn tokens_held_back_are_handed_over_once_that_is_decided() {
    use StopDecision::{Continue, HoldBack, Stop};
    let stepped = Stepped::start(one_at_a_time());
    let stop = Box::new(Scripted(vec![Continue, HoldBack, HoldBack, Continue, HoldBack, Stop]));
    let mut events = stepped.engine.submit(GenerationRequest { stop, ..greedy(&[1], 50) }).unwrap();
    let n_ready = |events: &mut EventReceiver| {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        std::iter::from_fn(|| match events.poll_recv(&mut context) {
            std::task::Poll::Ready(event) => event,
            std::task::Poll::Pending => None,
        })
        .count()
    };
    // When a step reports its input, the token of the step before has been dealt with.
    stepped.steps.recv().unwrap();
    for n_expected in [1, 0, 0, 3, 0] {
        stepped.go.send(0.0).unwrap();
        stepped.steps.recv().unwrap();
        assert_eq!(n_ready(&mut events), n_expected);
    }
    stepped.go.send(0.0).unwrap();
    let (token_ids, last) = drain(events);
    assert_eq!(token_ids.len(), 2);
    assert!(matches!(last, Event::Finished { n_generated: 6, .. }), "{last:?}");
}

#[test]
fn dropping_the_last_handle_ends_what_is_left() {
    let decoder = Arc::new(decoder());
    let weak = Arc::downgrade(&decoder);
    let engine = Engine::start(decoder, device(), EngineLimits::default()).unwrap();
    let clone = engine.clone();
    let events = engine.submit(greedy(&[1; 30], 100)).unwrap();
    drop(engine);
    assert!(weak.upgrade().is_some(), "a clone keeps the engine running");
    drop(clone);
    assert!(weak.upgrade().is_none(), "the thread has ended and freed the model");
    let (token_ids, last) = drain(events);
    let complete = matches!(last, Event::Finished { .. }) && token_ids.len() == 100;
    assert!(complete || matches!(last, Event::Failed(EngineError::Stopped)), "{last:?}");
}

#[test]
fn the_plan_counts_the_cache_up_to_its_limit() {
    let config = config();
    let planned = |cache_bytes, max_running| {
        let limits = EngineLimits { cache_bytes, max_running, ..EngineLimits::default() };
        Engine::planned_bytes(&config, DType::F32, &limits)
    };
    let of_one = KvCache::bytes_for(&config, DType::F32, CONTEXT_LEN, CONTEXT_LEN);
    let events = (CONTEXT_LEN + 1) * (size_of::<Event>() + size_of::<u32>());
    let per_request = of_one + config.vocab_size * 4 + events;
    assert_eq!(planned(usize::MAX, 2) - planned(usize::MAX, 1), per_request);
    assert_eq!(planned(of_one, 2) - planned(0, 2), of_one);
}

#[test]
fn drawing_from_no_token_is_refused_and_harms_nobody() {
    let engine = Engine::start(Arc::new(decoder()), device(), EngineLimits::default()).unwrap();
    let sampling = Sampling { temperature: 1.0, top_k: Some(0), ..Sampling::GREEDY };
    let refused = engine.submit(GenerationRequest { sampling, ..greedy(&[1, 2], 4) });
    let setting = "top_k";
    assert!(
        matches!(refused, Err(EngineError::InvalidSampling { setting: s, .. }) if s == setting)
    );
    let (token_ids, _) = drain(engine.submit(greedy(&[1, 2], 4)).unwrap());
    assert_eq!(token_ids.len(), 4);
}

#[test]
fn engines_move_between_threads() {
    fn check<T: Send + Sync>() {}
    check::<EngineHandle>();
    fn check_send<T: Send>() {}
    check_send::<EventReceiver>();
}
