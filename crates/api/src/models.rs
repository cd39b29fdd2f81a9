//! The list of models, in a shape that OpenAI and Mistral clients both read; loading and unloading them, in that of llama.cpp's router.

use serde::Serialize;

use crate::RequestError;
use crate::fields::Fields;
use crate::sampling::read_model;

/// The answer of `GET /v1/models`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelList {
    /// Always `list`.
    pub object: &'static str,
    /// The models, in the order they were added.
    pub data: Vec<ModelCard>,
}

impl ModelList {
    /// A list of the given cards.
    #[must_use]
    pub fn new(data: Vec<ModelCard>) -> Self {
        Self { object: "list", data }
    }
}

/// One served model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelCard {
    /// The name to send as `model`.
    pub id: String,
    /// Always `model`.
    pub object: &'static str,
    /// Seconds since 1970 at which the model was made.
    pub created: u64,
    /// Always `galerne`.
    pub owned_by: &'static str,
    /// Always `base`: the discriminator Mistral clients require.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Tokens of prompt and answer together, as served.
    pub max_context_length: usize,
    /// What the model can be asked for; Mistral clients require it.
    pub capabilities: Capabilities,
}

impl ModelCard {
    /// The card of a chat model.
    #[must_use]
    pub fn new(id: String, created: u64, max_context_length: usize) -> Self {
        Self {
            id,
            object: "model",
            created,
            owned_by: "galerne",
            kind: "base",
            max_context_length,
            capabilities: Capabilities::default(),
        }
    }
}

/// What a model can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "the wire format is a set of flags")]
pub struct Capabilities {
    /// Chat completions.
    pub completion_chat: bool,
    /// Fill in the middle.
    pub completion_fim: bool,
    /// Tool calls.
    pub function_calling: bool,
    /// Fine-tuning jobs through the API.
    pub fine_tuning: bool,
    /// Images in messages.
    pub vision: bool,
}

impl Default for Capabilities {
    fn default() -> Self {
        Self {
            completion_chat: true,
            completion_fim: false,
            function_calling: false,
            fine_tuning: false,
            vision: false,
        }
    }
}

/// A checked request to load or to unload a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelRequest {
    /// The name of the model.
    pub model: String,
    /// Fields that no known schema has.
    pub ignored_fields: Vec<String>,
}

impl ModelRequest {
    /// Parses and checks a request body.
    ///
    /// # Errors
    ///
    /// [`RequestError`] when it is no object with the name of a model.
    pub fn parse(body: &[u8]) -> Result<Self, RequestError> {
        let mut fields = Fields::parse(body)?;
        let model = read_model(&mut fields)?;
        let mut ignored_fields = Vec::new();
        fields.ignored(&mut ignored_fields);
        Ok(Self { model, ignored_fields })
    }
}

/// What became of such a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelsChanged {
    /// Always true: a failure is an error object.
    pub success: bool,
    /// The names that requests can use from now on, or no longer: of the model, and of adapters beside it.
    pub models: Vec<String>,
}

impl ModelsChanged {
    /// These names came or went.
    #[must_use]
    pub fn new(models: Vec<String>) -> Self {
        Self { success: true, models }
    }
}

/// The answer of `GET /models`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelStates {
    /// Always `list`.
    pub object: &'static str,
    /// All models that are loaded or can be.
    pub data: Vec<ModelState>,
}

impl ModelStates {
    /// A list of the given models.
    #[must_use]
    pub fn new(data: Vec<ModelState>) -> Self {
        Self { object: "list", data }
    }
}

/// A model and whether it is loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelState {
    /// Its name.
    pub id: String,
    /// Always `model`.
    pub object: &'static str,
    /// Where it is.
    pub status: ModelStatus,
}

impl ModelState {
    /// A model in a state.
    #[must_use]
    pub fn new(id: String, value: LoadState) -> Self {
        Self { id, object: "model", status: ModelStatus { value } }
    }
}

/// The state, as an object to which more may be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ModelStatus {
    /// The state.
    pub value: LoadState,
}

/// Whether a model is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LoadState {
    /// It can be loaded.
    Unloaded,
    /// Its weights are being read.
    Loading,
    /// It answers.
    Loaded,
    /// It takes no more requests, and ends with the last answer.
    Unloading,
}
