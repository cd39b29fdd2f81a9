//! Models from one layout to another, tensor by tensor; a number changes only where the caller quantises or merges.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use crate::FormatError;
use crate::config::{DecoderConfig, WeightDtype};
use crate::dtype::TensorDtype;
use crate::gguf::GgufVocabulary;
use crate::gguf::write::{Description, GgufSource, write_gguf};
use crate::licence::licence_of;
use crate::model_dir::{GenerationConfig, ModelDir, ModelDirWriter, Numbers, write_companions};
use crate::names::{Layout, RowOrder, WeightName};
use crate::weights::{ModelWeights, StoredWeight, TensorData, TensorSource};

/// The weights of a directory that [`write_quantised`] makes.
const QUANTISED_FILE: &str = "model.gguf";

/// Rows of a matrix that are in memory at a time.
const ROWS_AT_A_TIME: usize = 256;

/// Rounds matrices that are written to blocks.
pub trait Quantiser {
    /// The type of a weight with rows of `n_in` numbers; `None` for one that keeps its numbers.
    fn dtype(&self, name: WeightName, n_in: usize) -> Option<TensorDtype>;

    /// Writes whole rows of finite numbers.
    fn encode(&self, dtype: TensorDtype, numbers: &[f32], out: &mut [u8]);
}

/// A file by its name and content.
pub type NamedFile = (String, Vec<u8>);

/// Writes a model as a Hugging Face directory, with more files, such as those of a tokenizer that a GGUF file holds. The new directory names the old one as its parent.
///
/// # Errors
/// When the place is taken, a setting or a type of tensor has no place in the layout, or a file cannot be read or written.
pub fn write_hugging_face(
    model: &ModelDir,
    out: &Path,
    more: &[NamedFile],
) -> Result<ModelDir, FormatError> {
    let writer = ModelDirWriter::begin(out)?;
    let sources = directory_sources(model, Layout::HuggingFace)?;
    writer.config(model.config())?;
    writer.weights(sources)?;
    write_companions(model, &writer, Numbers::Same, more)?;
    writer.commit()
}

/// Adds to rows of a weight: the weight, the first row, and the rows in f32.
pub type RowChange<'a> = dyn Fn(WeightName, usize, &mut [f32]) + 'a;

/// Writes a model as a Hugging Face directory with some of its matrices changed by an adapter; these are rounded to the model's
/// number type. The new directory names the old one as its parent, and the adapter.
///
/// # Errors
/// As [`write_hugging_face`].
pub fn write_adapted(
    model: &ModelDir,
    out: &Path,
    adapter: &str,
    changed: &BTreeSet<WeightName>,
    change: &RowChange<'_>,
    more: &[NamedFile],
) -> Result<ModelDir, FormatError> {
    let writer = ModelDirWriter::begin(out)?;
    let config = model.config();
    let mut sources = directory_sources(model, Layout::HuggingFace)?;
    for &name in changed {
        let weight = model.weights().weight(name, config)?;
        // One of those that numbers are rounded to, or there would be no source.
        let dtype = weight.dtype();
        let not_finite = move || model.weights().not_finite(name);
        let write = move |out: &mut dyn Write| {
            let mut first = 0;
            let n_in = weight.shape()[1];
            write_numbers(out, &weight, RowOrder::Same, dtype, |rows, out| {
                change(name, first, rows);
                first += rows.len() / n_in;
                dtype.write_f32(rows, out);
                dtype.read_f32(out, rows);
                if rows.iter().all(|number| number.is_finite()) {
                    Ok(())
                } else {
                    Err(not_finite())
                }
            })
        };
        let hf_name = name.hf_name();
        let source = sources.iter_mut().find(|source| source.name == hf_name);
        let source = source.expect("every weight of the model has a source");
        (source.dtype, source.data) = (dtype, stream(write));
    }
    writer.config(config)?;
    writer.weights(sources)?;
    write_companions(model, &writer, Numbers::Adapted(adapter), more)?;
    writer.commit()
}

/// Writes a model as a native Mistral directory. The new directory names the old one as its parent.
///
/// # Errors
/// As [`write_hugging_face`].
pub fn write_native(
    model: &ModelDir,
    out: &Path,
    more: &[NamedFile],
) -> Result<ModelDir, FormatError> {
    let writer = ModelDirWriter::begin(out)?;
    let sources = directory_sources(model, Layout::Native)?;
    writer.native_config(model.config())?;
    writer.native_weights(sources)?;
    write_companions(model, &writer, Numbers::Same, more)?;
    writer.commit()
}

