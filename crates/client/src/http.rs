//! Requests: time limits, repeated tries, redirects, where the token goes.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ureq::http::{Response, StatusCode, Uri};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

use crate::ClientError;
use crate::proxy::proxy_of;

/// Longest silence of the other side.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);
/// Longest time until a connection stands.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);
/// Redirects that are followed; a hub takes one or two, to its storage.
const MAX_REDIRECTS: usize = 5;
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
    /// `Bearer ...`; sent to the hub's own scheme, host and port only.
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
            .max_redirects(0)
            .user_agent(concat!("galerne/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(CONNECT_LIMIT))
            .timeout_recv_response(Some(SILENCE_LIMIT))
            .timeout_per_read(Some(SILENCE_LIMIT))
            .build();
        let authorization = token.map(|token| format!("Bearer {token}"));
        Ok(Self { agent: config.into(), authorization })
    }

    /// The answer to one GET, from byte `from` on; the status is 200 or, from a later byte, 206. All of its body comes within
    /// `body_limit`, where there is one.
    ///
    /// Connections that fail and servers that are busy are asked again, with growing waits, which `look` may break off.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`], [`ClientError::Status`], [`ClientError::Answer`] and [`ClientError::Stopped`].
    pub(crate) fn get(
        &self,
        url: &str,
        from: u64,
        body_limit: Option<Duration>,
        look: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<Response<Body>, ClientError> {
        let mut tries = Tries::new();
        loop {
            let (error, wanted_wait) = match self.get_once(url, from, body_limit) {
                Ok(response) => match response.status().as_u16() {
                    200 | 206 => return Ok(response),
                    status => {
                        let wait = wait_asked_for(&response);
                        (ClientError::Status { url: url.to_owned(), status }, wait)
                    }
                },
                Err(error) => (error, None),
            };
            let is_passing = match error {
                ClientError::Status { status, .. } => {
                    matches!(status, 408 | 429 | 500 | 502 | 503 | 504)
                }
                ClientError::Unreachable { .. } => true,
                _ => false,
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

    /// Follows redirects without reading their bodies, which may have no end. Errors name `url`: where a redirect leads may hold
    /// a secret.
    fn get_once(
        &self,
        url: &str,
        from: u64,
        body_limit: Option<Duration>,
    ) -> Result<Response<Body>, ClientError> {
        let wrong = |problem: String| Err(ClientError::Answer { url: url.to_owned(), problem });
        let mut address = url.to_owned();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.agent.get(&address);
            if let Some(authorization) = &self.authorization
                && origin(&address) == origin(url)
            {
                request = request.header("authorization", authorization);
            }
            if from > 0 {
                request = request.header("range", format!("bytes={from}-"));
            }
            let request = request.config().timeout_recv_body(body_limit).build();
            let response = request.call().map_err(|error| unreachable(url, &error))?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let location = response.headers().get("location").and_then(|text| text.to_str().ok());
            match location.and_then(|location| redirected(&address, location)) {
                Some(next) => address = next,
                None => return wrong("a redirect leads nowhere that can be followed".to_owned()),
            }
        }
        wrong(format!("more than {MAX_REDIRECTS} redirects"))
    }
}

/// Scheme, host and port of an address: what a token is for.
fn origin(address: &str) -> Option<(String, String, u16)> {
    let address: Uri = address.parse().ok()?;
    let scheme = address.scheme_str()?.to_ascii_lowercase();
    let port = address.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
    Some((scheme, address.host()?.to_ascii_lowercase(), port))
}

/// The address that a redirect from another one leads to: a whole one, or a path there; from an encrypted one to an encrypted one.
fn redirected(address: &str, location: &str) -> Option<String> {
    let (scheme, rest) = address.split_once("://")?;
    let next = if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{}{location}", rest.split(['/', '?', '#']).next()?)
    } else {
        location.to_owned()
    };
    let is_encrypted = |address: &str| Some(origin(address)?.0 == "https");
    (is_encrypted(&next)? || !is_encrypted(address)?).then_some(next)
}

/// Whether `HOST[:PORT][/PATH]` names this machine.
pub(crate) fn is_loopback(host: &str) -> bool {
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
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::thread::JoinHandle;

    use super::*;

    /// Gives these answers, each to a connection of its own, and then the heads of the requests with the connections, which stay
    /// open till then.
    fn serve(listener: TcpListener, answers: Vec<String>) -> JoinHandle<Vec<(String, TcpStream)>> {
        let answer = move |answer: String| {
            let (mut stream, _) = listener.accept().unwrap();
            let lines = BufReader::new(&stream).lines().map(Result::unwrap);
            let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
            write!(stream, "HTTP/1.1 {answer}").unwrap();
            (head.join("\n"), stream)
        };
        let server = thread::Builder::new().name("server".to_owned());
        server.spawn(move || answers.into_iter().map(answer).collect()).unwrap()
    }

    fn listen() -> (TcpListener, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        (listener, address)
    }

    fn get(address: &str, limit: Option<Duration>) -> Result<Response<Body>, ClientError> {
        let http = Http::new(Scheme::Http, "127.0.0.1", Some("secret")).unwrap();
        http.get(&format!("{address}/a"), 5, limit, &mut || ControlFlow::Continue(()))
    }

    const WHOLE: &str = "200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";

    fn redirect(location: &str) -> String {
        // The body never comes.
        format!("302 Found\r\nLocation: {location}\r\nContent-Length: 1000000\r\n\r\n")
    }

    #[test]
    fn redirects_are_followed_without_their_bodies_and_the_token_stays_with_scheme_host_and_port() {
        let ((hub, address), (storage, elsewhere)) = (listen(), listen());
        let back = format!("//{}", address.strip_prefix("http://").unwrap());
        let answers = [redirect("/b?c=d"), redirect(&back), redirect(&elsewhere)];
        let (hub, storage) = (serve(hub, answers.to_vec()), serve(storage, vec![WHOLE.to_owned()]));
        let mut body = String::new();
        let start = Instant::now();
        let mut response = get(&address, None).unwrap();
        response.body_mut().as_reader().read_to_string(&mut body).unwrap();
        assert_eq!(body, "ok");
        assert!(start.elapsed() < SILENCE_LIMIT / 2, "no body was awaited");
        let requests = hub.join().unwrap();
        for ((request, _), path) in requests.iter().zip(["/a", "/b?c=d", "/"]) {
            assert!(request.starts_with(&format!("GET {path} ")), "{request}");
            assert!(request.contains("Bearer secret"), "{request}");
        }
        let (request, _) = storage.join().unwrap().remove(0);
        assert!(!request.contains("secret") && request.contains("bytes=5-"), "{request}");
    }

    #[test]
    fn redirects_that_lead_nowhere_are_wrong_answers() {
        let (listener, address) = listen();
        let mut answers = vec![redirect("b"), "302 Found\r\nContent-Length: 0\r\n\r\n".to_owned()];
        answers.extend((0..=MAX_REDIRECTS).map(|_| redirect("/a")));
        let server = serve(listener, answers);
        for expected in ["leads nowhere", "leads nowhere", "more than 5 redirects"] {
            let error = get(&address, None).unwrap_err();
            assert!(matches!(error, ClientError::Answer { .. }), "{error}");
            assert!(error.to_string().contains(expected), "{error}");
        }
        assert_eq!(server.join().unwrap().len(), 3 + MAX_REDIRECTS);
    }

    #[test]
    fn a_redirect_leads_to_a_path_or_a_whole_address_and_stays_encrypted() {
        let from = "https://hub.example:1/a/b?c";
        for (location, expected) in [
            ("/x?y", Some("https://hub.example:1/x?y")),
            ("//cdn.example/x", Some("https://cdn.example/x")),
            ("HTTPS://cdn.example", Some("HTTPS://cdn.example")),
            ("http://hub.example:1/x", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(redirected(from, location).as_deref(), expected, "{location}");
        }
        assert_eq!(redirected("HTTPS://hub.example", "http://hub.example"), None);
        assert!(redirected("http://127.0.0.1:1/a", "http://localhost:2/b").is_some());
    }

    #[test]
    fn a_body_that_drips_ends_at_its_limit() {
        let (listener, address) = listen();
        let server = serve(listener, vec![WHOLE.replace("h: 2", "h: 1000000")]);
        let start = Instant::now();
        let mut response = get(&address, Some(Duration::from_millis(200))).unwrap();
        let error = response.body_mut().read_to_vec().unwrap_err();
        assert!(matches!(error, ureq::Error::Timeout(_)), "{error}");
        assert!(start.elapsed() < SILENCE_LIMIT / 2);
        server.join().unwrap();
    }

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
