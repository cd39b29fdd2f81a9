//! The gradient of attention over packed documents.

use std::ops::Range;

use super::products::Products;
use super::{BUNDLE, HeadShape, KEY_BLOCK, KEY_STEP, STEP_BLOCKS};
use crate::compute::{Compute, Family};
use crate::lanes::{LaneKernel, Lanes, dispatch};
use crate::operand::Operand;
use crate::panels::{PANEL_WIDTH, Source, pack_here, padded_k, panels_len};
use crate::paths::KernelPath;
use crate::pool::{Scratch, SliceParts, Slices};
use crate::reference;
use crate::rope::{Direction, RopeTable, Rotate};
use crate::transpose::transpose;

/// Tokens of a tile of queries, and of a tile of keys.
const TILE: usize = KEY_STEP;

// The probabilities of a bundle are multiplied as a block of values is, and a tile has two of both.
const _: () = assert!(BUNDLE == KEY_BLOCK && TILE == STEP_BLOCKS * BUNDLE && STEP_BLOCKS == 2);

/// Slices of scratch: those of [`KeyTiles`], [`QueryTile`] and [`Scores`], and two more.
const N_SLICES: usize = 5 + 7 + 5 + 2;

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
    pub d_out: &'a [T],
    /// Rows where documents begin, ascending from 0, and the number of rows.
    pub segment_starts: &'a [u32],
    /// What queries and keys were rotated by; its rows are the tokens.
    pub rope: &'a RopeTable,
}

