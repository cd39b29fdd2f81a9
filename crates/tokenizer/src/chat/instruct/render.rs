//! The pieces of a normalised request.

use super::normalise::{Normal, NormalMessage, Spoken};
use super::python_json::{self, Json};
use super::request::{Call, Chunk, InstructRequest};
use super::{InstructError, InstructVersion, Piece, PieceContent};

/// Writes a request down.
pub(super) fn render(
    version: InstructVersion,
    normal: &Normal,
    request: &InstructRequest,
) -> Result<Vec<Piece>, InstructError> {
    let is_user = |message: &NormalMessage| matches!(message, NormalMessage::User(_));
    let first_user = normal.messages.iter().position(is_user);
    let last_user = normal.messages.iter().rposition(is_user);
    let mut writer = Writer { version, pieces: Vec::new() };
    writer.control("<s>", false);
    for (message_idx, message) in normal.messages.iter().enumerate() {
        // Before version 3 calls and results of earlier turns are left out.
        let is_past = last_user.is_some_and(|last| message_idx < last);
        match message {
            NormalMessage::System(chunks) => writer.system(chunks),
            NormalMessage::User(text) => {
                let [is_first, is_last] = [first_user, last_user].map(|at| at == Some(message_idx));
                writer.user(text, [is_first, is_last], normal.system_prompt.as_deref(), request);
            }
            NormalMessage::Assistant { content, calls, is_prefix } => {
                let written = writer.assistant(content, calls, *is_prefix, is_past);
                written.map_err(|problem| InstructError::Message {
                    message_idx,
                    problem,
                    version,
                })?;
            }
            NormalMessage::Tool { content, call_id, name } => {
                if version == InstructVersion::V1 {
                    let problem = "is a result of a tool, which this version does not know";
                    return Err(InstructError::Message { message_idx, problem, version });
                }
                writer.tool(content, call_id.as_deref(), name.as_deref(), is_past);
            }
        }
    }
    if version == InstructVersion::V2 {
        one_result_for_each_answer(&normal.messages, last_user)?;
    }
    Ok(writer.pieces)
}

/// Version 2 has room for one result after an answer.
fn one_result_for_each_answer(
    messages: &[NormalMessage],
    last_user: Option<usize>,
) -> Result<(), InstructError> {
    let (mut has_calls, mut n_results) = (false, 0);
    for (message_idx, message) in messages.iter().enumerate().skip(last_user.unwrap_or(0)) {
        match message {
            NormalMessage::Assistant { calls, .. } => {
                (has_calls, n_results) = (!calls.is_empty(), 0)
            }
            NormalMessage::Tool { .. } if has_calls => {
                n_results += 1;
                if n_results > 1 {
                    let problem =
                        "is a second result of one answer, which this version does not know";
                    let version = InstructVersion::V2;
                    return Err(InstructError::Message { message_idx, problem, version });
                }
            }
            NormalMessage::Tool { .. } => {}
            _ => (has_calls, n_results) = (false, 0),
        }
    }
    Ok(())
}

struct Writer {
    version: InstructVersion,
    pieces: Vec<Piece>,
}

impl Writer {
    fn control(&mut self, name: &'static str, is_trained: bool) {
        self.pieces.push(Piece { content: PieceContent::Control(name), is_trained });
    }

    /// Encoding nothing gives nothing.
    fn text(&mut self, text: &str, is_trained: bool) {
        if !text.is_empty() {
            self.pieces.push(Piece { content: PieceContent::Text(text.to_owned()), is_trained });
        }
    }

    fn chunks(&mut self, chunks: &[Chunk], is_trained: bool) {
        for chunk in chunks {
            match chunk {
                Chunk::Text { text } => self.text(text, is_trained),
                Chunk::Thinking { thinking, closed } => {
                    self.control("[THINK]", is_trained);
                    self.text(thinking, is_trained);
                    if *closed {
                        self.control("[/THINK]", is_trained);
                    }
                }
            }
        }
    }

    fn system(&mut self, chunks: &[Chunk]) {
        self.control("[SYSTEM_PROMPT]", false);
        self.chunks(chunks, false);
        self.control("[/SYSTEM_PROMPT]", false);
    }

