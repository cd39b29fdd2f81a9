//! Damaged copies of a valid file: a parser answers each with an error or a value, never with a panic.

use crate::random::Rng;

/// Numbers at which sizes, indices and counts overflow.
const EXTREMES: [&[u8]; 9] = [
    b"0",
    b"-1",
    b"65536",
    b"4294967295",
    b"9223372036854775808",
    b"18446744073709551615",
    b"1e308",
    b"1e-320",
    b"null",
];

/// `n` copies of `valid` with one to three damages each: bits and bytes changed, ranges cut out, doubled or moved, the end
/// missing, numbers replaced by extreme ones.
///
/// # Panics
/// When `valid` is empty.
pub fn damaged(valid: &[u8], seed: u64, n: usize) -> impl Iterator<Item = Vec<u8>> {
    assert!(!valid.is_empty(), "there is nothing to damage");
    let mut rng = Rng::new(seed);
    (0..n).map(move |_| {
        let mut bytes = valid.to_vec();
        for _ in 0..=rng.below(3) {
            damage(&mut bytes, &mut rng);
        }
        bytes
    })
}

fn damage(bytes: &mut Vec<u8>, rng: &mut Rng) {
    if bytes.is_empty() {
        return bytes.push(rng.below(256) as u8);
    }
    let at = rng.below(bytes.len());
    let end = at + rng.below((bytes.len() - at).min(64) + 1);
    match rng.below(7) {
        0 => bytes[at] ^= 1 << rng.below(8),
        1 => bytes[at] = rng.below(256) as u8,
        2 => bytes.truncate(at),
        3 => drop(bytes.drain(at..end)),
        4 => bytes.extend_from_within(at..end),
        5 => {
            let doubled = bytes[at..end].to_vec();
            bytes.splice(at..at, doubled);
        }
        _ => {
            let is_digit = |i: &usize| bytes[*i].is_ascii_digit();
            let start = (at..bytes.len()).find(is_digit).unwrap_or(at);
            let n_digits = (start..bytes.len()).take_while(is_digit).count();
            let extreme = EXTREMES[rng.below(EXTREMES.len())];
            bytes.splice(start..start + n_digits, extreme.iter().copied());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::damaged;

    #[test]
    fn copies_differ_from_the_original_and_from_one_another() {
        let valid = br#"{"n_layers": 12, "name": "x"}"#;
        let copies: HashSet<Vec<u8>> = damaged(valid, 1, 500).collect();
        assert!(copies.len() > 350, "{} different copies", copies.len());
        let text =
            |needle: &str| copies.iter().any(|copy| String::from_utf8_lossy(copy).contains(needle));
        assert!(text("18446744073709551615") && text("-1,"));
        assert!(damaged(b"a", 2, 100).any(|copy| copy.is_empty()));
    }
}
