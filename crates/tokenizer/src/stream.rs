//! Text from tokens that arrive one by one.

use crate::chat::ChatTemplate;
use crate::stop::StopScanner;
use crate::tokenizer::Tokenizer;

/// Decodes tokens one by one; what [`push`](TextStream::push) and [`finish`](TextStream::finish) return, put end to end,
/// is what [`Tokenizer::decode`] returns for all of them.
///
/// A character that is not complete is held back: at most three bytes.
#[derive(Clone, Debug, Default)]
pub struct TextStream {
    /// The beginning of a character.
    pending: Vec<u8>,
    /// What is cut off the beginning of the text, until the text has begun.
    prefix: Option<&'static str>,
}

impl TextStream {
    /// A stream for a completion.
    pub fn new() -> TextStream {
        TextStream::default()
    }

    /// A stream for an answer, without what the template puts before every answer (see
    /// [`ChatTemplate::answer_prefix`]).
    pub fn answer(template: &ChatTemplate) -> TextStream {
        TextStream { pending: Vec::new(), prefix: Some(template.answer_prefix()) }
    }

    /// The text that the token completes, empty if none. Control tokens are skipped.
    pub fn push(&mut self, tokenizer: &Tokenizer, token_id: u32) -> String {
        if tokenizer.is_control(token_id) {
            return String::new();
        }
        self.pending.extend_from_slice(tokenizer.bytes_or_replacement(token_id));
        let mut text = String::new();
        let mut n_done = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            n_done += chunk.valid().len();
            let invalid = chunk.invalid();
            let is_last = n_done + invalid.len() == self.pending.len();
            if invalid.is_empty() || (is_last && may_go_on(invalid)) {
                continue;
            }
            text.push(char::REPLACEMENT_CHARACTER);
            n_done += invalid.len();
        }
        self.pending.drain(..n_done);
        self.without_prefix(text)
    }

    /// The rest: U+FFFD if the last character is not complete, else nothing.
    pub fn finish(mut self) -> String {
        let rest = String::from_utf8_lossy(&self.pending).into_owned();
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

/// Whether bytes that are not UTF-8 are the beginning of a character.
fn may_go_on(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes)
        .is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
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
