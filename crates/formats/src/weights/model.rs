//! The weights of one decoder, in files of any layout.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::{WeightFiles, WeightView};
use crate::FormatError;
use crate::config::DecoderConfig;
use crate::dtype::TensorDtype;
use crate::gguf::GgufFile;
use crate::names::{Layout, ROPE_DIVISORS, RowOrder, WeightName};
use crate::os::{FileStamp, SharedBytes};

/// The weights of a decoder and how their files name them.
#[derive(Debug)]
pub struct ModelWeights {
    files: Files,
    naming: Naming,
}

#[derive(Debug)]
enum Files {
    Safetensors(WeightFiles),
    Gguf(GgufFile),
}

impl Files {
    fn has(&self, name: &str) -> bool {
        match self {
            Self::Safetensors(files) => files.tensors.contains_key(name),
            Self::Gguf(file) => file.tensors().contains_key(name),
        }
    }

    fn get(&self, name: &str) -> Result<WeightView<'_>, FormatError> {
        let file = match self {
            Self::Safetensors(files) => return files.get(name),
            Self::Gguf(file) => file,
        };
        let Some(tensor) = file.tensors().get(name) else {
            let (path, tensor) = (file.path().to_owned(), name.to_owned());
            return Err(FormatError::TensorMissing { path, tensor });
        };
        Ok(WeightView { dtype: tensor.dtype, shape: &tensor.shape, bytes: file.bytes(tensor) })
    }

    /// The file of a tensor that is there.
    fn path_of(&self, name: &str) -> &Path {
        match self {
            Self::Safetensors(files) => files.path_of(name),
            Self::Gguf(file) => file.path(),
        }
    }

    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        match self {
            Self::Safetensors(files) => Box::new(files.names()),
            Self::Gguf(file) => Box::new(file.tensors().keys().map(String::as_str)),
        }
    }
}

/// How files name the weights of a decoder that may be the part of something larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Naming {
    layout: Layout,
    prefix: Prefix,
}

/// Where the decoder stands in a model with other parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Prefix {
    None,
    /// `language_model.model.embed_tokens.weight`, `language_model.lm_head.weight`.
    Outer,
    /// `model.language_model.embed_tokens.weight`, `lm_head.weight`.
    Inner,
}

impl Naming {
    /// The naming under which the files have an embedding.
    fn find(files: &Files, layout: Layout) -> Self {
        let prefixes = [Prefix::None, Prefix::Outer, Prefix::Inner];
        let namings = prefixes.map(|prefix| Self { layout, prefix });
        let has_embedding = |naming: &Self| files.has(&naming.name(WeightName::Embedding));
        namings.into_iter().find(has_embedding).unwrap_or(namings[0])
    }

    fn name(self, weight: WeightName) -> String {
        let name = weight.name(self.layout);
        match self.prefix {
            Prefix::None => name,
            Prefix::Outer => format!("language_model.{name}"),
            Prefix::Inner => match name.strip_prefix("model.") {
                Some(rest) => format!("model.language_model.{rest}"),
                None => name,
            },
        }
    }

    /// Names of what stands beside a weight of 8 bits: its scale, and that of its input, which is not used.
    fn scales(self, name: &str) -> [String; 2] {
        let stem = name.strip_suffix("weight").unwrap_or(name);
        match self.layout {
            Layout::HuggingFace => ["weight_scale_inv", "activation_scale"],
            // GGUF files have no such types.
            Layout::Native | Layout::Gguf => ["qscale_weight", "qscale_act"],
        }
        .map(|scale| format!("{stem}{scale}"))
    }
}

/// Beginnings of the names of other parts, which are not read.
const OTHER_PARTS: [&str; 9] = [
    "vision_tower.",
    "multi_modal_projector.",
    "model.vision_tower.",
    "model.multi_modal_projector.",
    "vision_encoder.",
    "vision_language_adapter.",
    "patch_merger.",
    "pre_mm_projector_norm.",
    "mm_whisper_embeddings.",
];

/// What files hold beside a decoder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Tensors that the decoder does not use: buffers of old files, a stored copy of a tied head.
    pub unused: Vec<String>,
    /// Tensors of other parts, such as one for images.
    pub n_of_other_parts: usize,
}

/// One weight as files store it.
#[derive(Clone, Copy, Debug)]
pub struct StoredWeight<'a> {
    view: WeightView<'a>,
    /// Factor of every number.
    scale: f32,
    order: RowOrder,
}

