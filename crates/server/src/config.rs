//! Where the server listens and what it accepts.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

/// Settings of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerConfig {
    /// A loopback address; port 0 takes a free one.
    pub address: SocketAddr,
    /// Bounds on what clients can do.
    pub limits: ServerLimits,
}

impl Default for ServerConfig {
    /// `127.0.0.1:8080` with the default limits.
    fn default() -> Self {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 8080));
        Self { address, limits: ServerLimits::default() }
    }
}

impl ServerConfig {
    /// The default settings on another port of `127.0.0.1`.
    #[must_use]
    pub fn on_port(port: u16) -> Self {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Self { address, ..Self::default() }
    }
}

/// Bounds on what clients can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerLimits {
    /// Largest request body.
    pub max_body_bytes: usize,
    /// Most connections at once; further ones wait in the system's queue.
    pub max_connections: usize,
    /// Longest time from the start of a connection, or the end of an answer, to the end of the next request's headers.
    pub header_timeout: Duration,
    /// Longest time for a request body to arrive.
    pub body_timeout: Duration,
    /// Longest time in which a client reads nothing of what it was sent.
    pub stall_timeout: Duration,
    /// How long answers in progress may go on after the server was told to stop.
    pub shutdown_grace: Duration,
}

impl Default for ServerLimits {
    /// 2 MiB bodies, 256 connections, 30 s for headers, for bodies and for clients that do not read, 10 s to finish.
    fn default() -> Self {
        Self {
            max_body_bytes: 2 << 20,
            max_connections: 256,
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(30),
            stall_timeout: Duration::from_secs(30),
            shutdown_grace: Duration::from_secs(10),
        }
    }
}
