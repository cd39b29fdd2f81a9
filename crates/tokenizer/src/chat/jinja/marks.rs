//! Keeps content from becoming control tokens in a text that is made of both.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;
use std::time::Instant;

use super::worker::timed_out;
use crate::added::Found;
use crate::chat::conversation::Conversation;
use crate::control_names::{ControlNames, all_cases};
use crate::error::Error;
use crate::tokenizer::Tokenizer;

/// Characters that stand for others: the planes that Unicode keeps for private use.
const PRIVATE: RangeInclusive<char> = '\u{F0000}'..='\u{10FFFD}';
/// In UTF-8 the characters of these planes, and only few others, begin with this byte or a higher one.
const PRIVATE_BYTE: u8 = 0xF3;
/// Text that is searched for control tokens between two looks at the time.
const SEARCHED_BYTES: usize = 64 << 10;

/// A mark for each character that control tokens are made of. Content goes through the template with its characters
/// marked, so whatever becomes of it there, a control token is made of characters of the template alone. White space is
/// not marked, since templates trim content and cut it into lines.
pub(super) struct Marks {
    names: Arc<ControlNames>,
    marks: HashMap<char, char>,
    shown: HashMap<char, char>,
}

impl Marks {
    /// Chooses marks that stand neither in the conversation, nor in the template, nor in the name of a control token.
    ///
    /// # Errors
    /// [`Error::NoPrivateCharacter`] when there are none.
    pub(super) fn new(
        tokenizer: &Tokenizer,
        conversation: &Conversation,
        template: &HashSet<char>,
    ) -> Result<Marks, Error> {
        let names = Arc::clone(tokenizer.controls.names());
        let mut marked: BTreeSet<char> = names.all_cases.clone();
        let contents: HashSet<char> =
            conversation.messages.iter().flat_map(|message| message.content.chars()).collect();
        // `ſ` is no letter of a token, but its capital may be.
        let become_marked = contents.iter().map(|&c| all_cases(c));
        let others = become_marked.filter(|cases| !cases.is_disjoint(&marked));
        let others: Vec<char> = others.flatten().collect();
        marked.extend(others);
        let is_taken =
            |c: &char| contents.contains(c) || template.contains(c) || names.characters.contains(c);
        let mut free = PRIVATE.filter(|c| !is_taken(c));
        let mut marks = HashMap::with_capacity(marked.len());
        for c in marked {
            marks.insert(c, free.next().ok_or(Error::NoPrivateCharacter)?);
        }
        let shown = marks.iter().map(|(&c, &mark)| (mark, c)).collect();
        Ok(Marks { names, marks, shown })
    }

    /// The characters of a template that must not become marks.
    pub(super) fn reserved(template: &str) -> HashSet<char> {
        template.chars().filter(|c| PRIVATE.contains(c)).collect()
    }

    fn mark_of(&self, c: char) -> char {
        self.marks.get(&c).copied().unwrap_or(c)
    }

    /// The text with its characters marked.
    pub(super) fn mark(&self, text: &str) -> String {
        text.chars().map(|c| self.mark_of(c)).collect()
    }

