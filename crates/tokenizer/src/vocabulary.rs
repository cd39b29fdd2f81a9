//! The bytes of every token, and which tokens are control tokens.

/// Names of the control tokens; a trained tokenizer gives them the ids 0 to 7 in this order.
pub const CONTROL_TOKENS: [&str; 8] =
    ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "<pad>"];

/// Ids of [`CONTROL_TOKENS`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct ControlIds {
    pub(crate) bos: u32,
    pub(crate) eos: u32,
    pub(crate) instruction: u32,
    pub(crate) end_instruction: u32,
    pub(crate) system_prompt: u32,
    pub(crate) end_system_prompt: u32,
    pub(crate) pad: u32,
}

impl ControlIds {
    /// Asks `id_of` for every name; the first one that it does not know is the error.
    pub(crate) fn find(id_of: impl Fn(&str) -> Option<u32>) -> Result<ControlIds, &'static str> {
        let mut ids = [0; CONTROL_TOKENS.len()];
        for (id, name) in ids.iter_mut().zip(CONTROL_TOKENS) {
            *id = id_of(name).ok_or(name)?;
        }
        let [_, bos, eos, instruction, end_instruction, system_prompt, end_system_prompt, pad] =
            ids;
        Ok(ControlIds {
            bos,
            eos,
            instruction,
            end_instruction,
            system_prompt,
            end_system_prompt,
            pad,
        })
    }
}

/// Tokens by id, their bytes end to end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Vocabulary {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    is_control: Vec<bool>,
}

/// Whether a token is a piece of ordinary text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Ordinary,
    Control,
}

impl Vocabulary {
    pub(crate) fn push(&mut self, bytes: &[u8], kind: Kind) {
        self.bytes.extend_from_slice(bytes);
        self.ends.push(self.bytes.len());
        self.is_control.push(kind == Kind::Control);
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

    /// False for ids outside the vocabulary.
    pub(crate) fn is_control(&self, token_id: u32) -> bool {
        self.is_control.get(token_id as usize).copied().unwrap_or(false)
    }
}
