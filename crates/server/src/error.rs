//! Why the server could not start or run.

use std::io;
use std::net::SocketAddr;

/// Errors of the server as a whole; what goes wrong in one request is answered, not returned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// Something else listens on the port.
    #[error("port {} of {} is in use by another program", address.port(), address.ip())]
    PortBusy {
        /// The address asked for.
        address: SocketAddr,
    },
    /// The system does not let this user open the port.
    #[error("not allowed to open port {} of {}", address.port(), address.ip())]
    PortForbidden {
        /// The address asked for.
        address: SocketAddr,
    },
    /// The port cannot be opened for another reason.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// An address that others can reach needs keys, which this server does not have.
    #[error(
        "{address} can be reached from other machines, expected a loopback address (127.0.0.1 or ::1)"
    )]
    NotLoopback {
        /// The address asked for.
        address: SocketAddr,
    },
    /// A model of this name is served already.
    #[error("a model named `{name}` is served already")]
    DuplicateModel {
        /// The name.
        name: String,
    },
    /// The tokenizer makes ids that the model does not have.
    #[error(
        "model `{name}` has {model_vocab_size} token ids, its tokenizer {tokenizer_vocab_size}"
    )]
    VocabularyMismatch {
        /// The name.
        name: String,
        /// Ids the model has.
        model_vocab_size: usize,
        /// Ids the tokenizer has.
        tokenizer_vocab_size: usize,
    },
    /// The threads of the server cannot be made.
    #[error("cannot start the server: {what}")]
    Start {
        /// What was being made.
        what: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The server's own thread panicked.
    #[error("the server thread panicked")]
    Panicked,
}

impl ServerError {
    /// Sorts the ways in which opening a port fails.
    pub(crate) fn listen(address: SocketAddr, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::AddrInUse => Self::PortBusy { address },
            io::ErrorKind::PermissionDenied => Self::PortForbidden { address },
            _ => Self::Listen { address, source },
        }
    }
}
