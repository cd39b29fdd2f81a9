//! How far the logits of what is timed are from those of the file's own numbers in f32.

use eval::divergence::mean_divergence;
use formats::{FormatError, ModelWeights};
use model::{CacheKind, Decoder, ModelConfig, Workspace};
use tensor::{DType, Device};

use crate::inference::Subject;

/// Tokens of the prompt that is scored, where the context has room for them.
const SCORED_TOKENS: usize = 64;

/// Token ids that are read: multiples of a prime, modulo the vocabulary. The scripts of `benches/peers` read the same.
#[must_use]
pub fn prompt(n_tokens: usize, vocab_size: usize) -> Vec<u32> {
    (0..n_tokens).map(|i| (i * 7919 % vocab_size) as u32).collect()
}

/// How the logits that are scored are computed: as what is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scored {
    /// The prompt in one piece.
    Reading,
    /// Token by token, beside other users that read the same.
    Writing {
        /// Users.
        n_users: usize,
    },
}

/// The logits of a short prompt, computed in f32 on the very numbers that the file holds, its blocks decoded.
#[derive(Debug)]
pub struct ReferenceLogits {
    logits: Vec<f32>,
    n_tokens: usize,
    vocab_size: usize,
}

impl ReferenceLogits {
    /// Bytes that [`ReferenceLogits::compute`] takes, beside mapped files.
    ///
    /// # Errors
    /// When a weight is missing, or has another shape or type than it should.
    pub fn bytes_for(
        device: &Device,
        config: &ModelConfig,
        weights: &ModelWeights,
    ) -> Result<u64, FormatError> {
        let weights = Decoder::loaded_bytes(device, config, DType::F32, weights, None)?;
        let workspace = Workspace::max_bytes_for_decoder(config, DType::F32, SCORED_TOKENS);
        Ok((weights + workspace + 4 * SCORED_TOKENS * config.vocab_size) as u64)
    }

    /// Loads the weights in f32 and computes the logits; the weights are gone afterwards.
    ///
    /// # Errors
    /// As [`ReferenceLogits::bytes_for`].
    pub fn compute(
        device: &Device,
        config: &ModelConfig,
        weights: &ModelWeights,
    ) -> Result<Self, FormatError> {
        let decoder = Decoder::load(device, config, DType::F32, weights, None)?;
        let (n_tokens, vocab_size) = (SCORED_TOKENS.min(config.context_len), config.vocab_size);
        let logits = read_logits(device, &decoder, n_tokens);
        Ok(Self { logits, n_tokens, vocab_size })
    }

    /// `[n_tokens, vocab_size]` of the logits.
    #[must_use]
    pub fn shape(&self) -> [usize; 2] {
        [self.n_tokens, self.vocab_size]
    }

    /// Mean over the tokens of `KL(reference || other)`, nats.
    ///
    /// # Panics
    /// When the shapes differ.
    #[must_use]
    pub fn divergence_of(&self, logits: &[f32]) -> f64 {
        mean_divergence(&self.logits, logits, self.vocab_size)
    }

    /// As [`ReferenceLogits::divergence_of`], of the logits of what is measured.
    ///
    /// # Panics
    /// When the vocabularies differ, or an adapter changes the subject.
    #[must_use]
    pub fn divergence_of_subject(
        &self,
        device: &Device,
        subject: &Subject<'_>,
        how: Scored,
    ) -> f64 {
        assert!(subject.adapter.is_none(), "the reference has no adapter");
        let n_tokens = self.n_tokens;
        self.divergence_of(&match (how, subject.cache_kind) {
            (Scored::Reading, CacheKind::Operands) => {
                read_logits(device, subject.decoder, n_tokens)
            }
            // A prompt that is read in pieces has the bits of one that is written.
            (Scored::Reading, CacheKind::Int8) => written_logits(device, subject, n_tokens, 1),
            (Scored::Writing { n_users }, _) => written_logits(device, subject, n_tokens, n_users),
        })
    }
}

