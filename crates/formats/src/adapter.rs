//! Low-rank adapters (LoRA): a PEFT directory, or `lora.safetensors` of mistral-finetune. For some matrices of a model they hold
//! `A [rank, n_in]` and `B [n_out, rank]`; the adapted matrix is `W + scaling * B A`. Source: arXiv 2106.09685.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::FormatError;
use crate::config::DecoderConfig;
use crate::config::native::PARAMS_FILE;
use crate::durable::read_bounded;
use crate::fields::Fields;
use crate::names::{Layout, WeightName};
use crate::weights::WeightFiles;

mod write;

pub use write::{AdapterNotes, peft_names, write_adapter};

/// What a PEFT directory holds.
const PEFT_CONFIG: &str = "adapter_config.json";
const PEFT_WEIGHTS: &str = "adapter_model.safetensors";
/// What mistral-finetune writes; it notes the scaling in the `params.json` beside it.
const NATIVE_WEIGHTS: &str = "lora.safetensors";
/// Why a setting is refused.
const PLAIN: &str = "only plain LoRA is read";
/// What PEFT puts before the names of a model's tensors.
const PEFT_PREFIX: &str = "base_model.model.";
/// Largest configuration that is read.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// Largest scaling, to either side. Published adapters have 0.5 to 64; a number without bound makes a model of NaN.
pub const MAX_SCALING: f64 = 1e6;
/// Largest rank; published adapters have 8 to 256.
const MAX_RANK: usize = 4096;

/// An adapter whose tensors were checked against the model that it is for.
#[derive(Debug)]
pub struct Adapter {
    path: PathBuf,
    files: WeightFiles,
    layout: Layout,
    scaling: f64,
    /// Names of A and B in the file.
    pairs: BTreeMap<WeightName, [String; 2]>,
}

/// The two factors of a change to a matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct LowRankPair {
    /// `[rank, n_in]`.
    pub a: Vec<f32>,
    /// `[n_out, rank]`, rows in the order of Hugging Face.
    pub b: Vec<f32>,
    /// Rows of A.
    pub rank: usize,
    /// What the product is multiplied with.
    pub scaling: f64,
}

impl Adapter {
    /// Opens a PEFT directory, or the `lora.safetensors` of mistral-finetune or the folder that holds it. `scaling` stands where
    /// the files do not say it, as those of mistral-finetune may not: a guess would change the model in silence.
    ///
    /// # Errors
    /// When a file is missing or damaged, the adapter asks for more than `W + scaling * B A`, no scaling is known, two differ, or
    /// one is beyond [`MAX_SCALING`], or a tensor is of no matrix of this model or has another shape; the error names the field or
    /// the tensor.
    pub fn open(
        path: &Path,
        config: &DecoderConfig,
        scaling: Option<f64>,
    ) -> Result<Self, FormatError> {
        let (layout, file, settings) = if path.join(PEFT_CONFIG).is_file() {
            (Layout::HuggingFace, path.join(PEFT_WEIGHTS), Some(peft_settings(path)?))
        } else {
            let file = if path.is_dir() { path.join(NATIVE_WEIGHTS) } else { path.to_owned() };
            let stated = native_scaling(&file.with_file_name(PARAMS_FILE))?;
            (Layout::Native, file, stated.map(|scaling| (None, scaling)))
        };
        let (rank, stated) = settings.unzip();
        let field = |got: String, expected: String| FormatError::Field {
            path: path.to_owned(),
            field: "scaling".to_owned(),
            got,
            expected,
        };
        let scaling = match (stated, scaling) {
            (_, Some(asked)) if !(-MAX_SCALING..=MAX_SCALING).contains(&asked) => {
                let expected = format!("a number -{MAX_SCALING:e}..={MAX_SCALING:e}");
                return Err(field(asked.to_string(), expected));
            }
            (Some(stated), Some(asked)) if stated != asked => {
                return Err(field(asked.to_string(), format!("{stated}, as its files say")));
            }
            (Some(scaling), _) | (None, Some(scaling)) => scaling,
            (None, None) => {
                let expected = "a number: its files do not say it (mistral-finetune trains with 2)";
                return Err(field("missing".to_owned(), expected.to_owned()));
            }
        };
        let files = WeightFiles::open_file(&file)?;
        let pairs = pairs(&files, layout, rank.flatten(), config)?;
        Ok(Self { path: file, files, layout, scaling, pairs })
    }

