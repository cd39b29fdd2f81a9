//! One answer from an engine to the terminal: text as it comes, stop texts, a request to stop.

use std::sync::Arc;

use engine::{EngineHandle, Event, FinishReason, GenerationRequest, Sampling, StopAtIds};
use tokenizer::{TextStream, Tokenizer};

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
    /// Texts that end the answer and are not shown.
    pub(crate) stop_texts: Vec<String>,
    /// How ids become text; none when the model has no vocabulary.
    pub(crate) text: Option<(Arc<Tokenizer>, TextStream)>,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The model ended it, or a stop text.
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
        max_tokens: question.max_tokens,
        sampling: question.sampling,
        stop: Box::new(StopAtIds(question.stop_ids)),
    })?;
    let mut text = question.text.map(|(tokenizer, stream)| StreamedText {
        tokenizer,
        stream,
        shown: ShownText::new(question.stop_texts),
    });
    let mut token_ids = Vec::with_capacity(question.max_tokens.min(1 << 16));
    let ended = loop {
        if let Some(signal) = signals.requested() {
            break Ended::OnSignal(signal);
        }
        match events.recv_blocking() {
            Some(Event::Token { token_id, .. }) => {
                token_ids.push(token_id);
                let Some(text) = &mut text else { continue };
                let piece = text.stream.push(&text.tokenizer, token_id);
                show(text.shown.push(&piece))?;
                if text.shown.is_stopped {
                    break Ended::Complete;
                }
            }
            Some(Event::Finished { reason: FinishReason::Length, .. }) => break Ended::AtLength,
            Some(Event::Finished { .. }) | None => break Ended::Complete,
            Some(Event::Failed(error)) => return Err(error.into()),
        }
    };
    let text = match text {
        None => None,
        Some(StreamedText { stream, mut shown, .. }) => {
            let rest = stream.finish();
            show(shown.push(&rest))?;
            show(shown.rest())?;
            Some(shown.text)
        }
    };
    Ok(Answer { token_ids, text, ended })
}

struct StreamedText {
    tokenizer: Arc<Tokenizer>,
    stream: TextStream,
    shown: ShownText,
}

/// Text as far as it can be shown: what may be the beginning of a stop text is kept back, and nothing after a stop text
/// counts.
struct ShownText {
    stop_texts: Vec<String>,
    /// Longest stop text, in bytes.
    longest: usize,
    /// All text that counts; after a stop text its beginning only.
    text: String,
    n_shown: usize,
    is_stopped: bool,
}

impl ShownText {
    fn new(stop_texts: Vec<String>) -> Self {
        let longest = stop_texts.iter().map(String::len).max().unwrap_or(0);
        Self { stop_texts, longest, text: String::new(), n_shown: 0, is_stopped: false }
    }

    /// Adds text and gives what can be shown now.
    fn push(&mut self, piece: &str) -> &str {
        if self.is_stopped {
            return "";
        }
        let searched_from =
            self.text.floor_char_boundary(self.text.len().saturating_sub(self.longest));
        self.text.push_str(piece);
        let found = self
            .stop_texts
            .iter()
            .filter_map(|stop| self.text[searched_from..].find(stop.as_str()));
        if let Some(start) = found.min() {
            self.text.truncate(searched_from + start);
            self.is_stopped = true;
            return self.rest();
        }
        let kept = self.longest.saturating_sub(1);
        let end = self.text.floor_char_boundary(self.text.len().saturating_sub(kept));
        self.show_until(end)
    }

    /// Gives what was kept back.
    fn rest(&mut self) -> &str {
        self.show_until(self.text.len())
    }

    fn show_until(&mut self, end: usize) -> &str {
        let start = self.n_shown.min(end);
        self.n_shown = self.n_shown.max(end);
        &self.text[start..end]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut text = ShownText::new(stops.iter().map(|&stop| stop.to_owned()).collect());
        let mut shown = String::new();
        for piece in pieces {
            shown.push_str(text.push(piece));
        }
        shown.push_str(text.rest());
        assert_eq!(shown, text.text, "what was shown is the text");
        (shown, text.is_stopped)
    }

    #[test]
    fn a_stop_text_is_found_however_it_is_cut_and_never_shown() {
        for pieces in [&["abSTOPcd"][..], &["ab", "S", "TO", "P", "cd"], &["abSTO", "Pc", "d"]] {
            assert_eq!(shown(&["STOP"], pieces), ("ab".to_owned(), true));
        }
        assert_eq!(shown(&["STOP"], &["abST", "Ox"]), ("abSTOx".to_owned(), false));
        assert_eq!(shown(&["ç!", "zz"], &["é", "ç", "ç", "!", "é"]), ("éç".to_owned(), true));
        assert_eq!(shown(&[], &["a", "b"]), ("ab".to_owned(), false));
    }
}
