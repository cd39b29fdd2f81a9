//! What the encoding of a word starts from, and how symbols that are no token become bytes.

use std::collections::HashMap;

/// A symbol is a token id, or a character without a token: this bit and the code point. Ids stay below: a file with as
/// many tokens would have gigabytes.
const CHARACTER: u32 = 1 << 31;

/// Characters below this limit are looked up in a table: the basic plane.
const N_LOW: usize = 0x1_0000;

/// The symbol of a character that has no token; `None` if the bytes are not one character.
pub(crate) fn symbol_without_token(bytes: &[u8]) -> Option<u32> {
    let mut characters = std::str::from_utf8(bytes).ok()?.chars();
    let character = characters.next()?;
    characters.next().is_none().then_some(CHARACTER | u32::from(character))
}

/// The first symbols of a word.
#[derive(Clone, Debug)]
pub(crate) enum Symbols {
    /// One token per byte.
    Bytes(Box<[u32; 256]>),
    /// One token per character; characters without a token end as the tokens of their bytes.
    Characters(Box<Characters>),
}

/// The tokens of characters and of bytes.
#[derive(Clone, Debug)]
pub(crate) struct Characters {
    low: Vec<u32>,
    high: HashMap<u32, u32>,
    byte_ids: [u32; 256],
}

impl Characters {
    /// A table in which no character has a token.
    pub(crate) fn new(byte_ids: [u32; 256]) -> Characters {
        let low = (0..N_LOW as u32).map(|point| CHARACTER | point).collect();
        Characters { low, high: HashMap::new(), byte_ids }
    }

    /// Gives a character its token.
    pub(crate) fn set(&mut self, character: char, token_id: u32) {
        let point = u32::from(character);
        match self.low.get_mut(point as usize) {
            Some(symbol) => *symbol = token_id,
            None => drop(self.high.insert(point, token_id)),
        }
    }

    /// Treats one character as another.
    pub(crate) fn alias(&mut self, character: char, other: char) {
        self.set(character, self.get(other));
    }

    #[inline]
    pub(crate) fn get(&self, character: char) -> u32 {
        let point = u32::from(character);
        match self.low.get(point as usize) {
            Some(&symbol) => symbol,
            None => self.high.get(&point).copied().unwrap_or(CHARACTER | point),
        }
    }
}

impl Symbols {
    pub(crate) fn bytes(byte_ids: [u32; 256]) -> Symbols {
        Symbols::Bytes(Box::new(byte_ids))
    }

    /// Writes the symbols of a word and returns their number, at most one per byte.
    #[inline]
    pub(crate) fn of_word(&self, word: &[u8], out: &mut [u32]) -> usize {
        match self {
            Symbols::Bytes(byte_ids) => {
                for (symbol, &byte) in out.iter_mut().zip(word) {
                    *symbol = byte_ids[usize::from(byte)];
                }
                word.len()
            }
            Symbols::Characters(characters) => {
                let text = std::str::from_utf8(word).expect("words are cut between characters");
                let mut n = 0;
                for c in text.chars() {
                    out[n] = characters.get(c);
                    n += 1;
                }
                n
            }
        }
    }

    /// Appends the tokens of symbols.
    #[inline]
    pub(crate) fn emit(&self, symbols: &[u32], out: &mut Vec<u32>) {
        let Symbols::Characters(characters) = self else {
            return out.extend_from_slice(symbols);
        };
        for &symbol in symbols {
            match char::from_u32(symbol ^ CHARACTER) {
                Some(character) if symbol & CHARACTER != 0 => {
                    let mut buffer = [0; 4];
                    let bytes = character.encode_utf8(&mut buffer).bytes();
                    out.extend(bytes.map(|byte| characters.byte_ids[usize::from(byte)]));
                }
                _ => out.push(symbol),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_without_a_token_become_their_bytes() {
        let mut characters = Characters::new(std::array::from_fn(|byte| 1000 + byte as u32));
        characters.set('a', 7);
        characters.set('😀', 8);
        characters.alias('b', 'a');
        let symbols = Symbols::Characters(Box::new(characters));
        let mut found = [0; 20];
        let n = symbols.of_word("abé😀😁".as_bytes(), &mut found);
        assert_eq!(n, 5);
        let mut out = Vec::new();
        symbols.emit(&found[..n], &mut out);
        assert_eq!(out, [7, 7, 1195, 1169, 8, 1240, 1159, 1152, 1129]);
    }
}
