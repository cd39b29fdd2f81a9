//! The decoder against independent implementations and against itself.

use formats::model_dir::ModelDir;
use formats::{DecoderConfig, Experts, LayerPart, QueryScaling, WeightName};
use kernels::likeliest::likeliest_of;
use kernels::{Compute, Family, detect_features};
use proptest::prelude::*;
use tensor::{DType, Device, Passes};
use testkit::close::{Tolerance, assert_close};
use testkit::golden;
use testkit::random::Rng;

use crate::{
    CacheKind, CachedRows, Decoder, GradientWorkspace, KvBlocks, KvCache, Learnt, Likeliest,
    LogitsRow, ModelConfig, ModelError, Parameters, RowLogits, TrainingRows, Wanted, Workspace,
};

mod adapter_training;
mod adapters;
mod architectures;
mod f64_decoder;
mod gpu;
mod memory;
mod quantise;

/// Every family that this machine runs, AMX among them: emulated where it is missing.
#[expect(unsafe_code, reason = "forces the AMX family where it is emulated")]
fn devices(n_threads: usize) -> Vec<Device> {
    let mut computes = vec![Compute::forced(Family::Reference, n_threads).unwrap()];
    for family in [Family::Avx2, Family::Avx512] {
        computes.extend(Compute::forced(family, n_threads).ok());
    }
    if Family::Avx512.runs_on(detect_features()) {
        testkit::amx_emulator::install().unwrap();
        // SAFETY: the emulator was installed, or the hardware has AMX.
        computes.push(unsafe { Compute::with_emulated_amx(n_threads) }.unwrap());
    }
    computes.into_iter().map(Device::Cpu).collect()
}

fn fastest(n_threads: usize) -> Device {
    let families = Family::ALL.into_iter().rev();
    let family = families.into_iter().find(|family| family.runs_on(detect_features())).unwrap();
    Device::Cpu(Compute::forced(family, n_threads).unwrap())
}

fn config(change: impl FnOnce(&mut DecoderConfig)) -> ModelConfig {
    let mut config = ModelConfig::example();
    change(&mut config);
    ModelConfig::new(config).unwrap()
}

/// Parameters as of a trained model: norms away from 1, embeddings large enough to matter.
fn parameters(config: &ModelConfig, seed: u64) -> Parameters {
    let mut parameters = Parameters::random(config, seed);
    let mut rng = Rng::new(seed + 100);
    for tensor in parameters.iter_mut() {
        for value in tensor.f32_mut() {
            *value = *value * 1.5 + 0.05 * rng.normal() as f32;
        }
    }
    parameters
}

fn decoder(device: &Device, parameters: &Parameters, dtype: DType) -> Decoder {
    let mut decoder =
        Decoder::zeroed(device, parameters.config(), dtype, Passes::ForwardAndBackward);
    decoder.pack(device, parameters);
    decoder
}

fn random_ids(seed: u64, n: usize, vocab_size: usize) -> Vec<u32> {
    let mut rng = Rng::new(seed);
    (0..n).map(|_| rng.below(vocab_size) as u32).collect()
}

fn load(device: &Device, dir: &ModelDir, dtype: DType) -> Decoder {
    let config = ModelConfig::new(dir.config().clone()).unwrap();
    Decoder::load(device, &config, dtype, dir.weights(), None).unwrap()
}

#[test]
fn logits_equal_those_of_transformers() {
    for device in devices(2) {
        let is_reference = device.compute().family() == Family::Reference;
        check_logits(&device, if is_reference { 1e-4 } else { 1e-3 }, 0.1);
    }
}

/// The golden logits of transformers, within a distance in f32 and one in bf16.
fn check_logits(device: &Device, in_f32: f64, in_bf16: f64) {
    for name in ["tied", "untied", "wide_heads"] {
        let dir = golden::workspace_root().join("golden/logits").join(name);
        let model = ModelDir::open(&dir).unwrap();
        let config = ModelConfig::new(model.config().clone()).unwrap();
        let expected = golden::load(format!("golden/logits/{name}/expected.safetensors"));
        let shape = expected.shape("token_ids").to_vec();
        let token_ids: Vec<u32> = expected.i64("token_ids").iter().map(|&id| id as u32).collect();
        let starts: Vec<u32> = (0..=shape[0]).map(|i| (i * shape[1]) as u32).collect();
        for (dtype, golden, absolute) in
            [(DType::F32, "logits", in_f32), (DType::Bf16, "logits_bf16", in_bf16)]
        {
            let decoder = load(device, &model, dtype);
            let n = token_ids.len();
            let mut workspace = Workspace::new(device, &config, dtype, n, Passes::Forward);
            let logits = decoder.logits(device, &token_ids, &starts, &mut workspace);
            assert_close(&logits, expected.f32(golden), Tolerance { absolute, relative: 0.0 });
        }
    }
}

