//! The way back: events of one generation, read by blocking or by async code.
//!
//! A channel of its own instead of a runtime's, because the terminal reads it from a plain thread and the server from a
//! task, and the engine knows neither. The engine never waits for a reader: a generation has at most
//! `max_tokens + 1` events, and one for each token of its prompt where those are scored; room for them is taken at admission.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use model::Likeliest;

use crate::EngineError;

/// Something that happened to a generation.
#[derive(Debug)]
pub enum Event {
    /// The next token of the prompt, from the second on, where they were asked for; all of them come before generated ones.
    PromptToken(ScoredToken),
    /// A token was generated.
    Token(ScoredToken),
    /// The generation is complete; the last event.
    Finished {
        /// Why.
        reason: FinishReason,
        /// Tokens of the prompt.
        n_prompt_tokens: usize,
        /// Those of them whose keys and values an earlier request had left.
        n_reused_tokens: usize,
        /// Tokens generated, the one that stopped it included.
        n_generated: usize,
    },
    /// The generation failed; the last event.
    Failed(EngineError),
}

/// A token and how likely the model found it, before penalties, temperature and truncation.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoredToken {
    /// Its id.
    pub token_id: u32,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// The likeliest tokens at its place and their log-probabilities, the likeliest first, as many as were asked for.
    pub top: Vec<(u32, f32)>,
}

impl From<Likeliest> for ScoredToken {
    fn from(Likeliest { token_id, logprob }: Likeliest) -> Self {
        Self { token_id, logprob, top: Vec::new() }
    }
}

/// Why a generation is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The stop matcher said so.
    Stop,
    /// `max_tokens` or the end of the context was reached.
    Length,
}

#[derive(Default)]
struct Channel {
    state: Mutex<State>,
    arrived: Condvar,
    receiver_gone: AtomicBool,
}

#[derive(Default)]
struct State {
    events: VecDeque<Event>,
    sender_gone: bool,
    /// Whether a thread waits for `arrived`: to wake none is a call of the system too.
    is_waiting: bool,
    waker: Option<Waker>,
}

impl Channel {
    /// The state is a queue and two values set whole, so it is sound even if a holder of the lock panicked.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn notify(&self, mut state: MutexGuard<'_, State>) {
        let waker = state.waker.take();
        let is_waiting = std::mem::take(&mut state.is_waiting);
        drop(state);
        if is_waiting {
            self.arrived.notify_one();
        }
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The engine's end.
pub(crate) struct EventSender(Arc<Channel>);

/// The caller's end. Dropping it cancels the generation within one step of the engine.
pub struct EventReceiver {
    channel: Arc<Channel>,
    finished: bool,
}

/// A channel with room for `n_events`.
pub(crate) fn channel(n_events: usize) -> (EventSender, EventReceiver) {
    let channel = Arc::new(Channel::default());
    channel.lock().events.reserve(n_events);
    (EventSender(Arc::clone(&channel)), EventReceiver { channel, finished: false })
}

impl EventSender {
    pub(crate) fn send(&self, event: Event) {
        let mut state = self.0.lock();
        state.events.push_back(event);
        self.0.notify(state);
    }

    /// True once nobody will read the events.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.0.receiver_gone.load(Ordering::Acquire)
    }
}

impl Drop for EventSender {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.sender_gone = true;
        self.0.notify(state);
    }
}

impl EventReceiver {
    /// Waits for the next event; none after the last one. For plain threads.
    pub fn recv_blocking(&mut self) -> Option<Event> {
        if self.finished {
            return None;
        }
        let mut state = self.channel.lock();
        while state.events.is_empty() && !state.sender_gone {
            state.is_waiting = true;
            state = self.channel.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let event = state.events.pop_front();
        drop(state);
        Some(self.delivered(event))
    }

    /// Waits for the next event; none after the last one. For async code of any runtime. Dropping the future loses no
    /// event.
    pub async fn recv(&mut self) -> Option<Event> {
        std::future::poll_fn(|context| self.poll_recv(context)).await
    }

    /// The next event if there is one, else arranges to be woken.
    pub fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Option<Event>> {
        if self.finished {
            return Poll::Ready(None);
        }
        let mut state = self.channel.lock();
        if state.events.is_empty() && !state.sender_gone {
            state.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        let event = state.events.pop_front();
        drop(state);
        Poll::Ready(Some(self.delivered(event)))
    }

    /// Notes the end; a sender that went away without one means that the engine stopped.
    fn delivered(&mut self, event: Option<Event>) -> Event {
        let event = event.unwrap_or(Event::Failed(EngineError::Stopped));
        self.finished = !matches!(event, Event::PromptToken(_) | Event::Token(_));
        event
    }
}

impl Drop for EventReceiver {
    fn drop(&mut self) {
        self.channel.receiver_gone.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished() -> Event {
        Event::Finished {
            reason: FinishReason::Stop,
            n_prompt_tokens: 1,
            n_reused_tokens: 0,
            n_generated: 0,
        }
    }

    #[test]
    fn events_arrive_in_order_and_end_after_the_last() {
        let (sender, mut receiver) = channel(4);
        sender.send(Event::Token(ScoredToken { token_id: 3, logprob: -1.0, top: Vec::new() }));
        sender.send(finished());
        assert!(matches!(
            receiver.recv_blocking(),
            Some(Event::Token(ScoredToken { token_id: 3, .. }))
        ));
        assert!(matches!(receiver.recv_blocking(), Some(Event::Finished { .. })));
        assert!(receiver.recv_blocking().is_none());
    }

    #[test]
    fn a_sender_that_vanishes_is_reported_as_a_failure() {
        let (sender, mut receiver) = channel(1);
        drop(sender);
        assert!(matches!(receiver.recv_blocking(), Some(Event::Failed(EngineError::Stopped))));
        assert!(receiver.recv_blocking().is_none());
    }

    #[test]
    fn dropping_the_receiver_is_seen_by_the_sender() {
        let (sender, receiver) = channel(1);
        assert!(!sender.is_cancelled());
        drop(receiver);
        assert!(sender.is_cancelled());
    }

    #[test]
    fn a_pending_poll_is_woken_by_the_next_event() {
        let (sender, mut receiver) = channel(1);
        let mut context = Context::from_waker(Waker::noop());
        assert!(receiver.poll_recv(&mut context).is_pending());
        sender.send(finished());
        assert!(matches!(
            receiver.poll_recv(&mut context),
            Poll::Ready(Some(Event::Finished { .. }))
        ));
    }
}
