//! Models from one layout to another, tensor by tensor; a number changes only where the caller quantises or merges.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use half::{bf16, f16};

use crate::FormatError;
use crate::config::native::PARAMS_FILE;
use crate::config::{DecoderConfig, WeightDtype};
use crate::gguf::GgufVocabulary;
use crate::gguf::write::{GgufSource, write_gguf};
use crate::licence::licence_of;
use crate::model_dir::{
    CONFIG_FILE, GenerationConfig, LINEAGE_FILE, Lineage, ModelDir, ModelDirWriter, write_lineage,
};
use crate::names::{LayerPart, Layout, RowOrder, WeightName};
use crate::weights::{
    INDEX_FILE, ModelWeights, NATIVE_INDEX_FILE, StoredWeight, TensorData, TensorDtype,
    TensorSource, is_plain_name,
};

/// Files that belong to a model beside its weights and configuration, and are copied as they are.
const COMPANIONS: [&str; 11] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "tekken.json",
    "LICENSE",
    "README.md",
    "MODEL_CARD.md",
];

/// The weights of a directory that [`write_quantised`] makes.
const QUANTISED_FILE: &str = "model.gguf";

/// Rows of a matrix that are in memory at a time.
const ROWS_AT_A_TIME: usize = 256;

/// Beginning of the names of SentencePiece models, which may end in a version, such as `tokenizer.model.v3`.
const SENTENCEPIECE: &str = "tokenizer.model";

/// Largest companion that is copied.
const MAX_COMPANION_BYTES: u64 = 1 << 30;

/// Rounds matrices that are written to blocks.
pub trait Quantiser {
    /// The type of a weight with rows of `n_in` numbers; `None` for one that keeps its numbers.
    fn dtype(&self, name: WeightName, n_in: usize) -> Option<TensorDtype>;

    /// Writes whole rows of finite numbers.
    fn encode(&self, dtype: TensorDtype, numbers: &[f32], out: &mut [u8]);
}

/// Writes a model as a Hugging Face directory. The new directory names the old one as its parent.
///
/// # Errors
/// When the place is taken, a setting or a type of tensor has no place in the layout, or a file cannot be read or written.
pub fn write_hugging_face(model: &ModelDir, out: &Path) -> Result<ModelDir, FormatError> {
    let writer = ModelDirWriter::begin(out)?;
    let sources = directory_sources(model, Layout::HuggingFace)?;
    writer.config(model.config())?;
    writer.weights(sources)?;
    write_companions(model, &writer)?;
    writer.commit()
}

/// Adds to rows of a weight: the weight, the first row, and the rows in f32.
pub type RowChange<'a> = dyn Fn(WeightName, usize, &mut [f32]) + 'a;

/// Writes a model as a Hugging Face directory with some of its matrices changed; these are rounded to the model's number type. The
/// new directory names the old one as its parent.
///
/// # Errors
/// As [`write_hugging_face`].
pub fn write_changed(
    model: &ModelDir,
    out: &Path,
    changed: &BTreeSet<WeightName>,
    change: &RowChange<'_>,
) -> Result<ModelDir, FormatError> {
    let writer = ModelDirWriter::begin(out)?;
    let config = model.config();
    let mut sources = directory_sources(model, Layout::HuggingFace)?;
    for &name in changed {
        let weight = model.weights().weight(name, config)?;
        let write = move |out: &mut dyn Write| {
            let mut first = 0;
            let n_in = weight.shape()[1];
            write_numbers(out, &weight, name, RowOrder::Same, config.dtype.into(), |rows, out| {
                change(name, first, rows);
                first += rows.len() / n_in;
                put_rounded(rows, out, config.dtype);
            })
        };
        let hf_name = name.hf_name();
        let source = sources.iter_mut().find(|source| source.name == hf_name);
        let source = source.expect("every weight of the model has a source");
        (source.dtype, source.data) = (config.dtype.into(), stream(write));
    }
    writer.config(config)?;
    writer.weights(sources)?;
    write_companions(model, &writer)?;
    writer.commit()
}

fn put_rounded(numbers: &[f32], out: &mut [u8], dtype: WeightDtype) {
    match dtype {
        WeightDtype::F32 => put(numbers, out, f32::to_le_bytes),
        WeightDtype::F16 => put(numbers, out, |number| f16::from_f32(number).to_le_bytes()),
        WeightDtype::Bf16 => put(numbers, out, |number| bf16::from_f32(number).to_le_bytes()),
    }
}

