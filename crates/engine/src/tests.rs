//! The engine against plain decoding, and its promises under load.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use cuda::{Gpu, LibraryPath};
use kernels::likeliest::likeliest_of;
use kernels::{Compute, Family};
use model::{
    CacheKind, CachedRows, Decoder, KEY_BLOCK, KvBlocks, KvCache, LogitsRow, ModelConfig, OnLogits,
    Parameters, RowLogits, Wanted, Workspace,
};
use tensor::{DType, Device, Passes};
use testkit::random::Rng;

mod adapters;
mod drawing;
mod masks;
mod schedules;
mod speculation;

use crate::blocks::BlockPool;
use crate::counters::Counters;
use crate::drawing::Drawers;
use crate::handle::CachePlan;
use crate::queue::{Pending, RequestQueue};
use crate::sampler::SamplerScratch;
use crate::scheduler::Scheduler;
use crate::{
    Engine, EngineError, EngineHandle, EngineLimits, Event, EventReceiver, FinishReason,
    GenerationRequest, Logprobs, Sampling, Speculation, StopAtIds, StopDecision, StopMatcher,
    TokenMask, TokenSet,
};

const CONTEXT_LEN: usize = 160;

fn sampled(seed: u64) -> Sampling {
    Sampling { top_k: Some(20), top_p: 0.95, seed, ..Sampling::PLAIN }
}

fn config() -> ModelConfig {
    config_with([None, None])
}

fn config_with(windows: [Option<usize>; 2]) -> ModelConfig {
    let mut config = ModelConfig::example();
    (config.context_len, config.sliding_windows) = (CONTEXT_LEN, windows.to_vec());
    ModelConfig::new(config).unwrap()
}

fn compute(n_threads: usize) -> Compute {
    Compute::forced(Family::Reference, n_threads).unwrap()
}

fn device() -> Device {
    Device::Cpu(compute(1))
}

/// A tiny model whose distributions are uneven enough for greedy decoding to wander.
fn decoder() -> Decoder {
    decoder_with([None, None])
}

fn decoder_with(windows: [Option<usize>; 2]) -> Decoder {
    decoder_of(&config_with(windows), 3)
}

fn decoder_of(config: &ModelConfig, seed: u64) -> Decoder {
    decoder_on(&device(), config, seed)
}

fn decoder_on(device: &Device, config: &ModelConfig, seed: u64) -> Decoder {
    let mut parameters = Parameters::random(config, seed);
    for tensor in parameters.iter_mut() {
        for value in tensor.f32_mut() {
            *value *= 3.0;
        }
    }
    let mut decoder = Decoder::zeroed(device, config, DType::F32, Passes::Forward);
    decoder.pack(device, &parameters.on(device));
    decoder
}

fn request(prompt: Vec<u32>, max_tokens: usize, sampling: Sampling) -> GenerationRequest {
    let stop = Box::new(StopAtIds(Vec::new()));
    let logprobs = Logprobs::default();
    let max_tokens = Some(max_tokens);
    GenerationRequest { prompt, max_tokens, sampling, logprobs, adapter: None, mask: None, stop }
}

fn greedy(prompt: &[u32], max_tokens: usize) -> GenerationRequest {
    request(prompt.to_vec(), max_tokens, Sampling::GREEDY)
}

