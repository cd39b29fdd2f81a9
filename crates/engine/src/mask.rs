//! Which tokens may come next: grammars, without the engine knowing any.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tracing::error;

use crate::EngineError;
use crate::sequence::panic_message;

/// A set of token ids of a vocabulary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenSet {
    /// Bit `id % 32` of word `id / 32`.
    words: Vec<u32>,
}

impl TokenSet {
    /// No token of a vocabulary.
    #[must_use]
    pub fn none_of(vocab_size: usize) -> Self {
        Self { words: vec![0; vocab_size.div_ceil(32)] }
    }

    /// Bytes of the set of a vocabulary.
    pub(crate) const fn bytes_for(vocab_size: usize) -> usize {
        vocab_size.div_ceil(32) * size_of::<u32>()
    }

    /// Takes all tokens out.
    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    /// Puts a token in.
    ///
    /// # Panics
    /// When the id is not of the vocabulary.
    pub fn insert(&mut self, token_id: u32) {
        self.words[token_id as usize / 32] |= 1 << (token_id % 32);
    }

    /// Whether a token is in.
    #[must_use]
    pub fn contains(&self, token_id: u32) -> bool {
        let word = self.words.get(token_id as usize / 32);
        word.is_some_and(|word| word >> (token_id % 32) & 1 == 1)
    }

    /// The set as bits, the lowest of the first word for token 0.
    pub fn words_mut(&mut self) -> &mut [u32] {
        &mut self.words
    }
}

/// Says which tokens may come next. An error or a panic fails its own request only.
pub trait TokenMask: Send {
    /// Puts the tokens that may come next into `allowed`, which is empty. Called on a thread of its own while the model runs, so that it
    /// costs no time as long as it is quicker than a step.
    ///
    /// # Errors
    /// Why nothing can come next, or it cannot be told.
    fn allowed(&mut self, allowed: &mut TokenSet) -> Result<(), String>;

    /// Takes the token that came, which was allowed. Called while all requests wait.
    ///
    /// # Errors
    /// Why it cannot go on.
    fn push(&mut self, token_id: u32) -> Result<(), String>;
}

/// The mask of one request, and what it last allowed.
pub(crate) struct Masked {
    mask: Box<dyn TokenMask>,
    allowed: TokenSet,
    state: State,
}

#[derive(PartialEq)]
enum State {
    /// `allowed` is that of the token before.
    Stale,
    Ready,
    Failed(String),
}

impl Masked {
    pub(crate) fn new(mask: Box<dyn TokenMask>, vocab_size: usize) -> Self {
        Self { mask, allowed: TokenSet::none_of(vocab_size), state: State::Stale }
    }

    /// Finds out which tokens may come next, unless that is known.
    pub(crate) fn prepare(&mut self) {
        if self.state != State::Stale {
            return;
        }
        self.allowed.clear();
        let (mask, allowed) = (&mut self.mask, &mut self.allowed);
        self.state = match outcome(|| mask.allowed(allowed)) {
            Ok(()) if self.allowed.words.iter().all(|&word| word == 0) => {
                State::Failed("no token may come next".to_owned())
            }
            Ok(()) => State::Ready,
            Err(detail) => State::Failed(detail),
        };
    }

    /// The tokens that may come next.
    pub(crate) fn allowed(&mut self) -> Result<&TokenSet, EngineError> {
        self.prepare();
        match &self.state {
            State::Failed(detail) => Err(EngineError::MaskFailed { detail: detail.clone() }),
            _ => Ok(&self.allowed),
        }
    }

    /// Takes the token that was drawn.
    pub(crate) fn push(&mut self, token_id: u32) -> Result<(), EngineError> {
        self.state = State::Stale;
        let mask = &mut self.mask;
        outcome(|| mask.push(token_id)).map_err(|detail| EngineError::MaskFailed { detail })
    }
}

/// What a mask answers; what it said when it panicked.
fn outcome(call: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        let detail = panic_message(panic.as_ref());
        error!(detail, "token mask panicked");
        Err(format!("it panicked: {detail}"))
    })
}
