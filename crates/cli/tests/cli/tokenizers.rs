//! `tokenizer`: lines in, lines out.

use serde_json::{Value, json};
use testkit::golden::workspace_root;

use crate::home::Home;

#[test]
fn decode_is_the_inverse_of_encode() {
    let home = Home::new("round-trip");
    home.make_tokenizer();
    let texts = ["", "le vent", "  [INST] </s> <s>", "île \u{1F600}\n\ttab", "\"quoted\" \\ back"];
    let lines: String = texts.iter().map(|text| format!("{}\n", json!(text))).collect();
    let encode = ["tokenizer", "encode", "--tokenizer", "tokenizer", "--json"];
    let ids = home.run_with_input(&encode, &lines).expect(0).stdout;
    assert_eq!(ids.lines().count(), texts.len());
    assert_eq!(ids.lines().next(), Some("[]"), "no BOS, no EOS");
    let decode = ["tokenizer", "decode", "--tokenizer", "tokenizer/tokenizer.json", "--json"];
    let back = home.run_with_input(&decode, &ids).expect(0).stdout;
    assert_eq!(back, lines);
}

#[test]
fn plain_lines_are_encoded_without_json() {
    let home = Home::new("plain");
    let tokenizer = home.make_tokenizer();
    let encode = ["tokenizer", "encode", "--tokenizer", "tokenizer"];
    let ids = home.run_with_input(&encode, "le vent\nmer").expect(0).stdout;
    let expected: Vec<String> = tokenizer.encode("le vent").iter().map(u32::to_string).collect();
    assert_eq!(ids.lines().next().unwrap(), expected.join(" "));
    let decode = ["tokenizer", "decode", "--tokenizer", "tokenizer"];
    assert_eq!(home.run_with_input(&decode, &ids).expect(0).stdout, "le vent\nmer\n");
}

/// What the Python packages make of the texts is compared in the tokenizer's own tests; here, that files are recognised.
#[test]
fn files_of_the_mistral_family_are_recognised_by_their_names() {
    let home = Home::new("family");
    let family = workspace_root().join("golden/tokenizer/family");
    for name in ["tiny.model", "v13.tekken.json", "llama2.tokenizer.json"] {
        let path = family.join(name);
        let path = path.to_str().unwrap();
        let text = "[INST] the wind </s> 漢🙂\n";
        let encode = ["tokenizer", "encode", "--tokenizer", path, "--json"];
        let ids = home.run_with_input(&encode, &format!("{}\n", json!(text))).expect(0).stdout;
        let decode = ["tokenizer", "decode", "--tokenizer", path, "--json"];
        let back = home.run_with_input(&decode, &ids).expect(0).stdout;
        assert_eq!(back, format!("{}\n", json!(text)), "{name}");
        let shown =
            home.run(&["tokenizer", "inspect", "--tokenizer", path, "--json"]).expect(0).json();

        assert_eq!(shown["control_tokens"]["<s>"], 1, "{name}");
    }
}