/// Gradient of causal attention within each document and window: with `P = exp(scale q.k - lse)`, `dP = d_out.v`,
/// `delta = d_out.out`, `dS = scale P (dP - delta)`: `d_v = sum_q P d_out`, `d_q = sum_k dS k`, `d_k = sum_q dS q`; `d_q` and `d_k` are then
/// rotated back by the angles of their positions.
///
/// Shapes: [`AttentionBackward`]; d_qkv `[tokens, n_heads + 2 n_kv_heads, head_dim]`. Overwrites `d_qkv`.
/// Numerics: P and dS are rounded to the operand type for the products; sums over queries run over heads, then bundles of
/// 32 tokens, ascending, in f32; where tiles of AMX multiply, each product begins with the sum before it. All families but the reference take
/// P as `2^(log2(e) (scale q.k - lse))`. Gradients are rotated in f32, then rounded to the type of `d_qkv`. A value that is not finite may reach all gradients of its document and KV head, as `0 * inf`
/// where it is masked, and no others. P has the rounding error of a score and of `lse`: relative to P, 2^-23 of their size.
/// Source: arXiv 2205.14135, algorithm 4.
///
/// # Panics
/// When a shape does not fit.
#[expect(unsafe_code, reason = "tasks write disjoint rows and heads")]
pub fn attention_backward<T: Operand, O: Operand>(
    compute: &Compute,
    shape: HeadShape,
    inputs: AttentionBackward<'_, T>,
    d_qkv: &mut [O],
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
    let rope = inputs.rope;
    assert_eq!([rope.n_rows(), rope.head_dim()], [n_tokens, shape.head_dim], "table of angles");
    let parts = SliceParts::new(d_qkv);
    let family = compute.family();
    compute.pool().run((starts.len() - 1) * shape.n_kv_heads, |task_idx, scratch| {
        let (segment, kv_head) = (task_idx / shape.n_kv_heads, task_idx % shape.n_kv_heads);
        let (start, end) = (starts[segment] as usize, starts[segment + 1] as usize);
        let job = SegmentJob { family, shape, inputs, start, len: end - start, kv_head };
        job.run(scratch, |token, head, gradient| {
            let at = token * shape.qkv_width() + head * shape.head_dim;
            // SAFETY: a task writes the tokens of its segment and the heads of its KV head only.
            unsafe { parts.range(at, shape.head_dim) }.copy_from_slice(gradient);
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

/// The right operands made of the keys and values of a document, tile by tile, and their gradients.
struct KeyTiles<'a, T> {
    /// Panels of `[KEY_BLOCK, head_dim]`, block by block.
    keys: &'a mut [T],
    values: &'a mut [T],
    /// Panels of `[head_dim, KEY_BLOCK]`, block by block.
    keys_transposed: &'a mut [T],
    /// `[padded_dim, TILE]`, tile by tile.
    d_keys: &'a mut [f32],
    d_values: &'a mut [f32],
}

/// One head's tile of queries. Rows behind the last token are zeros.
struct QueryTile<'a, T> {
    head: usize,
    /// First token within the document, and tokens.
    first: usize,
    n: usize,
    /// `[TILE, stride]`, zeros behind `head_dim`.
    queries: &'a mut [T],
    d_out: &'a mut [T],
    /// `[padded_dim, TILE]`; what stands behind `head_dim` rows is of no use, nor are the sums that it reaches.
    queries_transposed: &'a mut [T],
    d_out_transposed: &'a mut [T],
    /// `[TILE]`.
    log_sum_exp: &'a mut [f32],
    delta: &'a mut [f32],
    /// `[TILE, padded_dim]`.
    d_queries: &'a mut [f32],
}

/// Scores of a tile of queries by a tile of keys, and what is made of them.
struct Scores<'a, T> {
    /// Of a bundle, `[BUNDLE, TILE]`.
    scores: &'a mut [f32],
    d_probabilities: &'a mut [f32],
    d_scores: &'a mut [T],
    /// Panels of `[TILE, BUNDLE]`, bundle by bundle.
    probability_panels: &'a mut [T],
    d_score_panels: &'a mut [T],
}

/// Lengths in working memory.
#[derive(Clone, Copy)]
struct Lengths {
    /// Between rows of queries.
    stride: usize,
    /// `head_dim`, filled up to whole bundles: rows of transposed operands, and columns of sums.
    padded_dim: usize,
    /// Of a block of keys or values in panels, and of keys transposed.
    key_block: usize,
    transposed_block: usize,
    /// Of the gradients of a tile of keys.
    d_tile: usize,
    /// Of the probabilities of a bundle in panels.
    bundle: usize,
}

impl Lengths {
    fn of<T: Operand>(head_dim: usize) -> Self {
        let padded_dim = head_dim.next_multiple_of(BUNDLE);
        Self {
            stride: padded_k::<T>(head_dim),
            padded_dim,
            key_block: panels_len::<T>(KEY_BLOCK, head_dim),
            transposed_block: panels_len::<T>(head_dim, KEY_BLOCK),
            d_tile: padded_dim * TILE,
            bundle: panels_len::<T>(TILE, BUNDLE),
        }
    }

    fn key_tiles<'a, T: Operand>(self, slices: &mut Slices<'a>, len: usize) -> KeyTiles<'a, T> {
        let (n_tiles, n_blocks) = (len.div_ceil(TILE), len.div_ceil(TILE) * TILE / KEY_BLOCK);
        let [d_keys, d_values] = [(); 2].map(|()| {
            let sums = slices.take(n_tiles * self.d_tile);
            sums.fill(0.0);
            sums
        });
        KeyTiles {
            keys: slices.take(n_blocks * self.key_block),
            values: slices.take(n_blocks * self.key_block),
            keys_transposed: slices.take(n_blocks * self.transposed_block),
            d_keys,
            d_values,
        }
    }

    fn query_tile<'a, T: Operand>(self, slices: &mut Slices<'a>) -> QueryTile<'a, T> {
        QueryTile {
            head: 0,
            first: 0,
            n: 0,
            queries: slices.take(TILE * self.stride),
            d_out: slices.take(TILE * self.stride),
            queries_transposed: slices.take(self.padded_dim * TILE),
            d_out_transposed: slices.take(self.padded_dim * TILE),
            log_sum_exp: slices.take(TILE),
            delta: slices.take(TILE),
            d_queries: slices.take(TILE * self.padded_dim),
        }
    }

    fn scores<'a, T: Operand>(self, slices: &mut Slices<'a>) -> Scores<'a, T> {
        Scores {
            scores: slices.take(BUNDLE * TILE),
            d_probabilities: slices.take(BUNDLE * TILE),
            d_scores: slices.take(BUNDLE * TILE),
            probability_panels: slices.take(TILE / BUNDLE * self.bundle),
            d_score_panels: slices.take(TILE / BUNDLE * self.bundle),
        }
    }
}

