//! A training run from the command line: plan, run, model. Shared by `pretrain`, `tune` and `resume`.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;
use eval::figures::{bytes, duration, short};
use formats::licence::licence_of;
use formats::model_dir::{Lineage, ModelDir};
use formats::{WeightDtype, checkpoint, free_disk_bytes};
use model::{ModelConfig, compute_dtype};
use serde_json::json;
use tokenizer::Tokenizer;
use train::export::{ModelNotes, write_model};
use train::plan::TrainingMemory;
use train::recipe::{BatchSettings, Start};
use train::{Outcome, Progress, Recipe, Run, RunControl, starting_config, template_of};

use crate::context::{Context, Form};
use crate::failure::Failure;
use crate::open_model::folder_name;
use crate::os::StopSignals;
use crate::progress::TrainingBar;
use crate::table::table;
use crate::{machine, recipes};

/// Where a run begins, for the commands that start one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// From random weights: `pretrain`.
    Pretrain,
    /// From a model: `tune`.
    Tune,
}

/// Arguments of the commands that start a run.
#[derive(Debug, clap::Args)]
pub(crate) struct RunArgs {
    /// Recipe: a TOML file with the model, the data, the batch and the schedule; its paths count from the current folder
    #[arg(long, value_name = "FILE")]
    recipe: PathBuf,
    /// Override a key of the recipe, such as n_steps=100 or schedule.peak_learning_rate=1e-3; may be given several times
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
    /// Name of the run and of the model it makes [default: the recipe's file name and a number]
    #[arg(long, value_name = "NAME")]
    run: Option<String>,
}

/// What a run will take.
#[derive(Clone, Debug)]
pub(crate) struct RunPlan {
    /// Shape of the model.
    pub(crate) config: ModelConfig,
    /// Memory, by purpose.
    pub(crate) memory: TrainingMemory,
    /// Bytes of the model directory's weights.
    pub(crate) model_bytes: u64,
    /// Input tokens of the run.
    pub(crate) n_tokens: u64,
    /// Floating-point operations of the run.
    pub(crate) flops: f64,
    /// Most checkpoints that are on disk at a time.
    n_checkpoints: u64,
}

impl RunPlan {
    /// The plan of a recipe. Data that is not there counts as empty: opening it says what is wrong.
    ///
    /// # Errors
    /// When the model's shape cannot be read or computed.
    pub(crate) fn of_recipe(recipe: &Recipe) -> anyhow::Result<Self> {
        let config = starting_config(recipe)?;
        let data = &recipe.data;
        let paths = data.shards.iter().chain(&data.documents).chain(&data.conversations);
        let data_bytes = paths.map(|path| size_on_disk(path)).sum();
        let plan = Self::new(config, recipe.dtype, recipe.batch, recipe.n_steps, data_bytes);
        // The last one and those before; one is written before the oldest goes.
        let n_made = recipe.n_steps / recipe.checkpoint.every_steps + 1;
        let n_checkpoints = n_made.min(recipe.checkpoint.n_keep as u64 + 1);
        Ok(Self { n_checkpoints, ..plan })
    }

    /// The plan of a run of `n_steps` on data of `data_bytes` that keeps one checkpoint.
    pub(crate) fn new(
        config: ModelConfig,
        dtype: WeightDtype,
        batch: BatchSettings,
        n_steps: u64,
        data_bytes: u64,
    ) -> Self {
        let BatchSettings { seq_len, rows_per_step, rows_per_micro_batch } = batch;
        let n_tokens = n_steps * (rows_per_step * seq_len) as u64;
        Self {
            memory: TrainingMemory::of(
                &config,
                compute_dtype(dtype),
                rows_per_micro_batch,
                seq_len,
                data_bytes,
            ),
            model_bytes: config.n_parameters() * dtype.n_bytes() as u64,
            n_tokens,
            flops: n_tokens as f64 * config.train_flops_per_token(seq_len),
            n_checkpoints: 2,
            config,
        }
    }

