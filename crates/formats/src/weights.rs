//! Weights in safetensors files: mapped for reading, streamed for writing.
//!
//! Reading maps the files; a [`WeightView`] borrows the mapped bytes and nothing is copied. Headers are checked against
//! the size of the file before anything is believed. A file must not be cut or written in place while it is mapped
//! (the process would get SIGBUS): weight files are replaced by rename.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use crate::FormatError;
use crate::dtype::TensorDtype;
use crate::durable::read_bounded;
use crate::os::Mapping;

mod model;
mod write;

pub use model::{Leftovers, ModelWeights, StoredWeight};

pub(crate) use write::Counted;
pub use write::{StreamTensor, TensorData, TensorSource, write_safetensors, write_safetensors_to};

/// Name of a model's only weight file.
pub const SINGLE_FILE: &str = "model.safetensors";
/// Name of the index of a model whose weights are in several files.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// Name of the only weight file in the native layout.
pub const NATIVE_FILE: &str = "consolidated.safetensors";
/// Name of the index of several files in the native layout.
pub const NATIVE_INDEX_FILE: &str = "consolidated.safetensors.index.json";

/// Largest index that is read.
const MAX_INDEX_BYTES: u64 = 64 << 20;
/// Longest name of a tensor, bytes; as in GGUF files.
const MAX_TENSOR_NAME_BYTES: usize = 1024;
/// Characters of a longer one that an error shows.
const SHOWN_NAME_CHARS: usize = 60;
/// Most files of one model.
const MAX_FILES: usize = 4096;

/// The weight files of one model, mapped.
#[derive(Debug)]
pub struct WeightFiles {
    /// The folder, or the file when it was opened by itself.
    origin: PathBuf,
    files: Vec<MappedFile>,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct MappedFile {
    path: PathBuf,
    mapping: Arc<Mapping>,
}

#[derive(Debug)]
struct Entry {
    file_idx: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Byte range in the file.
    begin: usize,
    end: usize,
}

/// One tensor's bytes in a mapped file.
#[derive(Clone, Copy, Debug)]
pub struct WeightView<'a> {
    /// Number type of the bytes.
    pub dtype: TensorDtype,
    /// Axes, slowest first.
    pub shape: &'a [usize],
    /// Little-endian numbers, with no alignment promised.
    pub bytes: &'a [u8],
}

