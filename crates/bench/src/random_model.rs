//! GGUF files of random weights: the same arithmetic and the same bytes as trained ones, made in a stream, so that memory holds some
//! kilobytes of them. Logits are of the size that a fresh model has, and finite.

use std::io::{self, Write};
use std::path::Path;

use data::Random;
use formats::gguf::write_made;
use formats::{DecoderConfig, FfnMatrix, FormatError, LayerPart, TensorDtype, WeightName};
use half::{bf16, f16};

/// Blocks, or numbers, that are made at a time.
const BLOCKS_AT_A_TIME: usize = 4096;

/// Of other bytes, other files.
pub const RANDOM_MODEL_VERSION: u32 = 1;

/// Which kinds of numbers a model of random weights has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RandomWeights {
    /// `Q4_K`, with `Q6_K` where llama.cpp's `Q4_K_M` has it: the head, and half of the value and down projections.
    Q4km,
    /// `Q8_0`.
    Q8,
    /// `BF16`.
    Bf16,
}

impl RandomWeights {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Q4km, Self::Q8, Self::Bf16];

    /// The name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q4km => "q4km",
            Self::Q8 => "q8",
            Self::Bf16 => "bf16",
        }
    }

    /// The kind of a name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Bytes of the weights of a model.
    ///
    /// # Panics
    /// When rows are not whole blocks.
    #[must_use]
    pub fn n_bytes(self, config: &DecoderConfig) -> u64 {
        let bytes = |name: WeightName| {
            self.dtype(name, config).bytes_of(name.shape(config).iter().product()) as u64
        };
        WeightName::all(config).into_iter().map(bytes).sum()
    }

    /// The length of rows that are not whole blocks of their kind, and that of a block; `None` where all are.
    #[must_use]
    pub fn broken_rows(self, config: &DecoderConfig) -> Option<(usize, usize)> {
        WeightName::all(config).into_iter().find_map(|name| {
            let (n_in, block_len) = (row_len(name, config), self.dtype(name, config).block_len());
            (!n_in.is_multiple_of(block_len)).then_some((n_in, block_len))
        })
    }

    fn dtype(self, name: WeightName, config: &DecoderConfig) -> TensorDtype {
        match (self, name) {
            _ if name.shape(config).len() == 1 => TensorDtype::F32,
            (Self::Bf16, _) => TensorDtype::Bf16,
            (Self::Q8, _) => TensorDtype::Q8_0,
            (Self::Q4km, WeightName::Head) => TensorDtype::Q6_K,
            (Self::Q4km, WeightName::Layer { layer_idx, part })
                if matches!(part, LayerPart::Value | LayerPart::Ffn(FfnMatrix::Down))
                    && has_more_bits(layer_idx, config.n_layers) =>
            {
                TensorDtype::Q6_K
            }
            (Self::Q4km, _) => TensorDtype::Q4_K,
        }
    }
}

/// The layers that a `Q4_K_M` file gives more bits: the first and the last eighth, and a third of the others. Source: llama.cpp
/// `src/llama-quant.cpp`, `use_more_bits`.
fn has_more_bits(layer_idx: usize, n_layers: usize) -> bool {
    let eighth = n_layers / 8;
    layer_idx < eighth || layer_idx >= 7 * n_layers / 8 || (layer_idx - eighth) % 3 == 2
}

/// Numbers of a row; of a vector, all.
fn row_len(name: WeightName, config: &DecoderConfig) -> usize {
    *name.shape(config).last().expect("weights have an axis")
}

/// Writes the file, atomically. The same shape and kind give the same bytes on every machine.
///
/// # Errors
/// When it cannot be written; nothing is left behind.
///
/// # Panics
/// When rows are not whole blocks ([`RandomWeights::broken_rows`]), or the model has experts.
pub fn write_random_model(
    path: &Path,
    config: &DecoderConfig,
    weights: RandomWeights,
) -> Result<(), FormatError> {
    write_made(path, config, |name| {
        let (dtype, n) = (weights.dtype(name, config), name.shape(config).iter().product());
        let std = standard_deviation(name, config);
        (dtype, Box::new(move |out| write_tensor(out, dtype, n, std, &format!("{name:?}"))))
    })
}

