//! Starting an engine and talking to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use model::{CachedRows, Decoder, KvCache, ModelConfig, Workspace};
use tensor::{DType, Device};

use crate::EngineError;
use crate::events::{Event, EventReceiver, channel};
use crate::queue::{Pending, RequestQueue};
use crate::request::GenerationRequest;
use crate::scheduler::Scheduler;

/// Bounds of an engine; what it may use is decided here and nowhere later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineLimits {
    /// Most requests that are worked on at once.
    pub max_running: usize,
    /// Most requests that wait; further ones are refused.
    pub max_waiting: usize,
    /// Most bytes of key and value cache of all running requests together.
    pub cache_bytes: usize,
    /// Most tokens one step of the model takes: one for each request that is generating, the rest for prompts.
    pub step_tokens: usize,
}

impl Default for EngineLimits {
    /// 16 requests at once, 64 waiting, 1 GiB of cache, 256 tokens a step.
    fn default() -> Self {
        Self { max_running: 16, max_waiting: 64, cache_bytes: 1 << 30, step_tokens: 256 }
    }
}

impl EngineLimits {
    fn check(&self) -> Result<(), EngineError> {
        let limits = [
            ("max_running", self.max_running, 1),
            ("max_waiting", self.max_waiting, 1),
            // Each running request needs its row, and a prompt must get on while all others generate.
            ("step_tokens", self.step_tokens, self.max_running),
        ];
        match limits.into_iter().find(|&(_, got, at_least)| got < at_least) {
            Some((name, got, at_least)) => Err(EngineError::InvalidLimit { name, got, at_least }),
            None => Ok(()),
        }
    }
}

/// What a cache is made for: the shape of the model and the type of its numbers.
#[derive(Debug, Clone)]
pub(crate) struct CachePlan {
    pub(crate) config: ModelConfig,
    pub(crate) dtype: DType,
    /// Most tokens of a step.
    pub(crate) step_tokens: usize,
}

impl CachePlan {
    pub(crate) fn cache(&self, n_tokens: usize) -> KvCache {
        KvCache::new(&self.config, self.dtype, n_tokens, self.step_tokens)
    }

    fn bytes(&self, n_tokens: usize) -> usize {
        KvCache::bytes_for(&self.config, self.dtype, n_tokens, self.step_tokens)
    }

    /// Most tokens, up to the context, of a cache within some bytes.
    fn n_tokens(&self, limit_bytes: usize) -> usize {
        // The first number of tokens that does not fit, found by halving: bytes never fall with tokens.
        let (mut fitting, mut too_many) = (0, self.config.context_len + 1);
        while fitting + 1 < too_many {
            let middle = fitting.midpoint(too_many);
            if self.bytes(middle) <= limit_bytes { fitting = middle } else { too_many = middle }
        }
        fitting
    }
}

/// Starts engines.
pub struct Engine;

impl Engine {
    /// Bytes an engine takes beside the weights: working memory at the start, then cache as requests are admitted.
    ///
    /// The cache is counted in full, that is what `max_running` requests of the whole context take, or the limit if that
    /// is less.
    #[must_use]
    pub fn planned_bytes(config: &ModelConfig, dtype: DType, limits: &EngineLimits) -> usize {
        let workspace = Workspace::max_bytes_for_decoder(config, dtype, limits.step_tokens);
        let logits = limits.max_running * config.vocab_size * size_of::<f32>();
        let candidates = config.vocab_size * size_of::<(f64, u32)>();
        let cache = limits.max_running
            * KvCache::bytes_for(config, dtype, config.context_len, limits.step_tokens);
        // Each request, waiting or running, has room for its prompt and for all of its events.
        let per_request = (config.context_len + 1) * (size_of::<Event>() + size_of::<u32>());
        let requests = (limits.max_running + limits.max_waiting) * per_request;
        workspace + logits + candidates + requests + cache.min(limits.cache_bytes)
    }

    /// Starts the thread that runs `decoder`. It sleeps while there is nothing to do and ends with the last handle.
    ///
    /// # Errors
    ///
    /// [`EngineError::InvalidLimit`] for limits that cannot work, [`EngineError::Thread`] if the system refuses a thread.
    pub fn start(
        decoder: Arc<Decoder>,
        device: Device,
        limits: EngineLimits,
    ) -> Result<EngineHandle, EngineError> {
        limits.check()?;
        let plan = CachePlan {
            config: decoder.config().clone(),
            dtype: decoder.dtype(),
            step_tokens: limits.step_tokens,
        };
        let mut workspace = Workspace::for_decoder(&decoder, limits.step_tokens);
        let forward = move |rows: &mut [CachedRows<'_>], logits: &mut Vec<f32>| {
            decoder.forward_cached(&device, rows, &mut workspace, logits);
        };
        Self::start_with(plan, limits, forward)
    }