/// Writes a model as a directory with one quantised GGUF file, and what else belongs to it. The new directory names the old one
/// as its parent.
///
/// # Errors
/// When the place is taken, the model is quantised already, a number is not finite, or a file cannot be read or written.
pub fn write_quantised(
    model: &ModelDir,
    out: &Path,
    quantiser: &dyn Quantiser,
    vocabulary: Option<&GgufVocabulary>,
) -> Result<ModelDir, FormatError> {
    let writer = ModelDirWriter::begin(out)?;
    let path = writer.path().join(QUANTISED_FILE);
    write_gguf_parts(model, &path, Some(quantiser), vocabulary)?;
    write_companions(model, &writer, Numbers::Rounded, &[])?;
    if model.generation().is_none() {
        // GGUF files have keys for two end tokens only.
        let (bos_id, eos_ids) = (model.config().bos_id, model.eos_ids());
        writer.generation_config(&GenerationConfig { bos_id, eos_ids, ..Default::default() })?;
    }
    writer.commit()
}

fn directory_sources(
    model: &ModelDir,
    layout: Layout,
) -> Result<Vec<TensorSource<'_>>, FormatError> {
    let (config, weights) = (model.config(), model.weights());
    let mut sources = Vec::new();
    for name in WeightName::all(config) {
        let weight = weights.weight(name, config)?;
        let dtype = weight.dtype();
        if !dtype.is_rounded_to() {
            return Err(weights.not_in_layout(name, dtype, layout));
        }
        let shape = weight.shape().to_vec();
        // Made twice, so that not all of them are in memory until they are written.
        let narrow = move || narrowed(&weight, name, config.dtype);
        let (dtype, data) = if narrow().is_some() {
            let write = move |out: &mut dyn Write| out.write_all(&narrow().unwrap_or_default());
            (config.dtype.into(), stream(write))
        } else {
            (dtype, stream(move |out| write_rows(out, &weight, name, layout, config)))
        };
        sources.push(TensorSource { name: name.name(layout), dtype, shape, data });
    }
    Ok(sources)
}

fn stream<'a>(write: impl FnOnce(&mut dyn Write) -> io::Result<()> + 'a) -> TensorData<'a> {
    TensorData::Stream(Box::new(write))
}

/// The numbers of a norm or a router, which GGUF files hold in f32, in the 16 bits that they had before, if they had.
fn narrowed(weight: &StoredWeight<'_>, name: WeightName, dtype: WeightDtype) -> Option<Vec<u8>> {
    let may_be_wide = weight.shape().len() == 1 || name.is_router();
    if !may_be_wide || weight.dtype() != TensorDtype::F32 || dtype == WeightDtype::F32 {
        return None;
    }
    let mut numbers = vec![0.0; weight.shape().iter().product()];
    weight.read_f32(&mut numbers);
    let narrow = TensorDtype::from(dtype);
    let mut bytes = vec![0; narrow.bytes_of(numbers.len())];
    narrow.write_f32(&numbers, &mut bytes);
    let mut widened = vec![0.0; numbers.len()];
    narrow.read_f32(&bytes, &mut widened);
    let is_exact = numbers.iter().zip(&widened).all(|(a, b)| a.to_bits() == b.to_bits());
    is_exact.then_some(bytes)
}

/// The rows of a weight in the order of a layout.
fn write_rows(
    out: &mut dyn Write,
    weight: &StoredWeight<'_>,
    name: WeightName,
    layout: Layout,
    config: &DecoderConfig,
) -> io::Result<()> {
    let n_rows = if let [n_rows, _] = *weight.shape() { n_rows } else { 1 };
    let order = layout.row_order(name, config.head_dim);
    for row in 0..n_rows {
        out.write_all(weight.row_bytes(order.row_of_file(row)))?;
    }
    Ok(())
}

/// Writes a model as one GGUF file, as llama.cpp's converter does: vectors and routers in f32, matrices in their own type, and
/// those of 8 bits with a scale, which GGUF does not have, in bf16.
///
/// # Errors
/// When the place is taken, a setting has no key, or a file cannot be read or written.
pub fn write_gguf_file(
    model: &ModelDir,
    out: &Path,
    vocabulary: Option<&GgufVocabulary>,
) -> Result<(), FormatError> {
    if out.symlink_metadata().is_ok() {
        return Err(FormatError::Exists { path: out.to_owned() });
    }
    if let Some(parent) = out.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::create_dir_all(parent).map_err(FormatError::io("create", parent))?;
    }
    write_gguf_parts(model, out, None, vocabulary)
}

