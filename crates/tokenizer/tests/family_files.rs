//! What is refused in the files of the family, by which name, and which file of a folder is read.

#![allow(clippy::unwrap_used, reason = "tests")]

use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use testkit::golden::workspace_root;
use testkit::test_dir::TestDir;
use tokenizer::{ChatTemplate, Conversation, Ending, Error, Message, Role, Tokenizer};

fn family(name: &str) -> PathBuf {
    workspace_root().join("golden/tokenizer/family").join(name)
}

fn contents(name: &str) -> Vec<u8> {
    fs::read(family(name)).unwrap()
}

/// The message of the error that a change to a good JSON file gives.
fn json_error(name: &str, change: impl FnOnce(&mut Value)) -> String {
    let mut file: Value = serde_json::from_slice(&contents(name)).unwrap();
    change(&mut file);
    let file = file.to_string();
    let opened = if name.contains("tekken") {
        Tokenizer::from_tekken(file.as_bytes())
    } else {
        Tokenizer::from_json(file.as_bytes())
    };
    opened.map(|_| ()).unwrap_err().to_string()
}

fn set(pointer: &'static str, value: Value) -> impl FnOnce(&mut Value) {
    move |file| *file.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer}")) = value
}

#[test]
fn tekken_files_are_refused_by_the_name_of_the_field() {
    let cases = [
        ("/config/pattern", json!(r"\w+|\W+"), r"`config.pattern` of tekken.json is \w+|\W+"),
        ("/config/version", json!("v8"), "`config.version`"),
        ("/config/default_vocab_size", json!(19), "`config.default_vocab_size`"),
        ("/config/default_vocab_size", json!(1_u64 << 40), "`config.default_vocab_size`"),
        ("/config/default_num_special_tokens", json!(1_u64 << 40), "default_num_special_tokens"),
        ("/special_tokens", Value::Null, "files of version 13 must have it"),
        ("/special_tokens/1/token_str", json!("<bos>"), "the control token `<s>` is missing"),
        ("/special_tokens/3/token_str", json!("</s>"), "`special_tokens[3]`"),
        ("/special_tokens/3/token_str", json!("a".repeat(257)), "name has more than 256 bytes"),
        ("/special_tokens/3/rank", json!(4), "`special_tokens[3]`"),
        ("/vocab/300/rank", json!(301), "`vocab[300]`"),
        ("/vocab/300/token_bytes", json!("a"), "`vocab[300]`"),
        ("/vocab/300/token_bytes", json!(""), "`vocab[300]`"),
        ("/vocab/300/token_bytes", json!("QQ=="), "`vocab[300]` of tekken.json: another token"),
        ("/vocab/65/token_bytes", json!("QUFBQUFB"), "no token for the byte 0x41"),
        ("/vocab/65", json!({"rank": 65}), "missing field"),
    ];
    for (pointer, value, expected) in cases {
        let message = json_error("v13.tekken.json", set(pointer, value));
        assert!(message.contains(expected), "{message}\nexpected: {expected}");
    }
    let message = json_error("v13.tekken.json", |file| {
        set("/config/default_num_special_tokens", json!(8))(file);
        set("/config/default_vocab_size", json!(600))(file);
    });
    assert!(message.contains("there are 9 of them, more than 8"), "{message}");
    let message = json_error("v3.tekken.json", |file| file["prefix_space"] = json!(true));
    assert!(message.contains("unknown field `prefix_space`"), "{message}");
}

