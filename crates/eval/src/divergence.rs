//! How far the predictions of a changed model, such as a quantised one, are from those of the original.

use model::{Decoder, Workspace};
use serde::{Deserialize, Serialize};
use tensor::Device;

/// The predictions of two models after each token of a text.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Divergence {
    /// Predictions compared.
    pub n_tokens: usize,
    /// Mean of `KL(original || changed)` over the predictions, nats.
    pub mean_nats: f64,
    /// The value that half of the predictions do not pass, nats.
    pub median_nats: f64,
    /// The value that 99 % of the predictions do not pass, nats.
    pub p99_nats: f64,
    /// The largest, nats.
    pub max_nats: f64,
    /// Share of the predictions whose likeliest token is the same.
    pub same_likeliest: f64,
    /// Mean loss of the original on the text, nats per token.
    pub original_loss_nats: f64,
    /// Mean loss of the changed model on the text, nats per token.
    pub changed_loss_nats: f64,
}

/// Compares two models of one shape on a text, in pieces of `piece_len` tokens that do not see one another, each after
/// `first_id`. `None` for an empty text.
///
/// Numerics: logits as the models compute them, then f64.
///
/// # Panics
/// When the vocabularies differ, an id is outside of them, or a piece does not fit the context.
#[must_use]
pub fn divergence(
    device: &Device,
    original: &Decoder,
    changed: &Decoder,
    token_ids: &[u32],
    first_id: u32,
    piece_len: usize,
) -> Option<Divergence> {
    let vocab_size = original.config().vocab_size;
    assert_eq!(vocab_size, changed.config().vocab_size, "vocabularies of the two models");
    let mut workspaces = [original, changed].map(|model| Workspace::for_decoder(model, piece_len));
    let mut divergences = Vec::with_capacity(token_ids.len());
    let (mut n_same, mut losses) = (0, [0.0; 2]);
    for piece in token_ids.chunks(piece_len) {
        let n = piece.len();
        let inputs: Vec<u32> =
            std::iter::once(first_id).chain(piece[..n - 1].iter().copied()).collect();
        let segment_starts = [0, n as u32];
        let mut logits_of = |model: &Decoder, idx: usize| {
            model.logits(device, &inputs, &segment_starts, &mut workspaces[idx])
        };
        let logits = [logits_of(original, 0), logits_of(changed, 1)];
        let rows = logits[0].chunks_exact(vocab_size).zip(logits[1].chunks_exact(vocab_size));
        for ((original, changed), &target) in rows.zip(piece) {
            let (p, q) = (LogProbabilities::of(original), LogProbabilities::of(changed));
            divergences.push(p.divergence_from(&q));
            n_same += usize::from(p.likeliest == q.likeliest);
            losses[0] -= p.at(target as usize);
            losses[1] -= q.at(target as usize);
        }
    }
    divergences.sort_unstable_by(f64::total_cmp);
    let n_tokens = divergences.len();
    let share = |share: f64| {
        let n_below = (n_tokens as f64 * share).ceil() as usize;
        divergences[n_below.clamp(1, n_tokens) - 1]
    };
    (n_tokens > 0).then(|| Divergence {
        n_tokens,
        mean_nats: divergences.iter().sum::<f64>() / n_tokens as f64,
        median_nats: share(0.5),
        p99_nats: share(0.99),
        max_nats: share(1.0),
        same_likeliest: n_same as f64 / n_tokens as f64,
        original_loss_nats: losses[0] / n_tokens as f64,
        changed_loss_nats: losses[1] / n_tokens as f64,
    })
}

/// Mean over the rows of `KL(original || changed)`, nats. Shapes: both `[rows, vocab_size]`. Numerics: f64.
///
/// # Panics
/// When the lengths differ, there is no row, or one is not whole.
#[must_use]
pub fn mean_divergence(original: &[f32], changed: &[f32], vocab_size: usize) -> f64 {
    assert_eq!(original.len(), changed.len(), "logits of the two models");
    let n_rows = original.len() / vocab_size;
    assert!(n_rows > 0 && n_rows * vocab_size == original.len(), "rows of {vocab_size} logits");
    let rows = original.chunks_exact(vocab_size).zip(changed.chunks_exact(vocab_size));
    let divergences = rows.map(|(original, changed)| {
        LogProbabilities::of(original).divergence_from(&LogProbabilities::of(changed))
    });
    divergences.sum::<f64>() / n_rows as f64
}

/// One row of logits, read as logarithms of probabilities.
struct LogProbabilities<'a> {
    logits: &'a [f32],
    /// Logarithm of the sum of the exponentials.
    log_sum: f64,
    likeliest: usize,
}

