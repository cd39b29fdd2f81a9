//! Adapters that are trained beside a model that stays as it is.

use std::cell::RefCell;

use formats::adapter::LowRankPair;
use formats::{FfnMatrix, LayerPart};

use super::gpu::{gpu, relative_difference};
use super::*;
use crate::{AdapterParameters, AdapterSettings, Learnt, LoadedAdapter};

/// Factors as of a trained adapter: b is not zero.
fn factors(config: &ModelConfig, settings: &AdapterSettings, seed: u64) -> AdapterParameters {
    let mut parameters = AdapterParameters::random(config, settings, seed);
    let mut rng = Rng::new(seed + 200);
    let names: Vec<WeightName> = parameters.names().collect();
    for name in names {
        let mut pair = parameters.pair(name);
        pair.b.iter_mut().for_each(|value| *value = 0.3 * rng.normal() as f32);
        parameters.set_pair(name, &pair);
    }
    parameters
}

/// Losses, and gradients that were added to ones.
fn adapter_gradients(
    decoder: &Decoder,
    device: &Device,
    factors: &AdapterParameters,
    rows: TrainingRows<'_>,
) -> (Vec<f32>, AdapterParameters) {
    let (config, dtype, n) = (decoder.config(), decoder.dtype(), rows.token_ids.len());
    let settings = factors.settings();
    let adapter = LoadedAdapter::trainable(device, dtype, &factors.clone().on(device));
    if let Device::Cpu(_) = device {
        let planned = LoadedAdapter::trainable_bytes(config, dtype, settings);
        assert_eq!(adapter.n_bytes(), planned);
    }
    let mut gradients = AdapterParameters::zeroed_on(device, config, settings);
    let mut workspace = Workspace::for_adapter(device, config, settings, dtype, n);
    let mut gradient_workspace = GradientWorkspace::for_adapter(device, config, settings, dtype, n);
    let learnt = Learnt::Adapter { adapter: &adapter, gradients: &mut gradients };
    decoder.loss_and_gradients(device, rows, &mut workspace, &mut gradient_workspace, learnt);
    (workspace.losses().to_f32(), gradients.in_memory().into_owned())
}

/// `scaling b a`, in f64.
fn change(pair: &LowRankPair) -> Vec<f64> {
    let n_in = pair.a.len() / pair.rank;
    let n_out = pair.b.len() / pair.rank;
    let entry = |o: usize, i: usize| {
        let products = (0..pair.rank)
            .map(|r| f64::from(pair.b[o * pair.rank + r]) * f64::from(pair.a[r * n_in + i]));
        pair.scaling * products.sum::<f64>()
    };
    (0..n_out * n_in).map(|at| entry(at / n_in, at % n_in)).collect()
}

fn some_of(matrices: &[LayerPart], rank: usize) -> AdapterSettings {
    AdapterSettings { rank, alpha: 5.0, matrices: matrices.to_vec() }
}

#[test]
fn gradients_of_factors_equal_finite_differences() {
    let up = LayerPart::Ffn(FfnMatrix::Up);
    let cases = [
        (config(|_| {}), some_of(&AdapterSettings::MATRICES, 4)),
        // An odd rank, some matrices, in another order; a rank beyond every width.
        (config(|c| c.tied_embeddings = false), some_of(&[up, LayerPart::Value], 3)),
        (config(|c| c.sliding_windows = vec![Some(3), None]), some_of(&[LayerPart::Key], 26)),
    ];
    for (config, settings) in cases {
        let parameters = parameters(&config, 12);
        let factors = factors(&config, &settings, 5);
        let (token_ids, targets) = (random_ids(13, 14, 32), random_ids(14, 14, 32));
        let mut weights = [0.1; 14];
        weights[9] = 0.7;
        let rows = TrainingRows {
            token_ids: &token_ids,
            targets: &targets,
            target_weights: &weights,
            segment_starts: &[0, 5, 14],
        };
        let names: Vec<WeightName> = factors.names().collect();
        let pairs: Vec<LowRankPair> = names.iter().map(|&name| factors.pair(name)).collect();
        let changes = RefCell::new(pairs.iter().map(change).collect::<Vec<_>>());
        let loss = || {
            let changes = changes.borrow();
            f64_decoder::loss(&parameters, rows, |name, i| {
                let place = names.iter().position(|&other| other == name);
                place.map_or(0.0, |place| changes[place][i])
            })
        };
        for device in devices(2) {
            let decoder = decoder(&device, &parameters, DType::F32);
            let (_, gradients) = adapter_gradients(&decoder, &device, &factors, rows);
            for (place, &name) in names.iter().enumerate() {
                let (pair, d) = (&pairs[place], gradients.pair(name));
                for (side, d) in [(0, &d.a), (1, &d.b)] {
                    for i in (0..d.len()).step_by(d.len().div_ceil(4)) {
                        let loss_at = |step: f32| {
                            let mut moved = pair.clone();
                            let sides = [&mut moved.a, &mut moved.b];
                            let value = &mut sides.into_iter().nth(side).unwrap()[i];
                            let before = f64::from(*value);
                            *value += step;
                            let made = f64::from(*value) - before;
                            let kept =
                                std::mem::replace(&mut changes.borrow_mut()[place], change(&moved));
                            let loss = loss();
                            changes.borrow_mut()[place] = kept;
                            (loss, made)
                        };
                        let ((more, up), (less, down)) = (loss_at(1e-3), loss_at(-1e-3));
                        let slope = (more - less) / (up - down);
                        // f32 sums of some hundred terms of order 1, and the third derivative of the loss.
                        let error = (slope - f64::from(d[i])).abs();
                        assert!(
                            error < 2e-5 + 1e-3 * slope.abs(),
                            "{name:?} {side} [{i}]: {} is not {slope}",
                            d[i]
                        );
                    }
                }
            }
        }
    }
}

