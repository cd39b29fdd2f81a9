//! A tile of attention: some tokens of a sequence, and the heads that share a KV head, over all keys that they see.
//!
//! The rows of a tile, token by token with the heads of a token side by side, are cut into bundles of [`BUNDLE`]. All bundles go over one step of
//! keys before the next one, so that a step comes once from memory and lies in the nearest caches while it is used. None of this changes a bit:
//! a row's arithmetic is its own.

use std::ops::Range;

use super::key_blocks::HeadBlock;
use super::products::Products;
use super::softmax::{DIVISOR_LANES, ScaleScores, SoftmaxStep};
use super::{BUNDLE, HeadShape, KEY_BLOCK, KEY_STEP, KeyBlocks, STEP_BLOCKS, SequenceRows};
use crate::compute::Family;
use crate::operand::Operand;
use crate::panels::{PANEL_WIDTH, padded_k};
use crate::pool::Scratch;

/// Slices of scratch that a tile takes.
const N_SLICES: usize = 8;

/// Some tokens of one sequence.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tile {
    pub(super) sequence: usize,
    /// First token, counted within the sequence's rows.
    pub(super) first: usize,
    pub(super) n_tokens: usize,
}

pub(super) struct TileJob<'a, T: Operand> {
    pub(super) shape: HeadShape,
    pub(super) sequence: &'a SequenceRows<'a>,
    pub(super) tile: Tile,
    pub(super) kv_head: usize,
    pub(super) qkv: &'a [T],
    pub(super) blocks: &'a KeyBlocks<T>,
}

/// A row when all keys were visited.
pub(super) struct FinishedRow<'a> {
    pub(super) token: usize,
    pub(super) head: usize,
    pub(super) max: f32,
    pub(super) divisors: &'a [f32],
    /// At least head_dim.
    pub(super) sums: &'a [f32],
}

/// The keys and values of a step, as products take them.
struct Step<'a, T> {
    /// Block of the sequence that is the first of the step.
    first_block: usize,
    keys: [&'a [T]; STEP_BLOCKS],
    values: [&'a [T]; STEP_BLOCKS],
    /// Of keys and values in 8 bits.
    scales: Option<&'a [[f32; KEY_STEP]; 2]>,
}

/// Working memory of the rows of a tile.
struct Rows<'a, T> {
    /// `[rows, padded head_dim]`
    queries: &'a mut [T],
    /// `[rows, sum_stride]`
    sums: &'a mut [f32],
    maxima: &'a mut [f32],
    /// `[rows, DIVISOR_LANES]`
    divisors: &'a mut [f32],
    /// Of a bundle, `[BUNDLE, KEY_STEP]`.
    scores: &'a mut [f32],
    probabilities: &'a mut [T],
    /// Of a bundle, `[BUNDLE, sum_stride]`.
    spare: &'a mut [f32],
}

/// One bundle at one step.
struct Visit {
    /// First row of the bundle in the tile, and its rows.
    first_row: usize,
    n_rows: usize,
    /// Blocks of the step that some row sees; they follow one another, since the tokens do.
    blocks: Range<usize>,
    /// For each block the rows of the bundle that see at least one of its keys.
    seeing: [Range<usize>; STEP_BLOCKS],
    /// Whether every row sees every key.
    is_whole: bool,
}

impl Visit {
    /// Keys of the step that some row may see.
    fn columns(&self) -> Range<usize> {
        self.blocks.start * KEY_BLOCK..self.blocks.end * KEY_BLOCK
    }
}