    fn user(
        &mut self,
        text: &str,
        [is_first, is_last]: [bool; 2],
        system_prompt: Option<&str>,
        request: &InstructRequest,
    ) {
        let takes_system = if self.version == InstructVersion::V1 { is_first } else { is_last };
        let text = match system_prompt.filter(|prompt| takes_system && !prompt.is_empty()) {
            Some(prompt) => format!("{prompt}\n\n{text}"),
            None => text.to_owned(),
        };
        if self.version == InstructVersion::V1 {
            return self.text(&format!("[INST] {text} [/INST]"), false);
        }
        let takes_tools = if self.version >= InstructVersion::V13 { is_first } else { is_last };
        if takes_tools && !request.tools.is_empty() {
            let tools = Json::Array(request.tools.iter().map(|tool| tool.json()).collect());
            self.control("[AVAILABLE_TOOLS]", false);
            self.text(&tools.dump(), false);
            self.control("[/AVAILABLE_TOOLS]", false);
        }
        self.control("[INST]", false);
        self.text(&text, false);
        self.control("[/INST]", false);
    }

    fn assistant(
        &mut self,
        content: &Spoken,
        calls: &[Call],
        is_prefix: bool,
        is_past: bool,
    ) -> Result<(), &'static str> {
        let has_content = match content {
            Spoken::Text(text) => !text.is_empty(),
            Spoken::Chunks(chunks) => !chunks.is_empty(),
        };
        if !has_content && calls.is_empty() {
            return Err("says nothing and calls nothing");
        }
        if has_content && !calls.is_empty() && self.version < InstructVersion::V7 {
            return Err("has both content and calls, which this version does not know");
        }
        if self.version == InstructVersion::V1 && !calls.is_empty() {
            return Err("has calls, which this version does not know");
        }
        if self.version == InstructVersion::V2 && !calls.is_empty() && is_past {
            return Ok(());
        }
        match content {
            // Version 1 keeps the spaces.
            Spoken::Text(text) if self.version == InstructVersion::V1 => self.text(text, true),
            Spoken::Text(text) => self.text(text.trim_end_matches(' '), true),
            Spoken::Chunks(chunks) => self.chunks(chunks, true),
        }
        if !calls.is_empty() {
            self.calls(calls);
        }
        if !is_prefix {
            self.control("</s>", true);
        }
        Ok(())
    }

    fn calls(&mut self, calls: &[Call]) {
        if self.version < InstructVersion::V11 {
            let list = calls.iter().map(|call| call_json(call, self.version)).collect();
            self.control("[TOOL_CALLS]", true);
            return self.text(&Json::Array(list).dump(), true);
        }
        for call in calls {
            self.control("[TOOL_CALLS]", true);
            self.text(&call.function.name, true);
            if self.version == InstructVersion::V11 {
                self.control("[CALL_ID]", true);
                self.text(&call.id, true);
            }
            self.control("[ARGS]", true);
            self.text(&value(&call.function.arguments).dump(), true);
        }
    }

    fn tool(&mut self, content: &str, call_id: Option<&str>, name: Option<&str>, is_past: bool) {
        if self.version == InstructVersion::V2 && is_past {
            return;
        }
        let text = |text: &str| Json::Text(text.to_owned());
        let id = call_id.unwrap_or_default();
        self.control("[TOOL_RESULTS]", false);
        match self.version {
            InstructVersion::V1 | InstructVersion::V2 => {
                let name = name.map_or(Json::Word("null"), text);
                let members =
                    vec![("name".to_owned(), name), ("content".to_owned(), value(content))];
                self.text(&Json::Array(vec![Json::Object(members)]).dump(), false);
            }
            InstructVersion::V3 => {
                let members =
                    vec![("content".to_owned(), value(content)), ("call_id".to_owned(), text(id))];
                self.text(&Json::Object(members).dump(), false);
            }
            InstructVersion::V7 | InstructVersion::V11 => {
                self.text(id, false);
                self.control("[TOOL_CONTENT]", false);
                self.text(content, false);
            }
            InstructVersion::V13 => self.text(content, false),
        }
        self.control("[/TOOL_RESULTS]", false);
    }
}

/// JSON as it is, and what is no JSON as a text.
fn value(text: &str) -> Json {
    python_json::parse(text).unwrap_or_else(|| Json::Text(text.to_owned()))
}

fn call_json(call: &Call, version: InstructVersion) -> Json {
    let mut members = vec![
        ("name".to_owned(), Json::Text(call.function.name.clone())),
        ("arguments".to_owned(), value(&call.function.arguments)),
    ];
    if version >= InstructVersion::V3 && !call.id.is_empty() && call.id != "null" {
        members.push(("id".to_owned(), Json::Text(call.id.clone())));
    }
    Json::Object(members)
}
