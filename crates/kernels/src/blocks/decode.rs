//! The numbers of blocks. Layouts: ggml `ggml-common.h`; formulas: ggml `dequantize_row_*`.

use half::{bf16, f16};

use super::BlockKind;

/// Numbers of the larger blocks.
const SUPER: usize = 256;

/// The table of the IQ4 kinds.
const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

#[inline(always)]
pub(super) fn decode(kind: BlockKind, blocks: &[u8], out: &mut [f32]) {
    match kind {
        BlockKind::F32 => each::<4, 1>(blocks, out, |b, out| out[0] = f32::from_le_bytes(*b)),
        BlockKind::F16 => each::<2, 1>(blocks, out, |b, out| out[0] = half(b, 0)),
        BlockKind::Bf16 => {
            each::<2, 1>(blocks, out, |b, out| out[0] = bf16::from_le_bytes(*b).to_f32());
        }
        BlockKind::Q4_0 => each::<18, 32>(blocks, out, |b, out| {
            let d = half(b, 0);
            nibbles(&b[2..], out, |q| d * f32::from(q as i8 - 8));
        }),
        BlockKind::Q4_1 => each::<20, 32>(blocks, out, |b, out| {
            let (d, m) = (half(b, 0), half(b, 2));
            nibbles(&b[4..], out, |q| d * f32::from(q) + m);
        }),
        BlockKind::Q5_0 => each::<22, 32>(blocks, out, q5_0),
        BlockKind::Q5_1 => each::<24, 32>(blocks, out, q5_1),
        BlockKind::Q8_0 => each::<34, 32>(blocks, out, |b, out| {
            let d = half(b, 0);
            for i in 0..32 {
                out[i] = d * f32::from(b[2 + i].cast_signed());
            }
        }),
        BlockKind::Q2_K => each::<84, SUPER>(blocks, out, q2_k),
        BlockKind::Q3_K => each::<110, SUPER>(blocks, out, q3_k),
        BlockKind::Q4_K => each::<144, SUPER>(blocks, out, q4_k),
        BlockKind::Q5_K => each::<176, SUPER>(blocks, out, q5_k),
        BlockKind::Q6_K => each::<210, SUPER>(blocks, out, q6_k),
        BlockKind::IQ4_NL => each::<18, 32>(blocks, out, |b, out| {
            let d = half(b, 0);
            nibbles(&b[2..], out, |q| d * f32::from(IQ4[usize::from(q)]));
        }),
        BlockKind::IQ4_XS => each::<136, SUPER>(blocks, out, iq4_xs),
    }
}

#[inline(always)]
fn each<const BYTES: usize, const LEN: usize>(
    blocks: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    for (block, out) in blocks.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        decode(block, out);
    }
}

/// The half-precision number at a byte.
#[inline(always)]
fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Sixteen bytes: the low halves are the first sixteen numbers, the high halves the others.
#[inline(always)]
fn nibbles(bytes: &[u8], out: &mut [f32], number: impl Fn(u8) -> f32) {
    for i in 0..16 {
        out[i] = number(bytes[i] & 15);
        out[16 + i] = number(bytes[i] >> 4);
    }
}

/// The fifth bit of number `i`, in its place.
#[inline(always)]
fn fifth_bit(bits: &[u8], i: usize) -> u8 {
    (bits[i / 8] >> (i % 8) & 1) << 4
}

#[inline(always)]
fn q5_0(b: &[u8; 22], out: &mut [f32; 32]) {
    let d = half(b, 0);
    for i in 0..16 {
        let (low, high) = (b[6 + i] & 15, b[6 + i] >> 4);
        out[i] = d * f32::from((low | fifth_bit(&b[2..6], i)).cast_signed() - 16);
        out[16 + i] = d * f32::from((high | fifth_bit(&b[2..6], 16 + i)).cast_signed() - 16);
    }
}

#[inline(always)]
fn q5_1(b: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (half(b, 0), half(b, 2));
    for i in 0..16 {
        let (low, high) = (b[8 + i] & 15, b[8 + i] >> 4);
        out[i] = d * f32::from(low | fifth_bit(&b[4..8], i)) + m;
        out[16 + i] = d * f32::from(high | fifth_bit(&b[4..8], 16 + i)) + m;
    }
}

/// 16 scales (low half) and minima (high half), 64 bytes of numbers, two factors.
#[inline(always)]
fn q2_k(b: &[u8; 84], out: &mut [f32; SUPER]) {
    let (d, d_min) = (half(b, 80), half(b, 82));
    for part in 0..16 {
        let scale = d * f32::from(b[part] & 15);
        let min = d_min * f32::from(b[part] >> 4);
        // Parts of 16 numbers: two to each 32 bytes and each of four shifts.
        let (bytes, shift) = (&b[16 + part / 8 * 32 + part % 2 * 16..], part % 8 / 2 * 2);
        for i in 0..16 {
            out[part * 16 + i] = scale * f32::from(bytes[i] >> shift & 3) - min;
        }
    }
}

