//! The types of stored tensors and the kernels' names of them.

use formats::TensorDtype;
use kernels::blocks::BlockKind;

/// The types whose numbers are defined by their bytes alone, and their kinds.
const KINDS: [(TensorDtype, BlockKind); 15] = [
    (TensorDtype::F32, BlockKind::F32),
    (TensorDtype::F16, BlockKind::F16),
    (TensorDtype::Bf16, BlockKind::Bf16),
    (TensorDtype::Q4_0, BlockKind::Q4_0),
    (TensorDtype::Q4_1, BlockKind::Q4_1),
    (TensorDtype::Q5_0, BlockKind::Q5_0),
    (TensorDtype::Q5_1, BlockKind::Q5_1),
    (TensorDtype::Q8_0, BlockKind::Q8_0),
    (TensorDtype::Q2_K, BlockKind::Q2_K),
    (TensorDtype::Q3_K, BlockKind::Q3_K),
    (TensorDtype::Q4_K, BlockKind::Q4_K),
    (TensorDtype::Q5_K, BlockKind::Q5_K),
    (TensorDtype::Q6_K, BlockKind::Q6_K),
    (TensorDtype::IQ4_NL, BlockKind::IQ4_NL),
    (TensorDtype::IQ4_XS, BlockKind::IQ4_XS),
];

/// The kind of a type.
///
/// # Panics
/// For `F8_E4M3`, whose numbers have a scale beside them.
pub(crate) fn block_kind(dtype: TensorDtype) -> BlockKind {
    let row = KINDS.iter().find(|(of_row, _)| *of_row == dtype);
    row.unwrap_or_else(|| panic!("{} has a scale beside the tensor", dtype.name())).1
}

/// The type of a kind.
pub(crate) fn tensor_dtype(kind: BlockKind) -> TensorDtype {
    let row = KINDS.iter().find(|(_, of_row)| *of_row == kind);
    row.expect("every kind is in the table").0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_kernels_agree_on_the_size_of_blocks() {
        for kind in BlockKind::ALL {
            let dtype = tensor_dtype(kind);
            assert_eq!(block_kind(dtype), kind);
            // `Bf16` is `BF16` in files; the others have one name.
            assert_eq!(dtype.name(), format!("{kind:?}").replace("Bf", "BF"));
            assert_eq!(dtype.block_len(), kind.block_len(), "numbers of {kind:?}");
            assert_eq!(dtype.block_bytes(), kind.block_bytes(), "bytes of {kind:?}");
            for n in [0, 256, 1024] {
                assert_eq!(dtype.bytes_of(n), kind.bytes_of(n), "{n} numbers of {kind:?}");
            }
        }
    }
}
