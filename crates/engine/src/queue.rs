//! The way in: requests that wait for the engine's thread.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::EngineError;
use crate::events::EventSender;
use crate::request::GenerationRequest;

/// A checked request with its way back.
pub(crate) struct Pending {
    pub(crate) request: GenerationRequest,
    /// Most tokens to generate.
    pub(crate) max_tokens: usize,
    pub(crate) events: EventSender,
}

/// A bounded queue, first in, first out. A full one refuses instead of making the caller wait.
pub(crate) struct RequestQueue {
    state: Mutex<State>,
    arrived: Condvar,
    max_waiting: usize,
}

struct State {
    waiting: VecDeque<Pending>,
    open: bool,
}

impl RequestQueue {
    pub(crate) fn new(max_waiting: usize) -> Self {
        let waiting = VecDeque::with_capacity(max_waiting);
        let state = Mutex::new(State { waiting, open: true });
        Self { state, arrived: Condvar::new(), max_waiting }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn push(&self, pending: Pending) -> Result<(), EngineError> {
        let mut state = self.lock();
        if !state.open {
            return Err(EngineError::Stopped);
        }
        // A caller that went away while waiting must not keep a place.
        state.waiting.retain(|other| !other.events.is_cancelled());
        if state.waiting.len() >= self.max_waiting {
            return Err(EngineError::QueueFull { limit: self.max_waiting });
        }
        state.waiting.push_back(pending);
        drop(state);
        self.arrived.notify_one();
        Ok(())
    }

    /// Takes the first request if `fits` says so; later ones do not overtake it, so that a large one is not starved.
    pub(crate) fn pop_if(&self, fits: impl FnOnce(&Pending) -> bool) -> Option<Pending> {
        let mut state = self.lock();
        state.waiting.retain(|pending| !pending.events.is_cancelled());
        if fits(state.waiting.front()?) { state.waiting.pop_front() } else { None }
    }

    /// Sleeps until a request waits; false once the queue is closed.
    pub(crate) fn wait(&self) -> bool {
        let mut state = self.lock();
        while state.open && state.waiting.is_empty() {
            state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.open
    }

    pub(crate) fn is_open(&self) -> bool {
        self.lock().open
    }

    /// Refuses further requests and fails those that wait.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.open = false;
        let abandoned = std::mem::take(&mut state.waiting);
        drop(state);
        self.arrived.notify_all();
        // Dropping a sender tells its receiver that the engine has stopped.
        drop(abandoned);
    }

    /// Requests that wait and still have a caller.
    pub(crate) fn len(&self) -> usize {
        let mut state = self.lock();
        state.waiting.retain(|pending| !pending.events.is_cancelled());
        state.waiting.len()
    }
}
