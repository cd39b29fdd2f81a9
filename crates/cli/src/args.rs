//! The arguments that every command has, and the list of commands.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use kernels::Family;

use crate::context::Form;
use crate::{
    bench, chat, doctor, generate, model, plan, pretrain, quickstart, resume, serve, tokenizer,
    tune,
};

/// Self-hosted language models: train, specialise, measure and serve them on your own machine.
///
/// Data goes to stdout, logs and progress to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 and 143 after
/// SIGINT and SIGTERM with the state saved. Environment: GALERNE_HOME (home folder), GALERNE_KERNELS (kernel family),
/// RUST_LOG (log filter, default warn); for downloads HF_TOKEN or HF_TOKEN_FILE (a file that holds it), HTTPS_PROXY and
/// SSL_CERT_FILE.
#[derive(Debug, Parser)]
#[command(name = "galerne", version, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) common: CommonArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Arguments of every command.
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Common options")]
pub(crate) struct CommonArgs {
    /// Print the answer as JSON on stdout, a failure as JSON on stderr
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Home folder: models, runs, cache [default: $GALERNE_HOME, else ~/.galerne]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) home: Option<PathBuf>,
    /// Kernel family of the processors: reference, avx2, avx512 or amx [default: $GALERNE_KERNELS, else the fastest of this machine]
    #[arg(long, global = true, value_name = "FAMILY")]
    pub(crate) kernels: Option<Family>,
    /// Compute threads [default: one per processor]
    #[arg(long, global = true, value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,
    /// Where models are computed: on the processors, on an NVIDIA GPU, or on a GPU where there is one
    #[arg(long, global = true, value_enum, value_name = "DEVICE", default_value_t = DeviceChoice::Auto)]
    pub(crate) device: DeviceChoice,
    /// Folder with NVIDIA's libraries, looked into before the places of the system and of Python's packages
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) cuda_libs: Option<PathBuf>,
}

/// Where models are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceChoice {
    /// On a GPU where there is one, else on the processors
    #[default]
    Auto,
    /// On the processors
    Cpu,
    /// On an NVIDIA GPU
    Cuda,
}

impl CommonArgs {
    /// What the answer looks like.
    pub(crate) fn form(&self) -> Form {
        if self.json { Form::Json } else { Form::Text }
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// From text to a specialised model and a chat page, in one command
    Quickstart(quickstart::Args),
    /// Show what this machine offers: processor, GPU, kernels, memory, disk, measured speed
    Doctor(doctor::Args),
    /// Say what a run will take before it is started: memory, disk, operations, time
    Plan(plan::Args),
    /// Train a tokenizer, or use one: encode, decode, render, inspect
    Tokenizer(tokenizer::Args),
    /// Train a model from random weights, as a recipe says
    Pretrain(pretrain::Args),
    /// Train a model further on conversations or documents, as a recipe says
    Tune(tune::Args),
    /// Go on with a stopped or killed run from its last checkpoint
    Resume(resume::Args),
    /// List, import, export, quantize, merge, inspect or remove models
    Model(model::Args),
    /// Continue a text, or a list of token ids
    Generate(generate::Args),
    /// Talk with a model in the terminal
    Chat(chat::Args),
    /// Serve the models of the home: API and chat page
    Serve(serve::Args),
    /// Measure speed: training step, prefill, decode, batched decode, tokenizers, and how costs grow
    Bench(bench::Args),
}
