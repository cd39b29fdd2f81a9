//! Properties of a trained tokenizer, and what happens to damaged files.

#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;
use serde_json::{Value, json};
use std::sync::LazyLock;
use testkit::damage::damaged;
use tokenizer::{
    BpeTrainer, CONTROL_TOKENS, ControlText, Error, TextStream, Tokenizer, TrainOptions,
};

const TEXT: &str = include_str!("../../../golden/tokenizer/training_text.txt");

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| trained(500));

fn trained(vocab_size: usize) -> Tokenizer {
    let mut trainer = BpeTrainer::new(TrainOptions { vocab_size, n_threads: 1 });
    trainer.feed(TEXT);
    trainer.train().unwrap()
}

/// Any text, text rich in words of the training text, and text that looks like control tokens.
fn text() -> impl Strategy<Value = String> {
    let word = prop::sample::select(TEXT.split_inclusive(' ').collect::<Vec<_>>());
    let control = prop::sample::select(CONTROL_TOKENS.to_vec());
    let any = any::<String>();
    let piece = prop_oneof![word.prop_map(str::to_string), control.prop_map(str::to_string), any];
    proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn decoding_what_was_encoded_gives_the_text(text in text()) {
        let token_ids = TOKENIZER.encode(&text);
        prop_assert_eq!(TOKENIZER.decode(&token_ids), text);
    }

    #[test]
    fn ordinary_text_never_yields_a_control_token(text in text()) {
        prop_assert!(TOKENIZER.encode(&text).iter().all(|&id| !TOKENIZER.is_control(id)));
    }

    #[test]
    fn stream_gives_the_text_of_the_whole(token_ids in proptest::collection::vec(0u32..510, 0..40)) {
        let mut stream = TextStream::new();
        let mut text: String =
            token_ids.iter().map(|&id| stream.push(&TOKENIZER, id)).collect();
        text.push_str(&stream.finish());
        prop_assert_eq!(text, TOKENIZER.decode(&token_ids));
    }

    #[test]
    fn json_round_trip_keeps_everything(vocab_size in 264usize..500) {
        let tokenizer = trained(vocab_size);
        let json = tokenizer.to_json().unwrap();
        let again = Tokenizer::from_json(json.as_bytes()).unwrap();
        prop_assert_eq!(again.to_json().unwrap(), json);
        prop_assert_eq!(again.digest(), tokenizer.digest());
        prop_assert_eq!(again.encode(TEXT), tokenizer.encode(TEXT));
    }
}

#[test]
fn damaged_json_is_an_error_or_a_sound_tokenizer() {
    let valid = trained(264).to_json().unwrap();
    let mut n_sound = 0;
    for json in damaged(valid.as_bytes(), 1, 1_000) {
        if let Ok(tokenizer) = Tokenizer::from_json(&json) {
            assert_eq!(tokenizer.decode(&tokenizer.encode(TEXT)), TEXT);
            n_sound += 1;
        }
    }
    assert!((1..700).contains(&n_sound), "{n_sound} of 1000 are still sound");
}

#[test]
fn training_does_not_depend_on_the_number_of_threads() {
    // Long enough to be cut.
    let text = (0..200).map(|i| format!("{i} {TEXT}\n")).collect::<String>();
    let digest = |n_threads| {
        let options = TrainOptions { vocab_size: 700, n_threads };
        let mut trainer = BpeTrainer::new(options);
        trainer.feed(&text);
        trainer.train().unwrap().digest()
    };
    let expected = digest(1);
    for n_threads in [0, 2, 3, 5] {
        assert_eq!(digest(n_threads), expected, "{n_threads} threads");
    }
}