/// Writes a model as a native Mistral directory. The new directory names the old one as its parent.
///
/// # Errors
/// As [`write_hugging_face`].
pub fn write_native(model: &ModelDir, out: &Path) -> Result<ModelDir, FormatError> {
    let writer = ModelDirWriter::begin(out)?;
    let sources = directory_sources(model, Layout::Native)?;
    writer.native_config(model.config())?;
    writer.native_weights(sources)?;
    write_companions(model, &writer)?;
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
    write_companions(model, &writer)?;
    if model.generation().is_none() {
        // GGUF files have keys for two end tokens only.
        let (bos_id, eos_ids) = (model.config().bos_id, model.eos_ids());
        writer.generation_config(&GenerationConfig { bos_id, eos_ids, ..Default::default() })?;
    }
    writer.commit()
}

/// Copies what belongs to a model beside its weights, and writes where the new one comes from.
fn write_companions(model: &ModelDir, writer: &ModelDirWriter) -> Result<(), FormatError> {
    for name in companions(model.dir())? {
        let path = model.dir().join(&name);
        refuse_foreign(model.dir(), &path)?;
        let bytes = crate::durable::read_bounded(&path, MAX_COMPANION_BYTES)?;
        writer.file(&name, |writer| writer.write_all(&bytes))?;
    }
    let parent = model.dir().file_name().map(|name| name.to_string_lossy().into_owned());
    let lineage = model.lineage().cloned().unwrap_or_default();
    writer.lineage(&Lineage { parent, ..lineage })
}

impl ModelDir {
    /// The files of the model: weights, configuration, lineage, companions; of a folder with several layouts those of the one that
    /// is read, and of a GGUF file by itself that file.
    ///
    /// # Errors
    /// [`FormatError::ForeignLink`], and when the folder cannot be looked at.
    pub fn files(&self) -> Result<Vec<PathBuf>, FormatError> {
        let mut files: Vec<PathBuf> = self.weights().paths().map(Path::to_owned).collect();
        if self.dir().is_dir() {
            let of_layout: &[&str] = match self.weights().layout() {
                Layout::HuggingFace => &[CONFIG_FILE, INDEX_FILE],
                Layout::Native => &[PARAMS_FILE, NATIVE_INDEX_FILE],
                Layout::Gguf => &[],
            };
            let named = of_layout.iter().chain(&[LINEAGE_FILE]).map(|&name| name.to_owned());
            let named = named.chain(companions(self.dir())?).map(|name| self.dir().join(name));
            for path in named.filter(|path| path.is_file()) {
                refuse_foreign(self.dir(), &path)?;
                files.push(path);
            }
        }
        Ok(files)
    }
}

/// Refuses to copy a file that a link of the folder fetches from elsewhere: in a stranger's model, a `LICENSE` may lead to a
/// key of the user. Links within the folder are followed, and those of a hub cache, whose files lie in `../../blobs`.
fn refuse_foreign(dir: &Path, path: &Path) -> Result<(), FormatError> {
    let inspect = |path: &Path| path.canonicalize().map_err(FormatError::io("inspect", path));
    let (dir, target) = (inspect(dir)?, inspect(path)?);
    let snapshots = dir.parent().filter(|parent| parent.ends_with("snapshots"));
    let blobs = snapshots.and_then(Path::parent).map(|hub| hub.join("blobs"));
    if target.starts_with(&dir) || (blobs.is_some() && target.parent() == blobs.as_deref()) {
        return Ok(());
    }
    Err(FormatError::ForeignLink { path: path.to_owned(), target })
}

/// Copies a model into a new directory as it is, of a folder with several layouts only the one that is read.
///
/// # Errors
/// When the place is taken, or a file cannot be read or written; nothing is left behind.
pub fn copy_model(model: &ModelDir, out: &Path) -> Result<ModelDir, FormatError> {
    let writer = ModelDirWriter::begin(out)?;
    for path in model.files()? {
        // Written below, with the licence.
        if path.file_name().is_none_or(|name| name != LINEAGE_FILE) {
            writer.copy(&path)?;
        }
    }
    let licence = licence_of(model)?.map(|licence| licence.name);
    let lineage = model.lineage().cloned().unwrap_or_default();
    writer.lineage(&Lineage { licence: lineage.licence.clone().or(licence), ..lineage })?;
    writer.commit()
}

/// Moves the folder of a model to its place, and writes where it came from.
///
/// # Errors
/// When the place is taken, or a file cannot be written; the folder stays where it was.
pub fn move_model(model: ModelDir, source: String, out: &Path) -> Result<ModelDir, FormatError> {
    let dir = model.dir().to_owned();
    let licence = licence_of(&model)?.map(|licence| licence.name);
    write_lineage(&dir, &Lineage { source: Some(source), licence, ..Lineage::default() })?;
    // The files are mapped under their old names.
    drop(model);
    crate::durable::move_dir(&dir, out)?;
    ModelDir::open(out)
}

