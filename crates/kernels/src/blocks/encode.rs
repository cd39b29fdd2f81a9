//! Numbers to blocks. Layouts as in [`super::decode`].
//!
//! Sums are made of eight lanes in a fixed order, so that every machine writes the same bytes.

use half::{bf16, f16};

use super::BlockKind;

/// Numbers of the larger blocks.
const SUPER: usize = 256;

#[inline(always)]
pub(super) fn encode(kind: BlockKind, numbers: &[f32], out: &mut [u8]) {
    match kind {
        BlockKind::F32 => each::<1, 4>(numbers, out, |x, out| *out = x[0].to_le_bytes()),
        BlockKind::F16 => each::<1, 2>(numbers, out, |x, out| {
            *out = f16::from_f32(x[0]).to_le_bytes();
        }),
        BlockKind::Bf16 => each::<1, 2>(numbers, out, |x, out| {
            *out = bf16::from_f32(x[0]).to_le_bytes();
        }),
        BlockKind::Q8_0 => each::<32, 34>(numbers, out, q8_0),
        BlockKind::Q4_K => each::<SUPER, 144>(numbers, out, q4_k),
        BlockKind::Q6_K => each::<SUPER, 210>(numbers, out, q6_k),
        other => unreachable!("{other:?} is not written"),
    }
}

#[inline(always)]
fn each<const LEN: usize, const BYTES: usize>(
    numbers: &[f32],
    out: &mut [u8],
    encode: impl Fn(&[f32; LEN], &mut [u8; BYTES]),
) {
    for (numbers, block) in numbers.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        encode(numbers, block);
    }
}

/// The sum of `N` terms.
#[inline(always)]
fn sum<const N: usize>(term: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0; 8];
    for first in (0..N).step_by(8) {
        for (lane, total) in lanes.iter_mut().enumerate() {
            *total += term(first + lane);
        }
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (b + f)) + ((c + g) + (d + h))
}

/// The nearest integer, of two the even one; for numbers below four millions.
#[inline(always)]
fn nearest(x: f32) -> f32 {
    // From here on f32 has no bits after the point: the addition rounds.
    const NO_FRACTION: f32 = 12_582_912.0;
    (x + NO_FRACTION) - NO_FRACTION
}

/// The factor of a block, which must stay finite, as it is written and as it is read.
#[inline(always)]
fn factor(x: f32) -> (f16, f32) {
    let half = f16::from_f32(x.clamp(-65504.0, 65504.0));
    (half, half.to_f32())
}

/// `x / divisor`, or zero where the divisor is.
#[inline(always)]
fn quotient(x: f32, divisor: f32) -> f32 {
    if divisor == 0.0 { 0.0 } else { x / divisor }
}

/// Halves go away from zero and the factor is rounded last: the bytes are those of ggml `quantize_row_q8_0_ref`.
#[inline(always)]
fn q8_0(x: &[f32; 32], b: &mut [u8; 34]) {
    let peak = x.iter().fold(0.0_f32, |peak, x| peak.max(x.abs()));
    let scale = peak / 127.0;
    let inverse = quotient(1.0, scale);
    b[..2].copy_from_slice(&factor(scale).0.to_le_bytes());
    for (x, out) in x.iter().zip(&mut b[2..]) {
        *out = ((x * inverse).round() as i8).cast_unsigned();
    }
}

