//! Number types of stored tensors: their names and numbers in files, the sizes of their blocks, and plain numbers as f32.

use half::{bf16, f16};

use crate::config::WeightDtype;

/// Number type of a stored tensor, or kind of its blocks, which share scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(non_camel_case_types, reason = "the names of the field")]
pub enum TensorDtype {
    /// 32-bit float.
    F32,
    /// 16-bit float of IEEE 754.
    F16,
    /// The upper half of a 32-bit float.
    Bf16,
    /// 8-bit float: 4 bits of exponent, 3 of mantissa, no infinity (arXiv 2209.05433). The tensor has a scale beside it.
    F8E4M3,
    /// 32 numbers of 4 bits, a scale.
    Q4_0,
    /// 32 numbers of 4 bits, a scale and a minimum.
    Q4_1,
    /// 32 numbers of 5 bits, a scale.
    Q5_0,
    /// 32 numbers of 5 bits, a scale and a minimum.
    Q5_1,
    /// 32 numbers of 8 bits, a scale.
    Q8_0,
    /// 256 numbers of 2 bits.
    Q2_K,
    /// 256 numbers of 3 bits.
    Q3_K,
    /// 256 numbers of 4 bits.
    Q4_K,
    /// 256 numbers of 5 bits.
    Q5_K,
    /// 256 numbers of 6 bits.
    Q6_K,
    /// 32 numbers of 4 bits that index a table.
    IQ4_NL,
    /// 256 numbers of 4 bits that index a table.
    IQ4_XS,
}

/// Type, its number in GGUF files, its name, numbers and bytes of a block.
type DtypeRow = (TensorDtype, Option<u32>, &'static str, usize, usize);

/// Every type, in the order of the enum.
const DTYPES: [DtypeRow; 16] = [
    (TensorDtype::F32, Some(0), "F32", 1, 4),
    (TensorDtype::F16, Some(1), "F16", 1, 2),
    (TensorDtype::Bf16, Some(30), "BF16", 1, 2),
    (TensorDtype::F8E4M3, None, "F8_E4M3", 1, 1),
    (TensorDtype::Q4_0, Some(2), "Q4_0", 32, 18),
    (TensorDtype::Q4_1, Some(3), "Q4_1", 32, 20),
    (TensorDtype::Q5_0, Some(6), "Q5_0", 32, 22),
    (TensorDtype::Q5_1, Some(7), "Q5_1", 32, 24),
    (TensorDtype::Q8_0, Some(8), "Q8_0", 32, 34),
    (TensorDtype::Q2_K, Some(10), "Q2_K", 256, 84),
    (TensorDtype::Q3_K, Some(11), "Q3_K", 256, 110),
    (TensorDtype::Q4_K, Some(12), "Q4_K", 256, 144),
    (TensorDtype::Q5_K, Some(13), "Q5_K", 256, 176),
    (TensorDtype::Q6_K, Some(14), "Q6_K", 256, 210),
    (TensorDtype::IQ4_NL, Some(20), "IQ4_NL", 32, 18),
    (TensorDtype::IQ4_XS, Some(23), "IQ4_XS", 256, 136),
];

impl TensorDtype {
    const fn row(self) -> DtypeRow {
        DTYPES[self as usize]
    }

    /// The type that GGUF files number so, if it is one that is read.
    pub(crate) fn from_ggml(number: u32) -> Option<Self> {
        DTYPES.iter().find(|row| row.1 == Some(number)).map(|row| row.0)
    }

    /// The number of the type in GGUF files, which do not have all.
    #[must_use]
    pub const fn ggml(self) -> Option<u32> {
        self.row().1
    }

    /// Numbers of a block; 1 for plain numbers.
    #[must_use]
    pub const fn block_len(self) -> usize {
        self.row().3
    }

    /// Bytes of a block, or of a plain number.
    #[must_use]
    pub const fn block_bytes(self) -> usize {
        self.row().4
    }

    /// Whether numbers stand by themselves.
    #[must_use]
    pub const fn is_plain(self) -> bool {
        self.block_len() == 1
    }

    /// Bytes of `n` numbers, which are whole blocks.
    ///
    /// # Panics
    /// When they are not.
    #[must_use]
    pub fn bytes_of(self, n: usize) -> usize {
        let block_len = self.block_len();
        assert!(n.is_multiple_of(block_len), "{n} numbers in blocks of {block_len}");
        n / self.block_len() * self.block_bytes()
    }

    /// The name in safetensors and GGUF files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.row().2
    }

    /// Widens little-endian numbers to f32, which holds all of them exactly.
    ///
    /// # Panics
    /// When `out` has another length than there are numbers, or they are in blocks, which the kernels read.
    pub fn read_f32(self, bytes: &[u8], out: &mut [f32]) {
        assert!(self.is_plain(), "{} is read by the kernels", self.name());
        assert_eq!(bytes.len(), self.bytes_of(out.len()), "bytes of {} numbers", out.len());
        match self {
            Self::F32 => {
                for (number, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *number = f32::from_le_bytes(*bytes);
                }
            }
            Self::F16 => {
                for (number, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *number = f16::from_le_bytes(*bytes).to_f32();
                }
            }
            Self::Bf16 => {
                for (number, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *number = bf16::from_le_bytes(*bytes).to_f32();
                }
            }
            Self::F8E4M3 => {
                for (number, byte) in out.iter_mut().zip(bytes) {
                    *number = f8_e4m3_to_f32(*byte);
                }
            }
            _ => unreachable!("only plain numbers came here"),
        }
    }

    /// Writes numbers as little-endian bytes, rounded to the nearest, of two as near to the even one. The inverse of
    /// [`TensorDtype::read_f32`] for numbers that the type holds.
    ///
    /// # Panics
    /// When `out` has another length than the numbers take, or rounding alone does not make the type.
    pub(crate) fn write_f32(self, numbers: &[f32], out: &mut [u8]) {
        assert_eq!(out.len(), self.bytes_of(numbers.len()), "bytes of {} numbers", numbers.len());
        match self {
            Self::F32 => put(numbers, out, f32::to_le_bytes),
            Self::F16 => put(numbers, out, |number| f16::from_f32(number).to_le_bytes()),
            Self::Bf16 => put(numbers, out, |number| bf16::from_f32(number).to_le_bytes()),
            _ => panic!("{} is not made by rounding alone", self.name()),
        }
    }

    /// Whether f32 numbers become the type by rounding alone.
    pub(crate) const fn is_rounded_to(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::Bf16)
    }
}

