//! Where the keys and values of sequences lie: in blocks of 32 positions of one layer, which tables name.

use std::sync::Arc;

use kernels::attention::{CacheKind, KEY_BLOCK};
use kernels::likeliest::Likeliest;
use tensor::{CachedBatch, CachedSequence, DType, Device, KeyBlocks, RopeTable, Tensor, ops};

use crate::adapted::LoadedAdapter;
use crate::config::ModelConfig;
use crate::decoder::Decoder;
use crate::forward::AttentionContext;
use crate::workspace::Workspace;

/// Memory for keys and values: blocks, each for [`KEY_BLOCK`] positions of one sequence in one layer. Whose a block is stands in
/// the tables of [`CachedRows`]; whoever makes them sees to it that no two sequences write one block.
#[derive(Debug)]
pub struct KvBlocks {
    blocks: KeyBlocks,
}

impl KvBlocks {
    /// `n_blocks` blocks for a model of this shape.
    #[must_use]
    pub fn new(
        device: &Device,
        config: &ModelConfig,
        dtype: DType,
        kind: CacheKind,
        n_blocks: usize,
    ) -> Self {
        Self { blocks: KeyBlocks::zeroed(device, dtype, kind, config.head_shape(), n_blocks) }
    }

    /// Bytes of one block.
    #[must_use]
    pub fn block_bytes(config: &ModelConfig, dtype: DType, kind: CacheKind) -> usize {
        KeyBlocks::block_bytes(dtype, kind, config.head_shape())
    }

    /// Most blocks that a sequence of `n_tokens` tokens, of which up to `max_rows` come at a time, needs at once in all layers.
    #[must_use]
    pub fn blocks_for(config: &ModelConfig, n_tokens: usize, max_rows: usize) -> usize {
        let layers = 0..config.n_layers;
        layers.map(|layer_idx| layer_blocks(config, layer_idx, n_tokens, max_rows)).sum()
    }

    /// Bytes of as many blocks as [`KvBlocks::blocks_for`] says.
    #[must_use]
    pub fn bytes_for(
        config: &ModelConfig,
        dtype: DType,
        kind: CacheKind,
        n_tokens: usize,
        max_rows: usize,
    ) -> usize {
        Self::blocks_for(config, n_tokens, max_rows) * Self::block_bytes(config, dtype, kind)
    }

    /// Bytes that they take.
    pub(crate) fn n_bytes(&self) -> usize {
        self.blocks.n_bytes()
    }
}

/// As [`KvBlocks::blocks_for`], in one layer. A window of `w` positions and `n` new ones span `w - 1 + n`, which may begin
/// within a block.
fn layer_blocks(config: &ModelConfig, layer_idx: usize, n_tokens: usize, max_rows: usize) -> usize {
    let all = n_tokens.div_ceil(KEY_BLOCK);
    match config.sliding_window(layer_idx) {
        None => all,
        Some(window) => all.min((window - 1).saturating_add(max_rows).div_ceil(KEY_BLOCK) + 1),
    }
}

/// Some new tokens of a sequence, and where its keys and values are.
#[derive(Clone, Copy, Debug)]
pub struct CachedRows<'a> {
    /// The new tokens.
    pub token_ids: &'a [u32],
    /// The last so many of them are to give logits.
    pub n_logits: usize,
    /// What of these logits.
    pub wanted: Wanted,
    /// What changes the weights for this sequence.
    pub adapter: Option<&'a LoadedAdapter>,
    /// Position of the first of them; the positions before it are in the blocks.
    pub first_position: usize,
    /// Per layer the sequence's blocks by position / 32, up to that of its last new token. Those that its window has passed are
    /// not looked at.
    pub block_tables: &'a [Vec<u32>],
}

/// What is to be known of the logits of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All of them.
    Logits,
    /// The likeliest token: much less to copy from a GPU.
    Likeliest,
}

/// What was wanted of the logits of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RowLogits<'a> {
    /// `[vocab]`.
    Logits(&'a [f32]),
    /// None where a logit is NaN or the largest is not finite.
    Likeliest(Option<Likeliest>),
}

/// Takes what was wanted, row by row.
pub type OnLogits<'a> = dyn FnMut(LogitsRow, RowLogits<'_>) + 'a;

/// Which row logits belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogitsRow {
    /// The sequence's place in the call.
    pub sequence_idx: usize,
    /// The row's place among the sequence's new tokens.
    pub row_idx: usize,
}

/// Where the rows of each sequence stand in the batch.
pub(crate) fn cached_sequences<'a>(sequences: &[CachedRows<'a>]) -> Vec<CachedSequence<'a>> {
    let mut end = 0;
    let rows = sequences.iter().map(|sequence| {
        let n_rows = sequence.token_ids.len();
        end += n_rows;
        CachedSequence {
            first_row: end - n_rows,
            n_rows,
            first_position: sequence.first_position,
            block_tables: sequence.block_tables,
        }
    });
    rows.collect()
}

/// Attention of sequences that read their earlier tokens from blocks.
pub(crate) struct CachedContext<'a> {
    pub(crate) batch: CachedBatch<'a>,
    pub(crate) blocks: &'a mut KvBlocks,
}

