//! Text from tokens that arrive one by one.

use crate::chat::ChatTemplate;
use crate::stop::StopScanner;
use crate::text::Assembler;
use crate::tokenizer::{ControlText, Tokenizer};

/// Decodes tokens one by one; what [`push`](TextStream::push) and [`finish`](TextStream::finish) return, put end to end,
/// is what [`Tokenizer::decode`] returns for all of them.
///
/// A character that is not complete is held back: at most three bytes.
#[derive(Clone, Debug, Default)]
pub struct TextStream {
    assembler: Assembler,
    /// What is cut off the beginning of the text, until the text has begun.
    prefix: Option<&'static str>,
}

impl TextStream {
    /// A stream for a text of its own.
    pub fn new() -> TextStream {
        TextStream::default()
    }

    /// A stream for tokens that go on after those of a prompt. Where the prompt ends with text, a space that follows
    /// belongs to the text; [`TextStream::new`] takes it for the one that SentencePiece puts before every text.
    pub fn after(tokenizer: &Tokenizer, prompt: &[u32]) -> TextStream {
        let is_within_text = prompt.last().is_some_and(|&id| !tokenizer.is_control(id));
        let assembler =
            if is_within_text { Assembler::within_text() } else { Assembler::default() };
        TextStream { assembler, prefix: None }
    }

    /// A stream for an answer, without what the template puts before every answer (see
    /// [`ChatTemplate::answer_prefix`]).
    pub fn answer(template: &ChatTemplate) -> TextStream {
        TextStream { prefix: Some(template.answer_prefix()), ..TextStream::default() }
    }

    /// The text that the token completes, empty if none. Control tokens are skipped.
    pub fn push(&mut self, tokenizer: &Tokenizer, token_id: u32) -> String {
        let mut text = String::new();
        self.assembler.push(tokenizer, token_id, ControlText::Skip, &mut text);
        self.without_prefix(text)
    }

    /// The rest: U+FFFD if the last character is not complete, else nothing.
    pub fn finish(mut self) -> String {
        let mut rest = String::new();
        self.assembler.flush(&mut rest);
        self.without_prefix(rest)
    }

    fn without_prefix(&mut self, mut text: String) -> String {
        if !text.is_empty()
            && let Some(prefix) = self.prefix.take()
            && text.starts_with(prefix)
        {
            text.drain(..prefix.len());
        }
        text
    }
}

/// The text of an answer as far as it can be shown, up to the first stop string: tokens in, text out.
#[derive(Clone, Debug)]
pub struct AnswerText {
    stream: TextStream,
    scanner: StopScanner,
    is_stopped: bool,
}

impl AnswerText {
    /// The text of a stream that ends before any of the stop strings.
    pub fn new(stream: TextStream, stops: Vec<String>) -> AnswerText {
        AnswerText { stream, scanner: StopScanner::new(stops), is_stopped: false }
    }

    /// Text that can be shown now; what may be the beginning of a stop string is held back.
    pub fn push(&mut self, tokenizer: &Tokenizer, token_id: u32) -> String {
        let text = self.stream.push(tokenizer, token_id);
        let scanned = self.scanner.push(&text);
        self.is_stopped = scanned.stopped;
        scanned.safe
    }

    /// The end of the text: half characters, and what might have become a stop string.
    pub fn finish(&mut self) -> String {
        let rest = std::mem::take(&mut self.stream).finish();
        let mut text = self.scanner.push(&rest).safe;
        text.push_str(&self.scanner.finish());
        text
    }

    /// Whether a stop string has come; nothing after it is text.
    pub fn is_stopped(&self) -> bool {
        self.is_stopped
    }

    /// Whether text is held back that may become a stop string.
    pub fn is_holding(&self) -> bool {
        self.scanner.is_holding()
    }

    /// Whether there are stop strings to look for.
    pub fn has_stops(&self) -> bool {
        !self.scanner.is_idle()
    }
}
