//! `galerne serve`: the API and the chat page on the models of the home.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::Context as _;
use engine::{Engine, EngineLimits};
use eval::figures::bytes;
use formats::model_dir::ModelDir;
use serde_json::json;
use server::{LoadedModel, ModelRegistry, SamplingDefaults, ServerConfig};
use tracing::warn;

use crate::context::{Context, Form};
use crate::failure::Failure;
use crate::machine;
use crate::open_model::{LoadArgs, OpenModel, has_tokenizer, locate, of_home, weights_bytes};
use crate::os::StopSignals;

/// Arguments of `galerne serve`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Port; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    port: u16,
    /// Address to listen on, loopback only
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
    /// Models to serve, the first one being the page's default [default: all models of the home]
    #[arg(long, value_name = "NAME|DIR", num_args = 1..)]
    model: Vec<String>,
    #[command(flatten)]
    load: LoadArgs,
}

/// Runs the command.
///
/// # Errors
/// When there is no model, the port cannot be opened, or a model that was named cannot be loaded; [`Failure::Stopped`]
/// after a signal.
pub(crate) fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let models = models_to_serve(&args.model, context)?;
    check_memory_of_all(&models, args.load)?;
    let address = SocketAddr::new(args.host, args.port);
    let mut signals = StopSignals::take_all().context("cannot take signals")?;
    let registry = ModelRegistry::new();
    let server = server::bind(ServerConfig { address, ..ServerConfig::default() })?
        .start(registry.clone())?;
    for (name, dir) in &models {
        if signals.requested().is_some() {
            break;
        }
        registry.set_status(&format!("loading {name}"));
        add(&registry, name, dir, args.load, context)?;
    }
    let url = format!("http://{}", server.address());
    match context.form() {
        Form::Text => context.print(&format!("{url}\n"))?,
        Form::Json => context.print_json(&json!({"url": url, "models": registry.names()}))?,
    }
    let signal = signals.wait().context("cannot wait for signals")?;
    server.stop()?;
    Err(Failure::Stopped { signal, saved: None, next: None }.into())
}

/// The models that were named, else those of the home that can be talked with or continue text.
fn models_to_serve(named: &[String], context: &Context) -> anyhow::Result<Vec<(String, ModelDir)>> {
    let mut models = Vec::new();
    for value in named {
        let (name, path) = locate(value, context)?;
        let dir = ModelDir::open(&path).with_context(|| format!("cannot open model `{value}`"))?;
        if !has_tokenizer(&dir) {
            return Err(Failure::NoTokenizer { model: name }.into());
        }
        models.push((name, dir));
    }
    if !named.is_empty() {
        return Ok(models);
    }
    for (name, dir) in of_home(context)? {
        if has_tokenizer(&dir) {
            models.push((name, dir));
        } else {
            warn!(model = name, "not served: it has no tokenizer");
        }
    }
    if models.is_empty() {
        return Err(Failure::NoModels { dir: context.models_dir() }.into());
    }
    Ok(models)
}

/// Bytes that the answers of a model take at most.
fn answer_bytes(config: &::model::ModelConfig) -> u64 {
    Engine::planned_bytes(config, ::model::compute_dtype(config.dtype), &EngineLimits::default())
        as u64
}

/// Refuses models that the machine cannot hold together.
fn check_memory_of_all(models: &[(String, ModelDir)], load: LoadArgs) -> anyhow::Result<()> {
    let mut needed_bytes = 0;
    for (name, dir) in models {
        let config = model::ModelConfig::new(dir.config().clone())
            .with_context(|| format!("cannot compute model `{name}`"))?;
        needed_bytes += weights_bytes(&config, dir, load.quantize)? + answer_bytes(&config);
    }
    let what = format!("{} models", models.len());
    Ok(machine::check_memory(&what, needed_bytes)?)
}

/// Loads a model, says what it takes, and serves it.
pub(crate) fn add(
    registry: &ModelRegistry,
    name: &str,
    dir: &ModelDir,
    load: LoadArgs,
    context: &Context,
) -> anyhow::Result<()> {
    let limits = EngineLimits::default();
    let config = ::model::ModelConfig::new(dir.config().clone())
        .with_context(|| format!("cannot compute model `{name}`"))?;
    context.say(&format!(
        "loading {name}: {} of weights, up to {} for answers",
        bytes(weights_bytes(&config, dir, load.quantize)?),
        bytes(answer_bytes(&config))
    ));
    let model = OpenModel::load(name.to_owned(), dir, load.quantize, &context.device()?)?;
    let (temperature, top_p) = model.sampling_defaults();
    let fallback = SamplingDefaults::default();
    let loaded = LoadedModel {
        engine: model.start_engine(context.device()?, limits)?,
        tokenizer: model.tokenizer()?.clone(),
        created: model.created,
        template: model.template,
        eos_ids: model.eos_ids,
        defaults: SamplingDefaults {
            temperature: temperature.unwrap_or(fallback.temperature),
            top_p: top_p.unwrap_or(fallback.top_p),
            top_k: fallback.top_k,
        },
    };
    Ok(registry.add(name, loaded)?)
}
