//! The end of a step on all threads: each sequence draws, asks whether that is the end, and tells its caller, for itself.

use kernels::Compute;
use model::{Likeliest, RowLogits};

use crate::sampler::SamplerScratch;
use crate::sequence::{Next, Sequence};

/// Threads at most: each has memory for it.
const MAX_THREADS: usize = 16;

/// Logits, and sequences, of a step from which on other threads are worth waking: one alone is busy with them for some hundred
/// microseconds.
const LOGITS_WORTH_SHARING: usize = 1 << 15;
const SEQUENCES_WORTH_SHARING: usize = 32;

/// The threads, and their memory.
#[derive(Debug)]
pub(crate) struct Drawers {
    compute: Compute,
    vocab_size: usize,
    scratches: Vec<SamplerScratch>,
}

/// What a step has computed of the rows that a sequence draws from.
#[derive(Clone, Copy)]
pub(crate) enum Rows<'a> {
    /// `[rows, vocab]`.
    Logits(&'a [f32]),
    /// `[rows]`.
    Likeliest(&'a [Option<Likeliest>]),
}

/// A sequence that draws, and how that went: whether it goes on, and how many guesses came true.
pub(crate) struct Drawing<'a> {
    pub(crate) sequence: &'a mut Sequence,
    pub(crate) rows: Rows<'a>,
    pub(crate) outcome: &'a mut Option<(Next, usize)>,
}

impl Drawing<'_> {
    fn run(&mut self, vocab_size: usize, scratch: &mut SamplerScratch) {
        let outcome = match self.rows {
            Rows::Logits(rows) => {
                let rows = rows.chunks_exact(vocab_size).map(RowLogits::Logits);
                self.sequence.take_tokens(rows, scratch)
            }
            Rows::Likeliest(rows) => {
                let rows = rows.iter().copied().map(RowLogits::Likeliest);
                self.sequence.take_tokens(rows, scratch)
            }
        };
        *self.outcome = Some(outcome);
    }
}

impl Drawers {
    pub(crate) fn new(compute: Compute, max_running: usize, vocab_size: usize) -> Self {
        let n = compute.n_threads().min(max_threads(max_running));
        let scratches = (0..n).map(|_| SamplerScratch::new(vocab_size)).collect();
        Self { compute, vocab_size, scratches }
    }

    /// Bytes that they take at most.
    pub(crate) fn bytes_for(max_running: usize, vocab_size: usize) -> usize {
        max_threads(max_running) * SamplerScratch::bytes_for(vocab_size)
    }

    /// Memory for what this thread does alone.
    pub(crate) fn scratch(&mut self) -> &mut SamplerScratch {
        &mut self.scratches[0]
    }

    /// Has each sequence draw and hand over its tokens ([`Sequence::take_tokens`]).
    pub(crate) fn run(&mut self, mut drawing: Vec<Drawing<'_>>) {
        let vocab_size = self.vocab_size;
        let n_logits: usize = drawing.iter().map(|each| each.rows.n_logits()).sum();
        let is_shared =
            n_logits >= LOGITS_WORTH_SHARING || drawing.len() >= SEQUENCES_WORTH_SHARING;
        let n_threads = if is_shared { self.scratches.len() } else { 1 };
        let share = drawing.len().div_ceil(n_threads).max(1);
        let mut shares: Vec<_> = drawing.chunks_mut(share).zip(&mut self.scratches).collect();
        self.compute.pool().run_chunks(&mut shares, 1, |_, shares, _| {
            for (drawing, scratch) in shares {
                drawing.iter_mut().for_each(|each| each.run(vocab_size, scratch));
            }
        });
    }
}

impl Rows<'_> {
    fn n_logits(self) -> usize {
        match self {
            Self::Logits(rows) => rows.len(),
            Self::Likeliest(_) => 0,
        }
    }
}

fn max_threads(max_running: usize) -> usize {
    max_running.clamp(1, MAX_THREADS)
}