/// Token ids, and how it ended.
fn drain(mut events: EventReceiver) -> (Vec<u32>, Event) {
    let mut token_ids = Vec::new();
    loop {
        match events.recv_blocking().expect("an event before the end") {
            Event::Token(token) => token_ids.push(token.token_id),
            Event::PromptToken(_) => {}
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
fn plain_decoding(
    decoder: &Decoder,
    cache_kind: CacheKind,
    prompt: &[u32],
    n_tokens: usize,
) -> Vec<u32> {
    let (config, device) = (decoder.config(), device());
    let mut workspace = Workspace::new(&device, config, DType::F32, CONTEXT_LEN, Passes::Forward);
    let mut cache = KvCache::new(decoder, cache_kind, 1, CONTEXT_LEN, CONTEXT_LEN);
    let mut logits = Vec::new();
    let mut input = prompt.to_vec();
    let mut generated = Vec::new();
    while generated.len() < n_tokens {
        cache.append(decoder, &device, &[(0, &input)], &mut workspace, &mut logits);
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
    let decoder = Arc::new(decoder());
    let prompts = random_prompts(10);
    let said = [CacheKind::Operands, CacheKind::Int8].map(|cache_kind| {
        let plain = |prompt: &Vec<u32>| plain_decoding(&decoder, cache_kind, prompt, 30);
        let expected: Vec<Vec<u32>> = prompts.iter().map(plain).collect();
        let distinct: std::collections::HashSet<u32> = expected.concat().into_iter().collect();
        assert!(distinct.len() > 5, "the model says too little for the test to mean something");
        let limits = EngineLimits { max_running: 4, step_tokens: 16, ..EngineLimits::default() };
        let limits = EngineLimits { cache_kind, ..limits };
        let engine = Engine::start(Arc::clone(&decoder), device(), limits).unwrap();
        let running: Vec<EventReceiver> =
            prompts.iter().map(|prompt| engine.submit(greedy(prompt, 30)).unwrap()).collect();
        for (events, expected) in running.into_iter().zip(&expected) {
            assert_eq!(&drain(events).0, expected, "{cache_kind:?}");
        }
        expected
    });
    assert!(said[0] != said[1], "8 bits change nothing: they were not reached");
}

/// An emulated GPU chooses the tokens of the processors, with either kind of cache, in a batch and in chunks.
#[test]
fn a_gpu_says_what_the_processors_say() {
    let Some(libraries) = testkit::cuda_emulator::directory() else { return };
    let gpu = Gpu::open(&LibraryPath::new(Some(libraries))).unwrap();
    let gpu = Device::Cuda { gpu, host: compute(1) };
    let (here, there) = (decoder(), Arc::new(decoder_on(&gpu, &config(), 3)));
    let prompts = random_prompts(4);
    let said = [CacheKind::Operands, CacheKind::Int8].map(|cache_kind| {
        let limits = EngineLimits { max_running: 3, step_tokens: 16, ..EngineLimits::default() };
        let limits = EngineLimits { cache_kind, ..limits };
        let engine = Engine::start(Arc::clone(&there), gpu.clone(), limits).unwrap();
        let running: Vec<EventReceiver> =
            prompts.iter().map(|prompt| engine.submit(greedy(prompt, 20)).unwrap()).collect();
        let said: Vec<Vec<u32>> = running.into_iter().map(|events| drain(events).0).collect();
        for (said, prompt) in said.iter().zip(&prompts) {
            assert_eq!(*said, plain_decoding(&here, cache_kind, prompt, 20), "{cache_kind:?}");
        }
        said
    });
    assert!(said[0] != said[1], "8 bits change nothing: they were not reached");
}

#[test]
fn sampled_tokens_depend_on_the_seed_and_not_on_the_batch() {
    let decoder = Arc::new(decoder());
    let alone = |sampling| {
        let engine = Engine::start(Arc::clone(&decoder), device(), EngineLimits::default());
        drain(engine.unwrap().submit(request(vec![1, 2, 3], 40, sampling)).unwrap()).0
    };
    let expected = alone(sampled(11));
    assert_ne!(expected, alone(sampled(12)));
    let limits = EngineLimits { max_running: 8, step_tokens: 24, ..EngineLimits::default() };
    let engine = Engine::start(decoder, device(), limits).unwrap();
    let mut others: Vec<EventReceiver> = random_prompts(9)
        .into_iter()
        .map(|prompt| engine.submit(request(prompt, 25, sampled(11))).unwrap())
        .collect();
    let among = engine.submit(request(vec![1, 2, 3], 40, sampled(11))).unwrap();
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
        let Event::Finished { reason, n_prompt_tokens, n_generated, .. } = last else {
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
    let step_tokens = EngineLimits::default().step_tokens;
    let bytes_of = |n_tokens| {
        KvBlocks::bytes_for(
            decoder.config(),
            decoder.dtype(),
            CacheKind::Operands,
            n_tokens,
            step_tokens,
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

/// Token ids and the bits of their log-probabilities.
fn drain_bits(mut events: EventReceiver) -> Vec<(u32, u32)> {
    let mut tokens = Vec::new();
    loop {
        match events.recv_blocking().expect("an event before the end") {
            Event::Token(token) => tokens.push((token.token_id, token.logprob.to_bits())),
            Event::PromptToken(_) => {}
            Event::Finished { .. } => return tokens,
            Event::Failed(error) => panic!("{error}"),
        }
    }
}

/// Hands over what is wanted of the logits of a row.
fn give(on_logits: &mut OnLogits<'_>, row: &CachedRows<'_>, of: LogitsRow, logits: &[f32]) {
    match row.wanted {
        Wanted::Logits => on_logits(of, RowLogits::Logits(logits)),
        Wanted::Likeliest => on_logits(of, RowLogits::Likeliest(likeliest_of(logits))),
    }
}

/// Calls `each` with the rows of a step whose logits are wanted.
fn for_wanted(rows: &[CachedRows<'_>], mut each: impl FnMut(&CachedRows<'_>, LogitsRow)) {
    for (sequence_idx, row) in rows.iter().enumerate() {
        let n = row.token_ids.len();
        (n - row.n_logits..n).for_each(|row_idx| each(row, LogitsRow { sequence_idx, row_idx }));
    }
}

/// The tokens of a prompt are scored as the model scores them, however small the steps and the cache, and what is generated is the same.
#[test]
fn prompts_are_scored_as_one_pass_scores_them() {
    let decoder = Arc::new(decoder());
    let prompts = random_prompts(6);
    let plain: Vec<Vec<u32>> = prompts
        .iter()
        .map(|prompt| plain_decoding(&decoder, CacheKind::Operands, prompt, 30))
        .collect();
    let scores = |prompt: &[u32]| -> Vec<(u32, Vec<u32>)> {
        let mut workspace =
            Workspace::new(&device(), decoder.config(), DType::F32, CONTEXT_LEN, Passes::Forward);
        let ends = [0, prompt.len() as u32];
        let logits = decoder.logits(&device(), prompt, &ends, &mut workspace);
        let mut scratch = SamplerScratch::new(32);
        let rows = logits.chunks(32).zip(&prompt[1..]);
        rows.map(|(row, &next)| crate::sampler::score(row, next, 3, &mut scratch).unwrap())
            .map(|scored| {
                let top = scored.top.iter().map(|(id, _)| *id).collect();
                (scored.logprob.to_bits(), top)
            })
            .collect()
    };
    for (step_tokens, room) in [(CONTEXT_LEN, 800), (7, 160)] {
        let limits = EngineLimits { max_running: 5, step_tokens, ..EngineLimits::default() };
        let engine = Engine::start(Arc::clone(&decoder), device(), room_for(room, limits)).unwrap();
        // Twice: the second time the prompts are known, and are computed all the same.
        for _ in 0..2 {
            let running: Vec<EventReceiver> = prompts
                .iter()
                .map(|prompt| {
                    let logprobs = Logprobs { n_top: 3, of_prompt: true };
                    let request = GenerationRequest { logprobs, ..greedy(prompt, 30) };
                    engine.submit(request).unwrap()
                })
                .collect();
            for ((mut events, prompt), plain) in running.into_iter().zip(&prompts).zip(&plain) {
                let (mut scored, mut generated) = (Vec::new(), Vec::new());
                while let Some(event) = events.recv_blocking() {
                    match event {
                        Event::PromptToken(token) => {
                            assert!(generated.is_empty(), "the prompt comes first");
                            assert_eq!(token.token_id, prompt[scored.len() + 1]);
                            let top = token.top.iter().map(|(id, _)| *id).collect();
                            scored.push((token.logprob.to_bits(), top));
                        }
                        Event::Token(token) => {
                            assert_eq!(token.top[0], (token.token_id, token.logprob));
                            generated.push(token.token_id);
                        }
                        Event::Finished { n_reused_tokens, .. } => assert_eq!(n_reused_tokens, 0),
                        Event::Failed(error) => panic!("{error}"),
                    }
                }
                assert_eq!(scored, scores(prompt));
                assert_eq!(&generated, plain);
            }
        }
    }
}

#[test]
fn a_prompt_is_scored_though_nothing_is_generated() {
    let engine = Engine::start(Arc::new(decoder()), device(), EngineLimits::default()).unwrap();
    let logprobs = Logprobs { n_top: 0, of_prompt: true };
    let mut events = engine.submit(GenerationRequest { logprobs, ..greedy(&[3; 40], 0) }).unwrap();
    let mut n_scored = 0;
    loop {
        match events.recv_blocking().unwrap() {
            Event::PromptToken(token) => n_scored += usize::from(token.token_id == 3),
            Event::Finished { n_generated: 0, reason: FinishReason::Length, .. } => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(n_scored, 39);
    let logprobs = Logprobs { n_top: Logprobs::MAX_TOP + 1, of_prompt: false };
    let refused = engine.submit(GenerationRequest { logprobs, ..greedy(&[3], 1) });
    assert!(matches!(refused, Err(EngineError::TooManyTop { n_top: 21, limit: 20 })));
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
        let forward = move |rows: &[CachedRows<'_>], on_logits: &mut OnLogits<'_>| {
            let seen = rows.iter().map(|row| row.token_ids.to_vec()).collect();
            let Ok(()) = report.send(seen) else { return };
            let value: f32 = gate.recv().unwrap_or(0.0);
            assert!(value >= 0.0 || value.is_nan(), "this step fails on purpose");
            // Always token 7, unless the test asks for something that is not a number.
            let logits: Vec<f32> =
                (0..vocab_size).map(|i| if i == 7 { 1.0 + value } else { value }).collect();
            for_wanted(rows, |row, of| give(on_logits, row, of, &logits));
        };
        // Which steps there are must not depend on how long they take.
        let speculation = match limits.speculation {
            Speculation::WhenItPays => Speculation::Off,
            fixed => fixed,
        };
        let limits = EngineLimits { speculation, ..limits };
        let plan = CachePlan::new(&config, DType::F32, &limits);
        Self {
            go,
            engine: Engine::start_with(plan, limits, compute(1), None, forward).unwrap(),
            steps,
        }
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
    assert!(matches!(first.recv_blocking(), Some(Event::Token(token)) if token.token_id == 7));
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

/// Limits with room for `n_tokens` tokens of one request in all.
fn room_for(n_tokens: usize, limits: EngineLimits) -> EngineLimits {
    let cache_bytes = KvBlocks::bytes_for(
        &config(),
        DType::F32,
        CacheKind::Operands,
        n_tokens,
        limits.step_tokens,
    );
    EngineLimits { cache_bytes, ..limits }
}

#[test]
fn requests_wait_until_the_cache_has_room_for_their_prompts() {
    let stepped = Stepped::start(room_for(96, EngineLimits::default()));
    let first = stepped.engine.submit(greedy(&[1; 62], 2)).unwrap();
    let second = stepped.engine.submit(greedy(&[2; 62], 2)).unwrap();
    assert_eq!(stepped.step(), [vec![1; 62]]);
    assert_eq!(stepped.step(), [[7]]);
    assert_eq!(stepped.step(), [vec![2; 62]]);
    assert_eq!(stepped.step(), [[7]]);
    assert_eq!((drain(first).0.len(), drain(second).0.len()), (2, 2));
}

#[test]
fn the_latest_is_set_back_when_the_blocks_run_out_and_goes_on_later() {
    // Blocks for 128 positions: two requests of 64 at first, of 120 in the end.
    let stepped = Stepped::start(room_for(128, EngineLimits::default()));
    let first = stepped.engine.submit(greedy(&[1; 30], 90)).unwrap();
    stepped.steps.recv().unwrap();
    let second = stepped.engine.submit(greedy(&[2; 30], 90)).unwrap();
    stepped.go.send(0.0).unwrap();
    // Both, until the first needs a third block: then the second goes, and comes back when the first is done.
    let mut seen = Vec::new();
    while seen.last().is_none_or(|rows: &Vec<Vec<u32>>| rows[0].len() < 60) {
        seen.push(stepped.step());
    }
    let n_alone = seen.iter().filter(|rows| rows.len() == 1).count();
    // The first computes its positions 64 to 118 alone, then the second its own once more.
    assert_eq!((seen[0].len(), n_alone), (2, 55 + 1));
    assert_eq!(seen.last().unwrap()[0][..30], [2; 30]);
    drop(stepped.go);
    assert_eq!((drain(first).0, drain(second).0), (vec![7; 90], vec![7; 90]));
    assert_eq!(stepped.engine.load().n_preemptions, 1);
}

#[test]
fn a_prompt_that_another_is_about_to_compute_waits_for_it() {
    let limits = EngineLimits { max_running: 4, step_tokens: 40, ..EngineLimits::default() };
    let stepped = Stepped::start(limits);
    let first = stepped.engine.submit(greedy(&[1; 70], 3)).unwrap();
    stepped.steps.recv().unwrap();
    let second = stepped.engine.submit(greedy(&[1; 70], 3)).unwrap();
    let other = stepped.engine.submit(greedy(&[1; 20], 1)).unwrap();
    stepped.go.send(0.0).unwrap();
    // The rest of the first; the second and what came after it wait.
    assert_eq!(stepped.step(), [vec![1; 30]]);
    assert_eq!(stepped.step(), [vec![7], vec![1; 6], vec![1; 20]]);
    let (_, last) = drain(other);
    assert!(matches!(last, Event::Finished { n_reused_tokens: 0, .. }), "{last:?}");
    drop(stepped.go);
    for events in [first, second] {
        assert_eq!(drain(events).0, [7; 3]);
    }
    assert_eq!(stepped.engine.load().n_reused_tokens, 64);
}

#[test]
fn a_prompt_that_is_preempted_while_it_is_scored_loses_and_doubles_no_score() {
    // One token a step of each: the first needs a third block while the second has two and is in the midst of its prompt.
    let limits = EngineLimits { max_running: 2, step_tokens: 2, ..EngineLimits::default() };
    let stepped = Stepped::start(room_for(128, limits));
    let first = stepped.engine.submit(greedy(&[1; 20], 100)).unwrap();
    stepped.steps.recv().unwrap();
    let prompt: Vec<u32> = (0..58).map(|i| i * 5 % 32).collect();
    let logprobs = Logprobs { n_top: 1, of_prompt: true };
    let second = GenerationRequest { logprobs, ..greedy(&prompt, 4) };
    let mut second = stepped.engine.submit(second).unwrap();
    drop(stepped.go);
    let (mut scored, mut n_generated) = (Vec::new(), 0);
    while let Some(event) = second.recv_blocking() {
        match event {
            Event::PromptToken(token) => scored.push(token.token_id),
            Event::Token(_) => n_generated += 1,
            Event::Finished { .. } => {}
            Event::Failed(error) => panic!("{error}"),
        }
    }
    assert_eq!((scored.as_slice(), n_generated), (&prompt[1..], 4));
    assert_eq!(drain(first).0.len(), 100);
    assert!(stepped.engine.load().n_preemptions > 0, "nothing was preempted");
}

#[test]
fn a_prompt_that_begins_as_another_did_is_not_computed_again() {
    let stepped = Stepped::start(one_at_a_time());
    let first = stepped.engine.submit(greedy(&[1; 70], 1)).unwrap();
    assert_eq!(stepped.step(), [vec![1; 70]]);
    drain(first);
    let prompt: Vec<u32> = [vec![1; 64], vec![2; 10]].concat();
    let second = stepped.engine.submit(greedy(&prompt, 1)).unwrap();
    assert_eq!(stepped.step(), [[2; 10]]);
    let (_, last) = drain(second);
    assert!(matches!(last, Event::Finished { n_prompt_tokens: 74, n_reused_tokens: 64, .. }));
    let load = stepped.engine.load();
    assert_eq!((load.n_prompt_tokens, load.n_reused_tokens), (144, 64));
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
        let cache = CachePlan::new(&config, DType::F32, &limits);
        let without = EngineLimits { cache_bytes: 0, ..limits };
        let without = Engine::planned_bytes(&config, DType::F32, &without);
        let with = Engine::planned_bytes(&config, DType::F32, &limits);
        (
            with - without,
            cache.n_blocks * KvBlocks::block_bytes(&config, DType::F32, CacheKind::Operands),
        )
    };
    let of_one =
        KvBlocks::bytes_for(&config, DType::F32, CacheKind::Operands, CONTEXT_LEN, CONTEXT_LEN);
    assert_eq!(planned(usize::MAX, 2).1, 2 * of_one);
    assert_eq!(planned(of_one, 2).1, of_one);
    let (with_lists, blocks) = planned(of_one, 2);
    let n_blocks = of_one / KvBlocks::block_bytes(&config, DType::F32, CacheKind::Operands);
    assert_eq!(with_lists, blocks + BlockPool::bookkeeping_bytes(&config, n_blocks));
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
