//! Blocking HTTP client: the only caller of other hosts, and only where the user named one.
//!
//! It lists a repository of a model hub (the Hugging Face API, at any address) and downloads its files: resumed where they
//! stopped, checked against the digests that the hub states, visible under their names only when they are whole. It knows
//! nothing of what is in the files.
//!
//! Certificates are those that the system trusts; a proxy is taken from the usual environment variables.
//!
//! ```no_run
//! use client::{Hub, RepoName, Revision};
//! use std::ops::ControlFlow;
//! use std::path::Path;
//!
//! let hub = Hub::new("https://huggingface.co", None)?;
//! let name: RepoName = "mistralai/Mistral-7B-v0.3".parse()?;
//! let repository = hub.repository(&name, &Revision::main())?;
//! for file in repository.files.iter().filter(|file| file.path == "config.json") {
//!     hub.download(&repository, file, Path::new("config.json"), &mut |_| ControlFlow::Continue(()))?;
//! }
//! # Ok::<(), client::ClientError>(())
//! ```

mod digest;
mod download;
mod error;
mod http;
mod hub;
mod proxy;

pub use digest::FileDigest;
pub use download::Downloaded;
pub use error::ClientError;
pub use hub::{Hub, RemoteFile, RepoName, Repository, Revision};
