//! The tokenizer: a vocabulary, its merges and the rule that splits text.

use crate::added::AddedTokens;
use crate::encode::{Merge, WordCache, WordCaches, WordEncoder};
use crate::error::Error;
use crate::json;
use crate::split::{
    CasedWords, Contractions, Gpt2Words, OWN_SPLIT, SpacedWords, Split, UnmergedWords, Words,
    begins_with_space,
};
use crate::symbols::Symbols;
use crate::text::{Assembler, Decoding};
use crate::vocabulary::{CONTROL_TOKENS, Controls, Kind, Vocabulary};
use sha2::{Digest, Sha256};
use std::fmt::Write;

/// A BPE tokenizer, byte-level or of SentencePiece's kind; immutable, shared by reference among threads.
///
/// Memory: about 40 bytes per token and 32 per merge; 1 MiB of word cache for each thread that encodes at the same time
/// as others, at most 16 MiB of which are kept; and, of a tokenizer that was not trained here, its file.
#[derive(Debug)]
pub struct Tokenizer {
    pub(crate) vocabulary: Vocabulary,
    pub(crate) controls: Controls,
    pub(crate) split: Split,
    pub(crate) prefix: Prefix,
    pub(crate) decoding: Decoding,
    pub(crate) words: WordEncoder,
    /// Tokens that are looked for in text before it is split.
    pub(crate) added: Option<AddedTokens>,
    pub(crate) adds_bos: Option<bool>,
    pub(crate) version: Option<u32>,
    pub(crate) origin: Origin,
    pub(crate) caches: WordCaches,
}

/// Where a tokenizer comes from, which is what it is written from.
#[derive(Debug)]
pub(crate) enum Origin {
    /// Trained here: these are all that distinguishes it, beside the vocabulary.
    Own { merges: Vec<Merge> },
    /// A file of others, kept to be written as it was read.
    File { name: &'static str, contents: Vec<u8> },
}

/// Where encoding puts a space that the text does not have. A segment is the text between two added tokens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Prefix {
    /// Nowhere.
    Never,
    /// Before every text, even if it begins with an added token.
    Text,
    /// Before every segment.
    Segments,
    /// Before every segment that does not begin with a space.
    SegmentsWithoutSpace,
    /// Before a text that does not begin with a space and is the beginning of all.
    FirstWithoutSpace,
}

