//! Quantising at load and into files, and packing.

use std::sync::Arc;

use formats::convert::write_quantised;
use formats::model_dir::ModelDirWriter;
use formats::{FormatError, TensorData, TensorDtype, TensorSource, WeightDtype};
use testkit::test_dir::TestDir;

use super::*;
use crate::{FileQuantiser, PackedBytes, PackedPlan, Quantisation};

/// A directory with random weights whose rows are whole blocks of 256.
fn wide_model(scratch: &TestDir, change: impl Fn(&mut [f32])) -> ModelDir {
    let config = config(|config| {
        config.vocab_size = 48;
        config.hidden_dim = 256;
        config.ffn_dim = 512;
        config.head_dim = 64;
        config.tied_embeddings = false;
        config.dtype = WeightDtype::Bf16;
    });
    let mut rng = Rng::new(5);
    let tensors: Vec<(WeightName, Vec<f32>)> = WeightName::all(&config)
        .into_iter()
        .map(|name| {
            let shape = name.shape(&config);
            let n = shape.iter().product();
            let (mean, deviation) = if shape.len() == 1 { (1.0, 0.1) } else { (0.0, 0.06) };
            (name, (0..n).map(|_| mean + deviation * rng.normal() as f32).collect())
        })
        .map(|(name, mut numbers): (_, Vec<f32>)| {
            change(&mut numbers);
            (name, numbers)
        })
        .collect();
    let sources = tensors.iter().map(|(name, numbers)| TensorSource {
        name: name.name(formats::Layout::HuggingFace),
        dtype: TensorDtype::Bf16,
        shape: name.shape(&config),
        data: TensorData::F32(numbers),
    });
    let writer = ModelDirWriter::begin(&scratch.path().join("wide")).unwrap();
    writer.config(&config).unwrap();
    writer.weights(sources).unwrap();
    writer.commit().unwrap()
}

fn logits(device: &Device, decoder: &Decoder) -> Vec<f32> {
    let ids = random_ids(9, 24, decoder.config().vocab_size);
    let mut workspace = Workspace::for_decoder(decoder, ids.len());
    decoder.logits(device, &ids, &[0, ids.len() as u32], &mut workspace)
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|logit| logit.to_bits()).collect()
}

/// Root of the mean squared difference over that of the logits.
fn distance(one: &[f32], other: &[f32]) -> f64 {
    let sum = |terms: &mut dyn Iterator<Item = f32>| terms.map(|x| f64::from(x * x)).sum::<f64>();
    let differences = sum(&mut one.iter().zip(other).map(|(x, y)| x - y));
    (differences / sum(&mut one.iter().copied())).sqrt()
}

#[test]
fn a_quantised_file_computes_as_the_original_quantised_at_load_and_near_to_it() {
    let scratch = TestDir::new("quantise");
    let original = wide_model(&scratch, |_| {});
    let config = ModelConfig::new(original.config().clone()).unwrap();
    for device in devices(2) {
        let exact = logits(&device, &load(&device, &original, DType::F32));
        let mut distances = Vec::new();
        for quantisation in Quantisation::ALL {
            let out = scratch.path().join(format!("{quantisation}-{}", device.compute().family()));
            let quantiser = FileQuantiser { quantisation, device: &device };
            let written = write_quantised(&original, &out, &quantiser, None).unwrap();
            let from_file = load(&device, &written, DType::F32);
            let (weights, kind) = (original.weights(), Some(quantisation));
            let at_load = Decoder::load(&device, &config, DType::F32, weights, kind).unwrap();
            let expected = logits(&device, &at_load);
            assert_eq!(bits(&logits(&device, &from_file)), bits(&expected), "{quantisation}");
            let n_bytes =
                Decoder::loaded_bytes(&device, &config, DType::F32, weights, kind).unwrap();
            assert_eq!(at_load.n_bytes(), n_bytes, "{quantisation}");
            distances.push(distance(&exact, &expected));
        }
        // About a root of 14, the number of matrices on the way, times the error of each: 0.5 % and 7 %.
        assert!(distances[0] > 0.004 && distances[0] < 0.04, "{distances:?}");
        assert!(distances[1] > 0.05 && distances[1] < 0.4, "{distances:?}");
    }
}

