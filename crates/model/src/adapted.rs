//! Adapters at run time: low-rank changes computed beside the weights of a decoder, which may be quantised and stay as they are.

use formats::adapter::{Adapter, LowRankPair};
use formats::{FfnMatrix, FormatError, LayerPart, WeightName};
use tensor::{DType, Device, LowRank, LowRankScratch, OperandScratch, Tensor, View};

use crate::config::ModelConfig;
use crate::decoder::Decoder;

/// An adapter, ready to compute: the changes to all layers.
#[derive(Clone, Debug)]
pub(crate) struct PackedAdapter {
    layers: Vec<LayerChanges>,
    max_rank: usize,
}

/// The changes to the products of a layer.
#[derive(Clone, Debug, Default)]
pub(crate) struct LayerChanges {
    pub(crate) qkv: Vec<LowRank>,
    pub(crate) attention_out: Vec<LowRank>,
    pub(crate) gate_up: Vec<LowRank>,
    pub(crate) down: Vec<LowRank>,
}

impl LayerChanges {
    fn all(&self) -> impl Iterator<Item = &LowRank> {
        self.qkv.iter().chain(&self.attention_out).chain(&self.gate_up).chain(&self.down)
    }
}

/// The product of a layer that a matrix belongs to, and the first of its outputs; `None` for matrices that are changed by
/// merging only.
pub(crate) fn place(name: WeightName, config: &ModelConfig) -> Option<(usize, LayerPart, usize)> {
    let WeightName::Layer { layer_idx, part } = name else { return None };
    let (n_heads, n_kv_heads) = (config.n_heads, config.n_kv_heads);
    let first_out = match part {
        LayerPart::Query | LayerPart::AttentionOut => 0,
        LayerPart::Key => n_heads * config.head_dim,
        LayerPart::Value => (n_heads + n_kv_heads) * config.head_dim,
        LayerPart::Ffn(FfnMatrix::Gate | FfnMatrix::Down) => 0,
        LayerPart::Ffn(FfnMatrix::Up) => config.ffn_dim,
        _ => return None,
    };
    Some((layer_idx, part, first_out))
}

impl Decoder {
    /// The decoder with an adapter. A product becomes `W x + scaling * B (A x)`; merged, it would be rounded otherwise.
    ///
    /// # Errors
    /// [`FormatError::AdapterMerges`] for a matrix outside the products of dense layers, and those of [`Adapter::pair`].
    pub fn with_adapter(mut self, device: &Device, adapter: &Adapter) -> Result<Self, FormatError> {
        let mut layers = vec![LayerChanges::default(); self.config.n_layers];
        let mut max_rank = 0;
        for name in adapter.names() {
            let (layer_idx, part, first_out) =
                place(name, &self.config).ok_or_else(|| merges_only(adapter, name))?;
            let Some(pair) = adapter.pair(name, &self.config)? else { continue };
            let rank = even(pair.rank);
            let change = packed(device, self.dtype, first_out, &pair, rank);
            max_rank = max_rank.max(rank);
            let layer = &mut layers[layer_idx];
            match part {
                LayerPart::AttentionOut => layer.attention_out.push(change),
                LayerPart::Ffn(FfnMatrix::Down) => layer.down.push(change),
                LayerPart::Ffn(_) => layer.gate_up.push(change),
                _ => layer.qkv.push(change),
            }
        }
        self.adapter = Some(PackedAdapter { layers, max_rank });
        Ok(self)
    }

    /// Bytes that the changes of an adapter take in memory.
    ///
    /// # Errors
    /// As [`Decoder::with_adapter`].
    pub fn adapter_bytes(
        config: &ModelConfig,
        dtype: DType,
        adapter: &Adapter,
    ) -> Result<usize, FormatError> {
        let mut n_bytes = 0;
        for name in adapter.names() {
            place(name, config).ok_or_else(|| merges_only(adapter, name))?;
            let rank = even(adapter.rank(name)?);
            n_bytes +=
                LowRank::bytes_for(dtype, name.shape(config)[1], name.shape(config)[0], rank);
        }
        Ok(n_bytes)
    }

    /// The changes to a layer.
    pub(crate) fn layer_changes(&self, layer_idx: usize) -> Option<&LayerChanges> {
        self.adapter.as_ref().map(|adapter| &adapter.layers[layer_idx])
    }

    /// Working memory of the changes for up to `max_rows` tokens.
    pub(crate) fn low_rank_scratch(&self, max_rows: usize) -> Option<LowRankScratch> {
        let adapter = self.adapter.as_ref()?;
        Some(LowRankScratch::new(self.dtype, max_rows, adapter.max_rank))
    }
}

impl PackedAdapter {
    /// Bytes that it holds.
    pub(crate) fn n_bytes(&self) -> usize {
        self.layers.iter().flat_map(LayerChanges::all).map(LowRank::n_bytes).sum()
    }
}

/// Products read their operands in pairs.
fn even(rank: usize) -> usize {
    rank.next_multiple_of(2)
}

/// Why an adapter cannot be applied as the model runs.
fn merges_only(adapter: &Adapter, name: WeightName) -> FormatError {
    FormatError::AdapterMerges { path: adapter.path().to_owned(), matrix: name.hf_name() }
}

/// The factors of a change, filled up with zeros to `rank`, the scaling in b.
fn packed(
    device: &Device,
    dtype: DType,
    first_out: usize,
    pair: &LowRankPair,
    rank: usize,
) -> LowRank {
    let n_in = pair.a.len() / pair.rank;
    let mut a = pair.a.clone();
    a.resize(rank * n_in, 0.0);
    let scaling = pair.scaling as f32;
    let mut b = vec![0.0; pair.b.len() / pair.rank * rank];
    for (out, row) in b.chunks_exact_mut(rank).zip(pair.b.chunks_exact(pair.rank)) {
        for (out, factor) in out.iter_mut().zip(row) {
            *out = scaling * factor;
        }
    }
    let (a, b) = (Tensor::from_f32(&a, n_in), Tensor::from_f32(&b, rank));
    LowRank::new(device, dtype, first_out, &a, &b)
}

/// Adds changes to what a product wrote.
pub(crate) fn add(
    device: &Device,
    changes: &[LowRank],
    x: View<'_>,
    y: &mut Tensor,
    (low_rank, operands): (&mut Option<LowRankScratch>, &mut OperandScratch),
) {
    for change in changes {
        let low_rank = low_rank.as_mut().expect("the workspace is one for this decoder");
        change.add(device, x, y.view_mut(), low_rank, operands);
    }
}
