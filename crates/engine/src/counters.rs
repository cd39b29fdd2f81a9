//! What an engine is doing and has done, read by any thread.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// Written by the engine's thread alone, but for its end.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    n_running: AtomicUsize,
    n_preempted: AtomicUsize,
    n_prompt_tokens: AtomicU64,
    n_reused_tokens: AtomicU64,
    n_preemptions: AtomicU64,
    n_draft_tokens: AtomicU64,
    n_accepted_tokens: AtomicU64,
    has_ended: AtomicBool,
}

/// What an engine is doing, and has done since it was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineLoad {
    /// Requests that are worked on.
    pub n_running: usize,
    /// Requests that wait: new ones, and those that were preempted.
    pub n_waiting: usize,
    /// Tokens of all prompts so far.
    pub n_prompt_tokens: u64,
    /// Those of them whose keys and values were there already.
    pub n_reused_tokens: u64,
    /// How often a request gave its cache back to others, to be computed again.
    pub n_preemptions: u64,
    /// Guessed tokens that were computed, those after a wrong one among them.
    pub n_draft_tokens: u64,
    /// Those of them that came true.
    pub n_accepted_tokens: u64,
}

impl Counters {
    pub(crate) fn set_sequences(&self, n_running: usize, n_preempted: usize) {
        self.n_running.store(n_running, Ordering::Relaxed);
        self.n_preempted.store(n_preempted, Ordering::Relaxed);
    }

    pub(crate) fn count_prompt(&self, n_tokens: usize, n_reused: usize) {
        self.n_prompt_tokens.fetch_add(n_tokens as u64, Ordering::Relaxed);
        self.n_reused_tokens.fetch_add(n_reused as u64, Ordering::Relaxed);
    }

    pub(crate) fn count_preemption(&self) {
        self.n_preemptions.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_drafts(&self, n_draft_tokens: usize, n_right: usize) {
        self.n_draft_tokens.fetch_add(n_draft_tokens as u64, Ordering::Relaxed);
        self.n_accepted_tokens.fetch_add(n_right as u64, Ordering::Relaxed);
    }

    /// Says that the engine's thread is no more.
    pub(crate) fn set_ended(&self) {
        self.has_ended.store(true, Ordering::Release);
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire)
    }

    /// `n_queued` requests wait in the queue.
    pub(crate) fn load(&self, n_queued: usize) -> EngineLoad {
        EngineLoad {
            n_running: self.n_running.load(Ordering::Relaxed),
            n_waiting: n_queued + self.n_preempted.load(Ordering::Relaxed),
            n_prompt_tokens: self.n_prompt_tokens.load(Ordering::Relaxed),
            n_reused_tokens: self.n_reused_tokens.load(Ordering::Relaxed),
            n_preemptions: self.n_preemptions.load(Ordering::Relaxed),
            n_draft_tokens: self.n_draft_tokens.load(Ordering::Relaxed),
            n_accepted_tokens: self.n_accepted_tokens.load(Ordering::Relaxed),
        }
    }
}
