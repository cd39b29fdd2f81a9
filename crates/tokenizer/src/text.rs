//! From tokens to text, one by one; decoding all tokens at once does the same.

use crate::tokenizer::{ControlText, Tokenizer};
use crate::vocabulary::Kind;

/// How the bytes of tokens become text.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Decoding {
    /// End to end. A control token between two halves of a character does not part them. What is no UTF-8 becomes one
    /// U+FFFD for each beginning of a character.
    #[default]
    Joined,
    /// As `Joined`, but nothing is joined across a control token: Tekken.
    Parted,
    /// Only byte tokens in a row are joined; each byte that is no UTF-8 becomes U+FFFD: SentencePiece.
    Pieces(FirstSpace),
}

/// What becomes of the space that begins a text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FirstSpace {
    /// It was added by encoding and is taken away.
    Dropped,
    /// It is part of the text.
    Kept,
}

/// Puts tokens together to text. Holds back at most three bytes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Assembler {
    decoding: Decoding,
    /// The beginning of a character.
    pending: Vec<u8>,
    has_begun: bool,
}

impl Assembler {
    /// For tokens that go on after a text.
    pub(crate) fn within_text() -> Assembler {
        Assembler { has_begun: true, ..Assembler::default() }
    }

    /// Appends the text that the token completes.
    pub(crate) fn push(
        &mut self,
        tokenizer: &Tokenizer,
        token_id: u32,
        control: ControlText,
        out: &mut String,
    ) {
        self.decoding = tokenizer.decoding;
        let n_before = out.len();
        let bytes = tokenizer.bytes_or_replacement(token_id);
        let kind = tokenizer.vocabulary.kind(token_id);
        let is_joined = match (self.decoding, kind) {
            (Decoding::Joined, _) | (_, Some(Kind::Byte)) => true,
            (Decoding::Parted, kind) => kind != Some(Kind::Control),
            (Decoding::Pieces(_), _) => false,
        };
        let is_shown = kind != Some(Kind::Control) || control == ControlText::Show;
        match (is_joined, is_shown) {
            (true, true) => self.join(bytes, out),
            (true, false) => {}
            (false, _) => {
                self.flush(out);
                let is_first = !self.has_begun && out.len() == n_before;
                let is_dropped = self.decoding == Decoding::Pieces(FirstSpace::Dropped)
                    && is_first
                    && kind == Some(Kind::Ordinary);
                let bytes = match bytes.strip_prefix(b" ") {
                    Some(rest) if is_dropped => {
                        self.has_begun = true;
                        rest
                    }
                    _ => bytes,
                };
                if is_shown {
                    out.push_str(&String::from_utf8_lossy(bytes));
                }
            }
        }
        self.has_begun |= out.len() > n_before;
    }

    fn join(&mut self, bytes: &[u8], out: &mut String) {
        self.pending.extend_from_slice(bytes);
        let mut n_done = 0;
        for chunk in self.pending.utf8_chunks() {
            out.push_str(chunk.valid());
            n_done += chunk.valid().len();
            let invalid = chunk.invalid();
            let is_last = n_done + invalid.len() == self.pending.len();
            if invalid.is_empty() || (is_last && may_go_on(invalid)) {
                continue;
            }
            push_replacements(self.decoding, invalid, out);
            n_done += invalid.len();
        }
        self.pending.drain(..n_done);
    }

    /// Ends the character that was begun.
    pub(crate) fn flush(&mut self, out: &mut String) {
        push_replacements(self.decoding, &self.pending, out);
        self.pending.clear();
    }
}

/// Replaces the beginning of one character.
fn push_replacements(decoding: Decoding, invalid: &[u8], out: &mut String) {
    let n = match decoding {
        Decoding::Pieces(_) => invalid.len(),
        Decoding::Joined | Decoding::Parted => invalid.len().min(1),
    };
    out.extend(std::iter::repeat_n(char::REPLACEMENT_CHARACTER, n));
}

/// Whether bytes that are not UTF-8 are the beginning of a character.
fn may_go_on(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes)
        .is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
}