/// Logits after each token, fed in chunks through a cache.
fn cached_logits(
    decoder: &Decoder,
    device: &Device,
    token_ids: &[u32],
    chunk_len: usize,
) -> Vec<f32> {
    let cache = KvCache::new(decoder, CacheKind::Operands, 1, token_ids.len(), chunk_len);
    cached_logits_in(cache, decoder, device, token_ids, chunk_len)
}

fn cached_logits_in(
    mut cache: KvCache,
    decoder: &Decoder,
    device: &Device,
    token_ids: &[u32],
    chunk_len: usize,
) -> Vec<f32> {
    let mut workspace = Workspace::for_decoder(decoder, chunk_len);
    let (mut all, mut logits) = (Vec::new(), Vec::new());
    for chunk in token_ids.chunks(chunk_len) {
        cache.append(decoder, device, &[(0, chunk)], &mut workspace, &mut logits);
        all.extend_from_slice(&logits);
    }
    all
}

#[test]
fn decode_with_cache_equals_decode_without() {
    let config = config(|c| c.head_dim = 16);
    let token_ids = random_ids(1, 60, config.vocab_size);
    for device in devices(2) {
        for dtype in [DType::F32, DType::Bf16] {
            let decoder = decoder(&device, &parameters(&config, 3), dtype);
            let mut workspace = Workspace::new(&device, &config, dtype, 60, Passes::Forward);
            let expected = decoder.logits(&device, &token_ids, &[0, 60], &mut workspace);
            assert_eq!(cached_logits(&decoder, &device, &token_ids, 1), expected);
            let vocab_size = config.vocab_size;
            for chunk_len in [7, 32, 60] {
                let logits = cached_logits(&decoder, &device, &token_ids, chunk_len);
                for (i, chunk) in logits.chunks(vocab_size).enumerate() {
                    let last = token_ids.len().min((i + 1) * chunk_len) - 1;
                    assert_eq!(
                        chunk,
                        &expected[last * vocab_size..][..vocab_size],
                        "chunks of {chunk_len}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_sequence_has_the_same_logits_whatever_stands_beside_it() {
    let config = config(|_| {});
    let device = fastest(2);
    let decoder = decoder(&device, &parameters(&config, 4), DType::Bf16);
    let prompts = [random_ids(5, 9, 32), random_ids(6, 33, 32), random_ids(7, 1, 32)];
    let mut workspace = Workspace::new(&device, &config, DType::Bf16, 43, Passes::Forward);
    let mut cache = KvCache::new(&decoder, CacheKind::Operands, prompts.len(), 40, 40);
    let rows: Vec<(usize, &[u32])> = prompts.iter().map(Vec::as_slice).enumerate().collect();
    let mut together = Vec::new();
    cache.append(&decoder, &device, &rows, &mut workspace, &mut together);
    for (prompt, logits) in prompts.iter().zip(together.chunks(32)) {
        assert_eq!(cached_logits(&decoder, &device, prompt, prompt.len()), logits);
    }
    assert_eq!([0, 1, 2].map(|i| cache.len(i)), [9, 33, 1]);
}

/// All logits, which is what was wanted.
fn logits_in(row: RowLogits<'_>) -> &[f32] {
    match row {
        RowLogits::Logits(logits) => logits,
        RowLogits::Likeliest(found) => panic!("the likeliest alone: {found:?}"),
    }
}

/// Logits of a row, or the likeliest token.
type Found = Result<Vec<f32>, Option<Likeliest>>;

/// What three sequences give of which the last 3, 0 and 4 rows are wanted, and their prompts.
fn found_in_three(
    device: &Device,
    decoder: &Decoder,
    wanted: [Wanted; 3],
) -> (Vec<(LogitsRow, Found)>, [Vec<u32>; 3]) {
    let prompts = [random_ids(5, 9, 32), random_ids(6, 33, 32), random_ids(7, 4, 32)];
    let mut workspace = Workspace::for_decoder(decoder, 46);
    let tables: Vec<Vec<Vec<u32>>> = [vec![0, 1], vec![2, 3, 4, 5], vec![6, 7]]
        .map(|ids| {
            let n = ids.len() / decoder.config().n_layers;
            ids.chunks(n).map(<[u32]>::to_vec).collect()
        })
        .into();
    let n_logits = [3, 0, 4];
    let rows: Vec<CachedRows<'_>> = (0..3)
        .map(|i| CachedRows {
            token_ids: &prompts[i],
            n_logits: n_logits[i],
            wanted: wanted[i],
            adapter: None,
            first_position: 0,
            block_tables: &tables[i],
        })
        .collect();
    let (config, kind) = (decoder.config(), CacheKind::Operands);
    let mut blocks = KvBlocks::new(device, config, decoder.dtype(), kind, 8);
    let mut found = Vec::new();
    let mut on_logits = |of: LogitsRow, row: RowLogits<'_>| {
        let row = match row {
            RowLogits::Logits(logits) => Ok(logits.to_vec()),
            RowLogits::Likeliest(token) => Err(token),
        };
        found.push((of, row));
    };
    decoder.forward_cached(device, &rows, &mut blocks, &mut workspace, &mut on_logits);
    (found, prompts)
}

#[test]
fn each_row_that_is_wanted_gives_its_logits() {
    let device = fastest(2);
    let decoder = decoder(&device, &parameters(&config(|_| {}), 4), DType::Bf16);
    let (found, prompts) = found_in_three(&device, &decoder, [Wanted::Logits; 3]);
    let places = |sequence_idx: usize, rows: std::ops::Range<usize>| {
        rows.map(move |row_idx| LogitsRow { sequence_idx, row_idx })
    };
    let expected: Vec<LogitsRow> = places(0, 6..9).chain(places(2, 0..4)).collect();
    assert_eq!(found.iter().map(|(of, _)| *of).collect::<Vec<_>>(), expected);
    for (of, row) in found {
        let prompt = &prompts[of.sequence_idx][..=of.row_idx];
        assert_eq!(Ok(cached_logits(&decoder, &device, prompt, prompt.len())), row, "{of:?}");
    }
}

#[test]
fn the_likeliest_token_of_a_row_is_that_of_its_logits() {
    use Wanted::{Likeliest, Logits};
    let device = fastest(2);
    let decoder = decoder(&device, &parameters(&config(|_| {}), 4), DType::Bf16);
    let (whole, _) = found_in_three(&device, &decoder, [Logits; 3]);
    for wanted in [[Logits, Logits, Likeliest], [Likeliest, Logits, Logits], [Likeliest; 3]] {
        let (found, _) = found_in_three(&device, &decoder, wanted);
        for ((of, found), (other, whole)) in found.into_iter().zip(&whole) {
            assert_eq!(of, *other);
            let expected = match wanted[of.sequence_idx] {
                Logits => whole.clone(),
                Likeliest => Err(likeliest_of(whole.as_ref().unwrap())),
            };
            assert_eq!(found, expected, "{of:?}");
        }
    }
}

#[test]
fn packed_documents_do_not_see_one_another() {
    let config = config(|_| {});
    let device = fastest(2);
    for dtype in [DType::F32, DType::Bf16] {
        let decoder = decoder(&device, &parameters(&config, 8), dtype);
        let mut workspace = Workspace::new(&device, &config, dtype, 80, Passes::Forward);
        let (first, second) = (random_ids(9, 37, 32), random_ids(10, 43, 32));
        let mut run = |first: &[u32]| {
            let ids: Vec<u32> = first.iter().chain(&second).copied().collect();
            decoder.logits(&device, &ids, &[0, 37, 80], &mut workspace)
        };
        let (before, after) = (run(&first), run(&random_ids(11, 37, 32)));
        assert_eq!(before[37 * 32..], after[37 * 32..], "bits of the second document");
        assert_ne!(before[..37 * 32], after[..37 * 32]);
    }
}

#[test]
fn gradients_equal_finite_differences() {
    let plain = config(|_| {});
    let untied = config(|c| c.tied_embeddings = false);
    let windows = config(|c| {
        c.sliding_windows = vec![Some(3), None];
        c.query_scaling = Some(QueryScaling { beta: 0.5, original_context_len: 4 });
    });
    for config in [plain, untied, windows] {
        let parameters = parameters(&config, 12);
        let token_ids = random_ids(13, 14, 32);
        let targets = random_ids(14, 14, 32);
        let mut weights = [0.1; 14];
        weights[4] = 0.0;
        weights[9] = 0.7;
        let rows = TrainingRows {
            token_ids: &token_ids,
            targets: &targets,
            target_weights: &weights,
            segment_starts: &[0, 5, 14],
        };
        for device in devices(2) {
            let gradients = gradients(&decoder(&device, &parameters, DType::F32), &device, rows);
            for name in WeightName::all(&config) {
                let (values, d) = (parameters.weight(name), gradients.weight(name));
                for i in (0..values.len()).step_by(values.len().div_ceil(5)) {
                    let loss_at = |change: f64| {
                        f64_decoder::loss(&parameters, rows, |weight, at| {
                            if (weight, at) == (name, i) { change } else { 0.0 }
                        })
                    };
                    let slope = (loss_at(1e-5) - loss_at(-1e-5)) / 2e-5;
                    // f32 sums of at most a few hundred terms of order 1.
                    let error = (slope - f64::from(d[i])).abs();
                    assert!(
                        error < 1e-5 + 1e-3 * slope.abs(),
                        "{name:?}[{i}]: {} is not {slope}",
                        d[i]
                    );
                }
            }
        }
    }
}

fn gradients(decoder: &Decoder, device: &Device, rows: TrainingRows<'_>) -> Parameters {
    let (config, dtype, n) = (decoder.config(), decoder.dtype(), rows.token_ids.len());
    let mut gradients = Parameters::zeroed_on(device, config);
    let mut workspace = Workspace::new(device, config, dtype, n, Passes::ForwardAndBackward);
    let mut gradient_workspace = GradientWorkspace::new(device, config, dtype, n);
    decoder.loss_and_gradients(
        device,
        rows,
        &mut workspace,
        &mut gradient_workspace,
        Learnt::Model(&mut gradients),
    );
    let losses = workspace.losses().to_f32();
    assert!(
        losses
            .iter()
            .zip(rows.target_weights)
            .all(|(&loss, &weight)| (loss > 0.0) == (weight > 0.0))
    );
    gradients
}

#[test]
fn gradients_do_not_depend_on_threads_and_nearly_not_on_the_number_type() {
    let config = config(|c| (c.head_dim, c.hidden_dim) = (16, 48));
    // A fresh model: scores of about 1. Large scores enlarge the rounding of queries and keys.
    let parameters = Parameters::random(&config, 15);
    let (token_ids, targets) = (random_ids(16, 100, 32), random_ids(17, 100, 32));
    let rows = TrainingRows {
        token_ids: &token_ids,
        targets: &targets,
        target_weights: &[0.01; 100],
        segment_starts: &[0, 40, 100],
    };
    for (one, three) in devices(1).into_iter().zip(devices(3)) {
        let exact = gradients(&decoder(&one, &parameters, DType::F32), &one, rows);
        let rounded = gradients(&decoder(&one, &parameters, DType::Bf16), &one, rows);
        let threaded = gradients(&decoder(&three, &parameters, DType::Bf16), &three, rows);
        for ((kind, exact), ((_, rounded), (_, threaded))) in
            exact.iter().zip(rounded.iter().zip(threaded.iter()))
        {
            assert_eq!(rounded.f32(), threaded.f32());
            let width = exact.width();
            let norm = |values: &[f32]| values.iter().map(|x| f64::from(x * x)).sum::<f64>().sqrt();
            let difference: Vec<f32> =
                rounded.f32().iter().zip(exact.f32()).map(|(a, b)| a - b).collect();
            // Operands of 8 bits: errors of some parts in a thousand per product, several products deep.
            let error = norm(&difference) / norm(exact.f32());
            assert!(error < 0.05, "the gradient of {kind:?} {width} wide is off by {error}");
        }
    }
}

#[test]
fn one_batch_is_overfitted() {
    let config = config(|_| {});
    let device = fastest(2);
    let mut parameters = Parameters::random(&config, 18);
    let mut decoder = decoder(&device, &parameters, DType::Bf16);
    let mut workspace =
        Workspace::new(&device, &config, DType::Bf16, 40, Passes::ForwardAndBackward);
    let mut gradient_workspace = GradientWorkspace::new(&device, &config, DType::Bf16, 40);
    let (token_ids, targets) = (random_ids(19, 40, 32), random_ids(20, 40, 32));
    let rows = TrainingRows {
        token_ids: &token_ids,
        targets: &targets,
        target_weights: &[1.0 / 40.0; 40],
        segment_starts: &[0, 20, 40],
    };
    let (mut m, mut v) = (Parameters::zeroed(&config), Parameters::zeroed(&config));
    let mut loss = f32::INFINITY;
    for step in 1..=300 {
        let mut gradients = Parameters::zeroed(&config);
        decoder.loss_and_gradients(
            &device,
            rows,
            &mut workspace,
            &mut gradient_workspace,
            Learnt::Model(&mut gradients),
        );
        loss = workspace.losses().f32().iter().sum::<f32>() / 40.0;
        adamw(&device, step, &mut parameters, &gradients, &mut m, &mut v);
        decoder.pack(&device, &parameters);
    }
    assert!(loss < 0.02, "the loss is still {loss}");
}

fn adamw(
    device: &Device,
    step: i32,
    parameters: &mut Parameters,
    gradients: &Parameters,
    m: &mut Parameters,
    v: &mut Parameters,
) {
    let rule = kernels::adamw::AdamW {
        learning_rate: 0.01,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.0,
        grad_scale: 1.0,
        bias_correction1: 1.0 - 0.9_f32.powi(step),
        bias_correction2: 1.0 - 0.95_f32.powi(step),
    };
    for (((parameter, (_, gradient)), m), v) in
        parameters.iter_mut().zip(gradients.iter()).zip(m.iter_mut()).zip(v.iter_mut())
    {
        let (w, m, v) = (parameter.f32_mut(), m.f32_mut(), v.f32_mut());
        kernels::adamw::adamw_step(device.compute(), rule, w, gradient.f32(), m, v);
    }
}

#[test]
fn configurations_that_cannot_be_computed_are_refused_by_field() {
    let refused = |change: fn(&mut DecoderConfig)| {
        let mut config = ModelConfig::example();
        change(&mut config);
        ModelConfig::new(config).unwrap_err()
    };
    assert_eq!(refused(|c| c.n_layers = 0), ModelError::Zero { field: "n_layers" });
    let too_large = ModelError::TooLarge { field: "ffn_dim", got: 1 << 32, limit: 1 << 20 };
    assert_eq!(refused(|c| c.ffn_dim = 1 << 32), too_large);
    assert_eq!(refused(|c| c.n_heads = 3), ModelError::Heads { n_heads: 3, n_kv_heads: 2 });
    assert_eq!(refused(|c| c.ffn_dim = 25), ModelError::Odd { field: "ffn_dim", got: 25 });
    let window = ModelError::EmptyWindow { pattern: vec![None, Some(0)] };
    assert_eq!(refused(|c| c.sliding_windows = vec![None, Some(0)]), window);
    let experts = ModelError::Experts { n_active: 3, n_experts: 2 };
    assert_eq!(refused(|c| c.experts = Some(Experts { n_experts: 2, n_active: 3 })), experts);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn a_document_has_the_same_losses_wherever_it_is_packed(seed in 0_u64..1000, before in 1_usize..50, len in 1_usize..60) {
        let config = config(|_| {});
        for device in devices(2) {
            let decoder = decoder(&device, &parameters(&config, 21), DType::Bf16);
            let mut workspace = Workspace::new(&device, &config, DType::Bf16, 120, Passes::Forward);
            let (ids, targets) = (random_ids(seed, len, 32), random_ids(seed + 1, len, 32));
            let alone = decoder.token_losses(&device, &ids, &targets, &[0, len as u32], &mut workspace);
            let packed = |v: &[u32]| [vec![3; before], v.to_vec()].concat();
            let starts = [0, before as u32, (before + len) as u32];
            let losses =
                decoder.token_losses(&device, &packed(&ids), &packed(&targets), &starts, &mut workspace);
            prop_assert_eq!(&losses[before..], &alone[..]);
        }
    }
}
