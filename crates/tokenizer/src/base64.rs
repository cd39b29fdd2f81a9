//! Decoding base64 with padding, the standard alphabet (RFC 4648, section 4).

/// Appends the bytes that a text stands for; `None` if it is not base64, and `out` is then of no use.
pub(crate) fn decode_into(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let n_padding = text.iter().rev().take(2).take_while(|&&byte| byte == b'=').count();
    let digits = &text[..text.len() - n_padding];
    for group in digits.chunks(4) {
        let mut bits = 0_u32;
        for &digit in group {
            bits = bits << 6 | value(digit)?;
        }
        bits <<= 6 * (4 - group.len());
        let n_bytes = group.len() * 6 / 8;
        let bytes = bits.to_be_bytes();
        let (used, unused) = bytes[1..].split_at(n_bytes);
        if unused.iter().any(|&byte| byte != 0) {
            return None;
        }
        out.extend_from_slice(used);
    }
    Some(())
}

fn value(digit: u8) -> Option<u32> {
    let value = match digit {
        b'A'..=b'Z' => digit - b'A',
        b'a'..=b'z' => digit - b'a' + 26,
        b'0'..=b'9' => digit - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    };
    Some(u32::from(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_the_standard_are_decoded() {
        for (text, expected) in [
            ("", &b""[..]),
            ("Zg==", b"f"),
            ("Zm8=", b"fo"),
            ("Zm9v", b"foo"),
            ("Zm9vYg==", b"foob"),
            ("+/+/", &[0xFB, 0xFF, 0xBF]),
        ] {
            let mut out = Vec::new();
            assert_eq!(decode_into(text.as_bytes(), &mut out), Some(()), "{text}");
            assert_eq!(out, expected);
        }
    }

    #[test]
    fn what_is_not_base64_is_refused() {
        for text in ["Z", "Zg=", "Zg", "Zh==", "Zm9=", "Z===", "====", "Zm9v=", "Zm 9", "Zg==Zg=="]
        {
            assert_eq!(decode_into(text.as_bytes(), &mut Vec::new()), None, "{text}");
        }
    }
}
