//! The arithmetic of the dot products, independent of the control register of whoever runs it.

use super::tile::{MAX_ROW_BYTES, Row, Signs};
use super::wide;

/// Columns of a full destination row.
pub(super) const COLUMNS: usize = MAX_ROW_BYTES / 4;

/// `out[n] = sum_k left[2k] * right[k][2n] + sum_k left[2k+1] * right[k][2n+1]` as
/// [`super::tile::TileState::bf16_product`] defines it, for all 16 columns; bytes past the configured columns are zero,
/// and so are the results there.
pub(super) fn bf16_row_product(left: &Row, right: &[Row]) -> [f32; COLUMNS] {
    let [even, odd] = wide::bf16_row_sums(left, right).unwrap_or_else(|| row_sums(left, right));
    std::array::from_fn(|n| add(even[n], odd[n]))
}

/// The sums over even and over odd elements of one row.
fn row_sums(left: &Row, right: &[Row]) -> [[f32; COLUMNS]; 2] {
    let mut sums = [[0.0; COLUMNS]; 2];
    for (k, right_row) in right.iter().enumerate() {
        for half in 0..2 {
            let a = bf16_at(left, 2 * k + half);
            for n in 0..COLUMNS {
                sums[half][n] = multiply_add(a, bf16_at(right_row, 2 * n + half), sums[half][n]);
            }
        }
    }
    sums
}

/// `out[n] = sum_k sum_i left[4k+i] * right[k][4n+i]` in wrapping i32, for all 16 columns.
pub(super) fn byte_row_product(left: &Row, right: &[Row], signs: Signs) -> [i32; COLUMNS] {
    let (left_sign, right_sign) = match signs {
        Signs::SignedSigned => (Sign::Signed, Sign::Signed),
        Signs::SignedUnsigned => (Sign::Signed, Sign::Unsigned),
        Signs::UnsignedSigned => (Sign::Unsigned, Sign::Signed),
        Signs::UnsignedUnsigned => (Sign::Unsigned, Sign::Unsigned),
    };
    let mut sums = [0_i32; COLUMNS];
    for (k, right_row) in right.iter().enumerate() {
        let group: [i32; 4] = std::array::from_fn(|i| left_sign.widen(left[4 * k + i]));
        for n in 0..COLUMNS {
            for i in 0..4 {
                sums[n] = sums[n].wrapping_add(group[i] * right_sign.widen(right_row[4 * n + i]));
            }
        }
    }
    sums
}

#[derive(Clone, Copy)]
enum Sign {
    Signed,
    Unsigned,
}

impl Sign {
    fn widen(self, byte: u8) -> i32 {
        match self {
            Self::Signed => i32::from(byte.cast_signed()),
            Self::Unsigned => i32::from(byte),
        }
    }
}

/// The f32 at element `n` of a row.
pub(super) fn f32_at(row: &Row, n: usize) -> f32 {
    f32::from_le_bytes([row[4 * n], row[4 * n + 1], row[4 * n + 2], row[4 * n + 3]])
}

/// The i32 at element `n` of a row.
pub(super) fn i32_at(row: &Row, n: usize) -> i32 {
    i32::from_le_bytes([row[4 * n], row[4 * n + 1], row[4 * n + 2], row[4 * n + 3]])
}

/// The bf16 at element `i` of a row, widened.
pub(super) fn bf16_at(row: &Row, i: usize) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes([row[2 * i], row[2 * i + 1]])) << 16)
}

/// Subnormals become zero of the same sign.
pub(super) fn flush(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { 0.0_f32.copysign(x) } else { x }
}

/// `a + b`, subnormal inputs and results flushed. A subnormal sum of two f32 is exact, so flushing after
/// rounding and before are the same.
pub(super) fn add(a: f32, b: f32) -> f32 {
    flush(flush(a) + flush(b))
}

