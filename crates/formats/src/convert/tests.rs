use std::collections::BTreeMap;

use testkit::golden::workspace_root;
use testkit::test_dir::TestDir;

use super::*;
use crate::gguf::GgufFile;

fn golden(name: &str, layout: &str) -> ModelDir {
    let dir = workspace_root().join("golden/architectures").join(name).join(layout);
    ModelDir::open(&dir).unwrap()
}

/// Type, shape and bytes of every tensor.
fn tensors(model: &ModelDir) -> BTreeMap<String, (TensorDtype, Vec<usize>, Vec<u8>)> {
    let weights = model.weights();
    let tensor = |name: &str| {
        let view = weights.tensor(name).unwrap();
        (name.to_owned(), (view.dtype, view.shape.to_vec(), view.bytes.to_vec()))
    };
    weights.names().map(tensor).collect()
}

const BOTH_LAYOUTS: [&str; 5] = ["mistral", "mistral_window", "ministral", "ministral3", "mixtral"];

#[test]
fn tensors_survive_the_way_to_native_files_and_back_byte_for_byte() {
    let scratch = TestDir::new("convert-native");
    for name in BOTH_LAYOUTS {
        let hf = golden(name, "hf");
        let native = scratch.path().join(format!("{name}-native"));
        let native = write_native(&hf, &native, &[]).unwrap();
        // What an independent script wrote from the same weights.
        assert!(tensors(&native) == tensors(&golden(name, "native")), "{name}");
        assert_eq!(native.config(), golden(name, "native").config(), "{name}");
        let back = scratch.path().join(format!("{name}-back"));
        let back = write_hugging_face(&native, &back, &[]).unwrap();
        assert!(tensors(&back) == tensors(&hf), "{name}");
        assert_eq!(back.config(), hf.config(), "{name}");
        assert_eq!(back.lineage().unwrap().parent, Some(format!("{name}-native")));
    }
}

#[test]
fn tensors_survive_the_way_to_a_gguf_file_and_back_byte_for_byte() {
    let scratch = TestDir::new("convert-gguf");
    for name in ["llama2", "linear", "yarn"].into_iter().chain(BOTH_LAYOUTS) {
        let hf = golden(name, "hf");
        let path = scratch.path().join(format!("{name}/model.gguf"));
        write_gguf_file(&hf, &path, None).unwrap();
        let gguf = ModelDir::open(&path).unwrap();
        // What the gguf package wrote from the same weights; it keeps the router in the type of the matrices.
        let (ours, mut theirs) = (tensors(&gguf), tensors(&golden(name, "gguf")));
        theirs.retain(|name, _| !name.contains("ffn_gate_inp"));
        for (tensor, expected) in theirs {
            assert!(ours[&tensor] == expected, "{name} {tensor}");
        }
        assert_eq!(gguf.config(), hf.config(), "{name}");
        let back = scratch.path().join(format!("{name}/back"));
        let back = write_hugging_face(&gguf, &back, &[]).unwrap();
        assert!(tensors(&back) == tensors(&hf), "{name}");
    }
}

#[test]
fn the_divisors_of_llama_3_are_written_as_a_tensor() {
    let scratch = TestDir::new("convert-llama3");
    let path = scratch.path().join("model.gguf");
    write_gguf_file(&golden("llama3", "hf"), &path, None).unwrap();
    let (ours, theirs) = (GgufFile::open(&path).unwrap(), golden("llama3", "gguf"));
    let tensor = &ours.tensors()["rope_freqs.weight"];
    assert_eq!(ours.bytes(tensor), theirs.weights().tensor("rope_freqs.weight").unwrap().bytes);
    let error = write_hugging_face(&theirs, &scratch.path().join("hf"), &[]);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("no key for a divisor for each rotary frequency"), "{error}");
    assert_eq!(scratch.names(), ["model.gguf"]);
}

#[test]
fn what_a_layout_cannot_hold_is_refused_and_nothing_is_overwritten() {
    let scratch = TestDir::new("convert-refused");
    let out = scratch.path().join("out");
    let quantised = golden("quantised_a", "gguf");
    for error in [write_hugging_face(&quantised, &out, &[]), write_native(&quantised, &out, &[])] {
        let error = error.unwrap_err();
        let FormatError::TensorNotInLayout { path, tensor, got, .. } = &error else {
            panic!("{error}");
        };
        assert!(path.ends_with("quantised_a/gguf/model.gguf"), "{error}");
        assert_eq!((tensor.as_str(), *got), ("token_embd.weight", "Q6_K"), "{error}");
    }
    let error = write_native(&golden("llama3", "hf"), &out, &[]).unwrap_err();
    assert!(error.to_string().contains("no key for llama3 rope scaling"), "{error}");
    assert!(scratch.names().is_empty(), "{:?}", scratch.names());

    // A quantised file may be written again, block by block.
    let again = scratch.path().join("again.gguf");
    write_gguf_file(&quantised, &again, None).unwrap();
    assert!(tensors(&ModelDir::open(&again).unwrap()) == tensors(&quantised));
    assert!(matches!(write_gguf_file(&quantised, &again, None), Err(FormatError::Exists { .. })));
}

#[test]
fn experts_of_several_number_types_do_not_fit_one_tensor() {
    let scratch = TestDir::new("convert-experts");
    let source = workspace_root().join("golden/architectures/mixtral/hf");
    let mut bytes = fs::read(source.join("model.safetensors")).unwrap();
    let name = b"layers.0.block_sparse_moe.experts.1.w1.weight\":{\"dtype\":\"";
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap() + name.len();
    assert_eq!(&bytes[at..at + 5], b"BF16\"");
    bytes[at..at + 5].copy_from_slice(b"F16\" ");
    fs::write(scratch.path().join("model.safetensors"), bytes).unwrap();
    fs::copy(source.join("config.json"), scratch.path().join("config.json")).unwrap();
    let model = ModelDir::open(scratch.path()).unwrap();
    let error =
        write_gguf_file(&model, &scratch.path().join("out.gguf"), None).unwrap_err().to_string();
    assert!(error.contains("experts of one layer in several number types"), "{error}");
    assert!(!scratch.path().join("out.gguf").exists());
}
