//! Prefill and decode of one sequence, and of several at once.

use std::sync::Arc;
use std::time::Instant;

use cuda::KernelTime;
use model::{CacheKind, Decoder, KvCache, LoadedAdapter, Workspace};
use tensor::Device;

use crate::accuracy::prompt;
use crate::result::median;

/// Runs of a prefill.
const N_RUNS: usize = 5;
/// Measured steps of writing, of which the median counts, and those before them. The scripts of peers measure as many, in the same way: where
/// others share the machine, a median of steps and a mean of them are not the same.
const N_STEPS: usize = 24;
const N_WARM_UP_STEPS: usize = 2;

/// Tokens that are prefilled together.
pub(crate) const CHUNK: usize = 512;

/// Tokens that each user of a batch has read.
pub const BATCH_PROMPT: usize = 128;

/// What is measured: a decoder, an adapter that changes it, and its cache.
#[derive(Clone, Debug)]
pub struct Subject<'a> {
    /// The weights.
    pub decoder: &'a Decoder,
    /// What is computed beside them.
    pub adapter: Option<Arc<LoadedAdapter>>,
    /// What keys and values are kept as.
    pub cache_kind: CacheKind,
}

impl Subject<'_> {
    pub(crate) fn cache(&self, n_sequences: usize, max_tokens: usize) -> KvCache {
        let cache = KvCache::new(self.decoder, self.cache_kind, n_sequences, max_tokens, CHUNK);
        cache.with_adapter(self.adapter.clone())
    }
}

/// Tokens per second of reading a prompt of `prompt_len` tokens.
#[must_use]
pub fn prefill(device: &Device, subject: &Subject<'_>, prompt_len: usize) -> f64 {
    let decoder = subject.decoder;
    let mut workspace = Workspace::for_decoder(decoder, CHUNK.min(prompt_len));
    let mut speeds: Vec<f64> = (0..N_RUNS)
        .map(|_| {
            let mut cache = subject.cache(1, prompt_len);
            let start = Instant::now();
            fill(device, decoder, &mut cache, 0, &mut workspace, prompt_len);
            prompt_len as f64 / start.elapsed().as_secs_f64()
        })
        .collect();
    median(&mut speeds)
}

/// Tokens per second of writing tokens one by one after `context_len` tokens.
#[must_use]
pub fn decode(device: &Device, subject: &Subject<'_>, context_len: usize) -> f64 {
    write(device, subject, context_len, 1)
}

/// Tokens per second, in all, of `n_users` users that write at once, each after [`BATCH_PROMPT`] tokens.
#[must_use]
pub fn batched_decode(device: &Device, subject: &Subject<'_>, n_users: usize) -> f64 {
    write(device, subject, BATCH_PROMPT, n_users)
}

fn write(device: &Device, subject: &Subject<'_>, context_len: usize, n_users: usize) -> f64 {
    let decoder = subject.decoder;
    let max_tokens = context_len + N_WARM_UP_STEPS + N_STEPS;
    let mut workspace = Workspace::for_decoder(decoder, CHUNK.max(n_users));
    let mut cache = subject.cache(n_users, max_tokens);
    for user in 0..n_users {
        fill(device, decoder, &mut cache, user, &mut workspace, context_len);
    }
    let mut logits = Vec::new();
    let mut seconds = Vec::with_capacity(N_STEPS);
    for step in 0..N_WARM_UP_STEPS + N_STEPS {
        let token_ids: &[u32] = &[step as u32 + 3];
        let rows: Vec<(usize, &[u32])> = (0..n_users).map(|user| (user, token_ids)).collect();
        let start = Instant::now();
        cache.append(decoder, device, &rows, &mut workspace, &mut logits);
        if step >= N_WARM_UP_STEPS {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    n_users as f64 / median(&mut seconds)
}

/// What a GPU spends its time on in one step of `n_users` users that write after `context_len` tokens.
///
/// # Panics
/// Where the device is none.
#[must_use]
pub fn writing_profile(
    device: &Device,
    subject: &Subject<'_>,
    context_len: usize,
    n_users: usize,
) -> Vec<KernelTime> {
    let Device::Cuda { gpu, .. } = device else { panic!("a profile of the processors") };
    let decoder = subject.decoder;
    let mut workspace = Workspace::for_decoder(decoder, CHUNK.max(n_users));
    let mut cache = subject.cache(n_users, context_len + 2);
    for user in 0..n_users {
        fill(device, decoder, &mut cache, user, &mut workspace, context_len);
    }
    let rows: Vec<(usize, &[u32])> = (0..n_users).map(|user| (user, &[3][..])).collect();
    let mut logits = Vec::new();
    cache.append(decoder, device, &rows, &mut workspace, &mut logits);
    gpu.profiled(|| cache.append(decoder, device, &rows, &mut workspace, &mut logits))
}

fn fill(
    device: &Device,
    decoder: &Decoder,
    cache: &mut KvCache,
    sequence_idx: usize,
    workspace: &mut Workspace,
    n_tokens: usize,
) {
    let prompt = prompt(n_tokens, decoder.config().vocab_size);
    let mut logits = Vec::new();
    for chunk in prompt.chunks(CHUNK) {
        cache.append(decoder, device, &[(sequence_idx, chunk)], workspace, &mut logits);
    }
}
