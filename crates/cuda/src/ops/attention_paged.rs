//! Attention of new rows over a cache in blocks of [`KEY_BLOCK`] positions, many sequences at once.

use kernels::attention::{CacheKind, HeadShape, KEY_BLOCK};
use kernels::rope::Direction;

use super::rope::{self, DeviceRopeTable};
use crate::chain::{self, Link, LinkKind};
use crate::gpu::{Argument, Gpu, Grid, int};
use crate::memory::{Matrix, MatrixMut, Memory, NumberType, Plain};

/// Positions of a partition: part of the arithmetic (`attention_paged.cu`).
const PARTITION: usize = 512;
/// Positions between two updates of a running maximum.
const STEP: usize = 128;
/// Query heads times rows of a tile, where there are few and where there are many.
const FEW_ROWS: usize = 16;
const MANY_ROWS: usize = 64;
/// Blocks of threads that a multiprocessor runs at a time.
const BLOCKS_PER_MULTIPROCESSOR: usize = 2;
/// What single partitions of tiles of many rows may take for their results, in numbers.
const MAX_SCRATCH_NUMBERS: usize = 64 << 20;
/// In the place of a sequence where a row has none, and of a slot where a tile needs none.
const NONE: u32 = u32::MAX;

/// Memory for the keys and values of one layer: `[n_blocks, 2 (keys, values), n_kv_heads, KEY_BLOCK, head_dim]`. In 8 bits the
/// scales of the [`KEY_BLOCK`] positions, f32, follow the codes of a head.
#[derive(Debug)]
pub struct DeviceKeyBlocks {
    memory: Memory,
    /// Of the products that take them.
    number_type: NumberType,
    kind: CacheKind,
    n_kv_heads: usize,
    head_dim: usize,
    n_blocks: usize,
}

impl DeviceKeyBlocks {
    /// Blocks of zeros.
    #[must_use]
    pub fn zeroed(
        gpu: &Gpu,
        number_type: NumberType,
        kind: CacheKind,
        shape: HeadShape,
        n_blocks: usize,
    ) -> Self {
        let blocks = Self::uninitialised(gpu, number_type, kind, shape, n_blocks);
        blocks.memory.fill(0);
        blocks
    }

    /// Blocks as an earlier owner left them, whose numbers are NaN.
    pub(crate) fn poisoned(
        gpu: &Gpu,
        number_type: NumberType,
        kind: CacheKind,
        shape: HeadShape,
        n_blocks: usize,
    ) -> Self {
        let blocks = Self::uninitialised(gpu, number_type, kind, shape, n_blocks);
        blocks.memory.fill(0xff);
        blocks
    }

    fn uninitialised(
        gpu: &Gpu,
        number_type: NumberType,
        kind: CacheKind,
        shape: HeadShape,
        n_blocks: usize,
    ) -> Self {
        let n_bytes = Self::block_bytes(number_type, kind, shape).checked_mul(n_blocks);
        let memory = gpu.memory(n_bytes.expect("the number of bytes fits usize"));
        let HeadShape { n_kv_heads, head_dim, .. } = shape;
        Self { memory, number_type, kind, n_kv_heads, head_dim, n_blocks }
    }

    /// Bytes of one block.
    #[must_use]
    pub fn block_bytes(number_type: NumberType, kind: CacheKind, shape: HeadShape) -> usize {
        let position_bytes = match kind {
            CacheKind::Operands => shape.head_dim * number_type.bytes(),
            CacheKind::Int8 => shape.head_dim + size_of::<f32>(),
        };
        2 * shape.n_kv_heads * KEY_BLOCK * position_bytes
    }

    /// Blocks that there are.
    #[must_use]
    pub fn n_blocks(&self) -> usize {
        self.n_blocks
    }

    /// Bytes that they take.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        self.memory.n_bytes()
    }

    /// A copy of the memory.
    pub(crate) fn numbers<T: Plain + Default>(&self) -> Vec<T> {
        let mut numbers = vec![T::default(); self.n_bytes() / size_of::<T>()];
        self.memory.read(&mut numbers);
        numbers
    }
}

/// New rows of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct CachedSequence<'a> {
    /// First row of the sequence in the batch.
    pub first_row: usize,
    /// Its rows in the batch.
    pub n_rows: usize,
    /// Position of its first row; positions before it are in the blocks already.
    pub first_position: usize,
    /// For each layer the block ids by position / [`KEY_BLOCK`], covering `first_position + n_rows` positions. Blocks before the
    /// window of the first row are not looked at.
    pub block_tables: &'a [Vec<u32>],
}

