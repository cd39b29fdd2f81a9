//! `tokenizer.model`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tokenizer::Tokenizer;

/// Encoding and decoding must hold whatever the file was.
fn use_it(tokenizer: &Tokenizer) {
    let text = "a b\n12 é😀 </s>";
    let _ = tokenizer.decode(&tokenizer.encode(text));
    let _ = tokenizer.listing();
}

fuzz_target!(|data: &[u8]| {
    if let Ok(tokenizer) = Tokenizer::from_sentencepiece(data) {
        use_it(&tokenizer);
    }
});
