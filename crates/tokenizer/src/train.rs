//! Learning a byte-level BPE vocabulary from text.

mod count;
mod learn;

use crate::error::Error;
use crate::split::parts;
use crate::tokenizer::Tokenizer;
use crate::vocabulary::{CONTROL_TOKENS, Kind, Vocabulary};
use count::WordCounts;

/// What training is asked for.
#[derive(Clone, Copy, Debug)]
pub struct TrainOptions {
    /// Entries in all: control tokens, 256 bytes, merges.
    pub vocab_size: usize,
    /// Threads that count words; the result does not depend on it. At least one is used.
    pub n_threads: usize,
}

impl Default for TrainOptions {
    fn default() -> TrainOptions {
        TrainOptions { vocab_size: 8192, n_threads: 1 }
    }
}

/// Texts are gathered until there is this much for the threads to count.
const GATHERED_BYTES: usize = 4 << 20;
/// A text is cut into parts of at least this size for several threads.
const MIN_PART_BYTES: usize = 1 << 16;

/// Collects the words of texts, then learns merges from their counts.
///
/// Time: linear in the text for counting; the merges take time in the order of the bytes of all distinct words. Memory:
/// 64 bytes per distinct word while counting, and about 30 bytes per byte of distinct words while learning; of the text
/// itself at most 4 MiB and the longest text are kept.
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
    /// Texts that are not counted yet, put end to end.
    gathered: String,
    /// Where each of them ends.
    ends: Vec<usize>,
}

impl BpeTrainer {
    /// A trainer that has seen no text.
    pub fn new(options: TrainOptions) -> BpeTrainer {
        let counts = (0..options.n_threads.max(1)).map(|_| WordCounts::new()).collect();
        BpeTrainer { options, counts, gathered: String::new(), ends: Vec::new() }
    }

    /// Counts the words of a text. Texts are apart: no word reaches from one into the next.
    pub fn feed(&mut self, text: &str) {
        if let [counts] = &mut *self.counts {
            return counts.add(text);
        }
        self.gathered.push_str(text);
        self.ends.push(self.gathered.len());
        if self.gathered.len() >= GATHERED_BYTES {
            self.count_gathered();
        }
    }

    fn count_gathered(&mut self) {
        let n_threads = self.counts.len();
        let (total, mut start) = (self.gathered.len(), 0);
        let mut shares: Vec<Vec<&str>> = vec![Vec::new(); n_threads];
        for &end in &self.ends {
            let text = &self.gathered[start..end];
            let n_parts = (text.len() / MIN_PART_BYTES).clamp(1, n_threads);
            for part in parts(text, n_parts) {
                // Texts of no length at the very end would be one thread too far.
                shares[(start * n_threads / total.max(1)).min(n_threads - 1)].push(part);
                start += part.len();
            }
        }
        std::thread::scope(|scope| {
            for (share, counts) in shares.iter().zip(&mut self.counts) {
                let count = move || share.iter().for_each(|text| counts.add(text));
                std::thread::Builder::new()
                    .name("tokenizer-count".to_string())
                    .spawn_scoped(scope, count)
                    .expect("the system can start a thread");
            }
        });
        self.gathered.clear();
        self.ends.clear();
    }

    /// Learns the merges and makes the tokenizer.
    ///
    /// Each step merges the pair of neighbouring tokens with the highest count; of equals, the pair with the lower left
    /// id, then the lower right id. Pairs seen once are not learned, nor tokens of more than 64 bytes.
    ///
    /// # Errors
    /// [`Error::VocabTooSmall`]; [`Error::TextTooSmall`] if the text does not support the vocabulary, never a smaller one
    /// in silence; [`Error::TextTooLarge`].
    pub fn train(mut self) -> Result<Tokenizer, Error> {
        self.count_gathered();
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
        Tokenizer::new(vocabulary, merges)
    }
}
