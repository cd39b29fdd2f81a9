//! Measured work: the machine's limits, and how near training, prefill and decode come to them.
//!
//! `bench`, `doctor` and `plan` print what is measured here. A figure is the median of several runs; a
//! limit of the machine is the fastest of some.
//!
//! ```
//! use bench::median;
//!
//! assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
//! ```

mod accuracy;
mod gpu;
mod growth;
mod inference;
mod machine;
mod peer;
mod random_model;
mod result;
mod shapes;
mod temporary;
mod throughput;
mod tokenization;
mod training;

pub use accuracy::{ReferenceLogits, Scored, prompt};
pub use gpu::GpuMachine;
pub use growth::{DocumentError, Growth, GrowthReport, Law, inference_growth, training_growth};
pub use inference::{BATCH_PROMPT, Subject, batched_decode, decode, prefill, writing_profile};
pub use machine::{Machine, Roofline, cpu_name};
pub use peer::{
    Peer, PeerError, PeerFigure, PeerInference, tokenizer_encode_peer, tokenizer_train_peer,
    train_step_peer,
};
pub use random_model::{RANDOM_MODEL_VERSION, RandomWeights, write_random_model};
pub use result::{BenchReport, BenchResult, median};
pub use shapes::{Shape, TRAIN_STEP_SHAPE};
pub use temporary::TemporaryFolder;
pub use throughput::{Load, Served, serve_load};
pub use tokenization::{BENCH_VOCAB_SIZE, TextError, TextFiles, tokenizer_encode, tokenizer_train};
pub use training::{TRAIN_STEP_BATCH, train_step, train_step_profile, training_speed};
