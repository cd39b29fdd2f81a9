//! Measures training and encoding: `cargo run --release -p tokenizer --example measure -- DIR [VOCAB_SIZE]`, where DIR holds
//! `.txt` files at any depth. Reads all files first; times exclude reading.

#![allow(clippy::print_stdout, reason = "prints its figures")]

use std::path::Path;
use std::time::Instant;
use tokenizer::{BpeTrainer, Error, TrainOptions};

fn read(dir: &Path, texts: &mut Vec<String>) -> std::io::Result<()> {
    let mut paths: Vec<_> =
        std::fs::read_dir(dir)?.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>()?;
    paths.sort();
    for path in paths {
        if path.is_dir() {
            read(&path, texts)?;
        } else if path.extension().is_some_and(|e| e == "txt") {
            texts.push(std::fs::read_to_string(&path)?);
        }
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().ok_or("usage: measure DIR [VOCAB_SIZE]")?;
    let vocab_size = args.next().map_or(Ok(32_768), |n| n.parse())?;
    let mut texts = Vec::new();
    read(Path::new(&dir), &mut texts)?;
    let megabytes = texts.iter().map(String::len).sum::<usize>() as f64 / 1e6;
    let mut trained = None;
    for n_threads in [1, 2] {
        let options = TrainOptions { vocab_size, n_threads };
        let start = Instant::now();
        let mut trainer = BpeTrainer::new(options);
        texts.iter().for_each(|text| trainer.feed(text));
        let counted = start.elapsed().as_secs_f64();
        let tokenizer = trainer.train()?;
        let all = start.elapsed().as_secs_f64();
        println!(
            "train {vocab_size} entries from {megabytes:.1} MB, {n_threads} threads: {all:.2} s \
             (counting {counted:.2} s), digest {}",
            &tokenizer.digest()[..12]
        );
        trained = Some(tokenizer);
    }
    let tokenizer = trained.ok_or(Error::VocabTooSmall { vocab_size, minimum: 264 })?;
    for pass in ["first", "second"] {
        let mut token_ids = Vec::new();
        let mut n_tokens = 0;
        let start = Instant::now();
        for text in &texts {
            token_ids.clear();
            tokenizer.encode_into(text, &mut token_ids);
            n_tokens += token_ids.len();
        }
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "encode, {pass} pass, one thread: {:.1} MB/s, {:.3} bytes/token",
            megabytes / seconds,
            megabytes * 1e6 / n_tokens as f64
        );
    }
    let letters = "-".repeat(1_000_000);
    let start = Instant::now();
    let n_tokens = tokenizer.encode(&letters).len();
    println!("encode 1 MB of one sign: {n_tokens} tokens, {:.3} s", start.elapsed().as_secs_f64());
    Ok(())
}
