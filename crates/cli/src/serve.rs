//! `galerne serve`: the API and the chat page on the models of the home.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::Context as _;
use engine::{Engine, EngineHandle, EngineLimits};
use eval::figures::bytes;
use formats::adapter::Adapter;
use formats::model_dir::ModelDir;
use model::{LoadedAdapter, ModelConfig, compute_dtype};
use serde_json::json;
use server::{LoadedModel, ModelRegistry, SamplingDefaults, ServerConfig};
use tensor::Device;
use tracing::warn;

use crate::context::{Context, Form};
use crate::engine_args::EngineArgs;
use crate::failure::{Failure, message};
use crate::machine;
use crate::open_model::{
    LoadArgs, OpenModel, adapter_bytes, config_of, has_tokenizer, load_adapter, of_home, open_dir,
    warn_left_out, weights_bytes,
};
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
    #[arg(long, value_name = "NAME|PATH", num_args = 1..)]
    model: Vec<String>,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    engine: EngineArgs,
    /// Adapters (LoRA) of the one --model, each served under a name of its own beside it; they share its weights and its batches
    #[arg(long, value_name = "NAME=PATH", num_args = 1.., requires = "model")]
    adapters: Vec<NamedAdapter>,
}

/// An adapter and the name that requests have for it.
#[derive(Clone, Debug)]
pub(crate) struct NamedAdapter {
    name: String,
    path: PathBuf,
}

impl FromStr for NamedAdapter {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            Some((name, path)) if !name.is_empty() && !path.is_empty() => {
                Ok(Self { name: name.to_owned(), path: path.into() })
            }
            _ => Err("expected NAME=PATH"),
        }
    }
}

