//! `galerne model`: the models of the home, what one holds, and the ways in and out.

use eval::figures::{bytes, short};
use formats::model_dir::list_models;
use serde_json::json;

use crate::context::{Context, Form};
use crate::table::table;

mod export;
mod import;
mod inspect;
mod merge;
mod pull;
mod quantize;

use inspect::dtype_name;

/// Arguments of `galerne model`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the models of the home
    List,
    /// Show the shape, tensors, tokenizer, lineage and files of a model
    Inspect {
        /// Model: a name in the home, or a path (with a slash or a dot)
        #[arg(value_name = "NAME|PATH")]
        model: String,
    },
    /// Bring a model into the home: a Hugging Face or native Mistral directory, a GGUF file, or a repository of a model hub
    Import(import::Args),
    /// Write a model in another layout, without a change of a number
    Export(export::Args),
    /// Make a smaller model with quantised matrices, and say how far its predictions are from the original's
    Quantize(quantize::Args),
    /// Put an adapter (LoRA) into the weights of its model
    Merge(merge::Args),
    /// Remove a model of the home
    Rm {
        /// Model: a name in the home
        #[arg(value_name = "NAME")]
        model: String,
    },
}

/// Runs the command.
///
/// # Errors
/// When the home or the model cannot be read.
pub(crate) fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    match args.command {
        Command::List => list(context),
        Command::Inspect { model } => inspect::inspect(&model, context),
        Command::Import(args) => import::run(&args, context),
        Command::Export(args) => export::run(&args, context),
        Command::Quantize(args) => quantize::run(&args, context),
        Command::Merge(args) => merge::run(&args, context),
        Command::Rm { model } => import::remove(&model, context),
    }
}

fn list(context: &Context) -> anyhow::Result<()> {
    let dir = context.models_dir();
    let list = list_models(&dir)?;
    if context.form() == Form::Json {
        let models = list.models.iter().map(|(name, model)| {
            json!({
                "name": name,
                "dir": model.dir().display().to_string(),
                "parameters": model.config().n_parameters(),
                "context_len": model.config().context_len,
                "dtype": dtype_name(model.config().dtype),
                "weights_bytes": model.weights().n_bytes(),
            })
        });
        let broken = list.broken.iter();
        let broken = broken.map(|(name, error)| json!({"name": name, "error": error.to_string()}));
        let (models, broken): (Vec<_>, Vec<_>) = (models.collect(), broken.collect());
        return context.print_json(&json!({"models": models, "broken": broken}));
    }
    for (name, error) in &list.broken {
        context.say(&format!("{name} cannot be used: {error}"));
    }
    if list.models.is_empty() {
        context.say(&format!("no models in {}", dir.display()));
    }
    let described = list.models.iter().map(|(name, model)| {
        let config = model.config();
        let text = format!(
            "{} parameters, context {}, {} of {}",
            short(config.n_parameters() as f64),
            config.context_len,
            bytes(model.weights().n_bytes()),
            dtype_name(config.dtype)
        );
        (name.as_str(), text)
    });
    context.print(&table(&described.collect::<Vec<_>>()))
}
