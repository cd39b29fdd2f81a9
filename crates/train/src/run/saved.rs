//! What a checkpoint says beside its tensors.

use std::path::Path;

use formats::DecoderConfig;
use formats::checkpoint::CheckpointState;
use model::ModelConfig;
use serde::{Deserialize, Serialize};

use crate::error::TrainError;

/// What `state.json` of a checkpoint holds beside the step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct SavedState {
    /// The next row of the data.
    pub(super) next_row: u64,
    /// Input tokens so far.
    pub(super) tokens: u64,
    /// Kernel family that made the steps: another one rounds differently.
    pub(super) kernel_family: String,
    /// What the run learns from: other data under the same names would be another run.
    pub(super) data_digests: Vec<String>,
    /// The model's configuration: what the run began with may change, or be gone. None in format 1 alone.
    pub(super) model: Option<DecoderConfig>,
    /// None in checkpoints that earlier programs wrote.
    #[serde(default)]
    pub(super) inherited: Option<Inherited>,
}

/// What a model trained further has of the one that its weights come from, if need be through other runs. It is taken when the run
/// begins: later there may be another model in that place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inherited {
    /// Licence of the weights.
    pub licence: Option<String>,
    /// SHA-256 of the data sheet of what it was trained on first.
    pub data_sheet_sha256: Option<String>,
}

impl SavedState {
    /// Reads the state of a checkpoint; `path` is for messages.
    ///
    /// # Errors
    /// When it is not that of a run.
    pub(super) fn read(state: &CheckpointState, path: &Path) -> Result<Self, TrainError> {
        let wrong = |got| TrainError::Checkpoint {
            path: path.to_owned(),
            field: "state.json",
            got,
            expected: "a training state".to_owned(),
        };
        let read: Self = serde_json::from_value(state.state.clone())
            .map_err(|error| wrong(error.to_string()))?;
        if read.model.is_none() && state.format_version > 1 {
            return Err(wrong("one without the model's configuration".to_owned()));
        }
        Ok(read)
    }

    /// The model's configuration; `None` where the file's format did not hold it.
    ///
    /// # Errors
    /// When it cannot be computed.
    pub(super) fn config(&self) -> Result<Option<ModelConfig>, TrainError> {
        Ok(self.model.clone().map(ModelConfig::new).transpose()?)
    }
}
