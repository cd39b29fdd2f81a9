//! AdamW over what is trained, with clipping by the norm of the whole gradient.

use kernels::adamw::AdamW;
use model::ParameterKind;
use serde::{Deserialize, Serialize};
use tensor::{Device, ops};

use crate::trained::Trained;

/// The constants of the optimiser.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerSettings {
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay of matrices; embeddings and norms have none.
    pub weight_decay: f32,
    /// Gradients of a larger norm are scaled down to it.
    pub max_grad_norm: f64,
}

impl Default for OptimizerSettings {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, max_grad_norm: 1.0 }
    }
}

/// Moments of every parameter, and how many steps were made.
#[derive(Clone, Debug)]
pub struct Optimizer {
    settings: OptimizerSettings,
    /// Steps made.
    pub(crate) n_steps: u64,
    /// First moments.
    pub(crate) m: Trained,
    /// Second moments.
    pub(crate) v: Trained,
}

impl Optimizer {
    /// Zero moments of these parameters.
    #[must_use]
    pub fn new(device: &Device, parameters: &Trained, settings: OptimizerSettings) -> Self {
        let moments = || parameters.zeroed_on(device);
        Self { settings, n_steps: 0, m: moments(), v: moments() }
    }

    /// Euclidean norm of all values, of the whole gradient for one, summed in f64 in a fixed order.
    #[must_use]
    pub fn norm(device: &Device, values: &Trained) -> f64 {
        ops::norm(device, values.iter().map(|(_, tensor)| tensor.view()))
    }

    /// One step. `grad_norm` is the norm of `gradients`, for clipping as PyTorch's `clip_grad_norm_` does it.
    pub fn step(
        &mut self,
        device: &Device,
        learning_rate: f32,
        grad_norm: f64,
        gradients: &Trained,
        parameters: &mut Trained,
    ) {
        self.n_steps += 1;
        let settings = self.settings;
        let correction = |beta: f32| (1.0 - f64::from(beta).powf(self.n_steps as f64)) as f32;
        let rule = AdamW {
            learning_rate,
            beta1: settings.beta1,
            beta2: settings.beta2,
            eps: settings.eps,
            weight_decay: 0.0,
            grad_scale: (settings.max_grad_norm / (grad_norm + 1e-6)).min(1.0) as f32,
            bias_correction1: correction(settings.beta1),
            bias_correction2: correction(settings.beta2),
        };
        let moments = self.m.iter_mut().zip(self.v.iter_mut());
        for ((parameter, (kind, gradient)), (m, v)) in
            parameters.iter_mut().zip(gradients.iter()).zip(moments)
        {
            let weight_decay = match kind {
                ParameterKind::Matrix => settings.weight_decay,
                ParameterKind::Embedding | ParameterKind::Norm => 0.0,
            };
            let rule = AdamW { weight_decay, ..rule };
            let (w, m, v) = (parameter.view_mut(), m.view_mut(), v.view_mut());
            ops::adamw_step(device, rule, w, gradient.view(), m, v);
        }
    }
}
