//! `serve`: address, answers, signals, busy ports.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Child;

use serde_json::Value;

use formats::{TensorData, TensorDtype, TensorSource, write_safetensors};

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

/// Time that a process has had of processors, in hundredths of a second.
fn processor_time(child: &Child) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
    // The name may hold spaces; after it come 11 numbers, then the times in user and in kernel mode.
    let (_, numbers) = stat.rsplit_once(')').unwrap();
    let numbers: Vec<&str> = numbers.split_whitespace().collect();
    numbers[11..13].iter().map(|number| number.parse::<u64>().unwrap()).sum()
}

/// What a process that waits takes of the processor does not depend on how busy the machine is.
#[test]
fn an_idle_server_takes_no_processor_time() {
    let home = Home::new("idle");
    home.make_model();
    let (child, address) = start(&home, &["--model", "tiny-1"]);
    let body = r#"{"model": "tiny-1", "prompt": "le vent", "max_tokens": 20}"#;
    assert!(post(&address, "/v1/completions", body).starts_with("HTTP/1.1 200"));
    // Threads that wait for more work soon sleep.
    std::thread::sleep(std::time::Duration::from_millis(300));
    let before = processor_time(&child);
    std::thread::sleep(std::time::Duration::from_secs(2));
    let n_ticks = processor_time(&child) - before;
    assert!(
        n_ticks <= 2,
        "{n_ticks} hundredths of a second in two seconds: more than 1 % of a processor"
    );
    signal(&child, "-TERM");
    Finished::of(child).expect(143);
}

