use super::*;
use crate::dtype::TensorDtype;
use crate::weights::TensorData;
use serde_json::json;
use std::process::Command;
use testkit::failing_writer::FailingWriter;
use testkit::test_dir::{TestDir, names_in};

fn tensor(values: &[f32]) -> [TensorSource<'_>; 1] {
    let (name, shape) = ("x".to_owned(), vec![values.len()]);
    [TensorSource { name, dtype: TensorDtype::F32, shape, data: TensorData::F32(values) }]
}

fn begin(run_dir: &Path, step: u64, value: f32) -> CheckpointWriter {
    let mut writer = CheckpointWriter::begin(run_dir, step).unwrap();
    writer.tensors(MODEL_FILE, tensor(&[value])).unwrap();
    writer.tensors(OPTIMIZER_FILE, tensor(&[value * 2.0])).unwrap();
    writer.state(&json!({"value": value})).unwrap();
    writer
}

fn save(run_dir: &Path, step: u64, value: f32) -> PathBuf {
    begin(run_dir, step, value).commit().unwrap()
}

#[test]
fn a_checkpoint_is_read_back_as_written() {
    let scratch = TestDir::new("checkpoint");
    assert!(latest(scratch.path()).unwrap().is_none());
    assert!(latest_state(scratch.path()).unwrap().is_none());
    save(scratch.path(), 10, 1.0);
    let dir = save(scratch.path(), 20, 2.0);
    assert!(dir.ends_with("checkpoints/step-00000020"));
    let checkpoint = latest(scratch.path()).unwrap().unwrap();
    assert_eq!((checkpoint.step(), &checkpoint.state().state), (20, &json!({"value": 2.0})));
    assert_eq!(latest_state(scratch.path()).unwrap().as_ref(), Some(checkpoint.state()));
    assert_eq!(checkpoint.model().unwrap().get("x").unwrap().to_f32(), [2.0]);
    assert_eq!(checkpoint.optimizer().unwrap().get("x").unwrap().to_f32(), [4.0]);
    assert_eq!(
        names_in(&checkpoints_dir(scratch.path())),
        ["LATEST", "step-00000010", "step-00000020"]
    );
}

