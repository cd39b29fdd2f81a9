//! What a run will take, before it is taken.

use std::fs;
use std::path::Path;

use formats::{WeightDtype, checkpoint};
use model::{
    AdapterSettings, Decoder, GradientWorkspace, LoadedAdapter, ModelConfig, Workspace,
    compute_dtype,
};
use serde::Serialize;
use tensor::{DType, Device, Passes};

use crate::error::TrainError;
use crate::recipe::{AdapterRecipe, BatchSettings, Recipe, Start};
use crate::run::starting_config;

/// What a run will take.
#[derive(Clone, Debug)]
pub struct RunPlan {
    /// Shape of the model.
    pub config: ModelConfig,
    /// The adapter that is trained beside it, where the model itself is not.
    pub adapter: Option<AdapterSettings>,
    /// Memory, by purpose.
    pub memory: TrainingMemory,
    /// Bytes of the weights in the folder that the run makes.
    pub model_bytes: u64,
    /// Input tokens of the run.
    pub n_tokens: u64,
    /// Floating-point operations of the run.
    pub flops: f64,
    /// Most checkpoints that are on disk at a time.
    n_checkpoints: u64,
    dtype: DType,
    batch: BatchSettings,
}

impl RunPlan {
    /// The same run on a device; without this, a plan is that of a run on the processors.
    #[must_use]
    pub fn on(mut self, device: &Device) -> Self {
        let BatchSettings { seq_len, rows_per_micro_batch, .. } = self.batch;
        let data_bytes = self.memory.data_bytes;
        let rows = rows_per_micro_batch;
        let adapter = self.adapter.as_ref();
        self.memory = TrainingMemory::on(
            device,
            &self.config,
            adapter,
            self.dtype,
            rows,
            seq_len,
            data_bytes,
        );
        self
    }

    /// The plan of a recipe. Data that is not there counts as empty: opening it says what is wrong.
    ///
    /// # Errors
    /// When the model's shape cannot be read or computed.
    pub fn of_recipe(recipe: &Recipe) -> Result<Self, TrainError> {
        Ok(Self::with_config(recipe, starting_config(recipe)?))
    }

    /// The plan of a run that goes on from its last checkpoint, whatever has become of what it began with.
    ///
    /// # Errors
    /// As [`RunPlan::of_recipe`].
    pub fn of_run(run_dir: &Path, recipe: &Recipe) -> Result<Self, TrainError> {
        let from_itself = Recipe { start: Start::Run(run_dir.to_owned()), ..recipe.clone() };
        Ok(Self::with_config(recipe, starting_config(&from_itself)?))
    }

    fn with_config(recipe: &Recipe, config: ModelConfig) -> Self {
        let data = &recipe.data;
        let paths = data.shards.iter().chain(&data.documents).chain(&data.conversations);
        let data_bytes = paths.map(|path| size_on_disk(path)).sum();
        let adapter = recipe.adapter.as_ref().map(AdapterRecipe::settings);
        let plan =
            Self::new(config, adapter, recipe.dtype, recipe.batch, recipe.n_steps, data_bytes);
        // The last one and those before; one is written before the oldest goes.
        // A run that starts from weights keeps them as its first.
        let n_first = u64::from(!matches!(recipe.start, Start::Random(_)));
        let n_made = n_first + recipe.n_steps / recipe.checkpoint.every_steps + 1;
        let n_checkpoints = n_made.min(recipe.checkpoint.n_keep as u64 + 1);
        Self { n_checkpoints, ..plan }
    }

    /// The plan of a run of `n_steps` on data of `data_bytes` that keeps one checkpoint, of a model or of an adapter beside it.
    #[must_use]
    pub fn new(
        config: ModelConfig,
        adapter: Option<AdapterSettings>,
        dtype: WeightDtype,
        batch: BatchSettings,
        n_steps: u64,
        data_bytes: u64,
    ) -> Self {
        let BatchSettings { seq_len, rows_per_step, rows_per_micro_batch } = batch;
        let n_tokens = n_steps * (rows_per_step * seq_len) as u64;
        let model_bytes = match &adapter {
            None => config.n_parameters() * dtype.n_bytes() as u64,
            // Adapters are written in f32.
            Some(adapter) => 4 * adapter.n_parameters(&config),
        };
        let flops_per_token = flops_per_token(&config, adapter.as_ref(), seq_len);
        Self {
            memory: TrainingMemory::of(
                &config,
                adapter.as_ref(),
                compute_dtype(dtype),
                rows_per_micro_batch,
                seq_len,
                data_bytes,
            ),
            model_bytes,
            n_tokens,
            flops: n_tokens as f64 * flops_per_token,
            n_checkpoints: 2,
            dtype: compute_dtype(dtype),
            batch,
            config,
            adapter,
        }
    }

