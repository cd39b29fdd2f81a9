//! Text to token ids and back: byte-level BPE and its training; the files of the Mistral and Llama family
//! (SentencePiece models, Tekken, `tokenizer.json`); chat templates with loss masks.
//!
//! One object, [`Tokenizer`], encodes ordinary text; what looks like a control token in it stays ordinary text. Control
//! tokens come from [`ChatTemplate`] alone, which renders a [`Conversation`] for training and for serving.
//!
//! The crate knows no tensors and no model, and starts threads only to count words in training.
//!
//! ```
//! use tokenizer::{BpeTrainer, ChatTemplate, Conversation, Ending, TrainOptions};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut trainer = BpeTrainer::new(TrainOptions { vocab_size: 272, ..TrainOptions::default() });
//! trainer.feed("the wind of the west and the wind of the east, the wind of the sea and the sand");
//! let tokenizer = trainer.train()?;
//! let ids = tokenizer.encode("the wind </s>");
//! assert_eq!(tokenizer.decode(&ids), "the wind </s>");
//! assert!(!ids.contains(&tokenizer.eos_id()));
//!
//! let line = r#"{"messages": [{"role": "user", "content": "wind?"}, {"role": "assistant", "content": "west"}]}"#;
//! let conversation: Conversation = serde_json::from_str(line)?;
//! let rendered = ChatTemplate::default().render(&tokenizer, &conversation, Ending::Complete)?;
//! assert_eq!(rendered.text, "<s>[INST] wind?[/INST] west</s>");
//! assert_eq!(rendered.token_ids.len(), rendered.trained.len());
//! # Ok(())
//! # }
//! ```

mod added;
mod base64;
mod chat;
mod control_names;
mod date;
mod directory;
mod encode;
mod error;
mod implied;
mod json;
mod listing;
mod pairs;
mod sentencepiece;
mod short_word;
mod split;
mod stop;
mod stream;
mod symbols;
mod tekken;
mod text;
mod tokenizer;
mod train;
mod vocabulary;

pub use chat::instruct;
pub use chat::{ChatTemplate, Conversation, Ending, JinjaTemplate, Message, Rendered, Role};
pub use date::strftime;
pub use directory::FOLDER_FILES;
pub use error::Error;
pub use listing::{Encoding, ListedKind, VocabularyListing};
pub use stream::{AnswerText, TextStream};
pub use tokenizer::{ControlText, Tokenizer};
pub use train::{BpeTrainer, TrainOptions};
pub use vocabulary::CONTROL_TOKENS;
