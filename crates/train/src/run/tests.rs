use std::fs::OpenOptions;

use data::shard::{Shard, ShardWriter};
use formats::WeightDtype;
use kernels::{Compute, Family, detect_features};
use testkit::damage::damaged;
use testkit::random::Rng;
use testkit::test_dir::TestDir;
use tokenizer::{BpeTrainer, TrainOptions};

use super::*;
use crate::export::write_tokenizer;
use crate::optimizer::OptimizerSettings;
use crate::recipe::{
    BatchSettings, CheckpointSettings, DataSettings, FORMAT_VERSION, ModelShape, ValidationSettings,
};
use crate::schedule::Schedule;

mod adapter;
mod resume;

fn device() -> Device {
    let family = Family::fastest(detect_features());
    Device::Cpu(Compute::forced(family, 2).unwrap())
}

/// A tokenizer of 300 tokens and a shard of random words.
fn recipe(dir: &Path) -> Recipe {
    let mut rng = Rng::new(1);
    let words = ["vent", "mer", "sail", "port", "quai", "boat", "île", "storm"];
    let documents: Vec<String> = (0..60)
        .map(|_| (0..5 + rng.below(30)).map(|_| words[rng.below(8)]).collect::<Vec<_>>().join(" "))
        .collect();
    let mut trainer = BpeTrainer::new(TrainOptions { vocab_size: 280, ..TrainOptions::default() });
    documents.iter().for_each(|text| trainer.feed(text));
    let tokenizer = trainer.train().unwrap();
    write_tokenizer(&dir.join("tokenizer"), &tokenizer).unwrap();
    let shard = dir.join("shard");
    let mut writer =
        ShardWriter::create(&shard, &tokenizer.digest(), tokenizer.vocab_size()).unwrap();
    for text in &documents {
        let mut ids = vec![tokenizer.bos_id()];
        tokenizer.encode_into(text, &mut ids);
        ids.push(tokenizer.eos_id());
        writer.add(&ids).unwrap();
    }
    writer.finish(vec!["test".to_owned()]).unwrap();
    Recipe {
        format_version: FORMAT_VERSION,
        n_steps: 8,
        seed: 3,
        dtype: WeightDtype::Bf16,
        start: Start::Random(ModelShape {
            hidden_dim: 32,
            n_layers: 2,
            n_heads: 2,
            n_kv_heads: 1,
            head_dim: 16,
            ffn_dim: 48,
            vocab_size: 280,
            context_len: 64,
            rope_theta: 1e4,
        }),
        adapter: None,
        data: DataSettings {
            tokenizer: dir.join("tokenizer"),
            shards: vec![shard.clone()],
            conversations: vec![],
            documents: vec![],
        },
        batch: BatchSettings { seq_len: 32, rows_per_step: 4, rows_per_micro_batch: 2 },
        schedule: Schedule { peak_learning_rate: 0.01, warmup_steps: 2, decay_steps: 3 },
        optimizer: OptimizerSettings::default(),
        checkpoint: CheckpointSettings { every_steps: 100, n_keep: 2 },
        validation: Some(ValidationSettings { shard, every_steps: 4 }),
    }
}

/// Every number of the run: weights, moments.
fn fingerprint(run: &Run) -> Vec<u32> {
    let trainer = &run.trainer;
    let all = [&trainer.trained, &trainer.optimizer.m, &trainer.optimizer.v];
    all.iter()
        .flat_map(|parameters| parameters.iter())
        .flat_map(|(_, tensor)| tensor.f32().iter().map(|x| x.to_bits()))
        .collect()
}

#[test]
fn a_stopped_and_resumed_run_equals_an_uninterrupted_one() {
    let dir = TestDir::new("train-resume");
    let recipe = recipe(dir.path());
    let mut whole = Run::create(&dir.join("whole"), recipe.clone(), device()).unwrap();
    let mut losses = Vec::new();
    let outcome = whole.train(|progress| {
        losses.push(progress.loss);
        RunControl::Continue
    });
    assert_eq!(outcome.unwrap(), Outcome::Done);
    assert!(losses[7] < losses[0] - 0.5, "it learns: {losses:?}");

    let parts = dir.join("parts");
    let mut first = Run::create(&parts, recipe, device()).unwrap();
    let stop_at = |at: u64| {
        move |progress: &Progress| {
            if progress.step == at { RunControl::Stop } else { RunControl::Continue }
        }
    };
    assert_eq!(first.train(stop_at(3)).unwrap(), Outcome::Stopped);
    drop(first);
    // A process killed in mid-line leaves half a line, and lines after the last checkpoint.
    let mut metrics = OpenOptions::new().append(true).open(parts.join(METRICS_FILE)).unwrap();
    write!(metrics, "{{\"step\": 4, \"loss\": 1}}\n{{\"step\": 5, \"lo").unwrap();
    let mut second = Run::resume(&parts, device()).unwrap();
    assert_eq!((second.step(), second.tokens()), (3, 3 * 4 * 32));
    assert_eq!(second.train(|_| RunControl::Continue).unwrap(), Outcome::Done);
    assert_eq!(fingerprint(&second), fingerprint(&whole));

    let lines = |dir: &str| -> Vec<(u64, f64, Option<f64>)> {
        let text = fs::read_to_string(dir_file(&parts, dir)).unwrap();
        let lines =
            text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines
            .map(|line| {
                let validation = line["validation_bits_per_byte"].as_f64();
                (line["step"].as_u64().unwrap(), line["loss"].as_f64().unwrap(), validation)
            })
            .collect()
    };
    assert_eq!(lines("whole"), lines("parts"));
    assert_eq!(lines("parts").len(), 8);
    assert!(lines("parts")[3].2.is_some() && lines("parts")[4].2.is_none());
}