    /// Parameters that are trained.
    #[must_use]
    pub fn n_trained_parameters(&self) -> u64 {
        let of_adapter = |adapter: &AdapterSettings| adapter.n_parameters(&self.config);
        self.adapter.as_ref().map_or(self.config.n_parameters(), of_adapter)
    }

    /// Floating-point operations of one token.
    #[must_use]
    pub fn flops_per_token(&self) -> f64 {
        flops_per_token(&self.config, self.adapter.as_ref(), self.batch.seq_len)
    }

    /// Disk that must be free: for the checkpoints that the run does not have yet, and then the
    /// model.
    ///
    /// # Errors
    /// When the folder of the checkpoints is there and cannot be listed.
    pub fn needed_disk_bytes(&self, run_dir: &Path) -> Result<u64, TrainError> {
        let n_there = checkpoint::list(run_dir)?.len() as u64;
        let n_to_come = self.n_checkpoints.saturating_sub(n_there);
        Ok(n_to_come * self.memory.checkpoint_bytes() + self.model_bytes)
    }
}

/// Floating-point operations of one trained token, of a model or of an adapter beside it.
pub(crate) fn flops_per_token(
    config: &ModelConfig,
    adapter: Option<&AdapterSettings>,
    seq_len: usize,
) -> f64 {
    match adapter {
        None => config.train_flops_per_token(seq_len),
        Some(_) => config.adapter_flops_per_token(seq_len),
    }
}

/// Bytes of a training run, by purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct TrainingMemory {
    /// f32 masters.
    pub masters_bytes: u64,
    /// Both moments of AdamW.
    pub optimizer_bytes: u64,
    /// f32 gradients.
    pub gradients_bytes: u64,
    /// Packed weights for forward and backward.
    pub packed_bytes: u64,
    /// Activations of the forward pass, logits and key blocks.
    pub activations_bytes: u64,
    /// Gradients of activations and packed operands of the backward pass.
    pub backward_bytes: u64,
    /// What a GPU takes for a moment: workspaces, sums of parts, and the output of a product whose algorithm is chosen. None on the
    /// processors.
    pub working_bytes: u64,
    /// Tokens of the training data, in this machine's memory.
    pub data_bytes: u64,
}

/// Bytes of the workspace of cuBLASLt.
const PRODUCT_WORKSPACE_BYTES: usize = 64 << 20;
/// Partial sums of the gradient of a norm's weight, rows of them at most (`N_CHUNKS` of `crates/cuda/src/ops/norm.rs`).
const NORM_PARTIALS: usize = 512;

impl TrainingMemory {
    /// The plan of training with micro-batches of `n_rows` rows of `seq_len` tokens on data of `data_bytes` in memory. Where an
    /// adapter is trained, masters, moments and gradients are its own, and the model is there in packed form alone.
    #[must_use]
    pub fn of(
        config: &ModelConfig,
        adapter: Option<&AdapterSettings>,
        dtype: DType,
        n_rows: usize,
        seq_len: usize,
        data_bytes: u64,
    ) -> Self {
        let (n_tokens, passes) = (n_rows * seq_len, Passes::ForwardAndBackward);
        let packed_bytes = Decoder::bytes_for(config, dtype, passes);
        let (n_trained, packed_bytes, activations_bytes, backward_bytes) = match adapter {
            None => (
                config.n_parameters(),
                packed_bytes,
                Workspace::bytes_for(config, dtype, n_tokens, passes),
                GradientWorkspace::bytes_for(config, dtype, n_tokens),
            ),
            Some(adapter) => (
                adapter.n_numbers(config),
                packed_bytes + LoadedAdapter::trainable_bytes(config, dtype, adapter),
                Workspace::bytes_for_adapter(config, adapter, dtype, n_tokens),
                GradientWorkspace::bytes_for_adapter(config, adapter, dtype, n_tokens),
            ),
        };
        let parameter_bytes = 4 * n_trained;
        Self {
            masters_bytes: parameter_bytes,
            optimizer_bytes: 2 * parameter_bytes,
            gradients_bytes: parameter_bytes,
            packed_bytes: packed_bytes as u64,
            activations_bytes: activations_bytes as u64,
            backward_bytes: backward_bytes as u64,
            working_bytes: 0,
            data_bytes,
        }
    }

