//! `POST /v1/chat/completions`: the request, the whole answer, the pieces of a streamed one.

use serde::Serialize;
use serde_json::Value;

use crate::fields::{Fields, shown, wrong_type};
use crate::sampling::{
    SamplingFields, StreamFields, check_scores, is_empty_array, is_false, read_model, read_stream,
    refuse_unsupported,
};
use crate::{
    ChatLogprobs, FinishReason, MAX_CONTENT_PARTS, MAX_MESSAGES, MAX_TOP_LOGPROBS, RequestError,
    TokenLogprob, Usage,
};

/// Who speaks in a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ChatRole {
    /// Instructions; the role `developer` is read as this one.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
}

/// One message of a conversation; text parts are joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatMessage {
    /// Who speaks.
    pub role: ChatRole,
    /// What is said.
    pub content: String,
}

/// A checked chat request.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatRequest {
    /// The name of the model.
    pub model: String,
    /// The conversation, at least one message.
    pub messages: Vec<ChatMessage>,
    /// How to draw the answer.
    pub sampling: SamplingFields,
    /// How many likeliest tokens are named beside each token; none when tokens are not scored.
    pub logprobs: Option<usize>,
    /// Whether the answer comes in pieces.
    pub stream: StreamFields,
    /// Paths of fields that no known schema has.
    pub ignored_fields: Vec<String>,
}

impl ChatRequest {
    /// Parses and checks a request body.
    ///
    /// # Errors
    ///
    /// [`RequestError`] names the first field that is missing, of the wrong type, out of range or not supported.
    pub fn parse(body: &[u8]) -> Result<Self, RequestError> {
        let mut fields = Fields::parse(body)?;
        let mut ignored_fields = Vec::new();
        let model = read_model(&mut fields)?;
        let messages = read_messages(&mut fields, &mut ignored_fields)?;
        let limits = ["max_completion_tokens", "max_tokens"];
        let sampling = SamplingFields::read(&mut fields, &limits, &mut ignored_fields)?;
        let logprobs = read_logprobs(&mut fields)?;
        check_scores(&fields, sampling.n_answers, logprobs)?;
        let stream = read_stream(&mut fields, &mut ignored_fields)?;
        refuse_unsupported(&mut fields)?;
        refuse_unsupported_in_chat(&mut fields)?;
        fields.ignored(&mut ignored_fields);
        Ok(Self { model, messages, sampling, logprobs, stream, ignored_fields })
    }
}

/// `logprobs`, and how many `top_logprobs` go with it.
fn read_logprobs(fields: &mut Fields) -> Result<Option<usize>, RequestError> {
    let is_wanted = fields.flag("logprobs")?.unwrap_or(false);
    let n_top = fields.integer("top_logprobs", 0..=MAX_TOP_LOGPROBS as i64)?.unwrap_or(0);
    if n_top > 0 && !is_wanted {
        let (param, expected) = (fields.path("logprobs"), "true beside top_logprobs".to_owned());
        return Err(RequestError::OutOfRange { param, expected, got: "false".to_owned() });
    }
    Ok(is_wanted.then(|| usize::try_from(n_top).unwrap_or(MAX_TOP_LOGPROBS)))
}

fn read_messages(
    fields: &mut Fields,
    ignored: &mut Vec<String>,
) -> Result<Vec<ChatMessage>, RequestError> {
    let param = fields.path("messages");
    let entries = match fields.take("messages") {
        None => return Err(RequestError::Missing { param, expected: "an array of messages" }),
        Some(Value::Array(entries)) => entries,
        Some(other) => return Err(wrong_type(param, "an array of messages", &other)),
    };
    if entries.is_empty() {
        let expected = "at least one message".to_owned();
        return Err(RequestError::OutOfRange { param, expected, got: "empty".to_owned() });
    }
    if entries.len() > MAX_MESSAGES {
        let (limit, got) = (MAX_MESSAGES, entries.len());
        return Err(RequestError::TooLong { param, unit: "entries", limit, got });
    }
    let mut messages = Vec::with_capacity(entries.len());
    for (i, entry) in entries.into_iter().enumerate() {
        messages.push(read_message(format!("{param}[{i}]"), entry, ignored)?);
    }
    Ok(messages)
}