impl<T: Operand> SegmentJob<'_, T> {
    /// Gives each token's gradient of each head to `write`.
    fn run<O: Operand>(&self, scratch: &mut Scratch, write: impl Fn(usize, usize, &[O])) {
        let (head_dim, lens) = (self.shape.head_dim, Lengths::of::<T>(self.shape.head_dim));
        let (mut slices, tiles) = scratch.slices(N_SLICES);
        let mut keys = lens.key_tiles(&mut slices, self.len);
        let mut query = lens.query_tile(&mut slices);
        let mut scores = lens.scores(&mut slices);
        let transposed_tile = slices.take::<f32>(TILE * head_dim);
        let rounded = slices.take::<O>(TILE * head_dim);
        // A tile at a time: what is computed for one row would wait until the one before has reached memory.
        let mut finish = |head: usize, [first, n]: [usize; 2], x: &[f32], x_stride: usize| {
            let (out, first_row) = (&mut rounded[..n * head_dim], self.start + first);
            let (table, heads) = (self.inputs.rope, self.shape.rotated().only(head));
            let direction = Direction::Backward;
            Rotate { x, x_stride, table, first_row, heads, direction, out }.run_on(self.family);
            for (token, gradient) in rounded[..n * head_dim].chunks_exact(head_dim).enumerate() {
                write(first_row + token, head, gradient);
            }
        };
        // The rows of keys are gathered where those of queries will be.
        self.pack_keys(lens, query.queries, &mut keys);
        let mut products = Products::new::<T>(self.family, BUNDLE, tiles);
        for head in 0..self.shape.group_len() {
            query.head = self.kv_head * self.shape.group_len() + head;
            for first in (0..self.len).step_by(TILE) {
                query.first = first;
                query.n = TILE.min(self.len - first);
                self.prepare_queries(lens, &mut query);
                for key_tile in self.shape.first_visible(first) / TILE..=first / TILE {
                    self.tile_pair(
                        &mut products,
                        lens,
                        &mut query,
                        &mut keys,
                        key_tile,
                        &mut scores,
                    );
                }
                finish(query.head, [first, query.n], query.d_queries, lens.padded_dim);
            }
        }
        drop(products);
        let key_head = self.shape.n_heads + self.kv_head;
        for (head, sums) in
            [(key_head, keys.d_keys), (key_head + self.shape.n_kv_heads, keys.d_values)]
        {
            for (first, sums) in (0..self.len).step_by(TILE).zip(sums.chunks_exact(lens.d_tile)) {
                let n = TILE.min(self.len - first);
                let transposed_tile = &mut transposed_tile[..n * head_dim];
                transpose(self.family, sums, TILE, [n, head_dim], transposed_tile, head_dim);
                finish(head, [first, n], transposed_tile, head_dim);
            }
        }
    }

    /// Copies a head of `n` rows of a matrix, from a token of the document on: `[n, stride]`, zeros behind them up to a whole tile.
    fn gather(
        &self,
        (values, width): (&[T], usize),
        head: usize,
        [first, n]: [usize; 2],
        stride: usize,
        out: &mut [T],
    ) {
        let head_dim = self.shape.head_dim;
        let start = (self.start + first) * width + head * head_dim;
        let (rows, rest) = out[..TILE * stride].split_at_mut(n * stride);
        for (row, out) in rows.chunks_exact_mut(stride).enumerate() {
            let source = &values[start + row * width..][..head_dim];
            out[..head_dim].copy_from_slice(source);
            out[head_dim..].fill(T::from_f32(0.0));
        }
        rest.fill(T::from_f32(0.0));
    }

    fn pack_keys(&self, lens: Lengths, rows: &mut [T], keys: &mut KeyTiles<'_, T>) {
        let (head_dim, stride) = (self.shape.head_dim, lens.stride);
        let key_head = self.shape.n_heads + self.kv_head;
        for first in (0..self.len).step_by(TILE) {
            let n = TILE.min(self.len - first);
            for (head, panels, is_key) in [
                (key_head, &mut *keys.keys, true),
                (key_head + self.shape.n_kv_heads, &mut *keys.values, false),
            ] {
                let qkv = (self.inputs.qkv, self.shape.qkv_width());
                self.gather(qkv, head, [first, n], stride, rows);
                for (block, rows) in rows.chunks_exact(KEY_BLOCK * stride).enumerate() {
                    let block = first / KEY_BLOCK + block;
                    let source = Source { stride, ..Source::rows_of_n(rows, head_dim) };
                    let out = &mut panels[block * lens.key_block..][..lens.key_block];
                    pack_here(self.family, source, [KEY_BLOCK, head_dim], out);
                    if is_key {
                        let source = Source { stride, ..Source::rows_of_k(rows, head_dim) };
                        let start = block * lens.transposed_block;
                        let out = &mut keys.keys_transposed[start..][..lens.transposed_block];
                        pack_here(self.family, source, [head_dim, KEY_BLOCK], out);
                    }
                }
            }
        }
    }

    fn prepare_queries(&self, lens: Lengths, query: &mut QueryTile<'_, T>) {
        let (head_dim, stride) = (self.shape.head_dim, lens.stride);
        let (n_heads, tokens) = (self.shape.n_heads, [query.first, query.n]);
        let qkv = (self.inputs.qkv, self.shape.qkv_width());
        self.gather(qkv, query.head, tokens, stride, query.queries);
        let d_out = (self.inputs.d_out, n_heads * head_dim);
        self.gather(d_out, query.head, tokens, stride, query.d_out);
        query.log_sum_exp.fill(0.0);
        query.delta.fill(0.0);
        for token in 0..query.n {
            let at = (self.start + query.first + token) * n_heads + query.head;
            query.log_sum_exp[token] = self.inputs.log_sum_exp[at];
            let row = DeltaRow {
                d_out: &query.d_out[token * stride..][..head_dim],
                out: &self.inputs.out[at * head_dim..][..head_dim],
            };
            query.delta[token] = row.delta(self.family);
        }
        for (rows, out) in [
            (&*query.queries, &mut *query.queries_transposed),
            (&*query.d_out, &mut *query.d_out_transposed),
        ] {
            let out = &mut out[..head_dim * TILE];
            transpose(self.family, rows, stride, [head_dim, TILE], out, TILE);
        }
        query.d_queries.fill(0.0);
    }

    /// All products of one tile of queries with one tile of keys.
    fn tile_pair(
        &self,
        products: &mut Products<'_>,
        lens: Lengths,
        query: &mut QueryTile<'_, T>,
        keys: &mut KeyTiles<'_, T>,
        key_tile: usize,
        scores: &mut Scores<'_, T>,
    ) {
        let head_dim = self.shape.head_dim;
        let block = |len: usize, at: usize| {
            let start = (key_tile * STEP_BLOCKS + at) * len;
            start..start + len
        };
        for (bundle, first_row) in (0..query.n).step_by(BUNDLE).enumerate() {
            let columns = self.columns(query, first_row, key_tile * TILE);
            // Of an odd number, with the row of zeros behind the last.
            let n_rows = BUNDLE.min(query.n - first_row).next_multiple_of(T::GROUP);
            let dims = [n_rows, head_dim];
            for at in columns.start / KEY_BLOCK..columns.end / KEY_BLOCK {
                let range = block(lens.key_block, at);
                let rows = first_row * lens.stride..;
                let (x, out) = (&query.queries[rows.clone()], &mut scores.scores[at * KEY_BLOCK..]);
                products.scores(dims, x, lens.stride, &keys.keys[range.clone()], out);
                let (x, out) = (&query.d_out[rows], &mut scores.d_probabilities[at * KEY_BLOCK..]);
                products.scores(dims, x, lens.stride, &keys.values[range], out);
            }
            let seen = &mut scores.scores[..n_rows * TILE];
            self.mask(query, first_row, key_tile * TILE, &columns, seen);
            let panels = bundle * lens.bundle..(bundle + 1) * lens.bundle;
            let step = GradientStep {
                scores: seen,
                d_probabilities: scores.d_probabilities,
                columns: columns.clone(),
                scale: self.shape.scale,
                log_sum_exp: &query.log_sum_exp[first_row..][..BUNDLE],
                delta: &query.delta[first_row..][..BUNDLE],
                probability_panels: &mut scores.probability_panels[panels.clone()],
                d_scores: scores.d_scores,
                d_score_panels: &mut scores.d_score_panels[panels],
            };
            step.update(self.family);
            let blocks = columns.start / KEY_BLOCK..columns.end / KEY_BLOCK;
            let transposed =
                [0, 1].map(|at| &keys.keys_transposed[block(lens.transposed_block, at)]);
            let sums = &mut query.d_queries[first_row * lens.padded_dim..];
            let d_scores = &scores.d_scores[columns.start..];
            products.mix(dims, d_scores, &transposed[blocks], sums, lens.padded_dim);
        }
        let n_bundles = query.n.div_ceil(BUNDLE);
        let tile = key_tile * lens.d_tile..(key_tile + 1) * lens.d_tile;
        for (factors, panels, sums) in [
            (
                &*query.d_out_transposed,
                &*scores.probability_panels,
                &mut keys.d_values[tile.clone()],
            ),
            (&*query.queries_transposed, &*scores.d_score_panels, &mut keys.d_keys[tile]),
        ] {
            let (first, second) = panels.split_at(lens.bundle);
            let panels = &[first, second][..n_bundles];
            for row in (0..head_dim).step_by(BUNDLE) {
                let (dims, at) = ([BUNDLE.min(head_dim - row), TILE], row * TILE);
                products.mix(dims, &factors[at..], panels, &mut sums[at..], TILE);
            }
        }
    }

    /// The keys of a tile, in whole blocks, that some row of a bundle sees.
    fn columns(
        &self,
        query: &QueryTile<'_, T>,
        first_row: usize,
        first_key: usize,
    ) -> Range<usize> {
        let last_row = query.n.min(first_row + BUNDLE) - 1;
        let first = self.shape.visible_keys(query.first + first_row, first_key, TILE).start;
        let end = self.shape.visible_keys(query.first + last_row, first_key, TILE).end;
        let start = first / KEY_BLOCK * KEY_BLOCK;
        start..end.next_multiple_of(KEY_BLOCK).max(start)
    }

    /// Writes negative infinity where a row of a bundle does not see the key of a column, and for rows behind the last token.
    fn mask(
        &self,
        query: &QueryTile<'_, T>,
        first_row: usize,
        first_key: usize,
        columns: &Range<usize>,
        scores: &mut [f32],
    ) {
        let end_row = first_row + scores.len() / TILE;
        let sees_last = first_key + TILE <= query.first + first_row + 1;
        let sees_first = self.shape.first_visible(query.first + end_row - 1) <= first_key;
        if sees_last && sees_first && end_row <= query.n {
            return;
        }
        for (row, scores) in scores.chunks_exact_mut(TILE).enumerate() {
            let row = first_row + row;
            let visible = if row < query.n {
                self.shape.visible_keys(query.first + row, first_key, TILE)
            } else {
                0..0
            };
            let [start, end] =
                [visible.start, visible.end].map(|key| key.clamp(columns.start, columns.end));
            scores[columns.start..start].fill(f32::NEG_INFINITY);
            scores[end..columns.end].fill(f32::NEG_INFINITY);
        }
    }
}