    /// As [`TrainingMemory::of`], on a device.
    #[must_use]
    pub fn on(
        device: &Device,
        config: &ModelConfig,
        adapter: Option<&AdapterSettings>,
        dtype: DType,
        n_rows: usize,
        seq_len: usize,
        data_bytes: u64,
    ) -> Self {
        let of_processors = Self::of(config, adapter, dtype, n_rows, seq_len, data_bytes);
        let n_tokens = n_rows * seq_len;
        match device {
            Device::Cuda { .. } => of_processors.on_gpu(device, config, adapter, dtype, n_tokens),
            _ => of_processors,
        }
    }

    /// A GPU keeps each weight once and as it is, has no f32 copy of queries, keys and values before they are rotated nor blocks of keys, and more
    /// logits at a time.
    fn on_gpu(
        self,
        device: &Device,
        config: &ModelConfig,
        adapter: Option<&AdapterSettings>,
        dtype: DType,
        n_tokens: usize,
    ) -> Self {
        let (hidden, ffn, shape) = (config.hidden_dim, config.ffn_dim, config.head_shape());
        let (n_layers, n_heads, vocab_size) = (config.n_layers, config.n_heads, config.vocab_size);
        let (qkv, out) = (shape.qkv_width(), n_heads * config.head_dim);
        let bytes = dtype.bytes();
        let norms = (2 * n_layers + 1) * hidden;
        let matrices = config.n_parameters() as usize - norms;
        let logits = n_tokens.min(device.logit_rows()) * vocab_size;
        let learnt_logits = n_tokens.min(device.learnt_logit_rows()) * vocab_size * bytes;
        // Of a layer the normed inputs of both parts; queries, keys and values; outputs of attention; gate, up and what comes of
        // them.
        let kept = n_layers * (2 * hidden + qkv + out + 3 * ffn) + hidden;
        // Scales of norms, logarithms of attention, the residual stream, and losses.
        let f32s = n_layers * (2 + n_heads) + hidden + 2;
        let gradients = 2 * hidden + out + qkv + 3 * ffn;
        let numbers = (n_tokens * qkv.max(2 * ffn)).max(logits).max(vocab_size * hidden);
        let largest_output = (4 * numbers).max(learnt_logits);
        let of_token = 4 * (n_heads + config.head_dim) + 64;
        let working = PRODUCT_WORKSPACE_BYTES
            + largest_output
            + n_tokens * of_token
            + NORM_PARTIALS * hidden * 4;
        let (n_factors, rank) = adapter.map_or((0, 0), |adapter| {
            (adapter.n_numbers(config) as usize, adapter.rank.next_multiple_of(2))
        });
        let activations = n_tokens * ((kept + rank) * bytes + f32s * 4) + logits * 4;
        // Of an adapter the products of a, and what goes into those of gradients: their input and its gradient.
        let backward = n_tokens * ((gradients + 2 * rank) * bytes + (hidden + rank) * 4);
        Self {
            packed_bytes: ((matrices + n_factors) * bytes + norms * 4) as u64,
            activations_bytes: activations as u64,
            backward_bytes: (backward + learnt_logits) as u64,
            working_bytes: working as u64,
            ..self
        }
    }

    /// All that is in the memory of the device, with the data, which is in that of the machine.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.device_bytes() + self.data_bytes
    }

    /// All but the data.
    #[must_use]
    pub fn device_bytes(&self) -> u64 {
        self.masters_bytes
            + self.optimizer_bytes
            + self.gradients_bytes
            + self.packed_bytes
            + self.activations_bytes
            + self.backward_bytes
            + self.working_bytes
    }

    /// What is in this machine's memory where a GPU computes: the data, and the moments while a checkpoint is written.
    #[must_use]
    pub fn host_bytes_beside_gpu(&self) -> u64 {
        self.data_bytes + self.optimizer_bytes
    }

    /// Bytes of one checkpoint on disk: masters and both moments.
    #[must_use]
    pub fn checkpoint_bytes(&self) -> u64 {
        self.masters_bytes + self.optimizer_bytes
    }
}

