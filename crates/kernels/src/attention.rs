//! Causal attention over blocks of keys, for packed documents and for a cache alike.
//!
//! Keys and values live in blocks of [`KEY_BLOCK`] positions ([`KeyBlocks`]), packed as right operands or in 8 bits. A sequence names its
//! blocks by a table of block ids, so that training (one block after the other) and a paged cache run the same kernel.
//!
//! Arithmetic, for every family: block `j` holds the positions `[32 j, 32 j + 32)` of its sequence; blocks are visited
//! in ascending order with a running maximum `m`, sum `l` and output `o` per query row, all f32:
//! `m' = max(m, max_k s_k)`, `p_k = exp(s_k - m')`, `l' = l exp(m - m') + sum_k p_k`,
//! `o' = o exp(m - m') + sum_k round(p_k) v_k`, where `s_k = scale * (q . k)` and masked keys give p = 0; p is rounded
//! to the operand type for the product with the values. Where keys and values are kept in 8 bits, `q . k` is multiplied by the scale of
//! the key first, and `p_k` by that of the value after it was summed and before it is rounded. A row sees the keys up to its own position, or the last `window` of them, its
//! own included. A block is visited by the rows that see at least one of its keys. The products follow [`crate::matmul`]. So a query row
//! has the same bits whatever rows share its tile, and whether its keys were computed now or read from a cache; this holds for finite
//! values, for a value that is not reaches every row of its sequence that sees a key of its block, as `0 * inf` where it is
//! masked. A query or a key that is NaN makes the rows that see it NaN; no other sequence is reached by anything.

use std::ops::Range;

use crate::compute::{Compute, Family};
use crate::lanes::{LaneKernel, Lanes, dispatch};
use crate::matmul::{Left, Write, matmul_here};
use crate::operand::Operand;
use crate::paths::KernelPath;
use crate::pool::{Scratch, SliceParts, reinterpret};
use crate::reference;
use crate::rope::RotatedHeads;

mod backward;
mod key_blocks;

pub use backward::{AttentionBackward, attention_backward};
pub(crate) use backward::{DeltaRow, GradientRow};
use key_blocks::HeadBlock;
pub use key_blocks::{CacheKind, KEY_BLOCK, KeyBlocks, append_keys_values};

/// Query rows (tokens x heads of one KV head) of a tile: enough to use a panel of keys many times.
const TILE_ROWS: usize = 96;

/// Query rows of a tile that are done with a block before the next one is there; with more, asking for it early costs more than it saves.
const FEW_ROWS: usize = 8;

/// The heads of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadShape {
    /// Query heads, a multiple of the KV heads.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Size of a head.
    pub head_dim: usize,
    /// Factor of the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Positions that a row sees, its own included; `None` for all up to its own.
    pub window: Option<usize>,
}

impl HeadShape {
    /// The heads of its rows of queries, keys and values: queries and keys are rotated, values copied.
    #[must_use]
    pub fn rotated(&self) -> RotatedHeads {
        let &Self { n_heads, n_kv_heads, .. } = self;
        RotatedHeads { n_query: n_heads, n_key: n_kv_heads, n_copied: n_kv_heads }
    }

