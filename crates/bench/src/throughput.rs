//! Many requests at once through the engine, as a server has them.

use std::sync::Arc;
use std::time::Instant;

use engine::{
    Engine, EngineError, EngineHandle, EngineLimits, Event, EventReceiver, GenerationRequest,
    Logprobs, Sampling, Speculation, StopAtIds,
};
use model::Decoder;
use tensor::Device;

use crate::accuracy::prompt;
use crate::result::median;

/// Requests that arrive together.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// How many.
    pub n_requests: usize,
    /// Tokens of each prompt; no two begin alike, so that nothing of one is reused for another.
    pub prompt_len: usize,
    /// Tokens of each answer.
    pub answer_len: usize,
    /// Most tokens of a step.
    pub step_tokens: usize,
}

/// How a load was served.
#[derive(Clone, Copy, Debug)]
pub struct Served {
    /// Tokens of all answers per second, from the first request to the last answer.
    pub tokens_per_s: f64,
    /// Seconds from the first request to the first token of an answer, the median of the requests.
    pub first_token_s: f64,
}

/// Serves a load once, all requests at temperature 0.
///
/// # Errors
/// When the engine refuses.
///
/// # Panics
/// When an answer fails.
pub fn serve_load(
    device: &Device,
    decoder: &Arc<Decoder>,
    load: Load,
) -> Result<Served, EngineError> {
    let config = decoder.config();
    let blocks = model::KvBlocks::blocks_for(config, load.prompt_len + load.answer_len, 1);
    let block_bytes =
        model::KvBlocks::block_bytes(config, decoder.dtype(), model::CacheKind::Operands);
    let limits = EngineLimits {
        max_running: load.n_requests,
        max_waiting: load.n_requests,
        cache_bytes: (blocks + 2 * config.n_layers) * load.n_requests * block_bytes,
        step_tokens: load.step_tokens,
        speculation: Speculation::Off,
        ..EngineLimits::default()
    };
    let engine = Engine::start(Arc::clone(decoder), device.clone(), limits)?;
    // What is done once, such as choosing algorithms for the shapes, is done before.
    let warm_up = Load { answer_len: 4, ..load };
    serve(&engine, warm_up, config.vocab_size, 0)?;
    serve(&engine, load, config.vocab_size, load.n_requests)
}

fn serve(
    engine: &EngineHandle,
    load: Load,
    vocab_size: usize,
    first_token: usize,
) -> Result<Served, EngineError> {
    assert!(first_token + load.n_requests <= vocab_size, "too few tokens to begin with");
    let rest = prompt(load.prompt_len - 1, vocab_size);
    let prompts = (first_token..first_token + load.n_requests)
        .map(|first| [&[first as u32], &rest[..]].concat());
    let prompts: Vec<Vec<u32>> = prompts.collect();
    let start = Instant::now();
    let receivers: Vec<EventReceiver> = prompts
        .into_iter()
        .map(|prompt| {
            engine.submit(GenerationRequest {
                prompt,
                max_tokens: Some(load.answer_len),
                sampling: Sampling { temperature: 0.0, ..Sampling::PLAIN },
                logprobs: Logprobs::default(),
                adapter: None,
                mask: None,
                stop: Box::new(StopAtIds(Vec::new())),
            })
        })
        .collect::<Result<_, _>>()?;
    // One thread for each answer: what is measured is when tokens come, not when someone gets to them.
    let times: Vec<(f64, usize)> = std::thread::scope(|scope| {
        let threads: Vec<_> = receivers
            .into_iter()
            .map(|receiver| scope.spawn(move || read(receiver, start)))
            .collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
            thread.join().expect("reading events does not panic")
        };
        threads.into_iter().map(join).collect()
    });
    let seconds = start.elapsed().as_secs_f64();
    let n_tokens: usize = times.iter().map(|(_, n)| n).sum();
    let mut first: Vec<f64> = times.iter().map(|(first, _)| *first).collect();
    Ok(Served { tokens_per_s: n_tokens as f64 / seconds, first_token_s: median(&mut first) })
}

/// When the first token came, and how many did.
fn read(mut receiver: EventReceiver, start: Instant) -> (f64, usize) {
    let (mut first, mut n) = (f64::INFINITY, 0);
    while let Some(event) = receiver.recv_blocking() {
        match event {
            Event::Token(_) => {
                first = first.min(start.elapsed().as_secs_f64());
                n += 1;
            }
            Event::Failed(error) => panic!("an answer failed: {error}"),
            Event::Finished { n_reused_tokens, .. } => {
                assert_eq!(n_reused_tokens, 0, "a prompt that was read before");
            }
            Event::PromptToken(_) => (),
        }
    }
    (first, n)
}

#[cfg(test)]
mod tests {
    use kernels::{Compute, Family};
    use model::ModelConfig;
    use tensor::{DType, Passes};

    use super::*;

    /// Prompts were those of the warm-up, so that hardly one was read; the engine says so, and reading events asserts it.
    #[test]
    fn every_prompt_of_a_load_is_read() {
        let device = Device::Cpu(Compute::forced(Family::Reference, 1).unwrap());
        let config = ModelConfig::new(ModelConfig::example()).unwrap();
        let decoder = Arc::new(Decoder::random(&device, &config, DType::F32, Passes::Forward, 1));
        let load = Load { n_requests: 3, prompt_len: 40, answer_len: 5, step_tokens: 64 };
        let served = serve_load(&device, &decoder, load).unwrap();
        assert!(served.tokens_per_s > 0.0 && served.first_token_s.is_finite());
    }
}