#[test]
fn json_files_of_pieces_are_refused_by_the_name_of_the_field() {
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "_"});
    let cases = [
        ("/normalizer/normalizers/1", replace, "`normalizer`"),
        ("/normalizer/normalizers/0/prepend", json!("_"), "`normalizer`"),
        ("/normalizer", Value::Null, "`pre_tokenizer`"),
        ("/pre_tokenizer", json!({"type": "Whitespace"}), "`pre_tokenizer`"),
        ("/decoder/decoders/1", json!({"type": "Fuse"}), "`decoder`"),
        ("/decoder", json!({"type": "ByteLevel"}), "`decoder`"),
        ("/post_processor/single/0/SpecialToken/id", json!("[INST]"), "`post_processor`"),
        ("/post_processor/single", json!([]), "`post_processor`"),
        ("/post_processor/special_tokens/<s>/ids", json!([3]), "`post_processor`"),
        ("/added_tokens/5/normalized", json!(true), "`added_tokens[5].normalized`"),
        ("/added_tokens/5/lstrip", json!(true), "`added_tokens[5].lstrip`"),
        ("/added_tokens/5/content", json!(""), "`added_tokens[5]`"),
        ("/added_tokens/5/content", json!("a".repeat(257)), "`added_tokens[5]`"),
        ("/model/ignore_merges", json!(true), "`model.ignore_merges`"),
        ("/model/byte_fallback", json!(false), "`normalizer`"),
        ("/model/merges/0", json!(["<0x41>", "a"]), "is not in model.vocab"),
    ];
    for (pointer, value, expected) in cases {
        let message = json_error("llama2.tokenizer.json", set(pointer, value));
        assert!(message.contains(expected), "{message}\nexpected: {expected}");
    }
    for (pointer, value) in [
        ("/pre_tokenizer/replacement", json!("_")),
        ("/pre_tokenizer/prepend_scheme", json!("sometimes")),
        ("/pre_tokenizer/split", json!("no")),
    ] {
        let message = json_error("first.tokenizer.json", set(pointer, value));
        assert!(message.contains("`pre_tokenizer`"), "{message}");
    }
    let message = json_error("llama2.tokenizer.json", |file| {
        file["model"]["vocab"]["<0x41>a"] = json!(621);
        file["model"]["merges"][0] = json!(["<0x41>", "a"]);
    });
    assert!(message.contains("a merge of a byte token"), "{message}");
    let message = json_error("llama2.tokenizer.json", |file| {
        let vocabulary = file["model"]["vocab"].as_object_mut().unwrap();
        let id = vocabulary.remove("<0x41>").unwrap();
        vocabulary.insert("<0x4>".to_string(), id);
    });
    assert!(message.contains("no token for the byte 0x41"), "{message}");
}

#[test]
fn json_files_of_bytes_are_refused_by_the_name_of_the_field() {
    let cases = [
        ("/pre_tokenizer/pretokenizers/0/pattern", json!({"Regex": "."}), "`pre_tokenizer`"),
        ("/pre_tokenizer/pretokenizers/0/pattern", json!({"String": " "}), "`pre_tokenizer`"),
        ("/pre_tokenizer/pretokenizers/0/behavior", json!("Removed"), "`pre_tokenizer`"),
        ("/pre_tokenizer/pretokenizers/1/add_prefix_space", json!(true), "`pre_tokenizer`"),
        ("/pre_tokenizer/pretokenizers/1/use_regex", json!(true), "`pre_tokenizer`"),
        ("/pre_tokenizer", Value::Null, "`pre_tokenizer`"),
        ("/normalizer", json!({"type": "NFC"}), "`normalizer`"),
        ("/post_processor", json!({"type": "BertProcessing"}), "`post_processor`"),
        ("/post_processor/processors/1/single/1", json!({}), "`post_processor`"),
        ("/model/continuing_subword_prefix", json!("##"), "`model.continuing_subword_prefix`"),
    ];
    for (pointer, value, expected) in cases {
        let message = json_error("llama3.tokenizer.json", set(pointer, value));
        assert!(message.contains(expected), "{message}\nexpected: {expected}");
    }
    // What is matched is kept by both behaviours.
    let mut file: Value = serde_json::from_slice(&contents("llama3.tokenizer.json")).unwrap();
    set("/pre_tokenizer/pretokenizers/0/behavior", json!("Removed"))(&mut file);
    set("/pre_tokenizer/pretokenizers/0/invert", json!(true))(&mut file);
    assert!(Tokenizer::from_json(file.to_string().as_bytes()).is_ok());
}