    /// Query heads that share a KV head.
    #[must_use]
    pub fn group_len(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    /// Values in a token's row of queries, keys and values.
    #[must_use]
    pub fn qkv_width(&self) -> usize {
        (self.n_heads + 2 * self.n_kv_heads) * self.head_dim
    }

    /// First position that the row at `position` sees.
    #[must_use]
    pub fn first_visible(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// Which of `n_keys` keys from position `first_key` on the row at `position` sees, counted from `first_key`.
    pub(crate) fn visible_keys(
        &self,
        position: usize,
        first_key: usize,
        n_keys: usize,
    ) -> Range<usize> {
        let first = self.first_visible(position).saturating_sub(first_key).min(n_keys);
        first..(position + 1).saturating_sub(first_key).clamp(first, n_keys)
    }
}

/// One sequence of a batch: some query rows and the blocks that hold its keys.
#[derive(Clone, Copy, Debug)]
pub struct SequenceRows<'a> {
    /// First row of the sequence in the batch.
    pub first_row: usize,
    /// Its rows in the batch.
    pub n_rows: usize,
    /// Position of its first row; positions before it are in the blocks already.
    pub first_position: usize,
    /// Block ids by position / 32, covering `first_position + n_rows` positions.
    pub block_table: &'a [u32],
}

/// Causal attention: `out[t, h] = sum_k softmax_k(scale * q[t, h] . k[k]) v[k]` over the keys of the sequence at
/// positions up to the row's own and within its window. Query head h uses KV head `h / (n_heads / n_kv_heads)`.
///
/// Shapes: qkv `[tokens, n_heads + 2 n_kv_heads, head_dim]`, of which the queries are read; blocks as [`KeyBlocks`] says, where
/// [`append_keys_values`] must have run for these rows; out `[tokens, n_heads, head_dim]`, rounded to its type; log_sum_exp
/// `[tokens, n_heads]`, the logarithm of the softmax's divisor, which backward needs. Overwrites both outputs in the rows of
/// the sequences. Numerics: module documentation. Source: arXiv 2205.14135, algorithm 1.
///
/// # Panics
/// When a shape does not fit.
#[expect(unsafe_code, reason = "tasks write disjoint rows and heads")]
pub fn attention<T: Operand, O: Operand>(
    compute: &Compute,
    shape: HeadShape,
    qkv: &[T],
    sequences: &[SequenceRows<'_>],
    blocks: &KeyBlocks<T>,
    out: &mut [O],
    log_sum_exp: &mut [f32],
) {
    let out_width = shape.n_heads * shape.head_dim;
    assert_eq!(qkv.len() / shape.qkv_width(), out.len() / out_width, "one output row per token");
    assert_eq!(log_sum_exp.len(), out.len() / shape.head_dim, "log_sum_exp is [tokens, heads]");
    check_rows(sequences, log_sum_exp.len() / shape.n_heads);
    compute.count(match blocks.kind() {
        CacheKind::Operands => KernelPath::Attention,
        CacheKind::Int8 => KernelPath::AttentionInt8,
    });
    let tile_tokens = (TILE_ROWS / shape.group_len()).max(1);
    let tiles = tiles_of(sequences, tile_tokens);
    let (out, log_sum_exp) = (SliceParts::new(out), SliceParts::new(log_sum_exp));
    let family = compute.family();
    compute.pool().run(tiles.len() * shape.n_kv_heads, |task_idx, scratch| {
        let (tile, kv_head) = (tiles[task_idx / shape.n_kv_heads], task_idx % shape.n_kv_heads);
        let sequence = &sequences[tile.sequence];
        let job = TileJob { shape, sequence, tile, kv_head, qkv, blocks };
        attend_tile(family, scratch, &job, |token, head, row, lse| {
            // SAFETY: a task writes only its own tokens and the heads of its KV head; tiles do not overlap.
            unsafe {
                let at = token * shape.n_heads + head;
                let out = out.range(at * shape.head_dim, shape.head_dim);
                out.iter_mut().zip(row).for_each(|(out, x)| *out = O::from_f32(*x));
                log_sum_exp.range(at, 1)[0] = lse;
            }
        });
    });
}

fn check_rows(sequences: &[SequenceRows<'_>], n_tokens: usize) {
    let mut next_row = 0;
    for sequence in sequences {
        assert!(sequence.first_row >= next_row, "sequences overlap at row {}", sequence.first_row);
        next_row = sequence.first_row + sequence.n_rows;
    }
    assert!(next_row <= n_tokens, "sequences of {next_row} rows in a batch of {n_tokens}");
}

/// Some tokens of one sequence.
#[derive(Clone, Copy, Debug)]
struct Tile {
    sequence: usize,
    /// First token, counted within the sequence's rows.
    first: usize,
    n_tokens: usize,
}

/// The tiles of all sequences, the costliest (latest) of each first.
fn tiles_of(sequences: &[SequenceRows<'_>], tile_tokens: usize) -> Vec<Tile> {
    let mut tiles = Vec::new();
    for (sequence, rows) in sequences.iter().enumerate() {
        for first in (0..rows.n_rows).step_by(tile_tokens).rev() {
            tiles.push(Tile { sequence, first, n_tokens: tile_tokens.min(rows.n_rows - first) });
        }
    }
    tiles
}

struct TileJob<'a, T: Operand> {
    shape: HeadShape,
    sequence: &'a SequenceRows<'a>,
    tile: Tile,
    kv_head: usize,
    qkv: &'a [T],
    blocks: &'a KeyBlocks<T>,
}

impl<T: Operand> TileJob<'_, T> {
    /// Keys and values of block `block_idx` of the sequence, for the job's KV head.
    fn head_block(&self, block_idx: usize) -> HeadBlock<'_, T> {
        self.blocks.head(self.shape, self.sequence.block_table[block_idx], self.kv_head)
    }

    /// The tokens of the tile that see at least one key of a block: not those before it, nor those whose window begins after it.
    fn tokens_seeing(&self, block_idx: usize) -> Range<usize> {
        let first_position = self.sequence.first_position + self.tile.first;
        let block = block_idx * KEY_BLOCK..(block_idx + 1) * KEY_BLOCK;
        let first = block.start.saturating_sub(first_position);
        // The last key of the block is seen up to the position `window - 1` after it.
        let end = self.shape.window.map_or(usize::MAX, |window| block.end - 1 + window);
        first..self.tile.n_tokens.min(end.saturating_sub(first_position))
    }

    /// The queries of the tile, `[tokens, group, head_dim]`.
    fn gather_queries(&self, queries: &mut [T]) {
        let HeadShape { head_dim, .. } = self.shape;
        let group_width = self.shape.group_len() * head_dim;
        for (token, out) in queries.chunks_exact_mut(group_width).enumerate() {
            let row = self.sequence.first_row + self.tile.first + token;
            let start = row * self.shape.qkv_width() + self.kv_head * group_width;
            out.copy_from_slice(&self.qkv[start..start + group_width]);
        }
    }
}

/// All keys of one tile; `write(token, head, output row, log-sum-exp)` is called for each of its rows.
fn attend_tile<T: Operand>(
    family: Family,
    scratch: &mut Scratch,
    job: &TileJob<'_, T>,
    write: impl Fn(usize, usize, &[f32], f32),
) {
    let HeadShape { head_dim, scale, .. } = job.shape;
    let group_len = job.shape.group_len();
    let n_rows = job.tile.n_tokens * group_len;
    let widened_len = HeadBlock::<T>::scratch_len(job.blocks.kind(), job.shape);
    let ([queries, scores, probabilities, sums, state, row_out, widened], tiles) = scratch.split([
        n_rows * head_dim,
        n_rows * KEY_BLOCK,
        n_rows * KEY_BLOCK,
        n_rows * head_dim,
        2 * n_rows,
        head_dim,
        widened_len,
    ]);
    let widened = &mut reinterpret::<T>(widened)[..widened_len];
    let queries = &mut reinterpret::<T>(queries)[..n_rows * head_dim];
    let probabilities = &mut reinterpret::<T>(probabilities)[..n_rows * KEY_BLOCK];
    job.gather_queries(queries);
    sums.fill(0.0);
    let (maxima, divisors) = state.split_at_mut(n_rows);
    maxima.fill(f32::NEG_INFINITY);
    divisors.fill(0.0);
    let first_position = job.sequence.first_position + job.tile.first;
    let n_keys = first_position + job.tile.n_tokens;
    let first_block = job.shape.first_visible(first_position) / KEY_BLOCK;
    let end_block = n_keys.div_ceil(KEY_BLOCK);
    for block_idx in first_block..end_block {
        let block = job.head_block(block_idx).operands(family, widened);
        let has_next = n_rows <= FEW_ROWS && block_idx + 1 < end_block;
        let next = has_next.then(|| job.head_block(block_idx + 1));
        next.into_iter().for_each(HeadBlock::prefetch_keys);
        let tokens = job.tokens_seeing(block_idx);
        let rows = tokens.start * group_len..tokens.end * group_len;
        let left = Left::Rows { values: &queries[rows.start * head_dim..], stride: head_dim };
        let dims = [rows.len(), KEY_BLOCK, head_dim];
        let out = &mut scores[rows.start * KEY_BLOCK..];
        matmul_here(family, tiles, left, block.keys, dims, out, KEY_BLOCK, Write::Overwrite);
        block.scale_scores(&mut out[..rows.len() * KEY_BLOCK]);
        for token in tokens {
            let visible =
                job.shape.visible_keys(first_position + token, block_idx * KEY_BLOCK, KEY_BLOCK);
            for row in token * group_len..(token + 1) * group_len {
                let softmax = SoftmaxBlock {
                    scores: &scores[row * KEY_BLOCK..][..KEY_BLOCK],
                    visible: visible.clone(),
                    scale,
                    max: &mut maxima[row],
                    divisor: &mut divisors[row],
                    value_scales: block.value_scales(),
                    probabilities: &mut probabilities[row * KEY_BLOCK..][..KEY_BLOCK],
                    sums: &mut sums[row * head_dim..][..head_dim],
                };
                softmax.update(family);
            }
        }
        next.into_iter().for_each(HeadBlock::prefetch_values);
        let left =
            Left::Rows { values: &probabilities[rows.start * KEY_BLOCK..], stride: KEY_BLOCK };
        let dims = [rows.len(), head_dim, KEY_BLOCK];
        let out = &mut sums[rows.start * head_dim..];
        matmul_here(family, tiles, left, block.values, dims, out, head_dim, Write::Accumulate);
    }
    for row in 0..n_rows {
        let token = job.sequence.first_row + job.tile.first + row / group_len;
        let head = job.kv_head * group_len + row % group_len;
        for (out, sum) in row_out.iter_mut().zip(&sums[row * head_dim..][..head_dim]) {
            *out = sum / divisors[row];
        }
        write(token, head, row_out, maxima[row] + divisors[row].ln());
    }
}

/// One row's step over one block of keys (module documentation).
pub(crate) struct SoftmaxBlock<'a, T> {
    pub(crate) scores: &'a [f32],
    /// Keys of the block that the row sees, at least one.
    pub(crate) visible: Range<usize>,
    pub(crate) scale: f32,
    pub(crate) max: &'a mut f32,
    pub(crate) divisor: &'a mut f32,
    /// What the products with the values are to be multiplied by.
    pub(crate) value_scales: Option<&'a [f32; KEY_BLOCK]>,
    pub(crate) probabilities: &'a mut [T],
    pub(crate) sums: &'a mut [f32],
}

