//! Adapters at run time: low-rank changes computed beside the weights of a decoder, which may be quantised and stay as they are.

use std::ops::Range;

use formats::adapter::{Adapter, LowRankPair};
use formats::{FfnMatrix, FormatError, LayerPart, WeightName};
use tensor::{DType, Device, LowRank, LowRankScratch, OperandScratch, Passes, Tensor};

use crate::adapter_parameters::{AdapterParameters, AdapterSettings};
use crate::config::ModelConfig;
use crate::parameters::UniformStream;

/// Ranks of one change; a change of more is computed as several.
pub(crate) const MAX_RANK: usize = 256;

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

/// A product of a layer beside which changes are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AdaptedProduct {
    Qkv,
    AttentionOut,
    GateUp,
    Down,
}

impl AdaptedProduct {
    /// The product that a matrix is part of; `None` for matrices that are changed by merging only.
    pub(crate) fn of_part(part: LayerPart) -> Option<Self> {
        match part {
            LayerPart::Query | LayerPart::Key | LayerPart::Value => Some(Self::Qkv),
            LayerPart::AttentionOut => Some(Self::AttentionOut),
            LayerPart::Ffn(FfnMatrix::Gate | FfnMatrix::Up) => Some(Self::GateUp),
            LayerPart::Ffn(FfnMatrix::Down) => Some(Self::Down),
            _ => None,
        }
    }
}

/// Something of each change to a layer, by the product that is changed.
#[derive(Clone, Debug)]
pub(crate) struct OfProducts<T>([Vec<T>; 4]);

/// The changes to the products of a layer.
pub(crate) type LayerChanges = OfProducts<LowRank>;

impl<T> OfProducts<T> {
    pub(crate) fn empty() -> Self {
        Self(std::array::from_fn(|_| Vec::new()))
    }

    pub(crate) fn of(&self, product: AdaptedProduct) -> &[T] {
        &self.0[product as usize]
    }

    pub(crate) fn of_mut(&mut self, product: AdaptedProduct) -> &mut Vec<T> {
        &mut self.0[product as usize]
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &T> {
        self.0.iter().flatten()
    }

    pub(crate) fn all_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.0.iter_mut().flatten()
    }
}

/// Where a change is computed: its layer, the product, and the first of the product's outputs that it changes; `None` for
/// matrices that are changed by merging only.
pub(crate) fn place(
    name: WeightName,
    config: &ModelConfig,
) -> Option<(usize, AdaptedProduct, usize)> {
    let WeightName::Layer { layer_idx, part } = name else { return None };
    let (n_heads, n_kv_heads) = (config.n_heads, config.n_kv_heads);
    let first_out = match part {
        LayerPart::Key => n_heads * config.head_dim,
        LayerPart::Value => (n_heads + n_kv_heads) * config.head_dim,
        LayerPart::Ffn(FfnMatrix::Up) => config.ffn_dim,
        _ => 0,
    };
    Some((layer_idx, AdaptedProduct::of_part(part)?, first_out))
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
        let mut layers = vec![LayerChanges::empty(); config.n_layers];
        for name in adapter.names() {
            let (layer_idx, product, first_out) =
                place(name, config).ok_or_else(|| merges_only(adapter, name))?;
            let Some(pair) = adapter.pair(name, config)? else { continue };
            let changes = layers[layer_idx].of_mut(product);
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
        let layers = (0..config.n_layers).map(|_| {
            let mut layer = LayerChanges::empty();
            *layer.of_mut(AdaptedProduct::Qkv) = changes(heads.qkv_width(), config.hidden_dim);
            *layer.of_mut(AdaptedProduct::AttentionOut) = changes(config.hidden_dim, out);
            layer
        });
        Self { layers: layers.collect(), config: config.clone(), dtype }
    }

    /// An adapter that is trained, as it is computed.
    #[must_use]
    pub fn trainable(device: &Device, dtype: DType, parameters: &AdapterParameters) -> Self {
        let config = parameters.config();
        let mut layers = vec![LayerChanges::empty(); config.n_layers];
        for name in parameters.names() {
            let (layer_idx, product, first_out) = place(name, config).expect("a matrix of a layer");
            let [n_out, n_in] = name.shape(config)[..] else { unreachable!("a matrix") };
            let shape = [n_in, n_out, even(parameters.settings().rank)];
            let change = LowRank::trainable(device, dtype, first_out, shape);
            layers[layer_idx].of_mut(product).push(change);
        }
        let mut adapter = Self { config: config.clone(), dtype, layers };
        adapter.pack(device, parameters);
        adapter
    }

    /// Takes over the parameters, which are on its device, rounding them to its number type. What is computed is what
    /// [`LoadedAdapter::load`] makes of them.
    ///
    /// # Panics
    /// When the parameters are those of another adapter.
    pub fn pack(&mut self, device: &Device, parameters: &AdapterParameters) {
        let scaling = parameters.settings().scaling() as f32;
        let changes = self.layers.iter_mut().flat_map(OfProducts::all_mut);
        let factors = parameters.layers.iter().flat_map(OfProducts::all);
        for (change, factors) in changes.zip(factors) {
            change.pack(device, factors.a.view(), factors.b.view(), scaling);
        }
    }

    /// Bytes of [`LoadedAdapter::trainable`].
    #[must_use]
    pub fn trainable_bytes(
        config: &ModelConfig,
        dtype: DType,
        settings: &AdapterSettings,
    ) -> usize {
        let bytes = |shape| LowRank::bytes_for(dtype, shape, Passes::ForwardAndBackward);
        config.n_layers * settings.shapes(config).map(bytes).sum::<usize>()
    }

    /// The changes to a product of a layer.
    pub(crate) fn changes(&self, layer_idx: usize, product: AdaptedProduct) -> &[LowRank] {
        self.layers[layer_idx].of(product)
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
                .map(|part| {
                    LowRank::bytes_for(dtype, [n_in, n_out, even(part.len())], Passes::Forward)
                })
                .sum::<usize>();
        }
        Ok(n_bytes)
    }

    /// Bytes that it holds.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        self.layers.iter().flat_map(OfProducts::all).map(LowRank::n_bytes).sum()
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
pub(crate) fn even(rank: usize) -> usize {
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

/// Adds what adapters change of a product to what it wrote, each to its own rows.
pub(crate) fn add(
    device: &Device,
    (adapted, layer_idx, product): (&[AdaptedRows<'_>], usize, AdaptedProduct),
    x: &Tensor,
    y: &mut Tensor,
    (low_rank, operands): (&mut Option<LowRankScratch>, &mut OperandScratch),
) {
    for AdaptedRows { adapter, rows } in adapted {
        for change in adapter.changes(layer_idx, product) {
            let low_rank = low_rank.as_mut().expect("the workspace is one for a decoder");
            let (x, y) = (x.rows(rows.clone()), y.rows_mut(rows.clone()));
            change.add(device, x, y, low_rank, operands);
        }
    }
}
