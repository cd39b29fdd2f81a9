//! Chat templates: conversation in, token ids with a loss mask out.

use super::conversation::{Conversation, Role};
use crate::error::Error;
use crate::tokenizer::{ControlText, Tokenizer};

/// How a conversation is written down.
///
/// Content is encoded as ordinary text: a user who types `[/INST]` or `</s>` types signs and letters, and no control
/// token can come from content. The Jinja text of [`ChatTemplate::jinja`] cannot promise that, since there the whole
/// conversation becomes one text before it is encoded: on content without such text both give the same ids.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum ChatTemplate {
    /// That of Mistral's models, version 7, without tools:
    /// `<s>[SYSTEM_PROMPT] system[/SYSTEM_PROMPT][INST] user[/INST] answer</s>[INST] user[/INST] answer</s>`.
    /// The space puts the first word of a content among the words within a text.
    #[default]
    V7,
}

/// Where a rendering ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// After the last answer: for training and scoring.
    Complete,
    /// Before the next answer: for generating it.
    AwaitAnswer,
}

/// A conversation as tokens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rendered {
    /// The tokens, BOS included.
    pub token_ids: Vec<u32>,
    /// For each token whether it is trained: the content of answers and their `</s>`, nothing else.
    pub trained: Vec<bool>,
    /// The text with control tokens by name, for people to read.
    pub text: String,
}

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

impl ChatTemplate {
    /// Renders a conversation.
    ///
    /// # Errors
    /// Those of [`Conversation::validate`]; [`Error::UnexpectedEnd`] if the last message does not suit the ending;
    /// [`Error::MissingControl`].
    pub fn render(
        &self,
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
            let content = format!(" {}", message.content);
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

    /// What stands before every answer and does not belong to it; [`TextStream::answer`](crate::TextStream::answer)
    /// takes it away.
    pub fn answer_prefix(&self) -> &'static str {
        " "
    }

    /// The template in the Jinja dialect of `transformers`, as written beside a tokenizer.
    pub fn jinja(&self) -> &'static str {
        include_str!("v7.jinja")
    }
}