impl<T: Operand> TileJob<'_, T> {
    /// Visits all keys and gives each row to `write`.
    pub(super) fn run(
        &self,
        family: Family,
        scratch: &mut Scratch,
        write: impl Fn(&FinishedRow<'_>),
    ) {
        let group_len = self.shape.group_len();
        let n_rows = self.tile.n_tokens * group_len;
        let n_all = n_rows.next_multiple_of(BUNDLE);
        let (query_stride, sum_stride) = self.strides();
        let (mut slices, tiles) = scratch.slices(N_SLICES);
        let mut rows = Rows {
            queries: slices.take(n_all * query_stride),
            sums: slices.take(n_all * sum_stride),
            maxima: slices.take(n_rows),
            divisors: slices.take(n_rows * DIVISOR_LANES),
            scores: slices.take(BUNDLE * KEY_STEP),
            probabilities: slices.take(BUNDLE * KEY_STEP),
            spare: slices.take(BUNDLE * sum_stride),
        };
        let widened = slices.take::<T>(STEP_BLOCKS * self.widened_len());
        self.gather_queries(rows.queries, query_stride);
        rows.sums[..n_rows * sum_stride].fill(0.0);
        rows.maxima.fill(f32::NEG_INFINITY);
        rows.divisors.fill(0.0);
        let mut products = Products::new::<T>(family, n_rows, tiles);
        let steps = self.steps();
        let mut scales = [[0.0; KEY_STEP]; 2];
        for step_idx in steps.clone() {
            let step = self.step(family, step_idx, widened, &mut scales);
            if n_rows <= BUNDLE && step_idx + 1 < steps.end {
                self.ask_for(self.blocks_of(step_idx + 1));
            }
            for first_row in (0..n_rows).step_by(BUNDLE) {
                let visit = self.plan(&step, first_row);
                self.score(&mut products, &step, &visit, &mut rows);
                self.soften(family, &step, &visit, &mut rows);
                self.mix(&mut products, &step, &visit, &mut rows);
            }
        }
        drop(products);
        for (row, sums) in rows.sums.chunks_exact(sum_stride).enumerate().take(n_rows) {
            write(&FinishedRow {
                token: self.sequence.first_row + self.tile.first + row / group_len,
                head: self.kv_head * group_len + row % group_len,
                max: rows.maxima[row],
                divisors: &rows.divisors[row * DIVISOR_LANES..][..DIVISOR_LANES],
                sums,
            });
        }
    }

    /// Distances between rows of queries, filled up to whole steps of K, and between rows of sums, of whole pairs of panels.
    fn strides(&self) -> (usize, usize) {
        let head_dim = self.shape.head_dim;
        (padded_k::<T>(head_dim), head_dim.next_multiple_of(2 * PANEL_WIDTH))
    }

    fn widened_len(&self) -> usize {
        HeadBlock::<T>::scratch_len(self.blocks.kind(), self.shape)
    }

    /// Position of the tile's first token.
    fn first_position(&self) -> usize {
        self.sequence.first_position + self.tile.first
    }

    /// One past the last block that a row sees.
    fn end_block(&self) -> usize {
        (self.first_position() + self.tile.n_tokens).div_ceil(KEY_BLOCK)
    }

    /// The steps that a row sees a key of.
    fn steps(&self) -> Range<usize> {
        let first = self.shape.first_visible(self.first_position()) / KEY_STEP;
        first..self.end_block().div_ceil(STEP_BLOCKS)
    }

    /// The blocks of a step that a row of the tile sees.
    fn blocks_of(&self, step_idx: usize) -> Range<usize> {
        let first = self.shape.first_visible(self.first_position()) / KEY_BLOCK;
        let blocks = step_idx * STEP_BLOCKS..(step_idx + 1) * STEP_BLOCKS;
        blocks.start.max(first)..blocks.end.min(self.end_block())
    }

    /// Keys and values of block `block_idx` of the sequence, for the job's KV head.
    fn head_block(&self, block_idx: usize) -> HeadBlock<'_, T> {
        self.blocks.head(self.shape, self.sequence.block_table[block_idx], self.kv_head)
    }

    fn step<'s>(
        &'s self,
        family: Family,
        step_idx: usize,
        widened: &'s mut [T],
        scales: &'s mut [[f32; KEY_STEP]; 2],
    ) -> Step<'s, T> {
        let first_block = step_idx * STEP_BLOCKS;
        let (mut keys, mut values) = ([&[][..]; STEP_BLOCKS], [&[][..]; STEP_BLOCKS]);
        let [key_scales, value_scales] = scales;
        let (mut rest, len) = (widened, self.widened_len());
        for block_idx in self.blocks_of(step_idx) {
            let (room, others) = rest.split_at_mut(len);
            rest = others;
            let (block, at) = (self.head_block(block_idx), block_idx - first_block);
            let columns = at * KEY_BLOCK..(at + 1) * KEY_BLOCK;
            block.copy_scales(&mut key_scales[columns.clone()], &mut value_scales[columns]);
            [keys[at], values[at]] = block.operands(family, room);
        }
        Step { first_block, keys, values, scales: (len > 0).then_some(scales) }
    }

    /// Asks for blocks of the next step. With more rows than a bundle, to ask early costs more than it saves.
    fn ask_for(&self, blocks: Range<usize>) {
        for block_idx in blocks {
            let block = self.head_block(block_idx);
            block.prefetch_keys();
            block.prefetch_values();
        }
    }

    /// The queries of the tile, `[tokens, group, stride]`, zeros at the ends of rows.
    fn gather_queries(&self, queries: &mut [T], stride: usize) {
        let HeadShape { head_dim, .. } = self.shape;
        let group_width = self.shape.group_len() * head_dim;
        let rows = queries.chunks_exact_mut(self.shape.group_len() * stride);
        for (token, rows) in rows.enumerate().take(self.tile.n_tokens) {
            let row = self.sequence.first_row + self.tile.first + token;
            let start = row * self.shape.qkv_width() + self.kv_head * group_width;
            let heads = self.qkv[start..start + group_width].chunks_exact(head_dim);
            for (out, query) in rows.chunks_exact_mut(stride).zip(heads) {
                out[..head_dim].copy_from_slice(query);
                out[head_dim..].fill(T::from_f32(0.0));
            }
        }
    }

    /// The rows of the tile that see at least one key of a block: not those of tokens before it, nor those whose window begins after it.
    fn rows_seeing(&self, block_idx: usize) -> Range<usize> {
        let first_position = self.first_position();
        let block = block_idx * KEY_BLOCK..(block_idx + 1) * KEY_BLOCK;
        let first = block.start.saturating_sub(first_position);
        // The last key of the block is seen up to the position `window - 1` after it.
        let end = self.shape.window.map_or(usize::MAX, |window| block.end - 1 + window);
        let end = self.tile.n_tokens.min(end.saturating_sub(first_position));
        first * self.shape.group_len()..end * self.shape.group_len()
    }

    /// Position of a row of the tile.
    fn position(&self, row: usize) -> usize {
        self.first_position() + row / self.shape.group_len()
    }

    /// The bundle from `first_row` on at a step.
    fn plan(&self, step: &Step<'_, T>, first_row: usize) -> Visit {
        let n_rows = BUNDLE.min(self.tile.n_tokens * self.shape.group_len() - first_row);
        let first_key = step.first_block * KEY_BLOCK;
        let is_whole = first_key + KEY_STEP <= self.position(first_row) + 1
            && self.shape.first_visible(self.position(first_row + n_rows - 1)) <= first_key;
        if is_whole {
            let seeing = std::array::from_fn(|_| 0..n_rows);
            return Visit { first_row, n_rows, blocks: 0..STEP_BLOCKS, seeing, is_whole };
        }
        let seeing: [Range<usize>; STEP_BLOCKS] = std::array::from_fn(|at| {
            let rows = self.rows_seeing(step.first_block + at);
            let [first, end] =
                [rows.start, rows.end].map(|row| row.saturating_sub(first_row).min(n_rows));
            first..end.max(first)
        });
        let first = seeing.iter().take_while(|rows| rows.is_empty()).count();
        let n_seen = seeing[first..].iter().take_while(|rows| !rows.is_empty()).count();
        Visit { first_row, n_rows, blocks: first..first + n_seen, seeing, is_whole }
    }

    /// Turns the scores of a bundle into probabilities.
    fn soften(&self, family: Family, step: &Step<'_, T>, visit: &Visit, rows: &mut Rows<'_, T>) {
        if visit.blocks.is_empty() {
            return;
        }
        let (_, stride) = self.strides();
        let own = visit.first_row..visit.first_row + visit.n_rows;
        let scores = &mut rows.scores[..visit.n_rows * KEY_STEP];
        self.prepare(family, step, visit, scores);
        let softmax = SoftmaxStep {
            scores,
            columns: visit.columns(),
            scale: self.shape.scale,
            value_scales: step.scales.map(|[_, scales]| scales),
            probabilities: &mut rows.probabilities[..visit.n_rows * KEY_STEP],
            maxima: &mut rows.maxima[own.clone()],
            divisors: &mut rows.divisors[own.start * DIVISOR_LANES..own.end * DIVISOR_LANES],
            sums: &mut rows.sums[own.start * stride..own.end * stride],
            sum_stride: stride,
        };
        softmax.update(family);
    }

    /// Scores of a bundle at a step, `[rows, KEY_STEP]`.
    fn score(
        &self,
        products: &mut Products<'_>,
        step: &Step<'_, T>,
        visit: &Visit,
        rows: &mut Rows<'_, T>,
    ) {
        let (stride, _) = self.strides();
        let queries = &rows.queries[visit.first_row * stride..];
        for at in visit.blocks.clone() {
            let (keys, out) = (step.keys[at], &mut rows.scores[at * KEY_BLOCK..]);
            products.scores([visit.n_rows, self.shape.head_dim], queries, stride, keys, out);
        }
    }

    /// Multiplies scores by the scales of their keys, and writes negative infinity where a row does not see the key of a column.
    fn prepare(&self, family: Family, step: &Step<'_, T>, visit: &Visit, scores: &mut [f32]) {
        let columns = visit.columns();
        if let Some([scales, _]) = step.scales {
            let columns = columns.clone();
            ScaleScores { scores: &mut *scores, columns, scales }.update(family);
        }
        if visit.is_whole {
            return;
        }
        let first_key = step.first_block * KEY_BLOCK;
        for (row, scores) in scores.chunks_exact_mut(KEY_STEP).enumerate() {
            let position = self.position(visit.first_row + row);
            let visible = self.shape.visible_keys(position, first_key, KEY_STEP);
            let [start, end] =
                [visible.start, visible.end].map(|key| key.clamp(columns.start, columns.end));
            scores[columns.start..start].fill(f32::NEG_INFINITY);
            scores[end..columns.end].fill(f32::NEG_INFINITY);
        }
    }

    /// Adds the products of probabilities and values to the sums of the rows that see a block, one block after the other.
    fn mix(
        &self,
        products: &mut Products<'_>,
        step: &Step<'_, T>,
        visit: &Visit,
        rows: &mut Rows<'_, T>,
    ) {
        let (_, stride) = self.strides();
        let sums = &mut rows.sums[visit.first_row * stride..][..BUNDLE * stride];
        match products {
            #[cfg(target_arch = "x86_64")]
            Products::Tiles(tiles) => {
                let (mut next, end) = (visit.blocks.start, visit.blocks.end);
                while next < end {
                    let p = &rows.probabilities[next * KEY_BLOCK..];
                    let whole = visit.seeing[next..end].iter();
                    let n_whole = whole.take_while(|rows| rows.len() == visit.n_rows).count();
                    if n_whole > 0 {
                        let values = &step.values[next..next + n_whole];
                        tiles.mix(p, visit.n_rows, values, sums, stride);
                        next += n_whole;
                        continue;
                    }
                    // Rows that do not see the block keep their sums: a value may be infinite.
                    let seeing = &visit.seeing[next];
                    let seeing = seeing.start * stride..seeing.end * stride;
                    rows.spare.copy_from_slice(sums);
                    tiles.mix(p, visit.n_rows, &step.values[next..=next], rows.spare, stride);
                    sums[seeing.clone()].copy_from_slice(&rows.spare[seeing]);
                    next += 1;
                }
            }
            Products::Rows(..) => {
                for at in visit.blocks.clone() {
                    let seeing = visit.seeing[at].clone();
                    let p = &rows.probabilities[seeing.start * KEY_STEP + at * KEY_BLOCK..];
                    let dims = [seeing.len(), self.shape.head_dim];
                    let (values, out) = (&step.values[at..=at], &mut sums[seeing.start * stride..]);
                    products.mix(dims, p, values, out, stride);
                }
            }
        }
    }
}
