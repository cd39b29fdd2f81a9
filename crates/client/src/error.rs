//! What goes wrong between this machine and another one.

use std::io;
use std::path::PathBuf;

/// Errors of requests and downloads. Addresses in them carry no secrets: the token travels in a header.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The address of a hub is none.
    #[error("`{endpoint}` is no address of a hub, expected https://HOST or http://HOST:PORT")]
    Endpoint {
        /// What was given.
        endpoint: String,
    },
    /// A name that cannot be that of a repository.
    #[error("`{name}` is no repository, expected OWNER/NAME")]
    RepoName {
        /// What was given.
        name: String,
    },
    /// A name that cannot be that of a revision.
    #[error("`{revision}` is no revision, expected a branch, a tag or a commit")]
    Revision {
        /// What was given.
        revision: String,
    },
    /// A token with characters that a header cannot carry.
    #[error("the token holds white space or characters that no token has")]
    Token,
    /// A token for an address where others can read it on its way.
    #[error("no token is sent to {endpoint}, which is not encrypted, expected https://HOST")]
    OpenToken {
        /// The address.
        endpoint: String,
    },
    /// The environment names a proxy that cannot be used.
    #[error("{variable} {problem}, expected http://HOST:PORT or https://HOST:PORT")]
    Proxy {
        /// The variable; its value may hold a password.
        variable: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The host cannot be reached, or the connection broke and went on breaking.
    #[error("cannot reach {url}: {reason}")]
    Unreachable {
        /// What was asked for.
        url: String,
        /// What the system or the library said.
        reason: String,
    },
    /// The host answered with a status that is no success.
    #[error("{url} answered {status}{}", reason(*status))]
    Status {
        /// What was asked for.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// The answer is not what a hub answers.
    #[error("{url}: {problem}")]
    Answer {
        /// What was asked for.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A file that arrived whole and is not the one the hub lists.
    #[error("{}: {kind} is {got}, expected {expected}; the file was removed", path.display())]
    Digest {
        /// Where it was written.
        path: PathBuf,
        /// What was compared.
        kind: &'static str,
        /// That of the bytes that arrived.
        got: String,
        /// That of the hub's list.
        expected: String,
    },
    /// The caller asked to stop; what arrived is kept.
    #[error("{url} was stopped; what arrived is kept")]
    Stopped {
        /// What was asked for.
        url: String,
    },
    /// A file could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl ClientError {
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        401 => " (unauthorised)",
        403 => " (forbidden)",
        404 => " (not found)",
        416 => " (no such part of the file)",
        429 => " (too many requests)",
        500..=599 => " (the server failed)",
        _ => "",
    }
}
