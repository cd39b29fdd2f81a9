//! Makes the small chat model that servers under test use: `cargo run --profile ci -p train --example test_model -- HOME`.
//!
//! A fixed number of steps on general conversations, from random weights: well under a minute, and the same weights in every
//! run on one kernel family. It speaks, and is often wrong.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use data::chat_set;
use formats::WeightDtype;
use formats::model_dir::Lineage;
use kernels::Compute;
use tensor::Device;
use tokenizer::{BpeTrainer, TrainOptions};
use train::export::{ModelNotes, write_model, write_tokenizer};
use train::optimizer::OptimizerSettings;
use train::recipe::{
    BatchSettings, CheckpointSettings, DataSettings, FORMAT_VERSION, ModelShape, Start,
};
use train::schedule::Schedule;
use train::{Recipe, Run, RunControl};

const N_STEPS: u64 = 240;
const VOCAB_SIZE: usize = 1024;
const SEED: u64 = 1;

fn main() -> Result<(), Box<dyn Error>> {
    let home = std::env::args_os().nth(1).map(PathBuf::from).ok_or("usage: test_model HOME")?;
    let data = home.join("data/test-model");
    fs::create_dir_all(&data)?;
    let dialogues = chat_set::dialogues(3_000, SEED);
    let mut trainer =
        BpeTrainer::new(TrainOptions { vocab_size: VOCAB_SIZE, ..TrainOptions::default() });
    for turn in dialogues.iter().flat_map(|dialogue| &dialogue.turns) {
        trainer.feed(&turn.question);
        trainer.feed(&turn.answer);
    }
    let tokenizer = trainer.train()?;
    write_tokenizer(&data.join("tokenizer"), &tokenizer)?;
    let conversations = dialogues.iter().map(chat_set::Dialogue::conversation);
    chat_set::write_jsonl(&data.join("chat.jsonl"), conversations)?;
    let device = Device::Cpu(Compute::detect()?);
    let mut run = Run::create(&home.join("runs/test-model"), recipe(&data), device)?;
    run.train(|_| RunControl::Continue)?;
    let notes = ModelNotes {
        name: "test-model".to_owned(),
        summary: "A very small chat model for tests of servers and clients.".to_owned(),
        sections: Vec::new(),
        lineage: Lineage { run: Some("test-model".to_owned()), ..Lineage::default() },
        // Answers of tests are not a matter of chance.
        temperature: Some(0.0),
        template: None,
    };
    let dir = home.join("models/test-model");
    write_model(&dir, run.trained().model(), WeightDtype::Bf16, &tokenizer, &notes)?;
    Ok(())
}

fn recipe(data: &Path) -> Recipe {
    Recipe {
        format_version: FORMAT_VERSION,
        n_steps: N_STEPS,
        seed: SEED,
        dtype: WeightDtype::Bf16,
        start: Start::Random(ModelShape {
            hidden_dim: 128,
            n_layers: 3,
            n_heads: 2,
            n_kv_heads: 1,
            head_dim: 64,
            ffn_dim: 352,
            vocab_size: VOCAB_SIZE,
            context_len: 512,
            rope_theta: 1e4,
        }),
        adapter: None,
        data: DataSettings {
            tokenizer: data.join("tokenizer"),
            shards: Vec::new(),
            conversations: vec![data.join("chat.jsonl")],
            documents: Vec::new(),
        },
        batch: BatchSettings { seq_len: 256, rows_per_step: 8, rows_per_micro_batch: 8 },
        schedule: Schedule { peak_learning_rate: 5e-3, warmup_steps: 10, decay_steps: 100 },
        optimizer: OptimizerSettings::default(),
        checkpoint: CheckpointSettings { every_steps: N_STEPS, n_keep: 1 },
        validation: None,
    }
}
