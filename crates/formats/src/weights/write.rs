//! Writing safetensors files tensor by tensor.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use half::{bf16, f16};
use serde_json::{Map, Value, json};

use crate::FormatError;
use crate::durable::write_atomically;
use crate::weights::TensorDtype;

/// Numbers converted to bytes at a time.
const CHUNK_ELEMENTS: usize = 1 << 14;

/// A tensor to be written.
pub struct TensorSource<'a> {
    /// Name in the file.
    pub name: String,
    /// Number type in the file.
    pub dtype: TensorDtype,
    /// Axes, slowest first.
    pub shape: Vec<usize>,
    /// The numbers.
    pub data: TensorData<'a>,
}

/// Writes a tensor's little-endian bytes; called once.
pub type StreamTensor<'a> = Box<dyn FnOnce(&mut dyn Write) -> io::Result<()> + 'a>;

/// Where a tensor's numbers come from.
pub enum TensorData<'a> {
    /// Little-endian bytes of the file's type.
    Bytes(&'a [u8]),
    /// f32 numbers; rounded to nearest even when the file's type has 16 bits. Types that need scales take bytes only.
    F32(&'a [f32]),
    /// Bytes made while they are written, so that no second copy of a large tensor is needed.
    Stream(StreamTensor<'a>),
}

impl std::fmt::Debug for TensorSource<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = formatter.debug_struct("TensorSource");
        shown.field("name", &self.name).field("dtype", &self.dtype).field("shape", &self.shape);
        shown.finish_non_exhaustive()
    }
}

/// Writes a safetensors file atomically. The same tensors give the same bytes.
///
/// Tensors come in the order of the size of their numbers, the largest first, then in the order given, so that every tensor is aligned to its number type.
/// The metadata gets `format: pt`, without which some readers refuse the file. Memory: the header and one small buffer.
///
/// # Errors
/// When a name is given twice, when a tensor gives other than `shape * dtype` bytes, or when writing fails; nothing is
/// left behind.
pub fn write_safetensors<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = TensorSource<'a>>,
    metadata: &BTreeMap<String, String>,
) -> Result<(), FormatError> {
    let (header, tensors) = plan(path, tensors, metadata)?;
    let mut wrong = None;
    let result = write_atomically(path, |writer| write_all(writer, &header, tensors, &mut wrong));
    explain(path, result, wrong)
}

/// Writes the bytes of a safetensors file to `writer`, as [`write_safetensors`]; `path` is for messages.
///
/// # Errors
/// As [`write_safetensors`]; what was written until then stays in `writer`.
pub fn write_safetensors_to<'a>(
    writer: &mut dyn Write,
    path: &Path,
    tensors: impl IntoIterator<Item = TensorSource<'a>>,
    metadata: &BTreeMap<String, String>,
) -> Result<(), FormatError> {
    let (header, tensors) = plan(path, tensors, metadata)?;
    let mut wrong = None;
    let result = write_all(writer, &header, tensors, &mut wrong);
    explain(path, result.map_err(FormatError::io("write", path)), wrong)
}

/// A tensor that gave the wrong number of bytes.
struct WrongLength {
    tensor: String,
    got: u64,
    expected: u64,
}

fn explain(
    path: &Path,
    result: Result<(), FormatError>,
    wrong: Option<WrongLength>,
) -> Result<(), FormatError> {
    match wrong {
        None => result,
        Some(WrongLength { tensor, got, expected }) => {
            Err(FormatError::TensorBytes { path: path.to_owned(), tensor, got, expected })
        }
    }
}

/// A tensor and the bytes it must give.
type Planned<'a> = (TensorSource<'a>, u64);

/// Orders the tensors and makes the header with its length prefix, padded to a multiple of 8.
fn plan<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = TensorSource<'a>>,
    metadata: &BTreeMap<String, String>,
) -> Result<(Vec<u8>, Vec<Planned<'a>>), FormatError> {
    let mut tensors: Vec<TensorSource<'a>> = tensors.into_iter().collect();
    tensors.sort_by_key(|tensor| std::cmp::Reverse(tensor.dtype.block_bytes()));
    let mut header = Map::new();
    let mut all_metadata = metadata.clone();
    all_metadata.entry("format".to_owned()).or_insert_with(|| "pt".to_owned());
    header.insert("__metadata__".to_owned(), json!(all_metadata));
    let mut offset = 0u64;
    let mut planned = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        assert!(tensor.dtype.is_plain(), "{} in a safetensors file", tensor.dtype.name());
        let expected = n_bytes(&tensor);
        check_length(path, &tensor, expected)?;
        let end = offset.saturating_add(expected);
        let info = json!({
            "dtype": tensor.dtype.name(),
            "shape": tensor.shape,
            "data_offsets": [offset, end],
        });
        if header.insert(tensor.name.clone(), info).is_some() {
            return Err(FormatError::TensorTwice { path: path.to_owned(), tensor: tensor.name });
        }
        offset = end;
        planned.push((tensor, expected));
    }
    let mut text = Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut text);
    Ok((bytes, planned))
}

