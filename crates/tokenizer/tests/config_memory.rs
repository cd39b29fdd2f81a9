//! What hostile configurations take. A test of its own, since the peak of memory is that of the process.

#![allow(clippy::unwrap_used, reason = "tests")]
#![cfg(target_os = "linux")]

use std::fs;
use testkit::test_dir::TestDir;
use tokenizer::{ChatTemplate, Tokenizer};

fn peak_mib() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() / 1024
}

/// A tree of JSON takes 16 times the bytes that a list of numbers has in the file, and more where it grows.
#[test]
fn what_is_not_understood_takes_no_more_memory_than_its_file() {
    let folder = TestDir::new("config-memory");
    let list = |n_bytes: usize| format!("[0{}]", ",0".repeat(n_bytes / 2 - 2));
    let config = format!("{{\"chat_template\": \"a\", \"other\": {}}}", list((4 << 20) - 100));
    fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
    let before = peak_mib();
    let source = ChatTemplate::source_in(folder.path()).unwrap();
    assert_eq!(source.as_deref(), Some("a"));
    assert!(peak_mib() - before < 20, "{} MiB above {before}", peak_mib() - before);
    let list = list(20 << 20);
    for (part, model_part) in [(&*list, "null"), ("null", &list)] {
        let file = format!(
            r#"{{"version": "1.0", "normalizer": {part},
                "model": {{"type": "BPE", "dropout": {model_part}, "vocab": {{}}, "merges": []}}}}"#
        );
        let before = peak_mib();
        let error = Tokenizer::from_json(file.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("expected at most 1048576"), "{error}");
        assert!(peak_mib() - before < 20, "{} MiB above {before}", peak_mib() - before);
    }
}
