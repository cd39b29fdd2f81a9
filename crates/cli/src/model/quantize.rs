//! `galerne model quantize`: a smaller model, and how far its predictions are from the original's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use data::{Language, bundled};
use eval::divergence::{Divergence, divergence};
use eval::figures::{bytes, grouped, percent};
use formats::convert::write_quantised;
use formats::durable::read_text;
use formats::model_dir::ModelDir;
use model::{Decoder, FileQuantiser, ModelConfig, Quantisation, Workspace, compute_dtype};
use serde_json::json;
use tensor::Device;
use tokenizer::Tokenizer;

use crate::context::{Context, Form};
use crate::failure::Failure;
use crate::gguf_vocabulary;
use crate::machine;
use crate::names::{check_name, without_dots};
use crate::open_model::{
    LoadArgs, OpenModel, config_of, has_tokenizer, open_dir, warn_left_out, weights_bytes,
};
use crate::table::table;

/// Largest text that is read.
const MAX_TEXT_BYTES: u64 = 1 << 30;
/// Tokens that are predicted in one piece.
const PIECE_LEN: usize = 512;

/// Arguments of `galerne model quantize`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Model: a name in the home, or a path (with a slash or a dot)
    #[arg(value_name = "NAME|PATH")]
    model: String,
    /// How far: q8_0 (8.5 bits a number) or q4_k (4.5 bits)
    #[arg(long, value_name = "KIND")]
    to: Quantisation,
    /// Name of the new model in the home [default: that of the model and the kind]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Text on which the two models are compared [default: a held-out part of the bundled corpus]
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Most tokens of the text that are compared
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..))]
    tokens: u32,
}

/// Runs the command.
///
/// # Errors
/// When the model cannot be read or is quantised already, the name is taken, or the disk is too small.
pub(super) fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    let (name, original) = open_dir(&args.model, context)?;
    let config = config_of(&name, &original)?;
    let text = args.text.as_deref().map(|path| read_text(path, MAX_TEXT_BYTES)).transpose()?;
    if text.is_some() && !has_tokenizer(&original)? {
        return Err(Failure::NoTokenizer { model: name }.into());
    }
    let new_name = match &args.name {
        Some(name) => name.clone(),
        None => format!("{}-{}", without_dots(&name), args.to),
    };
    check_name("--name", &new_name)?;
    let out = context.models_dir().join(&new_name);
    check_disk(&original, &config, args.to, &out, context)?;
    warn_left_out(&name, &original);
    let device = context.device()?;
    context.say(&format!("writing {}", out.display()));
    let quantiser = FileQuantiser { quantisation: args.to, device: &device };
    let vocabulary = gguf_vocabulary::of_model(&name, &original)?;
    let quantised = write_quantised(&original, &out, &quantiser, vocabulary.as_ref())
        .with_context(|| format!("cannot quantise model `{name}`"))?;
    let compared = compare(args, (&name, &original), (&new_name, &quantised), text, context)?;
    report(&new_name, &original, &quantised, compared.as_ref(), context)
}

fn check_disk(
    model: &ModelDir,
    config: &ModelConfig,
    to: Quantisation,
    out: &Path,
    context: &Context,
) -> anyhow::Result<()> {
    // Files hold what the processors have in memory.
    let (device, dtype) = (Device::Cpu(context.compute()?.clone()), compute_dtype(config.dtype));
    let needed_bytes = Decoder::loaded_bytes(&device, config, dtype, model.weights(), Some(to))?;
    machine::check_disk("the quantised model", out, needed_bytes as u64)
}

