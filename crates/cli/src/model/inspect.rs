//! `galerne model inspect`: what a model holds.

use std::fs;

use anyhow::Context as _;
use eval::figures::{bytes, short};
use formats::licence::licence_of;
use formats::model_dir::ModelDir;
use formats::published::published;
use formats::{DecoderConfig, RopeScaling, TensorDtype, to_hf_json};
use model::ModelConfig;
use serde_json::{Value, json};
use tensor::Device;
use tokenizer::Tokenizer;

use crate::context::{Context, Form, one_line};
use crate::open_model::{LoadArgs, open_dir, open_tokenizer, weights_bytes};
use crate::table::table;

/// Prints shape, tensors, tokenizer, lineage and files of a model.
///
/// # Errors
/// When the model cannot be read.
pub(super) fn inspect(value: &str, context: &Context) -> anyhow::Result<()> {
    let (name, dir) = open_dir(value, context)?;
    let tokenizer = open_tokenizer(&name, &dir)?.map(|(tokenizer, _)| tokenizer);
    let tokenizer = tokenizer.as_ref();
    let (files, serving) = (files_of(&dir)?, serving_bytes(&context.device()?, &dir));
    match context.form() {
        Form::Json => context.print_json(&as_json(&name, &dir, tokenizer, &files, serving)?),
        Form::Text => context.print(&as_text(&name, &dir, tokenizer, &files, serving)?),
    }
}

/// Names and sizes of the files, sorted by name.
fn files_of(dir: &ModelDir) -> anyhow::Result<Vec<(String, u64)>> {
    let mut files = Vec::new();
    for path in dir.files()? {
        let data =
            fs::metadata(&path).with_context(|| format!("cannot look at {}", path.display()))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        files.push((name, data.len()));
    }
    files.sort();
    Ok(files)
}

pub(super) fn dtype_name(dtype: impl Into<TensorDtype>) -> &'static str {
    match dtype.into() {
        TensorDtype::F32 => "f32",
        TensorDtype::F16 => "f16",
        TensorDtype::Bf16 => "bf16",
        other => other.name(),
    }
}

/// Name, number type and shape of every tensor, sorted by name.
fn tensors(dir: &ModelDir) -> anyhow::Result<Vec<(String, &'static str, Vec<usize>)>> {
    let mut names: Vec<&str> = dir.weights().names().collect();
    names.sort_unstable();
    let described = names.into_iter().map(|name| {
        let view = dir.weights().tensor(name)?;
        Ok((name.to_owned(), dtype_name(view.dtype), view.shape.to_vec()))
    });
    described.collect()
}

fn as_json(
    name: &str,
    dir: &ModelDir,
    tokenizer: Option<&Tokenizer>,
    files: &[(String, u64)],
    serving_bytes: Option<u64>,
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
        "config": to_hf_json(dir.config()).ok(),
        "eos_ids": dir.eos_ids(),
        "serving_memory_bytes": serving_bytes,
        "tensors": tensors.collect::<Vec<_>>(),
        "unused_tensors": dir.unused_tensors(),
        "text_part_of": dir.text_part_of().map(|(whole, n_tensors)| {
            json!({"whole": whole, "tensors_left_out": n_tensors})
        }),
        "tokenizer": tokenizer,
        "licence": licence_of(dir)?.map(|licence| licence.name),
        "published_shape": published(dir.config()),
        "lineage": dir.lineage(),
        "files": files.collect::<Vec<_>>(),
    }))
}

/// None for a model that this program reads and cannot compute.
fn serving_bytes(device: &Device, dir: &ModelDir) -> Option<u64> {
    let config = ModelConfig::new(dir.config().clone()).ok()?;
    weights_bytes(device, &config, dir, &LoadArgs::default()).ok()
}

fn as_text(
    name: &str,
    dir: &ModelDir,
    tokenizer: Option<&Tokenizer>,
    files: &[(String, u64)],
    serving_bytes: Option<u64>,
) -> anyhow::Result<String> {
    let none = || "none".to_owned();
    let unknown = || "not stated".to_owned();
    let lineage = dir.lineage();
    let of_tokenizer = |tokenizer: &Tokenizer| {
        format!("{} ids, digest {}", tokenizer.vocab_size(), tokenizer.digest())
    };
    let mut rows = vec![("model", name.to_owned()), ("folder", dir.dir().display().to_string())];
    let text_part = dir.text_part_of();
    rows.extend(text_part.map(|(whole, n_tensors)| {
        ("text part of", format!("{whole}; {n_tensors} tensors are left out"))
    }));
    rows.extend(shape_rows(dir.config()));
    rows.extend([
        ("serving memory", serving_bytes.map_or_else(unknown, bytes)),
        ("tokenizer", tokenizer.map_or_else(none, of_tokenizer)),
        ("licence", licence_of(dir)?.map_or_else(unknown, |licence| licence.name)),
        ("run", lineage.and_then(|l| l.run.clone()).unwrap_or_else(unknown)),
        ("parent", lineage.and_then(|l| l.parent.clone()).unwrap_or_else(none)),
    ]);
    rows.extend(lineage.and_then(|l| l.adapter.clone()).map(|adapter| ("adapter", adapter)));
    rows.extend(lineage.and_then(|l| l.source.clone()).map(|source| ("source", source)));
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
        text.push_str(&format!("not used by the model: {}\n", one_line(tensor)));
    }
    Ok(text)
}

fn shape_rows(config: &DecoderConfig) -> Vec<(&'static str, String)> {
    let heads = format!(
        "{} query, {} key and value, {} wide",
        config.n_heads, config.n_kv_heads, config.head_dim
    );
    let experts = config.experts.map_or("none".to_owned(), |experts| {
        format!("{}, {} for a token", experts.n_experts, experts.n_active)
    });
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
        ("positions", positions(config)),
        ("sliding window", windows(config)),
        ("experts", experts),
        ("shape of", published(config).unwrap_or("no published model").to_owned()),
    ]
}

fn positions(config: &DecoderConfig) -> String {
    let scaling = match config.rope.scaling {
        RopeScaling::None => String::new(),
        RopeScaling::Linear { factor } => format!(", stretched {factor} times"),
        RopeScaling::Llama3 { factor, .. } => format!(", Llama 3 scaling by {factor}"),
        RopeScaling::Divided { .. } => ", a divisor for each frequency".to_owned(),
        RopeScaling::Yarn { factor, .. } => format!(", YaRN by {factor}"),
    };
    let growth = if config.query_scaling.is_some() { ", growing queries" } else { "" };
    format!("rotary, base {:e}{scaling}{growth}", config.rope.theta)
}

fn windows(config: &DecoderConfig) -> String {
    let name = |window: &Option<usize>| window.map_or("all".to_owned(), |width| width.to_string());
    match config.sliding_windows.as_slice() {
        [] => "none".to_owned(),
        [one] => format!("{} tokens", name(one)),
        pattern => pattern.iter().map(name).collect::<Vec<_>>().join(", ") + ", repeated",
    }
}