fn long_rows<'a>(token_ids: &'a [u32], targets: &'a [u32]) -> TrainingRows<'a> {
    TrainingRows {
        token_ids,
        targets,
        target_weights: &[0.01; 100],
        segment_starts: &[0, 40, 41, 100],
    }
}

#[test]
fn gradients_of_factors_do_not_depend_on_threads_and_nearly_not_on_the_number_type() {
    let config = config(|c| (c.head_dim, c.hidden_dim) = (16, 48));
    let parameters = Parameters::random(&config, 15);
    let factors = factors(&config, &AdapterSettings::of_rank(3), 6);
    let (token_ids, targets) = (random_ids(16, 100, 32), random_ids(17, 100, 32));
    let rows = long_rows(&token_ids, &targets);
    for (one, three) in devices(1).into_iter().zip(devices(3)) {
        let run = |device: &Device, dtype| {
            adapter_gradients(&decoder(device, &parameters, dtype), device, &factors, rows)
        };
        let (exact, rounded) = (run(&one, DType::F32), run(&one, DType::Bf16));
        let threaded = run(&three, DType::Bf16);
        assert_eq!(rounded.0, threaded.0);
        let all = exact.1.iter().zip(rounded.1.iter()).zip(threaded.1.iter());
        for (((_, exact), (_, rounded)), (_, threaded)) in all {
            assert_eq!(rounded.f32(), threaded.f32());
            let difference = relative_difference(rounded.f32(), exact.f32());
            assert!(difference < 0.05, "{difference}");
        }
    }
}

#[test]
fn gradients_of_factors_on_a_gpu_are_those_of_the_processors() {
    let Some(device) = gpu() else { return };
    let cpu = Device::Cpu(Compute::forced(Family::Reference, 1).unwrap());
    for config in [config(|c| (c.head_dim, c.context_len) = (64, 256)), config(|_| {})] {
        let parameters = Parameters::random(&config, 15);
        let factors = factors(&config, &some_of(&AdapterSettings::MATRICES, 5), 7);
        let (token_ids, targets) = (random_ids(16, 100, 32), random_ids(17, 100, 32));
        let rows = long_rows(&token_ids, &targets);
        let exact = decoder(&cpu, &parameters, DType::F32);
        let (losses, exact) = adapter_gradients(&exact, &cpu, &factors, rows);
        // In f32 the order of sums differs; in bf16 operands have 8 bits, several products deep.
        for (dtype, limit) in [(DType::F32, 1e-5), (DType::Bf16, 0.06)] {
            let decoder = decoder(&device, &parameters.clone().on(&device), dtype);
            let there = adapter_gradients(&decoder, &device, &factors, rows);
            assert!(relative_difference(&there.0, &losses) < limit, "losses, {dtype:?}");
            for ((_, got), (_, expected)) in there.1.iter().zip(exact.iter()) {
                let difference = relative_difference(got.f32(), expected.f32());
                assert!(difference < limit, "{dtype:?}: {difference}");
            }
        }
    }
}

