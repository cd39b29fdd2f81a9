//! The template of models that are trained here.

use super::conversation::{Conversation, Role};
use super::instruct::{Piece, PieceContent};
use super::template::{Ending, Rendered};
use crate::error::Error;
use crate::tokenizer::Tokenizer;

/// What stands before every content: the space puts its first word among the words within a text.
pub(super) const CONTENT_PREFIX: &str = " ";

/// The template in the Jinja dialect of `transformers`.
pub(crate) const JINJA: &str = include_str!("galerne.jinja");

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
    let mut pieces = vec![masked(PieceContent::Control("<s>"))];
    for message in messages {
        let content = PieceContent::Text(format!("{CONTENT_PREFIX}{}", message.content));
        let block = |begin, end| {
            [PieceContent::Control(begin), content.clone(), PieceContent::Control(end)]
        };
        match message.role {
            Role::System => {
                pieces.extend(block("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]").map(masked));
            }
            Role::User => pieces.extend(block("[INST]", "[/INST]").map(masked)),
            Role::Assistant => {
                let answer = [content, PieceContent::Control("</s>")];
                pieces.extend(answer.map(|content| Piece { content, is_trained: true }));
            }
        }
    }
    tokenizer.encode_pieces(&pieces)
}

fn masked(content: PieceContent) -> Piece {
    Piece { content, is_trained: false }
}
