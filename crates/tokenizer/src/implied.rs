//! Merges that a file does not list: any two neighbours whose bytes together are a token are merged, the token of the
//! lowest rank first. SentencePiece (ranks by score) and Tekken (ranks by id) define BPE so.

use crate::encode::Merge;
use crate::symbols::symbol_without_token;
use std::collections::HashMap;

/// The longest token where a file is not trusted, names of control tokens included: looking at all halves of a token takes
/// quadratic time, and looking for a token at each place of a text takes time in proportion to its length. The longest one of
/// Tekken has 76 bytes.
pub(crate) const MAX_TOKEN_BYTES: usize = 256;

/// A token that text may become.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ranked<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) id: u32,
    pub(crate) rank: u32,
}

/// What tokens are made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unit {
    Byte,
    Character,
}

/// All merges of tokens that have distinct bytes, none longer than [`MAX_TOKEN_BYTES`].
pub(crate) fn merges(tokens: &[Ranked<'_>], unit: Unit) -> Vec<(u32, Merge)> {
    let ids: HashMap<&[u8], u32> = tokens.iter().map(|token| (token.bytes, token.id)).collect();
    let symbol_of = |part: &[u8]| match ids.get(part) {
        Some(&id) => Some(id),
        None if unit == Unit::Character => symbol_without_token(part),
        None => None,
    };
    let mut found = Vec::with_capacity(tokens.len());
    for token in tokens {
        for cut in 1..token.bytes.len() {
            let (left, right) = token.bytes.split_at(cut);
            // Bytes that go on a character begin with the bits 10.
            if unit == Unit::Character && right[0] & 0xC0 == 0x80 {
                continue;
            }
            if let (Some(left), Some(right)) = (symbol_of(left), symbol_of(right)) {
                found.push((token.rank, Merge { left, right, result: token.id }));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_of_tokens_that_is_a_token_is_a_merge() {
        let token = |bytes, id| Ranked { bytes, id, rank: 100 + id };
        let tokens = [
            token(&b"a"[..], 0),
            token(b"b", 1),
            token(b"ab", 2),
            token(b"ba", 3),
            token(b"aba", 4),
        ];
        let found: Vec<(u32, u32, u32)> =
            merges(&tokens, Unit::Byte).iter().map(|(r, m)| (*r, m.left, m.right)).collect();
        assert_eq!(found, [(102, 0, 1), (103, 1, 0), (104, 0, 3), (104, 2, 0)]);
    }

    #[test]
    fn characters_without_a_token_may_be_merged() {
        let token = Ranked { bytes: "éa".as_bytes(), id: 7, rank: 0 };
        let found = merges(&[token], Unit::Character);
        assert_eq!(found.len(), 1);
        assert_eq!(Some(found[0].1.left), symbol_without_token("é".as_bytes()));
        assert!(merges(&[token], Unit::Byte).is_empty());
    }
}
