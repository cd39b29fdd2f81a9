//! Writing safetensors files tensor by tensor.

use std::io::{self, Write};
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::FormatError;
use crate::dtype::TensorDtype;
use crate::durable::write_atomically;

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
/// The metadata is `format: pt`, without which some readers refuse the file. Memory: the header and one small buffer.
///
/// # Errors
/// When a name is given twice, when a tensor gives other than `shape * dtype` bytes, or when writing fails; nothing is
/// left behind.
pub fn write_safetensors<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = TensorSource<'a>>,
) -> Result<(), FormatError> {
    let (header, tensors) = plan(path, tensors)?;
    write_atomically(path, |writer| write_all(writer, path, &header, tensors))
}

/// Writes the bytes of a safetensors file to `writer`, as [`write_safetensors`]; `path` is for messages.
///
/// # Errors
/// As [`write_safetensors`]; what was written until then stays in `writer`.
pub fn write_safetensors_to<'a>(
    writer: &mut dyn Write,
    path: &Path,
    tensors: impl IntoIterator<Item = TensorSource<'a>>,
) -> Result<(), FormatError> {
    let (header, tensors) = plan(path, tensors)?;
    write_all(writer, path, &header, tensors).map_err(FormatError::io("write", path))
}

/// A tensor and the bytes it must give.
type Planned<'a> = (TensorSource<'a>, u64);

/// Orders the tensors and makes the header with its length prefix, padded to a multiple of 8.
fn plan<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = TensorSource<'a>>,
) -> Result<(Vec<u8>, Vec<Planned<'a>>), FormatError> {
    let mut tensors: Vec<TensorSource<'a>> = tensors.into_iter().collect();
    tensors.sort_by_key(|tensor| std::cmp::Reverse(tensor.dtype.block_bytes()));
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
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

fn check_length(path: &Path, tensor: &TensorSource<'_>, expected: u64) -> Result<(), FormatError> {
    let width = tensor.dtype.block_bytes();
    let got = match &tensor.data {
        TensorData::Bytes(bytes) => bytes.len(),
        TensorData::F32(_) if !tensor.dtype.is_rounded_to() => 0,
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
    path: &Path,
    header: &[u8],
    tensors: Vec<Planned<'_>>,
) -> io::Result<()> {
    writer.write_all(header)?;
    for (tensor, expected) in tensors {
        let mut counted = Counted::new(&mut *writer, expected);
        let result = write_tensor(&mut counted, tensor.dtype, tensor.data);
        counted.check(result, path, &tensor.name)?;
    }
    Ok(())
}

fn write_tensor(
    writer: &mut dyn Write,
    dtype: TensorDtype,
    data: TensorData<'_>,
) -> io::Result<()> {
    match data {
        TensorData::Bytes(bytes) => writer.write_all(bytes),
        TensorData::Stream(write) => write(writer),
        TensorData::F32(numbers) => {
            let mut buffer = vec![0; dtype.bytes_of(CHUNK_ELEMENTS.min(numbers.len()))];
            for chunk in numbers.chunks(CHUNK_ELEMENTS) {
                let bytes = &mut buffer[..dtype.bytes_of(chunk.len())];
                dtype.write_f32(chunk, bytes);
                writer.write_all(bytes)?;
            }
            Ok(())
        }
    }
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

    /// What came of writing a tensor, which is [`FormatError::TensorBytes`] when it gave another number of bytes than it has. Too
    /// many end in an error of this writer, too few in none.
    pub(crate) fn check(self, result: io::Result<()>, path: &Path, tensor: &str) -> io::Result<()> {
        let (got, expected) = (self.n_written, self.limit);
        if got <= expected && (result.is_err() || got == expected) {
            return result;
        }
        let (path, tensor) = (path.to_owned(), tensor.to_owned());
        Err(FormatError::TensorBytes { path, tensor, got, expected }.into())
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
