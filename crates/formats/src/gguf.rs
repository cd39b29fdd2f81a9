//! GGUF files: metadata, and tensors that may be quantised.
//!
//! Version 2 and 3, little endian. The file is mapped; what is read of its header is bounded by its size, and every range is
//! checked before it is used. Layout: ggml `docs/gguf.md`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::FormatError;
use crate::dtype::TensorDtype;
use crate::os::Mapping;

mod config;
mod cursor;
mod made;
mod metadata;
mod vocabulary;
pub(crate) mod write;

use cursor::Cursor;
pub use made::write_made;
use metadata::Metadata;
pub use metadata::{Array, Value};
pub use vocabulary::{GgufEncoding, GgufTokenKind, GgufVocabulary};

/// Most tensors and most entries of metadata; real files have some thousands.
const MAX_COUNT: u64 = 1 << 17;
/// Most axes of a tensor.
const MAX_AXES: u32 = 4;
/// Key of the name of the weights' licence.
pub(crate) const LICENCE: &str = "general.license";
/// Alignment of tensors where the file names none.
const DEFAULT_ALIGNMENT: u64 = 32;

/// A GGUF file, mapped, its header checked.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    mapping: Arc<Mapping>,
    metadata: Metadata,
    tensors: BTreeMap<String, GgufTensor>,
}

/// Where a tensor lies and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufTensor {
    /// Number type, or kind of blocks.
    pub dtype: TensorDtype,
    /// Axes, slowest first (the file has them fastest first).
    pub shape: Vec<usize>,
    begin: usize,
    end: usize,
}

impl GgufFile {
    /// Maps a file and reads its header.
    ///
    /// # Errors
    /// When it is no GGUF file of a known version, is truncated, or its header contradicts itself or the file's size.
    pub fn open(path: &Path) -> Result<Self, FormatError> {
        let mapping = Arc::new(Mapping::open(path)?);
        let (metadata, tensors) = read_header(path, mapping.bytes())?;
        Ok(Self { path: path.to_owned(), mapping, metadata, tensors })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The value of an entry, if it is there.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Value<'_>> {
        self.metadata.get(self.mapping.bytes(), key)
    }

    /// The tensors, by name.
    #[must_use]
    pub fn tensors(&self) -> &BTreeMap<String, GgufTensor> {
        &self.tensors
    }

    pub(crate) fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// The bytes of a tensor of this file.
    #[must_use]
    pub fn bytes(&self, tensor: &GgufTensor) -> &[u8] {
        &self.mapping.bytes()[tensor.begin..tensor.end]
    }
}

