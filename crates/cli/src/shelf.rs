//! The models that a server can load: those it was started with, and those of the home.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use engine::{Engine, EngineEnd, EngineHandle};
use eval::figures::bytes;
use formats::adapter::Adapter;
use formats::is_plain_name;
use formats::model_dir::{ModelDir, list_models};
use model::{LoadedAdapter, ModelConfig, compute_dtype};
use server::{LoadError, LoadedModel, ModelSource, SamplingDefaults};
use tensor::Device;
use tracing::warn;

use crate::context::Context;
use crate::engine_args::EngineArgs;
use crate::failure::{Failure, message};
use crate::machine;
use crate::open_model::{
    LoadArgs, OpenModel, adapter_bytes, config_of, has_tokenizer, load_adapter, warn_left_out,
    weights_bytes,
};
use crate::serve::NamedAdapter;

/// How models are loaded and answer.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    pub(crate) load: LoadArgs,
    pub(crate) engine: EngineArgs,
    pub(crate) adapters: Vec<NamedAdapter>,
}

impl Settings {
    /// The same for any model: what is for one model is left out.
    fn of_any_model(&self) -> Self {
        let load = LoadArgs { adapter: None, scaling: None, ..self.load.clone() };
        Self { load, engine: self.engine.without_draft_model(), adapters: Vec::new() }
    }
}

/// A model that was asked for, which may lie outside of the home.
#[derive(Debug)]
pub(crate) struct NamedModel {
    name: String,
    path: PathBuf,
}

impl NamedModel {
    /// This name for this folder or file.
    pub(crate) fn new(name: &str, dir: &ModelDir) -> Self {
        Self { name: name.to_owned(), path: dir.dir().to_owned() }
    }
}

/// What a server can load.
pub(crate) struct Shelf {
    models_dir: PathBuf,
    named: Vec<NamedModel>,
    settings: Settings,
    /// Held while a model is loaded, since each looks at what the others have taken.
    taken: Mutex<Taken>,
}

/// Memory of models until their engines have ended.
struct Taken {
    context: Context,
    models: Vec<(u64, EngineEnd)>,
}

impl Shelf {
    /// The models that were asked for, to which the settings apply, and those of the home.
    pub(crate) fn new(named: Vec<NamedModel>, settings: Settings, context: &Context) -> Self {
        let (models_dir, context) = (context.models_dir(), context.clone());
        Self { models_dir, named, settings, taken: Mutex::new(Taken { context, models: vec![] }) }
    }

    /// The folder of a model.
    fn find(&self, name: &str) -> anyhow::Result<ModelDir> {
        if let Some(named) = self.named.iter().find(|named| named.name == name) {
            return self.open(name, &named.path);
        }
        if !is_plain_name(name) {
            let (name, dir) = (name.to_owned(), self.models_dir.clone());
            return Err(Failure::Unknown { kind: "model", name, dir, available: Vec::new() }.into());
        }
        self.open(name, &self.models_dir.join(name))
    }

    fn open(&self, name: &str, path: &Path) -> anyhow::Result<ModelDir> {
        let dir = ModelDir::open(path).with_context(|| format!("cannot open model `{name}`"))?;
        if !has_tokenizer(&dir)? {
            return Err(Failure::NoTokenizer { model: name.to_owned() }.into());
        }
        Ok(dir)
    }

    /// Loads a model, says what it takes, and the adapters beside it under their own names.
    ///
    /// # Errors
    /// When it cannot be used, or does not fit beside those that are loaded.
    pub(crate) fn load_dir(
        &self,
        name: &str,
        dir: &ModelDir,
    ) -> anyhow::Result<Vec<(String, LoadedModel)>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.models.retain(|(_, end)| !end.is_past());
        let device = taken.context.device()?;
        let is_named = self.named.iter().any(|named| named.name == name);
        let of_any_model = self.settings.of_any_model();
        let settings = if is_named { &self.settings } else { &of_any_model };
        let needed_bytes = needed_bytes(&device, name, dir, settings)?;
        // What a GPU has free is less by theirs already.
        let taken_bytes: u64 = match device {
            Device::Cuda { .. } => 0,
            _ => taken.models.iter().map(|(bytes, _)| bytes).sum(),
        };
        let what = format!("model `{name}` with those that are loaded");
        machine::check_memory(&device, &what, taken_bytes + needed_bytes)?;
        let loaded = load(name, dir, settings, &taken.context)?;
        let end = loaded.first().map(|(_, model)| model.engine.end());
        taken.models.extend(end.map(|end| (needed_bytes, end)));
        Ok(loaded)
    }
}