/// An adapter of rank 1 that changes the queries of the first layer of `tiny-1` beyond recognition.
fn make_adapter(home: &Home, name: &str) {
    let config = std::fs::read_to_string(home.inside("models/tiny-1/config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    let of = |key: &str| config[key].as_u64().unwrap() as usize;
    let (n_in, n_out) = (of("hidden_size"), of("num_attention_heads") * of("head_dim"));
    let dir = home.inside(name);
    std::fs::create_dir_all(&dir).unwrap();
    let settings = r#"{"peft_type": "LORA", "r": 1, "lora_alpha": 1}"#;
    std::fs::write(dir.join("adapter_config.json"), settings).unwrap();
    let numbers: Vec<f32> = (0..n_in.max(n_out)).map(|i| (i as f32 * 1.7).sin() * 3.0).collect();
    let factors = [("A", [1, n_in]), ("B", [n_out, 1])].map(|(factor, shape)| TensorSource {
        name: format!("base_model.model.model.layers.0.self_attn.q_proj.lora_{factor}.weight"),
        dtype: TensorDtype::F32,
        shape: shape.to_vec(),
        data: TensorData::F32(&numbers[..shape[0] * shape[1]]),
    });
    write_safetensors(&dir.join("adapter_model.safetensors"), factors).unwrap();
}

#[test]
fn adapters_are_served_beside_their_model() {
    let home = Home::new("adapters");
    home.make_model();
    make_adapter(&home, "change");
    let named = ["--model", "tiny-1", "--adapters", "changed=home/change"];
    let (child, line) = start(&home, &[&["--json"], &named[..]].concat());
    let started: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(started["models"], serde_json::json!(["tiny-1", "changed"]));
    let answer = |model: &str| {
        let body = serde_json::json!({
            "model": model, "prompt": "le vent de la mer", "max_tokens": 0, "logprobs": 0, "echo": true,
        });
        let answer = post(started["url"].as_str().unwrap(), "/v1/completions", &body.to_string());
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        let body: Value = serde_json::from_str(body).unwrap();
        body["choices"][0]["logprobs"]["token_logprobs"].clone()
    };
    let answers = (answer("tiny-1"), answer("changed"));
    assert_ne!(answers.0, answers.1);
    for (what, body) in [("unload", r#"{"model": "tiny-1"}"#), ("load", r#"{"model": "tiny-1"}"#)] {
        let changed = post(started["url"].as_str().unwrap(), &format!("/models/{what}"), body);
        assert!(changed.contains(r#""models":["tiny-1","changed"]"#), "{changed}");
    }
    assert_eq!((answer("tiny-1"), answer("changed")), answers, "they come back as they were");
    signal(&child, "-TERM");
    Finished::of(child).expect(143);
    for wrong in
        [&["--adapters", "changed=home/change"][..], &["--model", "tiny-1", "--adapters", "x"]]
    {
        home.run(&[&["serve", "--port", "0"], wrong].concat()).expect(2);
    }
    let missing =
        ["serve", "--port", "0", "--model", "tiny-1", "--adapters", "a=nowhere", "--json"];
    let error = home.run(&missing).expect(1).json_error();
    assert!(error["message"].as_str().unwrap().contains("nowhere"), "{error}");
}

/// A model of some 36 MiB in the home, whose numbers are all zero, with the tokenizer of `tiny-1`.
fn make_large_model(home: &Home, name: &str) {
    let tiny = home.inside("models/tiny-1");
    let config = std::fs::read_to_string(tiny.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    let (hidden, ffn, n_layers, head_dim) = (512, 1536, 4, 64);
    for (key, value) in [
        ("hidden_size", hidden),
        ("intermediate_size", ffn),
        ("num_hidden_layers", n_layers),
        ("num_attention_heads", 8),
        ("num_key_value_heads", 4),
        ("head_dim", head_dim),
    ] {
        config[key] = value.into();
    }
    let dir = home.inside(&format!("models/{name}"));
    std::fs::create_dir(&dir).unwrap();
    for file in testkit::test_dir::names_in(&tiny) {
        if file != "model.safetensors" {
            std::fs::copy(tiny.join(&file), dir.join(&file)).unwrap();
        }
    }
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let vocab_size = config["vocab_size"].as_u64().unwrap() as usize;
    let zeros = vec![0.0; hidden * ffn.max(vocab_size)];
    let of_layer = [
        ("input_layernorm", vec![hidden]),
        ("self_attn.q_proj", vec![8 * head_dim, hidden]),
        ("self_attn.k_proj", vec![4 * head_dim, hidden]),
        ("self_attn.v_proj", vec![4 * head_dim, hidden]),
        ("self_attn.o_proj", vec![hidden, 8 * head_dim]),
        ("post_attention_layernorm", vec![hidden]),
        ("mlp.gate_proj", vec![ffn, hidden]),
        ("mlp.up_proj", vec![ffn, hidden]),
        ("mlp.down_proj", vec![hidden, ffn]),
    ];
    let mut tensors = vec![
        ("model.embed_tokens".to_owned(), vec![vocab_size, hidden]),
        ("model.norm".to_owned(), vec![hidden]),
    ];
    for i in 0..n_layers {
        let name = |of: &str| format!("model.layers.{i}.{of}");
        tensors.extend(of_layer.iter().map(|(of, shape)| (name(of), shape.clone())));
    }
    if config["tie_word_embeddings"] == false {
        tensors.push(("lm_head".to_owned(), vec![vocab_size, hidden]));
    }
    let tensors = tensors.into_iter().map(|(name, shape)| TensorSource {
        name: format!("{name}.weight"),
        dtype: TensorDtype::F32,
        data: TensorData::F32(&zeros[..shape.iter().product()]),
        shape,
    });
    write_safetensors(&dir.join("model.safetensors"), tensors).unwrap();
}

/// Memory of a process that no file stands behind.
fn anonymous_mib(child: &Child) -> usize {
    let path = format!("/proc/{}/smaps_rollup", child.id());
    let sums = std::fs::read_to_string(path).unwrap();
    let line = sums.lines().find(|line| line.starts_with("Anonymous:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() / 1024
}

#[test]
fn a_model_is_loaded_and_unloaded_over_http_and_its_memory_given_back() {
    let home = Home::new("unload");
    home.make_model();
    let (child, address) = start(&home, &["--model", "tiny-1"]);
    // A model that came after the start.
    make_large_model(&home, "large");
    let change = |what: &str, name: &str| {
        let body = serde_json::json!({ "model": name }).to_string();
        let answer = post(&address, &format!("/models/{what}"), &body);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head[9..12].to_owned(), serde_json::from_str::<Value>(body).unwrap())
    };
    let ask = |name: &str| {
        let body = serde_json::json!({"model": name, "prompt": "le vent", "max_tokens": 8});
        post(&address, "/v1/completions", &body.to_string())[9..12].to_owned()
    };
    assert_eq!((ask("tiny-1"), ask("large")), ("200".to_owned(), "404".to_owned()));
    let before = anonymous_mib(&child);
    for _ in 0..3 {
        assert_eq!(change("load", "large").1["models"], serde_json::json!(["large"]));
        assert_eq!(ask("large"), "200");
        let loaded = anonymous_mib(&child);
        assert!(loaded >= before + 30, "{loaded} MiB with a model, {before} without");
        assert_eq!(change("unload", "large").0, "200");
        let left = anonymous_mib(&child);
        assert!(left <= before + 8, "{left} MiB left of {loaded}, {before} before");
    }
    // Names are those of the home, and of nothing beside it.
    for name in ["../models/large", "models/large", "/", "", "."] {
        assert_eq!(change("load", name).0, "404", "{name}");
    }
    std::fs::write(home.inside("models/large/tokenizer.json"), "{").unwrap();
    let (status, body) = change("load", "large");
    assert_eq!(status, "500");
    assert!(!body.to_string().contains("models/"), "no path is told: {body}");
    assert_eq!(change("unload", "tiny-1").0, "200");
    assert!(get(&address, "/models").contains(r#""status":{"value":"unloaded"}"#));
    assert!(get(&address, "/health").starts_with("HTTP/1.1 200"));
    assert_eq!((change("load", "tiny-1").0, ask("tiny-1")), ("200".to_owned(), "200".to_owned()));
    signal(&child, "-TERM");
    let finished = Finished::of(child).expect(143);
    assert!(finished.stderr.contains("not loaded"), "the log says why: {finished:?}");
}

fn post(address: &str, path: &str, body: &str) -> String {
    let host = address.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(host).unwrap();
    let n = body.len();
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {n}\r\nConnection: close\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}
