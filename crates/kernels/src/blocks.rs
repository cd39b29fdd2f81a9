//! Quantised weights: rows of blocks that share scales, in the layouts of GGUF files.
//!
//! A kind's numbers are defined by [`BlockKind::decode`], in f32. A product with such a weight rounds each number to the
//! operand type and multiplies as [`crate::matmul`] does: blocks of K are unpacked into panels and used for all rows of a task,
//! so a row has the same bits whatever rows stand beside it. A factor of a block that is not finite reaches the numbers of that
//! block, and in a product the columns of their rows.

use crate::compute::{Compute, Family};
use crate::lanes::{LaneKernel, Lanes, dispatch};
use crate::operand::Operand;
use crate::panels::{PANEL_WIDTH, padded_k};
use crate::pool::reinterpret;
use crate::transpose::transpose;

mod decode;
mod encode;

pub(crate) use decode::scale_and_min;

/// The kinds of blocks, named as in GGUF files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(non_camel_case_types, reason = "the names of the field")]
pub enum BlockKind {
    /// f32, one number.
    F32,
    /// IEEE half precision, one number.
    F16,
    /// bfloat16, one number.
    Bf16,
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
    /// 256 numbers of 2 bits; 16 scales and minima of 4 bits.
    Q2_K,
    /// 256 numbers of 3 bits; 16 scales of 6 bits.
    Q3_K,
    /// 256 numbers of 4 bits; 8 scales and minima of 6 bits.
    Q4_K,
    /// 256 numbers of 5 bits; 8 scales and minima of 6 bits.
    Q5_K,
    /// 256 numbers of 6 bits; 16 scales of 8 bits.
    Q6_K,
    /// 32 numbers of 4 bits that index a table, a scale.
    IQ4_NL,
    /// 256 numbers of 4 bits that index a table; 8 scales of 6 bits.
    IQ4_XS,
}

/// Version of the roundings that [`BlockKind::encode`] makes: others have another number, so that blocks that someone kept are not taken
/// for them.
pub const ENCODING_VERSION: u32 = 1;

impl BlockKind {
    /// Every kind.
    pub const ALL: [Self; 15] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2_K,
        Self::Q3_K,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
        Self::IQ4_NL,
        Self::IQ4_XS,
    ];

    /// Numbers of a block.
    #[must_use]
    pub const fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::IQ4_NL => 32,
            Self::Q2_K | Self::Q3_K | Self::Q4_K | Self::Q5_K | Self::Q6_K | Self::IQ4_XS => 256,
        }
    }

    /// Bytes of a block.
    #[must_use]
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_0 | Self::IQ4_NL => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2_K => 84,
            Self::Q3_K => 110,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
            Self::IQ4_XS => 136,
        }
    }

    /// Bytes of `n` numbers, which are whole blocks.
    ///
    /// # Panics
    /// When they are not, or the number overflows.
    #[must_use]
    pub fn bytes_of(self, n: usize) -> usize {
        assert!(
            n.is_multiple_of(self.block_len()),
            "{n} numbers in blocks of {}",
            self.block_len()
        );
        let len = (n / self.block_len()).checked_mul(self.block_bytes());
        len.expect("the number of bytes fits usize")
    }

    /// Writes the numbers of whole blocks. Overwrites.
    ///
    /// Numerics: f32 products and differences in the order of the formulas. Source: ggml `dequantize_row_*`, whose numbers
    /// these are.
    ///
    /// # Panics
    /// When the lengths do not fit.
    pub fn decode(self, blocks: &[u8], out: &mut [f32]) {
        assert_eq!(blocks.len(), self.bytes_of(out.len()), "bytes of {} numbers", out.len());
        decode::decode(self, blocks, out);
    }

    /// Whether [`encode_rows`] writes the kind.
    const fn is_written(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::Bf16 | Self::Q8_0 | Self::Q4_K | Self::Q6_K)
    }

    /// Writes finite numbers as whole blocks. Overwrites; the same bytes for every family.
    ///
    /// # Panics
    /// When the lengths do not fit or the kind is not written.
    pub fn encode(self, compute: &Compute, numbers: &[f32], out: &mut [u8]) {
        assert!(self.is_written(), "{self:?} is not written");
        assert_eq!(out.len(), self.bytes_of(numbers.len()), "bytes of {} numbers", numbers.len());
        match compute.family() {
            Family::Reference => encode::encode(self, numbers, out),
            family => dispatch(family, Encode { kind: self, numbers, out }),
        }
    }

    /// As [`BlockKind::decode`], compiled for the family.
    fn decode_on(self, family: Family, blocks: &[u8], out: &mut [f32]) {
        assert_eq!(blocks.len(), self.bytes_of(out.len()), "bytes of {} numbers", out.len());
        match family {
            Family::Reference => decode::decode(self, blocks, out),
            family => dispatch(family, Decode { kind: self, blocks, out }),
        }
    }
}

struct Decode<'a> {
    kind: BlockKind,
    blocks: &'a [u8],
    out: &'a mut [f32],
}

impl LaneKernel for Decode<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, _lanes: L) {
        decode::decode(self.kind, self.blocks, self.out);
    }
}

struct Encode<'a> {
    kind: BlockKind,
    numbers: &'a [f32],
    out: &'a mut [u8],
}

impl LaneKernel for Encode<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, _lanes: L) {
        encode::encode(self.kind, self.numbers, self.out);
    }
}

