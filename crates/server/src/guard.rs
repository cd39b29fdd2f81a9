//! The one layer every request passes: who may call, isolation of panics, the access log.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::task::JoinHandle;
use tracing::{debug, info};

use crate::failure::Failure;

/// Browsers may load nothing but our own files, and no other page may frame ours.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Checks a request, runs it in a task of its own, and completes its response.
pub(crate) async fn guard(request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let mut response = match check_origin(request.headers()) {
        Ok(()) => isolated(request, next).await,
        Err(failure) => failure.into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers
        .insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(CONTENT_SECURITY_POLICY));
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    let status = response.status().as_u16();
    let elapsed_ms = started.elapsed().as_millis();
    // Reading is frequent (a page that waits for a model asks again and again); what makes the engine work is not.
    if method == Method::GET {
        debug!(%method, path, status, elapsed_ms, "request");
    } else {
        info!(%method, path, status, elapsed_ms, "request");
    }
    response
}

/// Without keys, only programs of this machine may call, and no page of another site through a browser here: a name that
/// was rebound to 127.0.0.1 shows in `Host`, a foreign page in `Origin`.
fn check_origin(headers: &HeaderMap) -> Result<(), Failure> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let host = host.ok_or(Failure::ForeignHost)?;
    if !names_this_machine(host) {
        return Err(Failure::ForeignHost);
    }
    if comes_from_another_site(headers) {
        return Err(Failure::ForeignOrigin);
    }
    match headers.get(header::ORIGIN).map(HeaderValue::to_str) {
        None => Ok(()),
        Some(Ok(origin)) if origin.strip_prefix("http://") == Some(host) => Ok(()),
        Some(_) => Err(Failure::ForeignOrigin),
    }
}

/// True for `localhost` and loopback addresses, with any port: a tunnel may have another than ours. An address cannot be
/// rebound as a name can.
fn names_this_machine(host: &str) -> bool {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !host.ends_with(']') => (name, Some(port)),
        _ => (host, None),
    };
    let is_loopback = match name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(address) => address.parse().is_ok_and(|address: Ipv6Addr| address.is_loopback()),
        None => {
            name.eq_ignore_ascii_case("localhost")
                || name.parse().is_ok_and(|address: Ipv4Addr| address.is_loopback())
        }
    };
    is_loopback && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

/// A browser says where a request comes from, also where it sends no `Origin`: pictures, scripts and the like of another
/// site are refused; following a link to the page is not.
fn comes_from_another_site(headers: &HeaderMap) -> bool {
    let is = |name: &str, values: &[&str]| {
        headers.get(name).is_some_and(|value| values.iter().any(|other| value == other))
    };
    is("sec-fetch-site", &["cross-site", "same-site"]) && !is("sec-fetch-mode", &["navigate"])
}

/// Runs the rest in a task: a panic becomes an answer, and the connection lives on. When the client goes away this
/// future is dropped, and the task with it.
async fn isolated(request: Request, next: Next) -> Response {
    let mut task = AbortOnDrop(tokio::spawn(next.run(request)));
    match (&mut task.0).await {
        Ok(response) => response,
        Err(error) => {
            let detail = match error.try_into_panic() {
                Ok(panic) => panic_message(panic.as_ref()),
                Err(_) => "the task was cancelled".to_owned(),
            };
            Failure::Panicked { detail }.into_response()
        }
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}

struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(host: Option<&str>, origin: Option<&str>) -> Result<(), Failure> {
        let mut headers = HeaderMap::new();
        for (name, value) in [(header::HOST, host), (header::ORIGIN, origin)] {
            if let Some(value) = value {
                headers.insert(name, value.parse().unwrap());
            }
        }
        check_origin(&headers)
    }

    #[test]
    fn names_of_this_machine_may_call() {
        for host in ["localhost", "LocalHost:8080", "127.0.0.1:1", "[::1]:8080", "[::1]"] {
            assert!(outcome(Some(host), None).is_ok(), "{host}");
            let origin = format!("http://{host}");
            assert!(outcome(Some(host), Some(&origin)).is_ok(), "{host}");
        }
    }

    #[test]
    fn other_hosts_are_refused() {
        for host in [
            "example.com",
            "localhost.example.com",
            "127.0.0.1.example.com",
            "127.0.0.1:80@evil",
            "localhost:",
            "localhost:99999",
            "évil",
            "",
            "0.0.0.0",
        ] {
            assert!(matches!(outcome(Some(host), None), Err(Failure::ForeignHost)), "{host}");
        }
        assert!(matches!(outcome(None, None), Err(Failure::ForeignHost)));
    }

    #[test]
    fn pages_of_other_origins_are_refused() {
        for origin in [
            "null",
            "https://localhost:8080",
            "http://localhost:3000",
            "http://127.0.0.1:8080",
            "http://evil.example",
        ] {
            let outcome = outcome(Some("localhost:8080"), Some(origin));
            assert!(matches!(outcome, Err(Failure::ForeignOrigin)), "{origin}");
        }
    }
}