/// That of a fresh model ([`model::Parameters::random`]).
fn standard_deviation(name: WeightName, config: &DecoderConfig) -> f32 {
    let fan_in = 1.0 / (row_len(name, config) as f32).sqrt();
    match name {
        WeightName::Embedding | WeightName::Head => 0.02,
        WeightName::Layer {
            part: LayerPart::AttentionOut | LayerPart::Ffn(FfnMatrix::Down),
            ..
        } => fan_in / (2.0 * config.n_layers as f32).sqrt(),
        _ => fan_in,
    }
}

fn write_tensor(
    out: &mut dyn Write,
    dtype: TensorDtype,
    n: usize,
    std: f32,
    purpose: &str,
) -> io::Result<()> {
    if dtype == TensorDtype::F32 {
        return (0..n).try_for_each(|_| out.write_all(&1.0_f32.to_le_bytes()));
    }
    let mut random = Random::new(1, purpose);
    let n_bytes = dtype.bytes_of(n);
    let mut buffer = vec![0; n_bytes.min(BLOCKS_AT_A_TIME * dtype.block_bytes())];
    for first in (0..n_bytes).step_by(buffer.len().max(1)) {
        let len = buffer.len().min(n_bytes - first);
        let bytes = &mut buffer[..len];
        for word in bytes.chunks_mut(8) {
            word.copy_from_slice(&random.next_u64().to_le_bytes()[..word.len()]);
        }
        for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
            scale(block, dtype, std);
        }
        out.write_all(bytes)?;
    }
    Ok(())
}

