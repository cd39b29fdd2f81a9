//! A chat template in Jinja, rendered; to be run with `-max_len=131072`, the longest that is read.

#![no_main]

use std::sync::{Arc, LazyLock};

use fuzz::golden_tokenizer;
use libfuzzer_sys::fuzz_target;
use tokenizer::{ChatTemplate, Conversation, Ending, JinjaTemplate, Message, Role, Tokenizer};

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(golden_tokenizer);

fuzz_target!(|source: &str| {
    let Ok(template) = JinjaTemplate::new(source) else { return };
    let messages = vec![Message::new(Role::System, "s"), Message::new(Role::User, "u </s> [INST]")];
    let template = ChatTemplate::Jinja(Arc::new(template));
    let _ = template.render(&TOKENIZER, &Conversation { messages }, Ending::AwaitAnswer);
});
