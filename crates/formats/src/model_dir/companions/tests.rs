use std::collections::BTreeSet;

use testkit::golden::workspace_root;
use testkit::test_dir::TestDir;

use super::*;
use crate::convert::{
    Quantiser, write_adapted, write_gguf_file, write_hugging_face, write_native, write_quantised,
};
use crate::dtype::TensorDtype;
use crate::names::WeightName;

/// Keeps every number.
struct Keep;

impl Quantiser for Keep {
    fn dtype(&self, _: WeightName, _: usize) -> Option<TensorDtype> {
        None
    }

    fn encode(&self, dtype: TensorDtype, _: &[f32], _: &mut [u8]) {
        unreachable!("nothing becomes {}", dtype.name());
    }
}

/// A copy of a golden model with other files beside it.
fn model_with(dir: &Path, files: &[(&str, &str)]) -> ModelDir {
    fs::create_dir(dir).unwrap();
    let golden = workspace_root().join("golden/architectures/mistral/hf");
    for name in ["config.json", "model.safetensors"] {
        fs::copy(golden.join(name), dir.join(name)).unwrap();
    }
    for (name, text) in files {
        fs::write(dir.join(name), text).unwrap();
    }
    ModelDir::open(dir).unwrap()
}

#[test]
fn a_model_is_copied_in_the_layout_that_is_read_and_keeps_its_licence() {
    let scratch = TestDir::new("convert-copy");
    let both = scratch.path().join("both");
    fs::create_dir(&both).unwrap();
    let architectures = workspace_root().join("golden/architectures/mistral");
    for file in ["hf/config.json", "hf/model.safetensors", "native/params.json"] {
        let name = Path::new(file).file_name().unwrap();
        fs::copy(architectures.join(file), both.join(name)).unwrap();
    }
    fs::copy(
        architectures.join("native/consolidated.safetensors"),
        both.join("consolidated.safetensors"),
    )
    .unwrap();
    fs::write(both.join("README.md"), "---\nlicense: apache-2.0\n---\n").unwrap();
    fs::write(both.join("tokenizer.model.v11"), "pieces").unwrap();
    fs::write(both.join("notes.txt"), "not of the model").unwrap();
    let model = ModelDir::open(&both).unwrap();
    let files = model.files().unwrap();
    assert!(files.contains(&both.join("config.json")) && !files.contains(&both.join("notes.txt")));
    assert!(!files.contains(&both.join("params.json")), "{files:?}");
    let written = fs::metadata(both.join("model.safetensors")).unwrap().modified().unwrap();
    assert_eq!(model.modified().unwrap(), written);
    let copy = copy_model(&model, &scratch.path().join("copy")).unwrap();
    assert!(copy.files().unwrap().contains(&copy.dir().join("galerne.json")));
    let mut names: Vec<String> = fs::read_dir(copy.dir())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let of_weights = ["README.md", "config.json", "galerne.json", "model.safetensors"];
    assert_eq!(names, [&of_weights[..], &["tokenizer.model.v11"]].concat());
    assert_eq!(copy.lineage().unwrap().licence.as_deref(), Some("apache-2.0"));
    let weights = |dir: &Path| fs::read(dir.join("model.safetensors")).unwrap();
    assert!(weights(copy.dir()) == weights(&architectures.join("hf")));
    let again = copy_model(&copy, copy.dir());
    assert!(matches!(again, Err(FormatError::Exists { .. })));
}

#[test]
fn companions_are_not_fetched_through_links_out_of_the_folder() {
    use std::os::unix::fs::symlink;
    let scratch = TestDir::new("convert-links");
    fs::write(scratch.join("key"), "secret").unwrap();
    let snapshot = scratch.join("models--a--b/snapshots/1");
    let blobs = scratch.join("models--a--b/blobs");
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir(&blobs).unwrap();
    let source = workspace_root().join("golden/architectures/mistral/hf");
    for name in ["config.json", "model.safetensors"] {
        fs::copy(source.join(name), blobs.join(name)).unwrap();
        symlink(Path::new("../../blobs").join(name), snapshot.join(name)).unwrap();
    }
    fs::write(snapshot.join("README.md"), "read").unwrap();
    symlink("README.md", snapshot.join("MODEL_CARD.md")).unwrap();
    let model = ModelDir::open(&snapshot).unwrap();
    let copy = copy_model(&model, &scratch.join("copy")).unwrap();
    assert_eq!(fs::read_to_string(copy.dir().join("MODEL_CARD.md")).unwrap(), "read");

    // A link, and one of a blob to elsewhere.
    symlink("../../key", blobs.join("key")).unwrap();
    for target in ["../../../key", "../../blobs/key"] {
        let licence = snapshot.join("LICENSE");
        symlink(target, &licence).unwrap();
        let copied = copy_model(&model, &scratch.join("out"));
        let converted = write_native(&model, &scratch.join("out"), &[]);
        for error in [copied.unwrap_err(), converted.unwrap_err()] {
            let error = error.to_string();
            assert!(error.contains("LICENSE") && error.contains("key"), "{error}");
        }
        assert!(!scratch.join("out").exists());
        fs::remove_file(licence).unwrap();
    }
}

