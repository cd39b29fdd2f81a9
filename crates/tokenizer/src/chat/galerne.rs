//! The template of models that are trained here.

use super::conversation::{Conversation, Role};
use super::instruct::{Piece, PieceKind};
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
    let mut pieces = vec![masked(PieceKind::Control("<s>"))];
    for message in messages {
        let content = PieceKind::Text(format!("{CONTENT_PREFIX}{}", message.content));
        let block =
            |begin, end| [PieceKind::Control(begin), content.clone(), PieceKind::Control(end)];
        match message.role {
            Role::System => {
                pieces.extend(block("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]").map(masked));
            }
            Role::User => pieces.extend(block("[INST]", "[/INST]").map(masked)),
            Role::Assistant => {
                let answer = [content, PieceKind::Control("</s>")];
                pieces.extend(answer.map(|token| Piece { token, is_trained: true }));
            }
        }
    }
    tokenizer.encode_pieces(&pieces)
}

fn masked(token: PieceKind) -> Piece {
    Piece { token, is_trained: false }
}
