//! Packing the quantised weights of a decoder, into memory or into one piece of bytes that is kept.
//!
//! A decoder of bf16 multiplies blocks in the order of [`kernels::packed_blocks`]. Packing gigabytes takes seconds, so a program that
//! starts often keeps the packed bytes ([`PackedPlan::write`]), and a decoder is loaded from them ([`Decoder::load_packed`]).

use std::collections::HashMap;
use std::fmt::Write as _;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use formats::weights::StoredWeight;
use formats::{FormatError, ModelWeights, TensorDtype, WeightName};
use kernels::blocks::{self, BlockKind, BlockMatrix};
use kernels::{Buffer, packed_blocks};
use tensor::{BlockBytes, BlockOrder, BlockRows, DType, Device, Linear, Passes};

use crate::block_kind::block_kind;
use crate::config::ModelConfig;
use crate::quantise::Quantisation;

/// Rows that are packed at a time; whole panels.
const ROWS_AT_A_TIME: usize = 1024;

/// What the bytes of each weight begin at a multiple of.
const ALIGNMENT: usize = 64;

/// What becomes of a matrix in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Panels of operands.
    Panels,
    /// Blocks, row by row.
    Rows(BlockKind),
    /// Packed blocks.
    Packed(BlockKind),
    /// 8-bit floats, row by row.
    F8,
}

impl Form {
    /// The form of a weight whose operands are of `dtype`.
    pub(crate) fn of(
        name: WeightName,
        weight: &StoredWeight<'_>,
        dtype: DType,
        quantisation: Option<Quantisation>,
    ) -> Self {
        let stored = weight.dtype();
        let kind = if stored.is_plain() {
            match quantisation.and_then(|kinds| kinds.kind(name, weight.shape()[1])) {
                // Half precision has three more bits than bf16, and half the bytes of f32.
                None if stored == TensorDtype::F16 => Some(BlockKind::F16),
                kind => kind,
            }
        } else {
            Some(block_kind(stored))
        };
        match kind {
            None => Self::Panels,
            Some(kind) if dtype == DType::Bf16 && packed_blocks::is_packed(kind) => {
                Self::Packed(kind)
            }
            Some(kind) => Self::Rows(kind),
        }
    }

    /// What becomes of it on a device: a GPU multiplies blocks and, in a model of bf16, 8-bit floats as files hold them.
    pub(crate) fn on(self, device: &Device, weight: &StoredWeight<'_>, dtype: DType) -> Self {
        if let Device::Cpu(_) = device {
            return self;
        }
        match self {
            Self::Packed(kind) => Self::Rows(kind),
            Self::Panels if weight.scale().is_some() && dtype == DType::Bf16 => Self::F8,
            form => form,
        }
    }

    /// Bytes of a matrix in this form.
    pub(crate) fn n_bytes(self, dtype: DType, [n_out, n_in]: [usize; 2]) -> usize {
        match self {
            Self::Panels => Linear::bytes_for(dtype, n_out, n_in, Passes::Forward),
            Self::Rows(kind) => n_out * kind.bytes_of(n_in),
            Self::Packed(kind) => packed_blocks::packed_len(kind, [n_out, n_in]),
            Self::F8 => n_out * n_in,
        }
    }
}

/// Packed bytes that a decoder is loaded from, and keeps.
pub type PackedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Where the packed blocks of each weight stand in one piece of bytes.
#[derive(Clone, Debug)]
pub struct PackedPlan {
    pub(crate) dtype: DType,
    pub(crate) quantisation: Option<Quantisation>,
    /// In the order of their places.
    entries: Vec<Entry>,
    by_name: HashMap<WeightName, usize>,
    n_bytes: usize,
}

#[derive(Clone, Debug)]
struct Entry {
    name: WeightName,
    kind: BlockKind,
    shape: [usize; 2],
    range: Range<usize>,
}

