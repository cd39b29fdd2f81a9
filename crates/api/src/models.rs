//! The list of models, in a shape that OpenAI and Mistral clients both read.

use serde::Serialize;

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
