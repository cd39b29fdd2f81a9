//! The cache of keys and values of a sequence.

use kernels::attention::{KEY_BLOCK, SequenceRows};
use tensor::{DType, Device, Tensor, View, ViewMut, ops};

use crate::config::ModelConfig;
use crate::forward::AttentionContext;

/// Keys and values of one sequence in every layer, with room for a fixed number of tokens.
#[derive(Debug)]
pub struct KvCache {
    /// Per layer `[blocks, key block]`.
    layers: Vec<Tensor>,
    /// The blocks of the sequence, in order.
    block_table: Vec<u32>,
    len: usize,
}

impl KvCache {
    /// An empty cache with room for `max_tokens` tokens, rounded up to whole blocks.
    #[must_use]
    pub fn new(config: &ModelConfig, dtype: DType, max_tokens: usize) -> Self {
        let n_blocks = max_tokens.div_ceil(KEY_BLOCK);
        let block_len = ops::key_block_len(config.head_shape(), dtype);
        Self {
            layers: (0..config.n_layers)
                .map(|_| Tensor::zeroed(dtype, n_blocks, block_len))
                .collect(),
            block_table: (0..n_blocks)
                .map(|id| u32::try_from(id).expect("fewer than 2^32 blocks"))
                .collect(),
            len: 0,
        }
    }

    /// Bytes of a cache with room for `max_tokens` tokens.
    #[must_use]
    pub fn bytes_for(config: &ModelConfig, dtype: DType, max_tokens: usize) -> usize {
        let block_len = ops::key_block_len(config.head_shape(), dtype);
        config.n_layers * max_tokens.div_ceil(KEY_BLOCK) * block_len * dtype.bytes()
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
        self.block_table.len() * KEY_BLOCK
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
        let shape = config.head_shape();
        let mut row = 0;
        for sequence in &mut *self.sequences {
            let n_rows = sequence.token_ids.len();
            let rows = row..row + n_rows;
            let cache = &mut *sequence.cache;
            let sequence_rows = [SequenceRows {
                first_row: 0,
                n_rows,
                first_position: cache.len,
                block_table: &cache.block_table,
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
