//! `galerne bench throughput`.

use std::sync::Arc;

use bench::{BenchResult, Load, serve_load};
use model::Decoder;
use tensor::{DType, Device, Passes};

use super::Args;
use crate::context::Context;

/// 256 requests of 128 tokens with answers of 512, and 32 of 512 tokens, of which the first tokens count.
const LOADS: [Load; 2] = [
    Load { n_requests: 256, prompt_len: 128, answer_len: 512, step_tokens: 2048 },
    Load { n_requests: 32, prompt_len: 512, answer_len: 32, step_tokens: 2048 },
];

/// Tokens per second of each load, and the median time to the first token.
///
/// # Errors
/// When the engine refuses.
pub(super) fn measure(
    args: &Args,
    device: &Device,
    context: &Context,
) -> anyhow::Result<Vec<BenchResult>> {
    let (shape, config) = args.shape()?;
    let decoder = Arc::new(Decoder::random(device, &config, DType::Bf16, Passes::Forward, 1));
    let mut results = Vec::new();
    for load in LOADS {
        let Load { n_requests, prompt_len, answer_len, .. } = load;
        let detail = format!("{n_requests} of {prompt_len} in, {answer_len} out");
        context.say(&format!("serving {detail}"));
        let served = serve_load(device, &decoder, load)?;
        let result = |work, value| BenchResult::new(work, shape.name, detail.clone(), value);
        results.push(result("throughput", served.tokens_per_s));
        let first_token = result("first_token", served.first_token_s * 1e3);
        results.push(BenchResult { unit: "ms", ..first_token });
    }
    Ok(results)
}
