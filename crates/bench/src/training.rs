//! The training step.

use std::time::Instant;

use cuda::KernelTime;
use data::packing::PackedBatch;
use model::{AdapterParameters, AdapterSettings, Decoder, ModelConfig, Parameters};
use tensor::{DType, Device, Passes};
use train::optimizer::OptimizerSettings;
use train::recipe::BatchSettings;
use train::{TrainError, Trainer};

use crate::result::median;

/// The training step that PyTorch is compared on: 16 rows of 512 tokens.
pub const TRAIN_STEP_BATCH: BatchSettings =
    BatchSettings { seq_len: 512, rows_per_step: 16, rows_per_micro_batch: 4 };

/// Rows of a step that is measured for a plan, about: with more, the optimiser takes a smaller share.
const MEASURED_ROWS: usize = 8;

/// Tokens per second of `n_steps` whole training steps in bf16 after a warm-up: forward, backward, clipping, AdamW,
/// packing. One figure per step. What is trained is the model, or an adapter beside it.
///
/// # Errors
/// When a step fails.
///
/// # Panics
/// When the rows of a step are not whole micro-batches.
pub fn train_step(
    device: &Device,
    config: &ModelConfig,
    adapter: Option<&AdapterSettings>,
    batch: BatchSettings,
    n_steps: usize,
) -> Result<Vec<f64>, TrainError> {
    let BatchSettings { seq_len, rows_per_step, .. } = batch;
    let (mut trainer, batches) = prepared(device, config, adapter, batch);
    let mut speeds = Vec::with_capacity(n_steps);
    for step in 0..=n_steps {
        let start = Instant::now();
        trainer.step(&batches, 1e-3)?;
        if step > 0 {
            speeds.push((rows_per_step * seq_len) as f64 / start.elapsed().as_secs_f64());
        }
    }
    Ok(speeds)
}

/// What a GPU spends its time on in a training step.
///
/// # Errors
/// When a step fails.
///
/// # Panics
/// Where the device is none.
pub fn train_step_profile(
    device: &Device,
    config: &ModelConfig,
    adapter: Option<&AdapterSettings>,
    batch: BatchSettings,
) -> Result<Vec<KernelTime>, TrainError> {
    let Device::Cuda { gpu, .. } = device else { panic!("a profile of the processors") };
    let (mut trainer, batches) = prepared(device, config, adapter, batch);
    trainer.step(&batches, 1e-3)?;
    let mut outcome = Ok(());
    let times = gpu.profiled(|| outcome = trainer.step(&batches, 1e-3).map(|_| ()));
    outcome.map(|()| times)
}

/// A trainer of random weights, and the micro-batches of a step.
fn prepared(
    device: &Device,
    config: &ModelConfig,
    adapter: Option<&AdapterSettings>,
    batch: BatchSettings,
) -> (Trainer, Vec<PackedBatch>) {
    let BatchSettings { seq_len, rows_per_step, rows_per_micro_batch } = batch;
    assert!(rows_per_step.is_multiple_of(rows_per_micro_batch), "{batch:?}");
    let max_tokens = seq_len * rows_per_micro_batch;
    let settings = OptimizerSettings::default();
    let (dtype, passes) = (DType::Bf16, Passes::ForwardAndBackward);
    let trainer = match adapter {
        None => {
            let parameters = Parameters::random(config, 1);
            Trainer::new(device.clone(), parameters, dtype, settings, max_tokens)
        }
        Some(adapter) => {
            let decoder = Decoder::random(device, config, dtype, passes, 1);
            let parameters = AdapterParameters::random(config, adapter, 2);
            Trainer::of_adapter(device.clone(), decoder, parameters, settings, max_tokens)
        }
    };
    let batches = (0..rows_per_step)
        .step_by(rows_per_micro_batch)
        .map(|row| random_batch(config.vocab_size, seq_len, rows_per_micro_batch, row));
    (trainer, batches.collect())
}

/// Median tokens per second of a few steps, for plans.
///
/// # Errors
/// When a step fails.
pub fn training_speed(
    device: &Device,
    config: &ModelConfig,
    adapter: Option<&AdapterSettings>,
    batch: BatchSettings,
) -> Result<f64, TrainError> {
    let rows = batch.rows_per_micro_batch;
    let rows_per_step = batch.rows_per_step.min((MEASURED_ROWS / rows).max(1) * rows);
    let batch = BatchSettings { rows_per_step, ..batch };
    Ok(median(&mut train_step(device, config, adapter, batch, 3)?))
}

/// Rows of pseudo-random tokens: multiples of a large odd number, modulo the vocabulary.
fn random_batch(vocab_size: usize, seq_len: usize, n_rows: usize, first_row: usize) -> PackedBatch {
    let mut batch = PackedBatch::new();
    let token = |i: usize| ((i as u64 * 2_654_435_761) % vocab_size as u64) as u32;
    for row in first_row..first_row + n_rows {
        for i in row * seq_len..(row + 1) * seq_len {
            batch.token_ids.push(token(i));
            batch.targets.push(token(i + 1));
            batch.target_weights.push(1.0);
        }
        batch.segment_starts.push(batch.token_ids.len() as u32);
    }
    batch
}