/// 32 bytes of third bits, 64 of low bits, 16 scales of 6 bits in 12 bytes, a factor.
#[inline(always)]
fn q3_k(b: &[u8; 110], out: &mut [f32; SUPER]) {
    let d = half(b, 108);
    let scales = &b[96..108];
    for part in 0..16 {
        let low = scales[part % 8] >> (part / 8 * 4) & 15;
        let high = scales[8 + part % 4] >> (part / 4 * 2) & 3;
        let scale = d * f32::from((low | high << 4).cast_signed() - 32);
        let (bytes, shift) = (&b[32 + part / 8 * 32 + part % 2 * 16..], part % 8 / 2 * 2);
        let (bits, bit) = (&b[part % 2 * 16..], part / 2);
        for i in 0..16 {
            let q = (bytes[i] >> shift & 3).cast_signed();
            // The third bit is there when the number is not below zero.
            let offset = if bits[i] >> bit & 1 == 0 { 4 } else { 0 };
            out[part * 16 + i] = scale * f32::from(q - offset);
        }
    }
}

/// Scale and minimum of part `j` of eight, 6 bits each, out of 12 bytes.
#[inline(always)]
pub(crate) fn scale_and_min(scales: &[u8], j: usize) -> [u8; 2] {
    if j < 4 {
        [scales[j] & 63, scales[j + 4] & 63]
    } else {
        [scales[j + 4] & 15 | scales[j - 4] >> 6 << 4, scales[j + 4] >> 4 | scales[j] >> 6 << 4]
    }
}

/// Two factors, 12 bytes of scales and minima, 128 bytes of numbers: each 32 bytes hold two parts.
#[inline(always)]
fn q4_k(b: &[u8; 144], out: &mut [f32; SUPER]) {
    let (d, d_min) = (half(b, 0), half(b, 2));
    for (pair, out) in out.as_chunks_mut::<64>().0.iter_mut().enumerate() {
        let bytes = &b[16 + pair * 32..][..32];
        for part in 0..2 {
            let [scale, min] = scale_and_min(&b[4..16], 2 * pair + part);
            let (scale, min) = (d * f32::from(scale), d_min * f32::from(min));
            for i in 0..32 {
                out[part * 32 + i] = scale * f32::from(bytes[i] >> (4 * part) & 15) - min;
            }
        }
    }
}

/// As [`q4_k`], with 32 bytes of fifth bits before the numbers.
#[inline(always)]
fn q5_k(b: &[u8; 176], out: &mut [f32; SUPER]) {
    let (d, d_min) = (half(b, 0), half(b, 2));
    let bits = &b[16..48];
    for (pair, out) in out.as_chunks_mut::<64>().0.iter_mut().enumerate() {
        let bytes = &b[48 + pair * 32..][..32];
        for part in 0..2 {
            let bit = 2 * pair + part;
            let [scale, min] = scale_and_min(&b[4..16], bit);
            let (scale, min) = (d * f32::from(scale), d_min * f32::from(min));
            for i in 0..32 {
                let q = bytes[i] >> (4 * part) & 15 | (bits[i] >> bit & 1) << 4;
                out[part * 32 + i] = scale * f32::from(q) - min;
            }
        }
    }
}

/// 128 bytes of low halves, 64 of high pairs of bits, 16 scales, a factor.
#[inline(always)]
fn q6_k(b: &[u8; 210], out: &mut [f32; SUPER]) {
    let d = half(b, 208);
    for part in 0..8 {
        // Parts of 32 numbers: of each half of the block, two to the low and two to the high halves of 64 bytes.
        let (half_idx, quarter) = (part / 4, part % 4);
        let low = &b[half_idx * 64 + quarter % 2 * 32..][..32];
        let high = &b[128 + half_idx * 32..][..32];
        for sixteen in 0..2 {
            let scale = d * f32::from(b[192 + 2 * part + sixteen].cast_signed());
            for i in sixteen * 16..sixteen * 16 + 16 {
                let q = low[i] >> (quarter / 2 * 4) & 15 | (high[i] >> (quarter * 2) & 3) << 4;
                out[part * 32 + i] = scale * f32::from(q.cast_signed() - 32);
            }
        }
    }
}

/// A factor, high bits of 8 scales, their low bits, 128 bytes of indices.
#[inline(always)]
fn iq4_xs(b: &[u8; 136], out: &mut [f32; SUPER]) {
    let d = half(b, 0);
    let high = u16::from_le_bytes([b[2], b[3]]);
    for (part, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let low = b[4 + part / 2] >> (part % 2 * 4) & 15;
        let scale = low | ((high >> (2 * part) & 3) << 4) as u8;
        let scale = d * f32::from(scale.cast_signed() - 32);
        nibbles(&b[8 + part * 16..], out, |q| scale * f32::from(IQ4[usize::from(q)]));
    }
}
