//! `galerne model export`: a model in another layout.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::ValueEnum;
use formats::convert::{write_gguf_file, write_hugging_face, write_native};
use serde_json::json;

use crate::context::{Context, Form};
use crate::failure::Failure;
use crate::gguf_vocabulary;
use crate::open_model::{open_dir, warn_left_out};

/// Arguments of `galerne model export`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Model: a name in the home, or a path (with a slash or a dot)
    #[arg(value_name = "NAME|PATH")]
    model: String,
    /// Layout to write
    #[arg(long, value_name = "LAYOUT")]
    to: Target,
    /// Directory to make, or the file for gguf; it must not exist
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Target {
    /// Hugging Face: config.json and model.safetensors
    Hf,
    /// Mistral's own: params.json and consolidated.safetensors
    Native,
    /// One GGUF file, for llama.cpp and its relatives
    Gguf,
}

/// Runs the command.
///
/// # Errors
/// When the model cannot be read, the place is taken, or the layout cannot hold the model.
pub(super) fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    let (name, model) = open_dir(&args.model, context)?;
    warn_left_out(&name, &model);
    let is_file = args.out.extension().is_some_and(|extension| extension == "gguf");
    if matches!(args.to, Target::Gguf) != is_file {
        let problem = format!(
            "--out {}: expected a name that ends in .gguf for a GGUF file, and another for a directory",
            args.out.display()
        );
        return Err(Failure::usage(problem).into());
    }
    let failed = || format!("cannot write {}", args.out.display());
    let files = gguf_vocabulary::as_files(&name, &model)?;
    match args.to {
        Target::Gguf => {
            let vocabulary = gguf_vocabulary::of_model(&name, &model)?;
            write_gguf_file(&model, &args.out, vocabulary.as_ref()).with_context(failed)?;
        }
        Target::Hf => {
            write_hugging_face(&model, &args.out, &files).with_context(failed)?;
        }
        Target::Native => {
            write_native(&model, &args.out, &files).with_context(failed)?;
        }
    }
    match context.form() {
        Form::Json => context.print_json(&json!({"path": args.out.display().to_string()})),
        Form::Text => context.print(&format!("{}\n", args.out.display())),
    }
}