impl ModelSource for Shelf {
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.named.iter().map(|named| named.name.clone()).collect();
        match list_models(&self.models_dir) {
            Ok(list) => {
                for (name, dir) in list.models {
                    if !names.contains(&name) && has_tokenizer(&dir).unwrap_or(false) {
                        names.push(name);
                    }
                }
            }
            Err(error) => warn!(%error, "the models of the home cannot be listed"),
        }
        names
    }

    fn load(&self, name: &str) -> Result<Vec<(String, LoadedModel)>, LoadError> {
        let loaded = self.find(name).and_then(|dir| self.load_dir(name, &dir));
        loaded.map_err(|error| match error.downcast_ref() {
            Some(failure @ (Failure::Memory { .. } | Failure::GpuMemory { .. })) => {
                LoadError::NoMemory { detail: failure.to_string() }
            }
            _ => {
                warn!(model = name, error = %message(&error), "not loaded");
                LoadError::Failed
            }
        })
    }
}

/// Bytes that the answers of a model take at most.
fn answer_bytes(config: &ModelConfig, engine: &EngineArgs) -> u64 {
    let dtype = compute_dtype(config.dtype);
    Engine::planned_bytes(config, dtype, &engine.limits()) as u64
}

/// Bytes that a model takes with its adapters and answers; what a draft model takes is looked at when that is loaded.
///
/// # Errors
/// When it cannot be computed.
pub(crate) fn needed_bytes(
    device: &Device,
    name: &str,
    dir: &ModelDir,
    settings: &Settings,
) -> anyhow::Result<u64> {
    let config = config_of(name, dir)?;
    let mut needed = weights_bytes(device, &config, dir, &settings.load)?;
    for NamedAdapter { path, .. } in &settings.adapters {
        needed += adapter_bytes(&config, &open_adapter(path, &config)?)? as u64;
    }
    Ok(needed + answer_bytes(&config, &settings.engine))
}

fn open_adapter(path: &Path, config: &ModelConfig) -> anyhow::Result<Adapter> {
    let failed = || format!("cannot use the adapter {}", path.display());
    Adapter::open(path, config, None).with_context(failed)
}

fn load(
    name: &str,
    dir: &ModelDir,
    settings: &Settings,
    context: &Context,
) -> anyhow::Result<Vec<(String, LoadedModel)>> {
    warn_left_out(name, dir);
    let (config, device) = (config_of(name, dir)?, context.device()?);
    context.say(&format!(
        "loading {name}: {} of weights, up to {} for answers",
        bytes(weights_bytes(&device, &config, dir, &settings.load)?),
        bytes(answer_bytes(&config, &settings.engine))
    ));
    let model = OpenModel::load(name.to_owned(), dir, &settings.load, context)?;
    let engine = model.start_engine(&settings.engine, settings.engine.limits(), context)?;
    let mut all = vec![(name.to_owned(), loaded(&model, &engine, model.adapter.clone())?)];
    for NamedAdapter { name, path } in &settings.adapters {
        let adapter = open_adapter(path, &config)?;
        let what = format!("adapter `{name}`");
        let needed_bytes = adapter_bytes(&config, &adapter)? as u64;
        let load = || load_adapter(&device, &model.decoder, &adapter);
        let adapter = machine::take_memory(&device, &what, needed_bytes, load)??;
        all.push((name.clone(), loaded(&model, &engine, Some(adapter))?));
    }
    Ok(all)
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