#[inline(always)]
fn q4_k(x: &[f32; SUPER], b: &mut [u8; 144]) {
    let (parts, _) = x.as_chunks::<32>();
    let mut fits = [[0.0; 2]; 8];
    for (fit, part) in fits.iter_mut().zip(parts) {
        *fit = fit_scale_and_min(part);
    }
    let largest = |which: usize| fits.iter().fold(0.0_f32, |largest, fit| largest.max(fit[which]));
    let (d, d_read) = factor(largest(0) / 63.0);
    let (d_min, d_min_read) = factor(largest(1) / 63.0);
    b[..2].copy_from_slice(&d.to_le_bytes());
    b[2..4].copy_from_slice(&d_min.to_le_bytes());
    b[4..].fill(0);
    for (j, (part, fit)) in parts.iter().zip(fits).enumerate() {
        let [scale, min] = steps_near(part, fit, [d_read, d_min_read]);
        put_scale_and_min(&mut b[4..16], j, scale as u8, min as u8);
        let (scale, min) = (d_read * scale, d_min_read * min);
        let inverse = quotient(1.0, scale);
        for (x, out) in part.iter().zip(&mut b[16 + j / 2 * 32..][..32]) {
            let q = nearest(((x + min) * inverse).clamp(0.0, 15.0)) as u8;
            *out |= q << (j % 2 * 4);
        }
    }
}

/// Scale and minimum of a part in whole steps of the block's factors, 0 to 63: of the nearest and their neighbours those with the
/// least error. Rounding them one by one, as ggml does, leaves 1.4 % more.
#[inline(always)]
fn steps_near(x: &[f32; 32], fit: [f32; 2], factors: [f32; 2]) -> [f32; 2] {
    let weights = weights_of(x);
    let [scale, min] = [0, 1].map(|i| nearest(quotient(fit[i], factors[i]).min(63.0)));
    let (mut best, mut least) = ([scale, min], f32::INFINITY);
    for scale in [scale, scale - 1.0, scale + 1.0] {
        for min in [min, min - 1.0, min + 1.0] {
            if !(0.0..=63.0).contains(&scale) || !(0.0..=63.0).contains(&min) {
                continue;
            }
            let (factor, offset) = (factors[0] * scale, factors[1] * min);
            let inverse = quotient(1.0, factor);
            let error = sum::<32>(|i| {
                let q = nearest(((x[i] + offset) * inverse).clamp(0.0, 15.0));
                let difference = factor * q - offset - x[i];
                weights[i] * difference * difference
            });
            if error < least {
                (best, least) = ([scale, min], error);
            }
        }
    }
    best
}

/// `|x| + rms(x)`: errors of large weights matter more.
#[inline(always)]
fn weights_of(x: &[f32; 32]) -> [f32; 32] {
    let typical = (sum::<32>(|i| x[i] * x[i]) / 32.0).sqrt();
    std::array::from_fn(|i| typical + x[i].abs())
}

/// The inverse of `decode::scale_and_min`; the bytes begin as zeros.
#[inline(always)]
fn put_scale_and_min(bytes: &mut [u8], j: usize, scale: u8, min: u8) {
    if j < 4 {
        bytes[j] |= scale;
        bytes[j + 4] |= min;
    } else {
        bytes[j + 4] |= scale & 15 | (min & 15) << 4;
        bytes[j - 4] |= scale >> 4 << 6;
        bytes[j] |= min >> 4 << 6;
    }
}

/// Scale `s` and minimum `m`, neither below zero, of `x ~ s q - m` with q in 0..=15.
///
/// The squared errors are weighted by [`weights_of`]. For each of 21 spacings of `q`, the best
/// `s` and `m` in closed form; the spacing with the least error wins. Source: ggml `make_qkx2_quants`.
#[inline(always)]
fn fit_scale_and_min(x: &[f32; 32]) -> [f32; 2] {
    let low = x.iter().fold(0.0_f32, |low, &x| low.min(x));
    let high = x.iter().fold(f32::NEG_INFINITY, |high, &x| high.max(x));
    if high <= low {
        return [0.0, -low];
    }
    let weights = weights_of(x);
    let total = sum::<32>(|i| weights[i]);
    let total_x = sum::<32>(|i| weights[i] * x[i]);
    let mut best = [(high - low) / 15.0, -low];
    let mut least = f32::INFINITY;
    for step in 0..=20_u8 {
        let inverse = (14.0 + 0.1 * f32::from(step)) / (high - low);
        let q: [f32; 32] =
            std::array::from_fn(|i| nearest((inverse * (x[i] - low)).clamp(0.0, 15.0)));
        let weighted: [f32; 32] = std::array::from_fn(|i| weights[i] * q[i]);
        let total_q = sum::<32>(|i| weighted[i]);
        let total_qq = sum::<32>(|i| weighted[i] * q[i]);
        let total_qx = sum::<32>(|i| weighted[i] * x[i]);
        let determinant = total * total_qq - total_q * total_q;
        let mut scale = (total * total_qx - total_x * total_q) / determinant;
        let mut offset = (total_qq * total_x - total_q * total_qx) / determinant;
        if offset > 0.0 {
            (scale, offset) = (total_qx / total_qq, 0.0);
        }
        let error = sum::<32>(|i| {
            let difference = scale * q[i] + offset - x[i];
            weights[i] * difference * difference
        });
        // A determinant of zero gives no number, which is below nothing.
        if scale > 0.0 && error < least {
            (best, least) = ([scale, -offset], error);
        }
    }
    best
}