fn dir_file(parts: &Path, name: &str) -> PathBuf {
    parts.parent().unwrap().join(name).join(METRICS_FILE)
}

#[test]
fn a_damaged_checkpoint_is_refused_by_name() {
    let dir = TestDir::new("train-damage");
    let run_dir = dir.join("run");
    let mut run = Run::create(&run_dir, recipe(dir.path()), device()).unwrap();
    run.train(|_| RunControl::Stop).unwrap();
    drop(run);
    let file = run_dir.join("checkpoints/step-00000001/optimizer.safetensors");
    for damage in [0, 100] {
        OpenOptions::new().write(true).open(&file).unwrap().set_len(damage).unwrap();
        let error = Run::resume(&run_dir, device()).unwrap_err().to_string();
        assert!(error.contains("optimizer.safetensors"), "{error}");
    }
}

#[test]
fn other_data_under_the_same_name_is_refused() {
    let dir = TestDir::new("train-digest");
    let run_dir = dir.join("run");
    let recipe = recipe(dir.path());
    let mut run = Run::create(&run_dir, recipe.clone(), device()).unwrap();
    run.train(|_| RunControl::Stop).unwrap();
    drop(run);
    let tokenizer = Tokenizer::open(&recipe.data.tokenizer).unwrap();
    let shard = &recipe.data.shards[0];
    fs::remove_dir_all(shard).unwrap();
    let mut writer =
        ShardWriter::create(shard, &tokenizer.digest(), tokenizer.vocab_size()).unwrap();
    (0..50).for_each(|_| writer.add(&[1, 9, 9, 9, 2]).unwrap());
    writer.finish(vec![]).unwrap();
    let error = Run::resume(&run_dir, device()).unwrap_err();
    let TrainError::ChangedData { what, got, expected, .. } = &error else { panic!("{error}") };
    assert_eq!(Path::new(what), shard.canonicalize().unwrap());
    let now = Shard::open(shard).unwrap().manifest;
    assert!(got.starts_with(&now.tokens_sha256) && expected.len() == got.len(), "{error}");
    assert_ne!(got, expected);
}

#[test]
fn a_run_from_another_keeps_the_weights_that_it_began_with() {
    let dir = TestDir::new("train-parent");
    let parent_dir = dir.join("parent");
    let parent_recipe = recipe(dir.path());
    let mut parent = Run::create(&parent_dir, parent_recipe.clone(), device()).unwrap();
    parent.train(|_| RunControl::Stop).unwrap();
    let child_dir = dir.join("child");
    let child_recipe = Recipe { start: Start::Run(parent_dir.clone()), ..parent_recipe };
    let child = Run::create(&child_dir, child_recipe.clone(), device()).unwrap();
    let began_with = fingerprint(&child);
    drop(child);
    parent.train(|_| RunControl::Continue).unwrap();
    assert_eq!(fingerprint(&Run::resume(&child_dir, device()).unwrap()), began_with);
    let long =
        Recipe { batch: BatchSettings { seq_len: 1000, ..child_recipe.batch }, ..child_recipe };
    assert!(Run::create(&dir.join("long"), long, device()).is_err());
    assert!(!dir.join("long").exists(), "a run that cannot be opened leaves no folder");
    fs::remove_dir_all(&parent_dir).unwrap();
    assert_eq!(fingerprint(&Run::resume(&child_dir, device()).unwrap()), began_with);
}

#[test]
fn a_run_is_held_by_one_process_and_never_overwritten() {
    let dir = TestDir::new("train-lock");
    let run_dir = dir.join("run");
    let run = Run::create(&run_dir, recipe(dir.path()), device()).unwrap();
    assert!(matches!(
        Run::create(&run_dir, recipe(TestDir::new("train-lock2").path()), device()),
        Err(TrainError::Exists { .. })
    ));
    assert!(Run::resume(&run_dir, device()).unwrap_err().to_string().contains("in use"));
    drop(run);
    assert_eq!(Run::resume(&run_dir, device()).unwrap().step(), 0);
    let missing = Run::resume(&dir.join("nothing"), device()).unwrap_err().to_string();
    assert!(missing.contains("is not a run"), "{missing}");
}