/// A field of Protocol Buffers with a length.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut message = vec![number << 3 | 2];
    if bytes.len() > 127 {
        message.push(bytes.len() as u8 & 0x7F | 0x80);
    }
    message.push((bytes.len() >> if bytes.len() > 127 { 7 } else { 0 }) as u8);
    message.extend_from_slice(bytes);
    message
}

/// The model with a message at its end: it counts as a part of the one before it.
fn model_error(number: u8, message: &[u8]) -> String {
    let mut file = contents("tiny.model");
    file.extend(field(number, message));
    Tokenizer::from_sentencepiece(&file).map(|_| ()).unwrap_err().to_string()
}

#[test]
fn sentencepiece_models_are_refused_by_the_name_of_the_field() {
    let long = "a".repeat(257);
    let long = field(1, long.as_bytes());
    let [long_control, long_unknown] = [3, 2].map(|kind| [&long[..], &[3 << 3, kind]].concat());
    let cases: [(u8, &[u8], &str); 20] = [
        (2, &[3 << 3, 1], "`trainer_spec.model_type` of tokenizer.model is 1, expected 2 (BPE)"),
        (2, &[0x98, 2, 0], "`trainer_spec.byte_fallback` of tokenizer.model is 0"),
        (2, &[0xC0, 1, 1], "`trainer_spec.treat_whitespace_as_suffix`"),
        (2, &[0xF2, 2, 1, b'x'], "the control piece `x` is missing"),
        (3, &[4 << 3, 1], "`normalizer_spec.remove_extra_whitespaces`"),
        (3, &[5 << 3, 0], "`normalizer_spec.escape_whitespaces`"),
        (3, &[2 << 3 | 2, 1, 7], "`normalizer_spec.precompiled_charsmap`"),
        (3, &[9 << 3, 1], "`normalizer_spec.9`"),
        (5, &[2 << 3 | 2, 1, 7], "`denormalizer_spec.precompiled_charsmap`"),
        (7, &[], "field `7`"),
        (1, &[], "the piece is empty"),
        (1, &[10, 1, b'a', 3 << 3, 5], "pieces[620].type` of tokenizer.model is 5"),
        (1, &[10, 1, b'a'], "the piece \"a\" is there twice"),
        (1, &[10, 1, 0xFF], "a string is not UTF-8"),
        (1, &[10, 2, b'x', b'?', 3 << 3, 6], "does not name a byte"),
        (1, &[10, 2, b' ', b'?', 3 << 3, 4], "no space in such a piece"),
        (1, &[10, 2, b'x', b'?', 2 << 3 | 5, 0, 0, 0xC0, 0x7F], "the score is NaN"),
        (1, &long, "more than 256 bytes"),
        (1, &long_control, "more than 256 bytes"),
        (1, &long_unknown, "more than 256 bytes"),
    ];
    for (number, message, expected) in cases {
        let message = model_error(number, message);
        assert!(message.contains(expected), "{message}\nexpected: {expected}");
    }
    let text = Tokenizer::from_sentencepiece(b"{}").map(|_| ()).unwrap_err().to_string();
    assert!(text.starts_with("tokenizer.model: at byte "), "{text}");
}

#[test]
fn a_long_run_of_one_character_is_encoded_in_time() {
    for name in ["tiny.model", "v13.tekken.json", "llama2.tokenizer.json"] {
        let tokenizer = Tokenizer::open(&family(name)).unwrap();
        for unit in ["a", "-", " ", "漢", "\u{301}"] {
            let text = unit.repeat(300_000);
            assert_eq!(tokenizer.decode(&tokenizer.encode(&text)), text, "{name}");
        }
    }
}