/// `[n_tokens, vocab]` of the prompt in one piece.
fn read_logits(device: &Device, decoder: &Decoder, n_tokens: usize) -> Vec<f32> {
    let token_ids = prompt(n_tokens, decoder.config().vocab_size);
    let mut workspace = Workspace::for_decoder(decoder, n_tokens);
    decoder.logits(device, &token_ids, &[0, n_tokens as u32], &mut workspace)
}

/// `[n_tokens, vocab]` of the prompt token by token, from a cache, of the first of some users.
fn written_logits(
    device: &Device,
    subject: &Subject<'_>,
    n_tokens: usize,
    n_users: usize,
) -> Vec<f32> {
    let decoder = subject.decoder;
    let config = decoder.config();
    let token_ids = prompt(n_tokens, config.vocab_size);
    let mut workspace = Workspace::for_decoder(decoder, n_users);
    let mut cache = subject.cache(n_users, n_tokens);
    let (mut step_logits, mut logits) = (Vec::new(), Vec::new());
    for token_id in token_ids {
        let token_ids: &[u32] = &[token_id];
        let rows: Vec<(usize, &[u32])> = (0..n_users).map(|user| (user, token_ids)).collect();
        cache.append(decoder, device, &rows, &mut workspace, &mut step_logits);
        logits.extend_from_slice(&step_logits[..config.vocab_size]);
    }
    logits
}

#[cfg(test)]
mod tests {
    use formats::DecoderConfig;
    use formats::model_dir::ModelDir;
    use kernels::{Compute, Family};
    use model::compute_dtype;
    use testkit::test_dir::TestDir;

    use super::*;
    use crate::random_model::{RandomWeights, write_random_model};

    #[test]
    fn what_is_timed_is_near_the_numbers_of_its_file_and_the_same_however_it_is_computed() {
        let scratch = TestDir::new("bench-accuracy");
        let device = Device::Cpu(Compute::forced(Family::Reference, 1).unwrap());
        let shape = DecoderConfig {
            vocab_size: 320,
            hidden_dim: 256,
            n_heads: 4,
            n_kv_heads: 2,
            head_dim: 64,
            ffn_dim: 512,
            ..ModelConfig::example()
        };
        let path = scratch.path().join("q4km.gguf");
        write_random_model(&path, &shape, RandomWeights::Q4km).unwrap();
        let dir = ModelDir::open(&path).unwrap();
        let config = ModelConfig::new(dir.config().clone()).unwrap();
        let reference = ReferenceLogits::compute(&device, &config, dir.weights()).unwrap();
        assert_eq!(reference.shape(), [SCORED_TOKENS.min(config.context_len), 320]);
        assert_eq!(reference.divergence_of(&reference.logits), 0.0);
        let dtype = compute_dtype(config.dtype);
        let decoder = Decoder::load(&device, &config, dtype, dir.weights(), None).unwrap();
        let subject = |cache_kind| Subject { decoder: &decoder, adapter: None, cache_kind };
        let of = |how| reference.divergence_of_subject(&device, &subject(CacheKind::Operands), how);
        let read = of(Scored::Reading);
        assert!(read > 0.0 && read < 1e-3, "{read}");
        assert_eq!(of(Scored::Writing { n_users: 1 }), read);
        assert_eq!(of(Scored::Writing { n_users: 3 }), read);
        let in_8_bits =
            |how| reference.divergence_of_subject(&device, &subject(CacheKind::Int8), how);
        let kept = in_8_bits(Scored::Writing { n_users: 3 });
        assert!(kept != read && kept < 1e-3, "{kept} beside {read}");
        assert_eq!(in_8_bits(Scored::Reading), kept);
        // Another model is far away.
        let other = &reference.logits.iter().rev().copied().collect::<Vec<f32>>();
        assert!(reference.divergence_of(other) > 10.0 * read);
    }
}