#[test]
fn text_too_small_for_the_vocabulary_is_an_error_that_says_what_is_possible() {
    let train = |vocab_size| {
        let mut trainer = BpeTrainer::new(TrainOptions { vocab_size, ..TrainOptions::default() });
        trainer.feed("wind wind wind");
        trainer.train()
    };
    let Err(Error::TextTooSmall { vocab_size: 8192, reached }) = train(8192) else { panic!() };
    assert_eq!(train(reached).unwrap().vocab_size(), reached);
    assert!(matches!(train(263), Err(Error::VocabTooSmall { vocab_size: 263, minimum: 264 })));
    assert!(matches!(train(usize::MAX), Err(Error::TextTooSmall { .. })));
    assert_eq!(train(264).unwrap().vocab_size(), 264);
}

#[test]
fn ids_are_control_tokens_then_bytes_then_merges() {
    for (id, name) in (0..).zip(CONTROL_TOKENS) {
        assert_eq!(TOKENIZER.control_id(name), Some(id));
        assert_eq!(TOKENIZER.token_bytes(id), Some(name.as_bytes()));
    }
    for byte in 0..=u8::MAX {
        assert_eq!(TOKENIZER.token_bytes(8 + u32::from(byte)), Some(&[byte][..]));
    }
    assert!(TOKENIZER.token_bytes(264).unwrap().len() == 2);
    assert_eq!(TOKENIZER.token_bytes(500), None);
    assert_eq!(TOKENIZER.control_id("wind"), None);
}

#[test]
fn stream_holds_back_only_what_may_become_a_character() {
    let mut stream = TextStream::new();
    let mut push = |byte: u8| stream.push(&TOKENIZER, 8 + u32::from(byte));
    assert_eq!(push(b'a'), "a");
    assert_eq!([push(0xF0), push(0x9F), push(0x98), push(0x80)].concat(), "😀");
    assert_eq!(push(0xFF), "\u{FFFD}");
    assert_eq!(push(0xE2), "");
    assert_eq!(push(b'b'), "\u{FFFD}b");
    assert_eq!(push(0xE2), "");
    assert_eq!(push(0x80), "");
    assert_eq!(stream.finish(), "\u{FFFD}");
}

#[test]
fn control_tokens_are_shown_only_when_asked_for() {
    let token_ids = [&[1, 3][..], &TOKENIZER.encode(" wind"), &[4, 9999]].concat();
    assert_eq!(TOKENIZER.decode(&token_ids), " wind\u{FFFD}");
    let shown = TOKENIZER.decode_with(&token_ids, ControlText::Show);
    assert_eq!(shown, "<s>[INST] wind[/INST]\u{FFFD}");
}

#[test]
fn a_megabyte_of_one_sign_is_encoded_as_fast_as_any_other_text() {
    let mut trainer = BpeTrainer::new(TrainOptions { vocab_size: 300, ..TrainOptions::default() });
    trainer.feed(&"-".repeat(100_000));
    let Err(Error::TextTooSmall { reached, .. }) = trainer.train() else { panic!() };
    let mut trainer =
        BpeTrainer::new(TrainOptions { vocab_size: reached, ..TrainOptions::default() });
    trainer.feed(&"-".repeat(100_000));
    let tokenizer = trainer.train().unwrap();
    let text = "-".repeat(1_000_000);
    let token_ids = tokenizer.encode(&text);
    assert_eq!(token_ids.len(), 1_000_000 / 64);
    assert_eq!(tokenizer.decode(&token_ids), text);
}

/// The message of the error that a change to a good file gives.
fn error_after(change: impl FnOnce(&mut Value)) -> String {
    let mut file: Value = serde_json::from_str(&trained(264).to_json().unwrap()).unwrap();
    change(&mut file);
    Tokenizer::from_json(file.to_string().as_bytes()).unwrap_err().to_string()
}