#[test]
fn a_wrong_line_is_named_by_its_number() {
    let home = Home::new("wrong-line");
    home.make_tokenizer();
    let encode = ["tokenizer", "encode", "--tokenizer", "tokenizer", "--json"];
    let finished = home.run_with_input(&encode, "\"a\"\nnot json\n").expect(1);
    assert!(finished.stderr.contains("line 2 of stdin"), "{}", finished.stderr);
    let render = ["tokenizer", "render", "--tokenizer", "tokenizer", "--json"];
    for (line, expected) in [
        (r#"{"messages": [], "tools": []}"#, "`tools` is not supported"),
        (r#"{"messages": [{"role": "assistant", "content": "a"}]}"#, "expected system or user"),
        (r#"{"model": "m"}"#, "`messages` is missing"),
    ] {
        let error = home.run_with_input(&render, line).expect(1).json_error();
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(expected) && message.contains("line 1"), "{message}");
    }
}

#[test]
fn render_shows_the_prompt_that_fills_a_gap() {
    let home = Home::new("gap");
    let golden = workspace_root().join("golden/tokenizer/family/v3.tekken.json");
    let render = ["tokenizer", "render", "--tokenizer", golden.to_str().unwrap()];
    let line = r#"{"prompt": "le ", "suffix": " vent", "max_tokens": 3}"#;
    let text = home.run_with_input(&render, line).expect(0).stdout;
    assert_eq!(text, "<s>[SUFFIX] vent[PREFIX]le \n");
    // Without a suffix there is no gap, as in the API.
    for line in [r#"{"model": "m", "prompt": "le"}"#, r#"{"prompt": "le", "suffix": ""}"#] {
        assert_eq!(home.run_with_input(&render, line).expect(0).stdout, "<s>le\n", "{line}");
    }
    let wrong = r#"{"prompt": "le ", "messages": []}"#;
    assert!(home.run_with_input(&render, wrong).expect(1).stderr.contains("`messages` is not"));
}

#[test]
fn render_marks_the_answer_as_trained() {
    let home = Home::new("render");
    let tokenizer = home.make_tokenizer();
    let lines = r#"{"messages": [{"role": "user", "content": "mer"}], "model": "m", "temperature": 0}
{"messages": [{"role": "user", "content": "mer"}, {"role": "assistant", "content": "vent"}]}
"#;
    let render = ["tokenizer", "render", "--tokenizer", "tokenizer", "--json"];
    let rendered = home.run_with_input(&render, lines).expect(0).stdout;
    let lines: Vec<Value> =
        rendered.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["text"], "<s>[INST] mer[/INST]");
    assert_eq!(lines[1]["text"], "<s>[INST] mer[/INST] vent</s>");
    let sum = |line: &Value| -> u64 {
        line["trained"].as_array().unwrap().iter().map(|mark| mark.as_u64().unwrap()).sum()
    };
    let n_answer = tokenizer.encode(" vent").len() as u64 + 1;
    assert_eq!((sum(&lines[0]), sum(&lines[1])), (0, n_answer));
    for line in &lines {
        assert_eq!(
            line["token_ids"].as_array().unwrap().len(),
            line["trained"].as_array().unwrap().len()
        );
    }
}

/// Members such as `model` were refused by Mistral's templates and taken by our own.
#[test]
fn one_request_is_read_in_one_way_whatever_renders_it() {
    let home = Home::new("render-members");
    home.make_tokenizer();
    let family = workspace_root().join("golden/tokenizer/family");
    let tekken = family.join("v3.tekken.json").display().to_string();
    let line = |more: &str| {
        format!("{{\"messages\": [{{\"role\": \"user\", \"content\": \"mer\"}}], {more}}}\n")
    };
    for tokenizer in ["tokenizer", &tekken] {
        let render = ["tokenizer", "render", "--tokenizer", tokenizer];
        let others = "\"model\": \"m\", \"temperature\": 0.5, \"stream\": true, \"random_seed\": 1";
        let rendered = home.run_with_input(&render, &line(others)).expect(0).stdout;
        assert!(rendered.contains("[INST]") && rendered.contains("mer"), "{rendered}");
        let error = home.run_with_input(&render, &line("\"audio\": 1")).expect(1).stderr;
        assert!(error.contains("`audio` is not supported"), "{error}");
        let error = home.run_with_input(&render, "{\"model\": \"m\"}\n").expect(1).stderr;
        assert!(error.contains("`messages` is missing"), "{error}");
    }
    // The members of a schema keep their order.
    let tools = "\"tools\": [{\"type\": \"function\", \"function\": {\"name\": \"f\", \"parameters\": {\"z\": 1, \"a\": 1.0}}}]";
    let render = ["tokenizer", "render", "--tokenizer", &tekken];
    let rendered = home.run_with_input(&render, &line(tools)).expect(0).stdout;
    assert!(rendered.contains("{\"z\": 1, \"a\": 1.0}"), "{rendered}");
}

#[test]
fn a_tokenizer_is_never_overwritten_and_can_be_inspected() {
    let home = Home::new("inspect");
    let tokenizer = home.make_tokenizer();
    let again =
        ["tokenizer", "train", "--text", "text", "--vocab-size", "280", "--out", "tokenizer"];
    assert!(home.run(&again).expect(1).stderr.contains("is not overwritten"));
    let inspect = ["tokenizer", "inspect", "--tokenizer", "tokenizer", "--json"];
    let shown = home.run(&inspect).expect(0).json();
    assert_eq!(shown["vocab_size"], 280);
    assert_eq!(shown["digest"], tokenizer.digest());
    assert_eq!(shown["control_tokens"]["</s>"], tokenizer.eos_id());
}

#[test]
fn training_and_encoding_are_measured_on_text() {
    let home = Home::new("bench-tokenizer");
    let folder = home.path("texts/inner");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("a.txt"), "le chat, le chien\net le cheval\n".repeat(20)).unwrap();
    let arguments = ["bench", "tokenizer", "--text", "texts", "--vocab-size", "268", "--json"];
    let report = home.run(&arguments).expect(0).json();
    let results = report["results"].as_array().unwrap();
    assert_eq!(results.len(), 2);
    for (result, work) in results.iter().zip(["tokenizer_train", "tokenizer_encode"]) {
        assert_eq!((&result["work"], &result["detail"]), (&json!(work), &json!("268")));
        assert_eq!((&result["model"], &result["unit"]), (&json!("texts"), &json!("MB/s")));
        assert!(result["value"].as_f64().unwrap() > 0.0 && result["peer"].is_null(), "{result}");
    }
    // Peers stand in a checkout, which this folder is not.
    let refused = home.run(&[&arguments[..], &["--peer"]].concat()).expect(1);
    let error = refused.json_error();
    let message = error["message"].as_str().unwrap_or_default();
    assert!(message.contains("target/peers-tokenizer/bin/python is missing"), "{error}");
    assert!(message.contains("benches/peers/README.md"), "{error}");
}