/// How far apart the two are; `None`, with a word why, where it cannot be known.
fn compare(
    args: &Args,
    (name, original): (&str, &ModelDir),
    (new_name, quantised): (&str, &ModelDir),
    text: Option<String>,
    context: &Context,
) -> anyhow::Result<Option<Divergence>> {
    if !has_tokenizer(original)? {
        context.say(&format!("not compared: model `{name}` has no tokenizer"));
        return Ok(None);
    }
    let config = config_of(name, original)?;
    let piece_len = PIECE_LEN.min(config.context_len);
    let workspace =
        Workspace::max_bytes_for_decoder(&config, compute_dtype(config.dtype), piece_len);
    let computing_bytes = workspace + 4 * piece_len * config.vocab_size;
    let device = context.device()?;
    let of = |dir| weights_bytes(&device, &config, dir, &LoadArgs::default());
    let needed_bytes = of(original)? + of(quantised)? + 2 * computing_bytes as u64;
    if let Err(error) = machine::check_memory(&device, "comparing both models", needed_bytes) {
        context.say(&format!("not compared: {error}"));
        return Ok(None);
    }
    let load =
        |name: &str, dir| OpenModel::load(name.to_owned(), dir, &LoadArgs::default(), context);
    let (original, quantised) = (load(name, original)?, load(new_name, quantised)?);
    let tokenizer = original.tokenizer()?;
    let token_ids = token_ids(tokenizer, text, args.tokens as usize);
    context.say(&format!("comparing on {} tokens", grouped(token_ids.len() as u64)));
    let (one, other) = (&original.decoder, &quantised.decoder);
    let compared = divergence(&device, one, other, &token_ids, tokenizer.bos_id(), piece_len);
    if compared.is_none() {
        context.say("not compared: the text is empty");
    }
    Ok(compared)
}

fn token_ids(tokenizer: &Tokenizer, text: Option<String>, n_tokens: usize) -> Vec<u32> {
    let texts = match text {
        Some(text) => vec![text],
        None => {
            // French and English in turn, so that any number of tokens has both.
            let documents = [Language::French, Language::English]
                .map(|language| bundled::validation(0, language).into_iter());
            let [french, english] = documents;
            french.zip(english).flat_map(|(one, other)| [one.text, other.text]).collect()
        }
    };
    let mut token_ids = Vec::new();
    for text in texts {
        if token_ids.len() >= n_tokens {
            break;
        }
        tokenizer.encode_into(&text, &mut token_ids);
    }
    token_ids.truncate(n_tokens);
    token_ids
}

/// Number of tensors of each type.
fn kinds(model: &ModelDir) -> anyhow::Result<BTreeMap<&'static str, usize>> {
    let mut kinds = BTreeMap::new();
    for name in model.weights().names() {
        *kinds.entry(model.weights().tensor(name)?.dtype.name()).or_default() += 1;
    }
    Ok(kinds)
}

fn report(
    name: &str,
    original: &ModelDir,
    quantised: &ModelDir,
    compared: Option<&Divergence>,
    context: &Context,
) -> anyhow::Result<()> {
    let (before, after) = (original.weights().n_bytes(), quantised.weights().n_bytes());
    let kinds = kinds(quantised)?;
    if context.form() == Form::Json {
        return context.print_json(&json!({
            "name": name,
            "dir": quantised.dir().display().to_string(),
            "original_weights_bytes": before,
            "weights_bytes": after,
            "tensors": kinds,
            "divergence": compared,
        }));
    }
    let kinds: Vec<String> = kinds.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
    let mut lines = vec![
        ("model", name.to_owned()),
        ("folder", quantised.dir().display().to_string()),
        ("weights", format!("{}, before {}", bytes(after), bytes(before))),
        ("tensors", kinds.join(", ")),
    ];
    if let Some(d) = compared {
        lines.push((
            "divergence",
            format!(
                "{:.5} nats a token; half below {:.5}, 99 % below {:.4}, at most {:.3}",
                d.mean_nats, d.median_nats, d.p99_nats, d.max_nats
            ),
        ));
        lines.push(("same likeliest", format!("{} of {}", percent(d.same_likeliest), d.n_tokens)));
        let losses = format!("{:.4}, before {:.4}", d.changed_loss_nats, d.original_loss_nats);
        lines.push(("nats a token", losses));
    }
    context.print(&table(&lines))
}
