//! A model's own chat template, in the dialect of `transformers`.
//!
//! The template makes one text of the whole conversation, in which control tokens stand by name. So that none can come
//! from content, its characters go through the template marked, and the text is cut at control tokens whose characters
//! all came from the template (`marks.rs`). Templates are strangers' programs: they reach neither files nor the network,
//! fuel and a time limit bound what they use (`checks.rs`, which `guard.rs` puts into the program), their values are data of
//! bounded size and depth (`values.rs`), and they run on a thread whose stack suffices (`worker.rs`).

mod checks;
mod guard;
mod marks;
mod python;
mod values;
mod worker;

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use minijinja::{Value, context};

use super::conversation::Conversation;
use super::template::Rendered;
use crate::error::Error;
use crate::tokenizer::{ControlText, Tokenizer};
use marks::Marks;
use worker::Worker;

/// The longest template in bytes. The longest published ones have some tens of thousands.
const MAX_SOURCE: usize = 128 << 10;

/// The longest rendered text in characters, beside [`CONTENTS`] times the content. Its tokens may still be too many: this
/// bounds the work of cutting it into them.
const MAX_TEXT: usize = 4 << 20;
/// How often a template may write the content. Published ones write it once.
const CONTENTS: usize = 4;

/// A chat template that a model's files bring along.
pub struct JinjaTemplate {
    worker: Worker,
}

impl fmt::Debug for JinjaTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JinjaTemplate").finish_non_exhaustive()
    }
}

impl JinjaTemplate {
    /// Compiles a template, on a thread that lives as long as it.
    ///
    /// # Errors
    /// [`Error::Jinja`] when it is not Jinja, or too long or too deeply nested.
    pub fn new(source: &str) -> Result<JinjaTemplate, Error> {
        let n_bytes = source.len();
        if n_bytes > MAX_SOURCE {
            let problem = format!("it has {n_bytes} bytes, expected at most {MAX_SOURCE}");
            return Err(Error::Jinja { line: None, problem });
        }
        let worker = Worker::start(without_generation_marks(source))?;
        Ok(JinjaTemplate { worker })
    }

    /// Renders a conversation up to the place of the next answer, until a given time; nothing of it is trained.
    ///
    /// # Errors
    /// [`Error::Jinja`], with the template's own words where it refuses the conversation.
    pub(super) fn render(
        &self,
        tokenizer: &Tokenizer,
        conversation: &Conversation,
        end: Instant,
    ) -> Result<Rendered, Error> {
        let marks = Arc::new(Marks::new(tokenizer, conversation, &self.worker.reserved)?);
        let messages = conversation.messages.iter();
        let messages: Vec<Value> = messages
            .map(|message| {
                let content = marks.mark(&message.content);
                Value::from_pairs([("role", message.role.to_string()), ("content", content)])
            })
            .collect();
        let name = |id| Value::from(tokenizer.decode_with(&[id], ControlText::Show));
        let name_of = |id: Option<u32>| id.map_or(Value::UNDEFINED, name);
        let variables = context! {
            messages,
            add_generation_prompt => true,
            bos_token => name(tokenizer.bos_id()),
            eos_token => name(tokenizer.eos_id()),
            pad_token => name_of(tokenizer.pad_id()),
            unk_token => name_of(tokenizer.control_id("<unk>")),
            tools => (),
            documents => (),
        };
        let text = self.worker.render(Arc::clone(&marks), variables, end)?;
        let content = conversation.messages.iter().map(|message| message.content.len());
        let (n_chars, limit) = (text.chars().count(), MAX_TEXT + CONTENTS * content.sum::<usize>());
        if n_chars > limit {
            let problem = format!("it wrote {n_chars} characters, expected at most {limit}");
            return Err(Error::Jinja { line: None, problem });
        }
        let token_ids = marks.encode(tokenizer, &text, end)?;
        let trained = vec![false; token_ids.len()];
        let text = tokenizer.decode_with(&token_ids, ControlText::Show);
        Ok(Rendered { token_ids, trained, text })
    }
}

/// `transformers` marks what a model is trained on with a tag of its own, which renders what it holds.
fn without_generation_marks(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let inside = &rest[start + 2..];
        let Some(length) = inside.find("%}") else { break };
        let tag = &inside[..length];
        let inner = tag.trim_matches(['-', '+']).trim();
        text.push_str(&rest[..start]);
        let replaced = match inner {
            "generation" => tag.replace("generation", "if true"),
            "endgeneration" => tag.replace("endgeneration", "endif"),
            _ => tag.to_string(),
        };
        text.push_str(&format!("{{%{replaced}%}}"));
        rest = &inside[length + 2..];
    }
    text.push_str(rest);
    text
}

/// Without marks the message holds no content.
fn failed(error: &minijinja::Error, marks: Option<&Marks>) -> Error {
    let problem = match error.detail() {
        Some(detail) => detail.to_string(),
        None => error.kind().to_string(),
    };
    let problem = problem.chars().take(300).collect::<String>();
    let problem = marks.map_or(problem.clone(), |marks| marks.show(&problem).into_owned());
    Error::Jinja { line: error.line(), problem }
}

#[cfg(test)]
mod tests;
