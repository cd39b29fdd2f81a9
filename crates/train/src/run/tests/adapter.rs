//! Runs that train an adapter beside a model.

use formats::WeightName;
use formats::adapter::Adapter;
use formats::checkpoint::{ADAPTER_FILE, MODEL_FILE};
use formats::model_dir::{Lineage, ModelDir, read_lineage};
use model::{AdapterSettings, Decoder, LoadedAdapter, ModelConfig, Workspace};
use tensor::DType;

use super::resume::{recipe_from_model, stop_at, whole_and_part};
use super::*;
use crate::export::write_adapter;
use crate::recipe::{AdaptedMatrix, AdapterRecipe};

/// A recipe of an adapter of an odd rank beside the model in the folder `model`.
fn adapter_recipe(dir: &Path) -> Recipe {
    let recipe = recipe_from_model(dir);
    let adapter = "rank = 3\nalpha = 7.5\n";
    Recipe { adapter: Some(toml::from_str(adapter).unwrap()), ..recipe }
}

#[test]
fn a_stopped_and_resumed_run_of_an_adapter_equals_an_uninterrupted_one() {
    let dir = TestDir::new("train-adapter-resume");
    let recipe = adapter_recipe(dir.path());
    let (whole, part) = whole_and_part(&dir, &recipe);
    let mut second = Run::resume(&part, device()).unwrap();
    assert_eq!(second.step(), 3);
    assert_eq!(second.train(stop_at(6)).unwrap(), Outcome::Stopped);
    drop(second);
    let mut third = Run::resume(&part, device()).unwrap();
    assert_eq!(third.train(|_| RunControl::Continue).unwrap(), Outcome::Done);
    assert_eq!(fingerprint(&third), fingerprint(&whole));
    let metrics = |run: &Run| {
        let text = fs::read_to_string(run.dir().join(METRICS_FILE)).unwrap();
        let line = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap();
        let numbers = |line: serde_json::Value| {
            ["loss", "grad_norm", "validation_bits_per_byte"].map(|key| line[key].as_f64())
        };
        text.lines().map(|text| numbers(line(text))).collect::<Vec<_>>()
    };
    assert_eq!(metrics(&third), metrics(&whole));
    let [first, last] = [0, 7].map(|step| metrics(&whole)[step][0].unwrap());
    assert!(last < first - 0.1, "it learns: {first}, then {last}");
    // A checkpoint holds the adapter alone.
    let checkpoint = checkpoint::latest(&part).unwrap().unwrap();
    assert!(!checkpoint.dir().join(MODEL_FILE).exists());
    let n_bytes = fs::metadata(checkpoint.dir().join(ADAPTER_FILE)).unwrap().len();
    let settings = recipe.adapter.as_ref().unwrap().settings();
    let tensors = 4 * settings.n_parameters(whole.trained().config());
    assert!((tensors..tensors + 4096).contains(&n_bytes), "{n_bytes} for {tensors}");
}

/// Logits of the model of a recipe with an adapter.
fn logits(
    recipe: &Recipe,
    adapter: impl Fn(&Device, &ModelConfig, DType) -> LoadedAdapter,
) -> Vec<f32> {
    let Start::Model(dir) = &recipe.start else { panic!("{:?}", recipe.start) };
    let (device, model) = (device(), ModelDir::open(dir).unwrap());
    let config = ModelConfig::new(model.config().clone()).unwrap();
    let decoder = Decoder::load(&device, &config, DType::Bf16, model.weights(), None).unwrap();
    let adapter = adapter(&device, &config, DType::Bf16);
    let mut workspace = Workspace::for_decoder(&decoder, 20);
    let ids: Vec<u32> = (0..20).map(|i| i * 11 % 280).collect();
    decoder.adapted_logits(&device, &ids, &[0, 20], Some(&adapter), &mut workspace)
}