impl PackedPlan {
    /// The plan of a decoder whose operands are of `dtype`, quantised where that is asked for.
    ///
    /// # Errors
    /// When a weight is missing, or has another shape or type than it should.
    pub fn new(
        config: &ModelConfig,
        dtype: DType,
        weights: &ModelWeights,
        quantisation: Option<Quantisation>,
    ) -> Result<Self, FormatError> {
        let (mut entries, mut n_bytes) = (Vec::new(), 0_usize);
        for name in WeightName::all(config) {
            let weight = weights.weight(name, config)?;
            let &[n_out, n_in] = weight.shape() else { continue };
            let form = Form::of(name, &weight, dtype, quantisation);
            let Form::Packed(kind) = form else { continue };
            let shape = [n_out, n_in];
            let start = n_bytes.next_multiple_of(ALIGNMENT);
            n_bytes = start + form.n_bytes(dtype, shape);
            entries.push(Entry { name, kind, shape, range: start..n_bytes });
        }
        let by_name = entries.iter().enumerate().map(|(i, entry)| (entry.name, i)).collect();
        Ok(Self { dtype, quantisation, entries, by_name, n_bytes })
    }

    /// Bytes of all weights together.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        self.n_bytes
    }

    /// The versions of what reads and packs: others may write other bytes. Reading has no number of its own, but that of the program.
    #[must_use]
    pub fn version() -> String {
        let (program, blocks) = (env!("CARGO_PKG_VERSION"), blocks::ENCODING_VERSION);
        format!("program {program}, blocks {blocks}, order {}", packed_blocks::ORDER_VERSION)
    }

    /// What tells apart the packed bytes of one set of files: kind, shape and place of each weight, and what the order of rows depends on.
    #[must_use]
    pub fn description(&self, config: &ModelConfig) -> String {
        let mut text = format!("heads of {}\n", config.head_dim);
        for Entry { name, kind, shape: [n_out, n_in], range } in &self.entries {
            writeln!(text, "{} {name:?} {kind:?} [{n_out}, {n_in}]", range.start)
                .expect("a text takes what is written");
        }
        text
    }

    /// Packs all weights and gives their bytes to `sink`, piece by piece.
    ///
    /// # Errors
    /// Those of `sink`, and [`FormatError::NotFinite`] for a number that cannot be quantised.
    pub fn write<E: From<FormatError>>(
        &self,
        device: &Device,
        config: &ModelConfig,
        weights: &ModelWeights,
        mut sink: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut end = 0;
        for entry in &self.entries {
            let name = entry.name;
            sink(&[0; ALIGNMENT][..entry.range.start - end])?;
            let packing = Packing { device, weights, name, weight: weights.weight(name, config)? };
            packing.pack(entry.kind, &mut sink)?;
            end = entry.range.end;
        }
        Ok(())
    }

    /// The packed rows of a weight among bytes that [`PackedPlan::write`] gave.
    ///
    /// # Panics
    /// When the bytes are fewer, or the plan has no such weight.
    pub(crate) fn rows(&self, name: WeightName, bytes: &PackedBytes) -> BlockRows {
        let idx = self.by_name.get(&name).expect("a weight that is packed is in the plan");
        let entry = &self.entries[*idx];
        let part = Part { bytes: Arc::clone(bytes), range: entry.range.clone() };
        let shared = BlockBytes::Shared(Arc::new(part));
        BlockRows::new(entry.kind, entry.shape[0], BlockOrder::Packed, shared)
    }
}

/// A range of shared bytes.
struct Part {
    bytes: PackedBytes,
    range: Range<usize>,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &(*self.bytes).as_ref()[self.range.clone()]
    }
}

/// One weight on its way into blocks.
pub(crate) struct Packing<'a> {
    pub(crate) device: &'a Device,
    pub(crate) weights: &'a ModelWeights,
    pub(crate) name: WeightName,
    pub(crate) weight: StoredWeight<'a>,
}

