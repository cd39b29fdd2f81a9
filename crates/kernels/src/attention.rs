//! Causal attention over blocks of keys, for packed documents and for a cache alike.
//!
//! Keys and values live in blocks of [`KEY_BLOCK`] positions ([`KeyBlocks`]), packed as right operands or in 8 bits. A sequence names its
//! blocks by a table of block ids, so that training (one block after the other) and a paged cache run the same kernel.
//!
//! Arithmetic, for every family: block `j` holds the positions `[32 j, 32 j + 32)` of its sequence, a step two blocks, positions
//! `[64 i, 64 i + 64)`. Steps are visited in ascending order with a running maximum `m`, divisor `l` and output `o` per query row, all f32:
//! `m' = max(m, max_k s_k)`, `p_k = exp(scale (s_k - m'))`, `l' = l exp(scale (m - m')) + sum_k p_k`, `o' = o exp(scale (m - m'))`, then, block by
//! block, `o' = o' + sum_k round(p_k) v_k`, where `s_k = q . k` and masked keys give p = 0; p is rounded
//! to the operand type for the product with the values. While `m'` is negative infinity, the least finite number stands in its place. Where keys and values are kept in 8 bits, `q . k` is
//! multiplied by the scale of the key first, and `p_k` by that of the value after it was summed and before it is rounded. All families but the reference take
//! `exp(scale x)` as `2^(scale log2(e) x)`, and keep 16 parts of `l`, by position modulo 16, which are added at the end. A row sees the keys up to its own
//! position, or the last `window` of them, its own included. The values of a block are added by the rows that see at least one of its keys.
//! The products follow [`crate::matmul`]. So a query row
//! has the same bits whatever rows share its tile, and whether its keys were computed now or read from a cache; this holds for finite
//! values, for a value that is not reaches every row of its sequence that sees a key of its block, as `0 * inf` where it is
//! masked. A query or a key that is NaN makes the rows that see it NaN; no other sequence is reached by anything.

use std::ops::Range;

use crate::compute::Compute;
use crate::operand::Operand;
use crate::paths::KernelPath;
use crate::pool::SliceParts;
use crate::rope::RotatedHeads;

#[cfg(target_arch = "x86_64")]
mod amx;
mod backward;
mod key_blocks;
mod products;
pub(crate) mod softmax;
mod tile;

pub use backward::{AttentionBackward, attention_backward};
pub(crate) use backward::{DeltaRow, GradientStep};
pub use key_blocks::{CacheKind, KEY_BLOCK, KeyBlocks, append_keys_values};
use softmax::DivideRow;
use tile::{Tile, TileJob};

/// Positions whose probabilities are computed together (module documentation).
pub(crate) const KEY_STEP: usize = 64;

const STEP_BLOCKS: usize = KEY_STEP / KEY_BLOCK;

/// Query rows (tokens x heads of one KV head) of a tile, at most and, where there are many threads, at least: the more, the fewer times a step
/// of keys comes from memory or the third cache.
const TILE_ROWS: [usize; 2] = [512, 64];

/// Tiles and KV heads for each thread, so that all are done at about the same time.
const TASKS_PER_THREAD: usize = 4;

/// Query rows of a tile whose scores are computed together: they, their probabilities and sums stay in the first cache.
const BUNDLE: usize = 32;

/// The heads of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadShape {
    /// Query heads, a multiple of the KV heads.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Size of a head.
    pub head_dim: usize,
    /// Factor of the scores, above zero, usually `1 / sqrt(head_dim)`.
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
    assert!(shape.scale > 0.0, "scale {} of scores", shape.scale);
    check_rows(sequences, log_sum_exp.len() / shape.n_heads);
    compute.count(match blocks.kind() {
        CacheKind::Operands => KernelPath::Attention,
        CacheKind::Int8 => KernelPath::AttentionInt8,
    });
    let tiles = tiles_of(sequences, tile_tokens(compute, shape, sequences));
    let (out, log_sum_exp) = (SliceParts::new(out), SliceParts::new(log_sum_exp));
    let family = compute.family();
    compute.pool().run(tiles.len() * shape.n_kv_heads, |task_idx, scratch| {
        let (tile, kv_head) = (tiles[task_idx / shape.n_kv_heads], task_idx % shape.n_kv_heads);
        let sequence = &sequences[tile.sequence];
        let job = TileJob { shape, sequence, tile, kv_head, qkv, blocks };
        job.run(family, scratch, |row| {
            let at = row.token * shape.n_heads + row.head;
            // SAFETY: a task writes only its own tokens and the heads of its KV head; tiles do not overlap.
            let (out, log_sum_exp) = unsafe {
                (out.range(at * shape.head_dim, shape.head_dim), log_sum_exp.range(at, 1))
            };
            let divisor = DivideRow { sums: row.sums, divisors: row.divisors, out }.divide(family);
            log_sum_exp[0] = shape.scale.mul_add(row.max, divisor.ln());
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

/// Tokens of a tile.
fn tile_tokens(compute: &Compute, shape: HeadShape, sequences: &[SequenceRows<'_>]) -> usize {
    let [mut tile_rows, fewest] = TILE_ROWS;
    loop {
        let tile_tokens = (tile_rows / shape.group_len()).max(1);
        let tiles = sequences.iter().map(|sequence| sequence.n_rows.div_ceil(tile_tokens));
        let n_tasks = tiles.sum::<usize>() * shape.n_kv_heads;
        if n_tasks >= TASKS_PER_THREAD * compute.n_threads() || tile_rows <= fewest {
            return tile_tokens;
        }
        tile_rows /= 2;
    }
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

#[cfg(test)]
mod tests;
