//! A training run from the command line: from a recipe to a model. Shared by `pretrain`, `tune` and
//! `resume`.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context as _;
use eval::figures::duration;
use formats::model_dir::{Lineage, ModelDir};
use serde_json::json;
use tokenizer::Tokenizer;
use train::export::{ModelNotes, write_model};
use train::plan::RunPlan;
use train::recipe::Start;
use train::{Inherited, Outcome, Progress, Recipe, Run, RunControl, template_of};

use crate::context::{Context, Form};
use crate::failure::Failure;
use crate::names::folder_name;
use crate::os::StopSignals;
use crate::progress::TrainingBar;
use crate::run_dir::ClaimedDir;
use crate::{recipes, run_plan};

/// Where a run begins, for the commands that start one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RunStart {
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

/// Starts a run: `pretrain` and `tune`.
///
/// # Errors
/// When the recipe, the data or the disk will not do; [`Failure::Stopped`] after a signal, with a checkpoint.
pub(crate) fn start(args: &RunArgs, start: RunStart, context: &Context) -> anyhow::Result<()> {
    let recipe = recipes::read(&args.recipe, &args.set)?;
    check_start(start, &recipe)?;
    let device = context.device()?;
    let plan = RunPlan::of_recipe(&recipe)?.on(&device);
    let claimed = match &args.run {
        Some(name) => ClaimedDir::named(name, context)?,
        None => ClaimedDir::numbered(&args.recipe, context)?,
    };
    run_plan::announce(&plan, claimed.path(), context)?;
    let signals = StopSignals::take_all().context("cannot take signals")?;
    let create = || Ok(Run::create(claimed.path(), recipe, device.clone())?);
    let mut run = run_plan::open_run(&plan, &device, create)?;
    let name = folder_name(claimed.path());
    claimed.keep();
    finish(&mut run, &name, &signals, context)
}

fn check_start(start: RunStart, recipe: &Recipe) -> Result<(), Failure> {
    let problem = match (start, &recipe.start) {
        (RunStart::Pretrain, Start::Model(_) | Start::Run(_)) => {
            "the recipe starts from trained weights: use `galerne tune`, or give it a [start.random]"
        }
        (RunStart::Tune, Start::Random(_)) => {
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

/// What the run's model has of the one that its weights come from.
fn inherited(run: &Run, context: &Context) -> Lineage {
    let Some(Inherited { licence, data_sheet_sha256 }) = run.inherited().cloned() else {
        context.say("warning: the model's licence and data sheet are not known");
        return Lineage::default();
    };
    Lineage { licence, data_sheet_sha256, ..Lineage::default() }
}

/// Writes the model of a finished run into the home, unless it is there already.
fn export(run: &Run, context: &Context) -> anyhow::Result<PathBuf> {
    let name = folder_name(run.dir());
    let dir = context.models_dir().join(&name);
    if dir.exists() {
        let is_own = |found: &Lineage| found.run.as_ref() == Some(&name);
        if !ModelDir::open(&dir)?.lineage().is_some_and(is_own) {
            let hint =
                format!("move it away, then `galerne resume {name}` writes the model of the run");
            return Err(Failure::Exists { path: dir, hint }.into());
        }
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
        lineage: Lineage { run: Some(name.clone()), parent, ..inherited(run, context) },
        temperature: None,
        template: has_conversations.then(|| template_of(recipe, &tokenizer)).transpose()?,
        name,
    };
    write_model(&dir, &run.parameters(), recipe.dtype, &tokenizer, &notes)
        .with_context(|| format!("cannot write the model of run {}", run.dir().display()))?;
    Ok(dir)
}
