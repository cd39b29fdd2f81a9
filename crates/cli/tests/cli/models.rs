//! `model import`, `export` and `rm`.

use std::fs;
use std::path::Path;

use testkit::golden::workspace_root;
use testkit::test_dir::names_in;

use crate::home::{Home, read};

fn golden(name: &str) -> String {
    workspace_root().join("golden/architectures").join(name).display().to_string()
}

fn first_tokens(home: &Home, model: &str) -> serde_json::Value {
    let arguments = ["generate", "--model", model, "--token-ids", "1,5,9", "--max-tokens", "12"];
    let greedy = ["--temperature", "0", "--json"];
    home.run(&[&arguments[..], &greedy].concat()).expect(0).json()["token_ids"].clone()
}

#[test]
fn a_model_leaves_in_every_layout_and_says_the_same_tokens() {
    let home = Home::new("layouts");
    let imported = home
        .run(&["model", "import", &golden("mixtral/hf"), "--name", "tiny", "--json"])
        .expect(0)
        .json();
    assert_eq!(imported["licence"], serde_json::Value::Null);
    let expected = first_tokens(&home, "tiny");
    assert!(expected.as_array().unwrap().len() >= 4, "{expected}");
    for (layout, out) in [("native", "./native"), ("gguf", "./tiny.gguf"), ("hf", "./again")] {
        home.run(&["model", "export", "tiny", "--to", layout, "--out", out]).expect(0);
        assert_eq!(first_tokens(&home, out), expected, "{layout}");
        let error = home.run(&["model", "export", "tiny", "--to", layout, "--out", out]).expect(1);
        assert!(error.stderr.contains("already exists"), "{}", error.stderr);
    }
    let error = home.run(&["model", "export", "tiny", "--to", "gguf", "--out", "./x"]).expect(2);
    assert!(error.stderr.contains(".gguf"), "{}", error.stderr);

    home.run(&["model", "import", "./tiny.gguf", "--name", "from-gguf"]).expect(0);
    assert_eq!(first_tokens(&home, "from-gguf"), expected);
    let shown = home.run(&["model", "inspect", "from-gguf"]).expect(0).stdout;
    assert!(shown.contains("4, 2 for a token") && shown.contains("bf16"), "{shown}");
    home.run(&["model", "rm", "tiny"]).expect(0);
    assert_eq!(names_in(&home.inside("models")), ["from-gguf"]);
    home.run(&["model", "rm", "tiny"]).expect(1);
    home.run(&["model", "rm", "./native"]).expect(2);
    assert!(home.path("native").is_dir(), "a path is never removed");
}

#[test]
fn models_of_every_layout_show_their_files() {
    let home = Home::new("inspect-layouts");
    for (layout, expected) in [
        ("hf", &["config.json", "model.safetensors"][..]),
        ("native", &["consolidated.safetensors", "params.json"]),
        ("gguf", &["model.gguf"]),
        ("gguf/model.gguf", &["model.gguf"]),
    ] {
        let model = golden(&format!("mistral/{layout}"));
        let shown = home.run(&["model", "inspect", &model, "--json"]).expect(0).json();
        let files = shown["files"].as_array().unwrap().iter();
        let names: Vec<&str> = files.map(|file| file["name"].as_str().unwrap()).collect();
        assert_eq!(names, expected, "{layout}");
        assert!(shown["files"][0]["bytes"].as_u64().unwrap() > 0, "{layout}");
        let text = home.run(&["model", "inspect", &model]).expect(0).stdout;
        assert!(text.contains(expected[0]), "{text}");
    }
}

#[test]
fn the_licence_is_shown_at_import_and_limits_are_a_warning() {
    let home = Home::new("licence");
    let source = home.path("source");
    fs::create_dir(&source).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(Path::new(&golden("mistral/hf")).join(file), source.join(file)).unwrap();
    }
    fs::write(source.join("README.md"), "---\nlicense: other\nlicense_name: mrl\n---\n").unwrap();
    let finished = home.run(&["model", "import", "./source"]).expect(0);
    assert!(finished.stderr.contains("warning: the licence, mrl, is for research only"));
    assert!(finished.stdout.contains("no published model"), "{}", finished.stdout);
    let shown = home.run(&["model", "inspect", "source", "--json"]).expect(0).json();
    assert_eq!(shown["licence"], "mrl");
    let again = home.run(&["model", "import", "./source"]).expect(1);
    assert!(again.stderr.contains("exists already"), "{}", again.stderr);
}

