//! What a model takes is given back. A test of its own, since memory is that of the process.

#![allow(clippy::unwrap_used, reason = "tests")]
#![cfg(target_os = "linux")]

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::{
    Engine, EngineLimits, Event, GenerationRequest, Logprobs, Sampling, Speculation, StopAtIds,
};
use kernels::{Compute, Family, detect_features};
use model::{Decoder, ModelConfig, Parameters};
use tensor::{DType, Device, Passes};

/// What is left may be this much: stacks, small pieces that the allocator keeps.
const KEPT_MIB: usize = 8;

/// Exact, where `RssAnon` of the process's status is off by what each thread or processor has not yet added.
fn anonymous_mib() -> usize {
    let sums = fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = sums.lines().find(|line| line.starts_with("Anonymous:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() / 1024
}

/// The same once it is at most so much, or after a minute: the engine's thread ends by itself.
fn anonymous_mib_at_last(most: usize) -> usize {
    let deadline = Instant::now() + Duration::from_secs(60);
    while anonymous_mib() > most && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    anonymous_mib()
}

/// A model of some 60 MiB answers; gives what the process has then.
fn load_and_ask(seed: u64) -> usize {
    let device = Device::Cpu(Compute::forced(Family::fastest(detect_features()), 2).unwrap());
    let mut config = ModelConfig::example();
    (config.hidden_dim, config.ffn_dim, config.n_layers) = (512, 1536, 4);
    (config.n_heads, config.n_kv_heads, config.head_dim) = (8, 4, 64);
    (config.vocab_size, config.context_len) = (4096, 512);
    config.sliding_windows.clear();
    let config = ModelConfig::new(config).unwrap();
    let mut decoder = Decoder::zeroed(&device, &config, DType::F32, Passes::Forward);
    decoder.pack(&device, &Parameters::random(&config, seed));
    let limits = EngineLimits {
        cache_bytes: 16 << 20,
        speculation: Speculation::Off,
        ..EngineLimits::default()
    };
    let engine = Engine::start(Arc::new(decoder), device, limits).unwrap();
    let mut events = engine
        .submit(GenerationRequest {
            prompt: (1..200).collect(),
            max_tokens: Some(8),
            sampling: Sampling::PLAIN,
            logprobs: Logprobs::default(),
            adapter: None,
            mask: None,
            stop: Box::new(StopAtIds(vec![])),
        })
        .unwrap();
    let mut n_tokens = 0;
    while let Some(event) = events.recv_blocking() {
        n_tokens += usize::from(matches!(event, Event::Token(_)));
    }
    assert_eq!(n_tokens, 8);
    anonymous_mib()
}

#[test]
fn a_model_that_is_dropped_gives_its_memory_back() {
    let before = anonymous_mib();
    for round in 0..4 {
        let loaded = load_and_ask(round);
        assert!(loaded >= before + 50, "{loaded} MiB with a model, {before} without");
        let left = anonymous_mib_at_last(before + KEPT_MIB);
        assert!(left <= before + KEPT_MIB, "{left} MiB left of {loaded}, {before} before");
    }
}