impl WeightView<'_> {
    /// Number of elements.
    #[must_use]
    pub fn n_elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The numbers as f32, which holds every type exactly. Allocates `4 * n_elements` bytes.
    #[must_use]
    pub fn to_f32(&self) -> Vec<f32> {
        let mut numbers = vec![0.0; self.n_elements()];
        self.read_f32(&mut numbers);
        numbers
    }

    /// Writes the numbers as f32 into `out`.
    ///
    /// # Panics
    /// When `out` has another length than the tensor, or the numbers are in blocks.
    pub fn read_f32(&self, out: &mut [f32]) {
        self.dtype.read_f32(self.bytes, out);
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl WeightFiles {
    /// Maps the weights of a model directory: `model.safetensors`, or the files that its index names.
    ///
    /// # Errors
    /// When there are none, when they are pickle files, when a header is truncated or lies about the file, or when the
    /// index and the files disagree. The error names file and tensor.
    pub fn open(dir: &Path) -> Result<Self, FormatError> {
        Self::open_named(dir, [SINGLE_FILE, INDEX_FILE])
    }

    /// Maps the weights of a native Mistral folder: `consolidated.safetensors`, or the files that its index names.
    ///
    /// # Errors
    /// As [`WeightFiles::open`].
    pub(crate) fn open_native(dir: &Path) -> Result<Self, FormatError> {
        Self::open_named(dir, [NATIVE_FILE, NATIVE_INDEX_FILE])
    }

    fn open_named(dir: &Path, names: [&'static str; 2]) -> Result<Self, FormatError> {
        let [single, index] = names.map(|name| dir.join(name));
        match (exists(&single)?, exists(&index)?) {
            (true, true) => Err(FormatError::AmbiguousWeights { dir: dir.to_owned(), names }),
            (true, false) => Self::open_file(&single),
            (false, true) => Self::open_index(dir, &index),
            (false, false) => Err(no_weights(dir, names)?),
        }
    }

    /// Maps one safetensors file.
    ///
    /// # Errors
    /// As [`WeightFiles::open`].
    pub fn open_file(path: &Path) -> Result<Self, FormatError> {
        let mut files =
            Self { origin: path.to_owned(), files: Vec::new(), tensors: BTreeMap::new() };
        files.add(path)?;
        Ok(files)
    }

    fn open_index(dir: &Path, index_path: &Path) -> Result<Self, FormatError> {
        let bytes = read_bounded(index_path, MAX_INDEX_BYTES)?;
        let index: Index = serde_json::from_slice(&bytes).map_err(FormatError::json(index_path))?;
        let mut names: Vec<&String> = index.weight_map.values().collect();
        names.sort();
        names.dedup();
        if names.is_empty() || names.len() > MAX_FILES {
            return Err(FormatError::Field {
                path: index_path.to_owned(),
                field: "weight_map".to_owned(),
                got: format!("a map to {} files", names.len()),
                expected: format!("1 to {MAX_FILES} files"),
            });
        }
        let mut files =
            Self { origin: dir.to_owned(), files: Vec::new(), tensors: BTreeMap::new() };
        for name in names {
            if !is_plain_name(name) {
                return Err(FormatError::FileName { dir: dir.to_owned(), name: name.clone() });
            }
            files.add(&dir.join(name))?;
        }
        files.check_against(&index, dir)?;
        Ok(files)
    }

    /// The index and the headers must name the same tensors in the same files.
    fn check_against(&self, index: &Index, dir: &Path) -> Result<(), FormatError> {
        for (tensor, file) in &index.weight_map {
            let path = dir.join(file);
            match self.tensors.get(tensor) {
                Some(entry) if self.files[entry.file_idx].path == path => {}
                Some(entry) => {
                    return Err(FormatError::TensorMisplaced {
                        path: self.files[entry.file_idx].path.clone(),
                        tensor: tensor.clone(),
                        expected: format!("{} as the index says", path.display()),
                    });
                }
                None => return Err(FormatError::TensorMissing { path, tensor: tensor.clone() }),
            }
        }
        Ok(())
    }

    fn add(&mut self, path: &Path) -> Result<(), FormatError> {
        let mapping = Arc::new(Mapping::open(path)?);
        let bytes = mapping.bytes();
        let (header_len, metadata) = SafeTensors::read_metadata(bytes)
            .map_err(|source| FormatError::Header { path: path.to_owned(), source })?;
        // The header was checked: offsets follow one another from here to the end of the file.
        let data_begin = 8 + header_len;
        let file_idx = self.files.len();
        for (name, info) in metadata.tensors() {
            if name.len() > MAX_TENSOR_NAME_BYTES {
                return Err(FormatError::TensorName {
                    path: path.to_owned(),
                    begin: name.chars().take(SHOWN_NAME_CHARS).collect(),
                    got: name.len(),
                    limit: MAX_TENSOR_NAME_BYTES,
                });
            }
            if let Some(other) = self.tensors.get(&name) {
                return Err(FormatError::TensorMisplaced {
                    path: path.to_owned(),
                    tensor: name,
                    expected: format!("only {}", self.files[other.file_idx].path.display()),
                });
            }
            let (begin, end) = info.data_offsets;
            let entry = Entry {
                file_idx,
                dtype: info.dtype,
                shape: info.shape.clone(),
                begin: data_begin + begin,
                end: data_begin + end,
            };
            self.tensors.insert(name, entry);
        }
        self.files.push(MappedFile { path: path.to_owned(), mapping });
        Ok(())
    }

    /// A tensor by its name in the file.
    ///
    /// # Errors
    /// When it is missing or its type is not a [`TensorDtype`].
    pub fn get(&self, tensor: &str) -> Result<WeightView<'_>, FormatError> {
        let Some(entry) = self.tensors.get(tensor) else {
            return Err(FormatError::TensorMissing {
                path: self.origin.clone(),
                tensor: tensor.to_owned(),
            });
        };
        let file = &self.files[entry.file_idx];
        let dtype = match entry.dtype {
            Dtype::F32 => TensorDtype::F32,
            Dtype::F16 => TensorDtype::F16,
            Dtype::BF16 => TensorDtype::Bf16,
            Dtype::F8_E4M3 => TensorDtype::F8E4M3,
            other => {
                return Err(FormatError::TensorDtype {
                    path: file.path.clone(),
                    tensor: tensor.to_owned(),
                    got: other.to_string(),
                });
            }
        };
        let bytes = &file.mapping.bytes()[entry.begin..entry.end];
        Ok(WeightView { dtype, shape: &entry.shape, bytes })
    }

    /// The file of a tensor that is there.
    pub(crate) fn path_of(&self, tensor: &str) -> &Path {
        &self.files[self.tensors[tensor].file_idx].path
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The bytes of all tensors together.
    #[must_use]
    pub fn n_bytes(&self) -> u64 {
        self.tensors.values().map(|entry| (entry.end - entry.begin) as u64).sum()
    }

    /// The mapped files, in the order of their names.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| file.path.as_path())
    }
}

fn exists(path: &Path) -> Result<bool, FormatError> {
    path.try_exists().map_err(FormatError::io("inspect", path))
}

/// Why a folder without safetensors has no weights: pickle files are named, for they are what people have.
fn no_weights(dir: &Path, names: [&'static str; 2]) -> Result<FormatError, FormatError> {
    let mut pickles = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(FormatError::io("list", dir))? {
        let path = entry.map_err(FormatError::io("list", dir))?.path();
        if is_pickle(&path) {
            pickles.push(path);
        }
    }
    Ok(match pickles.into_iter().min() {
        Some(path) => FormatError::Pickle { path },
        None => FormatError::NoWeights { dir: dir.to_owned(), names },
    })
}

/// Whether a name is one that weights in pickle form have.
pub(crate) fn is_pickle(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    matches!(extension, Some("bin" | "pt" | "pth" | "pkl" | "ckpt"))
}

/// Whether a text is a file name without a folder part, not hidden, and without control characters.
#[must_use]
pub fn is_plain_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && !name.starts_with('.')
        && !name.contains(|c: char| matches!(c, '/' | '\\') || c.is_control())
}

#[cfg(test)]
mod tests;
