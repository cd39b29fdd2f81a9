//! A run as a file: `run.toml`.

use std::path::{Path, PathBuf};

use formats::durable::read_text;
use formats::{DecoderConfig, FfnMatrix, LayerPart, Rope, WeightDtype, check_format_version};
use model::{AdapterSettings, ModelConfig, ModelError};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::TrainError;
use crate::optimizer::OptimizerSettings;
use crate::schedule::Schedule;

/// Version of the format of `run.toml`.
pub const FORMAT_VERSION: u64 = 1;

/// Largest `run.toml` that is read.
pub const MAX_RECIPE_BYTES: u64 = 16 << 20;
/// Beyond these, sums of tokens and bytes could overflow.
const MAX_MICRO_BATCH_TOKENS: usize = 1 << 26;
const MAX_TOKENS: u64 = 1 << 50;
/// Most checkpoints that are kept.
const MAX_KEPT: usize = 1 << 20;

/// Everything that a run is a function of. Paths are as given; a resumed run must find its data, and has in its checkpoints
/// what it started from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Version of this format.
    pub format_version: u64,
    /// Optimiser steps of the run.
    pub n_steps: u64,
    /// Seed of the initial weights and of the order of the data.
    pub seed: u64,
    /// Number type of the products.
    pub dtype: WeightDtype,
    /// Where the weights come from.
    pub start: Start,
    /// The adapter that is trained; without it, the model is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<AdapterRecipe>,
    /// What is learnt.
    pub data: DataSettings,
    /// Sizes of rows and steps.
    pub batch: BatchSettings,
    /// Learning rate.
    pub schedule: Schedule,
    /// Optimiser.
    #[serde(default)]
    pub optimizer: OptimizerSettings,
    /// Checkpoints.
    pub checkpoint: CheckpointSettings,
    /// Validation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<ValidationSettings>,
}

/// Where the weights come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// Random weights of this shape: pre-training.
    Random(ModelShape),
    /// The weights of a model directory: continued training and fine-tuning.
    Model(PathBuf),
    /// The f32 weights of the last checkpoint of another run.
    Run(PathBuf),
}

/// A low-rank adapter (LoRA) that is trained beside the model, which stays as it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterRecipe {
    /// Rank of every change.
    pub rank: usize,
    /// Changes are multiplied with `alpha / rank`.
    pub alpha: f64,
    /// The matrices that are changed, of every layer.
    #[serde(default = "AdaptedMatrix::all")]
    pub matrices: Vec<AdaptedMatrix>,
}

/// A matrix of a layer that an adapter can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the parts of a layer of the same names")]
pub enum AdaptedMatrix {
    Query,
    Key,
    Value,
    AttentionOut,
    Gate,
    Up,
    Down,
}

impl AdaptedMatrix {
    fn all() -> Vec<Self> {
        use AdaptedMatrix::{AttentionOut, Down, Gate, Key, Query, Up, Value};
        vec![Query, Key, Value, AttentionOut, Gate, Up, Down]
    }

    fn part(self) -> LayerPart {
        match self {
            Self::Query => LayerPart::Query,
            Self::Key => LayerPart::Key,
            Self::Value => LayerPart::Value,
            Self::AttentionOut => LayerPart::AttentionOut,
            Self::Gate => LayerPart::Ffn(FfnMatrix::Gate),
            Self::Up => LayerPart::Ffn(FfnMatrix::Up),
            Self::Down => LayerPart::Ffn(FfnMatrix::Down),
        }
    }
}

impl AdapterRecipe {
    /// What the model is told of it.
    #[must_use]
    pub fn settings(&self) -> AdapterSettings {
        let matrices = self.matrices.iter().map(|matrix| matrix.part()).collect();
        AdapterSettings { rank: self.rank, alpha: self.alpha, matrices }
    }

    fn check(&self, start: &Start) -> Result<(), TrainError> {
        let start = match start {
            Start::Model(_) => None,
            Start::Random(_) => Some("random weights"),
            Start::Run(_) => Some("a run"),
        };
        if let Some(start) = start {
            let expected = "start.model: an adapter is one for a model that is there as files";
            return wrong("start", format!("{start}, with an adapter"), expected);
        }
        match self.settings().check_numbers() {
            Err(ModelError::Adapter { setting, got, expected }) => {
                let key = match setting {
                    "rank" => "adapter.rank",
                    "alpha" => "adapter.alpha",
                    _ => "adapter.matrices",
                };
                wrong(key, got, &expected)
            }
            other => Ok(other?),
        }
    }
}

/// The shape of a fresh model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelShape {
    /// Width of the residual stream.
    pub hidden_dim: usize,
    /// Layers.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the feed-forward part.
    pub ffn_dim: usize,
    /// Vocabulary.
    pub vocab_size: usize,
    /// Longest sequence.
    pub context_len: usize,
    /// Base of the rotary angles.
    pub rope_theta: f64,
}

