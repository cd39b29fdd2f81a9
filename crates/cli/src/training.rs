//! A training run from the command line: from a recipe to a model or an adapter. Shared by `pretrain`, `tune` and
//! `resume`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;
use eval::figures::duration;
use formats::adapter::Adapter;
use formats::model_dir::{Lineage, ModelDir, read_lineage};
use model::{AdapterParameters, Parameters};
use serde_json::json;
use tokenizer::Tokenizer;
use train::export::{ModelNotes, write_adapter, write_model};
use train::plan::RunPlan;
use train::recipe::Start;
use train::{Inherited, Outcome, Progress, Recipe, Run, RunControl, Trained, template_of};

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

/// Trains to the end and writes the model, or the adapter. `run_value` is what `galerne resume` will be given.
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
    let (made, dir) = export(run, context)?;
    let seconds = start.elapsed().as_secs_f64();
    context.say(&format!("done in {}", duration(seconds)));
    match context.form() {
        Form::Text => context.print(&format!("{}\n", dir.display())),
        Form::Json => context.print_json(&json!({
            "run": run.dir().display().to_string(),
            made: dir.display().to_string(),
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

/// Writes what a finished run trained into the home, unless it is there already; gives what it is and where.
fn export(run: &Run, context: &Context) -> anyhow::Result<(&'static str, PathBuf)> {
    let trained = run.trained();
    let (made, parent) = match &*trained {
        Trained::Model(_) => ("model", context.models_dir()),
        Trained::Adapter(_) => ("adapter", context.adapters_dir()),
    };
    let name = folder_name(run.dir());
    let dir = parent.join(&name);
    if dir.exists() {
        match &*trained {
            Trained::Model(_) => drop(ModelDir::open(&dir)?),
            Trained::Adapter(factors) => drop(Adapter::open(&dir, factors.config(), None)?),
        }
        if read_lineage(&dir)?.is_none_or(|found| found.run.as_ref() != Some(&name)) {
            let hint =
                format!("move it away, then `galerne resume {name}` writes the {made} of the run");
            return Err(Failure::Exists { path: dir, hint }.into());
        }
        context.say(&format!("the {made} of this run is there already: {}", dir.display()));
        return Ok((made, dir));
    }
    let failed = || format!("cannot write the {made} of run {}", run.dir().display());
    match &*trained {
        Trained::Model(parameters) => export_model(run, parameters, &dir, context),
        Trained::Adapter(factors) => export_adapter(run, factors, &dir, context),
    }
    .with_context(failed)?;
    Ok((made, dir))
}

/// The model that the run's weights come from.
fn parent_of(run: &Run) -> Option<&Path> {
    match &run.recipe().start {
        Start::Model(parent) | Start::Run(parent) => Some(parent),
        Start::Random(_) => None,
    }
}

fn export_adapter(
    run: &Run,
    factors: &AdapterParameters,
    dir: &Path,
    context: &Context,
) -> anyhow::Result<()> {
    let parent = parent_of(run).context("an adapter is one for a model")?;
    let lineage = Lineage {
        run: Some(folder_name(run.dir())),
        parent: Some(folder_name(parent)),
        ..inherited(run, context)
    };
    context.make_dir(&context.adapters_dir())?;
    write_adapter(dir, factors, parent, lineage)?;
    Ok(())
}

fn export_model(
    run: &Run,
    parameters: &Parameters,
    dir: &Path,
    context: &Context,
) -> anyhow::Result<()> {
    let name = folder_name(run.dir());
    let recipe = run.recipe();
    let tokenizer = Tokenizer::open(&recipe.data.tokenizer)?;
    let has_conversations = !recipe.data.conversations.is_empty();
    let parent = parent_of(run).map(folder_name);
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
    write_model(dir, parameters, recipe.dtype, &tokenizer, &notes)?;
    Ok(())
}
