//! Learning a byte-level BPE vocabulary from text.

mod count;
mod learn;

use crate::error::Error;
use crate::split::{DigitGroup, parts};
use crate::tokenizer::Tokenizer;
use crate::vocabulary::{CONTROL_TOKENS, Kind, Vocabulary};
use count::WordCounts;

/// What training is asked for.
#[derive(Clone, Copy, Debug)]
pub struct TrainOptions {
    /// Entries in all: control tokens, 256 bytes, merges.
    pub vocab_size: usize,
    /// How digits are cut.
    pub digits: DigitGroup,
    /// Threads that count words; the result does not depend on it. At least one is used.
    pub n_threads: usize,
}

impl Default for TrainOptions {
    fn default() -> TrainOptions {
        TrainOptions { vocab_size: 8192, digits: DigitGroup::default(), n_threads: 1 }
    }
}

/// Texts shorter than this are counted on the caller's thread.
const MIN_BYTES_PER_THREAD: usize = 1 << 16;

/// Collects the words of texts, then learns merges from their counts.
///
/// Time: linear in the text for counting; the merges take time in the order of the bytes of all distinct words. Memory:
/// 64 bytes per distinct word while counting, and about 30 bytes per byte of distinct words while learning; the text
/// itself is not kept.
///
/// ```
/// use tokenizer::{BpeTrainer, TrainOptions};
///
/// # fn main() -> Result<(), tokenizer::Error> {
/// let mut trainer = BpeTrainer::new(TrainOptions { vocab_size: 270, ..TrainOptions::default() });
/// trainer.feed("le chat, le chien et le cheval; the cat, the dog and the horse");
/// let tokenizer = trainer.train()?;
/// assert_eq!(tokenizer.decode(&tokenizer.encode("le chat")), "le chat");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct BpeTrainer {
    options: TrainOptions,
    /// One per thread.
    counts: Vec<WordCounts>,
}

impl BpeTrainer {
    /// A trainer that has seen no text.
    pub fn new(options: TrainOptions) -> BpeTrainer {
        let counts = (0..options.n_threads.max(1)).map(|_| WordCounts::new()).collect();
        BpeTrainer { options, counts }
    }

    /// Counts the words of a text. Texts are apart: no word reaches from one into the next.
    pub fn feed(&mut self, text: &str) {
        let digits = self.options.digits;
        let n_parts = (text.len() / MIN_BYTES_PER_THREAD).clamp(1, self.counts.len());
        let parts = parts(text, n_parts);
        let (first, others) = parts.split_first().expect("a text has at least one part");
        let (own, theirs) = self.counts.split_first_mut().expect("there is at least one thread");
        std::thread::scope(|scope| {
            for (&part, counts) in others.iter().zip(&mut *theirs) {
                let count = move || counts.add(part, digits);
                std::thread::Builder::new()
                    .name("tokenizer-count".to_string())
                    .spawn_scoped(scope, count)
                    .expect("the system can start a thread");
            }
            own.add(first, digits);
        });
    }

    /// Learns the merges and makes the tokenizer.
    ///
    /// Each step merges the pair of neighbouring tokens with the highest count; of equals, the pair with the lower left
    /// id, then the lower right id. Pairs seen once are not learned, nor tokens of more than 64 bytes.
    ///
    /// # Errors
    /// [`Error::VocabTooSmall`]; [`Error::TextTooSmall`] if the text does not support the vocabulary, never a smaller one
    /// in silence; [`Error::TextTooLarge`].
    pub fn train(self) -> Result<Tokenizer, Error> {
        let first_merge_id = CONTROL_TOKENS.len() + 256;
        let vocab_size = self.options.vocab_size;
        let n_merges = vocab_size
            .checked_sub(first_merge_id)
            .ok_or(Error::VocabTooSmall { vocab_size, minimum: first_merge_id })?;
        let words = count::all(self.counts);
        let merges = learn::learn(&words, n_merges)?;
        if merges.len() < n_merges {
            return Err(Error::TextTooSmall { vocab_size, reached: first_merge_id + merges.len() });
        }
        let mut vocabulary = Vocabulary::default();
        for name in CONTROL_TOKENS {
            vocabulary.push(name.as_bytes(), Kind::Control);
        }
        for byte in 0..=u8::MAX {
            vocabulary.push(&[byte], Kind::Ordinary);
        }
        for merge in &merges {
            let part = |id| vocabulary.get(id).expect("a merge is of earlier tokens");
            let bytes = [part(merge.left), part(merge.right)].concat();
            vocabulary.push(&bytes, Kind::Ordinary);
        }
        Tokenizer::new(vocabulary, merges, self.options.digits)
    }
}