/// What becomes of the scores of a bundle: `p = exp(scale s - lse)`, `ds = scale p (dp - delta)`, both rounded.
///
/// Shapes: scores `[rows, TILE]`, rows being whole groups; d_probabilities, d_scores `[BUNDLE, TILE]`; log_sum_exp, delta `[BUNDLE]`; panels of
/// `[TILE, BUNDLE]`. Columns are whole blocks; for others, and for rows behind those of scores, zeros are written. Negative infinity stands for a score that is masked. Overwrites all outputs.
pub(crate) struct GradientStep<'a, T> {
    pub(crate) scores: &'a [f32],
    pub(crate) d_probabilities: &'a [f32],
    pub(crate) columns: Range<usize>,
    pub(crate) scale: f32,
    pub(crate) log_sum_exp: &'a [f32],
    pub(crate) delta: &'a [f32],
    pub(crate) probability_panels: &'a mut [T],
    pub(crate) d_scores: &'a mut [T],
    pub(crate) d_score_panels: &'a mut [T],
}

/// Values of a panel of probabilities: 16 keys, all queries of a bundle.
const PANEL_LEN: usize = PANEL_WIDTH * BUNDLE;

impl<T: Operand> GradientStep<'_, T> {
    pub(super) fn update(mut self, family: Family) {
        self.clear_others();
        match family {
            Family::Reference => reference::gradient_step(self),
            family => dispatch(family, self),
        }
    }

    /// Fills all outputs with zeros where not every number will be computed.
    fn clear_others(&mut self) {
        if self.columns != (0..TILE) || self.scores.len() < BUNDLE * TILE {
            for out in
                [&mut *self.d_scores, &mut *self.probability_panels, &mut *self.d_score_panels]
            {
                out.fill(T::from_f32(0.0));
            }
        }
    }
}