    /// Disk that must be free: for the checkpoints that the run does not have yet, and then the model.
    fn needed_disk_bytes(&self, run_dir: &Path) -> anyhow::Result<u64> {
        let n_there = checkpoint::list(run_dir)?.len() as u64;
        let n_to_come = self.n_checkpoints.saturating_sub(n_there);
        Ok(n_to_come * self.memory.checkpoint_bytes() + self.model_bytes)
    }

    /// Names and values for people.
    pub(crate) fn rows(&self) -> Vec<(&'static str, String)> {
        let memory = &self.memory;
        vec![
            ("parameters", short(self.config.n_parameters() as f64)),
            ("tokens", short(self.n_tokens as f64)),
            ("operations", format!("{:.2e} FLOP", self.flops)),
            ("memory", bytes(memory.total_bytes())),
            ("  f32 masters", bytes(memory.masters_bytes)),
            ("  optimizer moments", bytes(memory.optimizer_bytes)),
            ("  gradients", bytes(memory.gradients_bytes)),
            ("  packed weights", bytes(memory.packed_bytes)),
            ("  activations", bytes(memory.activations_bytes)),
            ("  backward pass", bytes(memory.backward_bytes)),
            ("  data", bytes(memory.data_bytes)),
            ("checkpoint on disk", bytes(memory.checkpoint_bytes())),
            ("model on disk", bytes(self.model_bytes)),
        ]
    }

    /// Shows the plan, and refuses when the disk or the memory is too small.
    ///
    /// # Errors
    /// [`Failure::DiskSpace`], [`Failure::Memory`].
    pub(crate) fn announce(&self, run_dir: &Path, context: &Context) -> anyhow::Result<()> {
        let free_bytes = free_disk_bytes(machine::existing_ancestor(run_dir))?;
        let mut rows = self.rows();
        rows.push(("free disk", bytes(free_bytes)));
        if let Some(memory) = machine::memory() {
            rows.push(("memory available", bytes(memory.available_bytes)));
        }
        context.say(&format!("plan of {}\n{}", run_dir.display(), table(&rows)));
        self.check_fits(run_dir)
    }

    /// Refuses when the disk or the memory is too small.
    ///
    /// # Errors
    /// [`Failure::DiskSpace`], [`Failure::Memory`].
    pub(crate) fn check_fits(&self, run_dir: &Path) -> anyhow::Result<()> {
        let free_bytes = free_disk_bytes(machine::existing_ancestor(run_dir))?;
        let needed_bytes = self.needed_disk_bytes(run_dir)?;
        if free_bytes < needed_bytes {
            let dir = run_dir.to_owned();
            let what = "the run (checkpoints and the model)";
            return Err(Failure::DiskSpace { what, dir, free_bytes, needed_bytes }.into());
        }
        Ok(machine::check_memory("the run", self.memory.total_bytes())?)
    }
}

/// Bytes of a file, or of the files of a folder; 0 when there is nothing.
fn size_on_disk(path: &Path) -> u64 {
    let own = fs::metadata(path).ok().filter(fs::Metadata::is_file).map_or(0, |file| file.len());
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let files = entries.filter_map(|entry| entry.metadata().ok()).filter(fs::Metadata::is_file);
    own + files.map(|file| file.len()).sum::<u64>()
}

/// Starts a run: `pretrain` and `tune`.
///
/// # Errors
/// When the recipe, the data or the disk will not do; [`Failure::Stopped`] after a signal, with a checkpoint.
pub(crate) fn start(args: &RunArgs, kind: Kind, context: &Context) -> anyhow::Result<()> {
    let recipe = recipes::read(&args.recipe, &args.set)?;
    check_kind(kind, &recipe)?;
    let plan = RunPlan::of_recipe(&recipe)?;
    let claimed = ClaimedDir::claim(args, context)?;
    plan.announce(&claimed.dir, context)?;
    let signals = StopSignals::take_all().context("cannot take signals")?;
    let mut run = Run::create(&claimed.dir, recipe, context.device()?)?;
    let name = folder_name(&claimed.dir);
    claimed.keep();
    finish(&mut run, &name, &signals, context)
}