#[test]
fn what_is_no_model_is_not_imported() {
    let home = Home::new("no-model");
    fs::create_dir(home.path("empty")).unwrap();
    fs::write(home.path("page.gguf"), "<html>not found</html>").unwrap();
    fs::create_dir(home.path("pickle")).unwrap();
    fs::copy(Path::new(&golden("mistral/hf")).join("config.json"), home.path("pickle/config.json"))
        .unwrap();
    fs::write(home.path("pickle/pytorch_model.bin"), "x").unwrap();
    for (source, expected) in [
        ("./empty", "is no model"),
        ("./page.gguf", "field `magic`"),
        ("./pickle", "pickle"),
        ("./missing", "missing"),
    ] {
        let error = home.run(&["model", "import", source]).expect(1).stderr;
        assert!(error.contains(expected), "{source}: {error}");
    }
    home.run(&["model", "import", "./empty", "--name", "../x"]).expect(2);
    assert!(!home.inside("models").exists(), "nothing is left behind");
}

#[test]
fn a_quantised_model_says_how_far_it_is_from_the_original() {
    let home = Home::new("quantize");
    home.make_model();
    let made =
        home.run(&["model", "quantize", "tiny-1", "--to", "q8_0", "--json"]).expect(0).json();
    assert_eq!(made["name"], "tiny-1-q8_0");
    assert!(made["tensors"]["Q8_0"].as_u64().unwrap() > 0, "{made}");
    let (before, after) = (&made["original_weights_bytes"], &made["weights_bytes"]);
    assert!(after.as_u64() < before.as_u64(), "{made}");
    let divergence = &made["divergence"];
    assert_eq!(divergence["n_tokens"], 4096);
    let mean = divergence["mean_nats"].as_f64().unwrap();
    assert!(mean > 0.0 && mean < 0.01, "{divergence}");
    // The new model has a tokenizer and answers, and the old one does so when it is quantised at load.
    let ask = |model: &str, more: &[&str]| {
        let arguments = ["generate", "--model", model, "--prompt", "the", "--max-tokens", "8"];
        home.run(&[&arguments[..], more].concat()).expect(0).stdout
    };
    assert_eq!(ask("tiny-1-q8_0", &[]), ask("tiny-1", &["--quantize", "q8_0"]));

    let again = home.run(&["model", "quantize", "tiny-1", "--to", "q8_0"]).expect(1);
    assert!(again.stderr.contains("already exists"), "{}", again.stderr);
    let twice = home.run(&["model", "quantize", "tiny-1-q8_0", "--to", "q4_k"]).expect(1);
    assert!(twice.stderr.contains("quantised to Q8_0 already"), "{}", twice.stderr);
    assert_eq!(names_in(&home.inside("models")), ["tiny-1", "tiny-1-q8_0"]);
    home.run(&["model", "quantize", "tiny-1", "--to", "q5_k"]).expect(2);
    home.run(&["model", "quantize", "tiny-1", "--to", "q4_k", "--name", "a/b"]).expect(2);
    home.run(&["bench", "decode", "--quantize", "q8_0"]).expect(2);

    fs::write(home.path("words.txt"), "the words of a text").unwrap();
    let arguments = ["model", "quantize", "tiny-1", "--to", "q4_k", "--text", "words.txt"];
    let shown = home.run(&arguments).expect(0).stdout;
    assert!(shown.contains("nats a token; half below"), "{shown}");
    // Without a tokenizer there is nothing to compare on.
    let source = golden("mistral/hf");
    let arguments = ["model", "quantize", &source, "--to", "q8_0", "--name", "bare"];
    let refused = home.run(&[&arguments[..], &["--text", "words.txt"]].concat()).expect(1);
    assert!(refused.stderr.contains("tokenizer"), "{}", refused.stderr);
    let bare = home.run(&arguments).expect(0);
    assert!(bare.stderr.contains("not compared"), "{}", bare.stderr);
}

