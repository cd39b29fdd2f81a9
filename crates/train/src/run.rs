//! A run directory: create, train, stop, resume.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use formats::checkpoint::{self, Checkpoint, CheckpointWriter};
use formats::durable::{DirLock, open_to_append, write_bytes_atomically};
use formats::json_lines::truncate_jsonl;
use kernels::Family;
use serde::Serialize;
use serde_json::json;
use tensor::Device;
use tokenizer::Tokenizer;

use crate::error::TrainError;
use crate::plan::flops_per_token;
use crate::recipe::{Recipe, Start};
use crate::rows::Rows;
use crate::trained::Trained;
use crate::trainer::Trainer;
use crate::validation::{TextLoss, score_documents};

mod inputs;
mod saved;
mod start;
mod storage;

use inputs::Source;
pub use inputs::template_of;
pub use saved::Inherited;
use saved::SavedState;
pub use start::{latest_parameters, starting_config};
pub(crate) use storage::{Named, named_factors};

/// The recipe of a run, in its folder.
pub const RECIPE_FILE: &str = "run.toml";
/// One line per step of a run, in its folder.
pub const METRICS_FILE: &str = "metrics.jsonl";
const EVENTS_FILE: &str = "events.jsonl";

/// One line of `metrics.jsonl`, and what the progress bar shows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Progress {
    /// Steps done.
    pub step: u64,
    /// Steps of the run.
    #[serde(skip)]
    pub n_steps: u64,
    /// Input tokens since the run began.
    pub tokens: u64,
    /// Mean loss of the step's trained tokens, nats.
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Learning rate of the step.
    pub learning_rate: f32,
    /// Input tokens per second of the step.
    pub tokens_per_s: f64,
    /// Floating-point operations per second of the step.
    pub flops_per_s: f64,
    /// Bits per byte on the validation text, where it was measured after the step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_bits_per_byte: Option<f64>,
}

/// What the caller wants after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunControl {
    /// Go on.
    Continue,
    /// Write a checkpoint and return.
    Stop,
}

/// How [`Run::train`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done.
    Done,
    /// Stopped on request, with a checkpoint.
    Stopped,
}

/// A run in memory; its folder is locked.
#[derive(Debug)]
pub struct Run {
    dir: PathBuf,
    recipe: Recipe,
    _lock: DirLock,
    trainer: Trainer,
    tokenizer: Tokenizer,
    rows: Rows,
    validation: Vec<Vec<u32>>,
    sources: Vec<Source>,
    inherited: Option<Inherited>,
    step: u64,
    tokens: u64,
}

impl Run {
    /// Makes a new run folder from a recipe, whose paths become absolute.
    ///
    /// # Errors
    /// When the folder exists, the data or the start cannot be read, or they do not fit.
    pub fn create(dir: &Path, mut recipe: Recipe, device: Device) -> Result<Self, TrainError> {
        if dir.join(RECIPE_FILE).exists() {
            return Err(TrainError::Exists { path: dir.to_owned() });
        }
        recipe.check()?;
        inputs::make_paths_absolute(&mut recipe)?;
        let parent = dir.parent().unwrap_or(dir);
        fs::create_dir_all(parent).map_err(TrainError::io("create", parent))?;
        let is_new_folder = match fs::create_dir(dir) {
            Ok(()) => true,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => false,
            Err(error) => return Err(TrainError::io("create", dir)(error)),
        };
        let opened = DirLock::acquire(dir)
            .map_err(TrainError::from)
            .and_then(|lock| Self::open(dir, lock, recipe, None, device));
        let run = opened.inspect_err(|_| {
            if is_new_folder {
                // Nothing but the lock is in it. What cannot be removed harms nothing.
                let _ = fs::remove_dir_all(dir);
            }
        })?;
        write_bytes_atomically(&dir.join(RECIPE_FILE), run.recipe.to_toml().as_bytes())?;
        run.event(&json!({
            "event": "created",
            "step": 0,
            "kernel_family": run.trainer.device().family_name(),
            "data_digests": run.data_digests(),
            "n_samples_left_out": run.rows.n_left_out(),
        }))?;
        if !matches!(run.recipe.start, Start::Random(_)) {
            // The parent may train on: the run keeps the weights that it began with.
            run.save_checkpoint()?;
        }
        Ok(run)
    }

