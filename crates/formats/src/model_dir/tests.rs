use std::io::Write;

use serde_json::json;

use super::*;
use crate::config::tests::tiny_config;
use crate::names::WeightName;
use crate::weights::{TensorData, TensorSource};
use testkit::failing_writer::FailingWriter;
use testkit::test_dir::TestDir;

fn lineage() -> Lineage {
    Lineage {
        run: Some("quickstart-1".to_owned()),
        licence: Some("Apache-2.0".to_owned()),
        evaluation: json!({"bits_per_byte": {"fr": 1.5}}),
        ..Lineage::default()
    }
}

fn fill(writer: &ModelDirWriter) {
    let config = tiny_config();
    let zeros = vec![0.0f32; config.vocab_size * config.hidden_dim];
    let tensors = WeightName::all(&config).into_iter().map(|name| {
        let shape = name.shape(&config);
        let n_elements: usize = shape.iter().product();
        let data = TensorData::F32(&zeros[..n_elements]);
        TensorSource { name: name.hf_name(), dtype: config.dtype.into(), shape, data }
    });
    writer.config(&config).unwrap();
    writer.weights(tensors).unwrap();
    writer.lineage(&lineage()).unwrap();
    writer.model_card("# A model\n").unwrap();
    let generation = GenerationConfig {
        bos_id: Some(1),
        eos_ids: vec![2, 3],
        temperature: Some(0.7),
        top_p: None,
    };
    writer.generation_config(&generation).unwrap();
    writer.file("tokenizer.json", |out| out.write_all(b"{}")).unwrap();
}

#[test]
fn a_model_directory_is_read_back_as_written() {
    let scratch = TestDir::new("model-round-trip");
    let dir = scratch.path().join("models/tiny");
    let writer = ModelDirWriter::begin(&dir).unwrap();
    fill(&writer);
    assert!(!dir.exists(), "nothing is visible before the commit");
    let model = writer.commit().unwrap();
    assert_eq!(model.dir(), dir);
    assert_eq!(model.config(), &tiny_config());
    assert_eq!(model.lineage(), Some(&lineage()));
    assert_eq!(model.eos_ids(), [2, 3]);
    assert_eq!(model.generation().unwrap().temperature, Some(0.7));
    assert!(model.unused_tensors().is_empty());
    assert!(model.file("tokenizer.json").is_ok());
    let error = model.file("chat_template.jinja").unwrap_err().to_string();
    assert!(error.contains("chat_template.jinja is missing"), "{error}");
}

#[test]
fn an_existing_model_is_never_overwritten() {
    let scratch = TestDir::new("model-exists");
    let dir = scratch.path().join("tiny");
    let early = ModelDirWriter::begin(&dir).unwrap();
    fill(&early);
    let late = ModelDirWriter::begin(&dir).unwrap();
    fill(&late);
    early.commit().unwrap();
    assert!(matches!(late.commit(), Err(FormatError::Exists { .. })));
    assert!(matches!(ModelDirWriter::begin(&dir), Err(FormatError::Exists { .. })));
    assert_eq!(scratch.names(), ["tiny"]);
}

#[test]
fn incomplete_models_are_not_committed_and_leave_nothing() {
    let scratch = TestDir::new("model-incomplete");
    let dir = scratch.path().join("tiny");
    let writer = ModelDirWriter::begin(&dir).unwrap();
    writer.config(&tiny_config()).unwrap();
    assert!(matches!(writer.commit(), Err(FormatError::NoWeights { .. })));
    let writer = ModelDirWriter::begin(&dir).unwrap();
    let error = writer
        .file("tokenizer.json", |inner| {
            FailingWriter { inner, remaining_bytes: 3 }.write_all(b"{\"a\": 1}")
        })
        .unwrap_err();
    assert!(error.is_disk_full(), "{error}");
    assert!(matches!(writer.file("../x", |_| Ok(())), Err(FormatError::FileName { .. })));
    drop(writer);
    assert!(scratch.names().is_empty());
}

#[test]
fn models_are_listed_and_broken_ones_say_why() {
    let scratch = TestDir::new("model-list");
    assert!(list_models(&scratch.path().join("none")).unwrap().models.is_empty());
    for name in ["b", "a"] {
        let writer = ModelDirWriter::begin(&scratch.path().join(name)).unwrap();
        fill(&writer);
        writer.commit().unwrap();
    }
    fs::create_dir(scratch.path().join("empty")).unwrap();
    fs::create_dir(scratch.path().join(".c.tmp-1-0")).unwrap();
    let newer = scratch.path().join("b").join(LINEAGE_FILE);
    fs::write(&newer, r#"{"format_version": 99}"#).unwrap();
    let list = list_models(scratch.path()).unwrap();
    assert_eq!(list.models.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["a"]);
    let broken: Vec<_> =
        list.broken.iter().map(|(name, e)| (name.as_str(), e.to_string())).collect();
    assert!(broken[0].0 == "b" && broken[0].1.contains("format_version 99"), "{broken:?}");
    assert!(
        broken[1].0 == "empty" && broken[1].1.contains("is no model: expected config.json"),
        "{broken:?}"
    );
}

#[test]
fn wrong_defaults_for_generation_are_refused_by_their_field() {
    let scratch = TestDir::new("model-generation");
    let dir = scratch.path().join("tiny");
    let writer = ModelDirWriter::begin(&dir).unwrap();
    fill(&writer);
    writer.commit().unwrap();
    let opened = |text: &str| {
        fs::write(dir.join(GENERATION_FILE), text).unwrap();
        ModelDir::open(&dir).map(|model| model.generation().cloned().unwrap())
    };
    for (text, expected) in [
        (r#"{"eos_token_id": [2, 9999]}"#, "field `eos_token_id`"),
        (r#"{"bos_token_id": -1}"#, "field `bos_token_id`"),
        (r#"{"temperature": "hot"}"#, "field `temperature`"),
        (r#"{"top_p": 1.5}"#, "field `top_p`"),
        ("[]", "not valid JSON of its kind"),
    ] {
        let error = opened(text).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains(GENERATION_FILE), "{error}");
    }
    let found = opened(r#"{"bos_token_id": 1, "eos_token_id": null, "max_length": 20}"#).unwrap();
    assert_eq!((found.bos_id, found.eos_ids, found.top_p), (Some(1), Vec::new(), None));
}

#[test]
fn a_missing_model_is_named() {
    let scratch = TestDir::new("model-missing");
    let error = ModelDir::open(&scratch.path().join("mistral")).unwrap_err().to_string();
    assert!(error.starts_with("mistral is missing from"), "{error}");
}

#[test]
fn numbers_of_sampling_count_only_where_the_file_samples() {
    let scratch = TestDir::new("generation");
    let path = scratch.path().join(GENERATION_FILE);
    for (more, expected) in [
        ("", (Some(0.7), Some(0.9))),
        (r#", "do_sample": true"#, (Some(0.7), Some(0.9))),
        (r#", "do_sample": null"#, (Some(0.7), Some(0.9))),
        (r#", "do_sample": false"#, (None, None)),
    ] {
        fs::write(&path, format!(r#"{{"temperature": 0.7, "top_p": 0.9{more}}}"#)).unwrap();
        let read = read_generation(scratch.path(), 512).unwrap().unwrap();
        assert_eq!((read.temperature, read.top_p), expected, "{more}");
    }
}
