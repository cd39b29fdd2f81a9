//! The models being served; they may be added and removed while the server runs.

use std::ops::Deref;
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockWriteGuard};

use api::ModelCard;
use engine::{EngineHandle, EngineLoad, LoadedAdapter};
use grammar::{GrammarCompiler, GrammarError};
use tokenizer::{ChatTemplate, Tokenizer};
use tokio::sync::Semaphore;

use crate::ServerError;
use crate::failure::Failure;
use crate::loading::Loading;

/// Prompts of one model that are encoded at a time; a hostile one takes some 100 MiB while it is.
const MAX_ENCODERS: usize = 2;

/// One model with everything needed to answer.
pub struct LoadedModel {
    /// The running engine; models that differ in their adapter share one.
    pub engine: EngineHandle,
    /// What changes the weights of the engine's model.
    pub adapter: Option<Arc<LoadedAdapter>>,
    /// Turns text into ids and back.
    pub tokenizer: Arc<Tokenizer>,
    /// Renders conversations; none for a model that only continues text.
    pub template: Option<ChatTemplate>,
    /// Tokens that end an answer.
    pub eos_ids: Vec<u32>,
    /// Seconds since 1970 at which the model was made.
    pub created: u64,
    /// What requests get that do not say how to draw tokens.
    pub defaults: SamplingDefaults,
}

/// How tokens are drawn when a request does not say.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplingDefaults {
    /// Divides the logits; 0 takes the likeliest token.
    pub temperature: f32,
    /// Keeps the likeliest tokens whose probabilities sum to this.
    pub top_p: f32,
    /// Keeps this many likeliest tokens.
    pub top_k: Option<u32>,
}

impl Default for SamplingDefaults {
    /// The defaults of the OpenAI dialect: temperature 1, no truncation.
    fn default() -> Self {
        Self { temperature: 1.0, top_p: 1.0, top_k: None }
    }
}

/// A model among those that are served.
pub(crate) struct ServedModel {
    loaded: LoadedModel,
    /// Places for work that takes milliseconds and memory: rendering and encoding prompts. Each model has its own, since a
    /// template may take seconds, for which no other model must wait.
    pub(crate) encoders: Arc<Semaphore>,
    /// Made when a request first asks for a format.
    grammars: OnceLock<GrammarCompiler>,
}

impl ServedModel {
    /// What compiles the formats of requests. It takes long the first time: not for the event loop.
    pub(crate) fn grammars(&self) -> Result<&GrammarCompiler, GrammarError> {
        if let Some(grammars) = self.grammars.get() {
            return Ok(grammars);
        }
        let (vocab_size, eos_ids) = (self.engine.vocab_size(), &self.eos_ids);
        let made = GrammarCompiler::new(&self.tokenizer, vocab_size, eos_ids)?;
        Ok(self.grammars.get_or_init(|| made))
    }
}

impl Deref for ServedModel {
    type Target = LoadedModel;

    fn deref(&self) -> &LoadedModel {
        &self.loaded
    }
}

/// The served models by name, in the order in which they were added. Clones share one list.
#[derive(Clone, Default)]
pub struct ModelRegistry(Arc<RwLock<Models>>);

#[derive(Default)]
pub(crate) struct Models {
    pub(crate) entries: Vec<(String, Arc<ServedModel>)>,
    status: String,
    /// What is being loaded and unloaded over HTTP.
    pub(crate) loading: Loading,
}

impl Models {
    /// What is going on while no model is there; empty when nothing is.
    fn status(&self) -> String {
        match &self.loading.name {
            Some(name) => format!("loading {name}"),
            None if self.loading.source.is_some() => String::new(),
            None => self.status.clone(),
        }
    }

    /// True before there is a model, and none can be loaded by clients.
    fn is_starting(&self) -> bool {
        self.entries.is_empty() && self.loading.source.is_none()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.entries.iter().map(|(name, _)| name.clone()).collect()
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.entries.iter().any(|(other, _)| other == name)
    }
}

impl ModelRegistry {
    /// An empty list: the server answers that it is starting.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Serves one more model, from now on.
    ///
    /// # Errors
    ///
    /// As [`ModelRegistry::add_all`].
    pub fn add(&self, name: &str, model: LoadedModel) -> Result<(), ServerError> {
        self.add_all(vec![(name.to_owned(), model)])
    }

