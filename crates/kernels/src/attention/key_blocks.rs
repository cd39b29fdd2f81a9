//! Where keys and values are kept: blocks of [`KEY_BLOCK`] positions, as products take them or in 8 bits.
//!
//! In 8 bits the key of a position and head is a scale, `max|k| / 127`, and codes `round(k * (1 / scale))`, in f32, ties to even; values
//! likewise. Codes are whole numbers that every operand type holds exactly, so products take the codes themselves. A score is multiplied by the scale of its key, a
//! probability by that of its value before it is rounded. A key or value with a number that is not finite has the scale NaN; one whose
//! scale would be subnormal is zero.

use super::{HeadShape, SequenceRows};
use crate::buffer::{Buffer, Element};
use crate::compute::{Compute, Family};
use crate::lanes::{LaneKernel, Lanes, dispatch};
use crate::operand::Operand;
use crate::panels::{PANEL_WIDTH, Source, SourceOrder, pack_here, padded_k, panels_len};
use crate::pool::SliceParts;
use crate::prefetch::prefetch;

/// Positions in a block of keys.
pub const KEY_BLOCK: usize = 32;

/// Largest magnitude of a code.
const MAX_CODE: f32 = 127.0;

/// What keys and values are kept as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheKind {
    /// The numbers that products take.
    Operands,
    /// 8 bits, and a scale for each position and head: about half the bytes of bf16, rounded.
    Int8,
}

/// Memory for keys and values of layers whose products take operands of type `T`.
#[derive(Debug)]
pub enum KeyBlocks<T: Operand> {
    /// [`CacheKind::Operands`]: `[n_blocks, n_kv_heads, keys then values]`, keys as panels of `[KEY_BLOCK, head_dim]`, values as panels
    /// of `[head_dim, KEY_BLOCK]`.
    Operands(Buffer<T>),
    /// [`CacheKind::Int8`]: the same places with a byte for each number, then f32 scales of the keys and of the values of a head.
    Int8(Buffer<u8>),
}

impl<T: Operand> KeyBlocks<T> {
    /// Blocks of zeros.
    #[must_use]
    pub fn zeroed(kind: CacheKind, shape: HeadShape, n_blocks: usize) -> Self {
        let numbers = |head_len: usize| {
            let of_all =
                shape.n_kv_heads.checked_mul(head_len).and_then(|n| n.checked_mul(n_blocks));
            of_all.expect("the number of values fits usize")
        };
        match kind {
            CacheKind::Operands => Self::Operands(Buffer::zeroed(numbers(head_len::<T>(shape)))),
            CacheKind::Int8 => Self::Int8(Buffer::zeroed(numbers(int8_head_len::<T>(shape)))),
        }
    }

    /// Bytes of one block.
    #[must_use]
    pub fn block_bytes(kind: CacheKind, shape: HeadShape) -> usize {
        shape.n_kv_heads
            * match kind {
                CacheKind::Operands => head_len::<T>(shape) * size_of::<T>(),
                CacheKind::Int8 => int8_head_len::<T>(shape),
            }
    }

    /// What they are.
    #[must_use]
    pub fn kind(&self) -> CacheKind {
        match self {
            Self::Operands(_) => CacheKind::Operands,
            Self::Int8(_) => CacheKind::Int8,
        }
    }

    /// Bytes that they take.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        match self {
            Self::Operands(values) => size_of_val::<[T]>(values),
            Self::Int8(bytes) => bytes.len(),
        }
    }

    /// Blocks of this shape that there are.
    #[must_use]
    pub fn n_blocks(&self, shape: HeadShape) -> usize {
        self.n_bytes() / Self::block_bytes(self.kind(), shape)
    }

    /// One KV head of a block.
    pub(super) fn head(&self, shape: HeadShape, block_id: u32, kv_head: usize) -> HeadBlock<'_, T> {
        let head = block_id as usize * shape.n_kv_heads + kv_head;
        let keys_len = panels_len::<T>(KEY_BLOCK, shape.head_dim);
        match self {
            Self::Operands(values) => {
                let len = head_len::<T>(shape);
                let (keys, values) = values[head * len..][..len].split_at(keys_len);
                HeadBlock::Operands { keys, values }
            }
            Self::Int8(bytes) => {
                let len = int8_head_len::<T>(shape);
                let (codes, scales) = bytes[head * len..][..len].split_at(head_len::<T>(shape));
                let (keys, values) = codes.split_at(keys_len);
                HeadBlock::Int8 { keys, values, scales }
            }
        }
    }
}

