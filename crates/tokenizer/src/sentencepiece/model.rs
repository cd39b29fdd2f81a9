//! The messages of `tokenizer.model`. Numbers of fields: google/sentencepiece, `src/sentencepiece_model.proto`.

use super::protobuf::{Message, Value};
use super::{inconsistent, unsupported};
use crate::error::Error;
use crate::listing::ListedKind;

/// An entry of the vocabulary.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece<'a> {
    pub(super) text: &'a str,
    pub(super) score: f32,
    pub(super) kind: ListedKind,
}

/// What is kept of the file.
#[derive(Debug)]
pub(super) struct Model<'a> {
    pub(super) pieces: Vec<Piece<'a>>,
    pub(super) bos: &'a str,
    pub(super) eos: &'a str,
    pub(super) adds_space: bool,
}

/// The fields of the trainer's and the normaliser's settings that encoding depends on, at their defaults.
struct Settings<'a> {
    model_type: u64,
    byte_fallback: u64,
    space_is_suffix: u64,
    bos: &'a str,
    eos: &'a str,
    charsmap: &'a [u8],
    denormalizer_charsmap: &'a [u8],
    adds_space: u64,
    removes_spaces: u64,
    escapes_spaces: u64,
}

impl<'a> Model<'a> {
    /// Reads all fields; those that only tell of the training are skipped.
    pub(super) fn read(file: &'a [u8]) -> Result<Model<'a>, Error> {
        let mut settings = Settings {
            model_type: 1,
            byte_fallback: 0,
            space_is_suffix: 0,
            bos: "<s>",
            eos: "</s>",
            charsmap: &[],
            denormalizer_charsmap: &[],
            adds_space: 1,
            removes_spaces: 1,
            escapes_spaces: 1,
        };
        let mut pieces = Vec::new();
        let mut message = Message::new(file);
        while let Some(field) = message.next_field()? {
            match field {
                (1, Value::Bytes(piece)) => pieces.push(read_piece(piece, pieces.len())?),
                (2, Value::Bytes(trainer)) => settings.read_trainer(trainer)?,
                (3, Value::Bytes(normalizer)) => settings.read_normalizer(normalizer)?,
                // Sentences to test the model with.
                (4, Value::Bytes(_)) => {}
                (5, Value::Bytes(mut denormalizer)) => {
                    while let Some(field) = denormalizer.next_field()? {
                        if let (2, Value::Bytes(charsmap)) = field {
                            settings.denormalizer_charsmap = charsmap.bytes();
                        }
                    }
                }
                (number, _) => {
                    return Err(unsupported(&number.to_string(), "there", "fields 1 to 5"));
                }
            }
        }
        settings.check()?;
        let Settings { bos, eos, adds_space, .. } = settings;
        Ok(Model { pieces, bos, eos, adds_space: adds_space != 0 })
    }
}

fn read_piece<'a>(mut message: Message<'a>, idx: usize) -> Result<Piece<'a>, Error> {
    let (mut text, mut score, mut kind) = ("", 0.0, 1);
    while let Some(field) = message.next_field()? {
        match field {
            (1, Value::Bytes(bytes)) => text = bytes.text()?,
            (2, Value::Float(number)) => score = number,
            (3, Value::Number(number)) => kind = number,
            (number, _) => {
                let field = format!("pieces[{idx}].{number}");
                return Err(unsupported(&field, "there", "fields 1 to 3"));
            }
        }
    }
    let kind = match kind {
        1 => ListedKind::Normal,
        2 => ListedKind::Unknown,
        3 => ListedKind::Control,
        4 => ListedKind::UserDefined,
        6 => ListedKind::Byte,
        other => {
            let expected = "1 (normal), 2 (unknown), 3 (control), 4 (user-defined) or 6 (byte)";
            return Err(unsupported(&format!("pieces[{idx}].type"), other, expected));
        }
    };
    if text.is_empty() {
        return Err(inconsistent(format!("pieces[{idx}]"), "the piece is empty"));
    }
    if !score.is_finite() {
        return Err(inconsistent(format!("pieces[{idx}]"), format!("the score is {score}")));
    }
    Ok(Piece { text, score, kind })
}

impl<'a> Settings<'a> {
    fn read_trainer(&mut self, mut message: Message<'a>) -> Result<(), Error> {
        while let Some(field) = message.next_field()? {
            match field {
                (3, Value::Number(number)) => self.model_type = number,
                (24, Value::Number(number)) => self.space_is_suffix = number,
                (35, Value::Number(number)) => self.byte_fallback = number,
                (46, Value::Bytes(text)) => self.bos = text.text()?,
                (47, Value::Bytes(text)) => self.eos = text.text()?,
                _ => {}
            }
        }
        Ok(())
    }

    fn read_normalizer(&mut self, mut message: Message<'a>) -> Result<(), Error> {
        while let Some(field) = message.next_field()? {
            match field {
                // A name, and the rules that the map was made from.
                (1 | 6, Value::Bytes(_)) => {}
                (2, Value::Bytes(charsmap)) => self.charsmap = charsmap.bytes(),
                (3, Value::Number(number)) => self.adds_space = number,
                (4, Value::Number(number)) => self.removes_spaces = number,
                (5, Value::Number(number)) => self.escapes_spaces = number,
                (number, _) => {
                    let field = format!("normalizer_spec.{number}");
                    return Err(unsupported(&field, "there", "fields 1 to 6"));
                }
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<(), Error> {
        for (field, got, expected) in [
            ("trainer_spec.model_type", self.model_type, 2),
            ("trainer_spec.byte_fallback", self.byte_fallback, 1),
            ("trainer_spec.treat_whitespace_as_suffix", self.space_is_suffix, 0),
            ("normalizer_spec.remove_extra_whitespaces", self.removes_spaces, 0),
            ("normalizer_spec.escape_whitespaces", self.escapes_spaces, 1),
        ] {
            if got != expected {
                let expected = match field {
                    "trainer_spec.model_type" => "2 (BPE)".to_string(),
                    _ => expected.to_string(),
                };
                return Err(unsupported(field, got, expected));
            }
        }
        for (field, charsmap) in [
            ("normalizer_spec.precompiled_charsmap", self.charsmap),
            ("denormalizer_spec.precompiled_charsmap", self.denormalizer_charsmap),
        ] {
            if !charsmap.is_empty() {
                let got = format!("{} bytes long", charsmap.len());
                return Err(unsupported(field, got, "empty (identity)"));
            }
        }
        Ok(())
    }
}
