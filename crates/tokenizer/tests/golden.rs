//! Against Python: `golden/tokenizer/golden.json` holds what `tokenizers` and `transformers` make of the tokenizer that
//! this crate trains on `golden/tokenizer/training_text.txt`. `golden/make_tokenizer.py` remakes it.

#![allow(clippy::unwrap_used, reason = "tests")]

use serde::Deserialize;
use std::fs;
use std::path::PathBuf;
use testkit::golden::workspace_root;
use tokenizer::{
    BpeTrainer, ChatTemplate, Conversation, Ending, Message, TextStream, Tokenizer, TrainOptions,
};

#[derive(Deserialize)]
struct Golden {
    /// BOS, EOS, padding.
    special: [u32; 3],
    encoded: Vec<Encoded>,
    decoded: Vec<Encoded>,
    rendered: Vec<Rendered>,
}

#[derive(Deserialize)]
struct Encoded {
    text: String,
    ids: Vec<u32>,
}

#[derive(Deserialize)]
struct Rendered {
    messages: Vec<Message>,
    awaits_answer: bool,
    ids: Vec<u32>,
    text: String,
}

fn folder() -> PathBuf {
    workspace_root().join("golden/tokenizer")
}

fn golden() -> Golden {
    serde_json::from_slice(&fs::read(folder().join("golden.json")).unwrap()).unwrap()
}

fn committed() -> Tokenizer {
    Tokenizer::open(&folder().join("model")).unwrap()
}

#[test]
fn training_gives_the_committed_files() {
    let text = fs::read_to_string(folder().join("training_text.txt")).unwrap();
    for n_threads in [1, 3] {
        let options = TrainOptions { vocab_size: 600, n_threads };
        let mut trainer = BpeTrainer::new(options);
        trainer.feed(&text);
        for (name, contents) in trainer.train().unwrap().files() {
            let expected = fs::read(folder().join("model").join(&name)).unwrap();
            assert_eq!(contents, expected, "{name}");
        }
    }
}

#[test]
fn encoding_equals_the_library() {
    let (tokenizer, golden) = (committed(), golden());
    assert_eq!(
        golden.special,
        [tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id().unwrap()]
    );
    assert!(golden.encoded.len() >= 400);
    for case in golden.encoded {
        assert_eq!(tokenizer.encode(&case.text), case.ids, "{:?}", case.text);
        assert_eq!(tokenizer.decode(&case.ids), case.text);
    }
}

#[test]
fn decoding_equals_the_library_whole_and_in_a_stream() {
    let tokenizer = committed();
    for case in golden().decoded {
        assert_eq!(tokenizer.decode(&case.ids), case.text, "{:?}", case.ids);
        let mut stream = TextStream::new();
        let mut text: String = case.ids.iter().map(|&id| stream.push(&tokenizer, id)).collect();
        text.push_str(&stream.finish());
        assert_eq!(text, case.text, "{:?}", case.ids);
    }
}

#[test]
fn template_equals_its_jinja_text_in_transformers() {
    let tokenizer = committed();
    for case in golden().rendered {
        let conversation = Conversation { messages: case.messages };
        let ending = if case.awaits_answer { Ending::AwaitAnswer } else { Ending::Complete };
        let rendered = ChatTemplate::Galerne.render(&tokenizer, &conversation, ending).unwrap();
        assert_eq!(rendered.text, case.text);
        assert_eq!(rendered.token_ids, case.ids, "{}", case.text);
    }
}
