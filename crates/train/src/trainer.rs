//! The training step.

use std::borrow::Cow;

use data::packing::PackedBatch;
use model::{
    AdapterParameters, Decoder, GradientWorkspace, Learnt, LoadedAdapter, ModelConfig, Parameters,
    TrainingRows, Workspace,
};
use tensor::{DType, Device, Passes, WeightedSum};

use crate::error::TrainError;
use crate::optimizer::{Optimizer, OptimizerSettings};
use crate::trained::Trained;

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Mean loss of the trained tokens before the update, nats.
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Input tokens.
    pub n_tokens: u64,
    /// Tokens whose prediction was trained.
    pub n_trained_tokens: u64,
}

/// Masters, optimiser and all memory of training, taken once.
#[derive(Debug)]
pub struct Trainer {
    device: Device,
    decoder: Decoder,
    /// As it is computed, where one is trained.
    adapter: Option<LoadedAdapter>,
    /// Masters.
    pub(crate) trained: Trained,
    pub(crate) optimizer: Optimizer,
    gradients: Trained,
    workspace: Workspace,
    gradient_workspace: GradientWorkspace,
}

impl Trainer {
    /// Prepares training of a model from `parameters`, with micro-batches of up to `max_tokens` tokens.
    #[must_use]
    pub fn new(
        device: Device,
        parameters: Parameters,
        dtype: DType,
        settings: OptimizerSettings,
        max_tokens: usize,
    ) -> Self {
        let config = parameters.config().clone();
        let passes = Passes::ForwardAndBackward;
        let mut decoder = Decoder::zeroed(&device, &config, dtype, passes);
        let parameters = parameters.on(&device);
        decoder.pack(&device, &parameters);
        let trained = Trained::Model(parameters);
        Self {
            decoder,
            adapter: None,
            optimizer: Optimizer::new(&device, &trained, settings),
            gradients: trained.zeroed_on(&device),
            workspace: Workspace::new(&device, &config, dtype, max_tokens, passes),
            gradient_workspace: GradientWorkspace::new(&device, &config, dtype, max_tokens),
            trained,
            device,
        }
    }

    /// Prepares training of an adapter from `parameters` beside a decoder, which is packed for training and stays as it is.
    ///
    /// # Panics
    /// When the adapter is one for another model.
    #[must_use]
    pub fn of_adapter(
        device: Device,
        decoder: Decoder,
        parameters: AdapterParameters,
        settings: OptimizerSettings,
        max_tokens: usize,
    ) -> Self {
        let (config, dtype) = (parameters.config().clone(), decoder.dtype());
        assert_eq!(*decoder.config(), config, "an adapter for another model");
        let of = parameters.settings().clone();
        let parameters = parameters.on(&device);
        let adapter = Some(LoadedAdapter::trainable(&device, dtype, &parameters));
        let trained = Trained::Adapter(parameters);
        let workspace = Workspace::for_adapter(&device, &config, &of, dtype, max_tokens);
        let gradient_workspace =
            GradientWorkspace::for_adapter(&device, &config, &of, dtype, max_tokens);
        Self {
            decoder,
            adapter,
            optimizer: Optimizer::new(&device, &trained, settings),
            gradients: trained.zeroed_on(&device),
            workspace,
            gradient_workspace,
            trained,
            device,
        }
    }

