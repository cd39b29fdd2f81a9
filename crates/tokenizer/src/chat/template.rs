//! Chat templates: conversation in, token ids with a loss mask out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::conversation::Conversation;
use super::galerne;
use super::instruct::{self, InstructRequest, InstructVersion};
use super::jinja::JinjaTemplate;
use crate::error::Error;
use crate::tokenizer::Tokenizer;

/// How a conversation is written down.
///
/// Content is encoded as ordinary text: a user who types `[/INST]` or `</s>` types signs and letters, and no control
/// token can come from content.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum ChatTemplate {
    /// That of models that are trained here, which is version 7 of Mistral's without tools, and with a space before each
    /// content:
    /// `<s>[SYSTEM_PROMPT] system[/SYSTEM_PROMPT][INST] user[/INST] answer</s>[INST] user[/INST] answer</s>`.
    #[default]
    Galerne,
    /// One of Mistral's.
    Instruct(InstructVersion),
    /// The one that a model brings along.
    Jinja(Arc<JinjaTemplate>),
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

impl ChatTemplate {
    /// How long rendering may take with a template that a model brings along, which is a stranger's program.
    pub const MAX_TIME: Duration = Duration::from_secs(20);

    /// Renders a conversation, within [`ChatTemplate::MAX_TIME`].
    ///
    /// # Errors
    /// When the template does not know a conversation of this form, such as two questions in a row:
    /// [`Error::UnexpectedRole`], [`Error::EmptyContent`] and [`Error::UnexpectedEnd`] of the own template,
    /// [`Error::Instruct`], [`Error::Jinja`]; [`Error::MissingControl`]; [`Error::NoLossMask`].
    pub fn render(
        &self,
        tokenizer: &Tokenizer,
        conversation: &Conversation,
        ending: Ending,
    ) -> Result<Rendered, Error> {
        self.render_until(tokenizer, conversation, ending, Instant::now() + Self::MAX_TIME)
    }

    /// As [`ChatTemplate::render`], until a given time: that of several renderings that together answer one request.
    ///
    /// # Errors
    /// Those of [`ChatTemplate::render`]. A template that a model brings along is refused soon after the time; others are not
    /// programs, and are done in time that is linear in the conversation.
    pub fn render_until(
        &self,
        tokenizer: &Tokenizer,
        conversation: &Conversation,
        ending: Ending,
        end: Instant,
    ) -> Result<Rendered, Error> {
        match self {
            ChatTemplate::Galerne => galerne::render(tokenizer, conversation, ending),
            ChatTemplate::Instruct(version) => {
                let request = InstructRequest::from(conversation);
                tokenizer.encode_pieces(&instruct::pieces(*version, &request, ending)?)
            }
            // A template of others says where an answer begins and ends by its text alone.
            ChatTemplate::Jinja(_) if ending == Ending::Complete => Err(Error::NoLossMask),
            ChatTemplate::Jinja(template) => template.render(tokenizer, conversation, end),
        }
    }

    /// What stands before every answer and does not belong to it; [`TextStream::answer`](crate::TextStream::answer)
    /// takes it away.
    pub fn answer_prefix(&self) -> &'static str {
        match self {
            ChatTemplate::Galerne => galerne::CONTENT_PREFIX,
            ChatTemplate::Instruct(_) | ChatTemplate::Jinja(_) => "",
        }
    }
}
