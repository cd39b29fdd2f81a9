//! Starting an engine and talking to it.

use std::sync::Arc;
use std::thread::JoinHandle;

use kernels::Compute;
use model::{CacheKind, CachedRows, Decoder, KvBlocks, ModelConfig, OnLogits, Workspace};
use tensor::{DType, Device};

use crate::blocks::BlockPool;
use crate::counters::Counters;
use crate::draft_model::{DraftModel, DraftPlan};
use crate::drawing::Drawers;
use crate::events::{Event, EventReceiver, channel};
use crate::queue::{Pending, RequestQueue};
use crate::request::GenerationRequest;
use crate::sampler::Sampler;
use crate::scheduler::{Scheduler, max_logits};
use crate::{EngineError, EngineLoad, Logprobs, TokenSet};

/// Bounds of an engine; what it may use is decided here and nowhere later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineLimits {
    /// Most requests that are worked on at once.
    pub max_running: usize,
    /// Most requests that wait; further ones are refused.
    pub max_waiting: usize,
    /// Most bytes of blocks of keys and values, taken at the start: of running requests, and of beginnings that are kept. A draft model
    /// has as many for itself at most.
    pub cache_bytes: usize,
    /// What keys and values are kept as.
    pub cache_kind: CacheKind,
    /// Most tokens one step of the model takes: one for each request that is generating, the rest for prompts.
    pub step_tokens: usize,
    /// Whether tokens are guessed.
    pub speculation: Speculation,
}

/// When what may come next is guessed and checked in the same step. It changes no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speculation {
    /// Never.
    Off,
    /// Where guesses that came true, and the time of steps with more rows, say that it is faster.
    WhenItPays,
    /// Wherever there is a guess, to test and to measure.
    Always,
}

