//! `galerne bench tokenizer`.

use std::path::Path;

use anyhow::Context as _;
use bench::{
    BenchResult, Peer, PeerFigure, TemporaryFolder, TextFiles, median, tokenizer_encode,
    tokenizer_encode_peer, tokenizer_train, tokenizer_train_peer,
};
use tokenizer::Tokenizer;
use train::export::write_tokenizer;

use super::Args;
use crate::context::Context;
use crate::names::folder_name;

/// Training on the text, and encoding its lines, both in megabytes of text a second.
///
/// # Errors
/// When the text cannot be used, the peer cannot, or encodes into another number of tokens.
pub(super) fn measure(args: &Args, context: &Context) -> anyhow::Result<Vec<BenchResult>> {
    let text = args.text.as_deref().context("the arguments were checked")?;
    let (files, vocab_size) = (TextFiles::find(text)?, args.vocab_size());
    let lines = files.lines()?;
    let n_threads = context.n_threads();
    let (mut train_speeds, mut encode_speeds) = (Vec::new(), Vec::new());
    let (mut train_figures, mut encode_figures) = (Vec::new(), Vec::new());
    for round in 1..=args.n_rounds() {
        context.say(&format!("measuring the training of a tokenizer, round {round}"));
        let (tokenizer, speed) = tokenizer_train(&files, vocab_size, n_threads)?;
        train_speeds.push(speed);
        if let Some(peer) = args.peer() {
            context.say(&format!("measuring {}", peer.name()));
            train_figures.push(tokenizer_train_peer(text, vocab_size, n_threads)?);
        }
        context.say(&format!("measuring encoding, round {round}"));
        // This tokenizer has encoded nothing yet: it is the first pass.
        let (n_tokens, speed) = tokenizer_encode(&tokenizer, &lines);
        encode_speeds.push(speed);
        if let Some(peer) = args.peer() {
            context.say(&format!("measuring {}", peer.name()));
            encode_figures.push(encode_peer(peer, text, &tokenizer, n_tokens)?);
        }
    }
    let result = |work, detail: usize, speeds: &mut [f64], figures: &[PeerFigure]| {
        let mut result =
            BenchResult::new(work, &folder_name(text), detail.to_string(), median(speeds));
        result.unit = "MB/s";
        match args.peer() {
            Some(peer) => result.with_peer(peer, figures),
            None => result,
        }
    };
    Ok(vec![
        result("tokenizer_train", vocab_size, &mut train_speeds, &train_figures),
        result("tokenizer_encode", vocab_size, &mut encode_speeds, &encode_figures),
    ])
}

/// The peer's first pass by the same tokenizer, whose ids must be as many as ours.
fn encode_peer(
    peer: Peer,
    text: &Path,
    tokenizer: &Tokenizer,
    n_tokens: u64,
) -> anyhow::Result<PeerFigure> {
    let temporary = TemporaryFolder::new().context("cannot make a temporary folder")?;
    let folder = temporary.path().join("tokenizer");
    write_tokenizer(&folder, tokenizer)?;
    let figure = tokenizer_encode_peer(text, &folder.join("tokenizer.json"))?;
    if let Some(got) = figure.n_tokens.filter(|&got| got != n_tokens) {
        let name = peer.name();
        anyhow::bail!("{name} encodes the text into {got} tokens, expected {n_tokens} as ours");
    }
    Ok(figure)
}
