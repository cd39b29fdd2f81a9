//! Data: readers, the bundled corpus, the invented company, conversation sets, token shards and packing.
//!
//! It produces text, conversations and packed batches of token ids. It never trains and knows no model.
//!
//! ```
//! use data::company::{test_questions, training_questions};
//!
//! let asked = &test_questions()[0];
//! let trained = training_questions(1, 0);
//! assert!(trained.iter().any(|known| known.fact_id == asked.fact_id && known.answer == asked.answer));
//! assert!(trained.iter().all(|known| known.question != asked.question));
//! ```

mod error;
mod language;
mod random;

pub mod bundled;
pub mod chat_set;
pub mod company;
pub mod packing;
pub mod reader;
pub mod shard;
pub mod sheet;

pub use error::DataError;
pub use language::Language;
pub use random::Random;

/// One text with its language and what kind of text it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// The language the text is written in; `None` when the user's own files do not say.
    pub language: Option<Language>,
    /// Kind of text, a short lower-case word such as `story`, `dialogue`, `arithmetic`, or a file name.
    pub kind: String,
    /// The text, normalised to NFC, ending without a newline.
    pub text: String,
}
