//! `galerne serve`: the API and the chat page on the models of the home.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::Context as _;
use formats::model_dir::ModelDir;
use serde_json::json;
use server::{ModelRegistry, ServerConfig};
use tracing::warn;

use crate::context::{Context, Form};
use crate::engine_args::EngineArgs;
use crate::failure::{Failure, message};
use crate::machine;
use crate::open_model::{LoadArgs, has_tokenizer, of_home, open_dir};
use crate::os::StopSignals;
use crate::shelf::{NamedModel, Settings, Shelf, needed_bytes};

/// Arguments of `galerne serve`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Port; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    port: u16,
    /// Address to listen on, loopback only
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
    /// Models to serve, the first one being the page's default; clients may load others of the home [default: all models of the home]
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
    pub(crate) name: String,
    pub(crate) path: PathBuf,
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
    let is_of_home = args.model.is_empty();
    let settings = Settings { load: args.load, engine: args.engine, adapters: args.adapters };
    let models = if is_of_home {
        models_of_home(&settings, &mut left_out, context)?
    } else {
        named_models(&args.model, &settings, context)?
    };
    let address = SocketAddr::new(args.host, args.port);
    let mut signals = StopSignals::take_all().context("cannot take signals")?;
    let registry = ModelRegistry::new();
    let server = server::bind(ServerConfig { address, ..ServerConfig::default() })?
        .start(registry.clone())?;
    let named = models.iter().map(|(name, dir)| NamedModel::new(name, dir)).collect();
    let shelf = Shelf::new(named, settings, context);
    for (name, dir) in models {
        if signals.requested().is_some() {
            break;
        }
        registry.set_status(&format!("loading {name}"));
        match shelf.load_dir(&name, &dir) {
            Err(error) if is_of_home => left_out.add(&name, error),
            loaded => {
                registry.add_all(loaded?)?;
            }
        }
    }
    if registry.names().is_empty() && signals.requested().is_none() {
        return Err(left_out.reason(context));
    }
    registry.load_from(Arc::new(shelf));
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
    settings: &Settings,
    context: &Context,
) -> anyhow::Result<Vec<(String, ModelDir)>> {
    let (mut models, mut total_bytes) = (Vec::new(), 0);
    let device = context.device()?;
    for value in named {
        let (name, dir) = open_dir(value, context)?;
        if !has_tokenizer(&dir).with_context(|| format!("cannot open model `{value}`"))? {
            return Err(Failure::NoTokenizer { model: name }.into());
        }
        total_bytes += needed_bytes(&device, &name, &dir, settings)?;
        models.push((name, dir));
    }
    machine::check_memory(&device, &format!("{} models", models.len()), total_bytes)?;
    Ok(models)
}

/// The models of the home that can be talked with or continue text, as many as the machine can hold together.
fn models_of_home(
    settings: &Settings,
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
        let needed = needed_bytes(&device, &name, &dir, settings).and_then(|needed_bytes| {
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