impl Default for EngineLimits {
    /// 16 requests at once, 64 waiting, 1 GiB of cache as products take it, 256 tokens a step, guesses when they pay.
    fn default() -> Self {
        Self {
            max_running: 16,
            max_waiting: 64,
            cache_bytes: 1 << 30,
            cache_kind: CacheKind::Operands,
            step_tokens: 256,
            speculation: Speculation::WhenItPays,
        }
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

/// The cache of an engine: the shape of the model, the type of its numbers, and how much there is.
#[derive(Debug, Clone)]
pub(crate) struct CachePlan {
    pub(crate) config: ModelConfig,
    pub(crate) dtype: DType,
    pub(crate) cache_kind: CacheKind,
    /// Most tokens of a step.
    pub(crate) step_tokens: usize,
    pub(crate) n_blocks: usize,
}

impl CachePlan {
    /// As many blocks as the limit allows, and no more than `max_running` requests of the whole context need.
    pub(crate) fn new(config: &ModelConfig, dtype: DType, limits: &EngineLimits) -> Self {
        let step_tokens = limits.step_tokens;
        let for_all =
            limits.max_running * KvBlocks::blocks_for(config, config.context_len, step_tokens);
        let cache_kind = limits.cache_kind;
        let block_bytes = KvBlocks::block_bytes(config, dtype, cache_kind);
        let n_blocks = for_all.min(limits.cache_bytes / block_bytes);
        Self { config: config.clone(), dtype, cache_kind, step_tokens, n_blocks }
    }

    fn block_bytes(&self) -> usize {
        KvBlocks::block_bytes(&self.config, self.dtype, self.cache_kind)
    }

    /// Blocks, and the lists of who owns them.
    fn bytes(&self) -> usize {
        self.n_blocks * self.block_bytes()
            + BlockPool::bookkeeping_bytes(&self.config, self.n_blocks)
    }

    /// Blocks that a sequence of `n_tokens` tokens needs at once, at most.
    pub(crate) fn blocks_for(&self, n_tokens: usize) -> usize {
        KvBlocks::blocks_for(&self.config, n_tokens, self.step_tokens)
    }

    /// Most tokens of prompt and answer, up to the context, that there are blocks for.
    pub(crate) fn max_len(&self) -> usize {
        // The first number of tokens that does not fit, found by halving: blocks never fall with tokens.
        let (mut fitting, mut too_many) = (0, self.config.context_len + 1);
        while fitting + 1 < too_many {
            let middle = fitting.midpoint(too_many);
            if self.blocks_for(middle) <= self.n_blocks {
                fitting = middle
            } else {
                too_many = middle
            }
        }
        fitting
    }
}

/// Starts engines.
pub struct Engine;

impl Engine {
    /// Bytes an engine takes beside the weights: working memory and cache at the start, then room for requests as they come.
    #[must_use]
    pub fn planned_bytes(config: &ModelConfig, dtype: DType, limits: &EngineLimits) -> usize {
        let workspace = Workspace::max_bytes_for_decoder(config, dtype, limits.step_tokens);
        let logits = max_logits(limits) * config.vocab_size * size_of::<f32>();
        let sampling = Drawers::bytes_for(limits.max_running, config.vocab_size);
        // Each request, waiting, running or preempted, has room for its tokens and for all of its events; lists of likeliest tokens, where
        // they are asked for, come on top.
        let per_request = (config.context_len + 1) * (size_of::<Event>() + size_of::<u32>());
        let requests = (limits.max_running + limits.max_waiting) * per_request;
        let per_running = BlockPool::table_bytes(config, config.context_len)
            + Sampler::max_bytes(config.context_len.min(config.vocab_size))
            + TokenSet::bytes_for(config.vocab_size);
        let requests = requests + limits.max_running * per_running;
        let cache = CachePlan::new(config, dtype, limits).bytes();
        workspace + logits + sampling + requests + cache
    }

    /// Bytes that a draft model takes in an engine, beside its weights.
    #[must_use]
    pub fn planned_draft_bytes(
        decoder: &Decoder,
        draft_model: &Decoder,
        limits: &EngineLimits,
    ) -> usize {
        let plan = CachePlan::new(decoder.config(), decoder.dtype(), limits);
        let (draft, dtype) = (draft_model.config(), draft_model.dtype());
        DraftPlan::new(draft, dtype, limits, plan.max_len()).bytes(draft, dtype)
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
        Self::start_with_draft_model(decoder, None, device, limits)
    }

    /// As [`Engine::start`], with a smaller model that guesses what `decoder` says next, where that pays and
    /// [`EngineLimits::speculation`] allows it. It changes no token, and is of use where its token ids mean the same.
    ///
    /// # Errors
    ///
    /// As [`Engine::start`].
    pub fn start_with_draft_model(
        decoder: Arc<Decoder>,
        draft_model: Option<Arc<Decoder>>,
        device: Device,
        limits: EngineLimits,
    ) -> Result<EngineHandle, EngineError> {
        limits.check()?;
        let plan = CachePlan::new(decoder.config(), decoder.dtype(), &limits);
        let is_used = limits.speculation != Speculation::Off;
        let draft_model = draft_model.filter(|_| is_used).map(|draft_model| {
            let (draft, dtype) = (draft_model.config(), draft_model.dtype());
            let of_draft = DraftPlan::new(draft, dtype, &limits, plan.max_len());
            DraftModel::new(draft_model, device.clone(), of_draft, plan.config.vocab_size)
        });
        let mut workspace = Workspace::for_decoder(&decoder, limits.step_tokens);
        let mut blocks =
            KvBlocks::new(&device, &plan.config, plan.dtype, plan.cache_kind, plan.n_blocks);
        let compute = device.compute().clone();
        let forward = move |rows: &[CachedRows<'_>], on_logits: &mut OnLogits<'_>| {
            decoder.forward_cached(&device, rows, &mut blocks, &mut workspace, on_logits);
        };
        Self::start_with(plan, limits, compute, draft_model, forward)
    }

    /// Starts the thread around any forward pass, which tests replace.
    pub(crate) fn start_with<F>(
        plan: CachePlan,
        limits: EngineLimits,
        compute: Compute,
        draft_model: Option<DraftModel>,
        forward: F,
    ) -> Result<EngineHandle, EngineError>
    where
        F: FnMut(&[CachedRows<'_>], &mut OnLogits<'_>) + Send + 'static,
    {
        limits.check()?;
        let queue = Arc::new(RequestQueue::new(limits.max_waiting));
        let counters = Arc::new(Counters::default());
        let (for_queue, for_counters) = (Arc::clone(&queue), Arc::clone(&counters));
        let drawers = Drawers::new(compute, limits.max_running, plan.config.vocab_size);
        let mut scheduler =
            Scheduler::new(&plan, limits, (for_queue, for_counters), drawers, draft_model, forward);
        let thread = std::thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || scheduler.run())
            .map_err(EngineError::Thread)?;
        let inner = Inner { plan, queue, counters, thread: Some(thread) };
        Ok(EngineHandle(Arc::new(inner)))
    }
}

/// Hands requests to a running engine. Cheap to clone; when the last clone is dropped the engine fails what is left and its
/// thread has ended when the drop returns, so that the memory of the model is free.
#[derive(Clone)]
pub struct EngineHandle(Arc<Inner>);

struct Inner {
    plan: CachePlan,
    queue: Arc<RequestQueue>,
    counters: Arc<Counters>,
    thread: Option<JoinHandle<()>>,
}

impl EngineHandle {
    /// Accepts a request or refuses it at once; never waits.
    ///
    /// # Errors
    ///
    /// The prompt is empty, too long or not of this model, a setting is out of range, the cache can never hold the request,
    /// the queue is full, or the engine has stopped.
    pub fn submit(&self, request: GenerationRequest) -> Result<EventReceiver, EngineError> {
        let plan = &self.0.plan;
        let config = &plan.config;
        let n_prompt_tokens = request.prompt.len();
        if n_prompt_tokens == 0 {
            return Err(EngineError::EmptyPrompt);
        }
        if n_prompt_tokens >= config.context_len {
            let context_len = config.context_len;
            return Err(EngineError::PromptTooLong { n_prompt_tokens, context_len });
        }
        let vocab_size = config.vocab_size;
        let is_unknown = |id: u32| id as usize >= vocab_size;
        if let Some(position) = request.prompt.iter().position(|&id| is_unknown(id)) {
            let token_id = request.prompt[position];
            return Err(EngineError::UnknownToken { position, token_id, vocab_size });
        }
        request.sampling.check()?;
        let adapter = request.adapter.as_ref();
        if adapter.is_some_and(|adapter| !adapter.fits(config, plan.dtype)) {
            return Err(EngineError::ForeignAdapter);
        }
        let (n_top, most) = (request.logprobs.n_top, Logprobs::MAX_TOP);
        if n_top > most {
            return Err(EngineError::TooManyTop { n_top, limit: most });
        }
        let mut biases = request.sampling.logit_bias.iter();
        if let Some(&(token_id, _)) = biases.find(|&&(id, _)| is_unknown(id)) {
            return Err(EngineError::UnknownBias { token_id, vocab_size });
        }
        let room = config.context_len - n_prompt_tokens;
        let max_tokens = match request.max_tokens {
            Some(max_tokens) => max_tokens.min(room),
            // At least one, so that what is refused below is the prompt.
            None => plan.max_len().saturating_sub(n_prompt_tokens).clamp(1, room),
        };
        let n_needed = plan.blocks_for(n_prompt_tokens + max_tokens);
        if n_needed > plan.n_blocks {
            let needed_bytes = n_needed * plan.block_bytes();
            let limit_bytes = plan.n_blocks * plan.block_bytes();
            return Err(EngineError::CacheTooSmall { needed_bytes, limit_bytes });
        }
        let n_scored = if request.logprobs.of_prompt { n_prompt_tokens } else { 0 };
        let (events, receiver) = channel(n_scored + max_tokens + 1);
        self.0.queue.push(Pending { request, max_tokens, events })?;
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

    /// What the engine is doing now, and has done.
    #[must_use]
    pub fn load(&self) -> EngineLoad {
        self.0.counters.load(self.0.queue.len())
    }

    /// Tells when the engine has ended, without keeping it from that.
    #[must_use]
    pub fn end(&self) -> EngineEnd {
        EngineEnd(Arc::clone(&self.0.counters))
    }

    /// How many handles of the engine there are; others may come and go meanwhile, unless this is the only one.
    #[must_use]
    pub fn n_handles(&self) -> usize {
        Arc::strong_count(&self.0)
    }

    /// Whether both are handles of one engine.
    #[must_use]
    pub fn is_of_same_engine(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// The end of an engine, still to come or past.
#[derive(Debug, Clone)]
pub struct EngineEnd(Arc<Counters>);

impl EngineEnd {
    /// True once the last handle was dropped and the engine's thread has ended, and given back the memory of cache and workspace, and of the
    /// model if nothing else holds it.
    #[must_use]
    pub fn is_past(&self) -> bool {
        self.0.has_ended()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.queue.close();
        if let Some(thread) = self.thread.take() {
            // The thread catches panics of the model; one outside of that has been reported to every receiver already.
            drop(thread.join());
        }
        self.counters.set_ended();
    }
}
