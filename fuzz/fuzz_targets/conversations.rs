//! Conversations as JSON lines, read and rendered as training does.

#![no_main]

use std::sync::LazyLock;

use formats::json_lines::JsonLines;
use fuzz::{golden_tokenizer, with_files};
use libfuzzer_sys::fuzz_target;
use tokenizer::{ChatTemplate, Conversation, Ending, Tokenizer};

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(golden_tokenizer);

fuzz_target!(|data: &[u8]| {
    with_files(data, &["chat.jsonl"], |folder| {
        let path = folder.join("chat.jsonl");
        let lines = JsonLines::open(&path).expect("the file was just written");
        for line in lines.map_while(Result::ok) {
            let parsed = serde_json::from_slice::<Conversation>(line.bytes.trim_ascii());
            let Ok(conversation) = parsed else { continue };
            let _ = ChatTemplate::default().render(&TOKENIZER, &conversation, Ending::Complete);
        }
    });
});
