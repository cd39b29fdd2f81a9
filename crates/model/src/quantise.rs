//! Which kind of blocks each weight gets when a model is quantised, at load or into a file.

use std::fmt;
use std::str::FromStr;

use formats::convert::Quantiser;
use formats::{LayerPart, TensorDtype, WeightName};
use kernels::blocks::{BlockKind, encode_rows};
use tensor::Device;

use crate::block_kind::{block_kind, tensor_dtype};

/// How far the matrices of a model are rounded. Norms, and the routers of experts, keep their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(non_camel_case_types, reason = "the names of the field")]
pub enum Quantisation {
    /// 8.5 bits a number: as good as the original.
    Q8_0,
    /// 4.5 bits a number; the embedding and the head, which every token passes, in `Q6_K` of 6.6 bits.
    Q4_K,
}

impl Quantisation {
    /// Every kind.
    pub const ALL: [Self; 2] = [Self::Q8_0, Self::Q4_K];

    /// The name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q8_0 => "q8_0",
            Self::Q4_K => "q4_k",
        }
    }

    /// The kind of a weight with rows of `n_in` numbers; `None` for those that keep their numbers. Rows that are not whole
    /// blocks of 256 become `Q8_0`, and those that are not whole blocks of 32 stay as they are.
    pub(crate) fn kind(self, name: WeightName, n_in: usize) -> Option<BlockKind> {
        let kinds: &[BlockKind] = match (self, name) {
            (_, name) if name.is_router() => &[],
            (_, WeightName::FinalNorm) => &[],
            (_, WeightName::Layer { part: LayerPart::AttentionNorm | LayerPart::FfnNorm, .. }) => {
                &[]
            }
            (Self::Q8_0, _) => &[BlockKind::Q8_0],
            (Self::Q4_K, WeightName::Embedding | WeightName::Head) => {
                &[BlockKind::Q6_K, BlockKind::Q8_0]
            }
            (Self::Q4_K, WeightName::Layer { .. }) => &[BlockKind::Q4_K, BlockKind::Q8_0],
        };
        kinds.iter().copied().find(|kind| n_in.is_multiple_of(kind.block_len()))
    }
}

impl fmt::Display for Quantisation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Quantisation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = Self::ALL.map(Self::name).join(" or ");
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| format!("expected {names}"))
    }
}

/// Quantises what is written to a file, on all threads of a device.
#[derive(Clone, Copy, Debug)]
pub struct FileQuantiser<'a> {
    /// How far.
    pub quantisation: Quantisation,
    /// Where it is computed.
    pub device: &'a Device,
}

impl Quantiser for FileQuantiser<'_> {
    fn dtype(&self, name: WeightName, n_in: usize) -> Option<TensorDtype> {
        self.quantisation.kind(name, n_in).map(tensor_dtype)
    }

    fn encode(&self, dtype: TensorDtype, numbers: &[f32], out: &mut [u8]) {
        encode_rows(self.device.compute(), block_kind(dtype), numbers, out);
    }
}