fn n_bytes(tensor: &TensorSource<'_>) -> u64 {
    // A shape that overflows gives a number that no data has.
    let width = tensor.dtype.block_bytes() as u64;
    tensor.shape.iter().fold(width, |n, &axis| n.saturating_mul(axis as u64))
}

/// Whether f32 numbers are written in a type by rounding alone.
fn is_rounded_to(dtype: TensorDtype) -> bool {
    matches!(dtype, TensorDtype::F32 | TensorDtype::F16 | TensorDtype::Bf16)
}

fn check_length(path: &Path, tensor: &TensorSource<'_>, expected: u64) -> Result<(), FormatError> {
    let width = tensor.dtype.block_bytes();
    let got = match &tensor.data {
        TensorData::Bytes(bytes) => bytes.len(),
        TensorData::F32(_) if !is_rounded_to(tensor.dtype) => 0,
        TensorData::F32(numbers) => numbers.len() * width,
        TensorData::Stream(_) => return Ok(()),
    } as u64;
    if got == expected {
        return Ok(());
    }
    let tensor = tensor.name.clone();
    Err(FormatError::TensorBytes { path: path.to_owned(), tensor, got, expected })
}

fn write_all(
    writer: &mut dyn Write,
    header: &[u8],
    tensors: Vec<Planned<'_>>,
    wrong: &mut Option<WrongLength>,
) -> io::Result<()> {
    writer.write_all(header)?;
    for (tensor, expected) in tensors {
        let mut counted = Counted::new(&mut *writer, expected);
        let result = write_tensor(&mut counted, tensor.dtype, tensor.data);
        if let Some(got) = counted.wrong_length(&result) {
            *wrong = Some(WrongLength { tensor: tensor.name, got, expected });
            return Err(io::ErrorKind::InvalidData.into());
        }
        result?;
    }
    Ok(())
}

fn write_tensor(
    writer: &mut dyn Write,
    dtype: TensorDtype,
    data: TensorData<'_>,
) -> io::Result<()> {
    match (data, dtype) {
        (TensorData::Bytes(bytes), _) => writer.write_all(bytes),
        (TensorData::Stream(write), _) => write(writer),
        (TensorData::F32(numbers), TensorDtype::F32) => {
            write_numbers(writer, numbers, |number| number.to_le_bytes())
        }
        (TensorData::F32(numbers), TensorDtype::F16) => {
            write_numbers(writer, numbers, |number| f16::from_f32(number).to_le_bytes())
        }
        (TensorData::F32(numbers), TensorDtype::Bf16) => {
            write_numbers(writer, numbers, |number| bf16::from_f32(number).to_le_bytes())
        }
        (TensorData::F32(_), other) => {
            unreachable!("`plan` refused numbers for {}", other.name())
        }
    }
}

fn write_numbers<T: Copy, const N: usize>(
    writer: &mut dyn Write,
    numbers: &[T],
    to_bytes: impl Fn(T) -> [u8; N],
) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(N * CHUNK_ELEMENTS.min(numbers.len()));
    for chunk in numbers.chunks(CHUNK_ELEMENTS) {
        buffer.clear();
        for &number in chunk {
            buffer.extend_from_slice(&to_bytes(number));
        }
        writer.write_all(&buffer)?;
    }
    Ok(())
}

/// Counts, and refuses what would run over into the next tensor.
pub(crate) struct Counted<'a> {
    inner: &'a mut dyn Write,
    n_written: u64,
    limit: u64,
}

impl<'a> Counted<'a> {
    /// For a tensor of `limit` bytes.
    pub(crate) fn new(inner: &'a mut dyn Write, limit: u64) -> Self {
        Self { inner, n_written: 0, limit }
    }

    /// The bytes that were given, when they are not as many as the tensor has. Too many end in an error of this writer, too few in
    /// none.
    pub(crate) fn wrong_length(&self, result: &io::Result<()>) -> Option<u64> {
        let is_wrong =
            self.n_written > self.limit || (result.is_ok() && self.n_written != self.limit);
        is_wrong.then_some(self.n_written)
    }
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let after = self.n_written + bytes.len() as u64;
        if after > self.limit {
            self.n_written = after;
            return Err(io::ErrorKind::InvalidData.into());
        }
        let n = self.inner.write(bytes)?;
        self.n_written += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
