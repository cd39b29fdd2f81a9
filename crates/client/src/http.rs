//! Requests: time limits, repeated tries, where the token goes.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ureq::config::RedirectAuthHeaders;
use ureq::http::{Response, StatusCode};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

use crate::ClientError;
use crate::proxy::proxy_of;

/// Longest silence of the other side.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);
/// Longest time until a connection stands.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);
/// Redirects that are followed; a hub takes one or two, to its storage.
const MAX_REDIRECTS: u32 = 5;
/// Longest wait that a server may ask for.
const MAX_WAIT_S: u64 = 60;
/// First wait between two tries; each next one is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// Time between two looks at whether to go on waiting.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Tries of a request, or of a download between which nothing arrives.
const MAX_TRIES: u32 = 5;

/// Sends requests to one hub.
#[derive(Clone, Debug)]
pub(crate) struct Http {
    agent: Agent,
    /// `Bearer ...`; sent to the hub's own host only.
    authorization: Option<String>,
}

impl Http {
    /// From an encrypted address no redirect leads to an unencrypted one. This machine is reached without a proxy.
    ///
    /// # Errors
    /// As [`proxy_of`].
    pub(crate) fn new(
        scheme: Scheme,
        host: &str,
        token: Option<&str>,
    ) -> Result<Self, ClientError> {
        let proxy = if is_loopback(host) { None } else { proxy_of(|name| std::env::var_os(name))? };
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::PlatformVerifier)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .https_only(scheme == Scheme::Https)
            .proxy(proxy)
            .http_status_as_error(false)
            .max_redirects(MAX_REDIRECTS)
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .user_agent(concat!("galerne/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(CONNECT_LIMIT))
            .timeout_recv_response(Some(SILENCE_LIMIT))
            .timeout_per_read(Some(SILENCE_LIMIT))
            .build();
        let authorization = token.map(|token| format!("Bearer {token}"));
        Ok(Self { agent: config.into(), authorization })
    }

    /// The answer to one GET, from byte `from` on; the status is 200 or, from a later byte, 206.
    ///
    /// Connections that fail and servers that are busy are asked again, with growing waits, which `look` may break off.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`], [`ClientError::Status`] and [`ClientError::Stopped`].
    pub(crate) fn get(
        &self,
        url: &str,
        from: u64,
        look: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<Response<Body>, ClientError> {
        let mut tries = Tries::new();
        loop {
            let (error, wanted_wait) = match self.get_once(url, from) {
                Ok(response) => match response.status().as_u16() {
                    200 | 206 => return Ok(response),
                    status => {
                        let wait = wait_asked_for(&response);
                        (ClientError::Status { url: url.to_owned(), status }, wait)
                    }
                },
                Err(error) => (unreachable(url, &error), None),
            };
            let is_passing = match error {
                ClientError::Status { status, .. } => {
                    matches!(status, 408 | 429 | 500 | 502 | 503 | 504)
                }
                _ => true,
            };
            if !is_passing {
                return Err(error);
            }
            match tries.wait(wanted_wait, look) {
                Waited::Next => {}
                Waited::NoneLeft => return Err(error),
                Waited::Stopped => return Err(ClientError::Stopped { url: url.to_owned() }),
            }
        }
    }

    fn get_once(&self, url: &str, from: u64) -> Result<Response<Body>, ureq::Error> {
        let mut request = self.agent.get(url);
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization);
        }
        if from > 0 {
            request = request.header("range", format!("bytes={from}-"));
        }
        request.call()
    }
}

/// Whether `HOST[:PORT][/PATH]` names this machine.
fn is_loopback(host: &str) -> bool {
    let authority = host.split('/').next().unwrap_or_default();
    let name = match authority.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => authority,
    };
    matches!(name, "localhost" | "127.0.0.1" | "[::1]")
}

/// How an address is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    Http,
    Https,
}

/// How a wait between two tries ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waited {
    /// The next try may begin.
    Next,
    /// There is no try left.
    NoneLeft,
    /// The caller asked to stop.
    Stopped,
}

/// Counts tries and waits between them.
#[derive(Debug)]
pub(crate) struct Tries {
    n_done: u32,
    wait: Duration,
}

impl Tries {
    pub(crate) fn new() -> Self {
        Self { n_done: 0, wait: FIRST_WAIT }
    }

    /// Waits before the next try, unless there is none left, or `look` breaks off.
    pub(crate) fn wait(
        &mut self,
        asked_for: Option<Duration>,
        look: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Waited {
        self.n_done += 1;
        if self.n_done >= MAX_TRIES {
            return Waited::NoneLeft;
        }
        let end = Instant::now() + asked_for.unwrap_or(self.wait);
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            if look().is_break() {
                return Waited::Stopped;
            }
            thread::sleep(left.min(LOOK_INTERVAL));
        }
        self.wait *= 2;
        Waited::Next
    }
}

/// `Retry-After` in seconds, bounded.
fn wait_asked_for(response: &Response<Body>) -> Option<Duration> {
    let value = response.headers().get("retry-after")?.to_str().ok()?;
    let seconds = value.trim().parse::<u64>().ok()?;
    let is_busy = matches!(
        response.status(),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
    );
    is_busy.then(|| Duration::from_secs(seconds.min(MAX_WAIT_S)))
}

pub(crate) fn unreachable(url: &str, error: &ureq::Error) -> ClientError {
    ClientError::Unreachable { url: url.to_owned(), reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_known_by_its_names() {
        for host in ["localhost", "127.0.0.1:80", "[::1]:8000/hf", "localhost/x"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["localhost.evil.org", "huggingface.co", "127.0.0.1.evil.org:80", "::1"] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