fn put<const N: usize>(numbers: &[f32], out: &mut [u8], bytes_of: impl Fn(f32) -> [u8; N]) {
    for (number, out) in numbers.iter().zip(out.as_chunks_mut().0) {
        *out = bytes_of(*number);
    }
}

impl From<WeightDtype> for TensorDtype {
    fn from(dtype: WeightDtype) -> Self {
        match dtype {
            WeightDtype::F32 => Self::F32,
            WeightDtype::F16 => Self::F16,
            WeightDtype::Bf16 => Self::Bf16,
        }
    }
}

/// Exponent bias 7; the largest exponent holds numbers too, but for the one pattern that is no number.
fn f8_e4m3_to_f32(byte: u8) -> f32 {
    let (exponent, mantissa) = (byte >> 3 & 0xf, f32::from(byte & 7));
    let magnitude = match (exponent, byte & 7) {
        (0xf, 7) => f32::NAN,
        (0, _) => mantissa / 8.0 * 2.0_f32.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2.0_f32.powi(i32::from(exponent) - 7),
    };
    if byte & 0x80 == 0 { magnitude } else { -magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_eight_bits_are_those_of_the_definition() {
        let f8 = |byte| {
            let mut out = [0.0];
            TensorDtype::F8E4M3.read_f32(&[byte], &mut out);
            out[0]
        };
        // Zero, smallest, largest below the normal numbers, smallest normal, one, largest (arXiv 2209.05433, table 1).
        let cases = [
            (0x00, 0.0),
            (0x01, 2.0_f32.powi(-9)),
            (0x07, 0.875 * 2.0_f32.powi(-6)),
            (0x08, 2.0_f32.powi(-6)),
            (0x38, 1.0),
            (0x7e, 448.0),
            (0xfe, -448.0),
            (0xbc, -1.5),
        ];
        for (byte, expected) in cases {
            assert_eq!(f8(byte), expected, "{byte:#x}");
        }
        assert!(f8(0x7f).is_nan() && f8(0xff).is_nan());
    }
}
