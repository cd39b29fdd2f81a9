//! What a resumed run has of its own, and what it refuses.

use cuda::{Gpu, LibraryPath};
use formats::checkpoint::{STATE_FILE, SUMS_FILE};
use formats::digest::sha256_of_file;
use formats::model_dir::{CONFIG_FILE, LINEAGE_FILE, Lineage};
use formats::{DecoderConfig, Rope, RopeScaling};
use model::{ModelConfig, Parameters};
use serde_json::Value;
use testkit::golden;

use super::*;
use crate::export::{ModelNotes, write_model};

pub(super) fn stop_at(step: u64) -> impl FnMut(&Progress) -> RunControl {
    move |progress| if progress.step == step { RunControl::Stop } else { RunControl::Continue }
}

/// A recipe that starts from a model in the folder `model`, whose configuration has numbers of many digits.
pub(super) fn recipe_from_model(dir: &Path) -> Recipe {
    let recipe = recipe(dir);
    let (factor, model_dir) = (7.0_f64 / 3.0, dir.join("model"));
    let config = DecoderConfig {
        vocab_size: 280,
        hidden_dim: 32,
        n_heads: 2,
        n_kv_heads: 1,
        head_dim: 16,
        ffn_dim: 48,
        rope: Rope {
            theta: 1e5 / 3.0,
            scaling: RopeScaling::Yarn {
                factor,
                beta_fast: 32.0,
                beta_slow: 1.0,
                original_context_len: 27,
                attention_factor: 1.0 + 0.1 * factor.ln(),
                is_truncated: true,
            },
        },
        rms_norm_eps: 1e-5 / 3.0,
        sliding_windows: vec![Some(9)],
        ..ModelConfig::example()
    };
    let parameters = Parameters::random(&ModelConfig::new(config).unwrap(), 5);
    let notes = ModelNotes {
        name: "model".to_owned(),
        summary: String::new(),
        sections: Vec::new(),
        lineage: Lineage::default(),
        temperature: None,
        template: None,
    };
    let tokenizer = Tokenizer::open(&recipe.data.tokenizer).unwrap();
    write_model(&model_dir, &parameters, WeightDtype::F32, &tokenizer, &notes).unwrap();
    Recipe { start: Start::Model(model_dir), ..recipe }
}

/// The run of a recipe in one go, and the folder of another that was stopped after three steps.
pub(super) fn whole_and_part(dir: &TestDir, recipe: &Recipe) -> (Run, PathBuf) {
    let mut whole = Run::create(&dir.join("whole"), recipe.clone(), device()).unwrap();
    assert_eq!(whole.train(|_| RunControl::Continue).unwrap(), Outcome::Done);
    let part = dir.join("part");
    let mut run = Run::create(&part, recipe.clone(), device()).unwrap();
    assert_eq!(run.train(stop_at(3)).unwrap(), Outcome::Stopped);
    (whole, part)
}

#[test]
fn a_run_outlives_the_model_that_it_began_with() {
    let dir = TestDir::new("train-outlives");
    let recipe = recipe_from_model(dir.path());
    let (whole, part) = whole_and_part(&dir, &recipe);
    let config = |run: &Run| run.trained().config().clone();
    // In the model's place there is another one of the same shapes.
    let path = dir.join("model").join(CONFIG_FILE);
    let text = fs::read_to_string(&path).unwrap();
    let other = text.replace("\"sliding_window\": 9", "\"sliding_window\": 5");
    assert_ne!(text, other);
    fs::write(&path, other).unwrap();
    let mut second = Run::resume(&part, device()).unwrap();
    assert_eq!(config(&second), config(&whole));
    assert_eq!(second.train(stop_at(5)).unwrap(), Outcome::Stopped);
    drop(second);
    // Then there is none.
    fs::remove_dir_all(dir.join("model")).unwrap();
    let mut third = Run::resume(&part, device()).unwrap();
    assert_eq!(third.train(|_| RunControl::Continue).unwrap(), Outcome::Done);
    assert_eq!(config(&third), config(&whole));
    assert_eq!(fingerprint(&third), fingerprint(&whole));
    let next = Recipe { start: Start::Run(part), ..recipe };
    assert_eq!(starting_config(&next).unwrap(), config(&whole));
}