impl<T: Operand> LaneKernel for GradientStep<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let scale = lanes.splat(self.scale);
        let exponent_scale = lanes.splat(self.scale * std::f32::consts::LOG2_E);
        let line_len = PANEL_WIDTH * T::GROUP;
        let n_groups = self.scores.len() / (T::GROUP * TILE);
        let groups = self.d_scores.chunks_exact_mut(T::GROUP * TILE).take(n_groups);
        for (group, d_scores) in groups.enumerate() {
            let row = group * T::GROUP;
            let (mut shifts, mut deltas) = ([lanes.splat(0.0); 2], [lanes.splat(0.0); 2]);
            for at in 0..T::GROUP {
                shifts[at] = lanes.splat(-self.log_sum_exp[row + at] * std::f32::consts::LOG2_E);
                deltas[at] = lanes.splat(self.delta[row + at]);
            }
            for column in self.columns.clone().step_by(2 * L::N) {
                let (mut p, mut d) = ([[lanes.splat(0.0); 2]; 2], [[lanes.splat(0.0); 2]; 2]);
                for at in 0..T::GROUP {
                    for half in 0..2 {
                        let i = (row + at) * TILE + column + half * L::N;
                        let score = lanes.load(&self.scores[i..]);
                        let exponent = lanes.mul_add(score, exponent_scale, shifts[at]);
                        // Above zero by rounding only, but of huge scores by much. The bound first: NaN must come through.
                        let x = lanes.exp2(lanes.min(lanes.splat(128.0), exponent));
                        let change = lanes.sub(lanes.load(&self.d_probabilities[i..]), deltas[at]);
                        p[half][at] = x;
                        d[half][at] = lanes.mul(lanes.mul(x, scale), change);
                    }
                    T::store_two(lanes, d[0][at], d[1][at], &mut d_scores[at * TILE + column..]);
                }
                for half in 0..2 {
                    let key = column + half * L::N;
                    let place = key / PANEL_WIDTH * PANEL_LEN
                        + group * line_len
                        + key % PANEL_WIDTH * T::GROUP;
                    let [first, second] = p[half];
                    T::store_groups(lanes, first, second, &mut self.probability_panels[place..]);
                    let [first, second] = d[half];
                    T::store_groups(lanes, first, second, &mut self.d_score_panels[place..]);
                }
            }
        }
    }
}

/// One row of the output and of its gradient: `delta = d_out . out`.
pub(crate) struct DeltaRow<'a, T> {
    pub(crate) d_out: &'a [T],
    pub(crate) out: &'a [T],
}

impl<T: Operand> DeltaRow<'_, T> {
    fn delta(self, family: Family) -> f32 {
        match family {
            Family::Reference => reference::delta_row(self),
            family => dispatch(family, self),
        }
    }
}

impl<T: Operand> LaneKernel for DeltaRow<'_, T> {
    type Output = f32;

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> f32 {
        let mut sum = lanes.splat(0.0);
        for i in (0..self.d_out.len()).step_by(L::N) {
            let d_out = T::load(lanes, &self.d_out[i..]);
            sum = lanes.mul_add(d_out, T::load(lanes, &self.out[i..]), sum);
        }
        lanes.reduce_sum(sum)
    }
}
