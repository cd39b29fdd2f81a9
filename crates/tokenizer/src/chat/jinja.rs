//! A model's own chat template, in the dialect of `transformers`.
//!
//! The template makes one text of the whole conversation, in which control tokens stand by name. So that none can come
//! from content, whatever could begin one there is hidden before rendering and shown again after the text is cut at its
//! control tokens (`shield.rs`). Templates are strangers' programs: they run with fuel, which bounds time and memory,
//! and reach neither files nor the network.

mod shield;

use std::fmt;
use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{Environment, ErrorKind, Value, context};

use super::conversation::Conversation;
use super::instruct::python_json;
use super::template::Rendered;
use crate::date::strftime;
use crate::error::Error;
use crate::tokenizer::{ControlText, Tokenizer};
use shield::Shield;

/// Steps that rendering may take. The longest published templates take some thousands, and some tens for each message;
/// 64 bytes of text count as a step, so this is about 128 MB.
const FUEL: u64 = 2_000_000;
/// Name of the only template in its environment.
const NAME: &str = "chat_template";

/// A chat template that a model's files bring along.
pub struct JinjaTemplate {
    environment: Environment<'static>,
}

impl fmt::Debug for JinjaTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JinjaTemplate").finish_non_exhaustive()
    }
}

impl JinjaTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// [`Error::Jinja`] when it is not Jinja.
    pub fn new(source: &str) -> Result<JinjaTemplate, Error> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.expect("the usual signs are valid"));
        environment.set_fuel(Some(FUEL));
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", raise);
        environment.add_function("strftime_now", date_now);
        environment
            .add_template_owned(NAME, without_generation_marks(source))
            .map_err(|error| failed(&error))?;
        Ok(JinjaTemplate { environment })
    }

    /// Renders a conversation up to the place of the next answer; nothing of it is trained.
    ///
    /// # Errors
    /// [`Error::Jinja`], with the template's own words where it refuses the conversation.
    pub(super) fn render(
        &self,
        tokenizer: &Tokenizer,
        conversation: &Conversation,
    ) -> Result<Rendered, Error> {
        let shield = Shield::new(tokenizer, conversation)?;
        let messages: Vec<Value> = conversation
            .messages
            .iter()
            .map(|message| {
                let role = message.role.to_string();
                context! { role, content => shield.hide(&message.content) }
            })
            .collect();
        let name = |id| tokenizer.decode_with(&[id], ControlText::Show);
        let template = self.environment.get_template(NAME).map_err(|error| failed(&error))?;
        let text = template
            .render(context! {
                messages,
                add_generation_prompt => true,
                bos_token => name(tokenizer.bos_id()),
                eos_token => name(tokenizer.eos_id()),
            })
            .map_err(|error| failed(&error))?;
        let token_ids = shield.encode(tokenizer, &text);
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

/// JSON as Python writes it, which is what `transformers` gives templates.
fn to_json(value: &Value, options: Kwargs) -> Result<String, minijinja::Error> {
    let invalid = |problem: String| minijinja::Error::new(ErrorKind::InvalidOperation, problem);
    options.assert_all_used().map_err(|_| invalid("tojson takes no options here".to_string()))?;
    let text = serde_json::to_string(value).map_err(|error| invalid(error.to_string()))?;
    let json = python_json::parse(&text);
    json.map(|json| json.dump()).ok_or_else(|| invalid("too many levels for tojson".to_string()))
}

/// What templates call on conversations that they do not know.
fn raise(message: String) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

fn date_now(format: &str) -> Result<String, minijinja::Error> {
    strftime(SystemTime::now(), format).map_err(|field| {
        let problem = format!("strftime_now: the field {field} is not supported");
        minijinja::Error::new(ErrorKind::InvalidOperation, problem)
    })
}

fn failed(error: &minijinja::Error) -> Error {
    let problem = match error.detail() {
        Some(detail) => detail.to_string(),
        None => error.kind().to_string(),
    };
    Error::Jinja { line: error.line(), problem: problem.chars().take(300).collect() }
}

#[cfg(test)]
mod tests;
