//! Adapters at run time against PEFT, and against themselves.

use formats::adapter::Adapter;

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

#[test]
fn matrices_that_are_only_merged_are_refused_by_name() {
    let (dir, _) = open("hf", "peft");
    let config = ModelConfig::new(dir.config().clone()).unwrap();
    for (name, is_changed) in [
        (WeightName::Embedding, false),
        (WeightName::Head, false),
        (WeightName::Layer { layer_idx: 1, part: LayerPart::Value }, true),
    ] {
        assert_eq!(crate::adapted::place(name, &config).is_some(), is_changed, "{name:?}");
    }
}