#[test]
fn a_fresh_adapter_changes_nothing_and_an_odd_rank_has_zeros_beside_it() {
    let config = config(|_| {});
    let device = fastest(1);
    let decoder = decoder(&device, &parameters(&config, 3), DType::Bf16);
    let mut workspace = Workspace::for_decoder(&decoder, 9);
    let token_ids = random_ids(2, 9, config.vocab_size);
    let fresh = AdapterParameters::random(&config, &AdapterSettings::of_rank(3), 1);
    let adapter = LoadedAdapter::trainable(&device, DType::Bf16, &fresh);
    let plain = decoder.logits(&device, &token_ids, &[0, 9], &mut workspace);
    let adapted =
        decoder.adapted_logits(&device, &token_ids, &[0, 9], Some(&adapter), &mut workspace);
    assert_eq!(adapted, plain);
    let targets = random_ids(3, 9, config.vocab_size);
    let rows = TrainingRows {
        token_ids: &token_ids,
        targets: &targets,
        target_weights: &[0.1; 9],
        segment_starts: &[0, 9],
    };
    let trained = factors(&config, &AdapterSettings::of_rank(3), 1);
    let (_, gradients) = adapter_gradients(&decoder, &device, &trained, rows);
    for (place, (_, tensor)) in gradients.iter().enumerate() {
        let values = tensor.f32();
        let beside: Vec<f32> = match place % 2 {
            0 => values[3 * tensor.width()..].to_vec(),
            _ => values.chunks_exact(4).map(|row| row[3]).collect(),
        };
        assert!(beside.iter().all(|&value| value == 0.0), "{place}");
        assert!(values.iter().any(|&value| value != 0.0), "{place}");
    }
    // The uniform numbers that PEFT begins with.
    for name in fresh.names() {
        let pair = fresh.pair(name);
        let bound = 1.0 / ((pair.a.len() / 3) as f32).sqrt();
        let largest = pair.a.iter().fold(0.0, |most: f32, a| most.max(a.abs()));
        assert!(largest <= bound && largest > 0.8 * bound, "{name:?}: {largest} of {bound}");
        assert!(pair.b.iter().all(|&b| b == 0.0));
    }
}

#[test]
fn adapters_that_cannot_be_trained_are_refused_by_setting() {
    let dense = config(|_| {});
    let refused = |settings: AdapterSettings| settings.check(&dense).unwrap_err().to_string();
    let all = AdapterSettings::of_rank(8);
    assert_eq!(all.check(&dense), Ok(()));
    let rank = refused(AdapterSettings { rank: 257, ..all.clone() });
    assert_eq!(rank, "the adapter's rank is 257, expected 1 to 256");
    let alpha = refused(AdapterSettings { alpha: f64::NAN, ..all.clone() });
    assert!(alpha.starts_with("the adapter's alpha is NaN, expected a number above 0"), "{alpha}");
    for matrices in [vec![], vec![LayerPart::Key; 2], vec![LayerPart::FfnNorm]] {
        let matrices = refused(AdapterSettings { matrices, ..all.clone() });
        assert!(matrices.contains("expected matrices of a layer, each once"), "{matrices}");
    }
    let experts = config(|c| c.experts = Some(Experts { n_experts: 4, n_active: 2 }));
    assert_eq!(all.check(&experts), Err(ModelError::Untrainable { n_experts: 4 }));
}

#[test]
fn planned_bytes_of_training_an_adapter_are_those_taken() {
    let device = fastest(1);
    let config = config(|c| (c.vocab_size, c.hidden_dim, c.ffn_dim) = (100, 48, 112));
    for dtype in [DType::F32, DType::Bf16] {
        for (max_rows, rank) in [(1, 16), (33, 3), (700, 200)] {
            let settings = AdapterSettings::of_rank(rank);
            let workspace = Workspace::for_adapter(&device, &config, &settings, dtype, max_rows);
            let planned = Workspace::bytes_for_adapter(&config, &settings, dtype, max_rows);
            assert_eq!(workspace.n_bytes(), planned, "{max_rows} rows, rank {rank}");
            let (config, settings) = (&config, &settings);
            let workspace =
                GradientWorkspace::for_adapter(&device, config, settings, dtype, max_rows);
            let planned = GradientWorkspace::bytes_for_adapter(config, settings, dtype, max_rows);
            assert_eq!(workspace.n_bytes(), planned, "gradients of {max_rows} rows, rank {rank}");
            let masters = AdapterParameters::zeroed(config, settings);
            let taken = masters.iter().map(|(_, tensor)| tensor.n_bytes() as u64).sum::<u64>();
            assert_eq!(taken, 4 * settings.n_numbers(config));
        }
    }
}