impl ModelShape {
    /// Ids of the special tokens while there is no tokenizer yet.
    const PLANNED_BOS_ID: u32 = 1;
    const PLANNED_EOS_ID: u32 = 2;

    /// The configuration before there is a tokenizer, for planning: the ids of special tokens
    /// change no size.
    ///
    /// # Errors
    /// As [`ModelShape::config`].
    pub fn planned_config(&self) -> Result<ModelConfig, TrainError> {
        self.config(Self::PLANNED_BOS_ID, Self::PLANNED_EOS_ID)
    }

    /// The configuration of a model of this shape, with a tied head.
    ///
    /// # Errors
    /// When it cannot be computed.
    pub fn config(&self, bos_id: u32, eos_id: u32) -> Result<ModelConfig, TrainError> {
        Ok(ModelConfig::new(DecoderConfig {
            vocab_size: self.vocab_size,
            hidden_dim: self.hidden_dim,
            n_layers: self.n_layers,
            n_heads: self.n_heads,
            n_kv_heads: self.n_kv_heads,
            head_dim: self.head_dim,
            ffn_dim: self.ffn_dim,
            context_len: self.context_len,
            rope: Rope::plain(self.rope_theta),
            query_scaling: None,
            rms_norm_eps: 1e-5,
            tied_embeddings: true,
            sliding_windows: Vec::new(),
            experts: None,
            bos_id: Some(bos_id),
            eos_ids: vec![eos_id],
            dtype: WeightDtype::Bf16,
        })?)
    }
}

/// What is learnt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSettings {
    /// Folder or file of the tokenizer.
    pub tokenizer: PathBuf,
    /// Token shards, read as a stream of documents.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shards: Vec<PathBuf>,
    /// Conversations, as JSON lines; only assistant turns are learnt.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conversations: Vec<PathBuf>,
    /// Token shards whose documents stand among the conversations, all of their tokens learnt.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub documents: Vec<PathBuf>,
}

/// Sizes of rows and steps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchSettings {
    /// Tokens of a row.
    pub seq_len: usize,
    /// Rows of an optimiser step.
    pub rows_per_step: usize,
    /// Rows that are computed together; what fits the caches is fastest.
    pub rows_per_micro_batch: usize,
}

impl BatchSettings {
    /// Whether micro-batches fill a step, and a run of `n_steps` can be counted.
    ///
    /// # Errors
    /// [`TrainError::Setting`].
    pub fn check(self, n_steps: u64) -> Result<(), TrainError> {
        let Self { seq_len, rows_per_step, rows_per_micro_batch } = self;
        let sizes = [
            ("batch.seq_len", seq_len, 2..=1 << 24),
            ("batch.rows_per_step", rows_per_step, 1..=1 << 16),
            ("batch.rows_per_micro_batch", rows_per_micro_batch, 1..=1 << 16),
        ];
        for (key, got, range) in sizes {
            if !range.contains(&got) {
                let expected = format!("{} to {}", range.start(), range.end());
                return wrong(key, got.to_string(), &expected);
            }
        }
        if !rows_per_step.is_multiple_of(rows_per_micro_batch) {
            let expected = format!("a divisor of batch.rows_per_step, {rows_per_step}");
            return wrong(
                "batch.rows_per_micro_batch",
                rows_per_micro_batch.to_string(),
                &expected,
            );
        }
        if rows_per_micro_batch * seq_len > MAX_MICRO_BATCH_TOKENS {
            let most = MAX_MICRO_BATCH_TOKENS / seq_len;
            let expected = format!("at most {most}, for {MAX_MICRO_BATCH_TOKENS} tokens");
            return wrong(
                "batch.rows_per_micro_batch",
                rows_per_micro_batch.to_string(),
                &expected,
            );
        }
        let most = MAX_TOKENS / (rows_per_step * seq_len) as u64;
        if n_steps > most {
            let expected = format!("at most {most}, for {MAX_TOKENS} tokens");
            return wrong("n_steps", n_steps.to_string(), &expected);
        }
        Ok(())
    }
}

fn wrong(key: &'static str, got: String, expected: &str) -> Result<(), TrainError> {
    Err(TrainError::Setting { key, got, expected: expected.to_owned() })
}

/// When checkpoints are written and how many are kept.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointSettings {
    /// Steps between checkpoints; the last step always has one.
    pub every_steps: u64,
    /// Checkpoints that are kept.
    pub n_keep: usize,
}

/// When and on what the loss on unseen text is measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValidationSettings {
    /// A token shard.
    pub shard: PathBuf,
    /// Steps between measurements; the last step always has one.
    pub every_steps: u64,
}

