//! The weights of one decoder, in files of any layout.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;

use super::{TensorDtype, WeightFiles, WeightView};
use crate::FormatError;
use crate::config::DecoderConfig;
use crate::names::{Layout, WeightName};

/// The weights of a decoder and how their files name them.
#[derive(Debug)]
pub struct ModelWeights {
    files: WeightFiles,
    naming: Naming,
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
    fn find(files: &WeightFiles, layout: Layout) -> Self {
        let prefixes = [Prefix::None, Prefix::Outer, Prefix::Inner];
        let namings = prefixes.map(|prefix| Self { layout, prefix });
        let has_embedding =
            |naming: &Self| files.tensors.contains_key(&naming.name(WeightName::Embedding));
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
            Layout::Native => ["qscale_weight", "qscale_act"],
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

/// The order of rows in a file against that of Hugging Face, which the program computes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RowOrder {
    Same,
    /// Rows `2 i` and `2 i + 1` of a head are a rotated pair.
    Pairs {
        head_dim: usize,
    },
}

impl RowOrder {
    /// The row of the file that holds a row.
    fn row_in_file(self, row: usize) -> usize {
        match self {
            Self::Same => row,
            Self::Pairs { head_dim } => {
                let (head, i) = (row / head_dim, row % head_dim);
                let half = head_dim / 2;
                head * head_dim + if i < half { 2 * i } else { 2 * (i - half) + 1 }
            }
        }
    }
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
        let row_len = self.width() * self.view.dtype.n_bytes();
        let row = self.order.row_in_file(row);
        &self.view.bytes[row * row_len..][..row_len]
    }

    /// Writes some rows as f32 into `out`, row-major.
    ///
    /// # Panics
    /// When there are no such rows, or `out` has another length.
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
    pub fn open_native(dir: &Path) -> Result<Self, FormatError> {
        Ok(Self::new(WeightFiles::open_native(dir)?, Layout::Native))
    }

    /// The weights in files that are open already.
    #[must_use]
    pub fn new(files: WeightFiles, layout: Layout) -> Self {
        let naming = Naming::find(&files, layout);
        Self { files, naming }
    }

    /// How the files name weights.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.naming.layout
    }

    /// The files.
    #[must_use]
    pub fn files(&self) -> &WeightFiles {
        &self.files
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
        let name = self.naming.name(weight);
        let view = self.files.get(&name)?;
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
        let order = match self.naming.layout {
            Layout::Native if weight.is_rotated() => RowOrder::Pairs { head_dim: config.head_dim },
            _ => RowOrder::Same,
        };
        Ok(StoredWeight { view, scale, order })
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

    /// Checks that every weight of the model is there with its shape, and says what else the files hold: the caller reports it.
    ///
    /// # Errors
    /// As [`ModelWeights::weight`], for the first weight in file order that is not right.
    pub fn check(&self, config: &DecoderConfig) -> Result<Leftovers, FormatError> {
        let mut used = BTreeSet::new();
        for weight in WeightName::all(config) {
            let name = self.naming.name(weight);
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