#[test]
fn an_adapter_that_was_written_computes_what_was_trained() {
    let dir = TestDir::new("train-adapter-export");
    let recipe = adapter_recipe(dir.path());
    let matrices = vec![AdaptedMatrix::Down, AdaptedMatrix::Key, AdaptedMatrix::Value];
    let some = AdapterRecipe { matrices, ..recipe.adapter.clone().unwrap() };
    for (name, adapter) in [("all", recipe.adapter.clone().unwrap()), ("some", some)] {
        let recipe = Recipe { adapter: Some(adapter), ..recipe.clone() };
        let mut run = Run::create(&dir.join(name), recipe.clone(), device()).unwrap();
        run.train(|_| RunControl::Continue).unwrap();
        let trained = run.trained();
        let Trained::Adapter(factors) = &*trained else { panic!("an adapter") };
        let out = dir.join(&format!("{name}-adapter"));
        let lineage = Lineage { run: Some(name.to_owned()), ..Lineage::default() };
        let base = dir.join("model");
        let written = write_adapter(&out, factors, &base, lineage.clone()).unwrap();
        assert_eq!(written.scaling(), 2.5);
        assert_eq!(read_lineage(&out).unwrap(), Some(lineage));
        let mut names: Vec<WeightName> = factors.names().collect();
        names.sort();
        assert_eq!(written.names().collect::<Vec<_>>(), names);
        for name in names {
            let pair = written.pair(name, factors.config()).unwrap().unwrap();
            assert_eq!(pair, factors.pair(name), "{name:?}");
        }
        let as_trained =
            logits(&recipe, |device, _, dtype| LoadedAdapter::trainable(device, dtype, factors));
        let as_written = logits(&recipe, |device, config, dtype| {
            let adapter = Adapter::open(&out, config, None).unwrap();
            LoadedAdapter::load(device, config, dtype, &adapter).unwrap()
        });
        assert_eq!(as_written, as_trained, "{name}");
        let again = write_adapter(&out, factors, &base, Lineage::default()).unwrap_err();
        assert!(again.to_string().contains("exists"), "{again}");
    }
}

#[test]
fn a_run_of_an_adapter_is_refused_beside_another_model() {
    let dir = TestDir::new("train-adapter-other");
    let recipe = adapter_recipe(dir.path());
    let (_, part) = whole_and_part(&dir, &recipe);
    let (model, other) = (dir.join("model"), dir.join("other"));
    fs::rename(&model, dir.join("away")).unwrap();
    let error = Run::resume(&part, device()).unwrap_err().to_string();
    assert!(error.contains("model is missing"), "{error}");
    // Other weights of the same shapes, and another configuration of the same weights.
    fs::create_dir(&other).unwrap();
    recipe_from_model(&other);
    fs::rename(other.join("model"), &model).unwrap();
    let mut weights = fs::read(model.join("model.safetensors")).unwrap();
    *weights.last_mut().unwrap() ^= 1;
    fs::write(model.join("model.safetensors"), weights).unwrap();
    let error = Run::resume(&part, device()).unwrap_err().to_string();
    assert!(error.contains("model has changed: its digest is"), "{error}");
    fs::remove_dir_all(&model).unwrap();
    fs::rename(dir.join("away"), &model).unwrap();
    let path = model.join("config.json");
    let text = fs::read_to_string(&path).unwrap();
    let changed = text.replace("\"sliding_window\": 9", "\"sliding_window\": 5");
    assert_ne!(changed, text);
    fs::write(&path, changed).unwrap();
    let error = Run::resume(&part, device()).unwrap_err().to_string();
    assert!(error.contains("configuration of start.model is"), "{error}");
    fs::write(&path, text).unwrap();
    let next = Recipe { start: Start::Run(part.clone()), adapter: None, ..recipe };
    let error = Run::create(&dir.join("next"), next, device()).unwrap_err().to_string();
    assert!(error.contains("`start.run` is") && error.contains("model merge"), "{error}");
    assert_eq!(Run::resume(&part, device()).unwrap().step(), 3);
}

#[test]
fn recipes_of_adapters_that_cannot_be_trained_are_refused_by_key() {
    let dir = TestDir::new("train-adapter-recipe");
    let recipe = adapter_recipe(dir.path());
    let text = recipe.to_toml();
    let path = Path::new("run.toml");
    assert_eq!(Recipe::parse(&text, path).unwrap(), recipe);
    assert_eq!(
        recipe.adapter.as_ref().unwrap().settings(),
        AdapterSettings { alpha: 7.5, ..AdapterSettings::of_rank(3) }
    );
    let refused = |from: &str, to: &str| {
        assert!(text.contains(from), "{text}");
        Recipe::parse(&text.replace(from, to), path).unwrap_err().to_string()
    };
    let error = refused("rank = 3", "rank = 300");
    assert_eq!(error, "recipe key `adapter.rank` is 300, expected 1 to 256");
    let error = refused("alpha = 7.5", "alpha = 0.0");
    assert!(error.starts_with("recipe key `adapter.alpha` is 0, expected a number"), "{error}");
    let error = refused("\"query\", ", "\"key\", ");
    assert!(error.starts_with("recipe key `adapter.matrices` is"), "{error}");
    assert!(refused("\"query\", ", "\"norm\", ").contains("unknown variant `norm`"));
    let random = Recipe { start: super::recipe(&dir.join("other")).start, ..recipe };
    let error = random.check().unwrap_err().to_string();
    assert!(error.starts_with("recipe key `start` is random weights, with an adapter"), "{error}");
}
