//! `galerne bench train`.

use bench::{BenchResult, Machine, TRAIN_STEP_BATCH, median, train_step, train_step_peer};
use tensor::DType;
use train::plan::TrainingMemory;

use super::Args;
use crate::context::Context;
use crate::machine;

/// Measured training steps.
const N_STEPS: usize = 5;

/// The training step of a shape.
///
/// # Errors
/// When the memory is too small, or the peer cannot be used.
pub(super) fn measure(
    args: &Args,
    machine: &Machine,
    context: &Context,
) -> anyhow::Result<BenchResult> {
    let (shape, config) = args.shape()?;
    let device = context.device()?;
    let (rows, seq_len) = (TRAIN_STEP_BATCH.rows_per_micro_batch, TRAIN_STEP_BATCH.seq_len);
    let memory = TrainingMemory::of(&config, DType::Bf16, rows, seq_len, 0);
    machine::check_memory("the training step", memory.total_bytes())?;
    let mut speeds = Vec::new();
    let mut figures = Vec::new();
    // Alternately, so that a busy moment of the machine hits both.
    for round in 1..=args.n_rounds() {
        context.say(&format!("measuring the training step, round {round}"));
        speeds.extend(train_step(&device, &config, TRAIN_STEP_BATCH, N_STEPS)?);
        if let Some(peer) = args.peer() {
            context.say(&format!("measuring {}", peer.name()));
            figures.push(train_step_peer(context.n_threads())?);
        }
    }
    let speed = median(&mut speeds);
    let tokens = (TRAIN_STEP_BATCH.rows_per_step * TRAIN_STEP_BATCH.seq_len).to_string();
    let mut result = BenchResult::new("train_step", shape.name, tokens, speed);
    let flops = speed * config.train_flops_per_token(TRAIN_STEP_BATCH.seq_len);
    result.roofline_fraction = Some(flops / machine.roofline.bf16_flops);
    Ok(match args.peer() {
        Some(peer) => result.with_peer(peer, &figures),
        None => result,
    })
}
