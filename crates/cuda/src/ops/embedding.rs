//! Token embedding and its gradient.

use crate::gpu::{Argument, Gpu, Grid};
use crate::memory::{Matrix, MatrixMut, Memory, NumberType};
use crate::ops::elementwise::pieces_grid;
use crate::ops::row_numbers::RowNumbers;

/// Warps of a block of the gradient, which has 32 lanes of columns (`embedding.cu`).
const BACKWARD_WARPS: usize = 8;
const LANES: usize = 32;
/// Rows of a token that one warp adds. More are a block's work.
const RUN: usize = 16;

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
    /// Grouped by token, ascending within a group; groups of more than [`RUN`] rows first.
    rows: Memory,
    /// Where each group starts, and where the last ends.
    starts: Memory,
    tokens: Memory,
    n_rows: usize,
    n_groups: usize,
    /// Groups of more than [`RUN`] rows.
    n_long: usize,
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
        let groups = || pairs.chunk_by(|(a, _), (b, _)| a == b);
        let is_long = |group: &&[(u32, u32)]| group.len() > RUN;
        let (mut rows, mut starts, mut tokens) =
            (Vec::with_capacity(pairs.len()), vec![0], Vec::new());
        for group in groups().filter(is_long).chain(groups().filter(|group| !is_long(group))) {
            rows.extend(group.iter().map(|&(_, row)| row));
            starts.push(rows.len() as u32);
            tokens.push(group[0].0);
        }
        Self {
            rows: gpu.upload(&rows),
            starts: gpu.upload(&starts),
            tokens: gpu.upload(&tokens),
            n_rows: rows.len(),
            n_groups: tokens.len(),
            n_long: groups().filter(is_long).count(),
            end: pairs.last().map_or(0, |&(token, _)| token as usize + 1),
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
    let n_short = groups.n_groups - groups.n_long;
    let n_blocks = groups.n_long + n_short.div_ceil(BACKWARD_WARPS);
    let blocks = [n_blocks, width.div_ceil(per_block), 1];
    gpu.launch(
        "gather_backward",
        Grid { blocks, threads: BACKWARD_WARPS * 32, shared_bytes: 0 },
        &[
            Argument::Pointer(d_out.address()),
            Argument::Pointer(groups.rows.address()),
            Argument::Pointer(groups.starts.address()),
            Argument::Pointer(groups.tokens.address()),
            Argument::Pointer(d_table.address()),
            Argument::count(groups.n_long),
            Argument::count(groups.n_groups),
            Argument::count(width),
        ],
    );
}
