//! Trains a tokenizer on one text: `cargo run -p tokenizer --example train -- TEXT_FILE VOCAB_SIZE DIR`.

use std::path::Path;
use tokenizer::{BpeTrainer, TrainOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [text_file, vocab_size, dir] = args.as_slice() else {
        return Err("usage: train TEXT_FILE VOCAB_SIZE DIR".into());
    };
    let vocab_size = vocab_size.parse()?;
    let mut trainer = BpeTrainer::new(TrainOptions { vocab_size, ..TrainOptions::default() });
    trainer.feed(&std::fs::read_to_string(text_file)?);
    std::fs::create_dir_all(dir)?;
    for (name, text) in trainer.train()?.files() {
        std::fs::write(Path::new(dir).join(name), text)?;
    }
    Ok(())
}
