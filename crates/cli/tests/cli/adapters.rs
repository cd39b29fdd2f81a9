//! Adapters from training to use.

use std::fs;

use serde_json::Value;
use testkit::test_dir::names_in;

use crate::home::{Home, read};

/// A model, and the recipe `adapt.toml` of an adapter beside it, which learns its text.
fn make_adapter_recipe(home: &Home) {
    home.make_model();
    let text = String::from_utf8(read(&home.path("tiny.toml"))).unwrap();
    let (head, rest) = text.split_once("[start.random]").unwrap();
    let (_, data) = rest.split_once("[data]").unwrap();
    let start =
        "[start]\nmodel = \"home/models/tiny-1\"\n\n[adapter]\nrank = 4\nalpha = 8.0\n\n[data]";
    fs::write(home.path("adapt.toml"), format!("{head}{start}{data}")).unwrap();
}

#[test]
fn tune_trains_an_adapter_that_generate_applies_and_merge_takes() {
    let home = Home::new("adapter");
    make_adapter_recipe(&home);
    let before = read(&home.inside("models/tiny-1/model.safetensors"));
    let plan = home.run(&["plan", "--recipe", "adapt.toml", "--tokens-per-s", "1000", "--json"]);
    let plan = plan.expect(0).json();
    let trained = plan["trained_parameters"].as_u64().unwrap();
    assert!(trained > 0 && trained < plan["parameters"].as_u64().unwrap(), "{plan}");
    assert_eq!(plan["training_memory"]["masters_bytes"], trained * 4);
    assert_eq!(plan["checkpoint_bytes"], trained * 12);
    let arguments = ["tune", "--recipe", "adapt.toml", "--set", "n_steps=30", "--json"];
    let set = ["--set", "schedule.peak_learning_rate=0.02"];
    let finished = home.run(&[&arguments[..], &set].concat()).expect(0);
    assert!(finished.stderr.contains("trained parameters"), "{}", finished.stderr);
    let answer = finished.json();
    let adapter = home.inside("adapters/adapt-1");
    assert_eq!(answer["adapter"], adapter.to_str().unwrap());
    assert!(answer.get("model").is_none(), "{answer}");
    let files = ["adapter_config.json", "adapter_model.safetensors", "galerne.json"];
    assert_eq!(names_in(&adapter), files);
    let json = |file| serde_json::from_slice::<Value>(&read(&adapter.join(file))).unwrap();
    let settings = json("adapter_config.json");
    assert_eq!((&settings["r"], &settings["lora_alpha"]), (&4.into(), &8.0.into()));
    assert_eq!(settings["target_modules"].as_array().unwrap().len(), 7);
    assert_eq!(settings["base_model_name_or_path"], home.inside("models/tiny-1").to_str().unwrap());
    assert_eq!(json("galerne.json")["parent"], "tiny-1");
    assert!(read(&home.inside("models/tiny-1/model.safetensors")) == before);

    // It changes what the model says, and merged says the same.
    let path = adapter.to_str().unwrap();
    let score = |arguments: &[&str]| {
        let own = ["generate", "--prompt", "le vent", "--max-tokens", "8", "--temperature", "0"];
        home.run(&[&own[..], arguments].concat()).expect(0).stdout
    };
    let plain = score(&["--model", "tiny-1"]);
    let adapted = score(&["--model", "tiny-1", "--adapter", path]);
    assert_ne!(plain, adapted);
    let merge = ["model", "merge", "tiny-1", "--adapter", path, "--name", "merged"];
    home.run(&merge).expect(0);
    assert_eq!(score(&["--model", "merged"]), adapted);

    // A finished run has its adapter; without it, resume writes it again.
    let again = home.run(&["resume", "adapt-1"]).expect(0);
    assert!(again.stderr.contains("the adapter of this run is there already"), "{}", again.stderr);
    let weights = read(&adapter.join("adapter_model.safetensors"));
    fs::remove_dir_all(&adapter).unwrap();
    home.run(&["resume", "adapt-1"]).expect(0);
    assert!(read(&adapter.join("adapter_model.safetensors")) == weights);
    fs::remove_dir_all(home.inside("runs/adapt-1")).unwrap();
    let taken = home.run(&["tune", "--recipe", "adapt.toml", "--run", "adapt-1"]).expect(1);
    assert!(taken.stderr.contains("the adapter gets the same name"), "{}", taken.stderr);
}

#[test]
fn an_adapter_that_cannot_be_trained_leaves_no_run_behind() {
    let home = Home::new("adapter-refused");
    make_adapter_recipe(&home);
    home.run(&["model", "quantize", "tiny-1", "--to", "q8_0"]).expect(0);
    let cases = [
        ("start.model=home/models/tiny-1-q8_0", 1, "quantised to Q8_0"),
        ("adapter.rank=0", 2, "`adapter.rank` is 0, expected 1 to 256"),
        ("adapter.matrices=[\"norm\"]", 2, "unknown variant `norm`"),
    ];
    for (setting, code, expected) in cases {
        let finished = home.run(&["tune", "--recipe", "adapt.toml", "--set", setting]).expect(code);
        assert!(finished.stderr.contains(expected), "{setting}: {}", finished.stderr);
        assert_eq!(names_in(&home.inside("runs")), ["tiny-1"], "{setting}");
    }
}
