//! Measured work: the machine's limits, and how near training, prefill and decode come to them.
//!
//! `bench`, `doctor` and `plan` print what is measured here. Every figure is a median of several runs.
//!
//! ```
//! use bench::median;
//!
//! assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
//! ```

mod inference;
mod machine;
mod peer;
mod random_model;
mod result;
mod shapes;
mod training;

pub use inference::{BATCH_PROMPT, batched_decode, decode, prefill};
pub use machine::{Machine, Roofline, cpu_name};
pub use peer::{PeerError, llama_cpp_peer, train_step_peer};
pub use random_model::{RANDOM_MODEL_VERSION, RandomWeights, write_random_model};
pub use result::{BenchReport, BenchResult, median};
pub use shapes::{Shape, TRAIN_STEP_SHAPE};
pub use training::{TRAIN_STEP_BATCH, train_step, training_speed};