impl AttentionContext for CachedContext<'_> {
    fn rotate_in_place(
        &mut self,
        device: &Device,
        config: &ModelConfig,
        layer_idx: usize,
        table: &RopeTable,
        qkv: &mut Tensor,
    ) {
        let (shape, layer) = (config.layer_heads(layer_idx), (&self.batch, layer_idx));
        let blocks = &mut self.blocks.blocks;
        ops::rotate_and_append(device, shape, qkv.view_mut(), table, layer, blocks);
    }

    fn attend(
        &mut self,
        device: &Device,
        config: &ModelConfig,
        layer_idx: usize,
        qkv: &Tensor,
        out: &mut Tensor,
        log_sum_exp: &mut Tensor,
    ) {
        let (shape, blocks) = (config.layer_heads(layer_idx), &mut self.blocks.blocks);
        let (out, lse) = (out.view_mut(), log_sum_exp.view_mut());
        let layer = (&self.batch, layer_idx);
        ops::cached_attention(device, shape, qkv.view(), layer, blocks, out, lse);
    }
}

/// Keys and values of a fixed number of sequences, each with room for a fixed number of tokens, for one caller that knows both, as a draft
/// model, benches and tests do; an engine shares blocks among requests that come and go. A layer with a sliding window keeps the blocks that its window
/// reaches, and writes over the oldest.
#[derive(Debug)]
pub struct KvCache {
    blocks: KvBlocks,
    sequences: Vec<KnownSequence>,
    adapter: Option<Arc<LoadedAdapter>>,
    max_rows: usize,
}

#[derive(Debug)]
struct KnownSequence {
    /// Per layer the blocks by position / 32.
    block_tables: Vec<Vec<u32>>,
    len: usize,
    /// The largest `len` since it was 0.
    most: usize,
}

impl KvCache {
    /// An empty cache for `n_sequences` sequences of up to `max_tokens` tokens, of which up to `max_rows` come at a time.
    #[must_use]
    pub fn new(
        decoder: &Decoder,
        kind: CacheKind,
        n_sequences: usize,
        max_tokens: usize,
        max_rows: usize,
    ) -> Self {
        let config = decoder.config();
        let n_positions = max_tokens.div_ceil(KEY_BLOCK);
        let mut n_blocks = 0;
        let mut table = |layer_idx| -> Vec<u32> {
            let (first, n) = (n_blocks, layer_blocks(config, layer_idx, max_tokens, max_rows));
            n_blocks += n;
            let ids = (0..n_positions).map(|i| u32::try_from(first + i % n));
            ids.map(|id| id.expect("fewer than 2^32 blocks")).collect()
        };
        let sequences = (0..n_sequences)
            .map(|_| KnownSequence {
                block_tables: (0..config.n_layers).map(&mut table).collect(),
                len: 0,
                most: 0,
            })
            .collect();
        let blocks = KvBlocks::new(&decoder.device, config, decoder.dtype(), kind, n_blocks);
        Self { blocks, sequences, adapter: None, max_rows }
    }

    /// A cache whose sequences an adapter changes.
    #[must_use]
    pub fn with_adapter(mut self, adapter: Option<Arc<LoadedAdapter>>) -> Self {
        self.adapter = adapter;
        self
    }

    /// Bytes that it takes, with its tables.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        let tables = self.sequences.iter().flat_map(|sequence| &sequence.block_tables);
        self.blocks.n_bytes() + tables.map(|table| size_of_val(&table[..])).sum::<usize>()
    }

    /// Tokens of a sequence.
    ///
    /// # Panics
    /// When there are not so many sequences.
    #[must_use]
    pub fn len(&self, sequence_idx: usize) -> usize {
        self.sequences[sequence_idx].len
    }

    /// Forgets the tokens of a sequence from `len` on; all, where a window that sees again what it had passed would find it written over.
    /// Gives how many are left.
    ///
    /// # Panics
    /// When there are not so many sequences.
    pub fn truncate(&mut self, sequence_idx: usize, len: usize) -> usize {
        let sequence = &mut self.sequences[sequence_idx];
        if sequence.most - len.min(sequence.len) > self.max_rows {
            (sequence.len, sequence.most) = (0, 0);
        }
        sequence.len = sequence.len.min(len);
        sequence.len
    }

    /// Appends tokens to some sequences, each named by its index at most once, and gives the logits after the last token of each,
    /// `[sequences, vocab]`, overwritten.
    ///
    /// # Panics
    /// When the tokens are more than there is room for, or too many to come at a time; as [`Decoder::forward_cached`].
    pub fn append(
        &mut self,
        decoder: &Decoder,
        device: &Device,
        new_tokens: &[(usize, &[u32])],
        workspace: &mut Workspace,
        logits: &mut Vec<f32>,
    ) {
        let adapter = self.adapter.as_deref();
        let rows: Vec<CachedRows<'_>> = new_tokens
            .iter()
            .map(|&(sequence_idx, token_ids)| {
                let KnownSequence { block_tables, len, .. } = &self.sequences[sequence_idx];
                let (n, at_a_time) = (token_ids.len(), self.max_rows);
                assert!(n <= at_a_time, "{n} tokens at a time, at most {at_a_time}");
                CachedRows {
                    token_ids,
                    n_logits: 1,
                    wanted: Wanted::Logits,
                    adapter,
                    first_position: *len,
                    block_tables,
                }
            })
            .collect();
        logits.clear();
        let mut on_logits = |_, row: RowLogits<'_>| match row {
            RowLogits::Logits(row) => logits.extend_from_slice(row),
            RowLogits::Likeliest(_) => unreachable!("all logits are wanted"),
        };
        decoder.forward_cached(device, &rows, &mut self.blocks, workspace, &mut on_logits);
        for &(sequence_idx, token_ids) in new_tokens {
            let sequence = &mut self.sequences[sequence_idx];
            sequence.len += token_ids.len();
            sequence.most = sequence.most.max(sequence.len);
        }
    }
}