/// What the rows of a forward pass see, for all of its layers: block ids, and the work that is shared out. Made once per pass, after what was
/// asked of earlier ones, and uploaded at once: attention of a single row reads early what earlier passes put into the cache.
#[derive(Debug)]
pub struct CachedBatch {
    shape: HeadShape,
    n_rows: usize,
    n_layers: usize,
    /// Largest block id of each layer.
    max_ids: Vec<u32>,
    /// Numbers of 32 bits; offsets in numbers.
    memory: Memory,
    tables_at: usize,
    table_stride: usize,
    n_sequences: usize,
    rows_at: usize,
    tiles: Tiles,
    /// Where the batch is one row that a chain can attend.
    single_row: Option<SingleRow>,
}

/// How the positions that a single row sees are shared out (`attention_row.cuh`).
#[derive(Debug)]
struct SingleRow {
    n_shares: usize,
    /// Results of several shares.
    scratch: Memory,
    n_done_at: usize,
}

/// Work that is shared out, as the kernels read it.
#[derive(Debug, Default)]
struct Tiles {
    /// `[sequence, first row, tokens, first position, first partition, partitions, slot, 0]`.
    few: Vec<[u32; 8]>,
    many: Vec<[u32; 8]>,
    /// `[first row, tokens, first slot, partitions]`.
    merges: Vec<[u32; 4]>,
    /// Folded rows of which a single partition is kept, over all KV heads.
    n_slots: usize,
}

/// Some tokens of one sequence and the partitions that they see.
#[derive(Clone, Copy, Debug)]
struct Tile {
    sequence: usize,
    first_row: usize,
    n_tokens: usize,
    first_position: usize,
    first_partition: usize,
    n_partitions: usize,
}

