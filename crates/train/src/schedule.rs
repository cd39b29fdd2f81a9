//! The learning rate over a run.

use serde::{Deserialize, Serialize};

/// Warm-up, stable, decay: linear from 0 to the peak over the first steps, constant, linear to 0 over the last ones.
///
/// Source: arXiv 2404.06395, section 4 (MiniCPM), with linear decay as in SmolLM2.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Learning rate between warm-up and decay.
    pub peak_learning_rate: f64,
    /// Steps of the warm-up.
    pub warmup_steps: u64,
    /// Steps of the decay, the last ones of the run.
    pub decay_steps: u64,
}

impl Schedule {
    /// Learning rate of a step, counted from 0, of a run of `n_steps`. The first step is not lost: it has
    /// `1 / warmup_steps` of the peak; nor is the last: it has `1 / decay_steps`.
    #[must_use]
    pub fn learning_rate(&self, step: u64, n_steps: u64) -> f32 {
        let ramp =
            |done: u64, of: u64| if of == 0 { 1.0 } else { (done as f64 / of as f64).min(1.0) };
        let up = ramp(step + 1, self.warmup_steps);
        let down = ramp(n_steps.saturating_sub(step), self.decay_steps);
        (self.peak_learning_rate * up.min(down)) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_holds_and_falls() {
        let schedule = Schedule { peak_learning_rate: 1.0, warmup_steps: 4, decay_steps: 5 };
        let rates: Vec<f32> = (0..20).map(|step| schedule.learning_rate(step, 20)).collect();
        assert_eq!(rates[..4], [0.25, 0.5, 0.75, 1.0]);
        assert!(rates[4..16].iter().all(|&rate| rate == 1.0));
        assert_eq!(rates[16..], [0.8, 0.6, 0.4, 0.2]);
    }

    #[test]
    fn no_warm_up_and_no_decay_is_constant() {
        let schedule = Schedule { peak_learning_rate: 0.5, warmup_steps: 0, decay_steps: 0 };
        assert!((0..9).all(|step| schedule.learning_rate(step, 9) == 0.5));
    }
}
