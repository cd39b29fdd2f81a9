//! The rotary frequencies of a configuration.

use formats::RopeScaling;
use kernels::rope::RopeFrequencies;

use crate::config::ModelConfig;

/// What the rotation of a model turns by, scaling included.
pub(crate) fn frequencies(config: &ModelConfig) -> RopeFrequencies {
    let mut frequencies = RopeFrequencies::plain(config.head_dim, config.rope.theta);
    let divisors = config.rope.divisors(config.head_dim);
    for (radians, divisor) in frequencies.radians.iter_mut().zip(divisors) {
        *radians /= divisor;
    }
    if let RopeScaling::Yarn { attention_factor, .. } = config.rope.scaling {
        frequencies.amplitude = attention_factor;
    }
    frequencies.query_growth = config.query_scaling.map(|scaling| {
        let original_context_len = u32::try_from(scaling.original_context_len);
        (scaling.beta, original_context_len.expect("a configuration has contexts below 2^28"))
    });
    frequencies
}