fn read_message(
    path: String,
    entry: Value,
    ignored: &mut Vec<String>,
) -> Result<ChatMessage, RequestError> {
    let mut fields = Fields::nested(path, entry)?;
    let param = fields.path("role");
    let role = match fields.string("role")?.as_deref() {
        Some("system" | "developer") => ChatRole::System,
        Some("user") => ChatRole::User,
        Some("assistant") => ChatRole::Assistant,
        None => return Err(RequestError::Missing { param, expected: "a role" }),
        Some(other) => {
            let got = shown(&Value::from(other));
            let accepted = "roles are system, developer, user and assistant";
            return Err(RequestError::Unsupported { param, got, accepted });
        }
    };
    let content = read_content(&mut fields, ignored)?;
    let accepted = "tool calls are not available";
    fields.refuse_unless("tool_calls", is_empty_array, accepted)?;
    fields.refuse_unless("function_call", |_| false, accepted)?;
    fields.refuse_unless("audio", |_| false, "only text is available")?;
    fields.refuse_unless("prefix", is_false, "only false is accepted")?;
    fields.refuse_unless("refusal", |_| false, "only null is accepted")?;
    // Clients that echo an answer back send its annotations, which are never part of a prompt.
    fields.accept(&["annotations"]);
    fields.ignored(ignored);
    Ok(ChatMessage { role, content })
}

/// A string, or an array of text parts.
fn read_content(fields: &mut Fields, ignored: &mut Vec<String>) -> Result<String, RequestError> {
    let param = fields.path("content");
    let parts = match fields.take("content") {
        None => return Err(RequestError::Missing { param, expected: "a text" }),
        Some(Value::String(text)) => return Ok(text),
        Some(Value::Array(parts)) => parts,
        Some(other) => return Err(wrong_type(param, "a string or an array of parts", &other)),
    };
    if parts.len() > MAX_CONTENT_PARTS {
        let (limit, got) = (MAX_CONTENT_PARTS, parts.len());
        return Err(RequestError::TooLong { param, unit: "entries", limit, got });
    }
    let mut content = String::new();
    for (i, part) in parts.into_iter().enumerate() {
        let mut part = Fields::nested(format!("{param}[{i}]"), part)?;
        part.refuse_unless("type", |kind| kind == "text", "only parts of type text are accepted")?;
        let text_path = part.path("text");
        match part.string("text")? {
            Some(text) => content.push_str(&text),
            None => return Err(RequestError::Missing { param: text_path, expected: "a text" }),
        }
        part.ignored(ignored);
    }
    Ok(content)
}

fn refuse_unsupported_in_chat(fields: &mut Fields) -> Result<(), RequestError> {
    let no_tools = "tool calls are not available";
    let no_choice = |value: &Value| value == "none" || value == "auto";
    let only_text = |value: &Value| *value == serde_json::json!(["text"]);
    fields.refuse_unless("tools", is_empty_array, no_tools)?;
    fields.refuse_unless("functions", is_empty_array, no_tools)?;
    fields.refuse_unless("tool_choice", no_choice, no_tools)?;
    fields.refuse_unless("function_call", no_choice, no_tools)?;
    fields.refuse_unless("modalities", only_text, "only [\"text\"] is accepted")?;
    fields.refuse_unless("safe_prompt", is_false, "only false is accepted")?;
    for name in ["audio", "prediction", "web_search_options", "guardrails", "prompt_mode"] {
        fields.refuse_unless(name, |_| false, "leave it out")?;
    }
    // The models served have one depth of thought and one length of answer.
    fields.refuse_unless("reasoning_effort", |value| value == "none", "only none is accepted")?;
    fields.refuse_unless("verbosity", |value| value == "medium", "only medium is accepted")?;
    Ok(())
}

