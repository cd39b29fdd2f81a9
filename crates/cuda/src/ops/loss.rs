//! Softmax cross-entropy, and the likeliest token.

use kernels::likeliest::Likeliest;

use crate::gpu::{Argument, Gpu, Grid};
use crate::memory::{Matrix, MatrixMut, NumberType};
use crate::ops::row_numbers::RowNumbers;

/// Vocabularies whose rows a block keeps in registers, and its threads (`loss.cu`).
const KEPT_VOCABULARIES: std::ops::RangeInclusive<usize> = 16384..=32768;
const KEPT_THREADS: usize = 1024;
/// Bytes of shared memory for each token of such a vocabulary: a row of f32, or two of bf16.
const KEPT_SHARED_BYTES: usize = 4;
/// The most threads of a row of another vocabulary, and the logits of a thread at a time.
const MAX_THREADS: usize = 256;
const PER_THREAD: usize = 16;
const LIKELIEST_THREADS: usize = 1024;

/// What is known of the rows of logits: targets, the weights of their losses, and where the losses go.
#[derive(Debug)]
pub struct LossRows<'a> {
    /// `[rows]`.
    pub targets: &'a RowNumbers,
    /// f32 `[rows]`.
    pub weights: Matrix<'a>,
    /// f32 `[rows]`. Overwritten.
    pub losses: MatrixMut<'a>,
}

/// The losses of [`kernels::cross_entropy::cross_entropy`]. A target beyond the vocabulary, of a weight that is not 0, makes the loss
/// of its row NaN. Logits are f32 or bf16, sums f32.
///
/// # Panics
/// When the shapes or types do not fit.
pub fn cross_entropy(gpu: &Gpu, logits: Matrix<'_>, rows: LossRows<'_>) {
    launch_cross_entropy(gpu, logits, rows, false);
}

/// As [`cross_entropy`], and puts the gradient in the place of the logits, rounded to their type.
///
/// # Panics
/// When the shapes or types do not fit.
pub fn cross_entropy_in_place(gpu: &Gpu, logits: MatrixMut<'_>, rows: LossRows<'_>) {
    launch_cross_entropy(gpu, logits.as_ref(), rows, true);
}

fn launch_cross_entropy(gpu: &Gpu, logits: Matrix<'_>, rows: LossRows<'_>, with_gradient: bool) {
    let (n_rows, vocab_size) = (logits.n_rows(), logits.width());
    let LossRows { targets, weights, losses } = rows;
    let counts = [targets.n(), weights.n_values(), losses.n_values()];
    assert_eq!(counts, [n_rows; 3], "targets, weights and losses of the rows of logits");
    let types = [weights.number_type(), losses.number_type()];
    assert_eq!(types, [NumberType::F32; 2], "weights and losses");
    if n_rows == 0 {
        return;
    }
    let number_type = logits.number_type();
    let suffix = number_type.suffix();
    let mut arguments = vec![
        Argument::Pointer(logits.address()),
        targets.argument(),
        Argument::Pointer(weights.address()),
        Argument::Pointer(losses.address()),
        Argument::I32(i32::from(with_gradient)),
    ];
    let is_in_packs = (vocab_size * number_type.bytes()).is_multiple_of(16);
    if is_in_packs && KEPT_VOCABULARIES.contains(&vocab_size) {
        arguments.extend([n_rows, vocab_size].map(Argument::count));
        let blocks = [n_rows.min(gpu.multiprocessors()), 1, 1];
        let shared_bytes = vocab_size * KEPT_SHARED_BYTES;
        let grid = Grid { blocks, threads: KEPT_THREADS, shared_bytes };
        gpu.launch_early(&format!("cross_entropy_kept_{suffix}"), grid, &arguments);
    } else {
        arguments.push(Argument::count(vocab_size));
        let threads = vocab_size.div_ceil(PER_THREAD).next_multiple_of(32).clamp(32, MAX_THREADS);
        let grid = Grid { blocks: [n_rows, 1, 1], threads, shared_bytes: 0 };
        gpu.launch_early(&format!("cross_entropy_any_{suffix}"), grid, &arguments);
    }
}

/// The likeliest token of each row ([`kernels::likeliest::likeliest`]): none where a logit is NaN or the largest is not finite. Waits.
/// Exponentials are f32, their sums f64 in an order of the vocabulary alone.
///
/// # Panics
/// When the logits are not f32.
#[must_use]
pub fn likeliest(gpu: &Gpu, logits: Matrix<'_>) -> Vec<Option<Likeliest>> {
    assert_eq!(logits.number_type(), NumberType::F32, "logits");
    let n_rows = logits.n_rows();
    if n_rows == 0 {
        return Vec::new();
    }
    // Ids, then the bits of logarithms: read at once.
    let found = gpu.memory(2 * n_rows * size_of::<u32>());
    gpu.launch(
        "likeliest",
        Grid { blocks: [n_rows, 1, 1], threads: LIKELIEST_THREADS, shared_bytes: 0 },
        &[
            Argument::Pointer(logits.address()),
            Argument::Pointer(found.address()),
            Argument::Pointer(found.address() + (n_rows * size_of::<u32>()) as u64),
            Argument::count(logits.width()),
        ],
    );
    let mut numbers = vec![0_u32; 2 * n_rows];
    found.read(&mut numbers);
    let (ids, logprobs) = numbers.split_at(n_rows);
    let rows = ids.iter().zip(logprobs);
    rows.map(|(&token_id, &logprob)| {
        let logprob = f32::from_bits(logprob);
        (token_id != u32::MAX).then_some(Likeliest { token_id, logprob })
    })
    .collect()
}