#[test]
fn a_gguf_file_holds_the_tokenizer_and_the_template() {
    let home = Home::new("gguf-tokenizer");
    home.make_model();
    home.run(&["model", "export", "tiny-1", "--to", "gguf", "--out", "./tiny.gguf"]).expect(0);
    let ask = |model: &str| {
        let prompt = "l'été, the wind 1234 [INST] 😀";
        let arguments = ["generate", "--model", model, "--prompt", prompt, "--max-tokens", "8"];
        home.run(&[&arguments[..], &["--json"]].concat()).expect(0).json()
    };
    let expected = ask("tiny-1");
    assert_eq!(ask("./tiny.gguf"), expected);
    let talk_with = |model: &str, more: &[&str]| {
        let arguments = [&["chat", "--model", model][..], more].concat();
        let finished = home.run_with_input(&arguments, "the wind\n");
        finished.expect(0).stdout
    };
    assert_eq!(talk_with("./tiny.gguf", &[]), talk_with("tiny-1", &[]));
    // A template that a link brings from elsewhere is not copied into a file that may be given away.
    let template = home.inside("models/tiny-1/chat_template.jinja");
    let kept = fs::read(&template).unwrap();
    fs::remove_file(&template).unwrap();
    fs::write(home.path("secret"), "a key").unwrap();
    std::os::unix::fs::symlink(home.path("secret"), &template).unwrap();
    let export = ["model", "export", "tiny-1", "--to", "gguf", "--out", "./x.gguf"];
    let refused = home.run(&export).expect(1);
    assert!(refused.stderr.contains("chat_template.jinja"), "{}", refused.stderr);
    assert!(!home.path("x.gguf").exists());
    fs::remove_file(&template).unwrap();
    fs::write(&template, kept).unwrap();
    // A directory made of the file has what the file held.
    home.run(&["model", "export", "./tiny.gguf", "--to", "hf", "--out", "./from-file"]).expect(0);
    assert!(names_in(&home.path("from-file")).contains(&"tokenizer.json".to_owned()));
    assert_eq!(talk_with("./from-file", &[]), talk_with("tiny-1", &[]));
    let text = "\"l'\u{e9}t\u{e9}, 1234 [INST] x\"\n";
    let encoded = |tokenizer: &str| {
        let arguments = ["tokenizer", "encode", "--tokenizer", tokenizer, "--json"];
        home.run_with_input(&arguments, text).expect(0).stdout
    };
    assert_eq!(encoded("./tiny.gguf"), encoded(home.inside("models/tiny-1").to_str().unwrap()));
    // A file by itself can be looked at, quantised with what it holds, and served.
    let shown = home.run(&["model", "inspect", "./tiny.gguf", "--json"]).expect(0).json();
    assert!(shown["tokenizer"]["vocab_size"].as_u64().unwrap() > 264, "{shown}");
    home.run(&["model", "quantize", "./tiny.gguf", "--to", "q8_0", "--name", "small"]).expect(0);
    assert_eq!(ask("small")["token_ids"].as_array().unwrap().len(), 8);
    // What it says is what the model says when it is quantised at load, in words of its own vocabulary.
    let said = talk_with("tiny-1", &["--quantize", "q8_0"]);
    assert!(!said.trim().is_empty(), "an empty answer shows nothing");
    assert_eq!(talk_with("small", &[]), said);
    let file = home.inside("models/small/model.gguf");
    assert_eq!(encoded(file.to_str().unwrap()), encoded("./tiny.gguf"));
}

