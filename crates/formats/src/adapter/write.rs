//! Adapter directories as PEFT writes them.

use std::fs;
use std::path::Path;

use serde_json::json;

use super::{Adapter, PEFT_CONFIG, PEFT_PREFIX, PEFT_WEIGHTS};
use crate::FormatError;
use crate::config::DecoderConfig;
use crate::durable::{self, TemporaryDir};
use crate::model_dir::{Lineage, write_lineage};
use crate::names::{Layout, WeightName};
use crate::weights::{TensorSource, write_safetensors};

/// What a directory says of an adapter beside its tensors.
#[derive(Clone, Debug)]
pub struct AdapterNotes {
    /// Rank of every change.
    pub rank: usize,
    /// Changes are multiplied with `alpha / rank`.
    pub alpha: f64,
    /// The model that it changes: a name on a hub or a path, for PEFT to find it.
    pub base_model: String,
    /// Where it comes from.
    pub lineage: Lineage,
}

/// The names of the factors A and B of a matrix in PEFT's files.
///
/// # Panics
/// When the weight is no matrix of a layer.
#[must_use]
pub fn peft_names(matrix: WeightName) -> [String; 2] {
    let name = matrix.name(Layout::HuggingFace);
    let module = name.strip_suffix(".weight").expect("names of weights end so");
    ["A", "B"].map(|side| format!("{PEFT_PREFIX}{module}.lora_{side}.weight"))
}

/// Writes a PEFT directory: `adapter_config.json`, `adapter_model.safetensors`, and our `galerne.json`. It appears whole or not at
/// all.
///
/// `matrices` are those that are changed, of all layers; `tensors` their factors under [`peft_names`], b without the scaling.
///
/// # Errors
/// When the directory exists, cannot be written, or would not be read as an adapter of this model.
pub fn write_adapter<'a>(
    dir: &Path,
    config: &DecoderConfig,
    notes: &AdapterNotes,
    matrices: &[WeightName],
    tensors: impl IntoIterator<Item = TensorSource<'a>>,
) -> Result<Adapter, FormatError> {
    if dir.symlink_metadata().is_ok() {
        return Err(FormatError::Exists { path: dir.to_owned() });
    }
    let parent = durable::parent_of(dir);
    fs::create_dir_all(parent).map_err(FormatError::io("create", parent))?;
    durable::remove_dead_leftovers(dir)?;
    let temporary = TemporaryDir::beside(dir)?;
    let settings = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": notes.base_model,
        "r": notes.rank,
        "lora_alpha": notes.alpha,
        "lora_dropout": 0.0,
        "target_modules": target_modules(matrices),
        "bias": "none",
        "fan_in_fan_out": false,
        "init_lora_weights": true,
        "inference_mode": true,
        "modules_to_save": null,
        "use_dora": false,
        "use_rslora": false,
    });
    durable::write_json_atomically(&temporary.path().join(PEFT_CONFIG), &settings)?;
    write_safetensors(&temporary.path().join(PEFT_WEIGHTS), tensors)?;
    write_lineage(temporary.path(), &notes.lineage)?;
    Adapter::open(temporary.path(), config, None)?;
    temporary.commit()?;
    Adapter::open(dir, config, None)
}

/// The last part of each matrix's module, each once, in the order of the model.
fn target_modules(matrices: &[WeightName]) -> Vec<String> {
    let mut modules = Vec::new();
    for matrix in matrices {
        let name = matrix.name(Layout::HuggingFace);
        let module = name.trim_end_matches(".weight").rsplit('.').next().unwrap_or_default();
        if !modules.iter().any(|other| other == module) {
            modules.push(module.to_owned());
        }
    }
    modules
}