/// The scores of an original stood in the card of its quantised and merged models.
#[test]
fn what_was_measured_stays_with_the_numbers_that_it_was_measured_of() {
    let scratch = TestDir::new("convert-lineage");
    let lineage = r#"{"format_version": 1, "run": "quickstart-1", "licence": "mit", "source": "hf:a/b@c",
        "evaluation": {"bits_per_byte": 1.5}, "energy": {"joules": 3}}"#;
    let original = model_with(
        &scratch.path().join("original"),
        &[("galerne.json", lineage), ("MODEL_CARD.md", "# Scores\n"), ("tekken.json", "{}")],
    );
    let parent =
        Lineage { parent: Some("original".to_owned()), ..original.lineage().unwrap().clone() };
    let out = |name: &str| scratch.path().join(name);
    for same in [
        write_native(&original, &out("native"), &[]).unwrap(),
        write_hugging_face(&original, &out("hf"), &[]).unwrap(),
    ] {
        assert_eq!(same.lineage(), Some(&parent));
        assert!(same.file("MODEL_CARD.md").is_ok() && same.file("tekken.json").is_ok());
    }
    let unmeasured = Lineage { evaluation: serde_json::Value::Null, energy: None, ..parent };
    let quantised = write_quantised(&original, &out("quantised"), &Keep, None).unwrap();
    let change = |_: WeightName, _: usize, _: &mut [f32]| {};
    let merged =
        write_adapted(&original, &out("merged"), "lora", &BTreeSet::new(), &change, &[]).unwrap();
    let adapter = Some("lora".to_owned());
    for (changed, expected) in
        [(quantised, unmeasured.clone()), (merged, Lineage { adapter, ..unmeasured })]
    {
        assert_eq!(changed.lineage(), Some(&expected));
        assert!(changed.file("MODEL_CARD.md").is_err() && changed.file("tekken.json").is_ok());
    }
}

#[test]
fn numbers_that_are_no_numbers_after_a_merge_are_refused() {
    let scratch = TestDir::new("merge-finite");
    let original = model_with(&scratch.path().join("original"), &[]);
    let out = scratch.path().join("out");
    let changed: BTreeSet<_> = [WeightName::Head].into();
    let change = |_: WeightName, first: usize, rows: &mut [f32]| {
        // Finite, and beyond bf16.
        rows[first % 2] = f32::MAX;
    };
    let error = write_adapted(&original, &out, "lora", &changed, &change, &[]).unwrap_err();
    assert!(error.to_string().contains("`lm_head.weight`"), "{error}");
    assert!(error.to_string().contains("not finite"), "{error}");
    assert_eq!(scratch.names(), ["original"], "nothing is left behind");
}

/// The licence that only the metadata of a GGUF file stated was lost.
#[test]
fn a_licence_goes_every_way_with_the_weights() {
    let scratch = TestDir::new("convert-licence");
    let readme = ("README.md", "---\nlicense: mit\n---\n");
    let original = model_with(&scratch.path().join("original"), &[readme]);
    let out = |name: &str| scratch.path().join(name);
    let path = out("bare.gguf");
    write_gguf_file(&original, &path, None).unwrap();
    let bare = ModelDir::open(&path).unwrap();
    let licence = |model: &ModelDir| licence_of(model).unwrap().map(|licence| licence.name);
    assert_eq!(licence(&bare).as_deref(), Some("mit"));
    let change = |_: WeightName, _: usize, _: &mut [f32]| {};
    for model in [
        write_hugging_face(&bare, &out("hf"), &[]).unwrap(),
        write_native(&bare, &out("native"), &[]).unwrap(),
        write_quantised(&bare, &out("quantised"), &Keep, None).unwrap(),
        write_adapted(&bare, &out("merged"), "lora", &BTreeSet::new(), &change, &[]).unwrap(),
    ] {
        let stated = model.lineage().and_then(|lineage| lineage.licence.as_deref());
        assert_eq!(stated, Some("mit"), "{}", model.dir().display());
    }
    let again = out("again.gguf");
    write_gguf_file(&bare, &again, None).unwrap();
    assert_eq!(licence(&ModelDir::open(&again).unwrap()).as_deref(), Some("mit"));
}