/// A new run folder that belongs to this process; dropped without [`ClaimedDir::keep`], it goes.
pub(crate) struct ClaimedDir {
    dir: PathBuf,
    is_kept: bool,
}

impl ClaimedDir {
    /// A folder that this process has just made.
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir, is_kept: false }
    }

    /// Makes the folder of the name asked for, else of the first free one after the recipe's.
    fn claim(args: &RunArgs, context: &Context) -> anyhow::Result<Self> {
        let model_dir = |name: &str| context.models_dir().join(name);
        let Some(name) = &args.run else {
            let stem = args.recipe.file_stem().unwrap_or_default().to_string_lossy();
            let is_taken = |name: &str| model_dir(name).exists();
            let dir = make_numbered_dir(&stem.replace('.', "-"), is_taken, context)?;
            return Ok(Self::new(dir));
        };
        if name.is_empty() || name.contains(['/', '.']) {
            let problem = format!("--run {name:?}: expected a name without slashes and dots");
            return Err(Failure::usage(problem).into());
        }
        if model_dir(name).exists() {
            let hint = "choose another --run: the model gets the same name".to_owned();
            return Err(Failure::Exists { path: model_dir(name), hint }.into());
        }
        context.make_dir(&context.runs_dir())?;
        let path = context.runs_dir().join(name);
        if make_new_dir(&path)? {
            return Ok(Self::new(path));
        }
        let hint = format!("choose another --run, or go on with `galerne resume {name}`");
        Err(Failure::Exists { path, hint }.into())
    }

    /// The run is there: the folder stays.
    pub(crate) fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for ClaimedDir {
    fn drop(&mut self) {
        if !self.is_kept {
            // What cannot be removed holds a lock file and no run.
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// Makes the run folder `STEM-N` with the first number whose folder is free and whose name is not taken otherwise.
///
/// # Errors
/// When the system refuses.
pub(crate) fn make_numbered_dir(
    stem: &str,
    is_taken: impl Fn(&str) -> bool,
    context: &Context,
) -> anyhow::Result<PathBuf> {
    context.make_dir(&context.runs_dir())?;
    let names = (1_u64..).map(|number| format!("{stem}-{number}"));
    for name in names.filter(|name| !is_taken(name)) {
        let dir = context.runs_dir().join(name);
        if make_new_dir(&dir)? {
            return Ok(dir);
        }
    }
    unreachable!("there are fewer folders than numbers")
}

/// False when the folder is there already.
fn make_new_dir(dir: &Path) -> anyhow::Result<bool> {
    match fs::create_dir(dir) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot create {}", dir.display())),
    }
}

fn check_kind(kind: Kind, recipe: &Recipe) -> Result<(), Failure> {
    let problem = match (kind, &recipe.start) {
        (Kind::Pretrain, Start::Model(_) | Start::Run(_)) => {
            "the recipe starts from trained weights: use `galerne tune`, or give it a [start.random]"
        }
        (Kind::Tune, Start::Random(_)) => {
            "the recipe starts from random weights: use `galerne pretrain`, or set start.model"
        }
        _ => return Ok(()),
    };
    Err(Failure::usage(problem))
}

/// Trains to the end and writes the model. `run_value` is what `galerne resume` will be given.
///
/// # Errors
/// When training or writing fails; [`Failure::Stopped`] after a signal, with a checkpoint.
pub(crate) fn finish(
    run: &mut Run,
    run_value: &str,
    signals: &StopSignals,
    context: &Context,
) -> anyhow::Result<()> {
    let start = Instant::now();
    let last = train(run, run_value, signals)?;
    let model_dir = export(run, context)?;
    let seconds = start.elapsed().as_secs_f64();
    context.say(&format!("done in {}", duration(seconds)));
    match context.form() {
        Form::Text => context.print(&format!("{}\n", model_dir.display())),
        Form::Json => context.print_json(&json!({
            "run": run.dir().display().to_string(),
            "model": model_dir.display().to_string(),
            "steps": run.step(),
            "tokens": run.tokens(),
            "loss": last.map(|progress| progress.loss),
            "bits_per_byte": last.and_then(|progress| progress.validation_bits_per_byte),
            "seconds": seconds,
        })),
    }
}

/// Trains to the end with a live progress; gives the last step.
///
/// # Errors
/// When training fails; [`Failure::Stopped`] after a signal, with a checkpoint.
pub(crate) fn train(
    run: &mut Run,
    run_value: &str,
    signals: &StopSignals,
) -> anyhow::Result<Option<Progress>> {
    let mut bar = TrainingBar::new(run.step(), run.recipe().n_steps);
    let mut last = None;
    let outcome = run.train(|progress| {
        bar.observe(progress);
        last = Some(*progress);
        if signals.requested().is_some() { RunControl::Stop } else { RunControl::Continue }
    });
    bar.finish();
    match (outcome?, signals.requested()) {
        (Outcome::Stopped, Some(signal)) => Err(Failure::Stopped {
            signal,
            saved: Some(format!("step {} of {} is saved", run.step(), run.recipe().n_steps)),
            next: Some(format!("go on with `galerne resume {run_value}`")),
        }
        .into()),
        _ => Ok(last),
    }
}

/// What a model trained further has of its parent: the licence of the weights, and the data sheet of what they were trained
/// on first.
fn inherited(recipe: &Recipe) -> anyhow::Result<Lineage> {
    let Start::Model(dir) = &recipe.start else { return Ok(Lineage::default()) };
    if !dir.exists() {
        return Ok(Lineage::default());
    }
    let parent = ModelDir::open(dir)?;
    let licence = licence_of(&parent)?.map(|licence| licence.name);
    let data_sheet_sha256 = parent.lineage().and_then(|known| known.data_sheet_sha256.clone());
    Ok(Lineage { licence, data_sheet_sha256, ..Lineage::default() })
}

/// Writes the model of a finished run into the home, unless it is there already.
fn export(run: &Run, context: &Context) -> anyhow::Result<PathBuf> {
    let name = folder_name(run.dir());
    let dir = context.models_dir().join(&name);
    if dir.exists() {
        context.say(&format!("the model of this run is there already: {}", dir.display()));
        return Ok(dir);
    }
    let recipe = run.recipe();
    let tokenizer = Tokenizer::open(&recipe.data.tokenizer)?;
    let has_conversations = !recipe.data.conversations.is_empty();
    let parent = match &recipe.start {
        Start::Model(parent) | Start::Run(parent) => Some(folder_name(parent)),
        Start::Random(_) => None,
    };
    let origin = match &parent {
        Some(parent) => format!("trained further from `{parent}`"),
        None => "trained from random weights".to_owned(),
    };
    let notes = ModelNotes {
        summary: format!(
            "A decoder {origin} on {} tokens in {} steps, run `{name}`.",
            run.tokens(),
            run.step()
        ),
        sections: vec![("Recipe".to_owned(), format!("```toml\n{}```", recipe.to_toml()))],
        lineage: Lineage { run: Some(name.clone()), parent, ..inherited(recipe)? },
        temperature: None,
        template: has_conversations.then(|| template_of(recipe, &tokenizer)).transpose()?,
        name,
    };
    write_model(&dir, run.parameters(), recipe.dtype, &tokenizer, &notes)
        .with_context(|| format!("cannot write the model of run {}", run.dir().display()))?;
    Ok(dir)
}
