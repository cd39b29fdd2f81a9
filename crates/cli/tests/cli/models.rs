//! `model import`, `export` and `rm`.

use std::fs;
use std::path::Path;

use crate::home::{Home, names_in};

fn golden(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/architectures");
    root.join(name).canonicalize().unwrap().display().to_string()
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
    assert!(again.stderr.contains("already exists"), "{}", again.stderr);
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
    home.run(&["model", "import", "./empty", "--name", "../x"]).expect(1);
    assert!(!home.inside("models").exists(), "nothing is left behind");
}