impl<'a> LogProbabilities<'a> {
    fn of(logits: &'a [f32]) -> Self {
        let first_larger =
            |best: usize, id: usize| if logits[id] > logits[best] { id } else { best };
        let likeliest = (0..logits.len()).fold(0, first_larger);
        let peak = f64::from(logits[likeliest]);
        let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - peak).exp()).sum();
        Self { logits, log_sum: peak + sum.ln(), likeliest }
    }

    /// `KL(self || other)`, nats.
    fn divergence_from(&self, other: &Self) -> f64 {
        let term = |id| self.at(id).exp() * (self.at(id) - other.at(id));
        let sum: f64 = (0..self.logits.len()).map(term).sum();
        // Rounding may leave a sum below zero, which the divergence never is; what is no number stays so.
        if sum < 0.0 { 0.0 } else { sum }
    }

    fn at(&self, id: usize) -> f64 {
        f64::from(self.logits[id]) - self.log_sum
    }
}

#[cfg(test)]
mod tests {
    use kernels::{Compute, Family};
    use model::{ModelConfig, Parameters};
    use tensor::{DType, Passes};

    use super::*;

    fn decoder(device: &Device, seed: u64) -> Decoder {
        let config = ModelConfig::new(ModelConfig::example()).unwrap();
        let mut decoder = Decoder::zeroed(device, &config, DType::F32, Passes::Forward);
        decoder.pack(device, &Parameters::random(&config, seed));
        decoder
    }

    #[test]
    fn a_model_has_no_distance_to_itself_and_some_to_another() {
        let device = Device::Cpu(Compute::forced(Family::Reference, 1).unwrap());
        let (one, other) = (decoder(&device, 1), decoder(&device, 2));
        let ids = [5, 9, 2, 7, 7, 3, 8];
        let same = divergence(&device, &one, &one, &ids, 1, 4).unwrap();
        assert_eq!((same.n_tokens, same.mean_nats, same.max_nats), (7, 0.0, 0.0));
        assert_eq!(same.same_likeliest, 1.0);
        assert_eq!(same.original_loss_nats, same.changed_loss_nats);

        let apart = divergence(&device, &one, &other, &ids, 1, 4).unwrap();
        assert!(apart.median_nats > 0.0 && apart.median_nats <= apart.p99_nats);
        assert!(apart.p99_nats <= apart.max_nats && apart.mean_nats < apart.max_nats);
        assert!(apart.same_likeliest < 1.0);
        assert_eq!(apart.original_loss_nats, same.original_loss_nats);
        // The losses are those of the scoring pass, piece by piece.
        let mut workspace = Workspace::new(&device, one.config(), DType::F32, 8, Passes::Forward);
        let inputs = [1, 5, 9, 2, 1, 7, 3];
        let losses = one.token_losses(&device, &inputs, &ids, &[0, 4, 7], &mut workspace);
        let mean = f64::from(losses.iter().sum::<f32>()) / 7.0;
        assert!((mean - same.original_loss_nats).abs() < 1e-5, "{mean}");
        assert_eq!(divergence(&device, &one, &other, &[], 1, 4), None);
    }

    #[test]
    fn divergence_is_the_sum_of_the_definition() {
        let (p, q) = ([0.5_f64, 0.25, 0.25], [0.25_f64, 0.5, 0.25]);
        let logits = |p: [f64; 3]| p.map(|p| (p.ln() + 3.0) as f32);
        let (p_logits, q_logits) = (logits(p), logits(q));
        let (p_log, q_log) = (LogProbabilities::of(&p_logits), LogProbabilities::of(&q_logits));
        for id in 0..3 {
            assert!((p_log.at(id) - p[id].ln()).abs() < 1e-6);
            assert!((q_log.at(id) - q[id].ln()).abs() < 1e-6);
        }
        assert_eq!((p_log.likeliest, q_log.likeliest), (0, 1));
        // 0.5 ln(0.5 / 0.25) + 0.25 ln(0.25 / 0.5)
        assert!((p_log.divergence_from(&q_log) - 0.25 * 2.0_f64.ln()).abs() < 1e-6);
    }

    #[test]
    fn the_mean_is_over_rows() {
        let (one, other) = ([0.5_f32.ln(), 0.5_f32.ln()], [0.25_f32.ln(), 0.75_f32.ln()]);
        let same_then_apart = [one, one].concat();
        let changed = [one, other].concat();
        let apart = 0.5 * (2.0_f64.ln() + (0.5_f64 / 0.75).ln());
        assert!((mean_divergence(&same_then_apart, &changed, 2) - apart / 2.0).abs() < 1e-6);
    }
}
