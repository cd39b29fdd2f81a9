//! `tokenizer.model`, the SentencePiece models of Mistral's first tokenizers and of Llama 2: BPE over characters, with
//! bytes for the characters that have no piece.
//!
//! A space stands before every text and is taken away by decoding. Any two neighbours that together are a piece are
//! merged, the piece with the highest score first. User-defined pieces, such as `[REF]` in Mistral's, are found in text
//! wherever they stand, as the library does; control pieces never are.
//! Source: sentencepiece 0.2.3, `src/bpe_model.cc` and `src/normalizer.cc`.

mod model;
mod protobuf;
mod write;

pub(crate) use write::write;

use crate::added::AddedTokens;
use crate::encode::{WordCaches, WordEncoder};
use crate::error::Error;
use crate::implied::{self, MAX_TOKEN_BYTES, Ranked, Unit};
use crate::listing::ListedKind;
use crate::split::{Neighbours, SPACE_SIGN, Split};
use crate::symbols::{Characters, Symbols};
use crate::text::{Decoding, FirstSpace};
use crate::tokenizer::{Origin, Prefix, Tokenizer};
use crate::vocabulary::{Controls, Kind, Vocabulary};
use model::{Model, Piece};
use std::collections::{HashMap, HashSet};

pub(crate) const MODEL_FILE: &str = "tokenizer.model";

impl Tokenizer {
    /// Reads the contents of a `tokenizer.model`.
    ///
    /// # Errors
    /// [`Error::Protobuf`], [`Error::Unsupported`], [`Error::Inconsistent`]; never a panic.
    pub fn from_sentencepiece(file: &[u8]) -> Result<Tokenizer, Error> {
        let model = Model::read(file)?;
        let vocabulary = vocabulary(&model.pieces)?;
        let missing =
            |name| inconsistent("pieces", format!("the control piece `{name}` is missing"));
        let controls =
            Controls::find(&vocabulary, Some(model.bos), Some(model.eos)).map_err(missing)?;
        let normal = (0..).zip(&model.pieces).filter(|(_, piece)| piece.kind == ListedKind::Normal);
        let neighbours = Neighbours::in_tokens(normal.filter_map(|(id, _)| vocabulary.get(id)));
        let (prefix, first) = if model.adds_space {
            (Prefix::Text, FirstSpace::Dropped)
        } else {
            (Prefix::Never, FirstSpace::Kept)
        };
        Ok(Tokenizer {
            words: encoder(&vocabulary, &model.pieces)?,
            vocabulary,
            controls,
            split: Split::Unmerged(neighbours),
            prefix,
            decoding: Decoding::Pieces(first),
            added: AddedTokens::new(user_defined(&model.pieces)?),
            adds_bos: Some(true),
            version: None,
            origin: Origin::File { name: MODEL_FILE, contents: file.to_vec() },
            caches: WordCaches::default(),
        })
    }
}

/// The tokens of a file that was read before, their scores, and whether a space stands before a text.
#[expect(clippy::type_complexity, reason = "three parts of one list, taken apart at once")]
pub(crate) fn list(file: &[u8]) -> Result<(Vec<(String, ListedKind)>, Vec<f32>, bool), Error> {
    let model = Model::read(file)?;
    let token = |piece: &Piece<'_>| (piece.text.to_string(), piece.kind);
    let scores = model.pieces.iter().map(|piece| piece.score).collect();
    Ok((model.pieces.iter().map(token).collect(), scores, model.adds_space))
}

/// The byte that a piece such as `<0x0A>` stands for.
pub(crate) fn byte_of(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_plain =
        digits.len() == 2 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
    if is_plain { u8::from_str_radix(digits, 16).ok() } else { None }
}

fn vocabulary(pieces: &[Piece<'_>]) -> Result<Vocabulary, Error> {
    let mut seen = HashSet::with_capacity(pieces.len());
    let mut vocabulary = Vocabulary::default();
    for (idx, piece) in pieces.iter().enumerate() {
        let field = || format!("pieces[{idx}]");
        if piece.text.len() > MAX_TOKEN_BYTES {
            let problem = format!("the piece has more than {MAX_TOKEN_BYTES} bytes");
            return Err(inconsistent(field(), problem));
        }
        if !seen.insert(piece.text) {
            return Err(inconsistent(
                field(),
                format!("the piece {:?} is there twice", piece.text),
            ));
        }
        match piece.kind {
            ListedKind::Normal | ListedKind::UserDefined => {
                vocabulary.push(piece.text.replace(SPACE_SIGN, " ").as_bytes(), Kind::Ordinary);
            }
            ListedKind::Unknown | ListedKind::Control => {
                vocabulary.push(piece.text.as_bytes(), Kind::Control);
            }
            ListedKind::Byte => {
                let byte = byte_of(piece.text).ok_or_else(|| {
                    inconsistent(field(), format!("{:?} does not name a byte", piece.text))
                })?;
                vocabulary.push(&[byte], Kind::Byte);
            }
        }
    }
    Ok(vocabulary)
}

/// Pieces that are found in text by themselves.
fn user_defined(pieces: &[Piece<'_>]) -> Result<HashMap<String, u32>, Error> {
    let mut found = HashMap::new();
    for (id, piece) in (0..).zip(pieces).filter(|(_, p)| p.kind == ListedKind::UserDefined) {
        if piece.text.contains([' ', '\u{2581}']) {
            let got = format!("user-defined and {:?}", piece.text);
            return Err(unsupported(&format!("pieces[{id}]"), got, "no space in such a piece"));
        }
        found.insert(piece.text.to_string(), id);
    }
    Ok(found)
}

fn encoder(vocabulary: &Vocabulary, pieces: &[Piece<'_>]) -> Result<WordEncoder, Error> {
    let byte_ids = vocabulary.byte_ids(Kind::Byte).map_err(|byte| {
        inconsistent("pieces", format!("there is no piece for the byte 0x{byte:02X}"))
    })?;
    let mut order: Vec<f32> = pieces.iter().map(|piece| piece.score).collect();
    order.sort_unstable_by(|a, b| b.total_cmp(a));
    order.dedup();
    let mut characters = Characters::new(byte_ids);
    let mut tokens = Vec::new();
    for (id, piece) in (0..).zip(pieces) {
        if piece.kind != ListedKind::Normal {
            continue;
        }
        let rank = order.partition_point(|&score| score > piece.score) as u32;
        tokens.push(Ranked { bytes: piece.text.as_bytes(), id, rank });
        let mut rest = piece.text.chars();
        if let (Some(character), None) = (rest.next(), rest.next()) {
            characters.set(character, id);
        }
    }
    characters.alias(' ', '\u{2581}');
    let merges = implied::merges(&tokens, Unit::Character);
    Ok(WordEncoder::new(Symbols::Characters(Box::new(characters)), merges.into_iter())
        .expect("distinct pieces have distinct halves"))
}

fn unsupported(field: &str, got: impl ToString, expected: impl ToString) -> Error {
    let (field, got, expected) = (field.to_string(), got.to_string(), expected.to_string());
    Error::Unsupported { file: MODEL_FILE, field, expected, got }
}

fn inconsistent(field: impl Into<String>, problem: impl Into<String>) -> Error {
    Error::Inconsistent { file: MODEL_FILE, field: field.into(), problem: problem.into() }
}
