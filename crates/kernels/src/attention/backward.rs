//! The gradient of attention over packed documents.

use std::ops::Range;

use super::HeadShape;
use crate::compute::{Compute, Family};
use crate::lanes::{LaneKernel, Lanes, dispatch};
use crate::matmul::{Left, Write, matmul_here};
use crate::operand::Operand;
use crate::panels::{Source, SourceOrder, pack_here, panels_len};
use crate::paths::KernelPath;
use crate::pool::{Scratch, SliceParts, Slices, TileScratch};
use crate::reference;

/// Tokens of a tile of queries, and of a tile of keys.
const TILE: usize = 64;

/// Slices of scratch: those of [`KeyTiles`], [`QueryTile`] and [`ScoreTiles`].
const N_SLICES: usize = 5 + 5 + 4;

/// What the gradient of attention is computed from.
#[derive(Clone, Copy, Debug)]
pub struct AttentionBackward<'a, T> {
    /// Queries, keys and values of the forward pass, `[tokens, n_heads + 2 n_kv_heads, head_dim]`.
    pub qkv: &'a [T],
    /// The output of the forward pass, `[tokens, n_heads, head_dim]`.
    pub out: &'a [T],
    /// The log-sum-exp of the forward pass, `[tokens, n_heads]`.
    pub log_sum_exp: &'a [f32],
    /// Gradient of the output, `[tokens, n_heads, head_dim]`.
    pub d_out: &'a [f32],
    /// Rows where documents begin, ascending from 0, and the number of rows.
    pub segment_starts: &'a [u32],
}

/// Gradient of causal attention within each document and window: with `P = exp(scale q.k - lse)`, `dP = d_out.v`,
/// `delta = d_out.out`, `dS = scale P (dP - delta)`: `d_v = sum_q P d_out`, `d_q = sum_k dS k`, `d_k = sum_q dS q`.
///
/// Shapes: [`AttentionBackward`]; d_qkv `[tokens, n_heads + 2 n_kv_heads, head_dim]`. Overwrites `d_qkv`.
/// Numerics: P, dS and d_out are rounded to the operand type for the products; sums over queries run over heads, then tiles of
/// 64 tokens, ascending, in f32. A value that is not finite may reach all gradients of its document and KV head, as `0 * inf`
/// where it is masked, and no others. P has the rounding error of a score and of `lse`: relative to P, 2^-23 of their size.
/// Source: arXiv 2205.14135, algorithm 4.
///
/// # Panics
/// When a shape does not fit.
#[expect(unsafe_code, reason = "tasks write disjoint rows and heads")]
pub fn attention_backward<T: Operand>(
    compute: &Compute,
    shape: HeadShape,
    inputs: AttentionBackward<'_, T>,
    d_qkv: &mut [f32],
) {
    compute.count(KernelPath::AttentionBackward);
    let n_tokens = inputs.log_sum_exp.len() / shape.n_heads;
    assert_eq!(inputs.qkv.len(), n_tokens * shape.qkv_width(), "qkv is [tokens, heads, head_dim]");
    assert_eq!(d_qkv.len(), inputs.qkv.len(), "d_qkv has the shape of qkv");
    assert_eq!(inputs.out.len(), n_tokens * shape.n_heads * shape.head_dim);
    assert_eq!(inputs.d_out.len(), inputs.out.len());
    let starts = inputs.segment_starts;
    assert!(starts.first() == Some(&0) && starts.last().is_some_and(|&n| n as usize == n_tokens));
    assert!(starts.is_sorted(), "segments overlap");
    let parts = SliceParts::new(d_qkv);
    let family = compute.family();
    compute.pool().run((starts.len() - 1) * shape.n_kv_heads, |task_idx, scratch| {
        let (segment, kv_head) = (task_idx / shape.n_kv_heads, task_idx % shape.n_kv_heads);
        let (start, end) = (starts[segment] as usize, starts[segment + 1] as usize);
        let job = SegmentJob { family, shape, inputs, start, len: end - start, kv_head };
        job.run(scratch, |token, head, gradient| {
            // SAFETY: a task writes the tokens of its segment and the heads of its KV head only.
            unsafe {
                let at = token * shape.qkv_width() + head * shape.head_dim;
                parts.range(at, shape.head_dim).copy_from_slice(gradient);
            }
        });
    });
}

/// One document and one KV head.
struct SegmentJob<'a, T> {
    family: Family,
    shape: HeadShape,
    inputs: AttentionBackward<'a, T>,
    start: usize,
    len: usize,
    kv_head: usize,
}