/// The same bits from packed blocks in memory and kept ones, in one pass and token by token; near to the bf16 product with
/// the numbers of the blocks.
#[test]
fn packed_blocks_compute_near_to_their_numbers_however_rows_are_cut() {
    let scratch = TestDir::new("packed");
    let original = wide_model(&scratch, |_| {});
    let config = ModelConfig::new(original.config().clone()).unwrap();
    let ids = random_ids(9, 24, config.vocab_size);
    for device in devices(2) {
        for quantisation in Quantisation::ALL {
            let (weights, kind) = (original.weights(), Some(quantisation));
            let load = |dtype| Decoder::load(&device, &config, dtype, weights, kind).unwrap();
            let (exact, packed) = (load(DType::F32), load(DType::Bf16));
            let n_bytes =
                Decoder::loaded_bytes(&device, &config, DType::Bf16, weights, kind).unwrap();
            assert_eq!(packed.n_bytes(), n_bytes, "{quantisation}");
            let expected = logits(&device, &packed);
            // A step of 8 bits is 1/127 of the largest of 32 numbers, 2.1 deviations: an error of 0.5 % in each of 14 products,
            // and bf16 beside it.
            let apart = distance(&logits(&device, &exact), &expected);
            assert!(apart > 0.002 && apart < 0.03, "{quantisation}: {apart}");
            for chunk_len in [1, 5, 24] {
                let cached = cached_logits(&packed, &device, &ids, chunk_len);
                let last = cached.len() - config.vocab_size;
                let last_expected = expected.len() - config.vocab_size;
                assert_eq!(bits(&cached[last..]), bits(&expected[last_expected..]));
            }
            let plan = PackedPlan::new(&config, DType::Bf16, weights, kind).unwrap();
            let mut kept = Vec::new();
            plan.write::<FormatError>(&device, &config, weights, |bytes| {
                kept.extend_from_slice(bytes);
                Ok(())
            })
            .unwrap();
            let kept: PackedBytes = Arc::new(kept);
            let mapped = Decoder::load_packed(&device, &config, weights, &plan, &kept).unwrap();
            assert_eq!(bits(&logits(&device, &mapped)), bits(&expected), "{quantisation}");
        }
    }
}

#[test]
fn a_plan_of_packed_blocks_is_described_by_all_that_its_bytes_depend_on() {
    let scratch = TestDir::new("packed-plan");
    let original = wide_model(&scratch, |_| {});
    let config = ModelConfig::new(original.config().clone()).unwrap();
    let plan = |dtype, quantisation| {
        PackedPlan::new(&config, dtype, original.weights(), quantisation).unwrap()
    };
    let q8 = plan(DType::Bf16, Some(Quantisation::Q8_0));
    let q4 = plan(DType::Bf16, Some(Quantisation::Q4_K));
    assert_ne!(q8.description(&config), q4.description(&config));
    let expected = "heads of 64\n0 Embedding Q8_0 [48, 256]\n";
    assert!(q8.description(&config).starts_with(expected), "{}", q8.description(&config));
    let program = env!("CARGO_PKG_VERSION");
    assert_eq!(PackedPlan::version(), format!("program {program}, blocks 1, order 1"));
    // Products in f32 are with the numbers of the blocks; plain numbers lie in panels.
    assert_eq!(plan(DType::F32, Some(Quantisation::Q8_0)).n_bytes(), 0);
    assert_eq!(plan(DType::Bf16, None).n_bytes(), 0);
}

#[test]
fn kinds_are_chosen_by_weight_and_by_width() {
    let scratch = TestDir::new("quantise-kinds");
    let original = wide_model(&scratch, |_| {});
    let device = fastest(1);
    let quantiser = FileQuantiser { quantisation: Quantisation::Q4_K, device: &device };
    let written =
        write_quantised(&original, &scratch.path().join("q4_k"), &quantiser, None).unwrap();
    let dtype = |model: &ModelDir, name: &str| model.weights().tensor(name).unwrap().dtype;
    for (name, expected) in [
        ("token_embd.weight", TensorDtype::Q6_K),
        ("output.weight", TensorDtype::Q6_K),
        ("output_norm.weight", TensorDtype::F32),
        ("blk.0.attn_norm.weight", TensorDtype::F32),
        ("blk.1.attn_q.weight", TensorDtype::Q4_K),
        ("blk.1.ffn_down.weight", TensorDtype::Q4_K),
    ] {
        assert_eq!(dtype(&written, name), expected, "{name}");
    }
    // Rows of 48 numbers keep them, rows of 64 are whole blocks of 32.
    let mixtral = golden::workspace_root().join("golden/architectures/mixtral/hf");
    let mixtral = ModelDir::open(&mixtral).unwrap();
    let narrow =
        write_quantised(&mixtral, &scratch.path().join("narrow"), &quantiser, None).unwrap();
    for (name, expected) in [
        ("token_embd.weight", TensorDtype::Bf16),
        ("blk.0.ffn_gate_inp.weight", TensorDtype::F32),
        ("blk.0.ffn_down_exps.weight", TensorDtype::Q8_0),
        ("blk.0.ffn_up_exps.weight", TensorDtype::Bf16),
    ] {
        assert_eq!(dtype(&narrow, name), expected, "{name}");
    }
    let (before, after) =
        [&mixtral, &narrow].map(|model| logits(&device, &load(&device, model, DType::F32))).into();
    let apart = distance(&before, &after);
    assert!(apart > 0.0 && apart < 0.05, "{apart}");
}

