//! The bytes of every token, and which tokens are control tokens.

use crate::control_names::ControlNames;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

/// Names of the control tokens of a tokenizer that is trained here; it gives them the ids 0 to 7 in this order.
pub const CONTROL_TOKENS: [&str; 8] =
    ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "<pad>"];

/// Names that begin a text, in the order in which they are looked for.
const BOS_NAMES: [&str; 2] = ["<s>", "<|begin_of_text|>"];
/// Names that end a text.
const EOS_NAMES: [&str; 2] = ["</s>", "<|end_of_text|>"];
/// Names of padding.
const PAD_NAMES: [&str; 2] = ["<pad>", "<|finetune_right_pad_id|>"];

/// Tokens by id, their bytes end to end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Vocabulary {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    kinds: Vec<Kind>,
}

/// What a token stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// A piece of ordinary text.
    Ordinary,
    /// One byte of a character that has no token of its own.
    Byte,
    /// Nothing that text can hold.
    Control,
}

impl Vocabulary {
    pub(crate) fn push(&mut self, bytes: &[u8], kind: Kind) {
        self.bytes.extend_from_slice(bytes);
        self.ends.push(self.bytes.len());
        self.kinds.push(kind);
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(crate) fn get(&self, token_id: u32) -> Option<&[u8]> {
        let idx = token_id as usize;
        let end = *self.ends.get(idx)?;
        let start = if idx == 0 { 0 } else { self.ends[idx - 1] };
        Some(&self.bytes[start..end])
    }

    /// `None` for ids outside the vocabulary.
    #[inline]
    pub(crate) fn kind(&self, token_id: u32) -> Option<Kind> {
        self.kinds.get(token_id as usize).copied()
    }

    /// The tokens of the 256 bytes, which are of this kind; the error is the first byte without one.
    pub(crate) fn byte_ids(&self, kind: Kind) -> Result<[u32; 256], u8> {
        let mut ids = [None; 256];
        for id in (0..self.len() as u32).filter(|&id| self.kind(id) == Some(kind)) {
            if let Some(&[byte]) = self.get(id) {
                ids[usize::from(byte)] = Some(id);
            }
        }
        let mut found = [0; 256];
        for (byte, slot) in (0..=u8::MAX).zip(&mut found) {
            *slot = ids[usize::from(byte)].ok_or(byte)?;
        }
        Ok(found)
    }

    /// False for ids outside the vocabulary.
    #[inline]
    pub(crate) fn is_control(&self, token_id: u32) -> bool {
        self.kind(token_id) == Some(Kind::Control)
    }
}

/// The control tokens by name, and those with a part to play.
#[derive(Clone, Debug)]
pub(crate) struct Controls {
    ids: HashMap<String, u32>,
    pub(crate) bos: u32,
    pub(crate) eos: u32,
    pub(crate) pad: Option<u32>,
    /// Made when they are first asked for.
    names: OnceLock<Arc<ControlNames>>,
}

impl Controls {
    /// All control tokens of a vocabulary. `bos` and `eos` are names that its file gives; without them the usual names
    /// are looked for. The error is the name that is missing.
    pub(crate) fn find(
        vocabulary: &Vocabulary,
        bos: Option<&str>,
        eos: Option<&str>,
    ) -> Result<Controls, String> {
        let mut ids = HashMap::new();
        for id in (0..vocabulary.len() as u32).filter(|&id| vocabulary.is_control(id)) {
            let name = String::from_utf8_lossy(vocabulary.get(id).unwrap_or_default());
            ids.entry(name.into_owned()).or_insert(id);
        }
        let first_of = |names: &[&str]| names.iter().find_map(|&name| ids.get(name).copied());
        let required = |given: Option<&str>, usual: &[&str]| match given {
            Some(name) => first_of(&[name]).ok_or_else(|| name.to_string()),
            None => first_of(usual).ok_or_else(|| usual[0].to_string()),
        };
        let bos = required(bos, &BOS_NAMES)?;
        let eos = required(eos, &EOS_NAMES)?;
        let pad = first_of(&PAD_NAMES);
        Ok(Controls { ids, bos, eos, pad, names: OnceLock::new() })
    }

    /// The names, to be kept apart from what a conversation says.
    pub(crate) fn names(&self) -> &Arc<ControlNames> {
        self.names.get_or_init(|| Arc::new(ControlNames::new(&self.ids)))
    }

    pub(crate) fn id(&self, name: &str) -> Option<u32> {
        self.ids.get(name).copied()
    }
}
