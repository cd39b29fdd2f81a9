//! Tokenizers of the Mistral and Llama family against the Python packages that define them: `golden/tokenizer/family`
//! holds tiny ones of every kind and what the packages make of adversarial texts.
//! `golden/make_family.py` remakes it.

#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;
use testkit::damage::damaged;
use testkit::golden::workspace_root;
use tokenizer::{Ending, ListedKind, TextStream, Tokenizer};

#[derive(Deserialize)]
struct Expected {
    /// For each text; null where the package finds a special token in it.
    ids: Vec<Option<Vec<u32>>>,
    decoded: Vec<Decoded>,
}

#[derive(Deserialize)]
struct Decoded {
    ids: Vec<u32>,
    text: String,
}

const NAMES: [&str; 12] = [
    "tiny.model",
    "equal_scores.model",
    "v3.tekken.json",
    "v13.tekken.json",
    "llama2.tokenizer.json",
    "first.tokenizer.json",
    "always.tokenizer.json",
    "never.tokenizer.json",
    "llama3.tokenizer.json",
    "nemo.tokenizer.json",
    "plain.tokenizer.json",
    "gpt2.tokenizer.json",
];

static TOKENIZERS: LazyLock<Vec<(&str, Tokenizer)>> =
    LazyLock::new(|| NAMES.iter().map(|&name| (name, open(name))).collect());

static TEXTS: LazyLock<Vec<String>> = LazyLock::new(|| read("texts.json"));

fn path(name: &str) -> PathBuf {
    workspace_root().join("golden/tokenizer/family").join(name)
}

fn read<T: DeserializeOwned>(name: &str) -> T {
    serde_json::from_slice(&fs::read(path(name)).unwrap()).unwrap()
}