/// The right operands made of a tile of keys, and its gradients.
struct KeyTiles<'a, T> {
    /// Keys as `[keys, head_dim]` panels, tile by tile.
    keys: &'a mut [T],
    /// Keys as `[head_dim, keys]` panels.
    keys_transposed: &'a mut [T],
    /// Values as `[keys, head_dim]` panels.
    values: &'a mut [T],
    /// `[len, head_dim]` each.
    d_keys: &'a mut [f32],
    d_values: &'a mut [f32],
}

impl<'a, T: Operand> KeyTiles<'a, T> {
    /// Memory for `len` keys.
    fn take(slices: &mut Slices<'a>, len: usize, head_dim: usize) -> Self {
        let n_tiles = len.div_ceil(TILE);
        Self {
            keys: slices.take(n_tiles * panels_len::<T>(TILE, head_dim)),
            keys_transposed: slices.take(n_tiles * panels_len::<T>(head_dim, TILE)),
            values: slices.take(n_tiles * panels_len::<T>(TILE, head_dim)),
            d_keys: slices.take(len * head_dim),
            d_values: slices.take(len * head_dim),
        }
    }
}

/// One head's tile of queries.
struct QueryTile<'a, T> {
    head: usize,
    /// First token within the segment, and tokens.
    first: usize,
    n: usize,
    /// `[n, head_dim]`.
    d_out: &'a mut [T],
    /// `[head_dim, n]` panels.
    queries_transposed: &'a mut [T],
    d_out_transposed: &'a mut [T],
    /// `[n]`.
    delta: &'a mut [f32],
    /// `[n, head_dim]`.
    d_queries: &'a mut [f32],
}

impl<'a, T: Operand> QueryTile<'a, T> {
    /// Memory for any tile.
    fn take(slices: &mut Slices<'a>, head_dim: usize) -> Self {
        Self {
            head: 0,
            first: 0,
            n: TILE,
            d_out: slices.take(TILE * head_dim),
            queries_transposed: slices.take(panels_len::<T>(head_dim, TILE)),
            d_out_transposed: slices.take(panels_len::<T>(head_dim, TILE)),
            delta: slices.take(TILE),
            d_queries: slices.take(TILE * head_dim),
        }
    }

    /// A tile of `n` tokens in this memory, with what the last one left.
    fn tile(&mut self, head: usize, first: usize, n: usize, head_dim: usize) -> QueryTile<'_, T> {
        QueryTile {
            head,
            first,
            n,
            d_out: &mut self.d_out[..n * head_dim],
            queries_transposed: &mut self.queries_transposed[..panels_len::<T>(head_dim, n)],
            d_out_transposed: &mut self.d_out_transposed[..panels_len::<T>(head_dim, n)],
            delta: &mut self.delta[..n],
            d_queries: &mut self.d_queries[..n * head_dim],
        }
    }
}

/// Scores and their gradients, `[TILE, TILE]` each: queries by keys.
struct ScoreTiles<'a, T> {
    scores: &'a mut [f32],
    d_probabilities: &'a mut [f32],
    probabilities: &'a mut [T],
    d_scores: &'a mut [T],
}

impl<'a, T: Operand> ScoreTiles<'a, T> {
    fn take(slices: &mut Slices<'a>) -> Self {
        Self {
            scores: slices.take(TILE * TILE),
            d_probabilities: slices.take(TILE * TILE),
            probabilities: slices.take(TILE * TILE),
            d_scores: slices.take(TILE * TILE),
        }
    }
}

