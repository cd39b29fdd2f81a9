//! Models that are loaded and unloaded while the server runs.

use std::sync::Arc;
use std::time::Duration;

use api::{LoadState, ModelState};
use tracing::info;

use crate::failure::Failure;
use crate::registry::{LoadedModel, ModelRegistry, Models, ServedModel};

/// Time between two looks at whether the last answer of a model has come to its end.
const END_INTERVAL: Duration = Duration::from_millis(10);

/// Where models come from. The server knows no files: the program that starts it has them, and tests have others.
pub trait ModelSource: Send + Sync {
    /// Names of all models that it can load.
    fn names(&self) -> Vec<String>;

    /// Loads a model of its names, with what is served beside it, as long as that takes; nothing else is being loaded meanwhile.
    ///
    /// # Errors
    ///
    /// [`LoadError`]; what clients are not told stands in the log.
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
    pub(crate) fn is_unloading(&self, name: &str) -> bool {
        self.unloading.iter().any(|other| other == name)
    }

    fn source(&self) -> Result<Arc<dyn ModelSource>, Failure> {
        let status = "the server is starting".to_owned();
        self.source.clone().ok_or(Failure::Starting { status })
    }
}

impl ModelRegistry {
    /// Lets clients load models of this source, and unload any, from now on; to be called when the program has added those it starts with.
    pub fn load_from(&self, source: Arc<dyn ModelSource>) {
        self.write().loading.source = Some(source);
    }

    /// All models that are loaded or can be, with their states: those that are loaded first. It looks at files: not for the event loop.
    pub(crate) fn states(&self) -> Vec<ModelState> {
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
        let available = source.names();
        if !available.iter().any(|other| other == name) {
            return Err(Failure::UnknownModel { name: name.to_owned(), available });
        }
        info!(model = name, "loading");
        let failed = |source| Failure::Load { name: name.to_owned(), source };
        let loaded = source.load(name).map_err(failed)?;
        let names = loaded.iter().map(|(name, _)| name.clone()).collect();
        self.add_all(loaded).map_err(|error| Failure::NotServed { error })?;
        info!(model = name, "loaded");
        Ok(names)
    }

    /// Marks a model as being loaded.
    fn begin_load(&self, name: &str) -> Result<Arc<dyn ModelSource>, Failure> {
        let mut models = self.write();
        let source = models.loading.source()?;
        let named = name.to_owned();
        if models.contains(name) {
            return Err(Failure::AlreadyLoaded { name: named });
        }
        if models.loading.is_unloading(name) {
            return Err(Failure::Unloading { name: named });
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
        let leaving = self.begin_unload(name)?;
        info!(model = name, "unloading");
        let names = leaving.names.clone();
        let mark = UnloadingMark { registry: self.clone(), names: names.clone() };
        let unloading = tokio::spawn(async move {
            while !leaving.is_idle() {
                tokio::time::sleep(END_INTERVAL).await;
            }
            // Nobody else has the engine: it ends here, which takes a moment and gives back much memory.
            let ended = tokio::task::spawn_blocking(move || drop(leaving)).await;
            drop(mark);
            ended
        });
        match unloading.await {
            Ok(Ok(())) => Ok(names),
            Ok(Err(error)) | Err(error) => Err(Failure::Panicked { detail: error.to_string() }),
        }
    }

    fn begin_unload(&self, name: &str) -> Result<Leaving, Failure> {
        let mut models = self.write();
        models.loading.source()?;
        let Models { entries, loading, .. } = &mut *models;
        let Some((_, model)) = entries.iter().find(|(other, _)| other == name) else {
            let name = name.to_owned();
            return Err(match loading.is_unloading(&name) {
                true => Failure::Unloading { name },
                false => Failure::NotLoaded { name },
            });
        };
        let model = Arc::clone(model);
        let shares_engine = |other: &ServedModel| other.engine.is_of_same_engine(&model.engine);
        let (gone, kept) = entries.drain(..).partition(|(_, other)| shares_engine(other));
        *entries = kept;
        let gone: Vec<(String, Arc<ServedModel>)> = gone;
        let (names, served): (Vec<_>, Vec<_>) = gone.into_iter().unzip();
        loading.unloading.extend(names.iter().cloned());
        Ok(Leaving { served, names })
    }
}

/// Models that share an engine and are served no longer.
struct Leaving {
    served: Vec<Arc<ServedModel>>,
    names: Vec<String>,
}

impl Leaving {
    /// True once no request has one of them, or their engine: each has a handle of it.
    fn is_idle(&self) -> bool {
        self.served.iter().all(|model| Arc::strong_count(model) == 1)
            && self.served.iter().all(|model| model.engine.n_handles() == self.served.len())
    }
}

/// Takes the mark away that a model is being loaded, however that ends.
struct LoadingMark<'a>(&'a ModelRegistry);

impl Drop for LoadingMark<'_> {
    fn drop(&mut self) {
        self.0.write().loading.name = None;
    }
}

/// Takes the marks away that models are being unloaded, however that ends.
struct UnloadingMark {
    registry: ModelRegistry,
    names: Vec<String>,
}

impl Drop for UnloadingMark {
    fn drop(&mut self) {
        self.registry.write().loading.unloading.retain(|name| !self.names.contains(name));
    }
}
