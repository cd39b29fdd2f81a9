//! The factors of an adapter that is trained, in f32: masters, gradients and optimiser moments have this shape.

use std::borrow::Cow;

use formats::adapter::{LowRankPair, MAX_SCALING};
use formats::{FfnMatrix, LayerPart, WeightName};
use tensor::{DType, Device, Tensor};

use crate::adapted::{AdaptedProduct, MAX_RANK, OfProducts, even};
use crate::config::{ModelConfig, ModelError};
use crate::parameters::{ParameterKind, UniformStream};

/// Which low-rank adapter is trained.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterSettings {
    /// Rank of every change.
    pub rank: usize,
    /// Changes are multiplied with `alpha / rank`.
    pub alpha: f64,
    /// The matrices that are changed, of every layer.
    pub matrices: Vec<LayerPart>,
}

impl AdapterSettings {
    /// Every matrix that an adapter can change.
    pub const MATRICES: [LayerPart; 7] = [
        LayerPart::Query,
        LayerPart::Key,
        LayerPart::Value,
        LayerPart::AttentionOut,
        LayerPart::Ffn(FfnMatrix::Gate),
        LayerPart::Ffn(FfnMatrix::Up),
        LayerPart::Ffn(FfnMatrix::Down),
    ];

    /// Changes of every matrix, with a scaling of 2, which is what most adapters have.
    #[must_use]
    pub fn of_rank(rank: usize) -> Self {
        Self { rank, alpha: 2.0 * rank as f64, matrices: Self::MATRICES.to_vec() }
    }

    /// Whether such an adapter can be trained beside a model.
    ///
    /// # Errors
    /// [`ModelError::Adapter`], which names the setting, and those of [`ModelConfig::check_trainable`].
    pub fn check(&self, config: &ModelConfig) -> Result<(), ModelError> {
        self.check_numbers()?;
        config.check_trainable()
    }

    /// Whether the settings can be used, beside whichever model.
    ///
    /// # Errors
    /// [`ModelError::Adapter`], which names the setting.
    pub fn check_numbers(&self) -> Result<(), ModelError> {
        let wrong = |setting, got, expected| Err(ModelError::Adapter { setting, got, expected });
        if !(1..=MAX_RANK).contains(&self.rank) {
            return wrong("rank", self.rank.to_string(), format!("1 to {MAX_RANK}"));
        }
        if !(self.alpha > 0.0 && self.alpha <= MAX_SCALING) {
            let expected = format!("a number above 0, at most {MAX_SCALING:e}");
            return wrong("alpha", self.alpha.to_string(), expected);
        }
        let mut sorted = self.matrices.clone();
        sorted.sort_unstable();
        sorted.dedup();
        let is_known = |part: &LayerPart| Self::MATRICES.contains(part);
        if sorted.is_empty() || sorted.len() < self.matrices.len() || !sorted.iter().all(is_known) {
            let expected = "matrices of a layer, each once".to_owned();
            return wrong("matrices", format!("{:?}", self.matrices), expected);
        }
        Ok(())
    }

    /// What changes are multiplied with.
    #[must_use]
    pub fn scaling(&self) -> f64 {
        self.alpha / self.rank as f64
    }

    /// Numbers that are trained.
    #[must_use]
    pub fn n_parameters(&self, config: &ModelConfig) -> u64 {
        let sides = |[n_in, n_out, _]: [usize; 3]| (n_in + n_out) * self.rank;
        let of_layer: usize = self.shapes(config).map(sides).sum();
        (config.n_layers * of_layer) as u64
    }

    /// Numbers of [`AdapterParameters`], which are somewhat more where the rank is odd.
    #[must_use]
    pub fn n_numbers(&self, config: &ModelConfig) -> u64 {
        Self { rank: even(self.rank), ..self.clone() }.n_parameters(config)
    }

    /// Inputs, outputs and rank, as it is computed, of the changes to a layer.
    pub(crate) fn shapes(&self, config: &ModelConfig) -> impl Iterator<Item = [usize; 3]> {
        self.matrices.iter().map(|&part| {
            let [n_out, n_in] = WeightName::Layer { layer_idx: 0, part }.shape(config)[..] else {
                panic!("{part:?} is a matrix")
            };
            [n_in, n_out, even(self.rank)]
        })
    }
}

/// The factors of the change to one matrix. An odd rank is made even by a row of a and a column of b that are zero, and stay so:
/// the gradient of each is a multiple of the other.
#[derive(Clone, Debug)]
pub(crate) struct Factors {
    pub(crate) part: LayerPart,
    /// `[rank, n_in]`.
    pub(crate) a: Tensor,
    /// `[n_out, rank]`, without the scaling.
    pub(crate) b: Tensor,
}

/// The factors of all changes of an adapter, row-major.
#[derive(Clone, Debug)]
pub struct AdapterParameters {
    config: ModelConfig,
    settings: AdapterSettings,
    pub(crate) layers: Vec<OfProducts<Factors>>,
}

impl AdapterParameters {
    /// Zeros in this machine's memory.
    ///
    /// # Panics
    /// When the adapter cannot be trained ([`AdapterSettings::check`]).
    #[must_use]
    pub fn zeroed(config: &ModelConfig, settings: &AdapterSettings) -> Self {
        Self::made_of(config, settings, &|n_out, n_in| Tensor::zeroed(DType::F32, n_out, n_in))
    }

    /// Zeros on a device.
    ///
    /// # Panics
    /// As [`AdapterParameters::zeroed`].
    #[must_use]
    pub fn zeroed_on(device: &Device, config: &ModelConfig, settings: &AdapterSettings) -> Self {
        let zeroed = |n_out, n_in| Tensor::zeroed_on(device, DType::F32, n_out, n_in);
        Self::made_of(config, settings, &zeroed)
    }

