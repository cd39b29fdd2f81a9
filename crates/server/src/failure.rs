//! What goes wrong in one request: the one place that maps it to a status, a text for the client and a text for the log.

use api::{ErrorBody, ErrorObject, RequestError};
use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use engine::EngineError;
use grammar::GrammarError;
use tracing::{debug, error, warn};

use crate::ServerError;
use crate::loading::LoadError;

/// A request that gets no answer. The public text never holds a path, an address or a prompt.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("the request body is larger than {limit_bytes} bytes")]
    BodyTooLarge { limit_bytes: usize },
    #[error("the request body did not arrive within {limit_s} seconds")]
    BodyTimeout { limit_s: u64 },
    #[error("the request body could not be read")]
    BodyBroken,
    #[error("the model `{name}` does not exist or is not loaded, available: {}", list(available))]
    UnknownModel { name: String, available: Vec<String> },
    #[error("no model is loaded yet{}{status}", if status.is_empty() { "" } else { ": " })]
    Starting { status: String },
    #[error("the model `{name}` is being loaded")]
    BeingLoaded { name: String },
    #[error("the model `{name}` is loaded already")]
    AlreadyLoaded { name: String },
    #[error("the model `{name}` is not loaded")]
    NotLoaded { name: String },
    #[error("the model `{name}` is being unloaded: its last answers are still to come")]
    Unloading { name: String },
    #[error("the model `{other}` is being loaded, one is at a time")]
    LoadingAnother { other: String },
    #[error("{source}")]
    Load { name: String, source: LoadError },
    #[error("{error}")]
    NotServed { error: ServerError },
    #[error("the model `{name}` has no chat template, use /v1/completions")]
    NoChatTemplate { name: String },
    #[error("the model `{name}` was not made to fill gaps: it has no tokens [SUFFIX] and [PREFIX]")]
    NoFillInTheMiddle { name: String },
    #[error(
        "the prompt has {n_prompt_tokens} tokens, the context of `{model}` is {context_len} tokens for prompt and answer \
         together"
    )]
    ContextFull { model: String, n_prompt_tokens: usize, context_len: usize, param: &'static str },
    #[error("{source}")]
    Grammar { source: GrammarError, param: &'static str },
    #[error("the conversation cannot be rendered: {detail}")]
    Conversation { detail: String },
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("the address cannot be read: {detail}")]
    Address { detail: String },
    #[error("no such address: {method} {path}")]
    NotFound { method: String, path: String },
    #[error("{path} does not accept {method}")]
    MethodNotAllowed { method: String, path: String },
    #[error("the Host header does not name this machine (localhost, 127.0.0.1 or [::1])")]
    ForeignHost,
    #[error("requests from pages of another origin are refused")]
    ForeignOrigin,
    #[error("an internal error happened in this request; others are not affected")]
    Panicked { detail: String },
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        return "none".to_owned();
    }
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

const INVALID: &str = "invalid_request_error";
const OVERLOADED: &str = "overloaded_error";
const INTERNAL: &str = "server_error";

