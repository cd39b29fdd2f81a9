//! The decoder on a GPU, emulated where there is none, against independent implementations and against the processors.

use cuda::{Gpu, LibraryPath};
use formats::model_dir::ModelDirWriter;
use formats::{Layout, TensorData, TensorDtype, TensorSource, WeightDtype};
use testkit::test_dir::TestDir;

use super::*;
use crate::LoadedAdapter;

/// `None` where there is no C++ compiler for the emulator.
pub(super) fn gpu() -> Option<Device> {
    let libraries = LibraryPath::new(Some(testkit::cuda_emulator::directory()?));
    Some(Device::Cuda {
        gpu: Gpu::open(&libraries).unwrap(),
        host: Compute::forced(Family::Reference, 1).unwrap(),
    })
}

pub(super) fn relative_difference(got: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let square = |x: f32| f64::from(x).powi(2);
    let difference: f64 = got.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
    (difference / expected.iter().map(|&x| square(x)).sum::<f64>()).sqrt()
}

#[test]
fn logits_on_a_gpu_equal_those_of_transformers() {
    let Some(device) = gpu() else { return };
    // In bf16 the outputs of products are rounded too.
    check_logits(&device, 1e-4, 0.15);
}

/// A shape for which the kernels with tensor cores are used, with a window, and one for which they are not.
fn configs() -> [ModelConfig; 2] {
    let wide = |c: &mut DecoderConfig| {
        (c.head_dim, c.context_len) = (64, 256);
        c.sliding_windows = vec![Some(40), None];
    };
    [config(wide), config(|c| c.context_len = 256)]
}

#[test]
fn gradients_on_a_gpu_are_those_of_the_processors() {
    let Some(device) = gpu() else { return };
    let cpu = Device::Cpu(Compute::forced(Family::Reference, 1).unwrap());
    for config in configs() {
        let parameters = Parameters::random(&config, 15);
        let (token_ids, targets) = (random_ids(16, 150, 32), random_ids(17, 150, 32));
        let rows = TrainingRows {
            token_ids: &token_ids,
            targets: &targets,
            target_weights: &[0.01; 150],
            segment_starts: &[0, 40, 41, 150],
        };
        let exact = gradients(&decoder(&cpu, &parameters, DType::F32), &cpu, rows);
        // In f32 the order of sums differs; in bf16 operands have 8 bits, several products deep.
        for (dtype, limit) in [(DType::F32, 1e-5), (DType::Bf16, 0.05)] {
            let decoder = decoder(&device, &parameters.clone().on(&device), dtype);
            let there = gradients(&decoder, &device, rows);
            for ((kind, got), (_, expected)) in there.in_memory().iter().zip(exact.iter()) {
                let difference = relative_difference(got.f32(), expected.f32());
                assert!(difference < limit, "{kind:?} {dtype:?}: {difference}");
            }
        }
    }
}

#[test]
fn writing_on_a_gpu_gives_the_logits_of_reading() {
    let Some(device) = gpu() else { return };
    // The last is one whose products of one row are links of a chain.
    let chained = config(|c| {
        (c.hidden_dim, c.ffn_dim, c.head_dim, c.n_heads, c.n_kv_heads) = (256, 512, 64, 4, 2);
        c.context_len = 128;
    });
    for config in configs().into_iter().chain([chained]) {
        let parameters = parameters(&config, 3).on(&device);
        let token_ids = random_ids(1, 90, config.vocab_size);
        // In bf16 a number between two others falls to either side with another order of a sum: mostly 0.002, seldom up to 0.036 was seen.
        for (dtype, limit) in [(DType::F32, 1e-5), (DType::Bf16, 0.05)] {
            let decoder = decoder(&device, &parameters, dtype);
            let mut workspace = Workspace::new(&device, &config, dtype, 90, Passes::Forward);
            let expected = decoder.logits(&device, &token_ids, &[0, 90], &mut workspace);
            for chunk_len in [1, 7, 90] {
                let logits = cached_logits(&decoder, &device, &token_ids, chunk_len);
                for (i, chunk) in logits.chunks(config.vocab_size).enumerate() {
                    let last = token_ids.len().min((i + 1) * chunk_len) - 1;
                    let row = &expected[last * config.vocab_size..][..config.vocab_size];
                    let difference = relative_difference(chunk, row);
                    assert!(difference < limit, "token {last}, {chunk_len}: {difference}");
                }
            }
        }
    }
}