/// `a * b + c` rounded once, subnormal inputs and results flushed.
///
/// Numerics: the product of two f32 is exact in f64. The sum is rounded to odd there, which makes the second
/// rounding to f32 the only one that counts (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008).
/// As in all x86 arithmetic a result is tiny when it is below the least normal number after rounding to 24 bits with
/// unbounded exponent.
pub(super) fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
    /// `2^-126 - 2^-151`: from here on 24 bits round up to the least normal number.
    const NOT_TINY: f64 = f64::from_bits(0x380F_FFFF_F000_0000);
    let product = f64::from(flush(a)) * f64::from(flush(b));
    let addend = f64::from(flush(c));
    let mut sum = product + addend;
    if !sum.is_finite() {
        return sum as f32;
    }
    // The rounding error of the sum, exact.
    let addend_part = sum - product;
    let error = (product - (sum - addend_part)) + (addend - addend_part);
    if error != 0.0 && sum.to_bits() & 1 == 0 {
        let away_from_zero = (error > 0.0) == (sum > 0.0);
        let bits = sum.to_bits();
        sum = f64::from_bits(if away_from_zero { bits + 1 } else { bits - 1 });
    }
    if sum.abs() < NOT_TINY { 0.0_f32.copysign(sum as f32) } else { sum as f32 }
}

#[cfg(test)]
#[expect(unsafe_code, reason = "the CPU's own flushing arithmetic is the oracle")]
mod tests {
    use super::{add, multiply_add, row_sums};
    use crate::amx_emulator::wide;
    use crate::random::Rng;
    use std::arch::asm;

    /// Flush results, treat subnormals as zero, mask all exceptions, round to nearest.
    const FLUSHING: u32 = 0x9FC0;

    /// `a * b + c` by the CPU in flushing mode; the caller has checked for FMA.
    fn cpu_multiply_add(a: f32, b: f32, c: f32) -> f32 {
        let (mode, mut saved, mut sum) = (FLUSHING, 0_u32, c);
        // SAFETY: the control register is restored within the block and FMA exists.
        unsafe {
            asm!(
                "stmxcsr [{saved}]",
                "ldmxcsr [{mode}]",
                "vfmadd231ss {sum}, {a}, {b}",
                "ldmxcsr [{saved}]",
                saved = in(reg) &raw mut saved,
                mode = in(reg) &raw const mode,
                sum = inout(xmm_reg) sum,
                a = in(xmm_reg) a,
                b = in(xmm_reg) b,
                options(nostack),
            );
        }
        sum
    }

    fn assert_same(ours: f32, expected: f32, from: (f32, f32, f32)) {
        let same = ours.to_bits() == expected.to_bits() || ours.is_nan() && expected.is_nan();
        assert!(same, "{from:?}: {ours:e}, expected {expected:e}");
    }

    #[test]
    fn multiply_add_is_tiny_after_rounding() {
        // 2^-126 - x * 2^-150 for x of 0.75 (flushed) and 0.5 (a tie to even, the least normal number) and 0.25.
        let least = f32::MIN_POSITIVE;
        let unit = 2.0_f32.powi(-80);
        for (quarters, expected) in [(3.0, 0.0), (2.0, least), (1.0, least)] {
            let product = -quarters * 2.0_f32.powi(-72);
            assert_eq!(multiply_add(unit, product, least), expected, "{quarters} quarters");
            assert_eq!(
                multiply_add(-unit, product, -least),
                -expected,
                "minus {quarters} quarters"
            );
        }
        assert_eq!(multiply_add(least, 1.0, -0.5 * least), least, "a subnormal addend is zero");
        assert_eq!(multiply_add(0.5 * least, 4.0, 0.0), 0.0, "a subnormal factor is zero");
    }

