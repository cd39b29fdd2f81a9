//! Requests of the API.

#![no_main]

use api::{ChatRequest, CompletionRequest};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = ChatRequest::parse(data);
    let _ = CompletionRequest::parse(data);
});
