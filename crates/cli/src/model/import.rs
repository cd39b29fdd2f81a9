//! `galerne model import` and `galerne model rm`: models into the home and out of it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use eval::figures::{bytes, short};
use formats::licence::{Licence, licence_of};
use formats::model_dir::ModelDir;
use formats::model_dir::copy_model;
use formats::packed_copy::remove_copies;
use formats::published::published;
use model::ModelConfig;
use serde_json::json;
use tracing::warn;

use crate::context::{Context, Form};
use crate::failure::Failure;
use crate::machine;
use crate::model::pull::{self, HubModel, PullArgs};
use crate::names::{check_name, home_name, locate_in};
use crate::table::table;

/// Arguments of `galerne model import`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Directory or GGUF file to copy; or a repository of a model hub to download, hf:OWNER/NAME, of which one of several
    /// GGUF files is hf:OWNER/NAME/FILE.gguf
    #[arg(value_name = "PATH|hf:OWNER/NAME", value_parser = parse_source)]
    source: Source,
    /// Name in the home [default: that of the directory, file or repository]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    pull: PullArgs,
}

/// Where a model is.
#[derive(Clone, Debug)]
enum Source {
    Path(PathBuf),
    Hub(HubModel),
}

fn parse_source(text: &str) -> Result<Source, Failure> {
    match text.strip_prefix(pull::PREFIX) {
        Some(model) => model.parse().map(Source::Hub),
        None => Ok(Source::Path(text.into())),
    }
}

/// Runs the command.
///
/// # Errors
/// When the source is no model that can be computed, its name is taken, or the disk is too small.
pub(super) fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    let name = args.name.clone().unwrap_or_else(|| match &args.source {
        Source::Path(path) => home_name(path),
        Source::Hub(model) => model.default_name(),
    });
    check_name("--name", &name)?;
    let out = context.models_dir().join(&name);
    if out.symlink_metadata().is_ok() {
        let hint = "give another --name, or remove it with `galerne model rm`".to_owned();
        return Err(Failure::Exists { path: out, hint }.into());
    }
    let model = match &args.source {
        Source::Path(_) if args.pull.is_any() => {
            let problem = "--revision, --endpoint and --send-token are for hf:OWNER/NAME";
            return Err(Failure::usage(problem).into());
        }
        Source::Path(path) => copy(path, &out)?,
        Source::Hub(model) => pull::pull(model, &args.pull, &out, context)?,
    };
    let licence = licence_of(&model)?;
    report(&name, &model, licence.as_ref(), context)
}

fn copy(source: &Path, out: &Path) -> anyhow::Result<ModelDir> {
    let failed = || format!("cannot import {}", source.display());
    let model = ModelDir::open(source).with_context(failed)?;
    ModelConfig::new(model.config().clone())
        .with_context(|| format!("cannot compute {}", source.display()))?;
    check_disk(&model, out)?;
    copy_model(&model, out).with_context(failed)
}

pub(super) fn check_disk(model: &ModelDir, out: &Path) -> anyhow::Result<()> {
    let sizes = model.files()?.into_iter().map(|path| fs::metadata(path).map(|file| file.len()));
    let needed_bytes = sizes.sum::<Result<u64, _>>().context("cannot look at the model's files")?;
    machine::check_disk("the model", out, needed_bytes)
}

fn report(
    name: &str,
    model: &ModelDir,
    licence: Option<&Licence>,
    context: &Context,
) -> anyhow::Result<()> {
    let config = model.config();
    let shape = published(config);
    if let Some((whole, n_tensors)) = model.text_part_of() {
        context.say(&format!("only the text part of {whole} is used; {n_tensors} tensors are not"));
    }
    match licence {
        None => context.say("licence: not stated in the files; see where the model came from"),
        Some(Licence { name, limit: None }) => context.say(&format!("licence: {name}")),
        Some(Licence { name, limit: Some(limit) }) => {
            context.say(&format!("warning: the licence, {name}, is {limit}; read it before use"));
        }
    }
    if context.form() == Form::Json {
        return context.print_json(&json!({
            "name": name,
            "dir": model.dir().display().to_string(),
            "parameters": config.n_parameters(),
            "published_shape": shape,
            "licence": licence.map(|licence| &licence.name),
            "licence_limit": licence.and_then(|licence| licence.limit),
            "weights_bytes": model.weights().n_bytes(),
        }));
    }
    context.print(&table(&[
        ("model", name.to_owned()),
        ("folder", model.dir().display().to_string()),
        ("parameters", short(config.n_parameters() as f64)),
        ("shape of", shape.unwrap_or("no published model").to_owned()),
        ("weights", bytes(model.weights().n_bytes())),
    ]))
}

/// Removes a model of the home.
///
/// # Errors
/// When there is no such name, or the folder cannot be removed.
pub(super) fn remove(name: &str, context: &Context) -> anyhow::Result<()> {
    if name.contains(['/', '.']) {
        let problem = format!("`{name}` is a path: expected a name in the home");
        return Err(Failure::usage(problem).into());
    }
    let dir = locate_in(&context.models_dir(), "model", name)?;
    // Copies of one that cannot be opened any more are not found; `cache` may be removed at any time.
    if let Ok(model) = ModelDir::open(&dir)
        && let Err(error) = remove_copies(&context.packed_dir(), model.weights())
    {
        warn!(model = name, %error, "its packed copies stay");
    }
    formats::durable::remove_dir_at_once(&dir)
        .with_context(|| format!("cannot remove model `{name}`"))?;
    context.say(&format!("removed {}", dir.display()));
    Ok(())
}