impl CachedBatch {
    /// The rows of some sequences, in ascending order of rows.
    ///
    /// # Panics
    /// When rows overlap or a table is too short.
    #[must_use]
    pub fn new(gpu: &Gpu, sequences: &[CachedSequence<'_>], shape: HeadShape) -> Self {
        Self::with_parallel(
            gpu,
            sequences,
            shape,
            BLOCKS_PER_MULTIPROCESSOR * gpu.multiprocessors(),
        )
    }

    /// As [`CachedBatch::new`], with work shared out for so many blocks of threads at a time. Results have the same bits, but those of a
    /// single row in a chain.
    pub(crate) fn with_parallel(
        gpu: &Gpu,
        sequences: &[CachedSequence<'_>],
        shape: HeadShape,
        n_parallel: usize,
    ) -> Self {
        check_shape(shape);
        let n_rows = check_rows(sequences);
        let n_layers = sequences.first().map_or(0, |sequence| sequence.block_tables.len());
        let tiles = if is_folded(shape) {
            Tiles::new(sequences, shape, n_parallel)
        } else {
            Tiles::default()
        };
        let mut numbers: Vec<u32> = Vec::new();
        numbers.extend(tiles.few.iter().chain(&tiles.many).flatten());
        numbers.extend(tiles.merges.iter().flatten());
        let rows_at = numbers.len();
        push_rows(sequences, n_rows, &mut numbers);
        let tables_at = numbers.len();
        let table_stride = sequences.iter().map(n_blocks_of).max().unwrap_or(0);
        let max_ids = (0..n_layers)
            .map(|layer| push_tables(sequences, shape, layer, table_stride, &mut numbers));
        let max_ids = max_ids.collect();
        let single_row = SingleRow::new(gpu, sequences, shape, (n_rows, n_parallel), &mut numbers);
        Self {
            shape,
            n_rows,
            n_layers,
            max_ids,
            memory: gpu.upload(&numbers),
            tables_at,
            table_stride,
            n_sequences: sequences.len(),
            rows_at,
            tiles,
            single_row,
        }
    }

    fn address(&self, at: usize) -> u64 {
        self.memory.address() + 4 * at as u64
    }

    fn pointer(&self, at: usize) -> Argument {
        Argument::Pointer(self.address(at))
    }

    /// The tables of a layer.
    fn tables(&self, layer_idx: usize) -> u64 {
        self.address(self.tables_at + layer_idx * self.n_sequences * self.table_stride)
    }

    /// The sequences of rows, and their positions.
    fn rows(&self) -> [u64; 2] {
        [self.address(self.rows_at), self.address(self.rows_at + self.n_rows)]
    }

    fn check(&self, shape: HeadShape, qkv: Matrix<'_>, layer_idx: usize, blocks: &DeviceKeyBlocks) {
        assert_eq!(shape, self.shape, "shape of the batch");
        assert_eq!(qkv.width(), shape.qkv_width(), "width of qkv");
        assert!(qkv.n_rows() >= self.n_rows, "{} rows of {}", qkv.n_rows(), self.n_rows);
        assert!(layer_idx < self.n_layers, "layer {layer_idx} of {}", self.n_layers);
        assert_eq!(qkv.number_type(), blocks.number_type, "types of qkv and of the cache");
        assert_eq!(
            [shape.n_kv_heads, shape.head_dim],
            [blocks.n_kv_heads, blocks.head_dim],
            "shapes of qkv and of the cache"
        );
        let max_id = self.max_ids[layer_idx] as usize;
        assert!(max_id < blocks.n_blocks, "block {max_id} of {}", blocks.n_blocks);
    }
}

impl SingleRow {
    /// Query heads that are attended together (`attention_row.cuh`).
    const QUERIES: usize = 8;
    /// The fewest positions of one of several shares.
    const MIN_SHARE_LEN: usize = 128;

    /// Adds counts of shares that are done to `numbers`.
    fn new(
        gpu: &Gpu,
        sequences: &[CachedSequence<'_>],
        shape: HeadShape,
        (n_rows, n_parallel): (usize, usize),
        numbers: &mut Vec<u32>,
    ) -> Option<Self> {
        let &[CachedSequence { n_rows: 1, first_position: position, .. }] = sequences else {
            return None;
        };
        if n_rows != 1 || !gpu.has_chains() || !matches!(shape.head_dim, 64 | 128) {
            return None;
        }
        let n_groups = shape.n_kv_heads * shape.group_len().div_ceil(Self::QUERIES);
        let n_seen = position + 1 - shape.first_visible(position);
        let n_blocks = n_parallel / BLOCKS_PER_MULTIPROCESSOR;
        let n_shares = n_seen.div_ceil(Self::MIN_SHARE_LEN).min(n_blocks / n_groups).max(1);
        let n_slots = if n_shares == 1 { 0 } else { n_groups * n_shares * Self::QUERIES };
        let n_done_at = numbers.len();
        numbers.resize(n_done_at + n_groups, 0);
        // Sums, a maximum and a divisor for each.
        let scratch = gpu.memory(n_slots * (shape.head_dim + 2) * size_of::<f32>());
        Some(Self { n_shares, scratch, n_done_at })
    }
}

/// Whether heads are folded into tiles for tensor cores, where numbers are bf16.
fn is_folded(shape: HeadShape) -> bool {
    matches!(shape.head_dim, 64 | 128) && shape.group_len() <= FEW_ROWS
}

fn check_shape(shape: HeadShape) {
    let HeadShape { n_heads, n_kv_heads, head_dim, scale, window } = shape;
    assert!(n_kv_heads > 0 && head_dim > 0, "{n_kv_heads} KV heads of {head_dim}");
    assert!(n_heads.is_multiple_of(n_kv_heads), "{n_heads} heads on {n_kv_heads} KV heads");
    assert!(scale > 0.0 && scale.is_finite(), "the scale {scale} is not positive");
    assert!(window != Some(0), "a row sees itself");
}

/// Rows up to the last.
fn check_rows(sequences: &[CachedSequence<'_>]) -> usize {
    let mut next_row = 0;
    for sequence in sequences {
        let CachedSequence { first_row, n_rows, block_tables, .. } = *sequence;
        assert!(first_row >= next_row, "sequences overlap at row {first_row}");
        next_row = first_row + n_rows;
        assert_eq!(block_tables.len(), sequences[0].block_tables.len(), "tables of a sequence");
        for table in block_tables {
            assert!(table.len() >= n_blocks_of(sequence), "a table of {} blocks", table.len());
        }
        let end = sequence.first_position + n_rows;
        // Kernels count positions as 32-bit numbers, some steps past the last.
        assert!(end < (1 << 31) - 2 * PARTITION, "position {end}");
    }
    next_row
}

fn n_blocks_of(sequence: &CachedSequence<'_>) -> usize {
    (sequence.first_position + sequence.n_rows).div_ceil(KEY_BLOCK)
}

/// Sequence of each row, then its position.
fn push_rows(sequences: &[CachedSequence<'_>], n_rows: usize, numbers: &mut Vec<u32>) {
    let start = numbers.len();
    numbers.resize(start + 2 * n_rows, NONE);
    let (of_rows, positions) = numbers[start..].split_at_mut(n_rows);
    for (sequence_idx, sequence) in sequences.iter().enumerate() {
        let rows = sequence.first_row..sequence.first_row + sequence.n_rows;
        of_rows[rows.clone()].fill(sequence_idx as u32);
        for (position, out) in (sequence.first_position..).zip(&mut positions[rows]) {
            *out = position as u32;
        }
    }
}

/// Block ids of a layer, `[sequences, table_stride]`, zero for blocks that no row sees; gives the largest.
fn push_tables(
    sequences: &[CachedSequence<'_>],
    shape: HeadShape,
    layer_idx: usize,
    table_stride: usize,
    numbers: &mut Vec<u32>,
) -> u32 {
    let mut max_id = 0;
    for sequence in sequences {
        let first = shape.first_visible(sequence.first_position) / KEY_BLOCK;
        let end = n_blocks_of(sequence);
        let start = numbers.len();
        numbers.resize(start + table_stride, 0);
        // A sequence without rows sees no block, and its window may begin after all of them.
        if let Some(ids) = sequence.block_tables[layer_idx].get(first..end) {
            numbers[start + first..start + end].copy_from_slice(ids);
            max_id = ids.iter().fold(max_id, |max, id| max.max(*id));
        }
    }
    max_id
}

impl Tiles {
    fn new(sequences: &[CachedSequence<'_>], shape: HeadShape, n_parallel: usize) -> Self {
        let group_len = shape.group_len();
        let (mut few, mut many) = (Vec::new(), Vec::new());
        for (sequence_idx, sequence) in sequences.iter().enumerate() {
            let (tiles, tokens) = if sequence.n_rows <= FEW_ROWS / group_len {
                (&mut few, FEW_ROWS / group_len)
            } else {
                (&mut many, MANY_ROWS / group_len)
            };
            for first in (0..sequence.n_rows).step_by(tokens) {
                let n_tokens = tokens.min(sequence.n_rows - first);
                let first_position = sequence.first_position + first;
                let first_partition = shape.first_visible(first_position) / PARTITION;
                tiles.push(Tile {
                    sequence: sequence_idx,
                    first_row: sequence.first_row + first,
                    n_tokens,
                    first_position,
                    first_partition,
                    n_partitions: (first_position + n_tokens).div_ceil(PARTITION) - first_partition,
                });
            }
        }
        let mut tiles = Self::default();
        few.iter().for_each(|tile| tiles.push_split(tile, shape, Self::few_of));
        // The longest first; those that would be at work when all others are done are split, while there is room for their results.
        many.sort_by_key(|tile: &Tile| std::cmp::Reverse(tile.n_partitions));
        let n_partitions: usize = many.iter().map(|tile| tile.n_partitions).sum();
        let fair = (n_partitions * shape.n_kv_heads).checked_div(n_parallel).unwrap_or(usize::MAX);
        for tile in &many {
            let n_slots = tile.n_partitions * tile.n_tokens * shape.n_heads;
            let has_room = (tiles.n_slots + n_slots) * (shape.head_dim + 2) <= MAX_SCRATCH_NUMBERS;
            if tile.n_partitions > fair && has_room {
                tiles.push_split(tile, shape, Self::many_of);
            } else {
                tiles.many.push(tile.numbers(0, tile.n_partitions, NONE));
            }
        }
        tiles
    }

    fn few_of(&mut self) -> &mut Vec<[u32; 8]> {
        &mut self.few
    }

    fn many_of(&mut self) -> &mut Vec<[u32; 8]> {
        &mut self.many
    }

    /// Adds a tile for each of the partitions, and the merge of several.
    fn push_split(
        &mut self,
        tile: &Tile,
        shape: HeadShape,
        list: fn(&mut Self) -> &mut Vec<[u32; 8]>,
    ) {
        if tile.n_partitions == 1 {
            list(self).push(tile.numbers(0, 1, NONE));
            return;
        }
        let partition_slots = tile.n_tokens * shape.n_heads;
        let first_slot = self.n_slots;
        self.n_slots += tile.n_partitions * partition_slots;
        assert!(self.n_slots < NONE as usize, "{} results of partitions", self.n_slots);
        for partition in 0..tile.n_partitions {
            let slot = first_slot + partition * partition_slots;
            list(self).push(tile.numbers(partition, 1, slot as u32));
        }
        let merge = [tile.first_row, tile.n_tokens, first_slot, tile.n_partitions];
        self.merges.push(merge.map(|x| x as u32));
    }
}

impl Tile {
    /// Some of its partitions, as the kernels read them.
    fn numbers(&self, partition: usize, n_partitions: usize, slot: u32) -> [u32; 8] {
        let Self { sequence, first_row, n_tokens, first_position, first_partition, .. } = *self;
        let first = first_partition + partition;
        let [sequence, first_row, n_tokens, first_position, first, n] =
            [sequence, first_row, n_tokens, first_position, first, n_partitions].map(|x| x as u32);
        [sequence, first_row, n_tokens, first_position, first, n, slot, 0]
    }
}

/// Rotates the queries of new rows in their place, and writes their keys, rotated, and values into their sequences' blocks: the bits of
/// [`super::rope::rotate_in_place`], but what `qkv` has of keys stays as it is. Nothing is cleared: attention reads no position
/// that was not written. Rows of no sequence are left alone.
///
/// Where [`attention`] of a single row of bf16 is what is asked for next, that does both in a chain: queries stay as they are too, and a sum of
/// two products may be rounded otherwise.
///
/// In blocks of 8 bits the codes and scales of [`kernels::attention::append_keys_values`]. There keys are rotated in their place too, and so are
/// rows of no sequence.
///
/// Shapes: qkv as on the CPU; the table of its rows.
///
/// # Panics
/// When a shape does not fit or a block id is out of range.
pub fn rotate_and_append(
    gpu: &Gpu,
    shape: HeadShape,
    mut qkv: MatrixMut<'_>,
    table: &DeviceRopeTable,
    (batch, layer_idx): (&CachedBatch, usize),
    blocks: &mut DeviceKeyBlocks,
) {
    let HeadShape { n_heads, n_kv_heads, head_dim, .. } = shape;
    assert_eq!(table.n_rows(), qkv.n_rows(), "rows of the table");
    assert_eq!(table.head_dim(), head_dim, "heads of the table");
    let number_type = qkv.number_type();
    let grid = table.grid(number_type, batch.n_rows, n_heads + 2 * n_kv_heads);
    let Some(grid) = grid else { return };
    batch.check(shape, qkv.as_ref(), layer_idx, blocks);
    if blocks.kind == CacheKind::Int8 {
        let heads = shape.rotated();
        rope::rotate_in_place(gpu, qkv.reborrow(), table, heads, Direction::Forward);
        return append_int8(gpu, shape, qkv.as_ref(), (batch, layer_idx), blocks);
    }
    let (angles, [row_sequences, row_positions]) = (table.addresses(), batch.rows());
    let (blocks, tables) = (blocks.memory.address(), batch.tables(layer_idx));
    let [values, query_factors, entries] = angles;
    let pointers = [
        qkv.address(),
        values,
        query_factors,
        entries,
        blocks,
        tables,
        row_sequences,
        row_positions,
    ];
    let counts = [batch.n_rows, n_heads, n_kv_heads, head_dim, batch.table_stride];
    let arguments = pointers.map(Argument::Pointer).into_iter().chain(counts.map(Argument::count));
    let arguments: Vec<_> = arguments.collect();
    let kernel = format!("rotate_and_append_{}", number_type.suffix());
    let is_link = chain::is_row(batch.n_rows, number_type);
    if !is_link || !(head_dim / 2).is_multiple_of(8) {
        return gpu.launch_early(&kernel, grid, &arguments);
    }
    let [_, n_heads, n_kv_heads, head_dim, table_stride] = counts.map(int);
    let link = Link {
        kind: LinkKind::Append,
        y: qkv.address(),
        angles,
        blocks,
        tables,
        row_sequences,
        row_positions,
        n_heads,
        n_kv_heads,
        head_dim,
        table_stride,
        ..Link::default()
    };
    gpu.launch_linked(kernel, grid, arguments, link);
}

/// Writes keys, rotated before, and values of new rows into blocks of 8 bits.
fn append_int8(
    gpu: &Gpu,
    shape: HeadShape,
    qkv: Matrix<'_>,
    (batch, layer_idx): (&CachedBatch, usize),
    blocks: &DeviceKeyBlocks,
) {
    let HeadShape { n_heads, n_kv_heads, head_dim, .. } = shape;
    let n_warps = 4;
    let [sequences, positions] = batch.rows().map(Argument::Pointer);
    gpu.launch_early(
        &format!("append_int8_{}", qkv.number_type().suffix()),
        Grid {
            blocks: [(batch.n_rows * 2 * n_kv_heads).div_ceil(n_warps), 1, 1],
            threads: 32 * n_warps,
            shared_bytes: 0,
        },
        &[
            Argument::Pointer(qkv.address()),
            Argument::Pointer(blocks.memory.address()),
            Argument::Pointer(batch.tables(layer_idx)),
            sequences,
            positions,
            Argument::count(batch.n_rows),
            Argument::count(n_heads),
            Argument::count(n_kv_heads),
            Argument::count(head_dim),
            Argument::count(batch.table_stride),
        ],
    );
}

/// Causal attention of new rows over the blocks of their sequences, in which [`rotate_and_append`] has put these rows' own.
/// Overwrites the rows of the sequences.
///
/// Shapes: qkv as on the CPU; out `[tokens, n_heads * head_dim]` of the same number type. Numerics: sums, maxima and exponentials in f32;
/// probabilities are rounded to the number type, of 8 bits as on the CPU. A row has the same bits whatever rows stand beside it (`attention_paged.cu`),
/// and other ones where none does and it is part of a chain (`attention_row.cuh`).
///
/// # Panics
/// When a shape does not fit or a block id is out of range.
pub fn attention(
    gpu: &Gpu,
    shape: HeadShape,
    qkv: Matrix<'_>,
    batch: &CachedBatch,
    layer_idx: usize,
    blocks: &DeviceKeyBlocks,
    out: MatrixMut<'_>,
) {
    if batch.n_rows == 0 {
        return;
    }
    batch.check(shape, qkv, layer_idx, blocks);
    assert_eq!(out.width(), shape.n_heads * shape.head_dim, "width of the output");
    assert_eq!(out.n_rows(), qkv.n_rows(), "one output row per token");
    assert_eq!(out.number_type(), qkv.number_type(), "types of qkv and of the output");
    let call = Call { gpu, shape, qkv, batch, layer_idx, blocks, out: out.as_ref() };
    let is_bf16 = qkv.number_type() == NumberType::Bf16;
    if let Some(single_row) = &batch.single_row
        && is_bf16
        && blocks.kind == CacheKind::Operands
    {
        gpu.launch_as_link(call.link(single_row));
    } else if is_bf16 && is_folded(shape) {
        call.folded();
    } else {
        call.plain();
    }
}

struct Call<'a> {
    gpu: &'a Gpu,
    shape: HeadShape,
    qkv: Matrix<'a>,
    batch: &'a CachedBatch,
    layer_idx: usize,
    blocks: &'a DeviceKeyBlocks,
    out: Matrix<'a>,
}

impl Call<'_> {
    /// 0 for none.
    fn window(&self) -> usize {
        // A window that no position fills is none.
        self.shape.window.filter(|window| *window < 1 << 30).unwrap_or(0)
    }

    /// The factor of scores that are exponents of two.
    fn factor(&self) -> f32 {
        (f64::from(self.shape.scale) * std::f64::consts::LOG2_E) as f32
    }

    fn link(&self, single_row: &SingleRow) -> Link {
        let HeadShape { n_heads, n_kv_heads, head_dim, .. } = self.shape;
        let [row_sequences, row_positions] = self.batch.rows();
        Link {
            kind: LinkKind::Attend,
            from: self.qkv.address(),
            y: self.out.address(),
            blocks: self.blocks.memory.address(),
            tables: self.batch.tables(self.layer_idx),
            row_sequences,
            row_positions,
            scratch: single_row.scratch.address(),
            n_done: self.batch.address(single_row.n_done_at),
            n_heads: int(n_heads),
            n_kv_heads: int(n_kv_heads),
            head_dim: int(head_dim),
            table_stride: int(self.batch.table_stride),
            window: int(self.window()),
            n_shares: int(single_row.n_shares),
            factor: self.factor(),
            ..Link::default()
        }
    }

    fn kind_suffix(&self) -> &'static str {
        match self.blocks.kind {
            CacheKind::Operands => "",
            CacheKind::Int8 => "_int8",
        }
    }

    fn folded(&self) {
        let Tiles { few, many, merges, n_slots } = &self.batch.tiles;
        let head_dim = self.shape.head_dim;
        let sums_bytes = n_slots * head_dim * size_of::<f32>();
        // Sums, then maxima and divisors, of single partitions.
        let scratch = self.gpu.memory(sums_bytes + n_slots * 2 * size_of::<f32>());
        let scratch = [0, sums_bytes].map(|at| scratch.address() + at as u64);
        let number_bytes = if self.blocks.kind == CacheKind::Int8 { 1 } else { 2 };
        // Keys of a step and values of two, probabilities, maxima and sums.
        let few_bytes = 3 * STEP * head_dim * number_bytes + STEP * 16 * 2 + 2 * 4 * 16 * 4;
        self.tiles("attention_paged_few", [0, few.len()], few_bytes, scratch);
        // Keys and values of a step, and the sums of a tile's rows; then codes of a step, and scales of its keys and values.
        let codes_bytes = match self.blocks.kind {
            CacheKind::Operands => 0,
            CacheKind::Int8 => STEP * head_dim + 2 * STEP * size_of::<f32>(),
        };
        let many_bytes = 2 * STEP * head_dim * 2 + MANY_ROWS * head_dim * 4 + codes_bytes;
        self.tiles("attention_paged_many", [few.len(), many.len()], many_bytes, scratch);
        self.merge(8 * (few.len() + many.len()), merges.len(), scratch);
    }

    fn tiles(
        &self,
        name: &str,
        [first, n_tiles]: [usize; 2],
        shared_bytes: usize,
        [sums, stats]: [u64; 2],
    ) {
        if n_tiles == 0 {
            return;
        }
        let HeadShape { n_heads, n_kv_heads, head_dim, .. } = self.shape;
        self.gpu.launch_early(
            &format!("{name}{}_{head_dim}", self.kind_suffix()),
            Grid { blocks: [n_tiles, n_kv_heads, 1], threads: 128, shared_bytes },
            &[
                Argument::Pointer(self.qkv.address()),
                Argument::Pointer(self.blocks.memory.address()),
                Argument::Pointer(self.batch.tables(self.layer_idx)),
                self.batch.pointer(8 * first),
                Argument::Pointer(self.out.address()),
                Argument::Pointer(sums),
                Argument::Pointer(stats),
                Argument::count(n_heads),
                Argument::count(n_kv_heads),
                Argument::count(self.batch.table_stride),
                Argument::count(self.window()),
                Argument::F32(self.factor()),
            ],
        );
    }

    fn merge(&self, at: usize, n_merges: usize, [sums, stats]: [u64; 2]) {
        if n_merges == 0 {
            return;
        }
        let HeadShape { n_heads, n_kv_heads, head_dim, .. } = self.shape;
        self.gpu.launch_early(
            "attention_paged_merge",
            Grid { blocks: [n_merges, n_kv_heads, 1], threads: 128, shared_bytes: 0 },
            &[
                self.batch.pointer(at),
                Argument::Pointer(sums),
                Argument::Pointer(stats),
                Argument::Pointer(self.out.address()),
                Argument::count(n_heads),
                Argument::count(n_kv_heads),
                Argument::count(head_dim),
            ],
        );
    }

    fn plain(&self) {
        let HeadShape { n_heads, n_kv_heads, head_dim, scale, .. } = self.shape;
        let n_warps = 4;
        let [sequences, positions] = self.batch.rows().map(Argument::Pointer);
        self.gpu.launch(
            &format!(
                "attention_paged_plain{}_{}",
                self.kind_suffix(),
                self.qkv.number_type().suffix()
            ),
            Grid {
                blocks: [(self.batch.n_rows * n_heads).div_ceil(n_warps), 1, 1],
                threads: 32 * n_warps,
                shared_bytes: n_warps * 2 * head_dim * size_of::<f32>(),
            },
            &[
                Argument::Pointer(self.qkv.address()),
                Argument::Pointer(self.blocks.memory.address()),
                Argument::Pointer(self.batch.tables(self.layer_idx)),
                sequences,
                positions,
                Argument::Pointer(self.out.address()),
                Argument::count(self.batch.n_rows),
                Argument::count(n_heads),
                Argument::count(n_kv_heads),
                Argument::count(head_dim),
                Argument::count(self.batch.table_stride),
                Argument::count(self.window()),
                Argument::F32(scale),
            ],
        );
    }
}