#[test]
fn a_folder_is_searched_in_the_order_of_its_layout() {
    let folder = TestDir::new("tokenizer-folder");
    let open = || Tokenizer::open(folder.path());
    assert!(matches!(open(), Err(Error::NoTokenizer { .. })));
    assert!(!Tokenizer::is_in(folder.path()).unwrap());
    let put = |from: &str, name: &str| {
        fs::write(folder.path().join(name), contents(from)).unwrap();
    };
    put("equal_scores.model", "tokenizer.model.bak");
    assert!(!Tokenizer::is_in(folder.path()).unwrap());
    put("tiny.model", "tokenizer.model");
    assert_eq!(open().unwrap().version(), None);
    assert_eq!(open().unwrap().files()[0].1, contents("tiny.model"));
    assert!(Tokenizer::is_in(folder.path()).unwrap());
    fs::write(folder.path().join("params.json"), "{}").unwrap();
    assert_eq!(open().unwrap().version(), Some(1));
    put("llama3.tokenizer.json", "tokenizer.json");
    assert_eq!(open().unwrap().version(), Some(1));
    fs::write(folder.path().join("config.json"), "{}").unwrap();
    assert!(open().unwrap().to_json().is_some());
    put("tiny.model", "tokenizer.model.v3");
    put("equal_scores.model", "tokenizer.model.v11m1");
    let found = open().unwrap();
    assert_eq!(found.version(), Some(11));
    assert_eq!(found.files()[0].1, contents("equal_scores.model"));
    put("v3.tekken.json", "tekken.json");
    assert_eq!(open().unwrap().version(), Some(3));
}

#[test]
fn bos_and_eos_are_those_that_the_folder_names() {
    let folder = TestDir::new("tokenizer-names");
    let put = |name: &str, text: &[u8]| fs::write(folder.path().join(name), text).unwrap();
    put("tokenizer.json", &contents("llama3.tokenizer.json"));
    let named = |config: Value| {
        put("tokenizer_config.json", config.to_string().as_bytes());
        Tokenizer::open(folder.path())
    };
    let plain = named(json!({})).unwrap();
    let turn_end = plain.control_id("<|eot_id|>").unwrap();
    assert_ne!(plain.eos_id(), turn_end);
    let tokenizer = named(json!({"eos_token": "<|eot_id|>", "bos_token": null})).unwrap();
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (plain.bos_id(), turn_end));
    let tokenizer =
        named(json!({"eos_token": {"content": "<|eot_id|>", "lstrip": false}})).unwrap();
    assert_eq!(tokenizer.eos_id(), turn_end);
    let error = named(json!({"eos_token": "<|im_end|>"})).unwrap_err().to_string();
    assert!(error.contains("the control token `<|im_end|>` is missing"), "{error}");
}

#[test]
fn names_that_only_the_folder_gives_are_written_with_the_file() {
    let (folder, copy) = (TestDir::new("given-names"), TestDir::new("given-names-copy"));
    let mut file: Value = serde_json::from_slice(&contents("llama3.tokenizer.json")).unwrap();
    file["post_processor"] = Value::Null;
    let renamed = [("<|begin_of_text|>", "<bos>"), ("<|end_of_text|>", "<eos>")];
    let text = renamed.iter().fold(file.to_string(), |text, (from, to)| text.replace(from, to));
    fs::write(folder.path().join("tokenizer.json"), text).unwrap();
    let open = |names: Value| {
        fs::write(folder.path().join("tokenizer_config.json"), names.to_string()).unwrap();
        Tokenizer::open(folder.path())
    };
    assert!(open(json!({})).is_err(), "the file by itself does not say them");
    for eos in ["<eos>", "<|eot_id|>"] {
        let tokenizer = open(json!({"bos_token": "<bos>", "eos_token": eos})).unwrap();
        let files = tokenizer.files();
        let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["tokenizer_config.json", "tokenizer.json"]);
        for (name, contents) in files {
            fs::write(copy.path().join(name), contents).unwrap();
        }
        let read = Tokenizer::open(copy.path()).unwrap();
        assert_eq!((read.bos_id(), read.eos_id()), (tokenizer.bos_id(), tokenizer.eos_id()));
        assert_eq!(read.eos_id(), read.control_id(eos).unwrap());
        assert_eq!(read.files(), tokenizer.files());
    }
}