    /// Serves more models, from now on: all of them, or none.
    ///
    /// # Errors
    ///
    /// [`ServerError::DuplicateModel`], or [`ServerError::VocabularyMismatch`] when a tokenizer makes ids its model does not have.
    pub fn add_all(&self, added: Vec<(String, LoadedModel)>) -> Result<(), ServerError> {
        let mut served = Vec::with_capacity(added.len());
        for (name, model) in added {
            let model_vocab_size = model.engine.vocab_size();
            let tokenizer_vocab_size = model.tokenizer.vocab_size();
            if tokenizer_vocab_size > model_vocab_size {
                return Err(ServerError::VocabularyMismatch {
                    name,
                    model_vocab_size,
                    tokenizer_vocab_size,
                });
            }
            let encoders = Arc::new(Semaphore::new(MAX_ENCODERS));
            let model = ServedModel { loaded: model, encoders, grammars: OnceLock::new() };
            served.push((name, Arc::new(model)));
        }
        // Given back before what is not served is dropped, which may end an engine.
        let mut models = self.write();
        for (i, (name, _)) in served.iter().enumerate() {
            let is_twice = served[..i].iter().any(|(other, _)| other == name);
            if is_twice || models.contains(name) || models.loading.is_unloading(name) {
                return Err(ServerError::DuplicateModel { name: name.clone() });
            }
        }
        models.entries.append(&mut served);
        Ok(())
    }

    /// Serves a model no longer; false if it was not. Requests that are answered come to their end. With the last of them and the last other
    /// handle the engine stops, for which whoever drops it waits as long as a step takes, and its memory is free.
    #[must_use]
    pub fn remove(&self, name: &str) -> bool {
        let mut models = self.write();
        let position = models.entries.iter().position(|(other, _)| other == name);
        let removed = position.map(|position| models.entries.remove(position));
        // Its engine may have to end first, for which nobody must wait.
        drop(models);
        removed.is_some()
    }

    /// Says what is going on while no model is there, such as the step of a training run.
    pub fn set_status(&self, status: &str) {
        status.clone_into(&mut self.write().status);
    }

    /// Names of the models.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.read(Models::names)
    }

    /// What the engine of each model does and has done.
    pub(crate) fn loads(&self) -> Vec<(String, EngineLoad)> {
        let of_model =
            |(name, model): &(String, Arc<ServedModel>)| (name.clone(), model.engine.load());
        self.read(|models| models.entries.iter().map(of_model).collect())
    }

    pub(crate) fn is_starting(&self) -> bool {
        self.read(Models::is_starting)
    }

    pub(crate) fn status(&self) -> String {
        self.read(Models::status)
    }

    pub(crate) fn cards(&self) -> Vec<ModelCard> {
        self.read(|models| models.entries.iter().map(|(name, model)| model.card(name)).collect())
    }

    /// Names of the models one can chat with; the page starts with the first.
    pub(crate) fn chat_names(&self) -> Vec<String> {
        self.read(|models| {
            let chat = models.entries.iter().filter(|(_, model)| model.template.is_some());
            chat.map(|(name, _)| name.clone()).collect()
        })
    }

    pub(crate) fn get(&self, name: &str) -> Result<Arc<ServedModel>, Failure> {
        self.read(|models| {
            let found = models.entries.iter().find(|(other, _)| other == name);
            match found {
                Some((_, model)) => Ok(Arc::clone(model)),
                None if models.loading.name.as_deref() == Some(name) => {
                    Err(Failure::BeingLoaded { name: name.to_owned() })
                }
                None if models.is_starting() => Err(Failure::Starting { status: models.status() }),
                None => {
                    Err(Failure::UnknownModel { name: name.to_owned(), available: models.names() })
                }
            }
        })
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, Models> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn read<T>(&self, f: impl FnOnce(&Models) -> T) -> T {
        f(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl LoadedModel {
    pub(crate) fn card(&self, name: &str) -> ModelCard {
        let mut card = ModelCard::new(name.to_owned(), self.created, self.engine.context_len());
        card.capabilities.completion_chat = self.template.is_some();
        card
    }
}
