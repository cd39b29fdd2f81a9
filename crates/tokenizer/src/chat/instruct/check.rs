//! Which requests a version knows.

use super::request::{Call, Chunk, Content, InstructRequest, RequestMessage};
use super::{Ending, InstructError, InstructVersion};

/// Checks the order of messages, names, ids and the parts of each message.
pub(super) fn check(
    version: InstructVersion,
    request: &InstructRequest,
    ending: Ending,
) -> Result<(), InstructError> {
    check_order(request, ending)?;
    if version >= InstructVersion::V11 {
        check_results_by_id(request)?;
    } else {
        check_results_by_count(request)?;
    }
    for (message_idx, message) in request.messages.iter().enumerate() {
        let is_last = message_idx + 1 == request.messages.len();
        check_message(version, message, is_last).map_err(|problem| match problem {
            Problem::Name(got) => InstructError::FunctionName { got },
            Problem::Message(problem) => InstructError::Message { message_idx, problem, version },
        })?;
    }
    for tool in &request.tools {
        check_name(&tool.function.name).map_err(|got| InstructError::FunctionName { got })?;
    }
    Ok(())
}

enum Problem {
    Name(String),
    Message(&'static str),
}

fn check_order(request: &InstructRequest, ending: Ending) -> Result<(), InstructError> {
    let messages = &request.messages;
    let Some(last) = messages.last() else { return Err(InstructError::Empty) };
    let wrong = |message_idx: usize, expected| {
        let got = messages[message_idx].role();
        Err(InstructError::Role { message_idx, got, expected })
    };
    if messages.len() == 1 && !matches!(last.role(), "user" | "system") {
        return wrong(0, "user or system in a conversation of one message");
    }
    match (ending, last) {
        (Ending::AwaitAnswer, RequestMessage::Assistant { prefix: false, .. }) => {
            return wrong(messages.len() - 1, "user, tool, or an assistant prefix last");
        }
        (Ending::Complete, RequestMessage::Assistant { prefix: false, .. })
        | (Ending::AwaitAnswer, _) => {}
        (Ending::Complete, _) => return wrong(messages.len() - 1, "a whole answer last"),
    }
    for (i, pair) in messages.windows(2).enumerate() {
        let allowed = match (pair[0].role(), pair[1].role()) {
            ("system" | "user", next) => matches!(next, "system" | "user" | "assistant"),
            (_, next) => matches!(next, "assistant" | "user" | "tool"),
        };
        if !allowed {
            return wrong(i + 1, "a role that may follow the one before it");
        }
    }
    Ok(())
}

fn calls(message: &RequestMessage) -> &[Call] {
    match message {
        RequestMessage::Assistant { tool_calls: Some(calls), .. } => calls,
        _ => &[],
    }
}

/// As many results as calls before the next answer. The first message is not looked at.
fn check_results_by_count(request: &InstructRequest) -> Result<(), InstructError> {
    let mut n_open = 0_i64;
    for (message_idx, message) in request.messages.iter().enumerate().skip(1) {
        match message {
            RequestMessage::Tool { .. } => n_open -= 1,
            RequestMessage::Assistant { .. } if n_open != 0 => {
                let problem = "the calls before it and their results differ in number";
                return Err(InstructError::Results { message_idx, problem });
            }
            // An answer without a list of calls leaves the count as it is, which is zero here.
            RequestMessage::Assistant { .. } => n_open = calls(message).len() as i64,
            _ => {}
        }
    }
    Ok(())
}

/// Each result answers a call of the answer before it, once.
fn check_results_by_id(request: &InstructRequest) -> Result<(), InstructError> {
    let mut expected: Vec<&str> = Vec::new();
    let mut observed: Vec<&str> = Vec::new();
    for (message_idx, message) in request.messages.iter().enumerate().skip(1) {
        let wrong = |problem| Err(InstructError::Results { message_idx, problem });
        match message {
            RequestMessage::Tool { tool_call_id, .. } => {
                let id = tool_call_id.as_deref().unwrap_or_default();
                if observed.contains(&id) {
                    return wrong("its call has a result already");
                }
                if tool_call_id.is_none() || !expected.contains(&id) {
                    return wrong("it answers no call of the answer before it");
                }
                observed.push(id);
            }
            RequestMessage::Assistant { .. } => {
                if expected.len() != observed.len() {
                    return wrong("the calls before it and their results differ in number");
                }
                expected.clear();
                observed.clear();
                for call in calls(message) {
                    if expected.contains(&call.id.as_str()) {
                        return wrong("two calls have the same id");
                    }
                    expected.push(&call.id);
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn check_message(
    version: InstructVersion,
    message: &RequestMessage,
    is_last: bool,
) -> Result<(), Problem> {
    let thinks = |content: &Content| match content {
        Content::Text(_) => false,
        Content::Chunks(chunks) => {
            chunks.iter().any(|chunk| matches!(chunk, Chunk::Thinking { .. }))
        }
    };
    match message {
        RequestMessage::User { content } if thinks(content) => {
            Err(Problem::Message("has thoughts, which only the assistant has"))
        }
        RequestMessage::System { content } if thinks(content) && version < InstructVersion::V13 => {
            Err(Problem::Message("has thoughts, which this version does not know"))
        }
        RequestMessage::Tool { content, .. } if thinks(content) => {
            Err(Problem::Message("has thoughts, which only the assistant has"))
        }
        RequestMessage::Tool { tool_call_id, name, .. } => {
            if let Some(name) = name {
                check_name(name).map_err(Problem::Name)?;
            }
            check_result_id(version, tool_call_id.as_deref())
        }
        RequestMessage::Assistant { content, tool_calls, prefix } => {
            if content.as_ref().is_some_and(thinks) && version < InstructVersion::V13 {
                return Err(Problem::Message("has thoughts, which this version does not know"));
            }
            let has_content = content.as_ref().is_some_and(|content| !content.is_empty());
            let has_calls = tool_calls.as_ref().is_some_and(|calls| !calls.is_empty());
            if version < InstructVersion::V7 && has_content == has_calls {
                return Err(Problem::Message("needs either content or calls"));
            }
            for call in tool_calls.iter().flatten() {
                check_call_id(version, &call.id)?;
                check_name(&call.function.name).map_err(Problem::Name)?;
            }
            if *prefix && !is_last {
                return Err(Problem::Message("is a prefix, which can only stand last"));
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

impl Content {
    /// An empty text, or a list without a chunk.
    pub(super) fn is_empty(&self) -> bool {
        match self {
            Content::Text(text) => text.is_empty(),
            Content::Chunks(chunks) => chunks.is_empty(),
        }
    }
}

fn check_name(name: &str) -> Result<(), String> {
    let is_right = (1..=64).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
    if is_right { Ok(()) } else { Err(name.chars().take(80).collect()) }
}

fn is_short_id(id: &str) -> bool {
    id.len() == 9 && id.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

fn check_call_id(version: InstructVersion, id: &str) -> Result<(), Problem> {
    let is_right = match version {
        InstructVersion::V1 | InstructVersion::V2 => true,
        InstructVersion::V3 | InstructVersion::V7 | InstructVersion::V11 => is_short_id(id),
        InstructVersion::V13 => !id.is_empty() && id != "null",
    };
    if is_right {
        return Ok(());
    }
    Err(Problem::Message("has a call without an id of its own, of 9 letters and digits before v13"))
}

fn check_result_id(version: InstructVersion, id: Option<&str>) -> Result<(), Problem> {
    let is_right = match version {
        InstructVersion::V1 | InstructVersion::V2 => true,
        InstructVersion::V3 | InstructVersion::V7 | InstructVersion::V11 => {
            id.is_some_and(is_short_id)
        }
        InstructVersion::V13 => id.is_some_and(|id| !id.is_empty() && id != "null"),
    };
    if is_right {
        return Ok(());
    }
    Err(Problem::Message("has no id of a call, of 9 letters and digits before v13"))
}
