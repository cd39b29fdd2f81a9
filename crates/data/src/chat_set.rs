//! General conversations that teach a small model to chat: short, direct, in the user's language.

pub(crate) mod draw;
mod json_lines;

pub use json_lines::write_jsonl;

use crate::Language;
use serde::ser::{SerializeSeq, SerializeStruct};
use serde::{Serialize, Serializer};

/// One question of the user and the assistant's reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// What the user writes.
    pub question: String,
    /// What the assistant replies.
    pub answer: String,
}

/// A conversation of one or more turns. As JSON it is `{"messages": [{"role", "content"}, ...]}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dialogue {
    /// The language it is held in.
    pub language: Language,
    /// What it is about, a short lower-case word.
    pub topic: &'static str,
    /// Instructions that precede the first question.
    pub system: Option<String>,
    /// Questions and replies, oldest first; at least one.
    pub turns: Vec<Turn>,
}

impl Dialogue {
    /// One question and one answer, without instructions.
    #[must_use]
    pub fn single(
        language: Language,
        topic: &'static str,
        question: String,
        answer: String,
    ) -> Self {
        Self { language, topic, system: None, turns: vec![Turn { question, answer }] }
    }
}

#[derive(Serialize)]
struct JsonMessage<'a> {
    role: &'static str,
    content: &'a str,
}

impl Serialize for Dialogue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_struct("Dialogue", 1)?;
        object.serialize_field("messages", &JsonMessages(self))?;
        object.end()
    }
}

struct JsonMessages<'a>(&'a Dialogue);

impl Serialize for JsonMessages<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut messages = serializer.serialize_seq(None)?;
        if let Some(content) = &self.0.system {
            messages.serialize_element(&JsonMessage { role: "system", content })?;
        }
        for turn in &self.0.turns {
            messages.serialize_element(&JsonMessage { role: "user", content: &turn.question })?;
            messages
                .serialize_element(&JsonMessage { role: "assistant", content: &turn.answer })?;
        }
        messages.end()
    }
}