impl Recipe {
    /// Reads a recipe.
    ///
    /// # Errors
    /// When the file cannot be read, has an unknown or missing key, or a value that cannot be used.
    pub fn read(path: &Path) -> Result<Self, TrainError> {
        Self::parse(&read_text(path, MAX_RECIPE_BYTES)?, path)
    }

    /// Parses a recipe; `path` is for messages.
    ///
    /// # Errors
    /// As [`Recipe::read`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, TrainError> {
        let invalid =
            |source| TrainError::Recipe { path: path.to_owned(), source: Box::new(source) };
        // The version is judged before the keys, which a newer version may have changed.
        let value: Value = toml::from_str(text).map_err(invalid)?;
        check_format_version(path, &value, FORMAT_VERSION)?;
        let recipe: Self = toml::from_str(text).map_err(invalid)?;
        recipe.check()?;
        Ok(recipe)
    }

    /// The recipe as TOML.
    ///
    /// # Panics
    /// When a path is not UTF-8; those of a recipe that was read are.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a recipe is plain tables, numbers and strings")
    }

    /// Tokens of a micro-batch.
    #[must_use]
    pub fn micro_batch_tokens(&self) -> usize {
        self.batch.rows_per_micro_batch * self.batch.seq_len
    }

    /// Constants with which training would silently go wrong.
    fn check_numbers(&self) -> Result<(), TrainError> {
        let OptimizerSettings { beta1, beta2, eps, weight_decay, max_grad_norm } = self.optimizer;
        let rope_theta = match &self.start {
            Start::Random(shape) => shape.rope_theta,
            Start::Model(_) | Start::Run(_) => 1.0,
        };
        let (beta, decay) = ("from 0 to below 1", "a finite number, at least 0");
        let positive = "a positive number";
        let is_decay = |x: f32| (0.0..1.0).contains(&x);
        let is_positive = |x: f64| x.is_finite() && x > 0.0;
        let checks = [
            ("optimizer.beta1", f64::from(beta1), is_decay(beta1), beta),
            ("optimizer.beta2", f64::from(beta2), is_decay(beta2), beta),
            ("optimizer.eps", f64::from(eps), is_positive(f64::from(eps)), positive),
            (
                "optimizer.weight_decay",
                f64::from(weight_decay),
                weight_decay.is_finite() && weight_decay >= 0.0,
                decay,
            ),
            // Infinity is no clipping.
            ("optimizer.max_grad_norm", max_grad_norm, max_grad_norm > 0.0, positive),
            ("start.random.rope_theta", rope_theta, is_positive(rope_theta), positive),
        ];
        match checks.into_iter().find(|(_, _, is_right, _)| !is_right) {
            None => Ok(()),
            Some((key, got, _, expected)) => Err(TrainError::Setting {
                key,
                got: got.to_string(),
                expected: expected.to_owned(),
            }),
        }
    }

    /// Whether every value can be used; of a recipe that was read, this is known.
    ///
    /// # Errors
    /// [`TrainError::Setting`], which names the key.
    pub fn check(&self) -> Result<(), TrainError> {
        if self.dtype == WeightDtype::F16 {
            return wrong("dtype", "f16".to_owned(), "f32 or bf16");
        }
        let positive = [
            ("n_steps", self.n_steps),
            ("checkpoint.every_steps", self.checkpoint.every_steps),
            ("checkpoint.n_keep", self.checkpoint.n_keep as u64),
            ("validation.every_steps", self.validation.as_ref().map_or(1, |v| v.every_steps)),
        ];
        for (key, value) in positive {
            if value == 0 {
                return wrong(key, "0".to_owned(), "at least 1");
            }
        }
        if let Some(adapter) = &self.adapter {
            adapter.check(&self.start)?;
        }
        self.batch.check(self.n_steps)?;
        if self.checkpoint.n_keep > MAX_KEPT {
            let expected = format!("at most {MAX_KEPT}");
            return wrong("checkpoint.n_keep", self.checkpoint.n_keep.to_string(), &expected);
        }
        self.check_numbers()?;
        let (rate, data) = (self.schedule.peak_learning_rate, &self.data);
        if !(rate.is_finite() && rate > 0.0) {
            return wrong("schedule.peak_learning_rate", rate.to_string(), "a positive number");
        }
        let has_samples = !data.conversations.is_empty() || !data.documents.is_empty();
        let is_mixed = has_samples && !data.shards.is_empty();
        let is_empty = !has_samples && data.shards.is_empty();
        if is_mixed || is_empty {
            let got = if is_empty { "empty" } else { "both a stream and whole samples" };
            return wrong("data", got.to_owned(), "shards, or conversations and documents");
        }
        Ok(())
    }
}
