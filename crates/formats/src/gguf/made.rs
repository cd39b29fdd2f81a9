//! GGUF files of numbers that are made while they are written.

use std::path::Path;

use super::write::{Description, GgufSource, write_gguf};
use crate::FormatError;
use crate::config::DecoderConfig;
use crate::dtype::TensorDtype;
use crate::names::{Layout, WeightName};
use crate::weights::{StreamTensor, TensorData};

/// Writes a model without a vocabulary, atomically, tensor by tensor in the order of [`WeightName::all`]: `weight` gives the type of
/// each and what writes its bytes, rows in the order of GGUF files. Memory: what those writers take.
///
/// # Errors
/// When a setting has no key, a weight gives other than `shape * dtype` bytes, or writing fails; nothing is left behind.
///
/// # Panics
/// For a model with experts, or rows that are not whole blocks.
pub fn write_made<'a>(
    path: &Path,
    config: &DecoderConfig,
    weight: impl Fn(WeightName) -> (TensorDtype, StreamTensor<'a>),
) -> Result<(), FormatError> {
    assert_eq!(config.experts, None, "experts share a tensor");
    let sources = WeightName::all(config).into_iter().map(|name| {
        let (dtype, write) = weight(name);
        let (shape, parts) = (name.shape(config), vec![TensorData::Stream(write)]);
        GgufSource { name: name.name(Layout::Gguf), dtype, shape, parts }
    });
    write_gguf(path, &Description { config, vocabulary: None, licence: None }, sources.collect())
}
