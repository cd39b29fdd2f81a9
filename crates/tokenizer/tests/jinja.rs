//! Against Python: `golden/jinja/golden.json` holds what `transformers` makes of the templates beside it, which use what the
//! templates of published models use. `golden/make_jinja.py` remakes it.

#![allow(clippy::unwrap_used, reason = "tests")]

use serde::Deserialize;
use std::fs;
use std::path::PathBuf;
use testkit::golden::workspace_root;
use tokenizer::{ChatTemplate, Conversation, Ending, JinjaTemplate, Message, Tokenizer};

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    template: String,
    messages: Vec<Message>,
    text: Option<String>,
    ids: Option<Vec<u32>>,
    refused: Option<String>,
}

fn folder() -> PathBuf {
    workspace_root().join("golden")
}

#[test]
fn templates_render_as_in_transformers() {
    let tokenizer = Tokenizer::open(&folder().join("tokenizer/model")).unwrap();
    let golden: Golden =
        serde_json::from_slice(&fs::read(folder().join("jinja/golden.json")).unwrap()).unwrap();
    assert!(golden.cases.len() >= 33);
    for case in golden.cases {
        let source = fs::read_to_string(folder().join("jinja").join(&case.template)).unwrap();
        let template = ChatTemplate::Jinja(JinjaTemplate::new(&source).unwrap().into());
        let conversation = Conversation { messages: case.messages };
        let rendered = template.render(&tokenizer, &conversation, Ending::AwaitAnswer);
        let name = format!("{} {:?}", case.template, conversation.messages);
        match (rendered, case.refused) {
            (Ok(rendered), None) => {
                assert_eq!(Some(rendered.text), case.text, "{name}");
                assert_eq!(Some(rendered.token_ids), case.ids, "{name}");
            }
            (Err(error), Some(refused)) => assert!(error.to_string().contains(&refused), "{error}"),
            (rendered, refused) => panic!("{name}: {rendered:?}, expected refused {refused:?}"),
        }
    }
}
