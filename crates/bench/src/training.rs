//! The training step.

use std::time::Instant;

use data::packing::PackedBatch;
use model::{ModelConfig, Parameters};
use tensor::{DType, Device};
use train::optimizer::OptimizerSettings;
use train::{TrainError, Trainer};

use crate::result::median;

/// How a measured step is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrainStepShape {
    /// Tokens of a row; each row is one document.
    pub seq_len: usize,
    /// Rows of the step.
    pub n_rows: usize,
    /// Rows computed together.
    pub rows_per_micro_batch: usize,
}

impl TrainStepShape {
    /// The step of the bar: 16 rows of 512 tokens.
    pub const BAR: Self = Self { seq_len: 512, n_rows: 16, rows_per_micro_batch: 2 };
}

/// Tokens per second of `n_steps` whole training steps in bf16 after a warm-up: forward, backward, clipping, AdamW,
/// packing. One figure per step.
///
/// # Errors
/// When a step fails.
pub fn train_step(
    device: &Device,
    config: &ModelConfig,
    shape: TrainStepShape,
    n_steps: usize,
) -> Result<Vec<f64>, TrainError> {
    let TrainStepShape { seq_len, n_rows, rows_per_micro_batch } = shape;
    let max_tokens = seq_len * rows_per_micro_batch;
    let settings = OptimizerSettings::default();
    let parameters = Parameters::random(config, 1);
    let mut trainer = Trainer::new(device.clone(), parameters, DType::Bf16, settings, max_tokens);
    let batches: Vec<PackedBatch> = (0..n_rows)
        .step_by(rows_per_micro_batch)
        .map(|row| random_batch(config.vocab_size, seq_len, rows_per_micro_batch, row))
        .collect();
    let mut speeds = Vec::with_capacity(n_steps);
    for step in 0..=n_steps {
        let start = Instant::now();
        trainer.step(&batches, 1e-3)?;
        if step > 0 {
            speeds.push((n_rows * seq_len) as f64 / start.elapsed().as_secs_f64());
        }
    }
    Ok(speeds)
}

/// Median tokens per second of a few steps, for plans.
///
/// # Errors
/// When a step fails.
pub fn training_speed(
    device: &Device,
    config: &ModelConfig,
    shape: TrainStepShape,
) -> Result<f64, TrainError> {
    let shape = TrainStepShape { n_rows: 2 * shape.rows_per_micro_batch, ..shape };
    Ok(median(&mut train_step(device, config, shape, 3)?))
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
