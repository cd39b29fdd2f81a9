//! What can go wrong with files.

use std::path::{Path, PathBuf};

/// An error of this crate. Messages say what, where, expected and got.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The system refused to read, write, rename, ...
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried: `read`, `write`, `rename`, ...
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A file is not JSON, or not the JSON it should be.
    #[error("{} is not valid JSON of its kind: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A field has a value that cannot be used.
    #[error("field `{field}` of {} is {got}, expected {expected}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The field's name in the file, with dots for nesting.
        field: String,
        /// What was found; `missing` when the field is absent.
        got: String,
        /// What would have been accepted.
        expected: String,
    },
    /// A setting that changes the computation and is not supported, or is unknown.
    #[error("setting `{field}` = {got} of {} is not supported: {reason}", path.display())]
    UnsupportedSetting {
        /// The file.
        path: PathBuf,
        /// The setting's name in the file.
        field: String,
        /// Its value.
        got: String,
        /// Why it is refused.
        reason: &'static str,
    },
    /// A file is larger than anything of its kind can be.
    #[error("{} has {got} bytes, at most {limit} are accepted", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The bound.
        limit: u64,
        /// Its size.
        got: u64,
    },
    /// A file beside the weights that leads out of the model's folder, and would be copied from there.
    #[error(
        "{} is a link to {}, expected a file of the folder or of its hub cache (../../blobs)",
        path.display(), target.display()
    )]
    ForeignLink {
        /// The link.
        path: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// Neither the weight file nor its index is in the folder.
    #[error("no weights in {}: expected {} or {}", dir.display(), names[0], names[1])]
    NoWeights {
        /// The folder.
        dir: PathBuf,
        /// Names of the file and of the index.
        names: [&'static str; 2],
    },
    /// Weights in pickle form, which can run code when read.
    #[error("{} is a pickle file, which is never read: expected model.safetensors", path.display())]
    Pickle {
        /// The file.
        path: PathBuf,
    },
    /// Two descriptions of the weights, and no way to know which one counts.
    #[error("{} holds both {} and {}, expected one", dir.display(), names[0], names[1])]
    AmbiguousWeights {
        /// The folder.
        dir: PathBuf,
        /// Names of the file and of the index.
        names: [&'static str; 2],
    },
    /// The header of a safetensors file is truncated, lies about the file, or is not JSON.
    #[error("{} has an invalid safetensors header: {source}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: safetensors::SafeTensorError,
    },
    /// A tensor is not in the file.
    #[error("tensor `{tensor}` is missing from {}", path.display())]
    TensorMissing {
        /// The file, or the folder when no index says which file should have it.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor is in a file other than the index says, or in two.
    #[error("tensor `{tensor}` is in {}, expected {expected}", path.display())]
    TensorMisplaced {
        /// The file where it was found.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Where it should be.
        expected: String,
    },
    /// A tensor with a name that is too long.
    #[error("the name of tensor `{begin}...` in {} has {got} bytes, expected at most {limit}", path.display())]
    TensorName {
        /// The file.
        path: PathBuf,
        /// What the name begins with.
        begin: String,
        /// Its bytes.
        got: usize,
        /// The most that there may be.
        limit: usize,
    },
    /// A tensor of an adapter that has no place in the model.
    #[error("tensor `{tensor}` of {} is no factor of a matrix of this model, expected names such as \
             `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight` or `layers.0.attention.wq.lora_A.weight`", path.display())]
    AdapterTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A matrix that an adapter changes, and that is changed only by merging.
    #[error("{} changes `{matrix}`, which is not changed at run time", path.display())]
    AdapterMerges {
        /// The file.
        path: PathBuf,
        /// The matrix.
        matrix: String,
    },
    /// A tensor has another shape than the configuration says.
    #[error("tensor `{tensor}` in {} has shape {got:?}, expected {expected:?} {axes}", path.display())]
    TensorShape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape in the file.
        got: Vec<usize>,
        /// The shape of the configuration.
        expected: Vec<usize>,
        /// The names of the axes.
        axes: &'static str,
    },
    /// A tensor has a type that is not read.
    #[error("tensor `{tensor}` in {} has type {got}, expected F32, F16, BF16, F8_E4M3 or a kind of GGUF blocks that is read", path.display())]
    TensorDtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type in the file.
        got: String,
    },
    /// A norm's weights are in blocks that share a scale.
    #[error("tensor `{tensor}` in {} has type {got}, expected plain numbers: it is a norm", path.display())]
    NormInBlocks {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type.
        got: &'static str,
    },
    /// What is to be written does not fit its declared shape and type.
    #[error("tensor `{tensor}` gave {got} bytes for {}, expected {expected}", path.display())]
    TensorBytes {
        /// The file being written.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Bytes given.
        got: u64,
        /// Bytes that shape and type ask for.
        expected: u64,
    },
    /// The same tensor name twice in one file to be written.
    #[error("tensor `{tensor}` is given twice for {}", path.display())]
    TensorTwice {
        /// The file being written.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A file's content is not what its recorded sum says.
    #[error("{} is damaged: sha256 {got}, expected {expected} ({n_bytes} bytes on disk)", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The sum of what is on disk.
        got: String,
        /// The recorded sum.
        expected: String,
        /// The size on disk; 0 and short files are the usual damage.
        n_bytes: u64,
    },
    /// A line of a text file cannot be understood.
    #[error("line {line} of {} is {got}, expected {expected}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// What was found, shortened.
        got: String,
        /// What was expected.
        expected: &'static str,
    },
    /// A setting that a layout cannot say.
    #[error("{} cannot be written: the {layout} layout has no key for {setting}", path.display())]
    NotInLayout {
        /// The file.
        path: PathBuf,
        /// The setting.
        setting: &'static str,
        /// The layout.
        layout: &'static str,
    },
    /// A tensor of a type that is not written in a layout.
    #[error("tensor `{tensor}` in {} has type {got}, expected F32, F16 or BF16: the {layout} layout is written without numbers that share a scale", path.display())]
    TensorNotInLayout {
        /// The file that has it.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type.
        got: &'static str,
        /// The layout to be written.
        layout: &'static str,
    },
    /// A model that is quantised already is to be quantised or trained.
    #[error("`{tensor}` in {} is quantised to {got} already: expected a model of f32, f16, bf16 or f8 numbers, such as the one it was made from", path.display())]
    Quantised {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type.
        got: &'static str,
    },
    /// A number that cannot be quantised.
    #[error("`{tensor}` in {} has a number that is not finite: it cannot be quantised", path.display())]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// Several models where one is expected.
    #[error("{} holds {n} GGUF files, expected one: name the file itself", dir.display())]
    ManyModels {
        /// The folder.
        dir: PathBuf,
        /// How many.
        n: usize,
    },
    /// A folder is no model of any layout.
    #[error("{} is no model: expected config.json (Hugging Face), params.json (Mistral) or a GGUF file", dir.display())]
    NoModel {
        /// The folder.
        dir: PathBuf,
    },
    /// A file that must be there is not.
    #[error("{} is missing from {}", name, dir.display())]
    FileMissing {
        /// The folder.
        dir: PathBuf,
        /// The file's name.
        name: String,
    },
    /// A file name with a folder part, or one that this crate writes itself.
    #[error("`{name}` cannot be used as a file name in {}: expected a plain name of its own", dir.display())]
    FileName {
        /// The folder.
        dir: PathBuf,
        /// The name.
        name: String,
    },
    /// The target is already there and is never overwritten.
    #[error("{} already exists and is not overwritten", path.display())]
    Exists {
        /// The file or folder.
        path: PathBuf,
    },
    /// Another process holds the folder.
    #[error("{} is in use by another process ({holder})", dir.display())]
    Locked {
        /// The folder.
        dir: PathBuf,
        /// What the lock file says of the holder, such as `process 1234`.
        holder: String,
    },
    /// Of a version that this program does not read, or without one.
    #[error("{} has format_version {got}, this program reads up to {supported}", path.display())]
    FormatVersion {
        /// The file.
        path: PathBuf,
        /// Its version; `none` when it states none.
        got: String,
        /// The newest version this program reads.
        supported: u64,
    },
}

impl FormatError {
    /// Makes `map_err` closures short: `.map_err(FormatError::io("read", path))`. An error of this crate that what was written
    /// with gave as an `io::Error` comes out as it was.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| match source.downcast() {
            Ok(error) => error,
            Err(source) => Self::Io { action, path, source },
        }
    }

    pub(crate) fn json(path: &Path) -> impl FnOnce(serde_json::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Json { path, source }
    }

    /// Whether there is no such file.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound)
    }

    /// Whether the system refused something: the cause lies outside the file's content.
    #[must_use]
    pub fn is_io(&self) -> bool {
        matches!(self, Self::Io { .. })
    }

    /// Whether the cause is a full disk.
    #[cfg(test)]
    pub(crate) fn is_disk_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull)
    }
}

/// For closures that write: where this crate wraps what they return, the error comes out as it was.
impl From<FormatError> for std::io::Error {
    fn from(error: FormatError) -> Self {
        Self::other(error)
    }
}
