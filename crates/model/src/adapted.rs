//! Adapters at run time: low-rank changes computed beside the weights of a decoder, which may be quantised and stay as they are.

use std::ops::Range;

use formats::adapter::{Adapter, LowRankPair};
use formats::{FfnMatrix, FormatError, LayerPart, WeightName};
use tensor::{DType, Device, LowRank, LowRankScratch, OperandScratch, Tensor};

use crate::config::ModelConfig;
use crate::parameters::UniformStream;

/// Ranks of one change; a change of more is computed as several.
const MAX_RANK: usize = 256;

/// An adapter, ready to compute beside the weights of a decoder: requests of different adapters, and of none, share the decoder and
/// a batch. A product becomes `W x + scaling * B (A x)`; merged, it would be rounded otherwise.
#[derive(Clone, Debug)]
pub struct LoadedAdapter {
    config: ModelConfig,
    dtype: DType,
    layers: Vec<LayerChanges>,
}

/// Rows of a batch that an adapter changes.
#[derive(Clone, Debug)]
pub(crate) struct AdaptedRows<'a> {
    pub(crate) adapter: &'a LoadedAdapter,
    pub(crate) rows: Range<usize>,
}

/// The changes to the products of a layer.
#[derive(Clone, Debug, Default)]
pub(crate) struct LayerChanges {
    qkv: Vec<LowRank>,
    attention_out: Vec<LowRank>,
    gate_up: Vec<LowRank>,
    down: Vec<LowRank>,
}

impl LayerChanges {
    pub(crate) fn qkv(&self) -> &[LowRank] {
        &self.qkv
    }

    pub(crate) fn attention_out(&self) -> &[LowRank] {
        &self.attention_out
    }

    pub(crate) fn gate_up(&self) -> &[LowRank] {
        &self.gate_up
    }

    pub(crate) fn down(&self) -> &[LowRank] {
        &self.down
    }

    fn of_mut(&mut self, part: LayerPart) -> &mut Vec<LowRank> {
        match part {
            LayerPart::AttentionOut => &mut self.attention_out,
            LayerPart::Ffn(FfnMatrix::Down) => &mut self.down,
            LayerPart::Ffn(_) => &mut self.gate_up,
            _ => &mut self.qkv,
        }
    }

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

impl LoadedAdapter {
    /// An adapter for decoders of this shape and number type.
    ///
    /// # Errors
    /// [`FormatError::AdapterMerges`] for a matrix outside the products of dense layers, and those of [`Adapter::pair`].
    pub fn load(
        device: &Device,
        config: &ModelConfig,
        dtype: DType,
        adapter: &Adapter,
    ) -> Result<Self, FormatError> {
        let mut layers = vec![LayerChanges::default(); config.n_layers];
        for name in adapter.names() {
            let (layer_idx, part, first_out) =
                place(name, config).ok_or_else(|| merges_only(adapter, name))?;
            let Some(pair) = adapter.pair(name, config)? else { continue };
            let changes = layers[layer_idx].of_mut(part);
            changes
                .extend(ranks(pair.rank).map(|part| packed(device, dtype, first_out, &pair, part)));
        }
        Ok(Self { config: config.clone(), dtype, layers })
    }

    /// Random changes of a rank to all products of attention, to test with.
    #[must_use]
    pub fn random(
        device: &Device,
        config: &ModelConfig,
        dtype: DType,
        rank: usize,
        seed: u64,
    ) -> Self {
        let mut random = UniformStream { state: seed };
        let mut number = || random.next_in_unit() - 0.5;
        let heads = config.head_shape();
        let out = heads.n_heads * heads.head_dim;
        let mut changes = |n_out: usize, n_in: usize| -> Vec<LowRank> {
            let a = (0..rank * n_in).map(|_| number()).collect();
            let b = (0..n_out * rank).map(|_| number()).collect();
            let pair = LowRankPair { rank, a, b, scaling: 1.0 / rank as f64 };
            ranks(rank).map(|part| packed(device, dtype, 0, &pair, part)).collect()
        };
        let layers = (0..config.n_layers).map(|_| LayerChanges {
            qkv: changes(heads.qkv_width(), config.hidden_dim),
            attention_out: changes(config.hidden_dim, out),
            ..LayerChanges::default()
        });
        Self { layers: layers.collect(), config: config.clone(), dtype }
    }

