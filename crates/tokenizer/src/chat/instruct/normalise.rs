//! From the messages of a client to those of a template: neighbours of one role put together, JSON in one form.

use super::python_json;
use super::request::{Call, Chunk, Content, InstructRequest, RequestMessage};
use super::{InstructError, InstructVersion};

/// What stands between texts that are put together.
const JOIN: &str = "\n\n";

/// The messages of a template.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Normal {
    /// All system text, for the versions that put it into a user message.
    pub(super) system_prompt: Option<String>,
    pub(super) messages: Vec<NormalMessage>,
}

/// One message of a template.
#[derive(Debug, PartialEq)]
pub(super) enum NormalMessage {
    System(Vec<Chunk>),
    User(String),
    Assistant { content: Spoken, calls: Vec<Call>, is_prefix: bool },
    Tool { content: String, call_id: Option<String>, name: Option<String> },
}

/// What an assistant says: text alone, from which trailing spaces are cut, or text and thoughts as they are.
#[derive(Debug, PartialEq)]
pub(super) enum Spoken {
    Text(String),
    Chunks(Vec<Chunk>),
}

/// Brings a request into the form of a version.
pub(super) fn normalise(
    version: InstructVersion,
    request: &InstructRequest,
) -> Result<Normal, InstructError> {
    let mut normal = Normal::default();
    let has_own_system = version >= InstructVersion::V7;
    if !has_own_system {
        normal.system_prompt = system_prompt(request);
    }
    let mut call_ids: Vec<String> = Vec::new();
    let mut groups = request.messages.chunk_by(|a, b| a.role() == b.role());
    for group in &mut groups {
        match &group[0] {
            RequestMessage::System { .. } if has_own_system => {
                normal.messages.extend(group.iter().map(system_message));
            }
            RequestMessage::System { .. } => {}
            RequestMessage::User { .. } => {
                let text = only_text(join(contents(group)));
                normal.messages.push(NormalMessage::User(text));
            }
            RequestMessage::Assistant { .. } => {
                let message = assistant_message(group);
                if let NormalMessage::Assistant { calls, .. } = &message {
                    call_ids.extend(calls.iter().map(|call| call.id.clone()));
                }
                normal.messages.push(message);
            }
            RequestMessage::Tool { .. } => {
                normal.messages.extend(tool_messages(version, group, &call_ids));
                call_ids.clear();
            }
        }
    }
    let is_user = |message: &NormalMessage| matches!(message, NormalMessage::User(_));
    let needs_user = match normal.messages.first() {
        None => true,
        Some(first) => !has_own_system && !is_user(first),
    };
    if needs_user {
        normal.messages.insert(0, NormalMessage::User(String::new()));
    }
    Ok(normal)
}

fn system_prompt(request: &InstructRequest) -> Option<String> {
    let texts: Vec<String> = request
        .messages
        .iter()
        .filter_map(|message| match message {
            RequestMessage::System { content } if !content.is_empty() => {
                Some(only_text(join([content])))
            }
            _ => None,
        })
        .collect();
    (!texts.is_empty()).then(|| texts.join(JOIN))
}

fn contents(group: &[RequestMessage]) -> impl Iterator<Item = &Content> {
    group.iter().filter_map(|message| match message {
        RequestMessage::System { content }
        | RequestMessage::User { content }
        | RequestMessage::Tool { content, .. } => Some(content),
        RequestMessage::Assistant { content, .. } => content.as_ref(),
    })
}

/// Puts texts together, within a message and between messages; thoughts stay apart. Empty texts are left out.
fn join<'a>(contents: impl IntoIterator<Item = &'a Content>) -> Vec<Chunk> {
    let mut joined = Vec::new();
    for content in contents {
        match content {
            Content::Text(text) => push_text(&mut joined, text),
            Content::Chunks(chunks) => {
                for chunk in chunks {
                    match chunk {
                        Chunk::Text { text } => push_text(&mut joined, text),
                        thought => joined.push(thought.clone()),
                    }
                }
            }
        }
    }
    joined
}

fn push_text(joined: &mut Vec<Chunk>, part: &str) {
    match joined.last_mut() {
        _ if part.is_empty() => {}
        Some(Chunk::Text { text }) => {
            text.push_str(JOIN);
            text.push_str(part);
        }
        _ => joined.push(Chunk::Text { text: part.to_owned() }),
    }
}

fn only_text(chunks: Vec<Chunk>) -> String {
    let text = |chunk| match chunk {
        Chunk::Text { text } => text,
        Chunk::Thinking { .. } => unreachable!("`check` let no thoughts through"),
    };
    chunks.into_iter().map(text).collect()
}

fn system_message(message: &RequestMessage) -> NormalMessage {
    NormalMessage::System(join(contents(std::slice::from_ref(message))))
}

fn assistant_message(group: &[RequestMessage]) -> NormalMessage {
    let mut calls = Vec::new();
    let mut is_prefix = false;
    for message in group {
        if let RequestMessage::Assistant { tool_calls, prefix, .. } = message {
            calls.extend(tool_calls.iter().flatten().cloned().map(normal_call));
            is_prefix |= prefix;
        }
    }
    let chunks = join(contents(group));
    let has_thoughts = chunks.iter().any(|chunk| matches!(chunk, Chunk::Thinking { .. }));
    let content =
        if has_thoughts { Spoken::Chunks(chunks) } else { Spoken::Text(only_text(chunks)) };
    NormalMessage::Assistant { content, calls, is_prefix }
}

fn normal_call(mut call: Call) -> Call {
    call.function.arguments = normal_json(&call.function.arguments);
    call
}

/// JSON in the one form, what is no JSON as it is, nothing as an empty object.
fn normal_json(text: &str) -> String {
    if text.is_empty() {
        return "{}".to_owned();
    }
    python_json::parse(text).map_or_else(|| text.to_owned(), |json| json.dump())
}

fn tool_messages(
    version: InstructVersion,
    group: &[RequestMessage],
    call_ids: &[String],
) -> Vec<NormalMessage> {
    let mut messages: Vec<(usize, NormalMessage)> = Vec::new();
    for message in group {
        let RequestMessage::Tool { content, tool_call_id, name } = message else { continue };
        let text = only_text(join([content]));
        let content = if version < InstructVersion::V7 { normal_json(&text) } else { text };
        let id = tool_call_id.as_deref().unwrap_or("null");
        let place = call_ids.iter().rposition(|call_id| call_id == id).unwrap_or(usize::MAX);
        let (call_id, name) = (tool_call_id.clone(), name.clone());
        messages.push((place, NormalMessage::Tool { content, call_id, name }));
    }
    if version >= InstructVersion::V11 {
        // Stable: results of one call keep their order.
        messages.sort_by_key(|(place, _)| *place);
    }
    messages.into_iter().map(|(_, message)| message).collect()
}