impl<T: Operand> SegmentJob<'_, T> {
    fn run(&self, scratch: &mut Scratch, write: impl Fn(usize, usize, &[f32])) {
        let hd = self.shape.head_dim;
        let (mut slices, tiles) = scratch.slices(N_SLICES);
        let mut keys = KeyTiles::take(&mut slices, self.len, hd);
        let mut room = QueryTile::take(&mut slices, hd);
        let mut score = ScoreTiles::take(&mut slices);
        self.pack_keys(&mut keys);
        for head in 0..self.shape.group_len() {
            let head = self.kv_head * self.shape.group_len() + head;
            for first in (0..self.len).step_by(TILE) {
                let n = TILE.min(self.len - first);
                let mut query = room.tile(head, first, n, hd);
                self.prepare_queries(&mut query);
                for key_tile in self.shape.first_visible(first) / TILE..=first / TILE {
                    self.tile_pair(tiles, &mut query, &mut keys, key_tile, &mut score);
                }
                for (token, gradient) in query.d_queries.chunks_exact(hd).enumerate() {
                    write(self.start + first + token, head, gradient);
                }
            }
        }
        let key_head = self.shape.n_heads + self.kv_head;
        for token in 0..self.len {
            let range = token * hd..(token + 1) * hd;
            write(self.start + token, key_head, &keys.d_keys[range.clone()]);
            write(self.start + token, key_head + self.shape.n_kv_heads, &keys.d_values[range]);
        }
    }

    /// The rows of one head, from a token of the segment on.
    fn head_rows(&self, head: usize, first: usize) -> &[T] {
        let start = (self.start + first) * self.shape.qkv_width() + head * self.shape.head_dim;
        &self.inputs.qkv[start..]
    }

    fn pack_keys(&self, keys: &mut KeyTiles<'_, T>) {
        let hd = self.shape.head_dim;
        let stride = self.shape.qkv_width();
        let (key_len, transposed_len) = (panels_len::<T>(TILE, hd), panels_len::<T>(hd, TILE));
        let key_head = self.shape.n_heads + self.kv_head;
        for (tile, first) in (0..self.len).step_by(TILE).enumerate() {
            let n = TILE.min(self.len - first);
            let rows = |head| self.head_rows(head, first);
            let by_n = |values| Source { values, stride, order: SourceOrder::RowsOfN };
            let by_k = |values| Source { values, stride, order: SourceOrder::RowsOfK };
            let out = &mut keys.keys[tile * key_len..][..panels_len::<T>(n, hd)];
            pack_here(self.family, by_n(rows(key_head)), [n, hd], out);
            let out = &mut keys.values[tile * key_len..][..panels_len::<T>(n, hd)];
            pack_here(self.family, by_n(rows(key_head + self.shape.n_kv_heads)), [n, hd], out);
            let out = &mut keys.keys_transposed[tile * transposed_len..][..panels_len::<T>(hd, n)];
            pack_here(self.family, by_k(rows(key_head)), [hd, n], out);
        }
        keys.d_keys.fill(0.0);
        keys.d_values.fill(0.0);
    }

    fn prepare_queries(&self, query: &mut QueryTile<'_, T>) {
        let hd = self.shape.head_dim;
        let width = self.shape.n_heads * hd;
        for token in 0..query.n {
            let at = (self.start + query.first + token) * width + query.head * hd;
            let row = DeltaRow {
                d_out: &self.inputs.d_out[at..at + hd],
                out: &self.inputs.out[at..at + hd],
                rounded: &mut query.d_out[token * hd..(token + 1) * hd],
            };
            query.delta[token] = match self.family {
                Family::Reference => reference::delta_row(row),
                family => dispatch(family, row),
            };
        }
        let rows = self.head_rows(query.head, query.first);
        let source =
            Source { values: rows, stride: self.shape.qkv_width(), order: SourceOrder::RowsOfK };
        pack_here(self.family, source, [hd, query.n], query.queries_transposed);
        let source = Source { values: &*query.d_out, stride: hd, order: SourceOrder::RowsOfK };
        pack_here(self.family, source, [hd, query.n], query.d_out_transposed);
        query.d_queries.fill(0.0);
    }

    /// All products of one tile of queries with one tile of keys.
    fn tile_pair(
        &self,
        tiles: &mut TileScratch,
        query: &mut QueryTile<'_, T>,
        keys: &mut KeyTiles<'_, T>,
        key_tile: usize,
        score: &mut ScoreTiles<'_, T>,
    ) {
        let hd = self.shape.head_dim;
        let (family, n, first_key) = (self.family, query.n, key_tile * TILE);
        let n_keys = TILE.min(self.len - first_key);
        let key_len = panels_len::<T>(TILE, hd);
        let key_range = key_tile * key_len..key_tile * key_len + panels_len::<T>(n_keys, hd);
        let rows = Left::Rows {
            values: self.head_rows(query.head, query.first),
            stride: self.shape.qkv_width(),
        };
        let dims = [n, n_keys, hd];
        let key_panels = &keys.keys[key_range.clone()];
        matmul_here(family, tiles, rows, key_panels, dims, score.scores, TILE, Write::Overwrite);
        let rows = Left::Rows { values: &*query.d_out, stride: hd };
        let (values, d_p) = (&keys.values[key_range], &mut *score.d_probabilities);
        matmul_here(family, tiles, rows, values, dims, d_p, TILE, Write::Overwrite);
        self.score_gradients(query, first_key, n_keys, score);

        let dims = [n_keys, hd, n];
        let left = Left::Columns { values: &*score.probabilities, stride: TILE };
        let (right, d_values) = (&*query.d_out_transposed, &mut keys.d_values[first_key * hd..]);
        matmul_here(family, tiles, left, right, dims, d_values, hd, Write::Accumulate);
        let left = Left::Columns { values: &*score.d_scores, stride: TILE };
        let (right, d_keys) = (&*query.queries_transposed, &mut keys.d_keys[first_key * hd..]);
        matmul_here(family, tiles, left, right, dims, d_keys, hd, Write::Accumulate);

        let start = key_tile * panels_len::<T>(hd, TILE);
        let right = &keys.keys_transposed[start..start + panels_len::<T>(hd, n_keys)];
        // Odd numbers of keys: the row's last group has a zero in it (`score_gradients`).
        let left = Left::Rows { values: &*score.d_scores, stride: TILE };
        let (dims, d_queries) = ([n, hd, n_keys.next_multiple_of(T::GROUP)], &mut *query.d_queries);
        matmul_here(family, tiles, left, right, dims, d_queries, hd, Write::Accumulate);
    }

    /// Turns scores into probabilities, and the gradients of those into gradients of the scores.
    fn score_gradients(
        &self,
        query: &QueryTile<'_, T>,
        first_key: usize,
        n_keys: usize,
        score: &mut ScoreTiles<'_, T>,
    ) {
        for token in 0..query.n {
            let range = token * TILE..(token + 1) * TILE;
            let at = (self.start + query.first + token) * self.shape.n_heads + query.head;
            let row = GradientRow {
                scores: &score.scores[range.clone()],
                d_probabilities: &score.d_probabilities[range.clone()],
                probabilities: &mut score.probabilities[range.clone()],
                d_scores: &mut score.d_scores[range],
                visible: self.shape.visible_keys(query.first + token, first_key, n_keys),
                scale: self.shape.scale,
                log_sum_exp: self.inputs.log_sum_exp[at],
                delta: query.delta[token],
            };
            if self.family == Family::Reference {
                reference::score_gradients_row(row);
            } else {
                dispatch(self.family, row);
            }
        }
    }
}