    /// Bytes that an adapter takes in memory.
    ///
    /// # Errors
    /// As [`LoadedAdapter::load`].
    pub fn bytes_for(
        config: &ModelConfig,
        dtype: DType,
        adapter: &Adapter,
    ) -> Result<usize, FormatError> {
        let mut n_bytes = 0;
        for name in adapter.names() {
            place(name, config).ok_or_else(|| merges_only(adapter, name))?;
            let [n_out, n_in] = name.shape(config)[..] else { unreachable!("a matrix") };
            n_bytes += ranks(adapter.rank(name)?)
                .map(|part| LowRank::bytes_for(dtype, n_in, n_out, even(part.len())))
                .sum::<usize>();
        }
        Ok(n_bytes)
    }

    /// Bytes that it holds.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        self.layers.iter().flat_map(LayerChanges::all).map(LowRank::n_bytes).sum()
    }

    /// Whether it was made for decoders of this shape and number type.
    #[must_use]
    pub fn fits(&self, config: &ModelConfig, dtype: DType) -> bool {
        self.config == *config && self.dtype == dtype
    }

    /// Working memory of adapters for up to `max_rows` tokens.
    pub(crate) fn scratch(device: &Device, dtype: DType, max_rows: usize) -> LowRankScratch {
        LowRankScratch::new(device, dtype, max_rows, MAX_RANK)
    }

    /// Bytes of [`LoadedAdapter::scratch`].
    pub(crate) fn scratch_bytes(dtype: DType, max_rows: usize) -> usize {
        LowRankScratch::bytes_for(dtype, max_rows, MAX_RANK)
    }
}

/// The ranks of a change in pieces that there is working memory for.
fn ranks(rank: usize) -> impl Iterator<Item = Range<usize>> {
    (0..rank).step_by(MAX_RANK).map(move |first| first..rank.min(first + MAX_RANK))
}

/// Products read their operands in pairs.
fn even(rank: usize) -> usize {
    rank.next_multiple_of(2)
}

/// Why an adapter cannot be applied as the model runs.
fn merges_only(adapter: &Adapter, name: WeightName) -> FormatError {
    FormatError::AdapterMerges { path: adapter.path().to_owned(), matrix: name.hf_name() }
}

/// Some ranks of a change, filled up with zeros, the scaling in b.
fn packed(
    device: &Device,
    dtype: DType,
    first_out: usize,
    pair: &LowRankPair,
    ranks: Range<usize>,
) -> LowRank {
    let (n_in, width) = (pair.a.len() / pair.rank, even(ranks.len()));
    let mut a = pair.a[ranks.start * n_in..ranks.end * n_in].to_vec();
    a.resize(width * n_in, 0.0);
    let scaling = pair.scaling as f32;
    let mut b = vec![0.0; pair.b.len() / pair.rank * width];
    for (out, row) in b.chunks_exact_mut(width).zip(pair.b.chunks_exact(pair.rank)) {
        for (out, factor) in out.iter_mut().zip(&row[ranks.clone()]) {
            *out = scaling * factor;
        }
    }
    let (a, b) = (Tensor::from_f32(&a, n_in), Tensor::from_f32(&b, width));
    LowRank::new(device, dtype, first_out, &a, &b)
}

/// Which product of a layer is changed.
pub(crate) type Product = fn(&LayerChanges) -> &[LowRank];

/// Adds what adapters change of a product to what it wrote, each to its own rows.
pub(crate) fn add(
    device: &Device,
    (adapted, layer_idx, product): (&[AdaptedRows<'_>], usize, Product),
    x: &Tensor,
    y: &mut Tensor,
    (low_rank, operands): (&mut Option<LowRankScratch>, &mut OperandScratch),
) {
    for AdaptedRows { adapter, rows } in adapted {
        for change in product(&adapter.layers[layer_idx]) {
            let low_rank = low_rank.as_mut().expect("the workspace is one for a decoder");
            let (x, y) = (x.rows(rows.clone()), y.rows_mut(rows.clone()));
            change.add(device, x, y, low_rank, operands);
        }
    }
}
