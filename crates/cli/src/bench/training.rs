//! `galerne bench train`.

use bench::{
    BenchResult, Machine, TRAIN_STEP_BATCH, median, train_step, train_step_peer, train_step_profile,
};
use model::AdapterSettings;
use tensor::{DType, Device};
use train::plan::TrainingMemory;
use train::recipe::BatchSettings;

use super::Args;
use crate::context::Context;
use crate::failure::Failure;
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
    let adapter = args.lora_rank.map(|rank| AdapterSettings::of_rank(rank.get()));
    if let Some(adapter) = &adapter {
        adapter.check(&config).map_err(Failure::usage)?;
    }
    let adapter = adapter.as_ref();
    let batch = batch_of(&device, shape.name);
    let BatchSettings { seq_len, rows_per_step, rows_per_micro_batch: rows } = batch;
    let memory = TrainingMemory::on(&device, &config, adapter, DType::Bf16, rows, seq_len, 0);
    machine::check_memory(&device, "the training step", memory.total_bytes())?;
    if args.profile {
        super::say_profile(&train_step_profile(&device, &config, adapter, batch)?, context);
    }
    let mut speeds = Vec::new();
    let mut figures = Vec::new();
    // Alternately, so that a busy moment of the machine hits both.
    for round in 1..=args.n_rounds() {
        context.say(&format!("measuring the training step, round {round}"));
        speeds.extend(train_step(&device, &config, adapter, batch, N_STEPS)?);
        if let Some(peer) = args.peer() {
            context.say(&format!("measuring {}", peer.name()));
            figures.push(train_step_peer(context.n_threads())?);
        }
    }
    let speed = median(&mut speeds);
    let (work, flops_per_token) = match adapter {
        None => ("train_step", config.train_flops_per_token(seq_len)),
        Some(_) => ("lora_step", config.adapter_flops_per_token(seq_len)),
    };
    let detail = (rows_per_step * seq_len).to_string();
    let mut result = BenchResult::new(work, shape.name, detail, speed);
    let flops = speed * flops_per_token;
    let limit = machine.gpu.as_ref().map_or(machine.roofline.bf16_flops, |gpu| gpu.bf16_flops);
    result.roofline_fraction = Some(flops / limit);
    Ok(match args.peer() {
        Some(peer) => result.with_peer(peer, &figures),
        None => result,
    })
}

/// The rows of a step: those that PyTorch is compared on where the processors compute; more on a GPU.
fn batch_of(device: &Device, shape: &str) -> BatchSettings {
    let [seq_len, rows_per_step, rows_per_micro_batch] = match (device, shape) {
        (Device::Cuda { .. }, "124m") => [1024, 512, 64],
        (Device::Cuda { .. }, "1b") => [2048, 64, 8],
        (Device::Cuda { .. }, "7b" | "8b") => [2048, 16, 8],
        _ => return TRAIN_STEP_BATCH,
    };
    BatchSettings { seq_len, rows_per_step, rows_per_micro_batch }
}
