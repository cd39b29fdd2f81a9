//! Writing a `tokenizer.model`. Numbers of fields: see `model.rs`.

use crate::listing::ListedKind;

/// The contents of a file: BPE with bytes for characters without a piece, and no normalisation. `controls` are the names
/// of BOS and EOS.
pub(crate) fn write(
    tokens: &[(String, ListedKind)],
    scores: &[f32],
    adds_space: bool,
    controls: [Option<&str>; 2],
) -> Vec<u8> {
    let mut file = Vec::new();
    for (id, (text, kind)) in tokens.iter().enumerate() {
        let number = match kind {
            ListedKind::Normal => 1,
            ListedKind::Unknown => 2,
            ListedKind::Control => 3,
            ListedKind::UserDefined => 4,
            ListedKind::Byte => 6,
        };
        let mut piece = Vec::with_capacity(text.len() + 16);
        put_bytes(&mut piece, 1, text.as_bytes());
        put_tag(&mut piece, 2, 5);
        piece.extend(scores.get(id).copied().unwrap_or(0.0).to_le_bytes());
        put_number(&mut piece, 3, number);
        put_bytes(&mut file, 1, &piece);
    }
    let mut trainer = Vec::new();
    for (field, number) in [(3, 2), (35, 1)] {
        put_number(&mut trainer, field, number);
    }
    for (field, name) in [46, 47].into_iter().zip(controls) {
        name.into_iter().for_each(|name| put_bytes(&mut trainer, field, name.as_bytes()));
    }
    put_bytes(&mut file, 2, &trainer);
    let mut normalizer = Vec::new();
    for (field, number) in [(3, u64::from(adds_space)), (4, 0), (5, 1)] {
        put_number(&mut normalizer, field, number);
    }
    put_bytes(&mut file, 3, &normalizer);
    file
}

fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn put_tag(out: &mut Vec<u8>, field: u64, wire_type: u64) {
    put_varint(out, field << 3 | wire_type);
}

fn put_number(out: &mut Vec<u8>, field: u64, number: u64) {
    put_tag(out, field, 0);
    put_varint(out, number);
}

fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_tag(out, field, 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}
