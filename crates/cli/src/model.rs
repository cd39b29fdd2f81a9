//! `galerne model`: the models of the home, and what one holds.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use eval::figures::{bytes, short};
use formats::model_dir::{ModelDir, list_models};
use formats::{DecoderConfig, TensorDtype, to_hf_json};
use model::ModelConfig;
use serde_json::{Value, json};
use tokenizer::Tokenizer;

use crate::context::{Context, Form};
use crate::open_model::{ModelMemory, locate};
use crate::table::table;

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
        #[arg(value_name = "NAME|DIR")]
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
        Command::Inspect { model } => inspect(&model, context),
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
                "weights_bytes": model.weights().files().n_bytes(),
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
            bytes(model.weights().files().n_bytes()),
            dtype_name(config.dtype)
        );
        (name.as_str(), text)
    });
    context.print(&table(&described.collect::<Vec<_>>()))
}

fn inspect(value: &str, context: &Context) -> anyhow::Result<()> {
    let (name, path) = locate(value, context)?;
    let dir = ModelDir::open(&path).with_context(|| format!("cannot open model `{value}`"))?;
    let tokenizer = match Tokenizer::open(dir.dir()) {
        Err(tokenizer::Error::NoTokenizer { .. }) => None,
        opened => Some(opened?),
    };
    let files = files_of(dir.dir())?;
    match context.form() {
        Form::Json => context.print_json(&as_json(&name, &dir, tokenizer.as_ref(), &files)?),
        Form::Text => context.print(&as_text(&name, &dir, tokenizer.as_ref(), &files)?),
    }
}

/// Names and sizes of the files, sorted by name.
fn files_of(dir: &Path) -> anyhow::Result<Vec<(String, u64)>> {
    let failed = || format!("cannot list {}", dir.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).with_context(failed)? {
        let entry = entry.with_context(failed)?;
        let data = entry.metadata().with_context(failed)?;
        if data.is_file() {
            files.push((entry.file_name().to_string_lossy().into_owned(), data.len()));
        }
    }
    files.sort();
    Ok(files)
}

fn dtype_name(dtype: impl Into<TensorDtype>) -> &'static str {
    match dtype.into() {
        TensorDtype::F32 => "f32",
        TensorDtype::F16 => "f16",
        TensorDtype::Bf16 => "bf16",
        TensorDtype::F8E4M3 => "f8_e4m3",
    }
}

/// Name, number type and shape of every tensor, sorted by name.
fn tensors(dir: &ModelDir) -> anyhow::Result<Vec<(String, &'static str, Vec<usize>)>> {
    let mut names: Vec<&str> = dir.weights().files().names().collect();
    names.sort_unstable();
    let described = names.into_iter().map(|name| {
        let view = dir.weights().files().get(name)?;
        Ok((name.to_owned(), dtype_name(view.dtype), view.shape.to_vec()))
    });
    described.collect()
}

fn as_json(
    name: &str,
    dir: &ModelDir,
    tokenizer: Option<&Tokenizer>,
    files: &[(String, u64)],
) -> anyhow::Result<Value> {
    let tensors = tensors(dir)?;
    let tensors = tensors
        .iter()
        .map(|(name, dtype, shape)| json!({"name": name, "dtype": dtype, "shape": shape}));
    let files = files.iter().map(|(name, n_bytes)| json!({"name": name, "bytes": n_bytes}));
    let tokenizer = tokenizer.map(|tokenizer| {
        json!({
            "vocab_size": tokenizer.vocab_size(),
            "bos_id": tokenizer.bos_id(),
            "eos_id": tokenizer.eos_id(),
            "digest": tokenizer.digest(),
        })
    });
    Ok(json!({
        "name": name,
        "dir": dir.dir().display().to_string(),
        "parameters": dir.config().n_parameters(),
        "config": to_hf_json(dir.config()),
        "eos_ids": dir.eos_ids(),
        "serving_memory_bytes": serving_bytes(dir),
        "tensors": tensors.collect::<Vec<_>>(),
        "unused_tensors": dir.unused_tensors(),
        "tokenizer": tokenizer,
        "licence": dir.lineage().and_then(|lineage| lineage.licence.as_deref()),
        "lineage": dir.lineage(),
        "files": files.collect::<Vec<_>>(),
    }))
}

/// None for a model that this program reads and cannot compute.
fn serving_bytes(dir: &ModelDir) -> Option<u64> {
    let config = ModelConfig::new(dir.config().clone()).ok()?;
    Some(ModelMemory::of(&config).weights_bytes)
}

fn as_text(
    name: &str,
    dir: &ModelDir,
    tokenizer: Option<&Tokenizer>,
    files: &[(String, u64)],
) -> anyhow::Result<String> {
    let none = || "none".to_owned();
    let unknown = || "not stated".to_owned();
    let lineage = dir.lineage();
    let of_tokenizer = |tokenizer: &Tokenizer| {
        format!("{} ids, digest {}", tokenizer.vocab_size(), tokenizer.digest())
    };
    let mut rows = vec![("model", name.to_owned()), ("folder", dir.dir().display().to_string())];
    rows.extend(shape_rows(dir.config()));
    rows.extend([
        ("serving memory", serving_bytes(dir).map_or_else(unknown, bytes)),
        ("tokenizer", tokenizer.map_or_else(none, of_tokenizer)),
        ("licence", lineage.and_then(|l| l.licence.clone()).unwrap_or_else(unknown)),
        ("run", lineage.and_then(|l| l.run.clone()).unwrap_or_else(unknown)),
        ("parent", lineage.and_then(|l| l.parent.clone()).unwrap_or_else(none)),
    ]);
    let mut text = table(&rows);
    text.push_str("\nfiles\n");
    let sizes: Vec<_> = files.iter().map(|(name, size)| (name.as_str(), bytes(*size))).collect();
    text.push_str(&table(&sizes));
    text.push_str("\ntensors\n");
    let tensors = tensors(dir)?;
    let shapes =
        tensors.iter().map(|(name, dtype, shape)| (name.as_str(), format!("{dtype} {shape:?}")));
    text.push_str(&table(&shapes.collect::<Vec<_>>()));
    for tensor in dir.unused_tensors() {
        text.push_str(&format!("not used by the model: {tensor}\n"));
    }
    Ok(text)
}

fn shape_rows(config: &DecoderConfig) -> Vec<(&'static str, String)> {
    let heads = format!(
        "{} query, {} key and value, {} wide",
        config.n_heads, config.n_kv_heads, config.head_dim
    );
    let head = if config.tied_embeddings { "tied to the embedding" } else { "its own" };
    vec![
        ("parameters", short(config.n_parameters() as f64)),
        ("number type", dtype_name(config.dtype).to_owned()),
        ("layers", config.n_layers.to_string()),
        ("width", config.hidden_dim.to_string()),
        ("heads", heads),
        ("feed-forward width", config.ffn_dim.to_string()),
        ("vocabulary", config.vocab_size.to_string()),
        ("context", format!("{} tokens", config.context_len)),
        ("output head", head.to_owned()),
    ]
}