fn write_gguf_parts(
    model: &ModelDir,
    out: &Path,
    quantiser: Option<&dyn Quantiser>,
    vocabulary: Option<&GgufVocabulary>,
) -> Result<(), FormatError> {
    let (config, weights) = (model.config(), model.weights());
    let names = WeightName::all(config).into_iter();
    let parts =
        names.map(|name| Ok((name.expert_idx(), gguf_part(weights, name, config, quantiser)?)));
    let parts = group_experts(parts.collect::<Result<_, _>>()?, config);
    let parts = parts.map_err(|setting| FormatError::NotInLayout {
        path: out.to_owned(),
        setting,
        layout: Layout::Gguf.title(),
    })?;
    let licence = licence_of(model)?.map(|licence| licence.name);
    write_gguf(out, &Description { config, vocabulary, licence: licence.as_deref() }, parts)
}

/// One weight on its own; experts are put together by [`group_experts`].
fn gguf_part<'a>(
    weights: &'a ModelWeights,
    name: WeightName,
    config: &'a DecoderConfig,
    quantiser: Option<&'a dyn Quantiser>,
) -> Result<GgufSource<'a>, FormatError> {
    let weight = weights.weight(name, config)?;
    let shape = weight.shape().to_vec();
    let quantised = quantiser.and_then(|q| Some((q, q.dtype(name, *shape.get(1)?)?)));
    let dtype = match weight.dtype() {
        _ if shape.len() == 1 || name.is_router() => TensorDtype::F32,
        TensorDtype::F8E4M3 => TensorDtype::Bf16,
        other => other,
    };
    let dtype = quantised.map_or(dtype, |(_, dtype)| dtype);
    if (quantised.is_some() || dtype != weight.dtype()) && !weight.dtype().is_plain() {
        return Err(weights.quantised(name, weight.dtype()));
    }
    let order = Layout::Gguf.row_order(name, config.head_dim);
    let data = match quantised {
        None if dtype == weight.dtype() => {
            stream(move |out| write_rows(out, &weight, name, Layout::Gguf, config))
        }
        None => stream(move |out| {
            write_numbers(out, &weight, order, dtype, |numbers, out| {
                dtype.write_f32(numbers, out);
                Ok(())
            })
        }),
        Some((quantiser, _)) => stream(move |out| {
            write_numbers(out, &weight, order, dtype, |numbers, out| {
                if numbers.iter().any(|number| !number.is_finite()) {
                    return Err(weights.not_finite(name));
                }
                quantiser.encode(dtype, numbers, out);
                Ok(())
            })
        }),
    };
    Ok(GgufSource { name: name.name(Layout::Gguf), dtype, shape, parts: vec![data] })
}

/// Puts the parts of experts that have one name together to one tensor with a new slowest axis.
fn group_experts<'a>(
    parts: Vec<(Option<usize>, GgufSource<'a>)>,
    config: &DecoderConfig,
) -> Result<Vec<GgufSource<'a>>, &'static str> {
    let mut grouped: Vec<GgufSource<'a>> = Vec::with_capacity(parts.len());
    let mut by_name = HashMap::new();
    for (expert_idx, mut part) in parts {
        let Some(expert_idx) = expert_idx else {
            grouped.push(part);
            continue;
        };
        let known = by_name.get(&part.name).map(|&i: &usize| &mut grouped[i]);
        match known {
            Some(whole) if whole.dtype != part.dtype => {
                return Err("experts of one layer in several number types");
            }
            Some(whole) => {
                assert_eq!(whole.parts.len(), expert_idx, "experts of {} in order", whole.name);
                whole.parts.append(&mut part.parts);
            }
            None => {
                let n_experts = config.experts.map_or(0, |experts| experts.n_experts);
                part.shape.insert(0, n_experts);
                by_name.insert(part.name.clone(), grouped.len());
                grouped.push(part);
            }
        }
    }
    Ok(grouped)
}

/// The numbers of a weight in another type, some rows at a time.
fn write_numbers(
    out: &mut dyn Write,
    weight: &StoredWeight<'_>,
    order: RowOrder,
    dtype: TensorDtype,
    mut encode: impl FnMut(&mut [f32], &mut [u8]) -> Result<(), FormatError>,
) -> io::Result<()> {
    let (n_rows, width) = match *weight.shape() {
        [n_rows, width] => (n_rows, width),
        _ => (1, weight.shape().iter().product()),
    };
    let (mut numbers, mut bytes) = (Vec::new(), Vec::new());
    for first in (0..n_rows).step_by(ROWS_AT_A_TIME) {
        let rows = first..n_rows.min(first + ROWS_AT_A_TIME);
        numbers.resize(rows.len() * width, 0.0);
        for (row, numbers) in rows.zip(numbers.chunks_exact_mut(width.max(1))) {
            let row = order.row_of_file(row);
            weight.read_rows(row..row + 1, numbers);
        }
        bytes.resize(dtype.bytes_of(numbers.len()), 0);
        encode(&mut numbers, &mut bytes).map_err(io::Error::from)?;
        out.write_all(&bytes)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
