//! Files that other programs read: safetensors, GGUF, `config.json`, `params.json`, checkpoints, model directories.
//!
//! Foreign names (`num_key_value_heads`, `model.layers.0.self_attn.q_proj.weight`) are translated here, once, and
//! are never seen again. This crate computes nothing and knows no tensor library: weights are bytes with a type and a
//! shape. Every parser takes hostile input without panic, and what it allocates is bounded by the size of the file.
//!
//! ```
//! use formats::{parse_config, WeightName};
//!
//! let json = br#"{"model_type": "mistral", "vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 2,
//!     "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128,
//!     "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "sliding_window": null, "torch_dtype": "float32"}"#;
//! let config = parse_config(json)?;
//! assert_eq!(config.decoder.head_dim, 16);
//! assert_eq!(WeightName::all(&config.decoder)[0].hf_name(), "model.embed_tokens.weight");
//! # Ok::<(), formats::FormatError>(())
//! ```

mod dtype;
mod error;
mod fields;
mod os;
mod version;

pub mod adapter;
pub mod checkpoint;
pub mod config;
pub mod convert;
pub mod digest;
pub mod durable;
pub mod gguf;
pub mod json_lines;
pub mod licence;
pub mod model_dir;
pub mod names;
pub mod packed_copy;
pub mod published;
pub mod weights;

pub use config::{
    DecoderConfig, Experts, QueryScaling, ReadConfig, Rope, RopeScaling, WeightDtype, parse_config,
    to_hf_json,
};
pub use dtype::TensorDtype;
pub use error::FormatError;
pub use names::{FfnMatrix, LayerPart, Layout, WeightName};
pub use os::{SharedBytes, free_disk_bytes};
pub use version::{check_format_version, check_version};
pub use weights::{
    ModelWeights, TensorData, TensorSource, WeightFiles, WeightView, is_plain_name,
    write_safetensors, write_safetensors_to,
};
