//! The template of models that are trained here.

use super::conversation::{Conversation, Role};
use super::template::{Ending, Rendered};
use crate::error::Error;
use crate::tokenizer::{ControlText, Tokenizer};

/// What stands before every content: the space puts its first word among the words within a text.
pub(super) const CONTENT_PREFIX: &str = " ";

/// The template in the Jinja dialect of `transformers`.
pub(crate) const JINJA: &str = include_str!("galerne.jinja");

/// Collects tokens and mask.
struct Writer<'a> {
    tokenizer: &'a Tokenizer,
    token_ids: Vec<u32>,
    trained: Vec<bool>,
}

/// Whether tokens count in the loss.
#[derive(Clone, Copy, PartialEq)]
enum Loss {
    Masked,
    Trained,
}

impl Writer<'_> {
    fn control(&mut self, token_id: u32, loss: Loss) {
        self.token_ids.push(token_id);
        self.trained.push(loss == Loss::Trained);
    }

    /// Masked content between two control tokens.
    fn block(&mut self, names: [&'static str; 2], text: &str) -> Result<(), Error> {
        let id = |name| self.tokenizer.control_id(name).ok_or(Error::MissingControl { name });
        let [begin, end] = [id(names[0])?, id(names[1])?];
        self.control(begin, Loss::Masked);
        self.content(text, Loss::Masked);
        self.control(end, Loss::Masked);
        Ok(())
    }

    fn content(&mut self, text: &str, loss: Loss) {
        self.tokenizer.encode_after_control(text, &mut self.token_ids);
        self.trained.resize(self.token_ids.len(), loss == Loss::Trained);
    }
}

/// Renders a conversation; its content is ordinary text.
pub(super) fn render(
    tokenizer: &Tokenizer,
    conversation: &Conversation,
    ending: Ending,
) -> Result<Rendered, Error> {
    conversation.validate()?;
    let (last_role, expected) = match ending {
        Ending::Complete => (Role::Assistant, "an assistant message last"),
        Ending::AwaitAnswer => (Role::User, "a user message last"),
    };
    let messages = &conversation.messages;
    if messages.last().is_some_and(|message| message.role != last_role) {
        return Err(Error::UnexpectedEnd { n_messages: messages.len(), expected });
    }
    let mut writer = Writer { tokenizer, token_ids: Vec::new(), trained: Vec::new() };
    writer.control(tokenizer.bos_id(), Loss::Masked);
    for message in messages {
        let content = format!("{CONTENT_PREFIX}{}", message.content);
        match message.role {
            Role::System => writer.block(["[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"], &content)?,
            Role::User => writer.block(["[INST]", "[/INST]"], &content)?,
            Role::Assistant => {
                writer.content(&content, Loss::Trained);
                writer.control(tokenizer.eos_id(), Loss::Trained);
            }
        }
    }
    let Writer { token_ids, trained, .. } = writer;
    let text = tokenizer.decode_with(&token_ids, ControlText::Show);
    Ok(Rendered { token_ids, trained, text })
}
