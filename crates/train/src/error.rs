//! What can go wrong in a run.

use std::path::PathBuf;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A file of the run could not be read or written.
    #[error(transparent)]
    Format(#[from] formats::FormatError),
    /// The data could not be read.
    #[error(transparent)]
    Data(#[from] data::DataError),
    /// The model's shape cannot be computed.
    #[error(transparent)]
    Model(#[from] model::ModelError),
    /// The tokenizer could not be read.
    #[error(transparent)]
    Tokenizer(#[from] tokenizer::Error),
    /// A file of the run could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A recipe is no valid TOML, or has an unknown or missing key.
    #[error("{}: {source}", path.display())]
    Recipe {
        /// The recipe.
        path: PathBuf,
        /// What is wrong, with line and column.
        source: Box<toml::de::Error>,
    },
    /// A value of the recipe cannot be used.
    #[error("recipe key `{key}` is {got}, expected {expected}")]
    Setting {
        /// The key.
        key: &'static str,
        /// Its value.
        got: String,
        /// What would do.
        expected: String,
    },
    /// A folder is not a run.
    #[error("{} is not a run: it has no run.toml", path.display())]
    NotARun {
        /// The folder.
        path: PathBuf,
    },
    /// A run folder exists already.
    #[error("{} exists already; a run never overwrites", path.display())]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// The checkpoint does not belong to the run.
    #[error("checkpoint {}: {field} is {got}, expected {expected}", path.display())]
    Checkpoint {
        /// The checkpoint.
        path: PathBuf,
        /// What does not fit.
        field: &'static str,
        /// What it holds.
        got: String,
        /// What the run needs.
        expected: String,
    },
    /// What the run learns from is not what it was.
    #[error("{what} has changed: its digest is {got}, expected {expected} as in checkpoint {}", path.display())]
    ChangedData {
        /// The checkpoint.
        path: PathBuf,
        /// The file or folder, or how conversations are rendered.
        what: String,
        /// Its digest now.
        got: String,
        /// Its digest when the run began.
        expected: String,
    },
    /// The loss or the gradient is not a number any more.
    #[error(
        "step {step}: the loss is {loss} and the gradient norm {grad_norm}; the update was not made \
         and the last checkpoint is intact"
    )]
    NotFinite {
        /// The step that failed.
        step: u64,
        /// Mean loss, nats.
        loss: f64,
        /// Norm of the gradient.
        grad_norm: f64,
    },
    /// Weights or moments are not numbers any more.
    #[error("step {step}: weights or moments are no numbers; the last checkpoint is intact")]
    WeightsNotFinite {
        /// Steps done.
        step: u64,
    },
    /// A line of a conversation file cannot be learnt.
    #[error("{} line {line}: {reason}", path.display())]
    Conversation {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// The data has a token that the model does not know.
    #[error("the data is made with a vocabulary of {data} tokens, the model has {model}")]
    Vocabulary {
        /// Vocabulary of the data.
        data: usize,
        /// Vocabulary of the model.
        model: usize,
    },
}

impl TrainError {
    /// For `map_err` on system calls.
    pub(crate) fn io(
        action: &'static str,
        path: &std::path::Path,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}