    #[test]
    fn multiply_add_rounds_once() {
        // (1 + 2^-12)^2 = 1 + 2^-11 + 2^-24 is a tie in 24 bits; the addend decides, and rounding to f64 first loses it.
        let factor = 1.0 + 2.0_f32.powi(-12);
        let below = 1.0 + 2.0_f32.powi(-11);
        for (addend, expected) in [(1.0, below + f32::EPSILON), (0.0, below), (-1.0, below)] {
            let addend = addend * 2.0_f32.powi(-80);
            assert_eq!(multiply_add(factor, factor, addend), expected);
            assert_eq!(multiply_add(-factor, factor, -addend), -expected);
        }
    }

    #[test]
    fn multiply_add_equals_the_cpu_in_flushing_mode() {
        if !std::arch::is_x86_feature_detected!("fma") {
            return;
        }
        let mut rng = Rng::new(1);
        for i in 0..200_000 {
            let mut random = || f32::from_bits(rng.next_u64() as u32);
            let (a, mut b, mut c) = (random(), random(), random());
            if i % 2 == 0 {
                // Product and addend near one another and near the least normal number.
                b = 2.0_f32.powi(-126 + (i % 7) - 3) / a * (1.0 + rng.uniform() as f32);
                c = 2.0_f32.powi(-126 + (i % 5) - 2) * (0.5 - rng.uniform() as f32);
            }
            assert_same(multiply_add(a, b, c), cpu_multiply_add(a, b, c), (a, b, c));
            assert_same(add(a, c), cpu_multiply_add(a, 1.0, c), (a, 1.0, c));
        }
    }

    #[test]
    fn wide_sums_equal_narrow_ones() {
        let mut rng = Rng::new(2);
        let mut row = |kind: usize| -> [u8; 64] {
            let mut row = [0; 64];
            for pair in row.as_chunks_mut::<2>().0 {
                let bits = rng.next_u64() as u16;
                // Any bits, exponents whose products are near the least normal number, or few mantissa bits there.
                *pair = match kind {
                    0 => bits,
                    1 => (bits & 0x80FF) | 61 << 7,
                    _ => (bits & 0x8020) | (bits & 0x100) >> 1 | 63 << 7,
                }
                .to_le_bytes();
            }
            row
        };
        for i in 0..300 {
            let left = row(i % 3);
            let right: [[u8; 64]; 16] = std::array::from_fn(|_| row(i % 3));
            let right = &right[..1 + i % 16];
            let narrow = row_sums(&left, right);
            let Some(wide) = wide::bf16_row_sums(&left, right) else { return };
            for half in 0..2 {
                for n in 0..16 {
                    assert_same(wide[half][n], narrow[half][n], (i as f32, half as f32, n as f32));
                }
            }
        }
    }

    #[test]
    fn wide_sums_flush_what_rounds_up_to_the_least_normal_number() {
        // 2^-126 - 0.75 * 2^-150, which the subnormal grid cannot tell from 2^-126.
        let bf16 = |x: f32| half::bf16::from_f32(x).to_le_bytes();
        let mut left = [0; 64];
        let mut right = [[0; 64]; 16];
        left[0..2].copy_from_slice(&bf16(2.0_f32.powi(-63)));
        left[4..6].copy_from_slice(&bf16(2.0_f32.powi(-75)));
        for n in [0, 5, 15] {
            right[0][4 * n..4 * n + 2].copy_from_slice(&bf16(2.0_f32.powi(-63)));
            right[1][4 * n..4 * n + 2].copy_from_slice(&bf16(-1.5 * 2.0_f32.powi(-76)));
        }
        // Column 7 keeps the least normal number.
        right[0][28..30].copy_from_slice(&bf16(2.0_f32.powi(-63)));
        let mut expected = [[0.0; 16]; 2];
        expected[0][7] = f32::MIN_POSITIVE;
        assert_eq!(row_sums(&left, &right[..2]), expected);
        if let Some(wide) = wide::bf16_row_sums(&left, &right[..2]) {
            assert_eq!(wide, expected);
        }
    }
}