/// Values of one KV head in a block: its keys, then its values.
fn head_len<T: Operand>(shape: HeadShape) -> usize {
    panels_len::<T>(KEY_BLOCK, shape.head_dim) + panels_len::<T>(shape.head_dim, KEY_BLOCK)
}

/// Bytes of one KV head in a block of 8 bits.
fn int8_head_len<T: Operand>(shape: HeadShape) -> usize {
    head_len::<T>(shape) + 2 * KEY_BLOCK * size_of::<f32>()
}

/// The keys and values of one head in a block.
#[derive(Clone, Copy, Debug)]
pub(super) enum HeadBlock<'a, T> {
    Operands {
        keys: &'a [T],
        values: &'a [T],
    },
    Int8 {
        keys: &'a [u8],
        values: &'a [u8],
        /// Of the keys, then of the values.
        scales: &'a [u8],
    },
}

impl<'a, T: Operand> HeadBlock<'a, T> {
    /// Numbers of scratch that [`HeadBlock::operands`] takes.
    pub(super) fn scratch_len(kind: CacheKind, shape: HeadShape) -> usize {
        match kind {
            CacheKind::Operands => 0,
            CacheKind::Int8 => head_len::<T>(shape),
        }
    }

    /// Keys and values as products take them; codes are widened into `scratch`.
    pub(super) fn operands(self, family: Family, scratch: &'a mut [T]) -> [&'a [T]; 2] {
        match self {
            Self::Operands { keys, values } => [keys, values],
            Self::Int8 { keys, values, .. } => {
                let (keys_out, values_out) = scratch.split_at_mut(keys.len());
                widen(family, keys, keys_out);
                widen(family, values, values_out);
                [keys_out, values_out]
            }
        }
    }

    /// Copies the scales of the block's keys and of its values, where it has some.
    pub(super) fn copy_scales(self, key_scales: &mut [f32], value_scales: &mut [f32]) {
        let Self::Int8 { scales, .. } = self else { return };
        let numbers = scales.as_chunks().0.iter().map(|bytes| f32::from_ne_bytes(*bytes));
        let out = key_scales.iter_mut().chain(value_scales);
        out.zip(numbers).for_each(|(out, scale)| *out = scale);
    }

    /// Asks for the keys: blocks lie anywhere, so that the processor does not foresee the next one.
    pub(super) fn prefetch_keys(self) {
        match self {
            Self::Operands { keys, .. } => prefetch(keys.as_ptr().cast(), size_of_val(keys)),
            Self::Int8 { keys, .. } => prefetch(keys.as_ptr(), keys.len()),
        }
    }

    /// As [`HeadBlock::prefetch_keys`], for all but the keys.
    pub(super) fn prefetch_values(self) {
        match self {
            Self::Operands { values, .. } => prefetch(values.as_ptr().cast(), size_of_val(values)),
            Self::Int8 { values, scales, .. } => {
                prefetch(values.as_ptr(), values.len() + scales.len());
            }
        }
    }
}

/// Signed codes as operands, which hold them exactly.
fn widen<T: Operand>(family: Family, codes: &[u8], out: &mut [T]) {
    let task = Widen { codes, out };
    match family {
        Family::Reference => task.each(),
        family => dispatch(family, task),
    }
}

struct Widen<'a, T> {
    codes: &'a [u8],
    out: &'a mut [T],
}

impl<T: Operand> Widen<'_, T> {
    #[inline(always)]
    fn each(self) {
        for (out, code) in self.out.iter_mut().zip(self.codes) {
            *out = T::from_f32(f32::from(code.cast_signed()));
        }
    }
}

impl<T: Operand> LaneKernel for Widen<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        // Panels have whole lines of 16 values or more.
        let chunks = self.codes.as_chunks::<16>().0.iter().zip(self.out.as_chunks_mut::<16>().0);
        for (codes, out) in chunks {
            let numbers = codes.map(|code| f32::from(code.cast_signed()));
            for i in (0..16).step_by(L::N) {
                T::store(lanes, lanes.load(&numbers[i..]), &mut out[i..]);
            }
        }
    }
}

