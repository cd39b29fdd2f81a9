//! What a caller hands to the engine.

use crate::EngineError;

/// One generation: token ids in.
pub struct GenerationRequest {
    /// The prompt, control tokens included; at least one token.
    pub prompt: Vec<u32>,
    /// Most tokens to generate. The answer also ends where the model's context does. `None` takes what context and cache
    /// have room for.
    pub max_tokens: Option<usize>,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Says after each token whether to go on.
    pub stop: Box<dyn StopMatcher>,
}

/// How a token is drawn from the model's distribution. Equal settings, prompt and model give equal tokens, whatever
/// else the engine is doing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the likeliest token (of equals the one with the lowest id).
    pub temperature: f32,
    /// Keeps this many likeliest tokens; none keeps all.
    pub top_k: Option<u32>,
    /// Keeps the smallest set of likeliest tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Start of the random numbers of this request alone.
    pub seed: u64,
}

impl Sampling {
    /// Always the likeliest token.
    pub const GREEDY: Self = Self { temperature: 0.0, top_k: None, top_p: 1.0, seed: 0 };

    /// Refuses values the sampler has no meaning for.
    ///
    /// # Errors
    /// [`EngineError::InvalidSampling`].
    pub fn check(&self) -> Result<(), EngineError> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            let (setting, got) = ("temperature", self.temperature);
            let expected = "a finite number from 0";
            return Err(EngineError::InvalidSampling { setting, got, expected });
        }
        if !(0.0..=1.0).contains(&self.top_p) {
            let (setting, got) = ("top_p", self.top_p);
            return Err(EngineError::InvalidSampling { setting, got, expected: "0 to 1" });
        }
        if self.top_k == Some(0) {
            let (setting, got) = ("top_k", 0.0);
            return Err(EngineError::InvalidSampling { setting, got, expected: "at least 1" });
        }
        Ok(())
    }
}

/// What to do after a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopDecision {
    /// Hand the token to the receiver and go on.
    Continue,
    /// Go on, but keep this token and those before it until it is clear whether they belong to a stop text.
    HoldBack,
    /// The answer is complete with this token; everything held back is handed over before the end.
    Stop,
}

/// Decides after each token whether the answer is complete. Called on the engine's thread, so it must be quick; a panic
/// in it fails its own request only.
pub trait StopMatcher: Send {
    /// Takes the next generated token.
    fn push(&mut self, token_id: u32) -> StopDecision;
}

/// Stops at any of a few token ids, such as the end of a turn.
#[derive(Debug, Clone, Default)]
pub struct StopAtIds(pub Vec<u32>);

impl StopMatcher for StopAtIds {
    fn push(&mut self, token_id: u32) -> StopDecision {
        if self.0.contains(&token_id) { StopDecision::Stop } else { StopDecision::Continue }
    }
}