/// One row of scores: `p = exp(scale s - lse)`, `ds = scale p (dp - delta)`, zero where masked; both rounded.
pub(crate) struct GradientRow<'a, T> {
    pub(crate) scores: &'a [f32],
    pub(crate) d_probabilities: &'a [f32],
    pub(crate) probabilities: &'a mut [T],
    pub(crate) d_scores: &'a mut [T],
    pub(crate) visible: Range<usize>,
    pub(crate) scale: f32,
    pub(crate) log_sum_exp: f32,
    pub(crate) delta: f32,
}

impl<T: Operand> LaneKernel for GradientRow<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let (scale, delta) = (lanes.splat(self.scale), lanes.splat(self.delta));
        let shift = lanes.splat(-self.log_sum_exp);
        for i in (0..self.visible.end).step_by(L::N) {
            let p = lanes.exp(lanes.mul_add(lanes.load(&self.scores[i..]), scale, shift));
            let d_p = lanes.load(&self.d_probabilities[i..]);
            let d_score = lanes.mul(lanes.mul(p, scale), lanes.sub(d_p, delta));
            T::store(lanes, p, &mut self.probabilities[i..]);
            T::store(lanes, d_score, &mut self.d_scores[i..]);
        }
        for masked in [0..self.visible.start, self.visible.end..self.probabilities.len()] {
            self.probabilities[masked.clone()].fill(T::from_f32(0.0));
            self.d_scores[masked].fill(T::from_f32(0.0));
        }
    }
}

/// One row of the gradient of the output: rounds it and gives `delta = round(d_out) . out`.
pub(crate) struct DeltaRow<'a, T> {
    pub(crate) d_out: &'a [f32],
    pub(crate) out: &'a [T],
    pub(crate) rounded: &'a mut [T],
}

impl<T: Operand> LaneKernel for DeltaRow<'_, T> {
    type Output = f32;

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> f32 {
        let mut sum = lanes.splat(0.0);
        for i in (0..self.d_out.len()).step_by(L::N) {
            T::store(lanes, lanes.load(&self.d_out[i..]), &mut self.rounded[i..]);
            let rounded = T::load(lanes, &self.rounded[i..]);
            sum = lanes.mul_add(rounded, T::load(lanes, &self.out[i..]), sum);
        }
        lanes.reduce_sum(sum)
    }
}
