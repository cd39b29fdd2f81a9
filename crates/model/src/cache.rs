//! The cache of keys and values of a sequence.

use kernels::attention::{KEY_BLOCK, SequenceRows};
use tensor::{DType, Device, Tensor, View, ViewMut, ops};

use crate::config::ModelConfig;
use crate::forward::AttentionContext;

/// Keys and values of one sequence in every layer, with room for a fixed number of tokens. A layer with a sliding window
/// keeps the blocks that its window reaches, and writes over the oldest.
#[derive(Debug)]
pub struct KvCache {
    /// Per layer `[blocks, key block]`.
    layers: Vec<Tensor>,
    /// The blocks of each layer, by position / 32.
    block_tables: Vec<Vec<u32>>,
    len: usize,
    max_tokens: usize,
    max_rows: usize,
}

impl KvCache {
    /// An empty cache with room for `max_tokens` tokens, rounded up to whole blocks, of which up to `max_rows` come at a time.
    #[must_use]
    pub fn new(config: &ModelConfig, dtype: DType, max_tokens: usize, max_rows: usize) -> Self {
        let block_len = ops::key_block_len(config.head_shape(), dtype);
        let n_positions = max_tokens.div_ceil(KEY_BLOCK);
        let mut block_tables: Vec<Vec<u32>> = Vec::with_capacity(config.n_layers);
        let mut layers = Vec::with_capacity(config.n_layers);
        for layer_idx in 0..config.n_layers {
            let window = config.sliding_window(layer_idx);
            let n_blocks = n_blocks(window, max_tokens, max_rows);
            let ids = (0..n_positions).map(|i| u32::try_from(i % n_blocks));
            let ids = ids.map(|id| id.expect("fewer than 2^32 blocks"));
            block_tables.push(ids.collect());
            layers.push(Tensor::zeroed(dtype, n_blocks, block_len));
        }
        let cache =
            Self { layers, block_tables, len: 0, max_tokens: n_positions * KEY_BLOCK, max_rows };
        let planned = Self::bytes_for(config, dtype, max_tokens, cache.max_rows);
        debug_assert_eq!(cache.n_bytes(), planned, "bytes of a cache against the plan");
        cache
    }

    /// Bytes of a cache with room for `max_tokens` tokens, of which up to `max_rows` come at a time.
    #[must_use]
    pub fn bytes_for(
        config: &ModelConfig,
        dtype: DType,
        max_tokens: usize,
        max_rows: usize,
    ) -> usize {
        let block_bytes = ops::key_block_len(config.head_shape(), dtype) * dtype.bytes();
        let table_bytes = max_tokens.div_ceil(KEY_BLOCK) * size_of::<u32>();
        let blocks_of =
            |layer_idx| n_blocks(config.sliding_window(layer_idx), max_tokens, max_rows);
        (0..config.n_layers).map(|layer_idx| blocks_of(layer_idx) * block_bytes + table_bytes).sum()
    }

    /// Bytes that it holds.
    pub(crate) fn n_bytes(&self) -> usize {
        let tables = self.block_tables.iter().map(|table| table.capacity() * size_of::<u32>());
        self.layers.iter().map(Tensor::n_bytes).sum::<usize>() + tables.sum::<usize>()
    }

    /// Tokens in the cache.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token is in the cache.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens that there is room for.
    #[must_use]
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// # Panics
    /// When there is no room for `n_rows` more tokens, or they are too many to come at a time.
    pub(crate) fn check_room(&self, n_rows: usize) {
        let end = self.len + n_rows;
        assert!(end <= self.max_tokens, "{end} tokens in a cache for {}", self.max_tokens);
        assert!(n_rows <= self.max_rows, "{n_rows} tokens at a time, at most {}", self.max_rows);
    }
}

/// Blocks of a layer. A window of `w` positions and `n` new ones span `w - 1 + n`, which may begin within a block.
fn n_blocks(window: Option<usize>, max_tokens: usize, max_rows: usize) -> usize {
    let all = max_tokens.div_ceil(KEY_BLOCK);
    match window {
        None => all,
        Some(window) => all.min((window - 1).saturating_add(max_rows).div_ceil(KEY_BLOCK) + 1),
    }
}

/// Some new tokens of a sequence and its cache.
#[derive(Debug)]
pub struct CachedRows<'a> {
    /// The tokens that follow those in the cache.
    pub token_ids: &'a [u32],
    /// The sequence's cache.
    pub cache: &'a mut KvCache,
}

/// Attention of sequences that read their earlier tokens from a cache.
pub(crate) struct CachedContext<'a, 'b> {
    pub(crate) sequences: &'a mut [CachedRows<'b>],
}

impl CachedContext<'_, '_> {
    /// Counts the new tokens in, after every layer has seen them.
    pub(crate) fn finish(&mut self) {
        for sequence in &mut *self.sequences {
            sequence.cache.len += sequence.token_ids.len();
        }
    }
}

impl AttentionContext for CachedContext<'_, '_> {
    fn attend(
        &mut self,
        device: &Device,
        config: &ModelConfig,
        layer_idx: usize,
        qkv: &Tensor,
        out: &mut Tensor,
        log_sum_exp: &mut Tensor,
    ) {
        let shape = config.layer_heads(layer_idx);
        let mut row = 0;
        for sequence in &mut *self.sequences {
            let n_rows = sequence.token_ids.len();
            let rows = row..row + n_rows;
            let cache = &mut *sequence.cache;
            let sequence_rows = [SequenceRows {
                first_row: 0,
                n_rows,
                first_position: cache.len,
                block_table: &cache.block_tables[layer_idx],
            }];
            let qkv: View<'_> = qkv.rows(rows.clone());
            let blocks = &mut cache.layers[layer_idx];
            ops::append_keys_values(device, shape, qkv, &sequence_rows, blocks.view_mut());
            let out: ViewMut<'_> = out.rows_mut(rows.clone());
            let lse = log_sum_exp.rows_mut(rows);
            ops::attention(device, shape, qkv, &sequence_rows, blocks.view(), out, lse);
            row += n_rows;
        }
    }
}
