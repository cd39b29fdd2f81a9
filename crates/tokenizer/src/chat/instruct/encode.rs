//! Pieces to token ids.

use super::{InstructVersion, Piece, PieceContent};
use crate::chat::template::Rendered;
use crate::error::Error;
use crate::tokenizer::{ControlText, Tokenizer};

impl InstructVersion {
    /// The version with this number; 15, which is newer, is not among them.
    pub fn of_number(number: u32) -> Option<InstructVersion> {
        Self::ALL.into_iter().find(|version| version.name()[1..] == number.to_string())
    }
}

impl Tokenizer {
    /// Token ids of a rendered request: each text by itself, control tokens by name.
    ///
    /// # Errors
    /// [`Error::MissingControl`], when the vocabulary is of an older version than the pieces.
    pub fn encode_pieces(&self, pieces: &[Piece]) -> Result<Rendered, Error> {
        let (mut token_ids, mut trained) = (Vec::new(), Vec::new());
        for piece in pieces {
            match &piece.content {
                PieceContent::Control(name) => {
                    token_ids.push(self.control_id(name).ok_or(Error::MissingControl { name })?);
                }
                PieceContent::Text(text) if token_ids.is_empty() => {
                    self.encode_into(text, &mut token_ids);
                }
                PieceContent::Text(text) => self.encode_after_control(text, &mut token_ids),
            }
            trained.resize(token_ids.len(), piece.is_trained);
        }
        let text = self.decode_with(&token_ids, ControlText::Show);
        Ok(Rendered { token_ids, trained, text })
    }
}
