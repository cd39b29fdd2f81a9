//! What a caller hands to the engine.

use std::sync::Arc;

use model::LoadedAdapter;

use crate::{EngineError, TokenMask};

/// One generation: token ids in.
pub struct GenerationRequest {
    /// The prompt, control tokens included; at least one token.
    pub prompt: Vec<u32>,
    /// Most tokens to generate. The answer also ends where the model's context does. `None` takes what context and cache
    /// have room for.
    pub max_tokens: Option<usize>,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// What is said of the likelihood of tokens.
    pub logprobs: Logprobs,
    /// What changes the weights for this request.
    pub adapter: Option<Arc<LoadedAdapter>>,
    /// Says which tokens may come next; none leaves it to the model.
    pub mask: Option<Box<dyn TokenMask>>,
    /// Says after each token whether to go on.
    pub stop: Box<dyn StopMatcher>,
}

/// What is handed over beside the log-probability of each generated token, which always is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Logprobs {
    /// So many likeliest tokens at each place, at most [`Logprobs::MAX_TOP`].
    pub n_top: usize,
    /// Also the tokens of the prompt, but for the first, which nothing comes before. Such a prompt is computed whole.
    pub of_prompt: bool,
}

impl Logprobs {
    /// Most likeliest tokens at a place.
    pub const MAX_TOP: usize = 20;
}

/// How a token is drawn from the model's distribution. Equal settings, prompt and model give equal tokens, whatever
/// else the engine is doing.
///
/// In this order: penalties and biases change logits, the temperature divides them, then the tokens that may be drawn become
/// fewer by `top_k`, `typical_p`, `top_p` and `min_p`, each of what the one before has left.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the likeliest token (of equals the one with the lowest id).
    pub temperature: f32,
    /// Keeps this many likeliest tokens; none keeps all.
    pub top_k: Option<u32>,
    /// Keeps the tokens whose surprise is nearest to the mean surprise, until their probabilities reach this sum; 1 keeps all.
    /// Source: arXiv 2202.00666.
    pub typical_p: f32,
    /// Keeps the smallest set of likeliest tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens that are at least so likely as this part of the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Divides logits above 0, and multiplies others, of tokens in the prompt or the answer; 1 changes none.
    /// Source: arXiv 1909.05858, section 4.1.
    pub repetition_penalty: f32,
    /// Taken from the logits of tokens in the answer; 0 changes none.
    pub presence_penalty: f32,
    /// Taken from the logit of a token for each time it is in the answer; 0 changes none.
    pub frequency_penalty: f32,
    /// Added to the logits of some tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Start of the random numbers of this request alone.
    pub seed: u64,
}

impl Sampling {
    /// Always the likeliest token.
    pub const GREEDY: Self = Self::plain(0.0);

    /// The model's own distribution.
    pub const PLAIN: Self = Self::plain(1.0);

    const fn plain(temperature: f32) -> Self {
        Self {
            temperature,
            top_k: None,
            typical_p: 1.0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }

    /// Refuses values the sampler has no meaning for.
    ///
    /// # Errors
    /// [`EngineError::InvalidSampling`].
    pub fn check(&self) -> Result<(), EngineError> {
        let any = f32::MIN..=f32::MAX;
        let top_k = self.top_k.map_or(1.0, |top_k| top_k as f32);
        for (setting, got, range, expected) in [
            ("temperature", self.temperature, 0.0..=f32::MAX, "a finite number from 0"),
            ("top_k", top_k, 1.0..=f32::MAX, "at least 1"),
            ("typical_p", self.typical_p, 0.0..=1.0, "0 to 1"),
            ("top_p", self.top_p, 0.0..=1.0, "0 to 1"),
            ("min_p", self.min_p, 0.0..=1.0, "0 to 1"),
            (
                "repetition_penalty",
                self.repetition_penalty,
                f32::MIN_POSITIVE..=f32::MAX,
                "a finite number above 0",
            ),
            ("presence_penalty", self.presence_penalty, any.clone(), "a finite number"),
            ("frequency_penalty", self.frequency_penalty, any.clone(), "a finite number"),
        ] {
            if !range.contains(&got) {
                return Err(EngineError::InvalidSampling { setting, got, expected });
            }
        }
        match self.logit_bias.iter().find(|(_, bias)| !any.contains(bias)) {
            Some(&(_, got)) => {
                let (setting, expected) = ("logit_bias", "finite numbers");
                Err(EngineError::InvalidSampling { setting, got, expected })
            }
            None => Ok(()),
        }
    }

    /// Whether the token with the largest logit is drawn, once penalties, biases and masks have changed the logits.
    pub(crate) fn takes_largest(&self) -> bool {
        let is_alone = self.top_k == Some(1) || (self.top_p == 0.0 && self.typical_p >= 1.0);
        self.temperature == 0.0 || is_alone
    }

    /// Whether any setting looks at the tokens before.
    pub(crate) fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
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

/// Decides after each token whether the answer is complete. Called while all requests wait, on any thread, so it must be quick; a panic
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