impl StoredWeight<'_> {
    /// Number type in the file.
    #[must_use]
    pub fn dtype(&self) -> TensorDtype {
        self.view.dtype
    }

    /// Factor of every number, which only weights of 8 bits have.
    #[must_use]
    pub fn scale(&self) -> Option<f32> {
        (self.view.dtype == TensorDtype::F8E4M3).then_some(self.scale)
    }

    /// Axes, slowest first.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        self.view.shape
    }

    fn width(&self) -> usize {
        self.view.shape.last().copied().unwrap_or(1)
    }

    /// The bytes of one row, in the file's number type; a vector is one row.
    #[must_use]
    pub fn row_bytes(&self, row: usize) -> &[u8] {
        let row_len = self.view.dtype.bytes_of(self.width());
        let row = self.order.row_in_file(row);
        &self.view.bytes[row * row_len..][..row_len]
    }

    /// Writes some rows as f32 into `out`, row-major.
    ///
    /// # Panics
    /// When there are no such rows, `out` has another length, or the numbers are in blocks.
    pub fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        let width = self.width();
        assert_eq!(out.len(), rows.len() * width, "length of out against rows {rows:?}");
        for (row, out) in rows.zip(out.chunks_exact_mut(width.max(1))) {
            self.view.dtype.read_f32(self.row_bytes(row), out);
            if self.view.dtype == TensorDtype::F8E4M3 {
                out.iter_mut().for_each(|number| *number *= self.scale);
            }
        }
    }

    /// Writes all of the weight as f32 into `out`.
    ///
    /// # Panics
    /// When `out` has another length.
    pub fn read_f32(&self, out: &mut [f32]) {
        let n_rows = if let [n_rows, _] = *self.view.shape { n_rows } else { 1 };
        self.read_rows(0..n_rows, out);
    }
}

impl ModelWeights {
    /// The weights in a Hugging Face directory, or those of our own checkpoints.
    ///
    /// # Errors
    /// As [`WeightFiles::open`].
    pub fn open(dir: &Path) -> Result<Self, FormatError> {
        Ok(Self::new(WeightFiles::open(dir)?, Layout::HuggingFace))
    }

    /// The weights of a native Mistral folder: `consolidated.safetensors`, or its parts by their index.
    ///
    /// # Errors
    /// As [`WeightFiles::open`].
    pub(crate) fn open_native(dir: &Path) -> Result<Self, FormatError> {
        Ok(Self::new(WeightFiles::open_native(dir)?, Layout::Native))
    }

    /// The weights in files that are open already.
    #[must_use]
    pub fn new(files: WeightFiles, layout: Layout) -> Self {
        let files = Files::Safetensors(files);
        let naming = Naming::find(&files, layout);
        Self { files, naming }
    }

    /// The weights in a GGUF file.
    #[must_use]
    pub(crate) fn from_gguf(file: GgufFile) -> Self {
        let naming = Naming { layout: Layout::Gguf, prefix: Prefix::None };
        Self { files: Files::Gguf(file), naming }
    }

