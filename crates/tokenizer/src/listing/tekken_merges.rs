//! The merges that Tekken implies, as a list with one merge for each token.

use crate::json::char_of_byte;
use crate::tokenizer::Tokenizer;
use std::collections::HashMap;

/// For each token, in the order of ranks, the two halves that merging by lower ranks leaves of it. A token of which more
/// is left is only ever a whole word, and has no merge.
pub(super) fn merges(tokenizer: &Tokenizer) -> Vec<String> {
    let ordinary = (0..tokenizer.vocab_size() as u32).filter(|&id| !tokenizer.is_control(id));
    let ranks: HashMap<&[u8], u32> =
        ordinary.clone().filter_map(|id| Some((tokenizer.token_bytes(id)?, id))).collect();
    let spelled = |bytes: &[u8]| bytes.iter().map(|&byte| char_of_byte(byte)).collect::<String>();
    let merge = |id| {
        let bytes = tokenizer.token_bytes(id)?;
        let (left, right) = bytes.split_at(cut(bytes, id, &ranks)?);
        Some(format!("{} {}", spelled(left), spelled(right)))
    };
    ordinary.filter_map(merge).collect()
}

/// Where the last merge joins a token. Quadratic in its length, which is bounded where files are read.
fn cut(token: &[u8], rank: u32, ranks: &HashMap<&[u8], u32>) -> Option<usize> {
    let mut ends: Vec<usize> = (1..=token.len()).collect();
    while ends.len() > 2 {
        let start = |i: usize| if i == 0 { 0 } else { ends[i - 1] };
        let joined = |i: usize| ranks.get(&token[start(i)..ends[i + 1]]).map(|&rank| (rank, i));
        let (lowest, i) = (0..ends.len() - 1).filter_map(joined).min()?;
        if lowest >= rank {
            return None;
        }
        ends.remove(i);
    }
    (ends.len() == 2).then(|| ends[0])
}