#[test]
fn the_program_sha256sum_accepts_the_sums() {
    let scratch = TestDir::new("sha256sum");
    let dir = save(scratch.path(), 1, 1.0);
    let output = Command::new("sha256sum").args(["-c", SUMS_FILE]).current_dir(&dir).output();
    match output {
        Ok(output) => assert!(output.status.success(), "{output:?}"),
        // The sum of three bytes is known without the program.
        Err(_) => fs::write(dir.join("abc"), "abc").unwrap(),
    }
    fs::write(dir.join("abc"), "abc").unwrap();
    let (sum, n_bytes) = sha256_of_file(&dir.join("abc")).unwrap();
    assert_eq!(sum, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_eq!(n_bytes, 3);
}

#[test]
fn a_checkpoint_holds_a_model_or_an_adapter() {
    let scratch = TestDir::new("checkpoint-adapter");
    let write = |step, files: &[&str]| {
        let mut writer = CheckpointWriter::begin(scratch.path(), step).unwrap();
        files.iter().for_each(|name| writer.tensors(name, tensor(&[3.0])).unwrap());
        writer.state(&json!({})).unwrap();
        writer.commit()
    };
    write(1, &[ADAPTER_FILE, OPTIMIZER_FILE]).unwrap();
    let checkpoint = latest(scratch.path()).unwrap().unwrap();
    assert_eq!(checkpoint.adapter().unwrap().get("x").unwrap().to_f32(), [3.0]);
    assert!(checkpoint.model().is_err());
    let either = format!("{MODEL_FILE} or {ADAPTER_FILE}");
    let cases = [([OPTIMIZER_FILE], either.as_str()), ([ADAPTER_FILE], OPTIMIZER_FILE)];
    for (files, missing) in cases {
        let error = write(2, &files).unwrap_err();
        assert!(
            matches!(&error, FormatError::FileMissing { name, .. } if name == missing),
            "{error}"
        );
    }
}

#[test]
fn every_kind_of_damage_names_the_file() {
    let scratch = TestDir::new("damage");
    let dir = save(scratch.path(), 5, 1.0);
    for name in [MODEL_FILE, OPTIMIZER_FILE, STATE_FILE] {
        let path = dir.join(name);
        let whole = fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        for damaged in [&[][..], &whole[..whole.len() - 1], &flipped] {
            fs::write(&path, damaged).unwrap();
            let error = latest(scratch.path()).unwrap_err();
            assert!(matches!(error, FormatError::Damaged { .. }), "{error}");
            assert!(error.to_string().contains(name), "{error}");
            let is_state = name == STATE_FILE;
            assert_eq!(latest_state(scratch.path()).is_err(), is_state, "only its own damage");
        }
        fs::remove_file(&path).unwrap();
        let error = latest(scratch.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("{name} is missing")), "{error}");
        fs::write(&path, &whole).unwrap();
    }
    let sums = fs::read_to_string(dir.join(SUMS_FILE)).unwrap();
    for (text, expected) in [
        ("", "is missing"),
        ("hello", "line 1"),
        (&sums[..sums.len() - 30], "line 3"),
        (&sums[..sums.len() - 4], "state.json is missing"),
        (&sums.replace("state.json", "../state.json"), "line 3"),
    ] {
        fs::write(dir.join(SUMS_FILE), text).unwrap();
        let error = latest(scratch.path()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    fs::remove_file(dir.join(SUMS_FILE)).unwrap();
    let error = latest(scratch.path()).unwrap_err().to_string();
    assert!(error.contains("SHA256SUMS is missing"), "{error}");
}

#[test]
fn a_damaged_latest_is_an_error_and_the_list_shows_the_rest() {
    let scratch = TestDir::new("latest");
    save(scratch.path(), 5, 1.0);
    let path = checkpoints_dir(scratch.path()).join(LATEST_FILE);
    for text in ["", "step-5\n", "../../etc\n", "step-00000005\nmore"] {
        fs::write(&path, text).unwrap();
        let error = latest(scratch.path()).unwrap_err().to_string();
        assert!(error.contains("LATEST"), "{error}");
    }
    fs::write(&path, "step-00000006\n").unwrap();
    assert!(latest(scratch.path()).unwrap_err().to_string().contains("step-00000006"));
    assert_eq!(list(scratch.path()).unwrap().len(), 1);
    assert!(list(&scratch.path().join("none")).unwrap().is_empty());
}

#[test]
fn failing_writes_leave_the_checkpoint_before_usable() {
    let scratch = TestDir::new("failing");
    save(scratch.path(), 10, 1.0);
    for remaining_bytes in [0, 1, 8, 100] {
        let mut writer = begin(scratch.path(), 20, 2.0);
        let error = writer.file("extra.bin", |inner| {
            FailingWriter { inner, remaining_bytes }.write_all(&[0; 200])
        });
        assert!(error.unwrap_err().is_disk_full());
        let write = Box::new(move |inner: &mut dyn Write| {
            FailingWriter { inner, remaining_bytes }.write_all(&[0; 200])
        });
        let [mut streamed] = tensor(&[0.0; 50]);
        streamed.data = TensorData::Stream(write);
        let error = writer.tensors("more.safetensors", [streamed]);
        assert!(error.unwrap_err().is_disk_full());
        drop(writer);
        assert_eq!(latest(scratch.path()).unwrap().unwrap().step(), 10);
        assert_eq!(names_in(&checkpoints_dir(scratch.path())), ["LATEST", "step-00000010"]);
    }
}

#[test]
fn an_incomplete_or_misnamed_checkpoint_is_refused() {
    let scratch = TestDir::new("incomplete");
    let mut writer = CheckpointWriter::begin(scratch.path(), 1).unwrap();
    writer.tensors(MODEL_FILE, tensor(&[1.0])).unwrap();
    for name in [MODEL_FILE, SUMS_FILE, "", "..", "a/b", "a\nb"] {
        let error = writer.file(name, |_| Ok(())).unwrap_err();
        assert!(matches!(error, FormatError::FileName { .. }), "{name}: {error}");
    }
    let error = writer.commit().unwrap_err().to_string();
    assert!(error.contains("optimizer.safetensors is missing"), "{error}");
    assert!(names_in(&checkpoints_dir(scratch.path())).is_empty());
}

#[test]
fn a_killed_writer_leaves_only_what_the_next_start_removes() {
    let scratch = TestDir::new("killed");
    save(scratch.path(), 10, 1.0);
    // A process that dies runs no destructor.
    std::mem::forget(begin(scratch.path(), 20, 2.0));
    assert_eq!(latest(scratch.path()).unwrap().unwrap().step(), 10);
    assert_eq!(list(scratch.path()).unwrap().len(), 1, "the leftover is no checkpoint");
    assert_eq!(clean_leftovers(scratch.path()).unwrap().len(), 1);
    assert_eq!(names_in(&checkpoints_dir(scratch.path())), ["LATEST", "step-00000010"]);
}

#[test]
fn a_step_reached_again_replaces_its_checkpoint() {
    let scratch = TestDir::new("again");
    save(scratch.path(), 10, 1.0);
    save(scratch.path(), 10, 3.0);
    let checkpoint = latest(scratch.path()).unwrap().unwrap();
    assert_eq!(checkpoint.model().unwrap().get("x").unwrap().to_f32(), [3.0]);
    assert_eq!(names_in(&checkpoints_dir(scratch.path())), ["LATEST", "step-00000010"]);
}

#[test]
fn pruning_keeps_the_newest_and_never_removes_the_latest() {
    let scratch = TestDir::new("prune");
    for step in [10, 20, 30, 40] {
        save(scratch.path(), step, 1.0);
    }
    assert_eq!(prune(scratch.path(), 3).unwrap().len(), 1);
    let latest_path = checkpoints_dir(scratch.path()).join(LATEST_FILE);
    fs::write(&latest_path, "step-00000020\n").unwrap();
    assert_eq!(prune(scratch.path(), 1).unwrap().len(), 1);
    let steps: Vec<u64> = list(scratch.path()).unwrap().into_iter().map(|(step, _)| step).collect();
    assert_eq!(steps, [20, 40]);
    assert_eq!(prune(scratch.path(), 0).unwrap().len(), 1);
    assert_eq!(latest(scratch.path()).unwrap().unwrap().step(), 20);
}

#[test]
fn a_newer_state_is_refused_by_version() {
    let scratch = TestDir::new("newer");
    let mut writer = CheckpointWriter::begin(scratch.path(), 1).unwrap();
    writer.tensors(MODEL_FILE, tensor(&[1.0])).unwrap();
    writer.tensors(OPTIMIZER_FILE, tensor(&[1.0])).unwrap();
    writer.file(STATE_FILE, |out| out.write_all(br#"{"format_version": 3, "step": 1}"#)).unwrap();
    writer.commit().unwrap();
    let error = latest(scratch.path()).unwrap_err().to_string();
    assert!(error.contains("format_version 3") && error.contains("up to 2"), "{error}");
    assert_eq!(latest_state(scratch.path()).unwrap_err().to_string(), error);
}

#[test]
fn a_checkpoints_folder_that_is_a_link_is_refused() {
    let scratch = TestDir::new("checkpoints-link");
    let (run, other) = (scratch.path().join("run"), scratch.path().join("other"));
    fs::create_dir(&run).unwrap();
    fs::create_dir(&other).unwrap();
    fs::write(other.join(".LATEST.tmp-1-0"), "being written").unwrap();
    std::os::unix::fs::symlink(&other, checkpoints_dir(&run)).unwrap();
    assert!(clean_leftovers(&run).is_err() && list(&run).is_err());
    assert!(CheckpointWriter::begin(&run, 1).is_err());
    assert_eq!(fs::read_dir(&other).unwrap().count(), 1);
}
