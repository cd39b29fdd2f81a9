//! HTTP: the API that OpenAI's clients speak, and the chat page.
//!
//! The only async crate. It owns no model: engines, tokenizers and templates come in a [`ModelRegistry`], to which models may
//! be added while the server runs, so that the port is open before there is anything to serve. It computes nothing but text:
//! tokens come from the engine, through a channel.
//!
//! Routes: `GET /health` (whether the server has started, and the load of each model), `GET /v1/models`, `GET /v1/models/{name}`,
//! `POST /v1/chat/completions`, `POST /v1/completions`; `GET /models` (all that can be loaded), `POST /models/load`,
//! `POST /models/unload`; and the page at `/` with its files and its own stream. Anything else does
//! not exist.
//!
//! It listens on loopback only and refuses a foreign `Host` or `Origin`; bodies, heads, connections and waiting requests are
//! bounded; a panic in a request is an answer with status 500; prompts are never logged.
//!
//! ```
//! use server::{ModelRegistry, ServerConfig};
//!
//! # fn main() -> Result<(), server::ServerError> {
//! let models = ModelRegistry::new();
//! let running = server::bind(ServerConfig::on_port(0))?.start(models.clone())?;
//! models.set_status("step 12 of 400");
//! // models.add("base", loaded_model)?; and whatever the program waits for
//! assert!(running.address().ip().is_loopback());
//! running.stop()
//! # }
//! ```

mod app;
mod assets;
mod background;
mod body;
mod chat;
mod completions;
mod config;
mod error;
mod failure;
mod generation;
mod guard;
mod ids;
mod loading;
mod markdown;
mod models;
mod page;
mod registry;
mod run;
mod sse;
mod stall;
mod texts;

pub use config::{ServerConfig, ServerLimits};
pub use error::ServerError;
pub use loading::{LoadError, ModelSource};
pub use registry::{LoadedModel, ModelRegistry, SamplingDefaults};
pub use run::{BoundServer, RunningServer, bind};