/// As [`BlockKind::encode`], on all threads.
///
/// # Panics
/// As [`BlockKind::encode`].
pub fn encode_rows(compute: &Compute, kind: BlockKind, numbers: &[f32], out: &mut [u8]) {
    // Enough work for a task: some milliseconds of the slowest kind.
    const NUMBERS_OF_TASK: usize = 1 << 14;
    assert_eq!(out.len(), kind.bytes_of(numbers.len()), "bytes of {} numbers", numbers.len());
    let task_bytes = kind.bytes_of(NUMBERS_OF_TASK);
    compute.pool().run_chunks(out, task_bytes, |task_idx, out, _| {
        let n = out.len() / kind.block_bytes() * kind.block_len();
        let numbers = &numbers[task_idx * NUMBERS_OF_TASK..][..n];
        kind.encode(compute, numbers, out);
    });
}

/// A matrix `[n, k]` of blocks, row by row.
#[derive(Clone, Copy, Debug)]
pub struct BlockMatrix<'a> {
    kind: BlockKind,
    n: usize,
    k: usize,
    bytes: &'a [u8],
}

impl<'a> BlockMatrix<'a> {
    /// A matrix whose rows are whole blocks.
    ///
    /// # Panics
    /// When they are not, or the bytes are not those of the shape.
    #[must_use]
    pub fn new(kind: BlockKind, bytes: &'a [u8], [n, k]: [usize; 2]) -> Self {
        let expected = n.checked_mul(kind.bytes_of(k));
        assert_eq!(Some(bytes.len()), expected, "bytes of [{n}, {k}] in {kind:?}");
        Self { kind, n, k, bytes }
    }

    pub(crate) fn kind(self) -> BlockKind {
        self.kind
    }

    /// The blocks of a row.
    pub(crate) fn row(self, row: usize) -> &'a [u8] {
        let row_bytes = self.kind.bytes_of(self.k);
        &self.bytes[row * row_bytes..][..row_bytes]
    }

    /// `[n, k]`.
    #[must_use]
    pub fn shape(self) -> [usize; 2] {
        [self.n, self.k]
    }

    /// Some numbers of a row, from a whole block on.
    fn decode_row(self, family: Family, row: usize, first_k: usize, out: &mut [f32]) {
        let start = row * self.kind.bytes_of(self.k) + self.kind.bytes_of(first_k);
        let bytes = &self.bytes[start..start + self.kind.bytes_of(out.len())];
        self.kind.decode_on(family, bytes, out);
    }

    /// The row `row` as f32, `[k]`. Overwrites.
    ///
    /// # Panics
    /// When there is no such row or `out` has another length.
    pub fn read_row(self, compute: &Compute, row: usize, out: &mut [f32]) {
        assert!(row < self.n && out.len() == self.k, "row {row} of [{}, {}]", self.n, self.k);
        self.decode_row(compute.family(), row, 0, out);
    }

    /// Length of the working memory of [`BlockMatrix::unpack`], in f32.
    pub(crate) fn scratch_len<T: Operand>(n_k: usize) -> usize {
        n_k + PANEL_WIDTH * padded_k::<T>(n_k) / T::GROUP
    }

    /// Panels of `n_rows` rows by `n_k` numbers, padded with zeros, in `panels`: as
    /// [`crate::panels::pack`] makes them.
    pub(crate) fn unpack<T: Operand>(
        self,
        family: Family,
        [row, n_rows]: [usize; 2],
        [first_k, n_k]: [usize; 2],
        scratch: &mut [f32],
        panels: &mut [T],
    ) {
        let padded = padded_k::<T>(n_k);
        let n_groups = padded / T::GROUP;
        let (numbers, rest) = scratch.split_at_mut(n_k);
        let rows = &mut rest[..PANEL_WIDTH * n_groups];
        for (panel_idx, panel) in panels.chunks_exact_mut(PANEL_WIDTH * padded).enumerate() {
            let first = panel_idx * PANEL_WIDTH;
            let width = PANEL_WIDTH.min(n_rows - first);
            rows.fill(0.0);
            for lane in 0..width {
                self.decode_row(family, row + first + lane, first_k, numbers);
                let out = &mut reinterpret::<T>(&mut rows[lane * n_groups..][..n_groups])[..n_k];
                round(family, numbers, out);
            }
            // Groups have 4 bytes, whatever they hold: they move as f32 do.
            let groups = as_groups(panel);
            transpose(family, rows, n_groups, [n_groups, PANEL_WIDTH], groups, PANEL_WIDTH);
        }
    }
}

fn round<T: Operand>(family: Family, numbers: &[f32], out: &mut [T]) {
    match family {
        Family::Reference => {
            out.iter_mut().zip(numbers).for_each(|(out, x)| *out = T::from_f32(*x));
        }
        family => dispatch(family, Round { numbers, out }),
    }
}

struct Round<'a, T> {
    numbers: &'a [f32],
    out: &'a mut [T],
}

impl<T: Operand> LaneKernel for Round<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        for i in (0..self.numbers.len()).step_by(L::N) {
            T::store(lanes, lanes.load(&self.numbers[i..]), &mut self.out[i..]);
        }
    }
}

/// Groups of 4 bytes, seen as f32.
#[expect(unsafe_code, reason = "a view of the same bytes")]
fn as_groups<T: Operand>(values: &mut [T]) -> &mut [f32] {
    let n_groups = values.len() / T::GROUP;
    let start = values.as_mut_ptr().cast::<f32>();
    assert!(start.is_aligned() && T::GROUP * size_of::<T>() == 4, "panels are aligned to groups");
    // SAFETY: every bit pattern is an f32, the groups cover no more bytes than the values, and alignment was checked.
    unsafe { std::slice::from_raw_parts_mut(start, n_groups) }
}

#[cfg(test)]
mod tests;