#[test]
fn recipes_survive_a_round_trip_and_bad_ones_are_refused_by_key() {
    let dir = TestDir::new("train-recipe");
    let recipe = recipe(dir.path());
    let path = Path::new("run.toml");
    let text = recipe.to_toml();
    assert_eq!(Recipe::parse(&text, path).unwrap(), recipe);
    for (from, to, expected) in [
        ("n_steps = 8", "n_steps = 0", "`n_steps` is 0"),
        ("n_steps = 8", "n_step = 8", "unknown field `n_step`"),
        (
            "rows_per_micro_batch = 2",
            "rows_per_micro_batch = 3",
            "a divisor of batch.rows_per_step",
        ),
        ("peak_learning_rate = 0.01", "peak_learning_rate = -1.0", "a positive number"),
        ("beta1 = 0.9", "beta1 = 1.0", "from 0 to below 1"),
        ("max_grad_norm = 1.0", "max_grad_norm = 0.0", "`optimizer.max_grad_norm` is 0"),
        ("\neps = ", "\neps = -", "`optimizer.eps`"),
        ("seq_len = 32", "seq_len = 1", "`batch.seq_len` is 1"),
        ("format_version = 1", "format_version = 2", "this program reads up to 1"),
        ("format_version = 1", "format_version = 2\nnewer = true", "this program reads up to 1"),
        ("format_version = 1\n", "", "format_version"),
    ] {
        assert!(text.contains(from), "{text}");
        let error = Recipe::parse(&text.replace(from, to), path).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn the_model_behind_a_chain_of_runs_is_found() {
    let dir = TestDir::new("train-chain");
    let mut recipe = recipe(dir.path());
    assert_eq!(start::inherited(&recipe).unwrap(), Inherited::default());
    recipe.start = Start::Model(dir.join("model"));
    for name in ["a", "b"] {
        fs::create_dir(dir.join(name)).unwrap();
        fs::write(dir.join(name).join(RECIPE_FILE), recipe.to_toml()).unwrap();
        recipe.start = Start::Run(dir.join(name));
    }
    let error = start::inherited(&recipe).unwrap_err().to_string();
    assert!(error.contains("model is missing"), "{error}");
    fs::remove_dir_all(dir.join("a")).unwrap();
    let error = start::inherited(&recipe).unwrap_err().to_string();
    assert!(error.contains("a/run.toml"), "{error}");
}

#[test]
fn runs_that_start_from_one_another_in_a_circle_are_refused() {
    let dir = TestDir::new("train-circle");
    let mut recipe = recipe(dir.path());
    for (name, other) in [("a", "b"), ("b", "a")] {
        fs::create_dir(dir.join(name)).unwrap();
        recipe.start = Start::Run(dir.join(other));
        fs::write(dir.join(name).join(RECIPE_FILE), recipe.to_toml()).unwrap();
    }
    let errors = [starting_config(&recipe).map(drop), start::inherited(&recipe).map(drop)];
    for error in errors.map(|error| error.unwrap_err().to_string()) {
        assert!(error.contains("start.run"), "{error}");
    }
}

#[test]
fn a_shard_of_another_vocabulary_is_refused() {
    let dir = TestDir::new("train-vocabulary");
    let mut recipe = recipe(dir.path());
    let tokenizer = Tokenizer::open(&recipe.data.tokenizer).unwrap();
    // The digest is the right one: only the size tells.
    let shard = dir.join("wide");
    let mut writer =
        ShardWriter::create(&shard, &tokenizer.digest(), tokenizer.vocab_size() + 1).unwrap();
    writer.add(&[1, tokenizer.vocab_size() as u32, 2]).unwrap();
    writer.finish(vec![]).unwrap();
    recipe.data.shards = vec![shard];
    let error = Run::create(&dir.join("run"), recipe, device()).unwrap_err();
    assert!(matches!(error, TrainError::Vocabulary { .. }), "{error}");
}

#[test]
fn damaged_recipes_never_panic() {
    let dir = TestDir::new("train-damaged-recipe");
    let valid = recipe(dir.path()).to_toml();
    let path = dir.join(RECIPE_FILE);
    let right = |bytes: &Vec<u8>| {
        let text = String::from_utf8_lossy(bytes);
        Recipe::parse(&text, &path).is_ok_and(|recipe| starting_config(&recipe).is_ok())
    };
    let n_right = damaged(valid.as_bytes(), 1, 1_000).filter(right).count();
    assert!((1..700).contains(&n_right), "{n_right} of 1000 are still right");
}
