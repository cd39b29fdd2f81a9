//! `galerne model merge`: an adapter put into the weights of its model.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::Context as _;
use formats::adapter::Adapter;
use formats::convert::write_adapted;
use model::add_low_rank;
use serde_json::json;

use super::import::check_disk;
use crate::context::{Context, Form};
use crate::gguf_vocabulary;
use crate::names::{check_name, folder_name, home_name, without_dots};
use crate::open_model::{open_dir, parse_scaling, warn_left_out};
use crate::table::table;

/// Arguments of `galerne model merge`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Model that the adapter was trained on: a name in the home, or a path (with a slash or a dot)
    #[arg(value_name = "NAME|PATH")]
    model: String,
    /// Adapter: a PEFT directory, or the lora.safetensors of mistral-finetune or its folder
    #[arg(long, value_name = "PATH")]
    adapter: PathBuf,
    /// What the adapter's product is multiplied with [default: what its files say]
    #[arg(long, value_name = "NUMBER", value_parser = parse_scaling, allow_negative_numbers = true)]
    scaling: Option<f64>,
    /// Name of the new model in the home [default: those of model and adapter]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// When model or adapter cannot be read or do not fit, the name is taken, or the disk is too small.
pub(super) fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    let (name, original) = open_dir(&args.model, context)?;
    let config = original.config();
    let failed = || format!("cannot use the adapter {}", args.adapter.display());
    let adapter = Adapter::open(&args.adapter, config, args.scaling).with_context(failed)?;
    let new_name = match &args.name {
        Some(name) => name.clone(),
        None => format!("{}-{}", without_dots(&name), home_name(&args.adapter)),
    };
    check_name("--name", &new_name)?;
    let out = context.models_dir().join(&new_name);
    check_disk(&original, &out)?;
    warn_left_out(&name, &original);
    let mut pairs = BTreeMap::new();
    for name in adapter.names() {
        pairs.extend(adapter.pair(name, config).with_context(failed)?.map(|pair| (name, pair)));
    }
    let changed: BTreeSet<_> = pairs.keys().copied().collect();
    let adapter_name = folder_name(&args.adapter);
    let files = gguf_vocabulary::as_files(&name, &original)?;
    let change = |name, first, rows: &mut [f32]| add_low_rank(&pairs[&name], first, rows);
    let merged = write_adapted(&original, &out, &adapter_name, &changed, &change, &files);
    merged.with_context(|| format!("cannot write model `{new_name}`"))?;
    match context.form() {
        Form::Json => context.print_json(&json!({
            "name": new_name,
            "dir": out.display().to_string(),
            "changed_matrices": changed.len(),
            "scaling": adapter.scaling(),
        })),
        Form::Text => context.print(&table(&[
            ("model", new_name),
            ("folder", out.display().to_string()),
            ("changed matrices", changed.len().to_string()),
            ("scaling", adapter.scaling().to_string()),
        ])),
    }
}