impl<T: Operand> SoftmaxBlock<'_, T> {
    fn update(self, family: Family) {
        if family == Family::Reference {
            reference::softmax_block(self);
        } else {
            dispatch(family, self);
        }
    }
}

impl<T: Operand> LaneKernel for SoftmaxBlock<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let mut scores = [f32::NEG_INFINITY; KEY_BLOCK];
        let scale = lanes.splat(self.scale);
        let mut max = lanes.splat(f32::NEG_INFINITY);
        scores[self.visible.clone()].copy_from_slice(&self.scores[self.visible.clone()]);
        for i in (0..KEY_BLOCK).step_by(L::N) {
            let scaled = lanes.mul(lanes.load(&scores[i..]), scale);
            lanes.store(scaled, &mut scores[i..]);
            max = lanes.max(max, scaled);
        }
        let new_max = self.max.max(lanes.reduce_max(max));
        let mut sum = lanes.splat(0.0);
        for i in (0..KEY_BLOCK).step_by(L::N) {
            let p = lanes.exp(lanes.sub(lanes.load(&scores[i..]), lanes.splat(new_max)));
            sum = lanes.add(sum, p);
            let p = match self.value_scales {
                Some(scales) => lanes.mul(p, lanes.load(&scales[i..])),
                None => p,
            };
            T::store(lanes, p, &mut self.probabilities[i..]);
        }
        let mut rescale = [*self.max - new_max; 16];
        lanes.store(lanes.exp(lanes.load(&rescale)), &mut rescale);
        let rescale = rescale[0];
        *self.divisor = self.divisor.mul_add(rescale, lanes.reduce_sum(sum));
        *self.max = new_max;
        if rescale != 1.0 {
            let rescale = lanes.splat(rescale);
            for i in (0..self.sums.len()).step_by(L::N) {
                lanes.store(lanes.mul(lanes.load(&self.sums[i..]), rescale), &mut self.sums[i..]);
            }
        }
    }
}

#[cfg(test)]
mod tests;
