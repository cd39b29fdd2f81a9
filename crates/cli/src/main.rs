//! The `galerne` binary: arguments, one file per subcommand, exit codes. What a command does is done
//! by the other crates; the order of a quickstart's stages is here.

mod answer;
mod args;
mod bench;
mod chat;
mod context;
mod doctor;
mod engine_args;
mod failure;
mod format;
mod generate;
mod gguf_vocabulary;
mod machine;
mod model;
mod names;
mod open_model;
mod os;
mod packed_weights;
mod plan;
mod pretrain;
mod progress;
mod quickstart;
mod recipes;
mod resume;
mod run_dir;
mod run_plan;
mod serve;
mod shelf;
mod table;
mod tokenizer;
mod training;
mod tune;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use clap::Parser;
use cuda::out_of_memory_as_error;

use crate::args::{Cli, Command};
use crate::context::Context;
use crate::failure::Failure;

fn main() -> ExitCode {
    os::ignore_file_size_signal();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return failure::report_usage(&error),
    };
    let form = cli.common.form();
    // What finds no room on a GPU fails as anything else does.
    let run = || -> anyhow::Result<()> { out_of_memory_as_error(|| run(cli))? };
    // A panic is a bug, and still an exit code and an error that programs can read.
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => failure::report(&error, form),
        Err(_) => failure::report(&Failure::Panicked.into(), form),
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let context = Context::new(&cli.common)?;
    context::start_logging();
    match cli.command {
        Command::Quickstart(args) => quickstart::run(args, &context),
        Command::Doctor(args) => doctor::run(args, &context),
        Command::Plan(args) => plan::run(args, &context),
        Command::Tokenizer(args) => tokenizer::run(args, &context),
        Command::Pretrain(args) => pretrain::run(args, &context),
        Command::Tune(args) => tune::run(args, &context),
        Command::Resume(args) => resume::run(args, &context),
        Command::Model(args) => model::run(args, &context),
        Command::Generate(args) => generate::run(args, &context),
        Command::Chat(args) => chat::run(args, &context),
        Command::Serve(args) => serve::run(args, &context),
        Command::Bench(args) => bench::run(args, &context),
    }
}