impl Failure {
    /// Status, class and code of the error object.
    fn class(&self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::Request(error) => (StatusCode::BAD_REQUEST, INVALID, error.code()),
            Self::BodyTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, INVALID, "body_too_large"),
            Self::BodyTimeout { .. } => (StatusCode::REQUEST_TIMEOUT, INVALID, "body_timeout"),
            Self::BodyBroken => (StatusCode::BAD_REQUEST, INVALID, "body_broken"),
            Self::UnknownModel { .. } => (StatusCode::NOT_FOUND, INVALID, "model_not_found"),
            Self::Starting { .. } => (StatusCode::SERVICE_UNAVAILABLE, OVERLOADED, "starting"),
            Self::BeingLoaded { .. } => (StatusCode::SERVICE_UNAVAILABLE, OVERLOADED, "loading"),
            Self::NotServed { error: ServerError::DuplicateModel { .. } } => {
                (StatusCode::CONFLICT, INVALID, "name_taken")
            }
            Self::AlreadyLoaded { .. } => (StatusCode::CONFLICT, INVALID, "already_loaded"),
            Self::NotLoaded { .. } => (StatusCode::CONFLICT, INVALID, "not_loaded"),
            Self::Unloading { .. } => (StatusCode::CONFLICT, INVALID, "unloading"),
            Self::LoadingAnother { .. } => (StatusCode::CONFLICT, INVALID, "loading_another"),
            Self::Load { source: LoadError::NoMemory { .. }, .. } => {
                (StatusCode::INSUFFICIENT_STORAGE, INVALID, "no_memory")
            }
            Self::Load { .. } | Self::NotServed { .. } => {
                (StatusCode::INTERNAL_SERVER_ERROR, INTERNAL, "load_failed")
            }
            Self::NoChatTemplate { .. } => (StatusCode::BAD_REQUEST, INVALID, "no_chat_template"),
            Self::NoFillInTheMiddle { .. } => {
                (StatusCode::BAD_REQUEST, INVALID, "no_fill_in_the_middle")
            }
            Self::ContextFull { .. } => {
                (StatusCode::BAD_REQUEST, INVALID, "context_length_exceeded")
            }
            Self::Grammar { source: GrammarError::Vocabulary { .. }, .. } => {
                (StatusCode::BAD_REQUEST, INVALID, "no_grammars")
            }
            Self::Grammar { .. } => (StatusCode::BAD_REQUEST, INVALID, "invalid_grammar"),
            Self::Conversation { .. } => (StatusCode::BAD_REQUEST, INVALID, "invalid_conversation"),
            Self::Engine(error) => engine_class(error),
            Self::Address { .. } => (StatusCode::BAD_REQUEST, INVALID, "invalid_address"),
            Self::NotFound { .. } => (StatusCode::NOT_FOUND, INVALID, "not_found"),
            Self::MethodNotAllowed { .. } => {
                (StatusCode::METHOD_NOT_ALLOWED, INVALID, "method_not_allowed")
            }
            Self::ForeignHost => (StatusCode::FORBIDDEN, INVALID, "foreign_host"),
            Self::ForeignOrigin => (StatusCode::FORBIDDEN, INVALID, "foreign_origin"),
            Self::Panicked { .. } => {
                (StatusCode::INTERNAL_SERVER_ERROR, INTERNAL, "internal_error")
            }
        }
    }

    /// The field at fault.
    fn param(&self) -> Option<&str> {
        match self {
            Self::Request(error) => error.param(),
            Self::UnknownModel { .. }
            | Self::NoChatTemplate { .. }
            | Self::BeingLoaded { .. }
            | Self::AlreadyLoaded { .. }
            | Self::NotLoaded { .. }
            | Self::Unloading { .. }
            | Self::Load { .. } => Some("model"),
            Self::NoFillInTheMiddle { .. } => Some("suffix"),
            Self::Grammar { source: GrammarError::Vocabulary { .. }, .. } => Some("model"),
            Self::Grammar { param, .. } => Some(param),
            Self::Conversation { .. } => Some("messages"),
            Self::ContextFull { param, .. } => Some(param),
            Self::Engine(EngineError::UnknownToken { .. } | EngineError::EmptyPrompt) => {
                Some("prompt")
            }
            _ => None,
        }
    }

    /// The error object for the client.
    pub(crate) fn body(&self) -> ErrorBody {
        let (status, kind, code) = self.class();
        let is_ours = status == StatusCode::INTERNAL_SERVER_ERROR;
        // The details of an internal error are for the log alone.
        let message = if is_ours && matches!(self, Self::Engine(_)) {
            "the answer could not be computed".to_owned()
        } else {
            self.to_string()
        };
        let param = self.param().map(str::to_owned);
        ErrorBody { error: ErrorObject { message, kind, param, code: Some(code) } }
    }

    /// Writes the failure to the log, once. Messages of refused requests may quote the request, so they are for
    /// debugging only.
    pub(crate) fn log(&self) {
        let (status, _, code) = self.class();
        let status = status.as_u16();
        match self {
            Self::Panicked { detail } => error!(status, code, detail, "request panicked"),
            Self::Engine(_) | Self::Load { .. } | Self::NotServed { .. } if status >= 500 => {
                warn!(status, code, failure = %self, "request failed")
            }
            _ => debug!(status, code, failure = %self, "request refused"),
        }
    }
}

fn engine_class(error: &EngineError) -> (StatusCode, &'static str, &'static str) {
    match error {
        EngineError::QueueFull { .. } => {
            (StatusCode::SERVICE_UNAVAILABLE, OVERLOADED, "queue_full")
        }
        EngineError::Stopped => (StatusCode::SERVICE_UNAVAILABLE, OVERLOADED, "stopped"),
        EngineError::EmptyPrompt
        | EngineError::PromptTooLong { .. }
        | EngineError::UnknownToken { .. }
        | EngineError::UnknownBias { .. }
        | EngineError::TooManyTop { .. }
        | EngineError::InvalidSampling { .. } => {
            (StatusCode::BAD_REQUEST, INVALID, "invalid_value")
        }
        EngineError::CacheTooSmall { .. } => (StatusCode::BAD_REQUEST, INVALID, "cache_too_small"),
        EngineError::MaskFailed { .. } => (StatusCode::BAD_REQUEST, INVALID, "invalid_grammar"),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, INTERNAL, "engine_error"),
    }
}

impl From<PathRejection> for Failure {
    fn from(refusal: PathRejection) -> Self {
        Self::Address { detail: refusal.body_text() }
    }
}

impl From<QueryRejection> for Failure {
    fn from(refusal: QueryRejection) -> Self {
        Self::Address { detail: refusal.body_text() }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        self.log();
        let status = self.class().0;
        let mut response = (status, Json(self.body())).into_response();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
        }
        response
    }
}