    /// How the files name weights.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.naming.layout
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.files.names()
    }

    /// A tensor by its name in the files.
    ///
    /// # Errors
    /// As [`WeightFiles::get`].
    pub fn tensor(&self, name: &str) -> Result<WeightView<'_>, FormatError> {
        self.files.get(name)
    }

    /// The bytes of all tensors together.
    #[must_use]
    pub fn n_bytes(&self) -> u64 {
        match &self.files {
            Files::Safetensors(files) => files.n_bytes(),
            Files::Gguf(file) => {
                file.tensors().values().map(|tensor| file.bytes(tensor).len() as u64).sum()
            }
        }
    }

    /// The files that hold the tensors.
    pub fn paths(&self) -> Box<dyn Iterator<Item = &Path> + '_> {
        match &self.files {
            Files::Safetensors(files) => Box::new(files.paths()),
            Files::Gguf(file) => Box::new(std::iter::once(file.path())),
        }
    }

    /// The GGUF file, when it is one.
    #[must_use]
    pub fn gguf(&self) -> Option<&GgufFile> {
        match &self.files {
            Files::Safetensors(_) => None,
            Files::Gguf(file) => Some(file),
        }
    }

    /// The name of a weight in these files.
    #[must_use]
    pub fn name(&self, weight: WeightName) -> String {
        self.naming.name(weight)
    }

    /// A weight of the model, with the shape that the configuration gives it.
    ///
    /// # Errors
    /// When it or its scale is missing, or its type or shape is another.
    pub fn weight(
        &self,
        weight: WeightName,
        config: &DecoderConfig,
    ) -> Result<StoredWeight<'_>, FormatError> {
        let (name, view) = self.view(weight, config)?;
        let expected = weight.shape(config);
        if view.shape != expected {
            return Err(FormatError::TensorShape {
                path: self.files.path_of(&name).to_owned(),
                tensor: name,
                got: view.shape.to_vec(),
                expected,
                axes: weight.axes(),
            });
        }
        let scale = match view.dtype {
            TensorDtype::F8E4M3 => self.scale(&name)?,
            _ => 1.0,
        };
        let order = self.naming.layout.row_order(weight, config.head_dim);
        Ok(StoredWeight { view, scale, order })
    }

    /// The tensor that holds a weight, or the part of it that does.
    fn view(
        &self,
        weight: WeightName,
        config: &DecoderConfig,
    ) -> Result<(String, WeightView<'_>), FormatError> {
        let name = self.naming.name(weight);
        let (Layout::Gguf, Some(expert_idx)) = (self.naming.layout, weight.expert_idx()) else {
            let view = self.files.get(&name)?;
            return Ok((name, view));
        };
        // The first files had a tensor for each expert.
        let own_name = name.replace("_exps.weight", &format!(".{expert_idx}.weight"));
        if self.files.has(&own_name) {
            let view = self.files.get(&own_name)?;
            return Ok((own_name, view));
        }
        let all = self.files.get(&name)?;
        let n_experts = config.experts.map_or(0, |experts| experts.n_experts);
        match all.shape {
            [n, one @ ..] if *n == n_experts && expert_idx < n_experts => {
                let len = all.bytes.len() / n_experts;
                let bytes = &all.bytes[expert_idx * len..][..len];
                Ok((name, WeightView { dtype: all.dtype, shape: one, bytes }))
            }
            other => Err(FormatError::TensorShape {
                path: self.files.path_of(&name).to_owned(),
                tensor: name,
                got: other.to_vec(),
                expected: [vec![n_experts], weight.shape(config)].concat(),
                axes: "(n_experts, out, in)",
            }),
        }
    }

    fn scale(&self, name: &str) -> Result<f32, FormatError> {
        let [scale_name, _] = self.naming.scales(name);
        let view = self.files.get(&scale_name)?;
        let n_elements: usize = view.shape.iter().product();
        if n_elements != 1 {
            return Err(FormatError::TensorShape {
                path: self.files.path_of(&scale_name).to_owned(),
                tensor: scale_name,
                got: view.shape.to_vec(),
                expected: Vec::new(),
                axes: "(one scale for the tensor)",
            });
        }
        let mut scale = [0.0];
        view.read_f32(&mut scale);
        Ok(scale[0])
    }

    /// The files, as they were opened.
    pub(crate) fn stamps(&self) -> Vec<(&Path, FileStamp)> {
        match &self.files {
            Files::Safetensors(files) => {
                files.files.iter().map(|file| (&*file.path, file.mapping.stamp())).collect()
            }
            Files::Gguf(file) => vec![(file.path(), file.mapping().stamp())],
        }
    }

    /// The bytes of a weight without a copy, where they lie in the file as they are computed with: rows in the order of
    /// [`StoredWeight::row_bytes`].
    #[must_use]
    pub fn shared_bytes(&self, weight: &StoredWeight<'_>) -> Option<SharedBytes> {
        if weight.order != RowOrder::Same {
            return None;
        }
        match &self.files {
            Files::Safetensors(files) => {
                let mut mappings = files.files.iter().map(|file| &file.mapping);
                mappings.find_map(|mapping| SharedBytes::of(mapping, weight.view.bytes))
            }
            Files::Gguf(file) => SharedBytes::of(file.mapping(), weight.view.bytes),
        }
    }

    /// Why a norm of a type cannot be used: it is in blocks.
    #[must_use]
    pub fn norm_in_blocks(&self, norm: WeightName, dtype: TensorDtype) -> FormatError {
        let (path, tensor) = self.place(norm);
        FormatError::NormInBlocks { path, tensor, got: dtype.name() }
    }

    /// Why a weight cannot be quantised: it has a number that is not finite.
    #[must_use]
    pub fn not_finite(&self, weight: WeightName) -> FormatError {
        let (path, tensor) = self.place(weight);
        FormatError::NotFinite { path, tensor }
    }

    /// Why a weight can be neither quantised nor trained: it is quantised already.
    #[must_use]
    pub fn quantised(&self, weight: WeightName, dtype: TensorDtype) -> FormatError {
        let (path, tensor) = self.place(weight);
        FormatError::Quantised { path, tensor, got: dtype.name() }
    }

    /// Why a weight of a type cannot be written in a layout: its numbers share a scale.
    pub(crate) fn not_in_layout(
        &self,
        weight: WeightName,
        dtype: TensorDtype,
        layout: Layout,
    ) -> FormatError {
        let (path, tensor) = self.place(weight);
        let (got, layout) = (dtype.name(), layout.title());
        FormatError::TensorNotInLayout { path, tensor, got, layout }
    }

    /// File and name of a weight that is there.
    fn place(&self, weight: WeightName) -> (PathBuf, String) {
        let tensor = self.naming.name(weight);
        (self.files.path_of(&tensor).to_owned(), tensor)
    }

    /// Checks that every weight of the model is there with its shape, and says what else the files hold: the caller reports it.
    ///
    /// # Errors
    /// As [`ModelWeights::weight`], for the first weight in file order that is not right.
    pub fn check(&self, config: &DecoderConfig) -> Result<Leftovers, FormatError> {
        let mut used = BTreeSet::from([ROPE_DIVISORS.to_owned()]);
        for weight in WeightName::all(config) {
            let (name, _) = self.view(weight, config)?;
            if self.weight(weight, config)?.scale().is_some() {
                used.extend(self.naming.scales(&name));
            }
            used.insert(name);
        }
        let mut leftovers = Leftovers::default();
        for name in self.files.names().filter(|&name| !used.contains(name)) {
            if OTHER_PARTS.iter().any(|part| name.starts_with(part)) {
                leftovers.n_of_other_parts += 1;
            } else {
                leftovers.unused.push(name.to_owned());
            }
        }
        Ok(leftovers)
    }
}