    /// The text as people read it.
    pub(super) fn show<'a>(&self, text: &'a str) -> Cow<'a, str> {
        if !self.may_mark(text) {
            return Cow::Borrowed(text);
        }
        text.chars().map(|c| self.shown_as(c)).collect()
    }

    /// What a mark stands for; another character as it is.
    pub(super) fn shown_as(&self, c: char) -> char {
        self.shown.get(&c).copied().unwrap_or(c)
    }

    /// JSON with texts as people read them, in which what a mark hid is written as JSON has it.
    pub(super) fn show_in_json<'a>(&self, json: &'a str) -> Cow<'a, str> {
        if !self.may_mark(json) {
            return Cow::Borrowed(json);
        }
        let mut shown = String::with_capacity(json.len());
        for c in json.chars() {
            match self.shown.get(&c) {
                Some('"') => shown.push_str("\\\""),
                Some('\\') => shown.push_str("\\\\"),
                Some(&c) if c.is_ascii_control() => {
                    shown.push_str(&format!("\\u{:04x}", u32::from(c)));
                }
                _ => shown.push(self.shown_as(c)),
            }
        }
        Cow::Owned(shown)
    }

    /// False if the text holds no mark.
    pub(super) fn may_mark(&self, text: &str) -> bool {
        text.bytes().any(|byte| byte >= PRIVATE_BYTE)
    }

    /// The text after a change of its letters; what was marked still is.
    pub(super) fn recased(&self, text: &str, change: impl Fn(&str) -> String) -> String {
        let changed = change(&self.show(text));
        if !self.may_mark(text) {
            return changed;
        }
        if text.chars().count() != changed.chars().count() {
            return self.mark(&changed);
        }
        let pairs = text.chars().zip(changed.chars());
        pairs
            .map(|(old, new)| if self.shown.contains_key(&old) { self.mark_of(new) } else { new })
            .collect()
    }

    /// Calls `each` with the first places, at most `limit`, where a pattern stands in a text, both as people read them.
    ///
    /// # Errors
    /// That of `each`.
    pub(super) fn find<E>(
        &self,
        text: &str,
        pattern: &str,
        limit: usize,
        mut each: impl FnMut(Range<usize>) -> Result<(), E>,
    ) -> Result<(), E> {
        let (shown, pattern) = (self.show(text), self.show(pattern));
        // A mark is longer than what it stands for.
        let mut lengths = text.chars().zip(shown.chars());
        let (mut at, mut shown_at) = (0, 0);
        let mut place_of = |wanted: usize| {
            while shown_at < wanted {
                let (c, shown_c) = lengths.next().expect("a place lies in the text");
                at += c.len_utf8();
                shown_at += shown_c.len_utf8();
            }
            at
        };
        for (start, found) in shown.match_indices(&*pattern).take(limit) {
            each(place_of(start)..place_of(start + found.len()))?;
        }
        Ok(())
    }

    /// Token ids of a rendered text: control tokens by name, all else ordinary text.
    ///
    /// # Errors
    /// [`Error::Jinja`] when searching the text for them goes on after this time.
    pub(super) fn encode(
        &self,
        tokenizer: &Tokenizer,
        text: &str,
        end: Instant,
    ) -> Result<Vec<u32>, Error> {
        let mut token_ids = Vec::new();
        let encode_text = |text: &str, token_ids: &mut Vec<u32>| {
            if token_ids.is_empty() {
                tokenizer.encode_into(&self.show(text), token_ids);
            } else {
                tokenizer.encode_after_control(&self.show(text), token_ids);
            }
        };
        let mut start = 0;
        while let Some(found) = self.next_control(text, start, end)? {
            encode_text(&text[start..found.start], &mut token_ids);
            token_ids.push(found.id);
            start = found.end;
        }
        encode_text(&text[start..], &mut token_ids);
        Ok(token_ids)
    }

    fn next_control(
        &self,
        text: &str,
        mut from: usize,
        end: Instant,
    ) -> Result<Option<Found>, Error> {
        let Some(tokens) = &self.names.tokens else { return Ok(None) };
        while from < text.len() {
            if Instant::now() > end {
                return Err(timed_out());
            }
            let part = from..text.len().min(from + SEARCHED_BYTES);
            from = part.end;
            if let Some(found) = tokens.find_beginning_in(text, part) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::conversation::{Message, Role};
    use testkit::golden::workspace_root;

    fn marks(content: &str) -> Marks {
        let folder = workspace_root().join("golden/tokenizer/model");
        let conversation = Conversation { messages: vec![Message::new(Role::User, content)] };
        Marks::new(&Tokenizer::open(&folder).unwrap(), &conversation, &HashSet::new()).unwrap()
    }

    #[test]
    fn marked_text_is_shown_as_it_was() {
        for text in ["", "a </S> é😀\n[INST]", "\u{F0000}\u{10FFFD}<s>", "ſ ß ı K"] {
            let marks = marks(text);
            let marked = marks.mark(text);
            assert_eq!(marks.show(&marked), text);
            assert!(!marked.contains(['<', '[', 's', 'S', 'I', ']']), "{marked}");
        }
    }

    #[test]
    fn letters_change_under_their_marks() {
        let marks = marks("ſ");
        let upper = |text: &str| marks.recased(text, str::to_uppercase);
        assert_eq!(marks.show(&upper(&marks.mark("inst ß"))), "INST SS");
        assert!(!upper(&marks.mark("ſ/inst")).contains(['S', 'I']));
        assert_eq!(upper(&format!("a{}", marks.mark("/inst"))).chars().next(), Some('A'));
        assert_eq!(upper("abc"), "ABC");
    }

    #[test]
    fn letters_stay_marked_through_two_changes() {
        let marks = marks("ẞ");
        let lower = marks.recased(&marks.mark("ẞ"), str::to_lowercase);
        assert_eq!(marks.show(&lower), "ß");
        let upper = marks.recased(&lower, str::to_uppercase);
        assert_eq!(marks.show(&upper), "SS");
        assert!(!upper.contains('S'));
    }

    #[test]
    fn control_tokens_are_found_across_parts_until_the_time_is_over() {
        let folder = workspace_root().join("golden/tokenizer/model");
        let tokenizer = Tokenizer::open(&folder).unwrap();
        let marks = marks("");
        let end = Instant::now() + std::time::Duration::from_secs(60);
        for n in SEARCHED_BYTES - 4..SEARCHED_BYTES + 2 {
            let text = format!("{}</s>{}", "é".repeat(n / 2), "-".repeat(n));
            let ids = marks.encode(&tokenizer, &text, end).unwrap();
            assert_eq!(ids.iter().filter(|&&id| tokenizer.is_control(id)).count(), 1, "{n}");
            assert!(ids.contains(&tokenizer.eos_id()), "{n}");
        }
        let late = Instant::now();
        std::thread::sleep(std::time::Duration::from_millis(1));
        let error = marks.encode(&tokenizer, "a", late).unwrap_err().to_string();
        assert!(error.ends_with("rendering takes too long"), "{error}");
    }

    #[test]
    fn patterns_are_found_under_marks() {
        let marks = marks("");
        let text = format!("<s>é{}é<s>", marks.mark("<s>x"));
        let places = |text: &str, pattern: &str, limit| {
            let mut places = Vec::new();
            let each = |place| {
                places.push(place);
                Ok::<_, Error>(())
            };
            marks.find(text, pattern, limit, each).unwrap();
            places
        };
        let found: Vec<&str> =
            places(&text, "<s>", 9).into_iter().map(|place| &text[place]).collect();
        assert_eq!(found, ["<s>", &marks.mark("<s>"), "<s>"]);
        assert_eq!(places(&text, "<s>", 1).len(), 1);
        assert_eq!(places("aa", "", 9), [0..0, 1..1, 2..2]);
        assert_eq!(places(&marks.mark("s"), "", 9), [0..0, 4..4]);
        assert_eq!(places("ab", "c", 9), []);
    }
}
