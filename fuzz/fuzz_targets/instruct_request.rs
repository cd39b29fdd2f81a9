//! A request for Mistral's instruct templates, rendered by every version.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tokenizer::instruct::{InstructRequest, InstructVersion};
use tokenizer::{Ending, instruct};

fuzz_target!(|data: &[u8]| {
    let Ok(request) = serde_json::from_slice::<InstructRequest>(data) else { return };
    for version in InstructVersion::ALL {
        for ending in [Ending::AwaitAnswer, Ending::Complete] {
            let _ = instruct::pieces(version, &request, ending);
        }
    }
});
