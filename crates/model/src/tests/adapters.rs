//! Adapters at run time against PEFT, and against themselves.

use std::fs;
use std::sync::Arc;

use formats::adapter::Adapter;
use formats::{FfnMatrix, FormatError, TensorData, TensorDtype, TensorSource, write_safetensors};
use testkit::test_dir::TestDir;

use super::*;
use crate::{LoadedAdapter, Quantisation};

fn open(layout: &str, adapter: &str) -> (ModelDir, Adapter) {
    let root = golden::workspace_root().join("golden");
    let dir = ModelDir::open(&root.join("architectures/mistral").join(layout)).unwrap();
    let path = root.join("adapters").join(adapter);
    let adapter = Adapter::open(&path, dir.config(), None).unwrap();
    (dir, adapter)
}

type Loaded<'a> = Option<&'a LoadedAdapter>;

fn one_pass(
    device: &Device,
    decoder: &Decoder,
    token_ids: &[u32],
    adapter: Loaded<'_>,
) -> Vec<f32> {
    let mut workspace = Workspace::for_decoder(decoder, token_ids.len());
    let starts = [0, token_ids.len() as u32];
    decoder.adapted_logits(device, token_ids, &starts, adapter, &mut workspace)
}

fn loaded(device: &Device, decoder: &Decoder, adapter: &Adapter) -> LoadedAdapter {
    let loaded = LoadedAdapter::load(device, decoder.config(), decoder.dtype(), adapter).unwrap();
    let planned = LoadedAdapter::bytes_for(decoder.config(), decoder.dtype(), adapter);
    assert_eq!(planned.unwrap(), loaded.n_bytes());
    loaded
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// `golden/make_adapters.py` wrote what `peft` gives before it merges.
#[test]
fn an_adapter_gives_the_logits_of_peft_in_every_layout() {
    let expected = golden::load("golden/adapters/expected.safetensors");
    let token_ids: Vec<u32> = expected.i64("token_ids").iter().map(|&id| id as u32).collect();
    let logits = expected.f32("logits");
    for device in devices(2) {
        for (layout, adapter) in [("hf", "peft"), ("native", "native"), ("gguf", "peft")] {
            let (dir, adapter) = open(layout, adapter);
            let decoder = load(&device, &dir, DType::F32);
            let adapter = loaded(&device, &decoder, &adapter);
            let before = one_pass(&device, &decoder, &token_ids, None);
            let before = largest_difference(&before, logits);
            let got = one_pass(&device, &decoder, &token_ids, Some(&adapter));
            let after = largest_difference(&got, logits);
            // As without an adapter: sums in another order.
            assert!(after < 5e-5 && before > 0.1, "{layout}: {after}, without it {before}");
            let cache = KvCache::new(&decoder, CacheKind::Operands, 1, token_ids.len(), 1);
            let cache = cache.with_adapter(Some(Arc::new(adapter)));
            let cached = cached_logits_in(cache, &decoder, &device, &token_ids, 1);
            assert_eq!(cached, got, "{layout}, cached");
        }
    }
}

#[test]
fn a_quantised_model_takes_an_adapter_as_it_is() {
    let device = fastest(2);
    let (dir, adapter) = open("hf", "peft");
    let config = ModelConfig::new(dir.config().clone()).unwrap();
    let token_ids = random_ids(4, 30, config.vocab_size);
    let load = |quantisation| {
        Decoder::load(&device, &config, DType::Bf16, dir.weights(), quantisation).unwrap()
    };
    let with_adapter = |decoder: Decoder| {
        let adapter = loaded(&device, &decoder, &adapter);
        one_pass(&device, &decoder, &token_ids, Some(&adapter))
    };
    let plain = one_pass(&device, &load(Some(Quantisation::Q8_0)), &token_ids, None);
    let exact = with_adapter(load(None));
    let quantised = with_adapter(load(Some(Quantisation::Q8_0)));
    let (near, far) = (largest_difference(&quantised, &exact), largest_difference(&plain, &exact));
    assert!(near < far / 4.0, "{near} from the adapted model, {far} without the adapter");
}

/// An adapter of rank 1, of zeros, that changes one matrix of a golden model; with the model.
fn of_one_matrix(dir: &TestDir, model: &str, name: WeightName) -> (ModelDir, Adapter) {
    let root = golden::workspace_root().join("golden/architectures").join(model).join("hf");
    let model = ModelDir::open(&root).unwrap();
    let (shape, matrix) = (name.shape(model.config()), name.hf_name());
    let matrix = matrix.strip_suffix(".weight").unwrap();
    let numbers = vec![0.0; shape[0].max(shape[1])];
    let sides = [("A", [1, shape[1]]), ("B", [shape[0], 1])].map(|(side, shape)| TensorSource {
        name: format!("base_model.model.{matrix}.lora_{side}.weight"),
        dtype: TensorDtype::F32,
        shape: shape.to_vec(),
        data: TensorData::F32(&numbers[..shape[0] * shape[1]]),
    });
    let path = dir.join(matrix);
    fs::create_dir(&path).unwrap();
    let settings = r#"{"peft_type": "LORA", "r": 1, "lora_alpha": 1}"#;
    fs::write(path.join("adapter_config.json"), settings).unwrap();
    let weights = path.join("adapter_model.safetensors");
    write_safetensors(&weights, sides).unwrap();
    let adapter = Adapter::open(&path, model.config(), None).unwrap();
    (model, adapter)
}

#[test]
fn matrices_that_are_only_merged_are_refused_by_name() {
    let dir = TestDir::new("model-merged-only");
    let device = fastest(1);
    let layer = |part| WeightName::Layer { layer_idx: 1, part };
    let expert = LayerPart::Expert { expert_idx: 2, matrix: FfnMatrix::Down };
    for (model, name, is_refused) in [
        ("mistral", WeightName::Embedding, true),
        ("mistral", WeightName::Head, true),
        ("mixtral", layer(expert), true),
        ("mixtral", layer(LayerPart::Router), true),
        ("mixtral", layer(LayerPart::Value), false),
    ] {
        let (model, adapter) = of_one_matrix(&dir, model, name);
        let decoder = load(&device, &model, DType::F32);
        let adapted = LoadedAdapter::load(&device, decoder.config(), DType::F32, &adapter);
        match adapted.map(drop) {
            Ok(()) => assert!(!is_refused, "{name:?}"),
            Err(FormatError::AdapterMerges { matrix, .. }) => {
                assert!(is_refused, "{name:?}");
                assert_eq!(matrix, name.hf_name());
            }
            Err(error) => panic!("{name:?}: {error}"),
        }
    }
}

/// Sequences of two adapters and of none in one batch: each has the bits that it has alone.
#[test]
fn rows_of_different_adapters_share_a_batch() {
    for device in devices(2) {
        for dtype in [DType::F32, DType::Bf16] {
            let config = config(|c| c.context_len = 64);
            let decoder = decoder(&device, &parameters(&config, 3), dtype);
            // The second is computed in two pieces.
            let adapters = [(4, 1), (300, 2)]
                .map(|(rank, seed)| LoadedAdapter::random(&device, &config, dtype, rank, seed));
            let chosen = [None, Some(&adapters[0]), Some(&adapters[0]), None, Some(&adapters[1])];
            let prompts: Vec<Vec<u32>> =
                (0..5).map(|i| random_ids(i, 3 + i as usize, config.vocab_size)).collect();
            let tables: Vec<Vec<Vec<u32>>> = (0..5_u32)
                .map(|i| (0..config.n_layers as u32).map(|l| vec![5 * l + i]).collect())
                .collect();
            let rows: Vec<CachedRows<'_>> = (0..5)
                .map(|i| CachedRows {
                    token_ids: &prompts[i],
                    n_logits: prompts[i].len(),
                    wanted: Wanted::Logits,
                    adapter: chosen[i],
                    first_position: 0,
                    block_tables: &tables[i],
                })
                .collect();
            let mut blocks =
                KvBlocks::new(&device, &config, dtype, CacheKind::Operands, 5 * config.n_layers);
            let mut workspace = Workspace::for_decoder(&decoder, 40);
            let mut got = vec![Vec::new(); 5];
            let mut on_logits = |of: LogitsRow, row: RowLogits<'_>| {
                got[of.sequence_idx].extend_from_slice(logits_in(row))
            };
            decoder.forward_cached(&device, &rows, &mut blocks, &mut workspace, &mut on_logits);
            for i in 0..5 {
                let alone = one_pass(&device, &decoder, &prompts[i], chosen[i]);
                assert_eq!(got[i], alone, "{dtype:?}, sequence {i}");
                if chosen[i].is_some() {
                    let plain = one_pass(&device, &decoder, &prompts[i], None);
                    assert!(largest_difference(&alone, &plain) > 1e-3, "sequence {i}");
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "an adapter for another model")]
fn an_adapter_of_another_model_is_not_computed() {
    let device = fastest(1);
    let config = config(|_| {});
    let other = self::config(|c| c.ffn_dim *= 2);
    let adapter = LoadedAdapter::random(&device, &other, DType::F32, 2, 1);
    let decoder = decoder(&device, &parameters(&config, 3), DType::F32);
    let _ = one_pass(&device, &decoder, &[1, 2], Some(&adapter));
}
