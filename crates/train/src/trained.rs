//! What a run trains: a model, or an adapter beside one that stays as it is.

use std::borrow::Cow;

use model::{AdapterParameters, AdapterSettings, ModelConfig, ParameterKind, Parameters};
use tensor::{Device, Tensor};

/// The parameters that are trained. Masters, gradients and both moments of the optimiser are of one kind and shape.
#[derive(Clone, Debug)]
pub enum Trained {
    /// All parameters of a model.
    Model(Parameters),
    /// The factors of an adapter.
    Adapter(AdapterParameters),
}

impl Trained {
    /// Zeros of the same shape on a device.
    #[must_use]
    pub fn zeroed_on(&self, device: &Device) -> Self {
        match self {
            Self::Model(of) => Self::Model(Parameters::zeroed_on(device, of.config())),
            Self::Adapter(of) => {
                let zeroed = AdapterParameters::zeroed_on(device, of.config(), of.settings());
                Self::Adapter(zeroed)
            }
        }
    }

    /// Zeros of the same shape in this machine's memory.
    #[must_use]
    pub fn zeroed_in_memory(&self) -> Self {
        match self {
            Self::Model(of) => Self::Model(Parameters::zeroed(of.config())),
            Self::Adapter(of) => {
                Self::Adapter(AdapterParameters::zeroed(of.config(), of.settings()))
            }
        }
    }

    /// The parameters on a device: themselves where they are there already, else a copy.
    #[must_use]
    pub fn on(self, device: &Device) -> Self {
        match self {
            Self::Model(of) => Self::Model(of.on(device)),
            Self::Adapter(of) => Self::Adapter(of.on(device)),
        }
    }

    /// The parameters in this machine's memory: themselves, or a copy of those on a GPU.
    #[must_use]
    pub fn in_memory(&self) -> Cow<'_, Self> {
        if self.iter().all(|(_, tensor)| tensor.is_in_memory()) {
            return Cow::Borrowed(self);
        }
        Cow::Owned(match self {
            Self::Model(of) => Self::Model(of.in_memory().into_owned()),
            Self::Adapter(of) => Self::Adapter(of.in_memory().into_owned()),
        })
    }

    /// The model's configuration.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        match self {
            Self::Model(of) => of.config(),
            Self::Adapter(of) => of.config(),
        }
    }

    /// Which adapter is trained; `None` of a model.
    #[must_use]
    pub fn adapter_settings(&self) -> Option<&AdapterSettings> {
        match self {
            Self::Model(_) => None,
            Self::Adapter(of) => Some(of.settings()),
        }
    }

    /// Every tensor with its kind, in a fixed order.
    pub fn iter(&self) -> impl Iterator<Item = (ParameterKind, &Tensor)> {
        let (model, adapter) = match self {
            Self::Model(of) => (Some(of.iter()), None),
            Self::Adapter(of) => (None, Some(of.iter())),
        };
        model.into_iter().flatten().chain(adapter.into_iter().flatten())
    }

    /// Every tensor, in the order of [`Trained::iter`].
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        let (model, adapter) = match self {
            Self::Model(of) => (Some(of.iter_mut()), None),
            Self::Adapter(of) => (None, Some(of.iter_mut())),
        };
        model.into_iter().flatten().chain(adapter.into_iter().flatten())
    }

    /// Sets every value to zero.
    pub fn clear(&mut self) {
        self.iter_mut().for_each(Tensor::clear);
    }

    /// The parameters of a model.
    ///
    /// # Panics
    /// When they are those of an adapter.
    #[must_use]
    pub fn model(&self) -> &Parameters {
        match self {
            Self::Model(of) => of,
            Self::Adapter(_) => panic!("the parameters of an adapter, not of a model"),
        }
    }
}