/// Writes the keys and values of new rows into their sequences' blocks.
///
/// Shapes: qkv `[tokens, n_heads + 2 n_kv_heads, head_dim]` (queries, keys, values; keys rotated); blocks as [`KeyBlocks`] says. A block
/// is cleared when its first position is written, so that no value of an earlier owner is left in it. Numerics: module
/// documentation.
///
/// # Panics
/// When a shape does not fit or a block id is out of range.
pub fn append_keys_values<T: Operand>(
    compute: &Compute,
    shape: HeadShape,
    qkv: &[T],
    sequences: &[SequenceRows<'_>],
    blocks: &mut KeyBlocks<T>,
) {
    check_tables(sequences, blocks.n_blocks(shape));
    let rows = NewRows { compute, shape, qkv, sequences };
    match blocks {
        KeyBlocks::Operands(values) => {
            let (head_len, zero) = (head_len::<T>(shape), T::from_f32(0.0));
            let row = |head: &mut [T], slot, part, x: &[T]| {
                store::<T, T>(shape, [part, slot], x, |x| x, head);
            };
            rows.append(values, head_len, zero, row, |head, [keys, values]| {
                pack_block(compute.family(), shape, [keys, values], head);
                true
            });
        }
        KeyBlocks::Int8(bytes) => {
            let codes_len = head_len::<T>(shape);
            let row = |head: &mut [u8], slot, part, x: &[T]| {
                let (codes, scales) = head.split_at_mut(codes_len);
                let [scale, inverse] = scale_of(x);
                let scale_idx = part * KEY_BLOCK + slot;
                scales[4 * scale_idx..][..4].copy_from_slice(&scale.to_ne_bytes());
                // A value that is not finite has no code, but the scale says it.
                let code = |x: T| (x.to_f32() * inverse).round_ties_even() as i8;
                store(shape, [part, slot], x, |x| code(x).cast_unsigned(), codes);
            };
            rows.append(bytes, int8_head_len::<T>(shape), 0, row, |_, _| false);
        }
    }
}

/// Writes a whole block of keys and values, whose rows are those of tokens.
fn pack_block<T: Operand>(
    family: Family,
    shape: HeadShape,
    [keys, values]: [&[T]; 2],
    head: &mut [T],
) {
    let (head_dim, stride) = (shape.head_dim, shape.qkv_width());
    let (key_panels, value_panels) = head.split_at_mut(panels_len::<T>(KEY_BLOCK, head_dim));
    let keys = Source { values: keys, stride, order: SourceOrder::RowsOfN };
    pack_here(family, keys, [KEY_BLOCK, head_dim], key_panels);
    let values = Source { values, stride, order: SourceOrder::RowsOfK };
    pack_here(family, values, [head_dim, KEY_BLOCK], value_panels);
}

/// Writes the numbers of a key (part 0) or value (part 1) of a position into a head's block, line by line.
#[inline(always)]
fn store<T: Operand, E>(
    shape: HeadShape,
    [part, slot]: [usize; 2],
    x: &[T],
    convert: impl Fn(T) -> E,
    head: &mut [E],
) {
    let line_len = PANEL_WIDTH * T::GROUP;
    if part == 0 {
        let panel_len = PANEL_WIDTH * padded_k::<T>(shape.head_dim);
        let (panel, lane) = (slot / PANEL_WIDTH, slot % PANEL_WIDTH);
        let lines = head[panel * panel_len..].chunks_exact_mut(line_len);
        for (x, line) in x.chunks(T::GROUP).zip(lines) {
            for (offset, &x) in x.iter().enumerate() {
                line[lane * T::GROUP + offset] = convert(x);
            }
        }
        return;
    }
    let (group, offset) = (slot / T::GROUP, slot % T::GROUP);
    let values = &mut head[panels_len::<T>(KEY_BLOCK, shape.head_dim)..];
    let panels = values.chunks_exact_mut(PANEL_WIDTH * padded_k::<T>(KEY_BLOCK));
    for (x, panel) in x.chunks(PANEL_WIDTH).zip(panels) {
        let line = &mut panel[group * line_len..][..line_len];
        for (lane, &x) in x.iter().enumerate() {
            line[lane * T::GROUP + offset] = convert(x);
        }
    }
}

/// Scale of a key or value, and its inverse: what its numbers are multiplied by, zero where they get no codes.
fn scale_of<T: Operand>(x: &[T]) -> [f32; 2] {
    let numbers = x.iter().map(|x| x.to_f32().abs());
    let scale = numbers.clone().fold(0.0, f32::max) / MAX_CODE;
    if !numbers.into_iter().all(f32::is_finite) {
        [f32::NAN, 0.0]
    } else if scale.is_normal() {
        [scale, 1.0 / scale]
    } else {
        [0.0, 0.0]
    }
}

/// Rows whose keys and values are kept.
struct NewRows<'a, T> {
    compute: &'a Compute,
    shape: HeadShape,
    qkv: &'a [T],
    sequences: &'a [SequenceRows<'a>],
}