    /// Where it runs.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The model's configuration.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        self.trained.config()
    }

    /// The f32 masters, in this machine's memory.
    #[must_use]
    pub fn trained(&self) -> Cow<'_, Trained> {
        self.trained.in_memory()
    }

    /// The decoder as it stands, and the adapter beside it, for scoring with the trainer's own memory.
    pub fn scoring(&mut self) -> (&Decoder, Option<&LoadedAdapter>, &mut Workspace) {
        (&self.decoder, self.adapter.as_ref(), &mut self.workspace)
    }

    /// Refuses weights or moments that are no numbers, so that they never replace a good checkpoint.
    pub(crate) fn check_finite(&self, step: u64) -> Result<(), TrainError> {
        let all = [&self.trained, &self.optimizer.m, &self.optimizer.v];
        let norms = all.map(|values| Optimizer::norm(&self.device, values));
        if norms.iter().all(|norm| norm.is_finite()) {
            return Ok(());
        }
        Err(TrainError::WeightsNotFinite { step })
    }

    /// The gradient of the last step, before clipping.
    #[must_use]
    pub fn gradients(&self) -> Cow<'_, Trained> {
        self.gradients.in_memory()
    }

    /// One optimiser step over micro-batches. The loss is normalised per trained token of the whole step, so that the
    /// cut into micro-batches changes nothing but the order of sums.
    ///
    /// # Errors
    /// [`TrainError::NotFinite`] when the loss or the gradient is no number: nothing was updated.
    ///
    /// # Panics
    /// When a micro-batch is larger than planned, or no token is trained.
    pub fn step(
        &mut self,
        batches: &[PackedBatch],
        learning_rate: f32,
    ) -> Result<StepReport, TrainError> {
        let n_trained_tokens: u64 = batches.iter().map(PackedBatch::n_trained_tokens).sum();
        assert!(n_trained_tokens > 0, "a step without trained tokens");
        self.gradients.clear();
        let scale = 1.0 / n_trained_tokens as f32;
        // Read after the last micro-batch, so that a GPU has the next before it is done with one.
        let mut loss = WeightedSum::zero(&self.device);
        for batch in batches {
            let target_weights: Vec<f32> =
                batch.target_weights.iter().map(|weight| weight * scale).collect();
            let rows = TrainingRows {
                token_ids: &batch.token_ids,
                targets: &batch.targets,
                target_weights: &target_weights,
                segment_starts: &batch.segment_starts,
            };
            let learnt = match (&mut self.gradients, &self.adapter) {
                (Trained::Model(gradients), _) => Learnt::Model(gradients),
                (Trained::Adapter(gradients), adapter) => {
                    let adapter = adapter.as_ref().expect("an adapter is trained");
                    Learnt::Adapter { adapter, gradients }
                }
            };
            self.decoder.loss_and_gradients(
                &self.device,
                rows,
                &mut self.workspace,
                &mut self.gradient_workspace,
                learnt,
            );
            loss.add(&self.device, self.workspace.losses().view(), &target_weights);
        }
        let grad_norm = Optimizer::norm(&self.device, &self.gradients);
        let loss = loss.read();
        if !loss.is_finite() || !grad_norm.is_finite() {
            return Err(TrainError::NotFinite { step: self.optimizer.n_steps, loss, grad_norm });
        }
        let (gradients, trained) = (&self.gradients, &mut self.trained);
        self.optimizer.step(&self.device, learning_rate, grad_norm, gradients, trained);
        self.pack();
        let n_tokens = batches.iter().map(|batch| batch.n_tokens() as u64).sum();
        Ok(StepReport { loss, grad_norm, n_tokens, n_trained_tokens })
    }

    /// Rounds the masters to what is computed with.
    fn pack(&mut self) {
        match (&self.trained, &mut self.adapter) {
            (Trained::Model(parameters), _) => self.decoder.pack(&self.device, parameters),
            (Trained::Adapter(parameters), adapter) => {
                let adapter = adapter.as_mut().expect("an adapter is trained");
                adapter.pack(&self.device, parameters);
            }
        }
    }
}

#[cfg(test)]
mod adapter_tests;

#[cfg(test)]
mod tests {
    use cuda::{Gpu, LibraryPath};
    use formats::WeightName;
    use formats::model_dir::ModelDir;
    use kernels::{Compute, Family, detect_features};
    use testkit::close::{Tolerance, assert_close};
    use testkit::golden;

    use super::*;
    use crate::schedule::Schedule;

    /// A GPU, emulated; `None` where there is no C++ compiler.
    pub(super) fn gpu() -> Option<Device> {
        let libraries = LibraryPath::new(Some(testkit::cuda_emulator::directory()?));
        let gpu = Gpu::open(&libraries).unwrap();
        Some(Device::Cuda { gpu, host: Compute::forced(Family::Reference, 1).unwrap() })
    }

    pub(super) fn batch(token_ids: &[i64], seq_len: usize) -> PackedBatch {
        let mut batch = PackedBatch::new();
        for sequence in token_ids.chunks(seq_len) {
            for (i, &id) in sequence.iter().enumerate() {
                let target = sequence.get(i + 1);
                batch.token_ids.push(id as u32);
                batch.targets.push(target.map_or(0, |&id| id as u32));
                batch.target_weights.push(if target.is_some() { 1.0 } else { 0.0 });
            }
            batch.segment_starts.push(batch.token_ids.len() as u32);
        }
        batch
    }

    /// Steps on the golden batches, cut into micro-batches of `n_sequences`.
    fn golden_run(device: Device, dtype: DType, n_sequences: usize) -> (Trainer, Vec<StepReport>) {
        let dir = golden::workspace_root().join("golden/train_steps/initial");
        let model = ModelDir::open(&dir).unwrap();
        let config = ModelConfig::new(model.config().clone()).unwrap();
        let mut parameters = Parameters::zeroed(&config);
        for name in WeightName::all(&config) {
            model.weights().weight(name, &config).unwrap().read_f32(parameters.weight_mut(name));
        }
        let expected = golden::load("golden/train_steps/expected.safetensors");
        let schedule = Schedule { peak_learning_rate: 3e-3, warmup_steps: 3, decay_steps: 0 };
        let mut trainer =
            Trainer::new(device, parameters, dtype, OptimizerSettings::default(), 4 * 32);
        let steps = expected.i64("token_ids").chunks(4 * 32).enumerate();
        let reports = steps.map(|(step, token_ids)| {
            let batches: Vec<PackedBatch> =
                token_ids.chunks(n_sequences * 32).map(|ids| batch(ids, 32)).collect();
            let rate = schedule.learning_rate(step as u64, 10);
            let report = trainer.step(&batches, rate).unwrap();
            if step == 0 && dtype == DType::F32 {
                for name in WeightName::all(&config) {
                    let golden = expected.f32(&format!("grad.{}", name.hf_name()));
                    let tolerance = Tolerance { absolute: 3e-6, relative: 1e-4 };
                    assert_close(trainer.gradients().model().weight(name), golden, tolerance);
                }
            }
            report
        });
        let reports = reports.collect();
        (trainer, reports)
    }