    fn made_of(
        config: &ModelConfig,
        settings: &AdapterSettings,
        zeroed: &dyn Fn(usize, usize) -> Tensor,
    ) -> Self {
        assert_eq!(settings.check(config), Ok(()));
        let layer = |_| {
            let mut factors = OfProducts::empty();
            for (&part, [n_in, n_out, rank]) in
                settings.matrices.iter().zip(settings.shapes(config))
            {
                let (a, b) = (zeroed(rank, n_in), zeroed(n_out, rank));
                let product = AdaptedProduct::of_part(part).expect("a matrix of a layer");
                factors.of_mut(product).push(Factors { part, a, b });
            }
            factors
        };
        let layers = (0..config.n_layers).map(layer).collect();
        Self { config: config.clone(), settings: settings.clone(), layers }
    }

    /// A fresh adapter, which changes nothing: a uniform in `-1 / sqrt(n_in)..1 / sqrt(n_in)`, as PEFT begins, and b zero. The same
    /// seed gives the same bits everywhere.
    ///
    /// # Panics
    /// As [`AdapterParameters::zeroed`].
    #[must_use]
    pub fn random(config: &ModelConfig, settings: &AdapterSettings, seed: u64) -> Self {
        let mut parameters = Self::zeroed(config, settings);
        let mut random = UniformStream { state: seed };
        for factors in parameters.layers.iter_mut().flat_map(OfProducts::all_mut) {
            let n_in = factors.a.width();
            let half_width = 1.0 / (n_in as f32).sqrt();
            for value in &mut factors.a.f32_mut()[..settings.rank * n_in] {
                *value = (random.next_in_unit() * 2.0 - 1.0) * half_width;
            }
        }
        parameters
    }

    /// The parameters on a device: themselves where they are there already, else a copy.
    #[must_use]
    pub fn on(mut self, device: &Device) -> Self {
        self.iter_mut().for_each(|tensor| tensor.move_to(device));
        self
    }

    /// The parameters in this machine's memory: themselves, or a copy of those on a GPU.
    #[must_use]
    pub fn in_memory(&self) -> Cow<'_, Self> {
        if self.iter().all(|(_, tensor)| tensor.is_in_memory()) {
            return Cow::Borrowed(self);
        }
        let mut copy = Self::zeroed(&self.config, &self.settings);
        let tensors = copy.iter_mut().zip(self.iter());
        tensors.for_each(|(copy, (_, tensor))| tensor.read_into(copy.f32_mut()));
        Cow::Owned(copy)
    }

    /// The configuration of the model.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Which adapter it is.
    #[must_use]
    pub fn settings(&self) -> &AdapterSettings {
        &self.settings
    }

    /// Every tensor with its kind, in a fixed order.
    pub fn iter(&self) -> impl Iterator<Item = (ParameterKind, &Tensor)> {
        let factors = self.layers.iter().flat_map(OfProducts::all);
        factors.flat_map(|of| [&of.a, &of.b]).map(|tensor| (ParameterKind::Matrix, tensor))
    }

    /// Every tensor, in the order of [`AdapterParameters::iter`].
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        let factors = self.layers.iter_mut().flat_map(OfProducts::all_mut);
        factors.flat_map(|of| [&mut of.a, &mut of.b])
    }

    /// Sets every value to zero.
    pub fn clear(&mut self) {
        self.iter_mut().for_each(Tensor::clear);
    }

    /// The matrices that are changed, layer by layer.
    pub fn names(&self) -> impl Iterator<Item = WeightName> {
        let layers = self.layers.iter().enumerate();
        layers.flat_map(|(layer_idx, layer)| {
            layer.all().map(move |of| WeightName::Layer { layer_idx, part: of.part })
        })
    }

    /// The factors of a matrix, as files hold them.
    ///
    /// # Panics
    /// When the matrix is not changed, or the parameters are on a GPU.
    #[must_use]
    pub fn pair(&self, name: WeightName) -> LowRankPair {
        let factors = self.layers[layer_of(name)].all().find(|of| is_of(of, name));
        let factors = factors.expect("a matrix that is changed");
        let (rank, n_in, padded) = (self.settings.rank, factors.a.width(), factors.b.width());
        let a = factors.a.f32()[..rank * n_in].to_vec();
        let rows = factors.b.f32().chunks_exact(padded);
        let b = rows.flat_map(|row| row[..rank].iter().copied()).collect();
        LowRankPair { a, b, rank, scaling: self.settings.scaling() }
    }

    /// Overwrites the factors of a matrix.
    ///
    /// # Panics
    /// As [`AdapterParameters::pair`], and when a shape differs.
    pub fn set_pair(&mut self, name: WeightName, pair: &LowRankPair) {
        let rank = self.settings.rank;
        assert_eq!(pair.rank, rank, "rank of {name:?}");
        let mut factors = self.layers[layer_of(name)].all_mut();
        let factors = factors.find(|of| is_of(of, name)).expect("a matrix that is changed");
        let (n_in, padded) = (factors.a.width(), factors.b.width());
        factors.a.f32_mut()[..rank * n_in].copy_from_slice(&pair.a);
        let rows = factors.b.f32_mut().chunks_exact_mut(padded);
        assert_eq!(rows.len() * rank, pair.b.len(), "outputs of {name:?}");
        for (row, values) in rows.zip(pair.b.chunks_exact(rank)) {
            row[..rank].copy_from_slice(values);
        }
    }
}

fn layer_of(name: WeightName) -> usize {
    let WeightName::Layer { layer_idx, .. } = name else { panic!("{name:?} is of no layer") };
    layer_idx
}

fn is_of(factors: &Factors, name: WeightName) -> bool {
    matches!(name, WeightName::Layer { part, .. } if part == factors.part)
}