#[test]
fn an_adapter_is_merged_into_a_model_of_its_own() {
    let home = Home::new("merge");
    let root = workspace_root().join("golden");
    let adapter = |name: &str| root.join("adapters").join(name).display().to_string();
    let base = golden("mistral/hf");
    let (peft, native) = (adapter("peft"), adapter("native"));
    for (path, name) in [(&peft, "one"), (&native, "two")] {
        let arguments = ["model", "merge", &base, "--adapter", path, "--name", name, "--json"];
        let made = home.run(&arguments).expect(0).json();
        assert_eq!(made["changed_matrices"], 14, "{made}");
    }
    let tokens = ["one", "two"].map(|name| first_tokens(&home, name));
    assert_eq!(tokens[0], tokens[1]);
    assert_ne!(tokens[0], first_tokens(&home, &base));
    // Applied as the model runs, it says the same.
    for path in [&peft, &native] {
        let ids = ["generate", "--token-ids", "1,5,9", "--max-tokens", "12", "--temperature", "0"];
        let model = ["--json", "--model", &base, "--adapter", path];
        let run = home.run(&[&ids[..], &model].concat()).expect(0).json();
        assert_eq!(run["token_ids"], tokens[0], "{path}");
    }
    let several = ["serve", "--model", &base, "one", "--adapter", &peft];
    assert!(home.run(&several).expect(2).stderr.contains("one --model"));
    assert_eq!(
        read(&home.inside("models/one/model.safetensors")),
        read(&home.inside("models/two/model.safetensors"))
    );
    let shown = home.run(&["model", "inspect", "one", "--json"]).expect(0).json();
    assert_eq!(shown["lineage"]["parent"], "hf", "{shown}");
    assert_eq!(shown["lineage"]["adapter"], "peft", "{shown}");
    let text = home.run(&["model", "inspect", "two"]).expect(0).stdout;
    assert!(text.lines().any(|line| line.starts_with("adapter ") && line.ends_with(" native")));
    let again = home.run(&["model", "merge", &base, "--adapter", &peft, "--name", "one"]).expect(1);
    assert!(again.stderr.contains("already exists"), "{}", again.stderr);
    let other = golden("mixtral/hf");
    let error = home.run(&["model", "merge", &other, "--adapter", &peft, "--name", "x"]).expect(1);
    assert!(error.stderr.contains("cannot use the adapter"), "{}", error.stderr);
    let wrong = ["--adapter", &native, "--scaling", "2", "--name", "x"];
    let error = home.run(&[&["model", "merge", &base][..], &wrong].concat()).expect(1);
    assert!(error.stderr.contains("is 2, expected 2.33"), "{}", error.stderr);
    assert_eq!(names_in(&home.inside("models")), ["one", "two"]);
    for scaling in ["NaN", "inf", "-inf", "1e300", "x"] {
        let scaling = format!("--scaling={scaling}");
        let arguments = ["model", "merge", &base, "--adapter", &native, &scaling];
        let error = home.run(&arguments).expect(2).stderr;
        assert!(error.contains("expected a number -1e6..=1e6"), "{error}");
    }
    // The file by itself is named without its ending.
    let file = format!("{native}/lora.safetensors");
    home.run(&["model", "merge", &base, "--adapter", &file]).expect(0);
    assert_eq!(names_in(&home.inside("models")), ["hf-lora", "one", "two"]);
}

/// Only `export` said what it left out.
#[test]
fn what_a_model_does_not_use_is_said_by_all_that_write_it_anew() {
    let home = Home::new("left-out");
    let source = home.path("source");
    fs::create_dir(&source).unwrap();
    let golden = golden("mistral/hf");
    let text = String::from_utf8(read(&Path::new(&golden).join("config.json"))).unwrap();
    let config: serde_json::Value = serde_json::from_str(&text).unwrap();
    let whole = serde_json::json!({"model_type": "mistral3", "text_config": config});
    fs::write(source.join("config.json"), whole.to_string()).unwrap();
    let files = formats::WeightFiles::open(Path::new(&golden)).unwrap();
    let more = [("vision_tower.x".to_owned(), vec![0; 4]), ("unused.x".to_owned(), vec![0; 4])];
    let sources = files.names().map(|name| {
        let view = files.get(name).unwrap();
        let data = formats::TensorData::Bytes(view.bytes);
        let (name, shape) = (name.to_owned(), view.shape.to_vec());
        formats::TensorSource { name, dtype: view.dtype, shape, data }
    });
    let sources = sources.chain(more.iter().map(|(name, bytes)| formats::TensorSource {
        name: name.clone(),
        dtype: formats::TensorDtype::F32,
        shape: vec![1],
        data: formats::TensorData::Bytes(bytes),
    }));
    let path = source.join("model.safetensors");
    formats::write_safetensors(&path, sources).unwrap();
    let adapter = workspace_root().join("golden/adapters/peft").display().to_string();
    for arguments in [
        &["model", "export", "./source", "--to", "native", "--out", "./native"][..],
        &["model", "quantize", "./source", "--to", "q8_0", "--name", "small"],
        &["model", "merge", "./source", "--adapter", &adapter, "--name", "merged"],
    ] {
        let said = home.run(arguments).expect(0).stderr;
        assert!(said.contains("unused.x") && said.contains("mistral3"), "{arguments:?}: {said}");
    }
    let shown = home.run(&["model", "inspect", "./source", "--json"]).expect(0).json();
    let expected = serde_json::json!({"whole": "mistral3", "tensors_left_out": 1});
    assert_eq!(shown["text_part_of"], expected);
    let text = home.run(&["model", "inspect", "./source"]).expect(0).stdout;
    assert!(text.contains("mistral3; 1 tensors are left out"), "{text}");
}
