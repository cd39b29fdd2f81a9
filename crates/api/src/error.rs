//! What can be wrong with a request, and the error object every dialect expects.

use serde::Serialize;

/// Why a request body was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The body is not JSON.
    #[error("the request body is not valid JSON: {detail}")]
    NotJson {
        /// What the JSON parser found, with line and column.
        detail: String,
    },
    /// The body is JSON, but not an object.
    #[error("the request body is {got}, expected a JSON object")]
    NotAnObject {
        /// The kind of value found.
        got: &'static str,
    },
    /// A required field is absent or null.
    #[error("`{param}` is missing, expected {expected}")]
    Missing {
        /// Path of the field.
        param: String,
        /// What belongs there.
        expected: &'static str,
    },
    /// A field has the wrong JSON type.
    #[error("`{param}` is {got}, expected {expected}")]
    WrongType {
        /// Path of the field.
        param: String,
        /// What belongs there.
        expected: &'static str,
        /// The kind of value found.
        got: &'static str,
    },
    /// A field has the right type and a value outside its bounds.
    #[error("`{param}` is {got}, expected {expected}")]
    OutOfRange {
        /// Path of the field.
        param: String,
        /// The bound.
        expected: String,
        /// The value found, shortened.
        got: String,
    },
    /// A list or text is longer than its bound.
    #[error("`{param}` has {got} {unit}, at most {limit} are accepted")]
    TooLong {
        /// Path of the field.
        param: String,
        /// What is counted: `entries` or `bytes`.
        unit: &'static str,
        /// Most that is accepted.
        limit: usize,
        /// What was found.
        got: usize,
    },
    /// A known field asks for something this server does not do.
    #[error("`{param}` is {got}, which is not supported: {accepted}")]
    Unsupported {
        /// Path of the field.
        param: String,
        /// The value found, shortened.
        got: String,
        /// What is accepted instead.
        accepted: &'static str,
    },
    /// Two fields that mean the same have different values.
    #[error("`{param}` and `{other}` mean the same and have different values, send one of them")]
    Conflict {
        /// Path of the first field.
        param: String,
        /// Path of the second.
        other: &'static str,
    },
}

impl RequestError {
    /// The field the error is about, as a path such as `messages[2].content`; none when the whole body is wrong.
    #[must_use]
    pub fn param(&self) -> Option<&str> {
        match self {
            Self::NotJson { .. } | Self::NotAnObject { .. } => None,
            Self::Missing { param, .. }
            | Self::WrongType { param, .. }
            | Self::OutOfRange { param, .. }
            | Self::TooLong { param, .. }
            | Self::Unsupported { param, .. }
            | Self::Conflict { param, .. } => Some(param),
        }
    }

    /// The short machine-readable code of the error object.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotJson { .. } | Self::NotAnObject { .. } => "invalid_json",
            Self::Missing { .. } => "missing_required_parameter",
            Self::WrongType { .. } => "invalid_type",
            Self::OutOfRange { .. } | Self::TooLong { .. } => "invalid_value",
            Self::Unsupported { .. } => "unsupported_parameter",
            Self::Conflict { .. } => "conflicting_parameters",
        }
    }
}

/// The body of every error answer: `{"error": {...}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ErrorBody {
    /// The error itself.
    pub error: ErrorObject,
}

/// The error object of the OpenAI dialect; all four members are always present.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ErrorObject {
    /// For people.
    pub message: String,
    /// The class of error, such as `invalid_request_error`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The field at fault.
    pub param: Option<String>,
    /// For programs.
    pub code: Option<&'static str>,
}