impl<T: Operand> NewRows<'_, T> {
    /// Calls `write(head's block, place of the position in it, part, numbers)` for each new row and KV head, in order, with the key as part 0
    /// and the value as part 1; a block is filled with `zero` before its first position is written. Where all positions of a block are new,
    /// `write_whole` gets them first, as the rows of keys and of values, and says whether it wrote them.
    #[expect(unsafe_code, reason = "tasks write blocks of different sequences and heads")]
    fn append<E: Element>(
        &self,
        blocks: &mut [E],
        head_len: usize,
        zero: E,
        write: impl Fn(&mut [E], usize, usize, &[T]) + Sync,
        write_whole: impl Fn(&mut [E], [&[T]; 2]) -> bool + Sync,
    ) {
        let Self { compute, shape, qkv, sequences } = *self;
        let HeadShape { n_heads, n_kv_heads, head_dim, .. } = shape;
        let parts = SliceParts::new(blocks);
        compute.pool().run(sequences.len() * n_kv_heads, |task_idx, _| {
            let (sequence, head) = (&sequences[task_idx / n_kv_heads], task_idx % n_kv_heads);
            let mut next = 0;
            while next < sequence.n_rows {
                let row = next;
                next += 1;
                let position = sequence.first_position + row;
                let block_id = sequence.block_table[position / KEY_BLOCK] as usize;
                let start = (block_id * n_kv_heads + head) * head_len;
                // SAFETY: a block belongs to one sequence (`check_tables` refused one that two write), a task to one head.
                let block = unsafe { parts.range(start, head_len) };
                let token = &qkv[(sequence.first_row + row) * shape.qkv_width()..];
                let rows = [n_heads + head, n_heads + n_kv_heads + head]
                    .map(|head| &token[head * head_dim..]);
                let slot = position % KEY_BLOCK;
                let is_whole = slot == 0 && row + KEY_BLOCK <= sequence.n_rows;
                if is_whole && write_whole(block, rows) {
                    next = row + KEY_BLOCK;
                    continue;
                }
                if slot == 0 {
                    block.fill(zero);
                }
                for (part, rows) in rows.into_iter().enumerate() {
                    write(block, slot, part, &rows[..head_dim]);
                }
            }
        });
    }
}

/// A block that two sequences write would make their tasks overlap. The ids are sorted, for a mark of each block of a cache would cost
/// more than the few that a step writes, in every layer.
fn check_tables(sequences: &[SequenceRows<'_>], n_blocks: usize) {
    let mut written = Vec::new();
    for sequence in sequences {
        let end = sequence.first_position + sequence.n_rows;
        assert!(sequence.block_table.len() * KEY_BLOCK >= end, "the table ends before {end}");
        let blocks = sequence.first_position / KEY_BLOCK..end.div_ceil(KEY_BLOCK);
        written.extend_from_slice(&sequence.block_table[blocks]);
    }
    written.sort_unstable();
    if let Some(&last) = written.last() {
        assert!((last as usize) < n_blocks, "block {last} of {n_blocks}");
    }
    for pair in written.windows(2) {
        assert!(pair[0] != pair[1], "block {} is written by two sequences", pair[0]);
    }
}
