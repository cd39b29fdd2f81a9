//! Token embedding and its gradient.

use crate::blocks::BlockMatrix;
use crate::compute::Compute;
use crate::operand::Operand;
use crate::packed_blocks::PackedBlocks;
use crate::panels::{PANEL_WIDTH, padded_k, panel_index, panels_len};
use crate::pool::RowsOut;

/// Rows of one task.
const TASK_ROWS: usize = 16;
/// Columns of one task of the gradient.
const TASK_COLUMNS: usize = 32;

/// Embedding: `out[t, i] = table[token_ids[t], i]`.
///
/// Shapes: token_ids `[tokens]`; table panels of `[vocab, hidden]`; out `[tokens, hidden]`. Overwrites.
///
/// # Panics
/// When a slice does not fit the shape, or an id is not in the vocabulary.
pub fn gather<T: Operand>(
    compute: &Compute,
    token_ids: &[u32],
    table: &[T],
    [vocab_size, hidden]: [usize; 2],
    out: &mut [f32],
) {
    assert_eq!(
        table.len(),
        panels_len::<T>(vocab_size, hidden),
        "table is panels of [vocab, hidden]"
    );
    let k_padded = padded_k::<T>(hidden);
    gather_rows(compute, token_ids, [vocab_size, hidden], out, |row, out| {
        let groups = table[panel_index::<T>(row, 0, k_padded)..]
            .chunks(PANEL_WIDTH * T::GROUP)
            .map(|line| &line[..T::GROUP]);
        for (out, group) in out.chunks_mut(T::GROUP).zip(groups) {
            out.iter_mut().zip(group).for_each(|(out, value)| *out = value.to_f32());
        }
    });
}

/// As [`gather`], from a table of quantised rows.
///
/// # Panics
/// When a slice does not fit the shape, or an id is not in the vocabulary.
pub fn gather_blocks(
    compute: &Compute,
    token_ids: &[u32],
    table: BlockMatrix<'_>,
    out: &mut [f32],
) {
    gather_rows(compute, token_ids, table.shape(), out, |row, out| {
        table.read_row(compute, row, out);
    });
}

/// As [`gather`], from a table of packed blocks.
///
/// # Panics
/// When a slice does not fit the shape, or an id is not in the vocabulary.
pub fn gather_packed(
    compute: &Compute,
    token_ids: &[u32],
    table: PackedBlocks<'_>,
    out: &mut [f32],
) {
    gather_rows(compute, token_ids, table.shape(), out, |row, out| table.read_row(row, out));
}

fn gather_rows(
    compute: &Compute,
    token_ids: &[u32],
    [vocab_size, hidden]: [usize; 2],
    out: &mut [f32],
    read_row: impl Fn(usize, &mut [f32]) + Sync,
) {
    let outputs = (RowsOut::new(out, hidden), RowsOut::<u8>::none(), RowsOut::<u8>::none());
    compute.pool().run_rows(token_ids.len(), TASK_ROWS, outputs, |row, _, (out, ..)| {
        for (out, &token_id) in out.chunks_exact_mut(hidden).zip(&token_ids[row..]) {
            let token_id = token_id as usize;
            assert!(token_id < vocab_size, "token id {token_id} of a vocabulary of {vocab_size}");
            read_row(token_id, out);
        }
    });
}