/// The licence of whatever lay in the place of the parent at the end became that of the model.
#[test]
fn what_a_run_inherits_is_taken_when_it_begins() {
    let dir = TestDir::new("train-inherits");
    let recipe = recipe_from_model(dir.path());
    let state_licence = |licence: &str| {
        let lineage =
            json!({"format_version": 1, "licence": licence, "data_sheet_sha256": "5a".repeat(32)});
        fs::write(dir.join("model").join(LINEAGE_FILE), lineage.to_string()).unwrap();
    };
    state_licence("mrl");
    let (whole, part) = whole_and_part(&dir, &recipe);
    let began_with =
        Inherited { licence: Some("mrl".to_owned()), data_sheet_sha256: Some("5a".repeat(32)) };
    assert_eq!(whole.inherited(), Some(&began_with));
    state_licence("mit");
    let inherited_now = || Run::resume(&part, device()).unwrap().inherited().cloned();
    assert_eq!(inherited_now(), Some(began_with.clone()));
    let next = Recipe { start: Start::Run(part.clone()), ..recipe.clone() };
    let child = Run::create(&dir.join("child"), next, device()).unwrap();
    assert_eq!(child.inherited(), Some(&began_with));
    // Earlier programs did not write it down: it is taken as it is now, while it can be.
    change_state(&part, |file| {
        assert!(file["state"].as_object_mut().unwrap().remove("inherited").is_some());
    });
    assert_eq!(inherited_now().unwrap().licence.as_deref(), Some("mit"));
    fs::remove_dir_all(dir.join("model")).unwrap();
    assert_eq!(inherited_now(), None);
}

/// Changes the `state.json` of a run's checkpoint after three steps, and its sum.
fn change_state(run_dir: &Path, change: impl FnOnce(&mut Value)) {
    let dir = run_dir.join("checkpoints/step-00000003");
    let (path, sums) = (dir.join(STATE_FILE), dir.join(SUMS_FILE));
    let mut file: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut file);
    let before = sha256_of_file(&path).unwrap().0;
    fs::write(&path, file.to_string()).unwrap();
    let after = sha256_of_file(&path).unwrap().0;
    let text = fs::read_to_string(&sums).unwrap().replace(&before, &after);
    fs::write(sums, text).unwrap();
}

#[test]
fn a_checkpoint_of_format_1_goes_on_with_the_configuration_of_its_start() {
    let dir = TestDir::new("train-format-1");
    let recipe = recipe_from_model(dir.path());
    let (whole, part) = whole_and_part(&dir, &recipe);
    change_state(&part, |file| {
        assert!(file["state"].as_object_mut().unwrap().remove("model").is_some());
    });
    let error = Run::resume(&part, device()).unwrap_err().to_string();
    assert!(error.contains("without the model's configuration"), "{error}");
    change_state(&part, |file| file["format_version"] = json!(1));
    let away = dir.join("away");
    fs::rename(dir.join("model"), &away).unwrap();
    let error = Run::resume(&part, device()).unwrap_err().to_string();
    assert!(error.contains("model is missing"), "{error}");
    fs::rename(&away, dir.join("model")).unwrap();
    let mut run = Run::resume(&part, device()).unwrap();
    assert_eq!(run.train(stop_at(5)).unwrap(), Outcome::Stopped);
    drop(run);
    // What it writes is of the format of now.
    fs::remove_dir_all(dir.join("model")).unwrap();
    let mut run = Run::resume(&part, device()).unwrap();
    assert_eq!(run.train(|_| RunControl::Continue).unwrap(), Outcome::Done);
    assert_eq!(fingerprint(&run), fingerprint(&whole));
}

/// A recipe of two conversations that Mistral's template of version 3 renders.
fn recipe_of_conversations(dir: &Path) -> Recipe {
    let (tokenizer, conversations) = (dir.join("mistral"), dir.join("chat.jsonl"));
    fs::create_dir(&tokenizer).unwrap();
    let model = golden::workspace_root().join("golden/tokenizer/family/tiny.model");
    fs::copy(model, tokenizer.join("tokenizer.model.v3")).unwrap();
    let line = r#"{"messages": [{"role": "user", "content": "mer"}, {"role": "assistant", "content": "vent"}]}"#;
    fs::write(&conversations, format!("{line}\n{line}\n")).unwrap();
    let recipe = recipe(dir);
    let Start::Random(shape) = recipe.start else { panic!("{:?}", recipe.start) };
    let conversations = vec![conversations];
    Recipe {
        start: Start::Random(ModelShape { vocab_size: 640, ..shape }),
        data: DataSettings { tokenizer, shards: vec![], conversations, documents: vec![] },
        validation: None,
        ..recipe
    }
}

