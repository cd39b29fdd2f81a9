//! Adapters at run time against PEFT, and against themselves.

use std::fs;

use formats::adapter::Adapter;
use formats::{FfnMatrix, FormatError, TensorData, TensorDtype, TensorSource, write_safetensors};
use testkit::test_dir::TestDir;

use super::*;
use crate::Quantisation;

fn open(layout: &str, adapter: &str) -> (ModelDir, Adapter) {
    let root = golden::workspace_root().join("golden");
    let dir = ModelDir::open(&root.join("architectures/mistral").join(layout)).unwrap();
    let path = root.join("adapters").join(adapter);
    let adapter = Adapter::open(&path, dir.config(), None).unwrap();
    (dir, adapter)
}

fn one_pass(device: &Device, decoder: &Decoder, token_ids: &[u32]) -> Vec<f32> {
    let mut workspace = Workspace::for_decoder(decoder, token_ids.len());
    decoder.logits(device, token_ids, &[0, token_ids.len() as u32], &mut workspace)
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
            let plain = load(&device, &dir, DType::F32);
            let before = largest_difference(&one_pass(&device, &plain, &token_ids), logits);
            let adapted = plain.with_adapter(&device, &adapter).unwrap();
            let got = one_pass(&device, &adapted, &token_ids);
            let after = largest_difference(&got, logits);
            // As without an adapter: sums in another order.
            assert!(after < 5e-5 && before > 0.1, "{layout}: {after}, without it {before}");
            assert_eq!(cached_logits(&adapted, &device, &token_ids, 1), got, "{layout}, cached");
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
        let adapted = decoder.with_adapter(&device, &adapter).unwrap();
        one_pass(&device, &adapted, &token_ids)
    };
    let plain = one_pass(&device, &load(Some(Quantisation::Q8_0)), &token_ids);
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
        let adapted = load(&device, &model, DType::F32).with_adapter(&device, &adapter);
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
