//! Token embedding and its gradient.

use crate::gpu::{Argument, Gpu, Grid};
use crate::memory::{Matrix, MatrixMut, Memory, NumberType};
use crate::ops::elementwise::pieces_grid;
use crate::ops::row_numbers::RowNumbers;

/// Threads of a block of the gradient, which has 32 lanes of columns (`embedding.cu`).
const BACKWARD_THREADS: usize = 256;
const LANES: usize = 32;

/// [`kernels::embedding::gather`] from a table `[vocab, hidden]`, row-major; `out` is f32.
///
/// # Panics
/// When the shapes do not fit, or an id is not in the vocabulary.
pub fn gather(gpu: &Gpu, table: Matrix<'_>, token_ids: &RowNumbers, out: MatrixMut<'_>) {
    let (n_rows, width) = (token_ids.n(), table.width());
    assert_eq!([out.n_rows(), out.width()], [n_rows, width], "out is [tokens, hidden]");
    assert_eq!(out.number_type(), NumberType::F32, "out");
    let (end, vocab_size) = (token_ids.end(), table.n_rows());
    assert!(end <= vocab_size, "token id {} of a vocabulary of {vocab_size}", end - 1);
    if out.n_values() == 0 {
        return;
    }
    let n_units = if width.is_multiple_of(4) { width / 4 } else { width };
    let arguments = [
        Argument::Pointer(table.address()),
        token_ids.argument(),
        Argument::Pointer(out.address()),
        Argument::count(n_rows),
        Argument::count(width),
    ];
    let kernel = format!("gather_{}", table.number_type().suffix());
    gpu.launch_early(&kernel, pieces_grid(n_rows, n_units), &arguments);
}

/// The rows of a batch by their token, on the device: what [`gather_backward`] walks over.
#[derive(Debug)]
pub struct TokenGroups {
    /// Grouped by token, ascending within a group.
    rows: Memory,
    /// Where each group starts, and where the last ends.
    starts: Memory,
    tokens: Memory,
    n_rows: usize,
    n_groups: usize,
    /// One more than the largest token.
    end: usize,
}

impl TokenGroups {
    /// Groups the rows of a batch with these tokens.
    ///
    /// # Panics
    /// When there are 2^31 rows.
    #[must_use]
    pub fn new(gpu: &Gpu, token_ids: &[u32]) -> Self {
        assert!(i32::try_from(token_ids.len()).is_ok(), "{} rows", token_ids.len());
        let mut pairs: Vec<(u32, u32)> = token_ids.iter().copied().zip(0..).collect();
        pairs.sort_unstable();
        let (mut starts, mut tokens) = (Vec::new(), Vec::new());
        for (&(token, _), start) in pairs.iter().zip(0_u32..) {
            if tokens.last() != Some(&token) {
                tokens.push(token);
                starts.push(start);
            }
        }
        starts.push(pairs.len() as u32);
        let rows: Vec<u32> = pairs.iter().map(|&(_, row)| row).collect();
        Self {
            rows: gpu.upload(&rows),
            starts: gpu.upload(&starts),
            tokens: gpu.upload(&tokens),
            n_rows: rows.len(),
            n_groups: tokens.len(),
            end: tokens.last().map_or(0, |&token| token as usize + 1),
        }
    }
}

/// [`kernels::embedding::gather_backward`]; all are f32. Up to 16 rows of a token are added in ascending order; more are cut into
/// runs of 16 rows, whose sums are added in a fixed order.
///
/// # Panics
/// When the shapes do not fit, or an id is not in the vocabulary.
pub fn gather_backward(gpu: &Gpu, d_out: Matrix<'_>, groups: &TokenGroups, d_table: MatrixMut<'_>) {
    let width = d_table.width();
    assert_eq!(
        [d_out.n_rows(), d_out.width()],
        [groups.n_rows, width],
        "d_out is [tokens, hidden]"
    );
    assert_eq!([d_out.number_type(), d_table.number_type()], [NumberType::F32; 2]);
    let (end, vocab_size) = (groups.end, d_table.n_rows());
    assert!(end <= vocab_size, "token id {} of a vocabulary of {vocab_size}", end - 1);
    if d_out.n_values() == 0 {
        return;
    }
    let per_block = if width.is_multiple_of(4) { 4 * LANES } else { LANES };
    let blocks = [groups.n_groups, width.div_ceil(per_block), 1];
    gpu.launch(
        "gather_backward",
        Grid { blocks, threads: BACKWARD_THREADS, shared_bytes: 0 },
        &[
            Argument::Pointer(d_out.address()),
            Argument::Pointer(groups.rows.address()),
            Argument::Pointer(groups.starts.address()),
            Argument::Pointer(groups.tokens.address()),
            Argument::Pointer(d_table.address()),
            Argument::count(width),
        ],
    );
}
