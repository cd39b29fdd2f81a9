//! The rotary frequencies of a configuration.

use std::f64::consts::TAU;

use formats::{Rope, RopeScaling};
use kernels::rope::RopeFrequencies;

use crate::config::ModelConfig;

/// What the rotation of a model turns by, scaling included.
///
/// Numerics: f64. Source: [`RopeScaling`] names the papers; for Llama 3 the model card's code, for YaRN the ramp of its section
/// 3.2 over pairs, whose ends are whole pairs when the configuration says so.
pub(crate) fn frequencies(config: &ModelConfig) -> RopeFrequencies {
    let Rope { theta, scaling } = &config.rope;
    let mut frequencies = RopeFrequencies::plain(config.head_dim, *theta);
    match *scaling {
        RopeScaling::None => {}
        RopeScaling::Divided { ref divisors } => {
            for (radians, divisor) in frequencies.radians.iter_mut().zip(divisors) {
                *radians /= f64::from(*divisor);
            }
        }
        RopeScaling::Linear { factor } => {
            frequencies.radians.iter_mut().for_each(|radians| *radians /= factor);
        }
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context_len } => {
            for radians in &mut frequencies.radians {
                // Turns within the original context.
                let turns = original_context_len as f64 * *radians / TAU;
                let kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                *radians = mix(*radians / factor, *radians, kept.clamp(0.0, 1.0));
            }
        }
        RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            original_context_len,
            attention_factor,
            is_truncated,
        } => {
            let dim = config.head_dim as f64;
            // The pair that makes this many turns within the original context.
            let pair_of = |turns: f64| {
                dim * (original_context_len as f64 / (turns * TAU)).ln() / (2.0 * theta.ln())
            };
            let (mut low, mut high) = (pair_of(beta_fast), pair_of(beta_slow));
            if is_truncated {
                (low, high) = (low.floor(), high.ceil());
            }
            (low, high) = (low.max(0.0), high.min(dim - 1.0));
            if low == high {
                high += 0.001;
            }
            for (pair, radians) in frequencies.radians.iter_mut().enumerate() {
                let ramp = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
                *radians = mix(*radians / factor, *radians, 1.0 - ramp);
            }
            frequencies.amplitude = attention_factor;
        }
    }
    frequencies.query_growth = config.query_scaling.map(|scaling| {
        let original_context_len = u32::try_from(scaling.original_context_len);
        (scaling.beta, original_context_len.expect("a configuration has contexts below 2^28"))
    });
    frequencies
}

/// `a` for a weight of 0, `b` for 1.
fn mix(a: f64, b: f64, weight: f64) -> f64 {
    a * (1.0 - weight) + b * weight
}