/// Whether a file of this name belongs to a model beside its weights and configuration.
pub(crate) fn is_companion(name: &str) -> bool {
    COMPANIONS.contains(&name) || name.starts_with(SENTENCEPIECE)
}

/// The names of the companions in a model's folder, sorted; none of a model that is a file by itself.
fn companions(dir: &Path) -> Result<Vec<String>, FormatError> {
    let mut names = Vec::new();
    if dir.is_dir() {
        for entry in fs::read_dir(dir).map_err(FormatError::io("list", dir))? {
            let entry = entry.map_err(FormatError::io("list", dir))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if is_companion(&name) && is_plain_name(&name) && entry.path().is_file() {
                names.push(name);
            }
        }
    }
    names.sort();
    Ok(names)
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
        if !dtype.is_plain() || dtype == TensorDtype::F8E4M3 {
            return Err(FormatError::NotInLayout {
                path: PathBuf::from(name.name(layout)),
                setting: "numbers that share a scale",
                layout: "safetensors",
            });
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
    let is_router = matches!(name, WeightName::Layer { part: LayerPart::Router, .. });
    let is_widened = weight.dtype() == TensorDtype::F32 && (weight.shape().len() == 1 || is_router);
    if !is_widened {
        return None;
    }
    let mut numbers = vec![0.0; weight.shape().iter().product()];
    weight.read_f32(&mut numbers);
    let exact = |&number: &f32| {
        let (wide, bytes) = match dtype {
            WeightDtype::F32 => return None,
            WeightDtype::F16 => {
                (f16::from_f32(number).to_f32(), f16::from_f32(number).to_le_bytes())
            }
            WeightDtype::Bf16 => {
                (bf16::from_f32(number).to_f32(), bf16::from_f32(number).to_le_bytes())
            }
        };
        (wide.to_bits() == number.to_bits()).then_some(bytes)
    };
    Some(numbers.iter().map(exact).collect::<Option<Vec<_>>>()?.concat())
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
    write_gguf(out, config, vocabulary, parts.map_err(|setting| not_in_gguf(out, setting))?)
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
    let is_router = matches!(name, WeightName::Layer { part: LayerPart::Router, .. });
    let quantised = quantiser.and_then(|q| Some((q, q.dtype(name, *shape.get(1)?)?)));
    let dtype = match weight.dtype() {
        _ if shape.len() == 1 || is_router => TensorDtype::F32,
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
            write_numbers(out, &weight, name, order, dtype, |numbers, out| match dtype {
                TensorDtype::F32 => put(numbers, out, f32::to_le_bytes),
                _ => put(numbers, out, |number| bf16::from_f32(number).to_le_bytes()),
            })
        }),
        Some((quantiser, _)) => stream(move |out| {
            write_numbers(out, &weight, name, order, dtype, |numbers, out| {
                quantiser.encode(dtype, numbers, out);
            })
        }),
    };
    Ok(GgufSource { name: name.name(Layout::Gguf), dtype, shape, parts: vec![data] })
}

fn not_in_gguf(path: &Path, setting: &'static str) -> FormatError {
    FormatError::NotInLayout { path: path.to_owned(), setting, layout: "GGUF" }
}

/// Puts the parts of experts that have one name together to one tensor with a new slowest axis.
fn group_experts<'a>(
    parts: Vec<(Option<usize>, GgufSource<'a>)>,
    config: &DecoderConfig,
) -> Result<Vec<GgufSource<'a>>, &'static str> {
    let mut grouped: Vec<GgufSource<'a>> = Vec::with_capacity(parts.len());
    for (expert_idx, mut part) in parts {
        let Some(expert_idx) = expert_idx else {
            grouped.push(part);
            continue;
        };
        match grouped.iter_mut().find(|other| other.name == part.name) {
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
    name: WeightName,
    order: RowOrder,
    dtype: TensorDtype,
    mut encode: impl FnMut(&mut [f32], &mut [u8]),
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
            if !dtype.is_plain() && numbers.iter().any(|number| !number.is_finite()) {
                let name = name.name(Layout::HuggingFace);
                let problem = format!("row {row} of `{name}` has a number that is not finite");
                return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
            }
        }
        bytes.resize(dtype.bytes_of(numbers.len()), 0);
        encode(&mut numbers, &mut bytes);
        out.write_all(&bytes)?;
    }
    Ok(())
}

fn put<const N: usize>(numbers: &[f32], out: &mut [u8], bytes_of: impl Fn(f32) -> [u8; N]) {
    for (number, out) in numbers.iter().zip(out.as_chunks_mut().0) {
        *out = bytes_of(*number);
    }
}

#[cfg(test)]
mod tests;