    /// Takes up a run at its last checkpoint, or at its beginning when it has none. The checkpoint holds the model: what the
    /// run began with is needed no more.
    ///
    /// # Errors
    /// When the folder is no run or is in use, a file is damaged, or the data is not there any more.
    pub fn resume(dir: &Path, device: Device) -> Result<Self, TrainError> {
        let path = dir.join(RECIPE_FILE);
        if !path.is_file() {
            return Err(TrainError::NotARun { path: dir.to_owned() });
        }
        let lock = DirLock::acquire(dir)?;
        let recipe = Recipe::read(&path)?;
        let checkpoint = checkpoint::latest(dir)?;
        let mut run = Self::open(dir, lock, recipe, checkpoint.as_ref(), device)?;
        checkpoint::clean_leftovers(dir)?;
        let family = run.trainer.device().family_name();
        let mut event = json!({"event": "resumed", "kernel_family": family});
        if let Some(checkpoint) = checkpoint {
            let state = run.restore(&checkpoint)?;
            if state.kernel_family != family {
                event["warning"] = json!(format!(
                    "earlier steps were made by {}: bits will differ from an uninterrupted run",
                    state.kernel_family
                ));
                tracing::warn!(before = state.kernel_family, now = family, "kernel family changed");
            } else if family == Device::CUDA {
                let warning =
                    "a GPU does not repeat bits: they will differ from an uninterrupted run";
                event["warning"] = json!(warning);
            }
            // It may have been killed between a new checkpoint and the removal of the oldest.
            checkpoint::prune(dir, run.recipe.checkpoint.n_keep)?;
        }
        let step = run.step;
        for file in [METRICS_FILE, EVENTS_FILE] {
            truncate_jsonl(&dir.join(file), |line| {
                line["step"].as_u64().is_some_and(|of_line| of_line <= step)
            })?;
        }
        event["step"] = json!(step);
        run.event(&event)?;
        Ok(run)
    }

    /// Opens what the recipe names. The model is that of the checkpoint, or the one that the recipe begins with.
    fn open(
        dir: &Path,
        lock: DirLock,
        recipe: Recipe,
        checkpoint: Option<&Checkpoint>,
        device: Device,
    ) -> Result<Self, TrainError> {
        let tokenizer = Tokenizer::open(&recipe.data.tokenizer)?;
        let beginning = start::beginning(&recipe, &tokenizer, checkpoint, &device)?;
        let inherited = match checkpoint {
            Some(checkpoint) => {
                let state = SavedState::read(checkpoint.state(), checkpoint.dir())?;
                let now = || start::inherited(&recipe).inspect_err(warn_unknown).ok();
                state.inherited.or_else(now)
            }
            None => Some(start::inherited(&recipe)?),
        };
        let config = beginning.config();
        if tokenizer.vocab_size() > config.vocab_size {
            let (data, model) = (tokenizer.vocab_size(), config.vocab_size);
            return Err(TrainError::Vocabulary { data, model });
        }
        if recipe.batch.seq_len > config.context_len {
            return Err(TrainError::Setting {
                key: "batch.seq_len",
                got: recipe.batch.seq_len.to_string(),
                expected: format!("at most the model's context_len, {}", config.context_len),
            });
        }
        let rows = inputs::read_rows(&recipe, &tokenizer)?;
        let validation = inputs::read_validation(&recipe, &tokenizer)?;
        let sources = inputs::sources(&recipe, &tokenizer)?;
        let trainer = beginning.trainer(&recipe, device);
        let dir = dir.to_owned();
        Ok(Self {
            dir,
            recipe,
            _lock: lock,
            trainer,
            tokenizer,
            rows,
            validation,
            sources,
            inherited,
            step: 0,
            tokens: 0,
        })
    }