#[test]
fn rows_beside_one_another_give_their_own_logits_on_a_gpu() {
    let Some(device) = gpu() else { return };
    let config = config(|c| c.head_dim = 64);
    let decoder = decoder(&device, &parameters(&config, 4).on(&device), DType::F32);
    let prompts = [random_ids(5, 9, 32), random_ids(6, 33, 32), random_ids(7, 1, 32)];
    let mut workspace = Workspace::new(&device, &config, DType::F32, 43, Passes::Forward);
    let mut cache = KvCache::new(&decoder, CacheKind::Operands, prompts.len(), 40, 40);
    let rows: Vec<(usize, &[u32])> = prompts.iter().map(Vec::as_slice).enumerate().collect();
    let mut together = Vec::new();
    cache.append(&decoder, &device, &rows, &mut workspace, &mut together);
    for (prompt, logits) in prompts.iter().zip(together.chunks(32)) {
        let alone = cached_logits(&decoder, &device, prompt, prompt.len());
        assert!(relative_difference(logits, &alone) < 1e-5);
    }
}

#[test]
fn a_gpu_gives_the_likeliest_tokens_beside_the_logits_of_others() {
    use Wanted::{Likeliest, Logits};
    let Some(device) = gpu() else { return };
    let decoder = decoder(&device, &parameters(&config(|_| {}), 4).on(&device), DType::F32);
    let (whole, _) = found_in_three(&device, &decoder, [Logits; 3]);
    for wanted in [[Logits, Logits, Likeliest], [Likeliest, Logits, Logits], [Likeliest; 3]] {
        let (found, _) = found_in_three(&device, &decoder, wanted);
        for ((of, found), (other, whole)) in found.into_iter().zip(&whole) {
            assert_eq!(of, *other);
            match found {
                Ok(_) => assert_eq!(found, *whole, "{of:?}"),
                Err(found) => {
                    assert_eq!(wanted[of.sequence_idx], Likeliest);
                    let expected = likeliest_of(whole.as_ref().unwrap()).unwrap();
                    let found = found.unwrap();
                    assert_eq!(found.token_id, expected.token_id, "{of:?}");
                    assert!((found.logprob - expected.logprob).abs() < 1e-6, "{of:?}");
                }
            }
        }
    }
}

#[test]
fn adapters_on_a_gpu_are_those_of_the_processors() {
    let Some(device) = gpu() else { return };
    let cpu = Device::Cpu(Compute::forced(Family::Reference, 1).unwrap());
    let config = config(|_| {});
    let token_ids = random_ids(2, 25, config.vocab_size);
    let parameters = parameters(&config, 7);
    let adapted = |device: &Device| {
        let decoder = decoder(device, &parameters.clone().on(device), DType::F32);
        let adapter = LoadedAdapter::random(device, &config, DType::F32, 3, 9);
        let mut workspace = Workspace::for_decoder(&decoder, 25);
        decoder.adapted_logits(device, &token_ids, &[0, 25], Some(&adapter), &mut workspace)
    };
    assert!(relative_difference(&adapted(&device), &adapted(&cpu)) < 1e-5);
}

/// Logits with keys and values in 8 bits are those of the processors, to the few codes that lie between two; with operands they are not.
#[test]
fn keys_and_values_in_8_bits_on_a_gpu_are_those_of_the_processors() {
    let Some(device) = gpu() else { return };
    let cpu = Device::Cpu(Compute::forced(Family::Reference, 1).unwrap());
    for config in configs() {
        let parameters = parameters(&config, 3);
        let token_ids = random_ids(1, 90, config.vocab_size);
        for (dtype, limit) in [(DType::F32, 1e-3), (DType::Bf16, 0.05)] {
            let here = decoder(&cpu, &parameters, dtype);
            let there = decoder(&device, &parameters.clone().on(&device), dtype);
            for chunk_len in [1, 7, 90] {
                let logits = |decoder, device, kind| {
                    let cache = KvCache::new(decoder, kind, 1, token_ids.len(), chunk_len);
                    cached_logits_in(cache, decoder, device, &token_ids, chunk_len)
                };
                let expected = logits(&here, &cpu, CacheKind::Int8);
                let got = logits(&there, &device, CacheKind::Int8);
                let difference = relative_difference(&got, &expected);
                assert!(difference < limit, "{dtype:?}, {chunk_len}: {difference}");
                let operands = logits(&here, &cpu, CacheKind::Operands);
                let of_kind = relative_difference(&expected, &operands);
                assert!(of_kind > 2e-3, "8 bits change nothing: {of_kind}");
            }
        }
    }
}

#[test]
fn blocks_on_a_gpu_take_the_planned_bytes() {
    let Some(device) = gpu() else { return };
    let [config, _] = configs();
    for dtype in [DType::F32, DType::Bf16] {
        for kind in [CacheKind::Operands, CacheKind::Int8] {
            let blocks = KvBlocks::new(&device, &config, dtype, kind, 5);
            let planned = 5 * KvBlocks::block_bytes(&config, dtype, kind);
            assert_eq!(blocks.n_bytes(), planned, "{dtype:?} {kind:?}");
        }
    }
}

