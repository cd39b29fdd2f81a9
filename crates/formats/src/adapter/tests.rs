use std::fs;

use testkit::golden::workspace_root;
use testkit::test_dir::TestDir;

use super::*;
use crate::model_dir::ModelDir;
use crate::names::LayerPart;

fn golden(name: &str) -> PathBuf {
    workspace_root().join("golden").join(name)
}

fn config() -> DecoderConfig {
    ModelDir::open(&golden("architectures/mistral/hf")).unwrap().config().clone()
}

fn copy(scratch: &TestDir, layout: &str) -> PathBuf {
    let to = scratch.path().join(layout);
    fs::create_dir_all(&to).unwrap();
    for entry in fs::read_dir(golden("adapters").join(layout)).unwrap() {
        let from = entry.unwrap().path();
        fs::copy(&from, to.join(from.file_name().unwrap())).unwrap();
    }
    to
}

#[test]
fn both_layouts_hold_the_same_adapter() {
    let config = config();
    let [peft, native] = ["peft", "native"]
        .map(|layout| Adapter::open(&golden("adapters").join(layout), &config, None).unwrap());
    assert_eq!((peft.scaling(), native.scaling()), (7.0 / 3.0, 7.0 / 3.0));
    let names: Vec<WeightName> = peft.names().collect();
    assert_eq!(names.len(), 7 * config.n_layers);
    assert_eq!(native.names().collect::<Vec<_>>(), names);
    for name in names {
        let pair = peft.pair(name, &config).unwrap().unwrap();
        assert_eq!(pair.rank, 3);
        assert_eq!(native.pair(name, &config).unwrap().unwrap(), pair, "{}", name.hf_name());
    }
    let norm = WeightName::Layer { layer_idx: 0, part: LayerPart::FfnNorm };
    assert_eq!(peft.pair(norm, &config).unwrap(), None);
    let file = golden("adapters/native/lora.safetensors");
    assert!(Adapter::open(&file, &config, None).is_ok());
}

#[test]
fn a_scaling_is_never_guessed() {
    let scratch = TestDir::new("adapter-scaling");
    let (config, native) = (config(), copy(&scratch, "native"));
    let error = |scaling| Adapter::open(&native, &config, scaling).unwrap_err().to_string();
    assert!(error(Some(2.0)).contains("is 2, expected 2.33"), "{}", error(Some(2.0)));
    fs::remove_file(native.join("params.json")).unwrap();
    assert!(error(None).contains("missing, expected a number"), "{}", error(None));
    assert_eq!(Adapter::open(&native, &config, Some(2.0)).unwrap().scaling(), 2.0);
}

#[test]
fn factors_of_another_rank_than_the_scaling_are_refused() {
    let scratch = TestDir::new("adapter-rank");
    let (config, peft) = (config(), copy(&scratch, "peft"));
    let path = peft.join("adapter_config.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("\"r\": 3", "\"r\": 2")).unwrap();
    let error = Adapter::open(&peft, &config, None).unwrap_err().to_string();
    assert!(error.contains("expected [2, "), "{error}");
}

/// A scaling of NaN made a model of NaN, which was written and reported as done.
#[test]
fn a_scaling_without_bound_is_refused() {
    let scratch = TestDir::new("adapter-bound");
    let (config, native, peft) = (config(), copy(&scratch, "native"), copy(&scratch, "peft"));
    fs::remove_file(native.join("params.json")).unwrap();
    for scaling in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e30] {
        for path in [&native, &peft] {
            let error = Adapter::open(path, &config, Some(scaling)).unwrap_err().to_string();
            assert!(
                error.contains(&format!("is {scaling}, expected a number -1e6..=1e6")),
                "{error}"
            );
        }
    }
    assert!(Adapter::open(&native, &config, Some(-2.0)).is_ok());
    // JSON has no NaN; what its readers take for one is refused.
    let path = native.join("params.json");
    for scaling in ["NaN", "Infinity", "1e999", "1e7"] {
        fs::write(&path, format!(r#"{{"lora": {{"scaling": {scaling}}}}}"#)).unwrap();
        assert!(Adapter::open(&native, &config, None).is_err(), "{scaling}");
    }
}

#[test]
fn what_is_more_than_plain_lora_is_refused_by_its_field() {
    let scratch = TestDir::new("adapter-fields");
    let (config, peft) = (config(), copy(&scratch, "peft"));
    let path = peft.join("adapter_config.json");
    let original: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let opened = |field: &str, value: Value| {
        let mut changed = original.clone();
        changed[field] = value;
        fs::write(&path, changed.to_string()).unwrap();
        Adapter::open(&peft, &config, None)
    };
    for (field, value) in [
        ("use_dora", true.into()),
        ("bias", "all".into()),
        ("peft_type", "IA3".into()),
        ("fan_in_fan_out", true.into()),
        ("alpha_pattern", serde_json::json!({"q_proj": 4})),
        ("modules_to_save", serde_json::json!(["lm_head"])),
        ("init_lora_weights", "pissa".into()),
        ("layer_replication", serde_json::json!([[0, 1]])),
        ("use_something_new", true.into()),
        ("r", 0.into()),
        ("lora_alpha", Value::Null),
    ] {
        let error = opened(field, value).unwrap_err().to_string();
        assert!(error.contains(&format!("`{field}`")), "{error}");
    }
    let root = opened("use_rslora", true.into()).unwrap();
    assert_eq!(root.scaling(), 7.0 / 3.0_f64.sqrt());
}

#[test]
fn an_adapter_of_another_model_is_refused_by_its_tensor() {
    let config = config();
    let error = |change: &dyn Fn(&mut DecoderConfig)| {
        let mut other = config.clone();
        change(&mut other);
        Adapter::open(&golden("adapters/peft"), &other, None).unwrap_err().to_string()
    };
    let narrow = error(&|config| config.ffn_dim -= 1);
    assert!(
        narrow.contains("down_proj.lora_A.weight") || narrow.contains("gate_proj.lora_B"),
        "{narrow}"
    );
    let shallow = error(&|config| config.n_layers -= 1);
    assert!(shallow.contains("is no factor of a matrix of this model"), "{shallow}");
}
