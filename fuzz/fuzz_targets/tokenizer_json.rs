//! `tokenizer.json`.

#![no_main]

use fuzz::use_tokenizer;
use libfuzzer_sys::fuzz_target;
use tokenizer::Tokenizer;

fuzz_target!(|data: &[u8]| {
    if let Ok(tokenizer) = Tokenizer::from_json(data) {
        use_tokenizer(&tokenizer);
    }
});