/// What a weight is multiplied by.
const F8_SCALE: [f32; 1] = [0.11];

/// Two directories with one model, the matrices of whose layers are 8-bit floats with a scale, and these numbers in bf16.
fn models_of_f8(scratch: &TestDir) -> [ModelDir; 2] {
    let config = config(|config| {
        (config.vocab_size, config.hidden_dim, config.ffn_dim) = (48, 64, 96);
        (config.head_dim, config.tied_embeddings) = (64, false);
        config.dtype = WeightDtype::Bf16;
    });
    let mut rng = Rng::new(21);
    let mut weights: Vec<(WeightName, Vec<u8>, Vec<f32>)> = Vec::new();
    for name in WeightName::all(&config) {
        let shape = name.shape(&config);
        let n: usize = shape.iter().product();
        let (mut bytes, mut numbers) = (Vec::new(), vec![1.0; n]);
        if matches!(name, WeightName::Layer { .. }) && shape.len() == 2 {
            // Up to 2^1: magnitudes 0 to 0x40, subnormal ones among them.
            bytes.extend((0..n).map(|_| (rng.below(0x41) + 0x80 * rng.below(2)) as u8));
            TensorDtype::F8E4M3.read_f32(&bytes, &mut numbers);
            numbers.iter_mut().for_each(|number| *number *= F8_SCALE[0]);
        } else if shape.len() == 2 {
            numbers = (0..n).map(|_| 0.2 * rng.normal() as f32).collect();
        }
        weights.push((name, bytes, numbers));
    }
    [true, false].map(|in_8_bits| {
        let mut sources = Vec::new();
        for (name, bytes, numbers) in &weights {
            let (shape, name) = (name.shape(&config), name.name(Layout::HuggingFace));
            let (dtype, data) = match in_8_bits && !bytes.is_empty() {
                true => (TensorDtype::F8E4M3, TensorData::Bytes(bytes)),
                false => (TensorDtype::Bf16, TensorData::F32(numbers)),
            };
            if dtype == TensorDtype::F8E4M3 {
                let (name, data) = (format!("{name}_scale_inv"), TensorData::F32(&F8_SCALE));
                sources.push(TensorSource { name, dtype: TensorDtype::F32, shape: vec![], data });
            }
            sources.push(TensorSource { name, dtype, shape, data });
        }
        let dir = scratch.path().join(if in_8_bits { "f8" } else { "bf16" });
        let writer = ModelDirWriter::begin(&dir).unwrap();
        writer.config(&config).unwrap();
        writer.weights(sources).unwrap();
        writer.commit().unwrap()
    })
}

#[test]
fn floats_of_8_bits_stay_so_on_a_gpu_and_give_the_logits_of_their_numbers() {
    let Some(device) = gpu() else { return };
    let scratch = TestDir::new("f8_on_gpu");
    let [in_8_bits, widened] = models_of_f8(&scratch);
    let config = ModelConfig::new(in_8_bits.config().clone()).unwrap();
    let decoders = [&in_8_bits, &widened].map(|model| load(&device, model, DType::Bf16));
    let [there, wide] = &decoders;
    for (decoder, model) in decoders.iter().zip([&in_8_bits, &widened]) {
        let planned =
            Decoder::loaded_bytes(&device, &config, DType::Bf16, model.weights(), None).unwrap();
        assert_eq!(decoder.n_bytes(), planned);
    }
    let n_in_8_bits: usize = WeightName::all(&config)
        .into_iter()
        .filter(|name| matches!(name, WeightName::Layer { .. }))
        .map(|name| name.shape(&config))
        .filter(|shape| shape.len() == 2)
        .map(|shape| shape[0] * shape[1])
        .sum();
    assert_eq!(wide.n_bytes() - there.n_bytes(), n_in_8_bits);

    let token_ids = random_ids(22, 40, config.vocab_size);
    // With many rows the numbers are those that loading would give; with few they are not rounded.
    let logits = |decoder, chunk_len| cached_logits(decoder, &device, &token_ids, chunk_len);
    assert_eq!(logits(there, 40), logits(wide, 40));
    for chunk_len in [1, 7] {
        let (got, expected) = (logits(there, chunk_len), logits(wide, chunk_len));
        let difference = relative_difference(&got, &expected);
        assert!(difference > 0.0 && difference < 0.03, "{chunk_len}: {difference}");
    }
    // On the processors, and in f32 on a GPU, they are widened.
    let exact = load(&device, &in_8_bits, DType::F32);
    let cpu = Device::Cpu(Compute::forced(Family::Reference, 1).unwrap());
    let here = cached_logits(&load(&cpu, &in_8_bits, DType::F32), &cpu, &token_ids, 7);
    let difference = relative_difference(&logits(&exact, 7), &here);
    assert!(difference < 1e-5, "{difference}");
}
