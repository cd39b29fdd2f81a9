//! Words of at most 15 bytes as one integer, which is compared and hashed in a few instructions.

/// The longest word that has a key.
pub(crate) const MAX_BYTES: usize = 15;

/// The bytes of a word, lowest first, and its length in the top byte; `None` if it is longer than [`MAX_BYTES`].
///
/// No key is zero, since no word is empty.
#[inline]
pub(crate) fn key(text: &[u8], start: usize, end: usize) -> Option<u128> {
    let n = end - start;
    if n > MAX_BYTES {
        return None;
    }
    let bytes = match text.get(start..start + 16).and_then(|b| b.first_chunk::<16>()) {
        Some(&bytes) => u128::from_le_bytes(bytes) & ((1 << (8 * n)) - 1),
        None => {
            let mut bytes = [0; 16];
            bytes[..n].copy_from_slice(&text[start..end]);
            u128::from_le_bytes(bytes)
        }
    };
    Some(bytes | (n as u128) << 120)
}

/// The inverse of [`key`]: the bytes, then their number.
pub(crate) fn bytes_of(key: u128) -> ([u8; 16], usize) {
    (key.to_le_bytes(), (key >> 120) as usize)
}

/// Both halves multiplied and folded, as in wyhash; the high bits are the good ones.
#[inline]
pub(crate) fn hash(key: u128) -> u64 {
    let low = key as u64 ^ 0xA076_1D64_78BD_642F;
    let high = (key >> 64) as u64 ^ 0xE703_7ED1_A0B4_28DB;
    let product = u128::from(low) * u128::from(high);
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn key_gives_back_its_bytes_wherever_the_word_lies(
            text in proptest::collection::vec(any::<u8>(), 1..40),
            a in 0usize..40,
            b in 0usize..40,
        ) {
            let (start, end) = (a.min(b).min(text.len() - 1), a.max(b).clamp(1, text.len()));
            prop_assume!(start < end);
            match key(&text, start, end) {
                Some(key) => {
                    let (bytes, n) = bytes_of(key);
                    prop_assert_eq!(&bytes[..n], &text[start..end]);
                    // What follows the word does not matter.
                    prop_assert_eq!(Some(key), super::key(&text[start..end], 0, n));
                }
                None => prop_assert!(end - start > MAX_BYTES),
            }
        }
    }
}