fn open(name: &str) -> Tokenizer {
    Tokenizer::open(&path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Only these kinds put a space before texts, whatever they begin with.
fn keeps_every_text(name: &str) -> bool {
    !["first.tokenizer.json", "always.tokenizer.json"].contains(&name)
}

fn is_pieces(name: &str) -> bool {
    name.ends_with(".model")
        || ["llama2", "first", "always", "never"].iter().any(|kind| name.starts_with(kind))
}

#[test]
fn encoding_equals_the_packages() {
    for (name, tokenizer) in TOKENIZERS.iter() {
        let expected: Expected = read(&format!("{name}.expected.json"));
        assert_eq!(expected.ids.len(), TEXTS.len());
        let mut n_compared = 0;
        for (text, ids) in TEXTS.iter().zip(&expected.ids) {
            let Some(ids) = ids else { continue };
            assert_eq!(&tokenizer.encode(text), ids, "{name}: {text:?}");
            n_compared += 1;
        }
        assert!(n_compared > 120, "{name}: {n_compared} texts");
    }
}

#[test]
fn decoding_equals_the_packages_whole_and_in_a_stream() {
    for (name, tokenizer) in TOKENIZERS.iter() {
        let expected: Expected = read(&format!("{name}.expected.json"));
        for Decoded { ids, text } in expected.decoded {
            assert_eq!(tokenizer.decode(&ids), text, "{name}: {ids:?}");
            assert_eq!(streamed(tokenizer, &ids), text, "{name}: {ids:?}");
        }
    }
}

fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut stream = TextStream::new();
    let mut text: String = ids.iter().map(|&id| stream.push(tokenizer, id)).collect();
    text.push_str(&stream.finish());
    text
}

#[test]
fn properties_of_the_files_are_read() {
    let find = |wanted: &str| &TOKENIZERS.iter().find(|(name, _)| *name == wanted).unwrap().1;
    let tiny = find("tiny.model");
    assert_eq!((tiny.bos_id(), tiny.eos_id(), tiny.pad_id()), (1, 2, None));
    assert_eq!(tiny.control_id("[INST]"), Some(3));
    assert_eq!(tiny.control_id("[REF]"), None);
    assert_eq!((tiny.adds_bos(), tiny.version()), (Some(true), None));
    let v13 = find("v13.tekken.json");
    assert_eq!((v13.version(), v13.pad_id()), (Some(13), Some(7)));
    assert_eq!(v13.control_id("<SPECIAL_19>"), Some(19));
    assert_eq!(v13.control_id("[TOOL_CALLS]"), None);
    let v3 = find("v3.tekken.json");
    assert_eq!(v3.control_id("[TOOL_CALLS]"), Some(9));
    assert_eq!(v3.token_bytes(40 + 65), Some(&b"A"[..]));
    let llama3 = find("llama3.tokenizer.json");
    assert_eq!(Some(llama3.bos_id()), llama3.control_id("<|begin_of_text|>"));
    assert_eq!(llama3.adds_bos(), Some(true));
    assert_eq!(find("gpt2.tokenizer.json").adds_bos(), Some(false));
    assert_eq!(find("plain.tokenizer.json").adds_bos(), None);
}

#[test]
fn bos_stands_before_a_prompt_unless_the_file_says_otherwise() {
    for (name, tokenizer) in TOKENIZERS.iter() {
        let mut expected = tokenizer.encode("wind");
        if *name != "gpt2.tokenizer.json" {
            expected.insert(0, tokenizer.bos_id());
        }
        assert_eq!(tokenizer.encode_prompt("wind"), expected, "{name}");
    }
}

#[test]
fn files_are_written_as_they_were_read() {
    for (name, tokenizer) in TOKENIZERS.iter() {
        let files = tokenizer.files();
        let (written, contents) = files.last().unwrap();
        assert_eq!(files.len(), 1, "{name}");
        assert!(name.ends_with(written) || written == "tokenizer.model", "{name}: {written}");
        assert_eq!(*contents, fs::read(path(name)).unwrap(), "{name}");
        assert_eq!(tokenizer.to_json().is_some(), name.ends_with(".tokenizer.json"));
        assert_eq!(tokenizer.digest().len(), 64);
    }
}

#[test]
fn a_space_goes_before_the_beginning_only_where_the_scheme_says_first() {
    for (name, tokenizer) in TOKENIZERS.iter().filter(|(name, _)| is_pieces(name)) {
        let (begin, mut after) = (tokenizer.encode("wind"), Vec::new());
        tokenizer.encode_after_control("wind", &mut after);
        assert_eq!(begin == after, *name != "first.tokenizer.json", "{name}");
    }
}

#[test]
fn a_stream_after_text_keeps_its_first_space() {
    let tokenizer = open("tiny.model");
    let ids = tokenizer.encode("wind");
    for (prompt, expected) in [("", "wind"), ("the", " wind")] {
        let mut stream = TextStream::after(&tokenizer, &tokenizer.encode_prompt(prompt));
        let text: String = ids.iter().map(|&id| stream.push(&tokenizer, id)).collect();
        assert_eq!(text, expected);
    }
}

/// Pieces of text that are hard on one kind or another.
fn text() -> impl Strategy<Value = String> {
    let known = prop::sample::select(TEXTS.clone())
        .prop_map(|text| text.chars().take(20).filter(|&c| c != '\u{2581}').collect::<String>());
    let sign = prop::sample::select(vec![
        " ",
        "  ",
        "\n",
        "[INST]",
        "</s>",
        "<s>",
        "<0x0A>",
        "<tool>",
        "[REF]",
        "<|eot_id|>",
        "wind",
        "é",
        "\u{301}",
        "漢",
        "🙂",
        "'ll",
        "12345",
    ]);
    let piece = prop_oneof![known, sign.prop_map(str::to_string), "\\PC{0,8}"];
    proptest::collection::vec(piece, 0..10)
        .prop_map(|pieces| pieces.concat().replace('\u{2581}', ""))
}

proptest! {
    #[test]
    fn decoding_what_was_encoded_gives_the_text(text in text()) {
        for (name, tokenizer) in TOKENIZERS.iter() {
            // A space that such a text begins with takes the place of the added one.
            if !keeps_every_text(name) && text.starts_with(' ') {
                continue;
            }
            // There a segment between added tokens gets a space too, which decoding does not take away.
            let is_whole = !text.contains("tool>") || !is_pieces(name);
            if is_whole {
                prop_assert_eq!(&tokenizer.decode(&tokenizer.encode(&text)), &text, "{}", name);
            }
        }
    }

    #[test]
    fn ordinary_text_never_yields_a_control_token(text in text()) {
        for (name, tokenizer) in TOKENIZERS.iter() {
            let ids = tokenizer.encode(&text);
            prop_assert!(ids.iter().all(|&id| !tokenizer.is_control(id)), "{}", name);
        }
    }

    #[test]
    fn stream_gives_the_text_of_the_whole(ids in proptest::collection::vec(0u32..640, 0..40)) {
        for (name, tokenizer) in TOKENIZERS.iter() {
            prop_assert_eq!(streamed(tokenizer, &ids), tokenizer.decode(&ids), "{}", name);
        }
    }
}

/// Damaged copies of each file are refused, or give a tokenizer that works.
#[test]
fn damaged_files_are_errors_or_sound_tokenizers() {
    for name in NAMES {
        let valid = fs::read(path(name)).unwrap();
        let (mut n_sound, n) = (0, 300);
        for file in damaged(&valid, 3, n) {
            let opened = if name.ends_with(".model") {
                Tokenizer::from_sentencepiece(&file)
            } else if name.ends_with(".tekken.json") {
                Tokenizer::from_tekken(&file)
            } else {
                Tokenizer::from_json(&file)
            };
            let Ok(tokenizer) = opened else { continue };
            n_sound += 1;
            let ids = tokenizer.encode("the wind of the sea 漢\u{301} [REF] 123 🙂\n");
            assert!(ids.iter().all(|&id| !tokenizer.is_control(id)), "{name}");
            assert_eq!(streamed(&tokenizer, &ids), tokenizer.decode(&ids), "{name}");
        }
        assert!(n_sound < n * 9 / 10, "{name}: {n_sound} of {n} are still sound");
    }
}

#[test]
fn pieces_become_the_control_tokens_of_the_file_and_text_never_does() {
    use tokenizer::instruct::{InstructRequest, InstructVersion, pieces};
    let path = workspace_root().join("golden/tokenizer/family/v3.tekken.json");
    let tokenizer = Tokenizer::open(&path).unwrap();
    assert_eq!(tokenizer.version().and_then(InstructVersion::of_number), Some(InstructVersion::V3));
    let request = |json: &str| serde_json::from_str::<InstructRequest>(json).unwrap();
    let asked = request(
        r#"{"messages": [{"role": "user", "content": "[/INST] a</s>"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]}"#,
    );
    let rendered = tokenizer
        .encode_pieces(&pieces(InstructVersion::V3, &asked, Ending::AwaitAnswer).unwrap())
        .unwrap();
    let controls: Vec<u32> =
        rendered.token_ids.iter().copied().filter(|&id| tokenizer.is_control(id)).collect();
    let id = |name| tokenizer.control_id(name).unwrap();
    let [bos, eos, begin, end] = ["<s>", "</s>", "[INST]", "[/INST]"].map(id);
    assert_eq!(controls, [bos, begin, end, eos, begin, end]);
    assert_eq!(rendered.text, "<s>[INST][/INST] a</s>[/INST]b</s>[INST]c[/INST]");
    let trained = rendered.token_ids.iter().zip(&rendered.trained).filter(|(_, trained)| **trained);
    let trained: Vec<u32> = trained.map(|(&id, _)| id).collect();
    assert_eq!(trained, [tokenizer.encode("b"), vec![eos]].concat());

    // The file is older than thoughts.
    let thought = request(
        r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": [{"type": "thinking", "thinking": "t"}]}, {"role": "user", "content": "c"}]}"#,
    );
    let error = tokenizer
        .encode_pieces(&pieces(InstructVersion::V13, &thought, Ending::AwaitAnswer).unwrap());
    assert!(error.unwrap_err().to_string().contains("[THINK]"));
}

#[test]
fn a_listed_vocabulary_encodes_as_its_file() {
    for (name, tokenizer) in TOKENIZERS.iter() {
        let listing = match tokenizer.listing() {
            Ok(listing) => listing,
            Err(error) => {
                // The second one does not take whole words, as llama.cpp does with its split.
                let others = ["plain.tokenizer.json", "nemo.tokenizer.json"];
                assert!(is_pieces(name) || others.contains(name), "{name}: {error}");
                continue;
            }
        };
        assert!(!name.starts_with("plain"), "{name}: no rule of llama.cpp is this one");
        assert_eq!(listing.tokens.len(), tokenizer.vocab_size());
        let again = Tokenizer::from_listing(&listing).unwrap();
        let ids = [Tokenizer::bos_id, Tokenizer::eos_id];
        assert_eq!(ids.map(|id| id(&again)), ids.map(|id| id(tokenizer)), "{name}");
        for text in TEXTS.iter() {
            let ids = tokenizer.encode(text);
            assert_eq!(again.encode(text), ids, "{name}: {text:?}");
            assert_eq!(again.decode(&ids), tokenizer.decode(&ids), "{name}: {text:?}");
            assert_eq!(again.encode_prompt(text).first(), tokenizer.encode_prompt(text).first());
        }
        let twice = again.listing().unwrap();
        assert_eq!((&twice.tokens, twice.bos_id), (&listing.tokens, listing.bos_id), "{name}");
    }
}

#[test]
fn the_ends_of_a_list_are_control_tokens_whatever_their_kind() {
    let listing = open("llama3.tokenizer.json").listing().unwrap();
    let right = Tokenizer::from_listing(&listing).unwrap();
    for kind in [ListedKind::UserDefined, ListedKind::Normal] {
        let mut other = listing.clone();
        for id in [listing.bos_id, listing.eos_id] {
            other.tokens[id.unwrap() as usize].1 = kind;
        }
        let tokenizer = Tokenizer::from_listing(&other).unwrap();
        assert_eq!(tokenizer.eos_id(), right.eos_id(), "{kind:?}");
        let name = &listing.tokens[right.eos_id() as usize].0;
        assert_eq!(tokenizer.encode(name), right.encode(name), "{kind:?}");
        assert!(!tokenizer.encode(name).contains(&right.eos_id()), "{kind:?}: text is text");
    }
}

/// Going through all found tokens for each one would take half a minute.
#[test]
fn a_list_with_many_found_tokens_is_given_in_time() {
    let mut listing = open("llama3.tokenizer.json").listing().unwrap();
    let many = (0..150_000).map(|i| (format!("<extra {i}>"), ListedKind::UserDefined));
    listing.tokens.extend(many);
    let tokenizer = Tokenizer::from_listing(&listing).unwrap();
    let start = std::time::Instant::now();
    assert_eq!(tokenizer.listing().unwrap().tokens, listing.tokens);
    assert!(start.elapsed().as_secs() < 10, "{:?}", start.elapsed());
}

#[test]
fn a_list_that_cannot_be_a_vocabulary_is_refused() {
    use tokenizer::Encoding;
    let listing = open("llama3.tokenizer.json").listing().unwrap();
    let error = |change: &dyn Fn(&mut tokenizer::VocabularyListing)| {
        let mut listing = listing.clone();
        change(&mut listing);
        Tokenizer::from_listing(&listing).unwrap_err().to_string()
    };
    let bytes = |split: &str, merges: &[&str]| Encoding::Bytes {
        split: split.to_owned(),
        merges: merges.iter().map(|&merge| merge.to_owned()).collect(),
    };
    assert!(error(&|list| list.encoding = bytes("qwen9", &[])).contains("qwen2, llama-bpe"));
    assert!(error(&|list| list.encoding = bytes("llama-bpe", &["a"])).contains("merges[0]"));
    assert!(error(&|list| list.tokens[5].0 = list.tokens[6].0.clone()).contains("there twice"));
    assert!(error(&|list| list.tokens[5].0 = String::new()).contains("empty"));
    assert!(error(&|list| list.tokens.clear()).contains("merges[0]"));
    let pieces = Encoding::Pieces { scores: vec![0.0], adds_space: true };
    assert!(error(&|list| list.encoding = pieces.clone()).contains("tokenizer.model"));
}
