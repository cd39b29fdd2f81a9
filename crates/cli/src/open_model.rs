//! From a `--model` value to a model that can answer.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use engine::{Engine, EngineHandle, EngineLimits};
use eval::figures::bytes;
use formats::adapter::{Adapter, MAX_SCALING};
use formats::model_dir::{GenerationConfig, Lineage, ModelDir, list_models};
use model::{Decoder, KvBlocks, LoadedAdapter, ModelConfig, Quantisation, compute_dtype};
use tensor::Device;
use tokenizer::{ChatTemplate, Tokenizer};
use tracing::{info, warn};

use crate::context::Context;
use crate::engine_args::EngineArgs;
use crate::failure::Failure;
use crate::gguf_vocabulary;
use crate::machine;
use crate::names::{folder_name, locate_in};
use crate::packed_weights::{KEPT_BYTES, WeightsOfModel};

/// How a model is loaded.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct LoadArgs {
    /// Quantise the matrices at load: q8_0 (8.5 bits a number) or q4_k (4.5 bits) [default: as the files have them]
    #[arg(long, value_name = "KIND")]
    pub(crate) quantize: Option<Quantisation>,
    /// Adapter (LoRA) to apply as the model runs: a PEFT directory, or the lora.safetensors of mistral-finetune or its folder
    #[arg(long, value_name = "PATH")]
    pub(crate) adapter: Option<PathBuf>,
    /// What the adapter's product is multiplied with [default: what its files say]
    #[arg(long, value_name = "NUMBER", requires = "adapter", value_parser = parse_scaling, allow_negative_numbers = true)]
    pub(crate) scaling: Option<f64>,
}

impl LoadArgs {
    /// Opens the adapter, where one is asked for, for a model of this shape.
    ///
    /// # Errors
    /// When it cannot be read, or is one for another model.
    fn open_adapter(&self, config: &ModelConfig) -> anyhow::Result<Option<Adapter>> {
        let Some(path) = &self.adapter else { return Ok(None) };
        let adapter = Adapter::open(path, config, self.scaling);
        let failed = || format!("cannot use the adapter {}", path.display());
        adapter.map(Some).with_context(failed)
    }
}

/// Parses the scaling of an adapter.
pub(crate) fn parse_scaling(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number| (-MAX_SCALING..=MAX_SCALING).contains(number));
    number.ok_or_else(|| format!("expected a number -{MAX_SCALING:e}..={MAX_SCALING:e}"))
}

/// A model in memory with everything that answering needs.
#[derive(Debug)]
pub(crate) struct OpenModel {
    /// Its name in the home, or the name of its folder.
    pub(crate) name: String,
    /// When it was made, in seconds since 1970, as far as its files tell.
    pub(crate) created: u64,
    /// Its shape.
    pub(crate) config: ModelConfig,
    /// Its weights.
    pub(crate) decoder: Arc<Decoder>,
    /// What changes them as they are computed.
    pub(crate) adapter: Option<Arc<LoadedAdapter>>,
    /// Turns text into ids and back; none when the folder has no vocabulary.
    pub(crate) tokenizer: Option<Arc<Tokenizer>>,
    /// Renders conversations; none for a model that only continues text.
    pub(crate) template: Option<ChatTemplate>,
    /// Tokens that end an answer.
    pub(crate) eos_ids: Vec<u32>,
    /// Where it comes from; none when another program made it.
    pub(crate) lineage: Option<Lineage>,
    /// Defaults for generation, where the folder has them.
    pub(crate) generation: Option<GenerationConfig>,
}

/// The name and the files of a `--model` value: with a slash or a dot it is a path, else a name in the home.
///
/// # Errors
/// When there is no such name, where the error lists those that there are, or the files are no model.
pub(crate) fn open_dir(value: &str, context: &Context) -> anyhow::Result<(String, ModelDir)> {
    let path = locate_in(&context.models_dir(), "model", value)?;
    let dir = ModelDir::open(&path).with_context(|| format!("cannot open model `{value}`"))?;
    Ok((folder_name(&path), dir))
}