/// Gradient of [`gather`]: `d_table[token_ids[t], i] += d_out[t, i]`, tokens in ascending order.
///
/// Shapes: token_ids `[tokens]`; d_out `[tokens, hidden]`; d_table `[vocab, hidden]`, row-major. Accumulates.
///
/// # Panics
/// When a slice does not fit the shape, or an id is not in the vocabulary.
#[expect(unsafe_code, reason = "tasks write disjoint columns of one matrix")]
pub fn gather_backward(
    compute: &Compute,
    token_ids: &[u32],
    d_out: &[f32],
    hidden: usize,
    d_table: &mut [f32],
) {
    assert_eq!(d_out.len(), token_ids.len() * hidden, "d_out is [tokens, hidden]");
    let vocab_size = d_table.len() / hidden.max(1);
    let parts = crate::pool::SliceParts::new(d_table);
    compute.pool().run(hidden.div_ceil(TASK_COLUMNS), |task_idx, _| {
        let column = task_idx * TASK_COLUMNS;
        let n_columns = TASK_COLUMNS.min(hidden - column);
        for (token, &token_id) in token_ids.iter().enumerate() {
            let token_id = token_id as usize;
            assert!(token_id < vocab_size, "token id {token_id} of a vocabulary of {vocab_size}");
            // SAFETY: tasks hold different columns, and one row at a time.
            let d_row = unsafe { parts.range(token_id * hidden + column, n_columns) };
            let d_out = &d_out[token * hidden + column..][..n_columns];
            d_row.iter_mut().zip(d_out).for_each(|(sum, d)| *sum += d);
        }
    });
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::blocks::BlockKind;
    use crate::panels::{Panels, Source};
    use crate::test_support::{LARGE, bits, check_special_values, check_threads, computes, normal};
    use testkit::close::Tolerance;

    const IDS: [u32; 5] = [3, 0, 16, 3, 9];

    #[test]
    fn special_values_stay_with_their_token() {
        let (vocab, hidden) = (17, 42);
        let reaches = |_, place: usize, output: usize| {
            IDS[output / hidden] as usize == place / hidden && place % hidden == output % hidden
        };
        let run = |compute: &Compute, [table]: &[Vec<f32>; 1]| {
            let source = Source::rows_of_n(table, hidden);
            let panels = Panels::<f32>::packed(compute, source, vocab, hidden);
            let mut out = vec![7.0; IDS.len() * hidden];
            gather(compute, &IDS, panels.values(), [vocab, hidden], &mut out);
            let bytes: Vec<u8> = table.iter().flat_map(|x| x.to_le_bytes()).collect();
            let blocks = BlockMatrix::new(BlockKind::F32, &bytes, [vocab, hidden]);
            let mut of_blocks = vec![7.0; IDS.len() * hidden];
            gather_blocks(compute, &IDS, blocks, &mut of_blocks);
            assert_eq!(bits(&of_blocks), bits(&out), "{}", compute.family());
            out
        };
        let table = [normal(3, vocab * hidden, 1.0)];
        check_special_values(table, LARGE, Tolerance::EXACT, run, reaches);

        let reaches = |_, place, output| reaches(0, output, place);
        let run = |compute: &Compute, [d_out]: &[Vec<f32>; 1]| {
            let mut d_table = vec![1.0; vocab * hidden];
            gather_backward(compute, &IDS, d_out, hidden, &mut d_table);
            d_table
        };
        let d_out = [normal(4, IDS.len() * hidden, 1.0)];
        check_special_values(d_out, LARGE, Tolerance::EXACT, run, reaches);
    }

    #[test]
    fn gradients_do_not_depend_on_threads() {
        let (ids, hidden): (Vec<u32>, _) = ((0..200).map(|t| t * t % 7).collect(), 70);
        let d_out = normal(5, ids.len() * hidden, 1.0);
        check_threads(|compute| {
            let mut d_table = vec![0.0; 7 * hidden];
            gather_backward(compute, &ids, &d_out, hidden, &mut d_table);
            d_table
        });
    }

    #[test]
    fn rows_are_gathered_and_gradients_scattered() {
        let (vocab, hidden) = (37, 50);
        let table = normal(1, vocab * hidden, 1.0);
        let ids = [3, 0, 36, 3, 17];
        for compute in computes(2) {
            let panels =
                Panels::<bf16>::packed(&compute, Source::rows_of_n(&table, hidden), vocab, hidden);
            let mut out = vec![0.0; ids.len() * hidden];
            gather(&compute, &ids, panels.values(), [vocab, hidden], &mut out);
            let mut d_table = vec![0.0; vocab * hidden];
            gather_backward(&compute, &ids, &out, hidden, &mut d_table);
            for (t, &id) in ids.iter().enumerate() {
                for i in 0..hidden {
                    let expected = bf16::from_f32(table[id as usize * hidden + i]).to_f32();
                    assert_eq!(out[t * hidden + i].to_bits(), expected.to_bits());
                    let count = if id == 3 { 2.0 } else { 1.0 };
                    assert_eq!(d_table[id as usize * hidden + i], count * expected);
                }
            }
            assert!(
                d_table[hidden..3 * hidden].iter().all(|&d| d == 0.0),
                "ids 1 and 2 are absent"
            );
        }
    }

    #[test]
    #[should_panic(expected = "token id 37 of a vocabulary of 37")]
    fn an_id_outside_the_vocabulary_is_refused() {
        let compute = crate::test_support::reference();
        let panels = Panels::<f32>::zeroed(37, 4);
        gather(&compute, &[37], panels.values(), [37, 4], &mut [0.0; 4]);
    }
}