#[inline(always)]
fn q6_k(x: &[f32; SUPER], b: &mut [u8; 210]) {
    let (parts, _) = x.as_chunks::<16>();
    let mut scales = [0.0; 16];
    for (scale, part) in scales.iter_mut().zip(parts) {
        *scale = fit_scale(part);
    }
    // The largest scale becomes -128, which has no positive counterpart.
    let (d, d_read) = factor(largest_of(&scales) / -128.0);
    b.fill(0);
    b[208..].copy_from_slice(&d.to_le_bytes());
    for (j, (part, scale)) in parts.iter().zip(scales).enumerate() {
        let scale = nearest(quotient(scale, d_read).clamp(-128.0, 127.0)) as i8;
        b[192 + j] = scale.cast_unsigned();
        let inverse = quotient(1.0, d_read * f32::from(scale));
        for (i, x) in part.iter().enumerate() {
            let q = (nearest((x * inverse).clamp(-32.0, 31.0)) as i8 + 32).cast_unsigned();
            // The place of a number, as decode::q6_k describes it.
            let (half_idx, at) = (j / 8, (16 * j + i) % 128);
            let (quarter, i) = (at / 32, at % 32);
            b[half_idx * 64 + quarter % 2 * 32 + i] |= (q & 15) << (quarter / 2 * 4);
            b[128 + half_idx * 32 + i] |= q >> 4 << (quarter * 2);
        }
    }
}

/// The number that is farthest from zero; of two the first.
#[inline(always)]
fn largest_of(x: &[f32]) -> f32 {
    x.iter().fold(0.0_f32, |largest, &x| if x.abs() > largest.abs() { x } else { largest })
}

/// Scale `s` of `x ~ s q` with q in -32..=31; below zero where the largest number is above, which then has the wider side.
///
/// The squared errors are weighted by `x^2`; spacings are tried as in [`fit_scale_and_min`]. Source: ggml `make_qx_quants`.
#[inline(always)]
fn fit_scale(x: &[f32; 16]) -> f32 {
    let peak = largest_of(x);
    if peak == 0.0 {
        return 0.0;
    }
    let (mut best, mut least) = (peak / -32.0, f32::INFINITY);
    for step in -9..=9_i8 {
        let inverse = -(32.0 + 0.1 * f32::from(step)) / peak;
        let q: [f32; 16] = std::array::from_fn(|i| nearest((inverse * x[i]).clamp(-32.0, 31.0)));
        let weights: [f32; 16] = std::array::from_fn(|i| x[i] * x[i]);
        let total_qx = sum::<16>(|i| weights[i] * q[i] * x[i]);
        let total_qq = sum::<16>(|i| weights[i] * q[i] * q[i]);
        let scale = total_qx / total_qq;
        let error = sum::<16>(|i| {
            let difference = scale * q[i] - x[i];
            weights[i] * difference * difference
        });
        if error < least {
            (best, least) = (scale, error);
        }
    }
    best
}