/// The shape of a model.
///
/// # Errors
/// When it cannot be computed.
pub(crate) fn config_of(name: &str, dir: &ModelDir) -> anyhow::Result<ModelConfig> {
    let config = ModelConfig::new(dir.config().clone());
    config.with_context(|| format!("cannot compute model `{name}`"))
}

impl OpenModel {
    /// Finds a model and loads it.
    ///
    /// # Errors
    /// When it is not there, or its files cannot be used.
    pub(crate) fn open(value: &str, load: &LoadArgs, context: &Context) -> anyhow::Result<Self> {
        let (name, dir) = open_dir(value, context)?;
        warn_left_out(&name, &dir);
        Self::load(name, &dir, load, context)
    }

    /// Loads the weights of a model directory, quantised and with an adapter where that is asked for. The memory is logged
    /// before it is taken.
    ///
    /// # Errors
    /// When the weights, the tokenizer or the shape cannot be used.
    pub(crate) fn load(
        name: String,
        dir: &ModelDir,
        load: &LoadArgs,
        context: &Context,
    ) -> anyhow::Result<Self> {
        let device = &context.device()?;
        let config = config_of(&name, dir)?;
        let weights_bytes = weights_bytes(device, &config, dir, load)?;
        let what = format!("model `{name}`");
        let available = machine::available_bytes(device).map(bytes);
        info!(model = name, weights = bytes(weights_bytes), available, "memory of the model");
        if let Device::Cuda { gpu, .. } = device {
            let (weights, gpu) = (bytes(weights_bytes), &gpu.description().name);
            let free = available.as_deref().unwrap_or("unknown");
            context.say(&format!("{what}: {weights} of weights on {gpu}, {free} free"));
        }
        machine::check_memory(device, &what, weights_bytes)?;
        let (tokenizer, template) = open_tokenizer(&name, dir)?.unzip();
        let template = template.flatten();
        let quantisation = load.quantize;
        let weights = WeightsOfModel { name: &name, config: &config, dir, quantisation, context };
        let (decoder, adapter) = machine::take_memory(device, &what, weights_bytes, || {
            let decoder = weights.load(KEPT_BYTES)?;
            let adapter = load.open_adapter(&config)?;
            let adapter = adapter.map(|adapter| load_adapter(device, &decoder, &adapter));
            anyhow::Ok((decoder, adapter.transpose()?))
        })??;
        let mut eos_ids = dir.eos_ids();
        if let Some(tokenizer) = &tokenizer
            && (template.is_some() || eos_ids.is_empty())
            && !eos_ids.contains(&tokenizer.eos_id())
        {
            // The template ends answers with it.
            eos_ids.push(tokenizer.eos_id());
        }
        Ok(Self {
            created: dir.modified().ok().map_or(0, seconds_since_1970),
            template,
            config,
            decoder: Arc::new(decoder),
            adapter,
            tokenizer: tokenizer.map(Arc::new),
            eos_ids,
            lineage: dir.lineage().cloned(),
            generation: dir.generation().cloned(),
            name,
        })
    }

    /// Starts the thread that computes answers.
    ///
    /// # Errors
    /// When the draft model cannot be used, the memory is too small, or the system refuses the thread.
    pub(crate) fn start_engine(
        &self,
        args: &EngineArgs,
        limits: EngineLimits,
        context: &Context,
    ) -> anyhow::Result<EngineHandle> {
        let draft_model =
            args.draft_model().map(|value| self.open_draft_model(value, context)).transpose()?;
        let mut planned = Engine::planned_bytes(&self.config, self.decoder.dtype(), &limits);
        if let Some(draft_model) = &draft_model {
            planned += Engine::planned_draft_bytes(&self.decoder, draft_model, &limits);
        }
        let (device, what) = (context.device()?, format!("answers of model `{}`", self.name));
        let mut planned_bytes = planned as u64;
        if let Device::Cuda { gpu, .. } = &device {
            // It has the logits of all rows of a step at once, where there are not too many.
            let logits = limits.step_tokens.min(device.logit_rows()) * self.config.vocab_size * 4;
            planned_bytes += machine::GPU_WORKING_BYTES + logits as u64;
            let (planned, free) = (bytes(planned_bytes), bytes(gpu.free_bytes() as u64));
            context.say(&format!("{what}: up to {planned}, {free} free"));
        }
        let decoder = Arc::clone(&self.decoder);
        let start = || Engine::start_with_draft_model(decoder, draft_model, device.clone(), limits);
        Ok(machine::take_memory(&device, &what, planned_bytes, start)??)
    }

