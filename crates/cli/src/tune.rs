//! `galerne tune`: a recipe that starts from a model.

use crate::context::Context;
use crate::training::{RunArgs, RunStart, start};

/// Arguments of `galerne tune`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    run: RunArgs,
}

/// Runs the command.
///
/// # Errors
/// As [`start`].
pub(crate) fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    start(&args.run, RunStart::Tune, context)
}