impl Packing<'_> {
    /// The weight in packed blocks.
    pub(crate) fn packed(&self, kind: BlockKind) -> Result<BlockRows, FormatError> {
        let shape = [self.weight.shape()[0], self.weight.shape()[1]];
        let mut bytes = Buffer::zeroed(packed_blocks::packed_len(kind, shape));
        let mut end = 0;
        self.pack(kind, &mut |packed: &[u8]| {
            bytes[end..end + packed.len()].copy_from_slice(packed);
            end += packed.len();
            Ok::<_, FormatError>(())
        })?;
        Ok(BlockRows::new(kind, shape[0], BlockOrder::Packed, BlockBytes::Owned(bytes)))
    }

    fn pack<E: From<FormatError>>(
        &self,
        kind: BlockKind,
        sink: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let [n_out, n_in] = [self.weight.shape()[0], self.weight.shape()[1]];
        let max_rows = ROWS_AT_A_TIME.min(n_out);
        let mut blocks = Buffer::zeroed(max_rows * kind.bytes_of(n_in));
        let mut packed = Buffer::zeroed(packed_blocks::packed_len(kind, [max_rows, n_in]));
        for first in (0..n_out).step_by(ROWS_AT_A_TIME) {
            let shape = [ROWS_AT_A_TIME.min(n_out - first), n_in];
            let blocks = &mut blocks[..shape[0] * kind.bytes_of(n_in)];
            self.fill(kind, first, blocks)?;
            let packed = &mut packed[..packed_blocks::packed_len(kind, shape)];
            packed_blocks::pack(
                self.device.compute(),
                BlockMatrix::new(kind, blocks, shape),
                packed,
            );
            sink(packed)?;
        }
        Ok(())
    }

    /// The weight in blocks, row by row: where it has this kind in the file, those of the mapped file, or a copy if their order is
    /// another.
    pub(crate) fn rows(&self, kind: BlockKind) -> Result<BlockRows, FormatError> {
        let (n_out, n_in) = (self.weight.shape()[0], self.weight.shape()[1]);
        let bytes = match self.weights.shared_bytes(&self.weight) {
            Some(bytes) if self.has(kind) => BlockBytes::Shared(Arc::new(bytes)),
            _ => {
                let mut bytes = Buffer::zeroed(n_out * kind.bytes_of(n_in));
                self.fill(kind, 0, &mut bytes)?;
                BlockBytes::Owned(bytes)
            }
        };
        Ok(BlockRows::new(kind, n_out, BlockOrder::Rows, bytes))
    }

    /// The weight in 8-bit floats, those of the mapped file, or a copy if their order is another.
    ///
    /// # Panics
    /// When the file has it in another type.
    pub(crate) fn f8_rows(&self) -> BlockRows {
        let (n_out, n_in) = (self.weight.shape()[0], self.weight.shape()[1]);
        let scale = self.weight.scale().expect("8-bit floats have a scale");
        let bytes = match self.weights.shared_bytes(&self.weight) {
            Some(bytes) => BlockBytes::Shared(Arc::new(bytes)),
            None => {
                let mut bytes = Buffer::zeroed(n_out * n_in);
                for (row, out) in bytes.chunks_exact_mut(n_in.max(1)).enumerate() {
                    out.copy_from_slice(self.weight.row_bytes(row));
                }
                BlockBytes::Owned(bytes)
            }
        };
        BlockRows::of_f8(scale, n_out, bytes)
    }

    /// Whether the file has the weight in this kind.
    fn has(&self, kind: BlockKind) -> bool {
        self.weight.dtype() != TensorDtype::F8E4M3 && block_kind(self.weight.dtype()) == kind
    }

    /// The blocks of whole rows from `first` on.
    fn fill(&self, kind: BlockKind, first: usize, blocks: &mut [u8]) -> Result<(), FormatError> {
        const TASK_ROWS: usize = 16;
        let (n_in, compute) = (self.weight.shape()[1], self.device.compute());
        let row_len = kind.bytes_of(n_in).max(1);
        let is_finite = AtomicBool::new(true);
        compute.pool().run_chunks(blocks, TASK_ROWS * row_len, |task_idx, blocks, _| {
            let rows = blocks.chunks_exact_mut(row_len).enumerate();
            for (row, out) in rows.map(|(i, out)| (first + TASK_ROWS * task_idx + i, out)) {
                if self.has(kind) {
                    out.copy_from_slice(self.weight.row_bytes(row));
                    continue;
                }
                let mut numbers = vec![0.0; n_in];
                self.weight.read_rows(row..row + 1, &mut numbers);
                if numbers.iter().any(|number| !number.is_finite()) {
                    is_finite.store(false, Ordering::Relaxed);
                }
                kind.encode(compute, &numbers, out);
            }
        });
        match is_finite.into_inner() {
            true => Ok(()),
            false => Err(self.weights.not_finite(self.name)),
        }
    }
}