    /// Starts the thread around any forward pass, which tests replace.
    pub(crate) fn start_with<F>(
        plan: CachePlan,
        limits: EngineLimits,
        forward: F,
    ) -> Result<EngineHandle, EngineError>
    where
        F: FnMut(&mut [CachedRows<'_>], &mut Vec<f32>) + Send + 'static,
    {
        limits.check()?;
        let queue = Arc::new(RequestQueue::new(limits.max_waiting));
        let n_running = Arc::new(AtomicUsize::new(0));
        let scheduler = Scheduler::new(
            plan.clone(),
            limits,
            Arc::clone(&queue),
            Arc::clone(&n_running),
            forward,
        );
        let thread = std::thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || scheduler.run())
            .map_err(EngineError::Thread)?;
        let inner = Inner { plan, limits, queue, n_running, thread: Some(thread) };
        Ok(EngineHandle(Arc::new(inner)))
    }
}

/// Hands requests to a running engine. Cheap to clone; when the last clone is dropped the engine fails what is left and its
/// thread has ended when the drop returns, so that the memory of the model is free.
#[derive(Clone)]
pub struct EngineHandle(Arc<Inner>);

struct Inner {
    plan: CachePlan,
    limits: EngineLimits,
    queue: Arc<RequestQueue>,
    n_running: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

/// What an engine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineLoad {
    /// Requests that are worked on.
    pub n_running: usize,
    /// Requests that wait.
    pub n_waiting: usize,
}

impl EngineHandle {
    /// Accepts a request or refuses it at once; never waits.
    ///
    /// # Errors
    ///
    /// The prompt is empty, too long or not of this model, a setting is out of range, the cache can never hold the request,
    /// the queue is full, or the engine has stopped.
    pub fn submit(&self, request: GenerationRequest) -> Result<EventReceiver, EngineError> {
        let config = &self.0.plan.config;
        let n_prompt_tokens = request.prompt.len();
        if n_prompt_tokens == 0 {
            return Err(EngineError::EmptyPrompt);
        }
        if n_prompt_tokens >= config.context_len {
            let context_len = config.context_len;
            return Err(EngineError::PromptTooLong { n_prompt_tokens, context_len });
        }
        let vocab_size = config.vocab_size;
        let unknown = |&id: &u32| id as usize >= vocab_size;
        if let Some(position) = request.prompt.iter().position(unknown) {
            let token_id = request.prompt[position];
            return Err(EngineError::UnknownToken { position, token_id, vocab_size });
        }
        request.sampling.check()?;
        let (plan, limit_bytes) = (&self.0.plan, self.0.limits.cache_bytes);
        let room = config.context_len - n_prompt_tokens;
        let max_tokens = match request.max_tokens {
            Some(max_tokens) => max_tokens.min(room),
            // At least one, so that what is refused below is the prompt.
            None => plan.n_tokens(limit_bytes).saturating_sub(n_prompt_tokens).clamp(1, room),
        };
        let needed_bytes = plan.bytes(n_prompt_tokens + max_tokens);
        if needed_bytes > limit_bytes {
            return Err(EngineError::CacheTooSmall { needed_bytes, limit_bytes });
        }
        let (events, receiver) = channel(max_tokens + 1);
        let cache_bytes = needed_bytes;
        self.0.queue.push(Pending { request, max_tokens, cache_bytes, events })?;
        Ok(receiver)
    }

    /// Tokens of prompt and answer together.
    #[must_use]
    pub fn context_len(&self) -> usize {
        self.0.plan.config.context_len
    }

    /// Ids the model has.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.0.plan.config.vocab_size
    }

    /// What the engine is doing now.
    #[must_use]
    pub fn load(&self) -> EngineLoad {
        let n_running = self.0.n_running.load(Ordering::Relaxed);
        EngineLoad { n_running, n_waiting: self.0.queue.len() }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.queue.close();
        if let Some(thread) = self.thread.take() {
            // The thread catches panics of the model; one outside of that has been reported to every receiver already.
            drop(thread.join());
        }
    }
}
