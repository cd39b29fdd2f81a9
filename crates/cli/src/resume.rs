//! `galerne resume`: a run goes on from its last checkpoint.

use anyhow::Context as _;
use train::plan::RunPlan;
use train::{RECIPE_FILE, Recipe, Run, TrainError};

use crate::context::Context;
use crate::names::locate_in;
use crate::os::StopSignals;
use crate::training::finish;
use crate::{quickstart, run_plan};

/// Arguments of `galerne resume`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Run: a name in the home, or a path (with a slash or a dot)
    #[arg(value_name = "RUN")]
    run: String,
}

/// Runs the command.
///
/// # Errors
/// When there is no such run, it is in use, or a file of it is damaged.
pub(crate) fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let dir = locate_in(&context.runs_dir(), "run", &args.run)?;
    if quickstart::is_quickstart(&dir) {
        return quickstart::resume(&dir, context);
    }
    let path = dir.join(RECIPE_FILE);
    if !path.is_file() {
        return Err(TrainError::NotARun { path: dir }.into());
    }
    let device = context.device()?;
    let plan = RunPlan::of_run(&dir, &Recipe::read(&path)?)?.on(&device);
    run_plan::announce(&plan, &dir, context)?;
    let signals = StopSignals::take_all().context("cannot take signals")?;
    let resume = || Ok(Run::resume(&dir, device.clone())?);
    let mut run = run_plan::open_run(&plan, &device, resume)?;
    context.say(&format!("resuming at step {} of {}", run.step(), run.recipe().n_steps));
    finish(&mut run, &args.run, &signals, context)
}