#[test]
fn unsupported_files_are_refused_by_the_name_of_the_field() {
    for (pointer, value, field) in [
        ("/model/type", json!("Unigram"), "`model.type`"),
        ("/model/dropout", json!(0.1), "`model.dropout`"),
        ("/model/byte_fallback", json!(true), "`pre_tokenizer`"),
        ("/model/ignore_merges", json!(7), "invalid type"),
        ("/model/end_of_word_suffix", json!("</w>"), "`model.end_of_word_suffix`"),
        ("/normalizer", json!({"type": "NFC"}), "`normalizer`"),
        ("/pre_tokenizer/pretokenizers/0/pattern/Regex", json!(".+"), "`pre_tokenizer`"),
        ("/post_processor", json!({"type": "TemplateProcessing"}), "`post_processor`"),
        ("/decoder", Value::Null, "`decoder`"),
        ("/truncation", json!({"max_length": 5}), "`truncation`"),
        ("/added_tokens/3/lstrip", json!(true), "`added_tokens[3].lstrip`"),
        ("/added_tokens/3/single_word", json!(true), "`added_tokens[3].single_word`"),
    ] {
        let message = error_after(|file| *file.pointer_mut(pointer).unwrap() = value);
        assert!(message.contains(field), "{message}");
    }
}

#[test]
fn contradictions_are_errors_that_name_the_entry() {
    let vocab = |file: &mut Value, token: &str, id: u32| file["model"]["vocab"][token] = json!(id);
    let cases: [(&str, String); 12] = [
        ("has another token", error_after(|f| vocab(f, "ab", 20))),
        ("not below the number of tokens", error_after(|f| vocab(f, "ab", u32::MAX))),
        ("leaves a gap", error_after(|f| vocab(f, "ab", 265))),
        ("does not stand for a byte", error_after(|f| vocab(f, "漢", 264))),
        ("the token is empty", error_after(|f| vocab(f, "", 264))),
        ("not two tokens", error_after(|f| f["model"]["merges"] = json!(["ab"]))),
        ("model.merges[0]", error_after(|f| f["model"]["merges"] = json!(["a b"]))),
        ("control token", error_after(|f| f["model"]["merges"] = json!([["a", "<s>"]]))),
        (
            "earlier merge",
            error_after(|f| {
                vocab(f, "ab", 264);
                f["model"]["merges"] = json!(["a b", ["a", "b"]]);
            }),
        ),
        ("has the id 1 in model.vocab", error_after(|f| f["added_tokens"][1]["id"] = json!(70))),
        (
            "the control token `<s>` is missing",
            error_after(|f| drop(f["added_tokens"].as_array_mut().unwrap().remove(1))),
        ),
        ("untagged enum", error_after(|f| f["model"]["merges"] = json!([7]))),
    ];
    for (expected, message) in cases {
        assert!(message.contains(expected), "{message}\nexpected: {expected}");
    }
    let json = trained(264).to_json().unwrap();
    let twice = json.replacen("\"a\": 105,", "\"a\": 105, \"a\": 264,", 1);
    let message = Tokenizer::from_json(twice.as_bytes()).unwrap_err().to_string();
    assert!(message.contains("the token is there twice"), "{message}");
    let without_byte = json.replacen("\"a\": 105,", "\"bc\": 105,", 1);
    let message = Tokenizer::from_json(without_byte.as_bytes()).unwrap_err().to_string();
    assert!(message.contains("no token for the byte 0x61"), "{message}");
}

#[test]
fn merges_may_be_written_in_either_form() {
    let expected = trained(300);
    let mut file: Value = serde_json::from_str(&expected.to_json().unwrap()).unwrap();
    for merge in file["model"]["merges"].as_array_mut().unwrap() {
        let (left, right) = merge.as_str().unwrap().split_once(' ').unwrap();
        *merge = json!([left, right]);
    }
    let found = Tokenizer::from_json(file.to_string().as_bytes()).unwrap();
    assert_eq!(found.digest(), expected.digest());
}

#[test]
fn opening_what_is_not_there_names_the_path() {
    let message = Tokenizer::open("/nowhere/at/all".as_ref()).unwrap_err().to_string();
    assert!(message.contains("/nowhere/at/all"), "{message}");
}
