//! `generate` and `chat`.

use formats::WeightFiles;
use testkit::golden::workspace_root;

use crate::home::Home;

#[test]
fn generate_prints_the_new_ids_and_their_text() {
    let home = Home::new("generate");
    home.make_model();
    let ids = |prompt: &[&str]| {
        let fixed =
            ["--model", "tiny-1", "--max-tokens", "8", "--temperature", "0", "--json", "generate"];
        home.run(&[&fixed[7..], &fixed[..7], prompt].concat()).expect(0).json()
    };
    let by_text = ids(&["--prompt", "vent mer"]);
    let n = by_text["token_ids"].as_array().unwrap().len();
    assert!((1..=8).contains(&n) && by_text["text"].is_string(), "{by_text}");
    // A text has BOS before it, ids are used as they are given.
    let line = home.run_with_input(
        &["tokenizer", "encode", "--tokenizer", "tokenizer", "--json"],
        "\"vent mer\"\n",
    );
    let inner = line.stdout.trim().trim_matches(['[', ']']).to_owned();
    let with_bos = ids(&["--token-ids", &format!("1,{inner}")]);
    assert_eq!(by_text, with_bos);
    // The path of the model is as good as its name, and the text form prints the same text.
    let plain = ["generate", "--model", "home/models/tiny-1", "--max-tokens", "8", "--prompt"];
    let plain = home.run(&[&plain[..], &["vent mer"]].concat()).expect(0).stdout;
    assert_eq!(plain, format!("{}\n", by_text["text"].as_str().unwrap()));
    let unread = ["generate", "--model", "tiny-1", "--prompt", "vent mer"];
    assert_eq!(home.run_unread(&unread).expect(0).stderr, "", "nobody reads, nothing is wrong");
}

#[test]
fn generate_refuses_prompts_that_do_not_fit() {
    let home = Home::new("refuses");
    home.make_model();
    let long = vec!["1"; 64].join(",");
    for (prompt, expected) in [("280", "less than 280"), (&long[..], "fewer than 64")] {
        let arguments = ["generate", "--model", "tiny-1", "--token-ids", prompt, "--json"];
        let error = home.run(&arguments).expect(2).json_error();
        assert!(error["message"].as_str().unwrap().contains(expected), "{error}");
    }
    let arguments =
        ["generate", "--model", "tiny-1", "--prompt", "x", "--temperature", "-1", "--json"];
    let error = home.run(&arguments).expect(2).json_error();
    assert!(error["message"].as_str().unwrap().contains("temperature"), "{error}");
    // Without a vocabulary there are only ids.
    std::fs::remove_file(home.inside("models/tiny-1/tokenizer.json")).unwrap();
    let arguments = ["generate", "--model", "tiny-1", "--prompt", "x", "--json"];
    let error = home.run(&arguments).expect(1).json_error();
    assert!(error["hint"].as_str().unwrap().contains("--token-ids"), "{error}");
    let arguments =
        ["generate", "--model", "tiny-1", "--token-ids", "1", "--max-tokens", "3", "--json"];
    assert!(home.run(&arguments).expect(0).json()["text"].is_null());
}

#[test]
fn draft_models_and_caches_are_chosen() {
    let home = Home::new("drafts");
    home.make_model();
    let fixed = ["generate", "--model", "tiny-1", "--prompt", "vent mer", "--max-tokens", "30"];
    let with =
        |more: &[&str]| home.run(&[&fixed[..], &["--temperature", "0", "--json"], more].concat());
    let said = with(&["--speculation", "off"]).expect(0).json();
    let drafted = with(&["--draft-model", "tiny-1", "--speculation", "always"]).expect(0).json();
    assert_eq!(drafted, said);
    assert_eq!(with(&["--draft-model", "home/models/tiny-1"]).expect(0).json(), said);
    let in_8_bits = with(&["--kv-cache-dtype", "int8"]).expect(0).json();
    let n = in_8_bits["token_ids"].as_array().unwrap().len();
    assert!((1..=30).contains(&n), "{in_8_bits}");
    let error = with(&["--draft-model", "tiny-1", "--speculation", "off"]).expect(2).json_error();
    assert!(error["message"].as_str().unwrap().contains("--speculation off"), "{error}");
    let other = workspace_root().join("golden/architectures/mistral/hf").display().to_string();
    let error = with(&["--draft-model", &other]).expect(1).json_error();
    assert_eq!(error["message"], "draft model `hf` has other tokens than model `tiny-1`");
    let several = ["serve", "--model", "tiny-1", "tiny-1", "--draft-model", "tiny-1"];
    assert!(home.run(&several).expect(2).stderr.contains("one --model"));
}