    /// The matrices that are changed.
    pub fn names(&self) -> impl Iterator<Item = WeightName> {
        self.pairs.keys().copied()
    }

    /// What the product is multiplied with.
    #[must_use]
    pub fn scaling(&self) -> f64 {
        self.scaling
    }

    /// The file with the factors.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The rank of the change to a matrix; 0 for one that stays as it is.
    ///
    /// # Errors
    /// As [`WeightFiles::get`].
    pub fn rank(&self, name: WeightName) -> Result<usize, FormatError> {
        let Some([a, _]) = self.pairs.get(&name) else { return Ok(0) };
        Ok(self.files.get(a)?.shape[0])
    }

    /// The factors of a matrix; `None` of one that stays as it is.
    ///
    /// # Errors
    /// As [`WeightFiles::get`].
    pub fn pair(
        &self,
        name: WeightName,
        config: &DecoderConfig,
    ) -> Result<Option<LowRankPair>, FormatError> {
        let Some([a, b]) = self.pairs.get(&name) else { return Ok(None) };
        let (a, b) = (self.files.get(a)?, self.files.get(b)?);
        let rank = a.shape[0];
        let in_file = b.to_f32();
        let order = self.layout.row_order(name, config.head_dim);
        let rows = (0..b.shape[0]).map(|row| order.row_in_file(row));
        let b = rows.flat_map(|row| in_file[row * rank..][..rank].to_vec()).collect();
        Ok(Some(LowRankPair { a: a.to_f32(), b, rank, scaling: self.scaling }))
    }
}

/// The pairs of a file, each checked against the matrix that it changes.
fn pairs(
    files: &WeightFiles,
    layout: Layout,
    rank: Option<usize>,
    config: &DecoderConfig,
) -> Result<BTreeMap<WeightName, [String; 2]>, FormatError> {
    let matrices = WeightName::all(config).into_iter().filter(|name| name.shape(config).len() == 2);
    let known: BTreeMap<String, WeightName> =
        matrices.map(|name| (name.name(layout), name)).collect();
    let mut found: BTreeMap<WeightName, [Option<String>; 2]> = BTreeMap::new();
    for tensor in files.names() {
        let unknown = || foreign(files, tensor);
        let name = match layout {
            Layout::HuggingFace => tensor.strip_prefix(PEFT_PREFIX).ok_or_else(unknown)?,
            _ => tensor,
        };
        let side = |suffix: &str| name.strip_suffix(suffix);
        let (matrix, side) = match (side(".lora_A.weight"), side(".lora_B.weight")) {
            (Some(matrix), _) => (matrix, 0),
            (_, Some(matrix)) => (matrix, 1),
            _ => return Err(unknown()),
        };
        let weight = *known.get(&format!("{matrix}.weight")).ok_or_else(unknown)?;
        found.entry(weight).or_default()[side] = Some(tensor.to_owned());
    }
    let mut pairs = BTreeMap::new();
    for (weight, sides) in found {
        let name = weight.name(layout);
        let [Some(a), Some(b)] = sides else {
            return Err(foreign(files, &format!("{name} (A or B is missing)")));
        };
        check_shapes(files, weight, [&a, &b], rank, config)?;
        pairs.insert(weight, [a, b]);
    }
    if pairs.is_empty() {
        return Err(foreign(files, "(none)"));
    }
    Ok(pairs)
}