/// A value in an error message, shortened.
fn describe(value: Value<'_>) -> String {
    match value {
        // A character has at most four bytes.
        Value::Text(text) => {
            String::from_utf8_lossy(&text[..text.len().min(320)]).chars().take(80).collect()
        }
        Value::Unsigned(number) => number.to_string(),
        Value::Signed(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Bool(flag) => flag.to_string(),
        Value::Array(array) => format!("{array:?}"),
    }
}

fn read_header(
    path: &Path,
    bytes: &[u8],
) -> Result<(Metadata, BTreeMap<String, GgufTensor>), FormatError> {
    let mut cursor = Cursor::new(path, bytes);
    let magic = cursor.take(4, "magic")?;
    if magic != b"GGUF" {
        return Err(cursor.bad("magic", format!("{magic:02x?}"), "GGUF".to_owned()));
    }
    let version = cursor.u32("version")?;
    if !(2..=3).contains(&version) {
        // A file of the other byte order has its version in the high byte.
        return Err(cursor.bad("version", version, "2 or 3, little endian".to_owned()));
    }
    let n_tensors = cursor.count("tensor_count", MAX_COUNT)?;
    let n_entries = cursor.count("metadata_kv_count", MAX_COUNT)?;
    let metadata = Metadata::read(&mut cursor, n_entries)?;
    let alignment = match metadata.get(bytes, "general.alignment") {
        None => DEFAULT_ALIGNMENT,
        Some(Value::Unsigned(alignment))
            if alignment.is_power_of_two() && (8..=1 << 20).contains(&alignment) =>
        {
            alignment
        }
        Some(other) => {
            let expected = "a power of two from 8 to 1048576".to_owned();
            return Err(cursor.bad("general.alignment", describe(other), expected));
        }
    };
    let mut tensors = BTreeMap::new();
    let mut offsets = Vec::new();
    for _ in 0..n_tensors {
        let (name, tensor, offset) = read_tensor(&mut cursor)?;
        if !offset.is_multiple_of(alignment) {
            let expected = format!("a multiple of {alignment}");
            return Err(cursor.bad(&format!("offset of `{name}`"), offset, expected));
        }
        offsets.push((name.clone(), offset));
        if tensors.insert(name.clone(), tensor).is_some() {
            return Err(cursor.bad("tensor name", name, "each name once".to_owned()));
        }
    }
    let data_begin = (cursor.position() as u64).next_multiple_of(alignment);
    for (name, offset) in offsets {
        let tensor = tensors.get_mut(&name).expect("every name was put in above");
        place(&cursor, &name, tensor, data_begin.saturating_add(offset))?;
    }
    check_apart(&cursor, &tensors)?;
    Ok((metadata, tensors))
}

/// Bytes that several tensors share would let a small file become a large model.
fn check_apart(
    cursor: &Cursor<'_>,
    tensors: &BTreeMap<String, GgufTensor>,
) -> Result<(), FormatError> {
    let mut placed: Vec<_> =
        tensors.iter().filter(|(_, tensor)| tensor.begin < tensor.end).collect();
    placed.sort_by_key(|(_, tensor)| tensor.begin);
    match placed.array_windows().find(|[(_, one), (_, next)]| next.begin < one.end) {
        None => Ok(()),
        Some([(one, _), (next, tensor)]) => {
            let got = format!("bytes from {} on, which `{one}` has", tensor.begin);
            Err(cursor.bad(&format!("tensor `{next}`"), got, "bytes of its own".to_owned()))
        }
    }
}

/// Name, type and shape; the range is filled in once the header's end is known.
fn read_tensor(cursor: &mut Cursor<'_>) -> Result<(String, GgufTensor, u64), FormatError> {
    let name = cursor.text("tensor name")?.to_owned();
    let n_axes = cursor.u32("n_dimensions")?;
    if !(1..=MAX_AXES).contains(&n_axes) {
        let field = format!("n_dimensions of `{name}`");
        return Err(cursor.bad(&field, n_axes, format!("1 to {MAX_AXES}")));
    }
    let mut shape = Vec::with_capacity(n_axes as usize);
    for _ in 0..n_axes {
        shape.push(cursor.count("dimension", 1 << 40)?);
    }
    shape.reverse();
    let kind = cursor.u32("tensor type")?;
    let Some(dtype) = TensorDtype::from_ggml(kind) else {
        let got = format!("ggml type {kind}");
        return Err(FormatError::TensorDtype { path: cursor.path().to_owned(), tensor: name, got });
    };
    let offset = cursor.u64("tensor offset")?;
    Ok((name, GgufTensor { dtype, shape, begin: 0, end: 0 }, offset))
}

fn place(
    cursor: &Cursor<'_>,
    name: &str,
    tensor: &mut GgufTensor,
    begin: u64,
) -> Result<(), FormatError> {
    let width = tensor.shape.last().copied().unwrap_or(1);
    let block_len = tensor.dtype.block_len();
    if !width.is_multiple_of(block_len) {
        let field = format!("width of `{name}`");
        let expected = format!("whole blocks of {block_len} ({})", tensor.dtype.name());
        return Err(cursor.bad(&field, width, expected));
    }
    let n_elements = tensor.shape.iter().try_fold(1_u64, |n, &axis| n.checked_mul(axis as u64));
    let n_bytes = n_elements
        .and_then(|n| (n / block_len as u64).checked_mul(tensor.dtype.block_bytes() as u64));
    let end = n_bytes.and_then(|n_bytes| begin.checked_add(n_bytes));
    let len = cursor.len() as u64;
    match end.filter(|&end| end <= len) {
        Some(end) => {
            (tensor.begin, tensor.end) = (begin as usize, end as usize);
            Ok(())
        }
        None => {
            let got = format!("{:?} of {} from byte {begin} on", tensor.shape, tensor.dtype.name());
            Err(cursor.bad(&format!("tensor `{name}`"), got, format!("a range within {len} bytes")))
        }
    }
}

#[cfg(test)]
mod tests;