/// Makes a block of random bits one of numbers with this standard deviation, by its scales. That of the numbers of uniform bits,
/// in units of the scale:
/// - `Q8_0`: 73.9, that of a signed byte;
/// - `Q6_K`: 1366, that of a signed byte times a number of 6 bits less 32;
/// - `Q4_K`: 258, that of `s q - 7.5 m` with `s` and `m` of 6 bits and `q` of 4, whose mean is 0.
fn scale(block: &mut [u8], dtype: TensorDtype, std: f32) {
    let mut put = |at: usize, value: f32| {
        block[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
    };
    match dtype {
        TensorDtype::Q8_0 => put(0, std / 73.9),
        TensorDtype::Q6_K => put(208, std / 1366.0),
        TensorDtype::Q4_K => {
            put(0, std / 258.0);
            put(2, 7.5 * std / 258.0);
        }
        TensorDtype::Bf16 => {
            // Uniform in -1..1 times the square root of 3, whose standard deviation is 1.
            let unit = f32::from(i16::from_le_bytes([block[0], block[1]])) / 32768.0;
            let value = bf16::from_f32(unit * 3.0_f32.sqrt() * std);
            block.copy_from_slice(&value.to_le_bytes());
        }
        other => unreachable!("no random weights are {}", other.name()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use formats::gguf::GgufFile;
    use formats::model_dir::ModelDir;
    use kernels::blocks::{BlockKind, BlockMatrix};
    use kernels::{Compute, Family};
    use model::{Decoder, ModelConfig, Workspace, compute_dtype};
    use tensor::Device;
    use testkit::test_dir::TestDir;

    use super::*;

    fn small() -> DecoderConfig {
        DecoderConfig {
            vocab_size: 320,
            hidden_dim: 256,
            n_layers: 8,
            n_heads: 4,
            n_kv_heads: 2,
            head_dim: 64,
            ffn_dim: 512,
            tied_embeddings: false,
            ..ModelConfig::example()
        }
    }

    #[test]
    fn random_models_of_every_kind_open_and_have_finite_logits_of_a_fresh_model() {
        let scratch = TestDir::new("random-model");
        let device = Device::Cpu(Compute::forced(Family::Reference, 1).unwrap());
        for weights in RandomWeights::ALL {
            let path = scratch.path().join(format!("{}.gguf", weights.name()));
            write_random_model(&path, &small(), weights).unwrap();
            let dir = ModelDir::open(&path).unwrap();
            assert!(dir.unused_tensors().is_empty(), "{weights:?}");
            assert_eq!(dir.weights().n_bytes(), weights.n_bytes(&small()), "{weights:?}");
            let config = ModelConfig::new(dir.config().clone()).unwrap();
            let dtype = compute_dtype(config.dtype);
            let decoder = Decoder::load(&device, &config, dtype, dir.weights(), None).unwrap();
            assert_eq!(decoder.has_packed_blocks(), weights != RandomWeights::Bf16);
            let mut workspace = Workspace::for_decoder(&decoder, 3);
            let logits = decoder.logits(&device, &[1, 5, 9], &[0, 3], &mut workspace);
            let square = logits.iter().map(|x| x * x).sum::<f32>() / logits.len() as f32;
            // A normed row times a head of 0.02.
            let expected = 0.02 * 16.0;
            assert!((square.sqrt() / expected - 1.0).abs() < 0.15, "{weights:?}: {square}");
        }
    }

    #[test]
    fn numbers_have_the_standard_deviation_of_a_fresh_model() {
        let scratch = TestDir::new("random-numbers");
        let compute = Compute::forced(Family::Reference, 1).unwrap();
        let kinds = [BlockKind::Q4_K, BlockKind::Q6_K, BlockKind::Q8_0, BlockKind::Bf16];
        let mut seen = BTreeSet::new();
        for weights in RandomWeights::ALL {
            let path = scratch.path().join(format!("{}.gguf", weights.name()));
            write_random_model(&path, &small(), weights).unwrap();
            let file = GgufFile::open(&path).unwrap();
            for (name, expected) in [
                ("token_embd.weight", 0.02),
                ("output.weight", 0.02),
                ("blk.3.ffn_up.weight", 1.0 / 16.0),
                ("blk.3.ffn_down.weight", 1.0 / 512.0_f32.sqrt() / 4.0),
            ] {
                let tensor = &file.tensors()[name];
                let is_of =
                    |kind: &&BlockKind| format!("{kind:?}") == format!("{:?}", tensor.dtype);
                let kind = *kinds.iter().find(is_of).unwrap();
                seen.insert(tensor.dtype.name());
                let [n, k] = tensor.shape[..] else { panic!("{name} is a matrix") };
                let matrix = BlockMatrix::new(kind, file.bytes(tensor), [n, k]);
                let (mut sum, mut squares, mut row) = (0.0, 0.0, vec![0.0; k]);
                for row_idx in 0..n {
                    matrix.read_row(&compute, row_idx, &mut row);
                    sum += row.iter().sum::<f32>();
                    squares += row.iter().map(|x| x * x).sum::<f32>();
                }
                let (mean, std) = (sum / (n * k) as f32, (squares / (n * k) as f32).sqrt());
                assert!((std / expected - 1.0).abs() < 0.03, "{weights:?} {name}: {std}");
                assert!(mean.abs() < 0.03 * expected, "{weights:?} {name}: {mean}");
            }
        }
        assert_eq!(seen.len(), kinds.len());
    }

    #[test]
    fn the_mix_is_that_of_llama_cpp() {
        let more: Vec<usize> = (0..32).filter(|&layer_idx| has_more_bits(layer_idx, 32)).collect();
        assert_eq!(more, [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]);
        let config = small();
        let of = |name| RandomWeights::Q4km.dtype(name, &config);
        let part = |part| WeightName::Layer { layer_idx: 0, part };
        assert_eq!(of(WeightName::Head), TensorDtype::Q6_K);
        assert_eq!(of(WeightName::Embedding), TensorDtype::Q4_K);
        assert_eq!(of(part(LayerPart::Value)), TensorDtype::Q6_K);
        assert_eq!(of(part(LayerPart::Key)), TensorDtype::Q4_K);
        assert_eq!(of(part(LayerPart::FfnNorm)), TensorDtype::F32);
        let narrow = DecoderConfig { hidden_dim: 384, ..config };
        assert_eq!(RandomWeights::Q4km.broken_rows(&narrow), Some((384, 256)));
        assert_eq!(RandomWeights::Q8.broken_rows(&narrow), None);
    }
}