/// Where a text stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Beginning,
    AfterControl,
    AfterAdded,
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
    /// A tokenizer of the kind that is trained here. Checks that the vocabulary holds all control tokens and bytes and
    /// that no pair is merged in two ways.
    pub(crate) fn new(vocabulary: Vocabulary, merges: Vec<Merge>) -> Result<Tokenizer, Error> {
        let controls = Controls::find(&vocabulary, None, None).map_err(json::missing_control)?;
        if let Some(name) = CONTROL_TOKENS.into_iter().find(|name| controls.id(name).is_none()) {
            return Err(json::missing_control(name.to_string()));
        }
        let byte_ids = vocabulary.byte_ids(Kind::Ordinary).map_err(json::missing_byte)?;
        let ranked: Vec<(u32, Merge)> = (0..).zip(merges.iter().copied()).collect();
        let words = WordEncoder::new(Symbols::bytes(byte_ids), ranked.into_iter())
            .map_err(json::repeated_merge)?;
        Ok(Tokenizer {
            vocabulary,
            controls,
            split: OWN_SPLIT,
            prefix: Prefix::Never,
            decoding: Decoding::Joined,
            words,
            added: None,
            adds_bos: None,
            version: None,
            origin: Origin::Own { merges },
            caches: WordCaches::default(),
        })
    }

    /// Number of tokens; ids are `0..vocab_size`.
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.len()
    }

    /// Id of the token that begins a document or a conversation, `<s>` in most vocabularies.
    pub fn bos_id(&self) -> u32 {
        self.controls.bos
    }

    /// Id of the token that ends a document or an answer, `</s>` in most vocabularies.
    pub fn eos_id(&self) -> u32 {
        self.controls.eos
    }

    /// Id of `<pad>`, where the vocabulary has it; no text and no template yields it.
    pub fn pad_id(&self) -> Option<u32> {
        self.controls.pad
    }

    /// Whether the tokenizer's file says that BOS stands before a text; `None` where it says nothing, as the files of
    /// tokenizers that are trained here.
    pub fn adds_bos(&self) -> Option<bool> {
        self.adds_bos
    }

    /// The version of Mistral's series that the file is of, such as 7, where the file or its name says it. It decides
    /// how conversations are written.
    pub fn version(&self) -> Option<u32> {
        self.version
    }

    /// Id of a control token by name, such as `[INST]`.
    pub fn control_id(&self, name: &str) -> Option<u32> {
        self.controls.id(name)
    }

    /// Whether a token is a control token; false for ids outside the vocabulary.
    pub fn is_control(&self, token_id: u32) -> bool {
        self.vocabulary.is_control(token_id)
    }

    /// The bytes of a token (of a control token, its name), which need not be UTF-8 by themselves; `None` outside the
    /// vocabulary. The sign U+2581 of SentencePiece is a space here.
    pub fn token_bytes(&self, token_id: u32) -> Option<&[u8]> {
        self.vocabulary.get(token_id)
    }

    /// Token ids of ordinary text: no BOS, no EOS, never a control token, whatever the text looks like.
    ///
    /// Time: linear in the text, apart from a logarithm in the length of words over 64 bytes.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut token_ids = Vec::with_capacity(text.len() / 3);
        self.encode_into(text, &mut token_ids);
        token_ids
    }

    /// Token ids of a text that a model is to go on with: BOS, unless the tokenizer's file says that none stands there,
    /// and the text.
    pub fn encode_prompt(&self, text: &str) -> Vec<u32> {
        let mut token_ids = Vec::with_capacity(1 + text.len() / 3);
        if self.adds_bos != Some(false) {
            token_ids.push(self.bos_id());
        }
        self.encode_into(text, &mut token_ids);
        token_ids
    }

    /// As [`Tokenizer::encode`], appending to `out`.
    pub fn encode_into(&self, text: &str, out: &mut Vec<u32>) {
        self.encode_at(text, Place::Beginning, out);
    }

    /// As [`Tokenizer::encode_into`], for text that follows a control token: some tokenizers put a space only before
    /// the text that begins everything.
    pub fn encode_after_control(&self, text: &str, out: &mut Vec<u32>) {
        self.encode_at(text, Place::AfterControl, out);
    }

    fn encode_at(&self, text: &str, mut place: Place, out: &mut Vec<u32>) {
        if text.is_empty() {
            return;
        }
        let mut cache = self.caches.take();
        let mut start = 0;
        if let Some(added) = &self.added {
            while let Some(found) = added.find(text, start) {
                self.encode_segment(&text[start..found.start], place, &mut cache, out);
                out.push(found.id);
                (start, place) = (found.end, Place::AfterAdded);
            }
        }
        self.encode_segment(&text[start..], place, &mut cache, out);
        self.caches.give_back(cache);
    }

    fn encode_segment(&self, text: &str, place: Place, cache: &mut WordCache, out: &mut Vec<u32>) {
        let is_bare = !text.is_empty() && !begins_with_space(text);
        let is_prefixed = match self.prefix {
            Prefix::Never => false,
            Prefix::Text => place != Place::AfterAdded,
            Prefix::Segments => !text.is_empty(),
            Prefix::SegmentsWithoutSpace => is_bare,
            Prefix::FirstWithoutSpace => is_bare && place == Place::Beginning,
        };
        if is_prefixed {
            // Only the first word is copied.
            let n = self.first_word_end(text);
            self.words.encode(format!(" {}", &text[..n]).as_bytes(), out);
            return self.encode_split(&text[n..], cache, out);
        }
        self.encode_split(text, cache, out);
    }

    /// Where the word ends that a space before the text begins.
    fn first_word_end(&self, text: &str) -> usize {
        match &self.split {
            Split::Unmerged(neighbours) => UnmergedWords::new(text, neighbours).next_after_space(),
            _ if begins_with_space(text) => 0,
            _ => SpacedWords::new(text).next().map_or(0, |(_, end)| end),
        }
    }

    fn encode_split(&self, text: &str, cache: &mut WordCache, out: &mut Vec<u32>) {
        match &self.split {
            Split::Plain(digits) => {
                let words = Words::new(text, *digits, Contractions::Ignored);
                self.encode_words(text, words, cache, out);
            }
            Split::Contractions(digits) => {
                let words = Words::new(text, *digits, Contractions::Apart);
                self.encode_words(text, words, cache, out);
            }
            Split::Gpt2 => self.encode_words(text, Gpt2Words::new(text), cache, out),
            Split::Cased => self.encode_words(text, CasedWords::new(text), cache, out),
            Split::Spaced => self.encode_words(text, SpacedWords::new(text), cache, out),
            Split::Unmerged(neighbours) => {
                self.encode_words(text, UnmergedWords::new(text, neighbours), cache, out);
            }
        }
    }

    #[inline]
    fn encode_words(
        &self,
        text: &str,
        words: impl Iterator<Item = (usize, usize)>,
        cache: &mut WordCache,
        out: &mut Vec<u32>,
    ) {
        for range in words {
            cache.encode(&self.words, text.as_bytes(), range, out);
        }
    }

    /// Text of token ids. Control tokens are skipped, bytes that are not UTF-8 and ids outside the vocabulary become
    /// U+FFFD. [`Tokenizer::decode_with`] shows control tokens.
    ///
    /// Where encoding puts a space before a text, decoding takes it away again.
    pub fn decode(&self, token_ids: &[u32]) -> String {
        self.decode_with(token_ids, ControlText::Skip)
    }

    /// As [`Tokenizer::decode`], with a choice for control tokens.
    pub fn decode_with(&self, token_ids: &[u32], control: ControlText) -> String {
        if self.decoding != Decoding::Joined {
            let mut text = String::with_capacity(4 * token_ids.len());
            let mut assembler = Assembler::default();
            for &id in token_ids {
                assembler.push(self, id, control, &mut text);
            }
            assembler.flush(&mut text);
            return text;
        }
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

    /// SHA-256 in hexadecimal: of [`Tokenizer::to_json`] for a tokenizer of the kind that is trained here, so that it
    /// does not depend on how its file was written; of the file for others.
    pub fn digest(&self) -> String {
        let hash = match &self.origin {
            Origin::Own { merges } => Sha256::digest(self.own_json(merges)),
            Origin::File { contents, .. } => Sha256::digest(contents),
        };
        let mut text = String::with_capacity(64);
        for byte in hash {
            write!(text, "{byte:02x}").expect("writing to a string cannot fail");
        }
        text
    }
}