#[test]
fn the_template_of_a_folder_is_its_own_unless_the_tokenizer_says_the_version() {
    let folder = TestDir::new("templates");
    let put = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    fs::write(folder.path().join("tokenizer.json"), contents("llama3.tokenizer.json")).unwrap();
    let question = Conversation { messages: vec![Message::new(Role::User, "u")] };
    let text = || {
        let tokenizer = Tokenizer::open(folder.path()).unwrap();
        let template = ChatTemplate::open(folder.path(), &tokenizer).unwrap()?;
        Some(template.render(&tokenizer, &question, Ending::AwaitAnswer).unwrap().text)
    };
    assert_eq!(text(), None);
    put("tokenizer_config.json", r#"{"chat_template": null}"#);
    assert_eq!(text(), None);
    let list = r#"{"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "list"}]}"#;
    put("tokenizer_config.json", list);
    assert_eq!(text().unwrap(), "list");
    put("tokenizer_config.json", r#"{"chat_template": [{"name": "default"}]}"#);
    let error = ChatTemplate::source_in(folder.path()).unwrap_err().to_string();
    assert!(error.starts_with("tokenizer_config.json: missing field `template`"), "{error}");
    put("tokenizer_config.json", list);
    put("chat_template.json", r#"{"chat_template": "json {{ eos_token }}"}"#);
    assert_eq!(text().unwrap(), "json <|end_of_text|>");
    put("chat_template.jinja", "{% if %}");
    let tokenizer = Tokenizer::open(folder.path()).unwrap();
    let error = ChatTemplate::open(folder.path(), &tokenizer).unwrap_err();
    assert!(matches!(error, Error::Jinja { line: Some(1), .. }), "{error}");
    put("chat_template.jinja", "own {{ messages[0].content }}");
    assert_eq!(text().unwrap(), "own u");
    fs::write(folder.path().join("tekken.json"), contents("v13.tekken.json")).unwrap();
    assert_eq!(text().unwrap(), "<s>[INST]u[/INST]");
}

#[test]
fn files_over_the_bound_of_their_kind_are_not_read() {
    let folder = TestDir::new("file-bounds");
    fs::write(folder.path().join("tokenizer.json"), contents("llama3.tokenizer.json")).unwrap();
    let of_length = |name: &str, n_bytes: u64| {
        fs::File::create(folder.path().join(name)).unwrap().set_len(n_bytes).unwrap();
    };
    let refused = |error: Error, name: &str| {
        let text = error.to_string();
        let is_refused = text.contains(name) && text.contains("a regular file of at most");
        assert!(matches!(error, Error::Read { .. }) && is_refused, "{text}");
    };
    for name in ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"] {
        of_length(name, (4 << 20) + 1);
        let source = ChatTemplate::source_in(folder.path()).map(|source| source.is_some());
        refused(source.unwrap_err(), name);
        if name == "tokenizer_config.json" {
            refused(Tokenizer::open(folder.path()).unwrap_err(), name);
        }
        fs::remove_file(folder.path().join(name)).unwrap();
    }
    for name in ["tokenizer.json", "tekken.json", "tokenizer.model.v3"] {
        of_length(name, (64 << 20) + 1);
        refused(Tokenizer::open(&folder.path().join(name)).unwrap_err(), name);
    }
}

#[test]
fn a_template_names_the_control_token_that_is_missing() {
    let render = |name: &str, roles: &[Role]| {
        let tokenizer = Tokenizer::open(&family(name)).unwrap();
        let messages = roles.iter().map(|&role| Message::new(role, "the wind")).collect();
        let conversation = Conversation { messages };
        ChatTemplate::Galerne.render(&tokenizer, &conversation, Ending::AwaitAnswer)
    };
    assert_eq!(render("v3.tekken.json", &[Role::System, Role::User]).unwrap().token_ids[1], 17);
    assert_eq!(render("tiny.model", &[Role::User]).unwrap().token_ids[..2], [1, 3]);
    let error = render("tiny.model", &[Role::System, Role::User]).unwrap_err();
    assert!(matches!(error, Error::MissingControl { name: "[SYSTEM_PROMPT]" }));
    let error = render("llama3.tokenizer.json", &[Role::User]).unwrap_err().to_string();
    assert!(error.contains("no control token `<s>`"), "{error}");
}
