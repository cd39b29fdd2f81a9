//! Why something could not be measured.

use std::path::PathBuf;

use engine::EngineError;

/// Errors of measuring.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// A question cannot be written in the chat template.
    #[error("question {question_idx} cannot be rendered")]
    Render {
        /// Index of the question in the list.
        question_idx: usize,
        /// What the template says.
        #[source]
        source: tokenizer::Error,
    },
    /// The engine refused or failed a question.
    #[error("question {question_idx} was not answered")]
    Generate {
        /// Index of the question in the list.
        question_idx: usize,
        /// What the engine says.
        #[source]
        source: EngineError,
    },
    /// A file cannot be read.
    #[error(transparent)]
    Format(#[from] formats::FormatError),
    /// A line of a metrics file is not what training writes.
    #[error("line {line} of {path} is no metrics line: {detail}")]
    MetricsLine {
        /// The file.
        path: PathBuf,
        /// Number of the line, from 1.
        line: usize,
        /// What is wrong with it.
        detail: String,
    },
    /// A number of a report is not finite, so JSON cannot hold it.
    #[error("{field} of the report is {got}, expected a finite number")]
    NotFinite {
        /// Which number.
        field: String,
        /// Its value.
        got: f64,
    },
    /// A report in JSON cannot be read.
    #[error("the report is not valid: {0}")]
    Json(#[from] serde_json::Error),
}
