//! A request as clients write it.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::python_json::{self, Json};
use crate::chat::conversation::{Conversation, Role};
use crate::chat::template::Ending;

/// A conversation and the tools that may be called in it.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstructRequest {
    /// The messages, in order.
    pub messages: Vec<RequestMessage>,
    /// The tools.
    #[serde(default)]
    pub tools: Vec<Tool>,
}

impl InstructRequest {
    /// Complete if an answer that is not to be continued stands last.
    pub fn ending(&self) -> Ending {
        match self.messages.last() {
            Some(RequestMessage::Assistant { prefix: false, .. }) => Ending::Complete,
            _ => Ending::AwaitAnswer,
        }
    }
}

/// One message.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(tag = "role", rename_all = "lowercase", deny_unknown_fields)]
pub enum RequestMessage {
    /// Instructions for the whole conversation.
    System {
        /// What is said.
        content: Content,
    },
    /// The person.
    User {
        /// What is said.
        content: Content,
    },
    /// The model.
    Assistant {
        /// What is said, if anything.
        #[serde(default)]
        content: Option<Content>,
        /// What is called, if anything.
        #[serde(default)]
        tool_calls: Option<Vec<Call>>,
        /// Whether the answer is only begun, and is to be continued.
        #[serde(default)]
        prefix: bool,
    },
    /// The result of a call.
    Tool {
        /// The result.
        content: Content,
        /// The call that it answers.
        #[serde(default)]
        tool_call_id: Option<String>,
        /// The function that was called.
        #[serde(default)]
        name: Option<String>,
    },
}

impl From<&Conversation> for InstructRequest {
    fn from(conversation: &Conversation) -> InstructRequest {
        let messages = conversation.messages.iter().map(|message| {
            let content = Content::Text(message.content.clone());
            match message.role {
                Role::System => RequestMessage::System { content },
                Role::User => RequestMessage::User { content },
                Role::Assistant => {
                    let content = Some(content);
                    RequestMessage::Assistant { content, tool_calls: None, prefix: false }
                }
            }
        });
        InstructRequest { messages: messages.collect(), tools: Vec::new() }
    }
}

impl RequestMessage {
    /// The role by name.
    pub fn role(&self) -> &'static str {
        match self {
            RequestMessage::System { .. } => "system",
            RequestMessage::User { .. } => "user",
            RequestMessage::Assistant { .. } => "assistant",
            RequestMessage::Tool { .. } => "tool",
        }
    }
}

/// What a message says.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(untagged)]
pub enum Content {
    /// One text.
    Text(String),
    /// Text and thoughts.
    Chunks(Vec<Chunk>),
}

/// A part of what a message says.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum Chunk {
    /// Text.
    Text {
        /// The text.
        text: String,
    },
    /// What the model thought.
    Thinking {
        /// The thought.
        thinking: String,
        /// Whether it has ended.
        #[serde(default = "yes")]
        closed: bool,
    },
}

fn yes() -> bool {
    true
}

/// A call of a function.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// The call's id; `null` stands for none.
    #[serde(default = "no_id")]
    pub id: String,
    /// Always `function`.
    #[serde(default, rename = "type")]
    _kind: FunctionKind,
    /// What is called.
    pub function: CalledFunction,
}

fn no_id() -> String {
    "null".to_owned()
}

#[derive(Clone, Copy, PartialEq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum FunctionKind {
    #[default]
    Function,
}

/// A function and what it is called with.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CalledFunction {
    /// The function.
    pub name: String,
    /// JSON, as text.
    pub arguments: String,
}

/// A tool that may be called.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    #[serde(default, rename = "type")]
    _kind: FunctionKind,
    /// The function.
    pub function: Function,
}

/// What is known of a function.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// What it does.
    #[serde(default)]
    pub description: String,
    /// The schema of its parameters, members in their order.
    #[serde(deserialize_with = "ordered")]
    pub parameters: Json,
    /// Whether calls must keep to the schema; not shown to the model.
    #[serde(default)]
    pub strict: bool,
}

fn ordered<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Json, D::Error> {
    let raw = Box::<RawValue>::deserialize(deserializer)?;
    let json = python_json::parse(raw.get());
    json.ok_or_else(|| D::Error::custom("expected JSON of at most 128 levels"))
}

impl Tool {
    /// The form in which the model reads it.
    pub(super) fn json(&self) -> Json {
        let text = |text: &str| Json::Text(text.to_owned());
        let function = vec![
            ("name".to_owned(), text(&self.function.name)),
            ("description".to_owned(), text(&self.function.description)),
            ("parameters".to_owned(), self.function.parameters.clone()),
        ];
        Json::Object(vec![
            ("type".to_owned(), text("function")),
            ("function".to_owned(), Json::Object(function)),
        ])
    }
}