#[test]
fn another_template_for_the_same_conversations_is_refused() {
    let dir = TestDir::new("train-template");
    let recipe = recipe_of_conversations(dir.path());
    let (whole, part) = whole_and_part(&dir, &recipe);
    let version = |n: u32| dir.join("mistral").join(format!("tokenizer.model.v{n}"));
    fs::rename(version(3), version(7)).unwrap();
    let error = Run::resume(&part, device()).unwrap_err().to_string();
    assert!(error.contains("the template of the conversations has changed"), "{error}");
    let (now, before) = error.split_once("expected").unwrap();
    assert!(now.contains("template v7") && before.contains("template v3"), "{error}");
    fs::rename(version(7), version(3)).unwrap();
    // Format 1 did not say the template: it is taken as it is now.
    change_state(&part, |file| {
        file["format_version"] = json!(1);
        file["state"].as_object_mut().unwrap().remove("model").unwrap();
        let last = file["state"]["data_digests"].as_array_mut().unwrap().pop().unwrap();
        assert!(last.as_str().unwrap().starts_with("template v3"), "{last}");
    });
    let mut run = Run::resume(&part, device()).unwrap();
    assert_eq!(run.train(|_| RunControl::Continue).unwrap(), Outcome::Done);
    assert_eq!(fingerprint(&run), fingerprint(&whole));
}

#[test]
fn a_recipe_of_another_model_than_the_checkpoint_is_refused() {
    let dir = TestDir::new("train-other-recipe");
    let run_dir = dir.join("run");
    let mut run = Run::create(&run_dir, recipe(dir.path()), device()).unwrap();
    run.train(stop_at(1)).unwrap();
    drop(run);
    let path = run_dir.join(RECIPE_FILE);
    let text = fs::read_to_string(&path).unwrap();
    let other = text.replace("rope_theta = 10000.0", "rope_theta = 20000.0");
    assert_ne!(text, other);
    fs::write(&path, other).unwrap();
    let error = Run::resume(&run_dir, device()).unwrap_err().to_string();
    assert!(error.contains("model of the recipe is") && error.contains("20000.0"), "{error}");
    fs::write(&path, text).unwrap();
    assert_eq!(Run::resume(&run_dir, device()).unwrap().step(), 1);
}

#[test]
fn a_run_goes_on_on_a_gpu_and_on_the_processors_and_says_so() {
    let Some(directory) = testkit::cuda_emulator::directory() else { return };
    let gpu = Gpu::open(&LibraryPath::new(Some(directory))).unwrap();
    let on_gpu = || {
        let host = Compute::forced(Family::Reference, 1).unwrap();
        Device::Cuda { gpu: gpu.clone(), host }
    };
    let dir = TestDir::new("train-gpu");
    let recipe = recipe(dir.path());
    let last_loss = |run: &mut Run, until: u64| {
        let mut loss = f64::NAN;
        let mut stop = stop_at(until);
        let observe = |progress: &Progress| {
            loss = progress.loss;
            stop(progress)
        };
        run.train(observe).unwrap();
        loss
    };
    let mut whole = Run::create(&dir.join("whole"), recipe.clone(), device()).unwrap();
    let expected = last_loss(&mut whole, 8);

    let parts = dir.join("parts");
    last_loss(&mut Run::create(&parts, recipe, on_gpu()).unwrap(), 3);
    last_loss(&mut Run::resume(&parts, on_gpu()).unwrap(), 5);
    let mut third = Run::resume(&parts, device()).unwrap();
    assert_eq!(third.step(), 5);
    // Eight steps of a fresh model in bf16, of which five round otherwise.
    assert!((last_loss(&mut third, 8) - expected).abs() < 0.02);

    let events = fs::read_to_string(parts.join(EVENTS_FILE)).unwrap();
    let warnings: Vec<String> = events
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|event| event["event"] == "resumed")
        .map(|event| event["warning"].as_str().unwrap().to_owned())
        .collect();
    assert!(warnings[0].contains("a GPU does not repeat bits"), "{warnings:?}");
    assert!(warnings[1].contains("made by cuda"), "{warnings:?}");
}