/// Bytes of a file, or of the files of a folder; 0 when there is nothing.
fn size_on_disk(path: &Path) -> u64 {
    let own = fs::metadata(path).ok().filter(fs::Metadata::is_file).map_or(0, |file| file.len());
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let files = entries.filter_map(|entry| entry.metadata().ok()).filter(fs::Metadata::is_file);
    own + files.map(|file| file.len()).sum::<u64>()
}

#[cfg(test)]
mod tests {
    use cuda::{Gpu, LibraryPath};
    use data::packing::PackedBatch;
    use formats::DecoderConfig;
    use kernels::{Compute, Family};
    use model::{AdapterParameters, Parameters};
    use testkit::test_dir::TestDir;

    use super::*;
    use crate::Trainer;
    use crate::optimizer::OptimizerSettings;
    use crate::recipe::ModelShape;

    #[test]
    fn a_gpu_takes_what_was_planned() {
        let Some(directory) = testkit::cuda_emulator::directory() else { return };
        let gpu = Gpu::open(&LibraryPath::new(Some(directory))).unwrap();
        let host = Compute::forced(Family::Reference, 1).unwrap();
        let device = Device::Cuda { gpu: gpu.clone(), host };
        let (n_rows, seq_len) = (2, 8);
        let all = [
            (DType::Bf16, true, None),
            (DType::F32, false, None),
            (DType::Bf16, false, Some(AdapterSettings::of_rank(3))),
        ];
        for (dtype, tied_embeddings, adapter) in all {
            let config = DecoderConfig { tied_embeddings, ..ModelConfig::example() };
            let config = ModelConfig::new(config).unwrap();
            let plan =
                TrainingMemory::on(&device, &config, adapter.as_ref(), dtype, n_rows, seq_len, 0);
            let before = gpu.used_bytes();
            let (settings, n_tokens) = (OptimizerSettings::default(), n_rows * seq_len);
            let device = device.clone();
            let mut trainer = match adapter {
                None => {
                    let parameters = Parameters::random(&config, 1);
                    Trainer::new(device, parameters, dtype, settings, n_tokens)
                }
                Some(adapter) => {
                    let passes = Passes::ForwardAndBackward;
                    let decoder = Decoder::random(&device, &config, dtype, passes, 1);
                    let parameters = AdapterParameters::random(&config, &adapter, 1);
                    Trainer::of_adapter(device, decoder, parameters, settings, n_tokens)
                }
            };
            let taken = (gpu.used_bytes() - before) as u64;
            assert_eq!(taken, plan.device_bytes() - plan.working_bytes, "{dtype:?}");
            let mut batch = PackedBatch::new();
            batch.token_ids = (0..n_tokens as u32).collect();
            batch.targets = batch.token_ids.clone();
            batch.target_weights = vec![1.0; n_tokens];
            batch.segment_starts.extend([seq_len as u32, n_tokens as u32]);
            trainer.step(&[batch], 1e-3).unwrap();
            let most = (gpu.most_used_bytes() - before) as u64;
            assert!(taken < most && most <= plan.device_bytes(), "{taken} < {most} <= {plan:?}");
        }
    }

    #[test]
    fn disk_is_asked_for_the_checkpoints_that_are_still_to_come() {
        let shape = ModelShape {
            hidden_dim: 32,
            n_layers: 2,
            n_heads: 2,
            n_kv_heads: 1,
            head_dim: 16,
            ffn_dim: 48,
            vocab_size: 280,
            context_len: 64,
            rope_theta: 1e4,
        };
        let batch = BatchSettings { seq_len: 32, rows_per_step: 4, rows_per_micro_batch: 2 };
        let config = shape.planned_config().unwrap();
        let plan = RunPlan::new(config, None, WeightDtype::Bf16, batch, 4, 0);
        let plan = RunPlan { n_checkpoints: 3, ..plan };
        let run = TestDir::new("plan-disk");
        let needed = |n_to_come| n_to_come * plan.memory.checkpoint_bytes() + plan.model_bytes;
        assert_eq!(plan.needed_disk_bytes(run.path()).unwrap(), needed(3));
        for (step, n_to_come) in [(1, 2), (2, 1), (3, 0), (4, 0)] {
            let name = format!("step-{step:08}");
            fs::create_dir_all(checkpoint::checkpoints_dir(run.path()).join(name)).unwrap();
            assert_eq!(plan.needed_disk_bytes(run.path()).unwrap(), needed(n_to_come), "{step}");
        }
    }
}
