//! Models that are loaded and unloaded while the server runs.

use std::sync::Arc;
use std::time::Duration;

use api::{LoadState, ModelState};
use engine::EngineEnd;
use tracing::info;

use crate::failure::Failure;
use crate::registry::{LoadedModel, ModelRegistry, Models, ServedModel};

/// Time between two looks at whether the last answer of a model has come to its end.
const END_INTERVAL: Duration = Duration::from_millis(10);

/// Where models come from.
pub trait ModelSource: Send + Sync {
    /// Names of all models that it can load.
    fn names(&self) -> Vec<String>;

    /// Loads a model, with what is served beside it, as long as that takes; nothing else is being loaded meanwhile.
    ///
    /// # Errors
    ///
    /// [`LoadError`], of which the source has told its own log more.
    fn load(&self, name: &str) -> Result<Vec<(String, LoadedModel)>, LoadError>;
}

/// Why a model is not loaded, as clients are told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// It does not fit beside those that are loaded.
    #[error("{detail}")]
    NoMemory {
        /// What does not fit where, without a path.
        detail: String,
    },
    /// Its files cannot be used.
    #[error("the model cannot be loaded, the log of the server says why")]
    Failed,
}

/// What is being loaded and unloaded.
#[derive(Default)]
pub(crate) struct Loading {
    /// None while the server is starting, when nothing but the program itself adds models.
    pub(crate) source: Option<Arc<dyn ModelSource>>,
    /// The model that is being loaded; one at a time, since each looks at what memory is left.
    pub(crate) name: Option<String>,
    /// Names whose last answers are still to come.
    unloading: Vec<String>,
}

impl Loading {
    fn source(&self, status: String) -> Result<&Arc<dyn ModelSource>, Failure> {
        self.source.as_ref().ok_or(Failure::Starting { status })
    }
}

impl ModelRegistry {
    /// Lets clients load models of this source, and unload any, from now on; to be called when the program has added those it starts with.
    pub fn load_from(&self, source: Arc<dyn ModelSource>) {
        self.write().loading.source = Some(source);
    }

    /// All models that are loaded or can be, with their states: those that are loaded first.
    pub(crate) fn states(&self) -> Vec<ModelState> {
        // The source looks at files, for which nobody must wait.
        let source = self.read(|models| models.loading.source.clone());
        let loadable = source.map_or_else(Vec::new, |source| source.names());
        self.read(|models| {
            let mut states = Vec::new();
            let mut push = |name: &String, value| {
                if states.iter().all(|state: &ModelState| state.id != *name) {
                    states.push(ModelState::new(name.clone(), value));
                }
            };
            models.names().iter().for_each(|name| push(name, LoadState::Loaded));
            models.loading.name.iter().for_each(|name| push(name, LoadState::Loading));
            models.loading.unloading.iter().for_each(|name| push(name, LoadState::Unloading));
            loadable.iter().for_each(|name| push(name, LoadState::Unloaded));
            states
        })
    }

    /// Loads a model and serves it, and what is served beside it; gives their names. It takes long: not for the event loop.
    pub(crate) fn load(&self, name: &str) -> Result<Vec<String>, Failure> {
        let source = self.begin_load(name)?;
        let _mark = LoadingMark(self);
        info!(model = name, "loading");
        let failed = |source| Failure::Load { name: name.to_owned(), source };
        let loaded = source.load(name).map_err(failed)?;
        let mut names: Vec<String> = Vec::with_capacity(loaded.len());
        for (name, model) in loaded {
            if let Err(error) = self.add(&name, model) {
                // All of them or none.
                for name in &names {
                    let _ = self.remove(name);
                }
                return Err(Failure::NotServed { error });
            }
            names.push(name);
        }
        Ok(names)
    }

    fn begin_load(&self, name: &str) -> Result<Arc<dyn ModelSource>, Failure> {
        let source = self.read(|models| {
            let status = "the server is starting".to_owned();
            models.loading.source(status).map(Arc::clone)
        })?;
        let available = source.names();
        let mut models = self.write();
        let named = name.to_owned();
        if models.contains(name) {
            return Err(Failure::AlreadyLoaded { name: named });
        }
        if models.loading.unloading.contains(&named) {
            return Err(Failure::Unloading { name: named });
        }
        if !available.contains(&named) {
            return Err(Failure::UnknownModel { name: named, available });
        }
        if let Some(other) = &models.loading.name {
            return Err(Failure::LoadingAnother { other: other.clone() });
        }
        models.loading.name = Some(named);
        Ok(source)
    }

    /// Serves a model no longer, nor those that share its engine (adapters and their base have their memory in common), waits for answers
    /// in progress, and gives the names. The memory is free then. It goes on when the caller is gone.
    pub(crate) async fn unload(&self, name: &str) -> Result<Vec<String>, Failure> {
        let (served, names, end) = self.begin_unload(name)?;
        info!(model = name, "unloading");
        let (registry, unloaded) = (self.clone(), names.clone());
        let unloading = tokio::spawn(async move {
            // Dropping the last handle waits for a step of the engine.
            drop(tokio::task::spawn_blocking(move || drop(served)).await);
            while !end.is_past() {
                tokio::time::sleep(END_INTERVAL).await;
            }
            registry.write().loading.unloading.retain(|name| !unloaded.contains(name));
        });
        drop(unloading.await);
        Ok(names)
    }

    fn begin_unload(
        &self,
        name: &str,
    ) -> Result<(Vec<Arc<ServedModel>>, Vec<String>, EngineEnd), Failure> {
        let mut models = self.write();
        models.loading.source("the server is starting".to_owned())?;
        let Models { entries, loading, .. } = &mut *models;
        let Some((_, model)) = entries.iter().find(|(other, _)| other == name) else {
            return Err(if loading.unloading.iter().any(|other| other == name) {
                Failure::Unloading { name: name.to_owned() }
            } else {
                Failure::NotLoaded { name: name.to_owned() }
            });
        };
        let engine = &Arc::clone(model).engine;
        let (gone, kept) = entries
            .drain(..)
            .partition::<Vec<_>, _>(|(_, other)| other.engine.is_of_same_engine(engine));
        *entries = kept;
        let (names, served): (Vec<_>, Vec<_>) = gone.into_iter().unzip();
        loading.unloading.extend(names.iter().cloned());
        Ok((served, names, engine.end()))
    }
}

/// Takes the mark away that a model is being loaded, however that ends.
struct LoadingMark<'a>(&'a ModelRegistry);

impl Drop for LoadingMark<'_> {
    fn drop(&mut self) {
        self.0.write().loading.name = None;
    }
}
