//! The tokenizer: a vocabulary, its merges and the rule that splits text.

use crate::encode::{Merge, WordCaches, WordEncoder};
use crate::error::Error;
use crate::split::{DigitGroup, Words};
use crate::vocabulary::{ControlIds, Vocabulary};
use sha2::{Digest, Sha256};
use std::fmt::Write;

/// A byte-level BPE tokenizer, immutable; shared by reference among threads.
///
/// Memory: about 40 bytes per token and 32 per merge, and 1 MiB of word cache for each thread that encodes at the same
/// time as others, at most 16 MiB of which are kept.
#[derive(Debug)]
pub struct Tokenizer {
    pub(crate) vocabulary: Vocabulary,
    pub(crate) merges: Vec<Merge>,
    pub(crate) digits: DigitGroup,
    pub(crate) controls: ControlIds,
    words: WordEncoder,
    caches: WordCaches,
}

/// What becomes of control tokens in decoded text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ControlText {
    /// They leave no trace.
    Skip,
    /// They are written by name, such as `</s>`.
    Show,
}

impl Tokenizer {
    /// Checks that the vocabulary holds all control tokens and bytes and that no pair is merged in two ways.
    pub(crate) fn new(
        vocabulary: Vocabulary,
        merges: Vec<Merge>,
        digits: DigitGroup,
    ) -> Result<Tokenizer, Error> {
        let ids = 0..vocabulary.len() as u32;
        let id_of_control = |name: &str| {
            ids.clone().find(|&id| {
                vocabulary.is_control(id) && vocabulary.get(id) == Some(name.as_bytes())
            })
        };
        let controls = ControlIds::find(id_of_control).map_err(|name| Error::Inconsistent {
            field: "added_tokens".to_string(),
            problem: format!("the control token `{name}` is missing"),
        })?;
        let mut byte_ids = [u32::MAX; 256];
        for id in ids.clone().filter(|&id| !vocabulary.is_control(id)) {
            if let Some(&[byte]) = vocabulary.get(id) {
                byte_ids[usize::from(byte)] = id;
            }
        }
        if let Some(byte) = byte_ids.iter().position(|&id| id == u32::MAX) {
            return Err(Error::Inconsistent {
                field: "model.vocab".to_string(),
                problem: format!("there is no token for the byte 0x{byte:02X}"),
            });
        }
        let words = WordEncoder::new(byte_ids, &merges).map_err(|rank| Error::Inconsistent {
            field: format!("model.merges[{rank}]"),
            problem: "the same pair has an earlier merge".to_string(),
        })?;
        Ok(Tokenizer { vocabulary, merges, digits, controls, words, caches: WordCaches::default() })
    }

    /// Number of tokens; ids are `0..vocab_size`.
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.len()
    }

    /// Id of `<s>`, which begins a document or a conversation.
    pub fn bos_id(&self) -> u32 {
        self.controls.bos
    }

    /// Id of `</s>`, which ends a document or an answer.
    pub fn eos_id(&self) -> u32 {
        self.controls.eos
    }

    /// Id of `<pad>`; no text and no template yields it.
    pub fn pad_id(&self) -> u32 {
        self.controls.pad
    }

    /// Id of a control token by name, such as `[INST]`. Looks through the vocabulary: not for inner loops.
    pub fn control_id(&self, name: &str) -> Option<u32> {
        (0..self.vocab_size() as u32)
            .find(|&id| self.is_control(id) && self.vocabulary.get(id) == Some(name.as_bytes()))
    }

    /// Whether a token is a control token; false for ids outside the vocabulary.
    pub fn is_control(&self, token_id: u32) -> bool {
        self.vocabulary.is_control(token_id)
    }

    /// The bytes of a token (of a control token, its name), which need not be UTF-8 by themselves; `None` outside the
    /// vocabulary.
    pub fn token_bytes(&self, token_id: u32) -> Option<&[u8]> {
        self.vocabulary.get(token_id)
    }

    /// How digits are cut.
    pub fn digits(&self) -> DigitGroup {
        self.digits
    }

    /// Token ids of ordinary text: no BOS, no EOS, never a control token, whatever the text looks like.
    ///
    /// Time: linear in the text, apart from a logarithm in the length of words over 64 bytes.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut token_ids = Vec::with_capacity(text.len() / 3);
        self.encode_into(text, &mut token_ids);
        token_ids
    }

    /// As [`Tokenizer::encode`], appending to `out`.
    pub fn encode_into(&self, text: &str, out: &mut Vec<u32>) {
        let mut cache = self.caches.take();
        for range in Words::new(text, self.digits) {
            cache.encode(&self.words, text.as_bytes(), range, out);
        }
        self.caches.give_back(cache);
    }

    /// Text of token ids. Control tokens are skipped, bytes that are not UTF-8 and ids outside the vocabulary become
    /// U+FFFD. [`Tokenizer::decode_with`] shows control tokens.
    pub fn decode(&self, token_ids: &[u32]) -> String {
        self.decode_with(token_ids, ControlText::Skip)
    }

    /// As [`Tokenizer::decode`], with a choice for control tokens.
    pub fn decode_with(&self, token_ids: &[u32], control: ControlText) -> String {
        let mut bytes = Vec::with_capacity(4 * token_ids.len());
        for &id in token_ids {
            if control == ControlText::Show || !self.is_control(id) {
                bytes.extend_from_slice(self.bytes_or_replacement(id));
            }
        }
        match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        }
    }

    pub(crate) fn bytes_or_replacement(&self, token_id: u32) -> &[u8] {
        self.vocabulary.get(token_id).unwrap_or("\u{FFFD}".as_bytes())
    }

    /// SHA-256 of [`Tokenizer::to_json`] in hexadecimal: equal for equal tokenizers, however their files were written.
    pub fn digest(&self) -> String {
        let mut text = String::with_capacity(64);
        for byte in Sha256::digest(self.to_json()) {
            write!(text, "{byte:02x}").expect("writing to a string cannot fail");
        }
        text
    }
}
