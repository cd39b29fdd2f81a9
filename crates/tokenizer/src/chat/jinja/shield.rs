//! Keeps content from becoming control tokens in a text that is made of both.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use crate::added::AddedTokens;
use crate::chat::conversation::Conversation;
use crate::error::Error;
use crate::tokenizer::Tokenizer;

/// Characters that stand for others: the planes that Unicode keeps for private use.
const PRIVATE: std::ops::RangeInclusive<char> = '\u{F0000}'..='\u{10FFFD}';

/// The control tokens of a vocabulary, and a character to stand for each that begins one of them.
pub(super) struct Shield {
    controls: Option<AddedTokens>,
    names: Vec<String>,
    stand_ins: HashMap<char, char>,
}

impl Shield {
    /// Chooses stand-ins that the conversation does not hold.
    pub(super) fn new(tokenizer: &Tokenizer, conversation: &Conversation) -> Result<Shield, Error> {
        let ids = tokenizer.controls.by_name();
        let names: Vec<String> = ids.keys().cloned().collect();
        let contents = || conversation.messages.iter().flat_map(|message| message.content.chars());
        let taken: HashSet<char> = contents().filter(|c| PRIVATE.contains(c)).collect();
        let mut free = PRIVATE.filter(|c| !taken.contains(c));
        let mut stand_ins = HashMap::new();
        for first in names.iter().filter_map(|name| name.chars().next()) {
            if let Entry::Vacant(place) = stand_ins.entry(first) {
                place.insert(free.next().ok_or(Error::NoPrivateCharacter)?);
            }
        }
        Ok(Shield { controls: AddedTokens::new(ids), names, stand_ins })
    }

    /// The content with a stand-in for the first character of each control token in it, and of what could begin one
    /// that the template's text completes. All else stays, so that templates can look at content.
    pub(super) fn hide(&self, content: &str) -> String {
        let Some(controls) = &self.controls else { return content.to_owned() };
        let mut hidden = String::with_capacity(content.len());
        let mut done = 0;
        // Templates trim contents, so that what stands before white space may come to stand last.
        let end = content.trim_end().len();
        let longest = self.names.iter().map(String::len).max().unwrap_or(0);
        let mut tail = end.saturating_sub(longest);
        while !content.is_char_boundary(tail) {
            tail -= 1;
        }
        let mut hide_at = |at: usize| {
            let first = content[at..].chars().next().expect("a token begins here");
            hidden.push_str(&content[done..at]);
            hidden.push(self.stand_ins[&first]);
            done = at + first.len_utf8();
        };
        let mut from = 0;
        while let Some(found) = controls.find(content, from) {
            // Beginnings at the end are looked for below; they come in order.
            if found.start >= tail {
                break;
            }
            hide_at(found.start);
            from = found.start + 1;
        }
        for (at, first) in content[tail..].char_indices() {
            if !self.stand_ins.contains_key(&first) {
                continue;
            }
            let at = tail + at;
            let (rest, trimmed) = (&content[at..], &content[at..end.max(at)]);
            let is_begun = |name: &String| {
                rest.starts_with(name.as_str())
                    || (!trimmed.is_empty() && name.starts_with(trimmed))
                    || (!rest.is_empty() && name.starts_with(rest))
            };
            if self.names.iter().any(is_begun) {
                hide_at(at);
            }
        }
        hidden.push_str(&content[done..]);
        hidden
    }

    /// Token ids of a rendered text: control tokens by name, all else ordinary text.
    pub(super) fn encode(&self, tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
        let shown: HashMap<char, char> = self.stand_ins.iter().map(|(&c, &s)| (s, c)).collect();
        let show = |text: &str| -> String {
            text.chars().map(|c| shown.get(&c).copied().unwrap_or(c)).collect()
        };
        let mut token_ids = Vec::new();
        let encode_text = |text: &str, token_ids: &mut Vec<u32>| {
            if token_ids.is_empty() {
                tokenizer.encode_into(&show(text), token_ids);
            } else {
                tokenizer.encode_after_control(&show(text), token_ids);
            }
        };
        let mut start = 0;
        while let Some(found) = self.controls.as_ref().and_then(|names| names.find(text, start)) {
            encode_text(&text[start..found.start], &mut token_ids);
            token_ids.push(found.id);
            start = found.end;
        }
        encode_text(&text[start..], &mut token_ids);
        token_ids
    }
}