    #[test]
    fn ten_steps_equal_those_of_pytorch() {
        let expected = golden::load("golden/train_steps/expected.safetensors");
        for family in Family::ALL.into_iter().filter(|family| family.runs_on(detect_features())) {
            let device = || Device::Cpu(Compute::forced(family, 2).unwrap());
            for n_sequences in [4, 1] {
                let (trainer, reports) = golden_run(device(), DType::F32, n_sequences);
                let losses: Vec<f32> = reports.iter().map(|report| report.loss as f32).collect();
                let norms: Vec<f32> =
                    reports.iter().map(|report| report.grad_norm as f32).collect();
                // Ten times what the same steps in f64 differ by (golden/README.md).
                let tolerance = Tolerance { absolute: 1e-5, relative: 0.0 };
                assert_close(&losses, expected.f32("losses"), tolerance);
                assert_close(
                    &norms,
                    expected.f32("grad_norms"),
                    Tolerance { absolute: 1e-4, relative: 0.0 },
                );
                for name in WeightName::all(trainer.config()) {
                    let golden = expected.f32(&format!("final.{}", name.hf_name()));
                    let tolerance = Tolerance { absolute: 1.5e-4, relative: 0.0 };
                    assert_close(trainer.trained().model().weight(name), golden, tolerance);
                }
            }
            let (_, reports) = golden_run(device(), DType::Bf16, 4);
            let losses: Vec<f32> = reports.iter().map(|report| report.loss as f32).collect();
            assert_close(
                &losses,
                expected.f32("losses"),
                Tolerance { absolute: 0.01, relative: 0.0 },
            );
        }
    }

    #[test]
    fn ten_steps_on_a_gpu_equal_those_of_pytorch() {
        let Some(device) = gpu() else { return };
        let expected = golden::load("golden/train_steps/expected.safetensors");
        for (dtype, absolute) in [(DType::F32, 1e-5), (DType::Bf16, 0.01)] {
            let (trainer, reports) = golden_run(device.clone(), dtype, 2);
            let losses: Vec<f32> = reports.iter().map(|report| report.loss as f32).collect();
            assert_close(&losses, expected.f32("losses"), Tolerance { absolute, relative: 0.0 });
            if dtype == DType::F32 {
                let trained = trainer.trained();
                for name in WeightName::all(trainer.config()) {
                    let golden = expected.f32(&format!("final.{}", name.hf_name()));
                    let tolerance = Tolerance { absolute: 1.5e-4, relative: 0.0 };
                    assert_close(trained.model().weight(name), golden, tolerance);
                }
            }
        }
    }

    #[test]
    fn a_step_waits_for_a_gpu_as_often_whatever_its_micro_batches() {
        let Some(directory) = testkit::cuda_emulator::directory() else { return };
        let gpu = Gpu::open(&LibraryPath::new(Some(directory))).unwrap();
        let host = Compute::forced(Family::Reference, 1).unwrap();
        let device = Device::Cuda { gpu: gpu.clone(), host };
        let config = ModelConfig::new(ModelConfig::example()).unwrap();
        let parameters = Parameters::random(&config, 1);
        let settings = OptimizerSettings::default();
        let mut trainer = Trainer::new(device, parameters, DType::Bf16, settings, 8);
        let mut waits = |n_micro_batches: usize| {
            let before = gpu.n_waits();
            trainer.step(&vec![batch(&[1, 2, 3, 4], 4); n_micro_batches], 1e-3).unwrap();
            gpu.n_waits() - before
        };
        // For the norm of the gradient, and for the loss.
        assert_eq!([1, 2, 5].map(&mut waits), [2; 3]);
    }

    #[test]
    fn a_gradient_that_is_no_number_updates_nothing() {
        let device = Device::Cpu(Compute::forced(Family::Reference, 1).unwrap());
        let config = ModelConfig::new(ModelConfig::example()).unwrap();
        let mut parameters = Parameters::random(&config, 1);
        parameters.weight_mut(WeightName::FinalNorm)[0] = f32::NAN;
        let mut trainer =
            Trainer::new(device, parameters, DType::F32, OptimizerSettings::default(), 8);
        let before = trainer.trained().model().weight(WeightName::Embedding).to_vec();
        let error = trainer.step(&[batch(&[1, 2, 3, 4], 4)], 0.1).unwrap_err();
        assert!(error.to_string().starts_with("step 0: the loss is NaN"), "{error}");
        assert_eq!(trainer.trained().model().weight(WeightName::Embedding), before);
    }
}