#[test]
fn what_cannot_be_quantised_is_refused_and_leaves_nothing() {
    let device = fastest(1);
    let quantiser = FileQuantiser { quantisation: Quantisation::Q8_0, device: &device };
    let scratch = TestDir::new("quantise-refused");
    let broken = wide_model(&scratch, |numbers| numbers[70] = f32::INFINITY);
    let out = scratch.path().join("out");
    let error = write_quantised(&broken, &out, &quantiser, None).unwrap_err();
    let FormatError::NotFinite { path, tensor } = &error else { panic!("{error}") };
    assert!(path.ends_with("wide/model.safetensors"), "{error}");
    assert_eq!(tensor, "model.embed_tokens.weight");
    let config = ModelConfig::new(broken.config().clone()).unwrap();
    let kind = Some(Quantisation::Q8_0);
    let error = Decoder::load(&device, &config, DType::F32, broken.weights(), kind).unwrap_err();
    assert!(error.to_string().contains("not finite"), "{error}");
    assert_eq!(scratch.names(), ["wide"]);

    let quantised = golden::workspace_root().join("golden/architectures/quantised_a/gguf");
    let quantised = ModelDir::open(&quantised).unwrap();
    let error = write_quantised(&quantised, &out, &quantiser, None).unwrap_err().to_string();
    assert!(error.contains("already") && error.contains("token_embd"), "{error}");
    assert_eq!(scratch.names(), ["wide"]);
}

#[test]
fn a_norm_in_blocks_is_refused_as_one() {
    let scratch = TestDir::new("norm-in-blocks");
    let device = fastest(1);
    let quantiser = FileQuantiser { quantisation: Quantisation::Q8_0, device: &device };
    let original = wide_model(&scratch, |_| {});
    let model = write_quantised(&original, &scratch.path().join("q8_0"), &quantiser, None).unwrap();
    let mut bytes = std::fs::read(model.dir().join("model.gguf")).unwrap();
    let name = b"blk.0.attn_norm.weight";
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap() + name.len();
    // One axis, its length, then the type: f32, which is 0, becomes Q8_0, which takes fewer bytes.
    assert_eq!(bytes[at..at + 4], [1, 0, 0, 0]);
    assert_eq!(bytes[at + 12..at + 16], [0, 0, 0, 0]);
    bytes[at + 12] = 8;
    let path = scratch.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    let model = ModelDir::open(&path).unwrap();
    let config = ModelConfig::new(model.config().clone()).unwrap();
    let error = Decoder::load(&device, &config, DType::Bf16, model.weights(), None);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("`blk.0.attn_norm.weight` in"), "{error}");
    assert!(error.contains("has type Q8_0, expected plain numbers: it is a norm"), "{error}");
}

/// Packed blocks have kernels of their own for few rows and for many, and nothing else is multiplied.
#[test]
fn each_number_type_takes_its_own_kernels() {
    use kernels::KernelPath::{
        self, Attention, AttentionInt8, PackedFewRows, PackedManyRows, ProductBf16, ProductF32,
    };
    let scratch = TestDir::new("paths");
    let original = wide_model(&scratch, |_| {});
    let config = ModelConfig::new(original.config().clone()).unwrap();
    // Queries, keys and values; what attention gives; gate and up; down. And the head.
    let n_products = 4 * config.n_layers as u64 + 1;
    let all = [ProductF32, ProductBf16, PackedFewRows, PackedManyRows, Attention, AttentionInt8];
    for device in devices(2) {
        let family = device.compute().family();
        let calls = || all.map(|path: KernelPath| device.compute().n_calls(path));
        use CacheKind::{Int8, Operands};
        for (dtype, quantisation, kind, n_rows, expected) in [
            (DType::F32, None, Operands, 1, ProductF32),
            (DType::Bf16, None, Operands, 1, ProductBf16),
            (DType::Bf16, None, Int8, 40, ProductBf16),
            (DType::Bf16, Some(Quantisation::Q4_K), Int8, 1, PackedFewRows),
            (DType::Bf16, Some(Quantisation::Q4_K), Operands, 8, PackedFewRows),
            (DType::Bf16, Some(Quantisation::Q8_0), Operands, 80, PackedManyRows),
        ] {
            let weights = original.weights();
            let decoder = Decoder::load(&device, &config, dtype, weights, quantisation).unwrap();
            let ids = random_ids(3, n_rows, config.vocab_size);
            let before = calls();
            let sequences: Vec<(usize, &[u32])> = ids.chunks(40).enumerate().collect();
            let mut cache = KvCache::new(&decoder, kind, sequences.len(), 40, n_rows);
            let mut workspace = Workspace::for_decoder(&decoder, n_rows);
            let mut logits = Vec::new();
            cache.append(&decoder, &device, &sequences, &mut workspace, &mut logits);
            let after = calls();
            for (i, path) in all.into_iter().enumerate() {
                let n_expected = match path {
                    Attention if kind == Operands => config.n_layers as u64,
                    AttentionInt8 if kind == Int8 => config.n_layers as u64,
                    // The head multiplies the last rows of both sequences alone.
                    PackedFewRows if expected == PackedManyRows => 1,
                    PackedManyRows if expected == PackedManyRows => n_products - 1,
                    _ if path == expected => n_products,
                    _ => 0,
                };
                assert_eq!(
                    after[i] - before[i],
                    n_expected,
                    "{path:?} of {n_rows} rows, {quantisation:?} {dtype:?} {family}"
                );
            }
        }
    }
}