#[test]
fn an_answer_is_kept_to_its_form() {
    let home = Home::new("forms");
    home.make_model();
    let fixed =
        ["generate", "--model", "tiny-1", "--prompt", "vent", "--max-tokens", "40", "--json"];
    let with = |more: &[&str]| home.run(&[&fixed[..], more].concat());
    let schema =
        r#"{"type": "array", "items": {"enum": ["mer", "vent"]}, "minItems": 1, "maxItems": 2}"#;
    std::fs::write(home.inside("form.json"), schema).unwrap();
    let by_schema = with(&["--json-schema", "home/form.json"]).expect(0).json();
    let answer: Vec<String> = serde_json::from_str(by_schema["text"].as_str().unwrap()).unwrap();
    assert!((1..=2).contains(&answer.len()) && by_schema["finish_reason"] == "stop", "{by_schema}");
    let by_choice = with(&["--choice", "oui", "--choice", "non"]).expect(0).json();
    assert!(by_choice["text"] == "oui" || by_choice["text"] == "non", "{by_choice}");
    std::fs::write(home.inside("form.lark"), "start: /[ab]/ \"!\"\n").unwrap();
    let by_grammar = with(&["--grammar", "home/form.lark"]).expect(0).json();
    assert!(by_grammar["text"] == "a!" || by_grammar["text"] == "b!", "{by_grammar}");

    let error = with(&["--regex", "a(b"]).expect(2).json_error();
    assert!(error["message"].as_str().unwrap().starts_with("the regular expression"), "{error}");
    let error = with(&["--json-schema", "home/form.lark"]).expect(1).json_error();
    assert!(error["message"].as_str().unwrap().contains("form.lark is not JSON"), "{error}");
    with(&["--regex", "a", "--choice", "b"]).expect(2);
}

#[test]
fn the_logits_of_the_prompt_predict_the_first_new_token() {
    let home = Home::new("logits");
    home.make_model();
    let arguments = [
        "generate",
        "--model",
        "tiny-1",
        "--token-ids",
        "1,40,50",
        "--max-tokens",
        "1",
        "--temperature",
        "0",
        "--logits",
        "logits.safetensors",
        "--json",
    ];
    let answer = home.run(&arguments).expect(0).json();
    let file = WeightFiles::open_file(&home.path("logits.safetensors")).unwrap();
    let logits = file.get("logits").unwrap();
    assert_eq!(logits.shape, [3, 280]);
    let last = &logits.to_f32()[2 * 280..];
    let best = (0..280).max_by(|&a, &b| last[a].total_cmp(&last[b]).then(b.cmp(&a))).unwrap();
    assert_eq!(answer["token_ids"][0], best);
    assert!(home.run(&arguments).expect(1).stderr.contains("is not overwritten"));
}

#[test]
fn chat_answers_lines_of_a_pipe() {
    let home = Home::new("chat");
    home.make_model();
    let arguments = [
        "chat",
        "--model",
        "tiny-1",
        "--max-tokens",
        "5",
        "--system",
        "vent",
        "--temperature",
        "1",
    ];
    let input = "/help\nmer\n\n/new\n/model\n/model nothing\n/fly\nmer\n";
    let finished = home.run_with_input(&arguments, input).expect(0);
    assert_eq!(finished.stdout.lines().count(), 2, "{finished:?}");
    for expected in ["/new", "a new conversation", "tiny-1: ", "no model `nothing`", "/fly"] {
        assert!(finished.stderr.contains(expected), "{expected}: {}", finished.stderr);
    }
}
