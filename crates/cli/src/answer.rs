//! One answer from an engine to the terminal: text as it comes, stop strings, a request to stop.

use std::sync::Arc;

use engine::{
    EngineHandle, Event, FinishReason, GenerationRequest, Logprobs, Sampling, ScoredToken,
    StopAtIds, TokenMask,
};
use model::LoadedAdapter;
use tokenizer::{AnswerText, TextStream, Tokenizer};

use crate::os::{StopSignal, StopSignals};

/// What is asked of the engine.
pub(crate) struct Question {
    /// The prompt, control tokens included.
    pub(crate) prompt: Vec<u32>,
    /// Most new tokens.
    pub(crate) max_tokens: usize,
    /// How tokens are drawn.
    pub(crate) sampling: Sampling,
    /// Tokens that end the answer.
    pub(crate) stop_ids: Vec<u32>,
    /// Strings that end the answer and are not shown.
    pub(crate) stop_strings: Vec<String>,
    /// What changes the weights.
    pub(crate) adapter: Option<Arc<LoadedAdapter>>,
    /// What keeps the answer to a form.
    pub(crate) mask: Option<Box<dyn TokenMask>>,
    /// How ids become text; none when the model has no vocabulary.
    pub(crate) text: Option<(Arc<Tokenizer>, TextStream)>,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The model ended it, or a stop string.
    Complete,
    /// At the greatest number of tokens, or at the end of the context.
    AtLength,
    /// The user wanted it to stop.
    OnSignal(StopSignal),
}

/// An answer.
pub(crate) struct Answer {
    /// New ids, with the one that ended it.
    pub(crate) token_ids: Vec<u32>,
    /// Its text; none without a vocabulary.
    pub(crate) text: Option<String>,
    /// Why it ended.
    pub(crate) ended: Ended,
}

/// Runs a question to its end; `show` gets the text as it comes.
///
/// # Errors
/// When the engine refuses or fails, or `show` does.
pub(crate) fn answer(
    engine: &EngineHandle,
    question: Question,
    signals: &StopSignals,
    mut show: impl FnMut(&str) -> anyhow::Result<()>,
) -> anyhow::Result<Answer> {
    let mut events = engine.submit(GenerationRequest {
        prompt: question.prompt,
        max_tokens: Some(question.max_tokens),
        sampling: question.sampling,
        logprobs: Logprobs::default(),
        adapter: question.adapter,
        mask: question.mask,
        stop: Box::new(StopAtIds(question.stop_ids)),
    })?;
    let mut text = question
        .text
        .map(|(tokenizer, stream)| (tokenizer, AnswerText::new(stream, question.stop_strings)));
    let mut shown = String::new();
    let mut show = |piece: String| {
        shown.push_str(&piece);
        show(&piece)
    };
    let mut token_ids = Vec::with_capacity(question.max_tokens.min(1 << 16));
    let ended = loop {
        if let Some(signal) = signals.requested() {
            break Ended::OnSignal(signal);
        }
        match events.recv_blocking() {
            Some(Event::PromptToken(_)) => {}
            Some(Event::Token(ScoredToken { token_id, .. })) => {
                token_ids.push(token_id);
                let Some((tokenizer, text)) = &mut text else { continue };
                show(text.push(tokenizer, token_id))?;
                if text.is_stopped() {
                    break Ended::Complete;
                }
            }
            Some(Event::Finished { reason: FinishReason::Length, .. }) => break Ended::AtLength,
            Some(Event::Finished { .. }) | None => break Ended::Complete,
            Some(Event::Failed(error)) => return Err(error.into()),
        }
    };
    let has_text = text.is_some();
    if let Some((_, mut text)) = text {
        show(text.finish())?;
    }
    Ok(Answer { token_ids, text: has_text.then_some(shown), ended })
}