    /// Loads a model that guesses what this one says.
    fn open_draft_model(&self, value: &str, context: &Context) -> anyhow::Result<Arc<Decoder>> {
        let draft = Self::open(value, &LoadArgs::default(), context)
            .with_context(|| format!("cannot use draft model `{value}`"))?;
        let has_other_tokens = match (&draft.tokenizer, &self.tokenizer) {
            (Some(one), Some(other)) => {
                let n = one.vocab_size().max(other.vocab_size()) as u32;
                (0..n).any(|id| one.token_bytes(id) != other.token_bytes(id))
            }
            _ => draft.config.vocab_size != self.config.vocab_size,
        };
        if has_other_tokens {
            let model = self.name.clone();
            return Err(Failure::ForeignDraftModel { draft: draft.name, model }.into());
        }
        Ok(draft.decoder)
    }

    /// Limits of an engine that answers one request of up to `n_tokens` tokens at a time.
    pub(crate) fn limits_of_one(&self, args: &EngineArgs, n_tokens: usize) -> EngineLimits {
        let limits = args.limits();
        let dtype = self.decoder.dtype();
        let (kind, step_tokens) = (limits.cache_kind, limits.step_tokens);
        let cache_bytes = KvBlocks::bytes_for(&self.config, dtype, kind, n_tokens, step_tokens);
        EngineLimits { max_running: 1, max_waiting: 1, cache_bytes, ..limits }
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// [`Failure::NoTokenizer`].
    pub(crate) fn tokenizer(&self) -> Result<&Arc<Tokenizer>, Failure> {
        let missing = || Failure::NoTokenizer { model: self.name.clone() };
        self.tokenizer.as_ref().ok_or_else(missing)
    }

    /// Sampling temperature and share of probability that the model's files ask for.
    pub(crate) fn sampling_defaults(&self) -> (Option<f32>, Option<f32>) {
        let of = |pick: fn(&GenerationConfig) -> Option<f64>| {
            self.generation.as_ref().and_then(pick).map(|number| number as f32)
        };
        (of(|generation| generation.temperature), of(|generation| generation.top_p))
    }
}

fn seconds_since_1970(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Bytes that the weights of a model take in a device's memory, with those of its adapter.
///
/// # Errors
/// When a weight or the adapter cannot be used.
pub(crate) fn weights_bytes(
    device: &Device,
    config: &ModelConfig,
    dir: &ModelDir,
    load: &LoadArgs,
) -> anyhow::Result<u64> {
    let dtype = compute_dtype(config.dtype);
    let weights = Decoder::loaded_bytes(device, config, dtype, dir.weights(), load.quantize)?;
    let changes = match load.open_adapter(config)? {
        Some(adapter) => adapter_bytes(config, &adapter)?,
        None => 0,
    };
    Ok((weights + changes) as u64)
}

/// Bytes that an adapter of a model takes in memory.
///
/// # Errors
/// When it cannot be applied as the model runs.
pub(crate) fn adapter_bytes(config: &ModelConfig, adapter: &Adapter) -> anyhow::Result<usize> {
    let n_bytes = LoadedAdapter::bytes_for(config, compute_dtype(config.dtype), adapter);
    n_bytes.with_context(|| adapter_failed(adapter))
}

/// Loads an adapter for a model.
///
/// # Errors
/// When it cannot be applied as the model runs.
pub(crate) fn load_adapter(
    device: &Device,
    decoder: &Decoder,
    adapter: &Adapter,
) -> anyhow::Result<Arc<LoadedAdapter>> {
    let loaded = LoadedAdapter::load(device, decoder.config(), decoder.dtype(), adapter);
    Ok(Arc::new(loaded.with_context(|| adapter_failed(adapter))?))
}

fn adapter_failed(adapter: &Adapter) -> String {
    format!("cannot use the adapter {}", adapter.path().display())
}

/// Tensors that are named one by one where they are left out.
const MAX_NAMED_TENSORS: usize = 20;

/// Says what a model's files hold that is not read.
pub(crate) fn warn_left_out(name: &str, dir: &ModelDir) {
    if let Some((whole, n_tensors)) = dir.text_part_of() {
        warn!(model = name, whole, n_tensors, "only the text part of the model is read");
    }
    let unused = dir.unused_tensors();
    for tensor in unused.iter().take(MAX_NAMED_TENSORS) {
        warn!(model = name, tensor, "the model does not use this tensor: it is left out");
    }
    let n_more = unused.len().saturating_sub(MAX_NAMED_TENSORS);
    if n_more > 0 {
        warn!(model = name, n_more, "the model does not use more tensors: they are left out");
    }
}

/// Whether there is a tokenizer among the model's files or in its GGUF file.
///
/// # Errors
/// When that cannot be known: the folder or the vocabulary cannot be read.
pub(crate) fn has_tokenizer(dir: &ModelDir) -> anyhow::Result<bool> {
    Ok(Tokenizer::is_in(dir.dir())? || dir.vocabulary()?.is_some())
}

/// The tokenizer of a model and its chat template: of the files beside the weights, else of the GGUF file. A model whose
/// template cannot be used still continues text.
///
/// # Errors
/// When the tokenizer cannot be used, or has more ids than the model.
pub(crate) fn open_tokenizer(
    name: &str,
    dir: &ModelDir,
) -> anyhow::Result<Option<(Tokenizer, Option<ChatTemplate>)>> {
    let failed = || format!("cannot read the tokenizer of {}", dir.dir().display());
    let (tokenizer, template) = if Tokenizer::is_in(dir.dir())? {
        let tokenizer = Tokenizer::open(dir.dir()).with_context(failed)?;
        let template = ChatTemplate::open(dir.dir(), &tokenizer);
        (tokenizer, template)
    } else if let Some(vocabulary) = dir.vocabulary().with_context(failed)? {
        let tokenizer = gguf_vocabulary::tokenizer(&vocabulary).with_context(failed)?;
        let template = ChatTemplate::choose(vocabulary.chat_template.as_deref(), &tokenizer);
        (tokenizer, template)
    } else {
        return Ok(None);
    };
    let vocab_size = dir.config().vocab_size;
    if tokenizer.vocab_size() > vocab_size {
        anyhow::bail!(
            "the tokenizer of model `{name}` has {} ids, expected at most {vocab_size} (vocab_size)",
            tokenizer.vocab_size(),
        );
    }
    let template = template.unwrap_or_else(|error| {
        warn!(model = name, %error, "the chat template cannot be used: no chat");
        None
    });
    Ok(Some((tokenizer, template)))
}

/// The models of the home that can be opened; those that cannot are logged.
///
/// # Errors
/// When the folder cannot be listed.
pub(crate) fn of_home(context: &Context) -> anyhow::Result<Vec<(String, ModelDir)>> {
    let list = list_models(&context.models_dir())?;
    for (name, error) in &list.broken {
        warn!(model = name, %error, "this folder of the home is no usable model");
    }
    Ok(list.models)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use formats::model_dir::copy_model;
    use testkit::golden::workspace_root;
    use testkit::test_dir::TestDir;
    use tokenizer::FOLDER_FILES;

    use super::*;

    /// Models and tokenizers do not know one another: what the one reads, the other must copy.
    #[test]
    fn every_file_of_a_tokenizer_is_copied_with_its_model() {
        let scratch = TestDir::new("tokenizer-files");
        let dir = scratch.path().join("model");
        fs::create_dir(&dir).unwrap();
        let golden = workspace_root().join("golden");
        for name in ["config.json", "model.safetensors"] {
            fs::copy(golden.join("architectures/mistral/hf").join(name), dir.join(name)).unwrap();
        }
        let names = FOLDER_FILES.into_iter().chain(["tokenizer.model.v3", "tokenizer.model.v7m1"]);
        for name in names.clone() {
            fs::write(dir.join(name), name).unwrap();
        }
        let out = scratch.path().join("copy");
        copy_model(&ModelDir::open(&dir).unwrap(), &out).unwrap();
        for name in names {
            assert_eq!(fs::read_to_string(out.join(name)).unwrap_or_default(), name);
        }
    }
}