/// The whole answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChatCompletion {
    /// Unique name of this answer.
    pub id: String,
    /// Always `chat.completion`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// The model that answered.
    pub model: String,
    /// The answers, as many as were asked for.
    pub choices: Vec<ChatChoice>,
    /// Token counts.
    pub usage: Usage,
}

/// One answer of a [`ChatCompletion`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChatChoice {
    /// Position among the choices.
    pub index: usize,
    /// What the model said.
    pub message: ChatReply,
    /// How likely its tokens were, where that was asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// What the model said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChatReply {
    /// Always `assistant`.
    pub role: ChatRole,
    /// The text.
    pub content: String,
    /// Always null.
    pub refusal: Option<()>,
}

impl ChatCompletion {
    /// A whole answer.
    #[must_use]
    pub fn new(
        id: String,
        created: u64,
        model: String,
        choices: Vec<ChatChoice>,
        usage: Usage,
    ) -> Self {
        Self { id, object: "chat.completion", created, model, choices, usage }
    }
}

impl ChatChoice {
    /// The choice at position `index`.
    #[must_use]
    pub fn new(
        index: usize,
        content: String,
        logprobs: Option<ChatLogprobs>,
        finish_reason: FinishReason,
    ) -> Self {
        let message = ChatReply { role: ChatRole::Assistant, content, refusal: None };
        Self { index, message, logprobs, finish_reason }
    }
}

/// One event of a streamed answer. Order: the role, the text in pieces, the reason it ended, the usage when asked.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChatChunk {
    /// The same in all events of an answer.
    pub id: String,
    /// Always `chat.completion.chunk`.
    pub object: &'static str,
    /// Seconds since 1970, the same in all events.
    pub created: u64,
    /// The model that answers.
    pub model: String,
    /// One, or none in the event with the usage.
    pub choices: Vec<ChatChunkChoice>,
    /// Token counts, in the last event when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// The part of a [`ChatChunk`] that belongs to one choice.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChatChunkChoice {
    /// Position among the choices.
    pub index: usize,
    /// What is new.
    pub delta: ChatDelta,
    /// How likely its tokens were, where that was asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// Set in the last event of the choice.
    pub finish_reason: Option<FinishReason>,
}

/// What is new in a [`ChatChunkChoice`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
pub struct ChatDelta {
    /// Set in the first event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<ChatRole>,
    /// More text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

impl ChatChunk {
    /// An event without choices, to be completed by the methods below.
    #[must_use]
    pub fn new(id: String, created: u64, model: String) -> Self {
        let object = "chat.completion.chunk";
        Self { id, object, created, model, choices: Vec::new(), usage: None }
    }

    /// The first event of the choice at position `index`: who speaks, and an empty text.
    #[must_use]
    pub fn role(&self, index: usize) -> Self {
        let role = Some(ChatRole::Assistant);
        self.with_choice(index, ChatDelta { role, content: Some(String::new()) }, None)
    }

    /// More text, and the token that came with it where tokens are scored.
    #[must_use]
    pub fn content(&self, index: usize, text: String, logprob: Option<TokenLogprob>) -> Self {
        let delta = ChatDelta { role: None, content: Some(text) };
        let mut chunk = self.with_choice(index, delta, None);
        chunk.choices[0].logprobs =
            logprob.map(|logprob| ChatLogprobs { content: vec![logprob], refusal: None });
        chunk
    }

    /// The end of the text.
    #[must_use]
    pub fn finish(&self, index: usize, reason: FinishReason) -> Self {
        self.with_choice(index, ChatDelta::default(), Some(reason))
    }

    /// The counts, after the end.
    #[must_use]
    pub fn usage(&self, usage: Usage) -> Self {
        Self { usage: Some(usage), ..self.clone() }
    }

    fn with_choice(
        &self,
        index: usize,
        delta: ChatDelta,
        finish_reason: Option<FinishReason>,
    ) -> Self {
        let choice = ChatChunkChoice { index, delta, logprobs: None, finish_reason };
        Self { choices: vec![choice], ..self.clone() }
    }
}
