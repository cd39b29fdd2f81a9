//! `serve`: address, answers, signals, busy ports.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Child;

use serde_json::Value;

use crate::home::{Finished, Home, read, signal};

/// Starts a server on a free port and reads the address that it prints.
fn start(home: &Home, arguments: &[&str]) -> (Child, String) {
    let all = [&["serve", "--port", "0"], arguments].concat();
    let mut child = home.command(&all).spawn().unwrap();
    let mut line = String::new();
    let stdout = child.stdout.take().unwrap();
    BufReader::new(stdout).read_line(&mut line).unwrap();
    (child, line.trim().to_owned())
}

fn get(address: &str, path: &str) -> String {
    let host = address.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(host).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn the_models_of_the_home_are_served_until_a_signal() {
    let home = Home::new("serve");
    home.make_model();
    std::fs::create_dir_all(home.inside("models/broken")).unwrap();
    for (name, code) in [("-TERM", 143), ("-INT", 130)] {
        let (child, address) = start(&home, &[]);
        assert!(address.starts_with("http://127.0.0.1:"), "{address}");
        let answer = get(&address, "/v1/models");
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("tiny-1"), "{answer}");
        assert!(get(&address, "/").contains("<html"));
        signal(&child, name);
        let finished = Finished::of(child).expect(code);
        assert!(finished.stderr.contains("broken"), "it is said what is left out: {finished:?}");
    }
}

#[test]
fn a_busy_port_and_a_missing_model_are_errors_with_a_hint() {
    let home = Home::new("busy-port");
    home.make_model();
    let (child, line) = start(&home, &["--json", "--model", "tiny-1"]);
    let started: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(started["models"][0], "tiny-1");
    let port = started["url"].as_str().unwrap().rsplit(':').next().unwrap();
    let error = home.run(&["serve", "--port", port, "--json"]).expect(1).json_error();
    assert!(error["message"].as_str().unwrap().contains("in use"), "{error}");
    assert!(error["hint"].as_str().unwrap().contains("another port"), "{error}");
    let error = home.run(&["serve", "--port", "0", "--model", "none", "--json"]).expect(1);
    assert!(error.json_error()["message"].as_str().unwrap().contains("there are: tiny-1"));
    let error = home.run(&["serve", "--port", "0", "--host", "0.0.0.0", "--json"]).expect(2);
    assert!(error.json_error()["message"].as_str().unwrap().contains("loopback"));
    signal(&child, "-TERM");
    Finished::of(child).expect(143);
}

#[test]
fn a_model_of_the_home_that_cannot_be_used_does_not_keep_the_others_from_answering() {
    let home = Home::new("unusable");
    home.make_model();
    let copy = |name: &str, file: &str, change: &dyn Fn(String) -> String| {
        let dir = home.inside(&format!("models/{name}"));
        std::fs::create_dir(&dir).unwrap();
        for name in testkit::test_dir::names_in(&home.inside("models/tiny-1")) {
            std::fs::copy(home.inside("models/tiny-1").join(&name), dir.join(&name)).unwrap();
        }
        let text = String::from_utf8(read(&dir.join(file))).unwrap();
        std::fs::write(dir.join(file), change(text)).unwrap();
    };
    copy("a-damaged", "tokenizer.json", &|text| text[..text.len() / 2].to_owned());
    let (short, long) =
        ("\"max_position_embeddings\": 64", "\"max_position_embeddings\": 99999999");
    copy("a-long", "config.json", &|text| text.replace(short, long));
    // A vocabulary that cannot be read is not one that is not there.
    let gguf = home.inside("models/a-vocabulary/model.gguf");
    let out = gguf.display().to_string();
    home.run(&["model", "export", "tiny-1", "--to", "gguf", "--out", &out]).expect(0);
    let (mut bytes, key) = (read(&gguf), b"tokenizer.ggml.token_type");
    let at = bytes.windows(key.len()).position(|window| window == key).unwrap() + key.len();
    // Behind the types of the list and of its values and their number, the kind of the first token.
    bytes[at + 16] = 77;
    std::fs::write(&gguf, bytes).unwrap();
    let (child, line) = start(&home, &["--json"]);
    let started: Value = serde_json::from_str(&line).unwrap_or_default();
    assert_eq!(started["models"], serde_json::json!(["tiny-1"]));
    signal(&child, "-TERM");
    let finished = Finished::of(child).expect(143);
    let warnings: Vec<&str> =
        finished.stderr.lines().filter(|line| line.contains("not served")).collect();
    for (name, reason) in [
        ("a-damaged", "tokenizer"),
        ("a-long", "context_len"),
        ("a-vocabulary", "tokenizer.ggml.token_type"),
    ] {
        let is_told = |line: &&&str| line.contains(&format!("{name:?}")) && line.contains(reason);
        let n_told = warnings.iter().filter(is_told).count();
        assert_eq!(n_told, 1, "it is said what is left out, and why: {finished:?}");
        let named = home.run(&["serve", "--port", "0", "--model", "tiny-1", name]).expect(1);
        assert_eq!(named.stdout, "", "what was asked for by name is served or refused");
    }
    std::fs::remove_dir_all(home.inside("models/tiny-1")).unwrap();
    let none = home.run(&["serve", "--port", "0", "--json"]).expect(1).json_error();
    assert!(none["message"].as_str().unwrap().contains("context_len"), "the first reason: {none}");
}