fn foreign(files: &WeightFiles, tensor: &str) -> FormatError {
    let path = files.paths().next().unwrap_or(Path::new("")).to_owned();
    FormatError::AdapterTensor { path, tensor: tensor.to_owned() }
}

fn check_shapes(
    files: &WeightFiles,
    weight: WeightName,
    [a, b]: [&str; 2],
    rank: Option<usize>,
    config: &DecoderConfig,
) -> Result<(), FormatError> {
    let shape = weight.shape(config);
    let found = files.get(a)?.shape.first().copied().unwrap_or(0).clamp(1, MAX_RANK);
    // With another rank than the one it was divided by, a scaling would be another.
    let rank = rank.unwrap_or(found);
    for (tensor, expected) in [(a, vec![rank, shape[1]]), (b, vec![shape[0], rank])] {
        let view = files.get(tensor)?;
        if view.shape != expected || !view.dtype.is_plain() {
            return Err(FormatError::TensorShape {
                path: files.path_of(tensor).to_owned(),
                tensor: tensor.to_owned(),
                got: view.shape.to_vec(),
                expected,
                axes: "([rank, n_in] for A, [n_out, rank] for B)",
            });
        }
    }
    Ok(())
}

/// Settings of PEFT that have no effect once an adapter is trained, or that the tensors show.
const WITHOUT_EFFECT: [&str; 17] = [
    "auto_mapping",
    "base_model_name_or_path",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "loftq_config",
];

/// Initialisations that leave the model's own weights as they were. With others (`pissa`, `olora`, `corda`, `loftq`) the adapter
/// is one of changed weights.
fn is_plain_start(value: &Value) -> bool {
    value.is_boolean() || ["gaussian", "eva", "orthogonal"].iter().any(|name| value == name)
}

/// Whether a setting that is not known says nothing.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.is_empty(),
        _ => false,
    }
}

/// The rank `r` of all factors, and the scaling `lora_alpha / r`, or `lora_alpha / sqrt(r)`.
fn peft_settings(dir: &Path) -> Result<(Option<usize>, f64), FormatError> {
    let path = dir.join(PEFT_CONFIG);
    let mut object = read_object(&path)?;
    object.retain(|field, value| !WITHOUT_EFFECT.contains(&field.as_str()) && !is_nothing(value));
    let mut fields = Fields::new(&path, "", object);
    for (field, plain) in [("peft_type", "LORA"), ("bias", "none")] {
        match fields.take(field) {
            Some(value) if value != plain => return Err(fields.unsupported(field, value, PLAIN)),
            _ => {}
        }
    }
    match fields.take("init_lora_weights") {
        Some(value) if !is_plain_start(&value) => {
            return Err(fields.unsupported("init_lora_weights", value, PLAIN));
        }
        _ => {}
    }
    let rank = fields.count("r", 1, MAX_RANK)?;
    let alpha = fields.number("lora_alpha", 0.0, MAX_SCALING)?;
    let alpha = alpha.ok_or_else(|| fields.bad("lora_alpha", "missing", "a number".to_owned()))?;
    let is_root = fields.flag("use_rslora")?.unwrap_or(false);
    fields.refuse_the_rest(PLAIN)?;
    let divisor = if is_root { (rank as f64).sqrt() } else { rank as f64 };
    Ok((Some(rank), alpha / divisor))
}

/// `lora.scaling` of the file beside the adapter, if there is one.
fn native_scaling(path: &Path) -> Result<Option<f64>, FormatError> {
    if !path.is_file() {
        return Ok(None);
    }
    let Some(Value::Object(lora)) = read_object(path)?.remove("lora") else { return Ok(None) };
    Fields::new(path, "lora", lora).number("scaling", 0.0, MAX_SCALING)
}

fn read_object(path: &Path) -> Result<Map<String, Value>, FormatError> {
    let bytes = read_bounded(path, MAX_CONFIG_BYTES)?;
    serde_json::from_slice(&bytes).map_err(FormatError::json(path))
}

#[cfg(test)]
mod tests;