    /// The folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The recipe as resolved.
    #[must_use]
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// What the run's model has of the one that its weights come from, as that was when the run began; `None` of a run that an
    /// earlier program began, when it cannot be known any more.
    #[must_use]
    pub fn inherited(&self) -> Option<&Inherited> {
        self.inherited.as_ref()
    }

    /// Steps done.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Input tokens so far.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// What is trained, as it stands, in this machine's memory.
    #[must_use]
    pub fn trained(&self) -> Cow<'_, Trained> {
        self.trainer.trained()
    }

    /// Trains to the end of the recipe, or until `observe`, called after each step, wants to stop.
    ///
    /// # Errors
    /// When a file cannot be written, or the loss is no number any more. The last checkpoint stays intact.
    pub fn train(
        &mut self,
        mut observe: impl FnMut(&Progress) -> RunControl,
    ) -> Result<Outcome, TrainError> {
        let mut metrics = self.append_to(METRICS_FILE)?;
        while self.step < self.recipe.n_steps {
            let progress = self.train_step()?;
            let line = serde_json::to_string(&progress).expect("numbers can be written as JSON");
            let path = self.dir.join(METRICS_FILE);
            writeln!(metrics, "{line}").map_err(TrainError::io("write", &path))?;
            let control = observe(&progress);
            let is_last = self.step == self.recipe.n_steps;
            let is_due = self.step.is_multiple_of(self.recipe.checkpoint.every_steps);
            if is_last || is_due || control == RunControl::Stop {
                metrics.sync_data().map_err(TrainError::io("sync", &path))?;
                self.save_checkpoint()?;
            }
            if control == RunControl::Stop && !is_last {
                self.event(&json!({"event": "stopped", "step": self.step}))?;
                return Ok(Outcome::Stopped);
            }
        }
        Ok(Outcome::Done)
    }

    fn train_step(&mut self) -> Result<Progress, TrainError> {
        let start = Instant::now();
        let batch = self.recipe.batch;
        let first_row = self.next_row();
        let batches: Vec<_> = (0..batch.rows_per_step)
            .step_by(batch.rows_per_micro_batch)
            .map(|row| self.rows.batch(first_row + row as u64, batch.rows_per_micro_batch))
            .collect();
        let learning_rate = self.recipe.schedule.learning_rate(self.step, self.recipe.n_steps);
        let report = self.trainer.step(&batches, learning_rate)?;
        let seconds = start.elapsed().as_secs_f64();
        self.step += 1;
        self.tokens += report.n_tokens;
        let tokens_per_s = report.n_tokens as f64 / seconds;
        let adapter = self.trainer.trained.adapter_settings();
        let flops = flops_per_token(self.trainer.config(), adapter, batch.seq_len);
        let validation = self.recipe.validation.as_ref().filter(|validation| {
            self.step == self.recipe.n_steps || self.step.is_multiple_of(validation.every_steps)
        });
        let validation_bits_per_byte =
            validation.is_some().then(|| self.validation_loss().bits_per_byte());
        Ok(Progress {
            step: self.step,
            n_steps: self.recipe.n_steps,
            tokens: self.tokens,
            loss: report.loss,
            grad_norm: report.grad_norm,
            learning_rate,
            tokens_per_s,
            flops_per_s: tokens_per_s * flops,
            validation_bits_per_byte,
        })
    }

    /// The data position: a function of the step alone.
    fn next_row(&self) -> u64 {
        self.step * self.recipe.batch.rows_per_step as u64
    }

    fn validation_loss(&mut self) -> TextLoss {
        let device = self.trainer.device().clone();
        let (decoder, adapter, workspace) = self.trainer.scoring();
        let scored = (decoder, adapter);
        score_documents(&device, scored, workspace, &self.tokenizer, &self.validation)
    }

    fn save_checkpoint(&self) -> Result<(), TrainError> {
        self.trainer.check_finite(self.step)?;
        let mut writer = CheckpointWriter::begin(&self.dir, self.step)?;
        storage::write_tensors(&mut writer, &self.trainer)?;
        let state = SavedState {
            next_row: self.next_row(),
            tokens: self.tokens,
            kernel_family: self.trainer.device().family_name().to_owned(),
            data_digests: self.data_digests(),
            model: Some((**self.trainer.config()).clone()),
            inherited: self.inherited.clone(),
        };
        writer.state(&serde_json::to_value(state).expect("plain numbers and strings"))?;
        let path = writer.commit()?;
        checkpoint::prune(&self.dir, self.recipe.checkpoint.n_keep)?;
        tracing::info!(step = self.step, path = %path.display(), "checkpoint");
        self.event(&json!({"event": "checkpoint", "step": self.step}))
    }

    /// Takes up what the checkpoint holds beside the model.
    fn restore(&mut self, checkpoint: &Checkpoint) -> Result<SavedState, TrainError> {
        let wrong = |field, got: String, expected: String| {
            let path = checkpoint.dir().to_owned();
            Err(TrainError::Checkpoint { path, field, got, expected })
        };
        let mut state = SavedState::read(checkpoint.state(), checkpoint.dir())?;
        if checkpoint.state().format_version == 1 {
            // It did not say the template, which is taken as it is now.
            state.data_digests.extend(inputs::template_digest(&self.recipe, &self.tokenizer)?);
        }
        if checkpoint.step() > self.recipe.n_steps {
            let expected = format!("at most n_steps, {}", self.recipe.n_steps);
            return wrong("step", checkpoint.step().to_string(), expected);
        }
        self.step = checkpoint.step();
        self.tokens = state.tokens;
        if state.next_row != self.next_row() {
            let expected = format!("{} (step * batch.rows_per_step)", self.next_row());
            return wrong("next_row", state.next_row.to_string(), expected);
        }
        self.rows.check_reachable(state.next_row)?;
        self.check_sources(&state.data_digests, checkpoint)?;
        if let Start::Random(shape) = &self.recipe.start {
            let (bos_id, eos_id) = (self.tokenizer.bos_id(), self.tokenizer.eos_id());
            let (of_recipe, saved) = (shape.config(bos_id, eos_id)?, self.trainer.config());
            if of_recipe != *saved {
                let [got, expected] = [&of_recipe, saved].map(|config| format!("{:?}", **config));
                return wrong("model of the recipe", got, expected);
            }
        }
        let known = Family::ALL.map(Family::name).into_iter().chain([Device::CUDA]);
        if !known.into_iter().any(|family| family == state.kernel_family) {
            let expected = "a kernel family".to_owned();
            return wrong("kernel_family", state.kernel_family, expected);
        }
        storage::read_moments(checkpoint, &mut self.trainer)?;
        Ok(state)
    }

    fn data_digests(&self) -> Vec<String> {
        self.sources.iter().map(|source| source.digest.clone()).collect()
    }

    /// Refuses data that is not what the run began with, by the first of it that differs.
    fn check_sources(&self, saved: &[String], checkpoint: &Checkpoint) -> Result<(), TrainError> {
        let none = || "none".to_owned();
        for idx in 0..self.sources.len().max(saved.len()) {
            let (now, before) = (self.sources.get(idx), saved.get(idx));
            if now.map(|source| &source.digest) != before {
                return Err(TrainError::ChangedData {
                    path: checkpoint.dir().to_owned(),
                    what: now.map_or("the recipe's data".to_owned(), |source| source.name.clone()),
                    got: now.map_or_else(none, |source| source.digest.clone()),
                    expected: before.cloned().unwrap_or_else(none),
                });
            }
        }
        Ok(())
    }

    fn append_to(&self, file: &str) -> Result<File, TrainError> {
        Ok(open_to_append(&self.dir.join(file))?)
    }

    fn event(&self, event: &serde_json::Value) -> Result<(), TrainError> {
        let path = self.dir.join(EVENTS_FILE);
        let mut file = self.append_to(EVENTS_FILE)?;
        writeln!(file, "{event}").map_err(TrainError::io("write", &path))
    }
}

/// It keeps no run from training.
fn warn_unknown(error: &TrainError) {
    tracing::warn!(%error, "the licence of the weights and their data sheet are not known");
}

#[cfg(test)]
mod tests;