/// Runs the command.
///
/// # Errors
/// When there is no model, the port cannot be opened, or a model that was named cannot be loaded; [`Failure::Stopped`]
/// after a signal.
pub(crate) fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    for (option, is_given) in [
        ("--adapter", args.load.adapter.is_some()),
        ("--adapters", !args.adapters.is_empty()),
        ("--draft-model", args.engine.draft_model().is_some()),
    ] {
        if is_given && args.model.len() != 1 {
            let problem = format!("{option} is for one model: give one --model");
            return Err(Failure::usage(problem).into());
        }
    }
    args.engine.check()?;
    let mut left_out = LeftOut::default();
    let models = if args.model.is_empty() {
        models_of_home(&args.load, &mut left_out, context)?
    } else {
        named_models(&args.model, &args.load, context)?
    };
    let address = SocketAddr::new(args.host, args.port);
    let mut signals = StopSignals::take_all().context("cannot take signals")?;
    let registry = ModelRegistry::new();
    let server = server::bind(ServerConfig { address, ..ServerConfig::default() })?
        .start(registry.clone())?;
    let settings = Settings { load: &args.load, engine: &args.engine, adapters: &args.adapters };
    for (name, dir) in &models {
        if signals.requested().is_some() {
            break;
        }
        registry.set_status(&format!("loading {name}"));
        match add(&registry, (name, dir), &settings, context) {
            Err(error) if args.model.is_empty() => left_out.add(name, error),
            added => added?,
        }
    }
    if registry.names().is_empty() && signals.requested().is_none() {
        return Err(left_out.reason(context));
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

/// Models of the home that are not served. One that cannot be used does not keep the others from answering: nobody asked
/// for it by name.
#[derive(Default)]
struct LeftOut {
    first: Option<anyhow::Error>,
}

impl LeftOut {
    fn add(&mut self, name: &str, error: anyhow::Error) {
        warn!(model = name, error = %message(&error), "not served");
        self.first.get_or_insert(error);
    }

    /// Why there is nothing to serve.
    fn reason(self, context: &Context) -> anyhow::Error {
        self.first.unwrap_or_else(|| Failure::NoModels { dir: context.models_dir() }.into())
    }
}

fn named_models(
    named: &[String],
    load: &LoadArgs,
    context: &Context,
) -> anyhow::Result<Vec<(String, ModelDir)>> {
    let (mut models, mut total_bytes) = (Vec::new(), 0);
    let device = context.device()?;
    for value in named {
        let (name, dir) = open_dir(value, context)?;
        if !has_tokenizer(&dir).with_context(|| format!("cannot open model `{value}`"))? {
            return Err(Failure::NoTokenizer { model: name }.into());
        }
        total_bytes += needed_bytes(&device, &name, &dir, load)?;
        models.push((name, dir));
    }
    machine::check_memory(&device, &format!("{} models", models.len()), total_bytes)?;
    Ok(models)
}

/// The models of the home that can be talked with or continue text, as many as the machine can hold together.
fn models_of_home(
    load: &LoadArgs,
    left_out: &mut LeftOut,
    context: &Context,
) -> anyhow::Result<Vec<(String, ModelDir)>> {
    let (mut models, mut total_bytes) = (Vec::new(), 0);
    let device = context.device()?;
    for (name, dir) in of_home(context)? {
        match has_tokenizer(&dir) {
            Ok(true) => {}
            Ok(false) => {
                warn!(model = name, "not served: it has no tokenizer");
                continue;
            }
            Err(error) => {
                left_out.add(&name, error);
                continue;
            }
        }
        let needed = needed_bytes(&device, &name, &dir, load).and_then(|needed_bytes| {
            let what = format!("model `{name}` with those before it");
            machine::check_memory(&device, &what, total_bytes + needed_bytes)?;
            Ok(needed_bytes)
        });
        match needed {
            Ok(needed_bytes) => {
                total_bytes += needed_bytes;
                models.push((name, dir));
            }
            Err(error) => left_out.add(&name, error),
        }
    }
    if models.is_empty() {
        return Err(std::mem::take(left_out).reason(context));
    }
    Ok(models)
}

/// Bytes that the answers of a model take at most.
fn answer_bytes(config: &ModelConfig) -> u64 {
    let dtype = compute_dtype(config.dtype);
    Engine::planned_bytes(config, dtype, &EngineLimits::default()) as u64
}

/// Bytes that a model takes with its answers.
///
/// # Errors
/// When it cannot be computed.
fn needed_bytes(
    device: &Device,
    name: &str,
    dir: &ModelDir,
    load: &LoadArgs,
) -> anyhow::Result<u64> {
    let config = config_of(name, dir)?;
    Ok(weights_bytes(device, &config, dir, load)? + answer_bytes(&config))
}

/// Loads a model, says what it takes, and serves it, and beside it the adapters under their own names.
pub(crate) fn add(
    registry: &ModelRegistry,
    (name, dir): (&str, &ModelDir),
    settings: &Settings<'_>,
    context: &Context,
) -> anyhow::Result<()> {
    warn_left_out(name, dir);
    let (config, device) = (config_of(name, dir)?, context.device()?);
    context.say(&format!(
        "loading {name}: {} of weights, up to {} for answers",
        bytes(weights_bytes(&device, &config, dir, settings.load)?),
        bytes(answer_bytes(&config))
    ));
    let model = OpenModel::load(name.to_owned(), dir, settings.load, context)?;
    let engine = model.start_engine(settings.engine, settings.engine.limits(), context)?;
    registry.add(name, loaded(&model, &engine, model.adapter.clone())?)?;
    for NamedAdapter { name, path } in settings.adapters {
        let adapter = Adapter::open(path, &config, None)
            .with_context(|| format!("cannot use the adapter {}", path.display()))?;
        let what = format!("adapter `{name}`");
        let needed_bytes = adapter_bytes(&config, &adapter)? as u64;
        let load = || load_adapter(&device, &model.decoder, &adapter);
        let adapter = machine::take_memory(&device, &what, needed_bytes, load)??;
        registry.add(name, loaded(&model, &engine, Some(adapter))?)?;
    }
    Ok(())
}

/// How models are loaded and answer.
#[derive(Debug)]
pub(crate) struct Settings<'a> {
    pub(crate) load: &'a LoadArgs,
    pub(crate) engine: &'a EngineArgs,
    pub(crate) adapters: &'a [NamedAdapter],
}

/// A model as the server takes it.
fn loaded(
    model: &OpenModel,
    engine: &EngineHandle,
    adapter: Option<Arc<LoadedAdapter>>,
) -> anyhow::Result<LoadedModel> {
    let (temperature, top_p) = model.sampling_defaults();
    let fallback = SamplingDefaults::default();
    Ok(LoadedModel {
        engine: engine.clone(),
        adapter,
        tokenizer: model.tokenizer()?.clone(),
        created: model.created,
        template: model.template.clone(),
        eos_ids: model.eos_ids.clone(),
        defaults: SamplingDefaults {
            temperature: temperature.unwrap_or(fallback.temperature),
            top_p: top_p.unwrap_or(fallback.top_p),
            top_k: fallback.top_k,
        },
    })
}
