//! A small HTTP client over plain sockets, so that tests can also send what no client would.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

/// One connection.
pub(crate) struct Connection {
    stream: BufReader<TcpStream>,
}

/// A response; the body is read whole, or line by line while it arrives.
pub(crate) struct Response {
    pub(crate) status: u16,
    /// Lower-case names.
    headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {} {}", self.status, self.body))
    }

    /// The error object, after checking that it has its four members.
    pub(crate) fn error(&self) -> Value {
        let body = self.json();
        let members = body["error"].as_object().expect("an error object");
        for name in ["message", "type", "param", "code"] {
            assert!(members.contains_key(name), "{name} in {body}");
        }
        body["error"].clone()
    }

    /// The events of a stream: name (empty if none) and data.
    pub(crate) fn events(&self) -> Vec<(String, String)> {
        let events = self.body.split("\n\n").filter(|event| !event.is_empty());
        let field = |event: &str, name: &str| {
            event.lines().find_map(|line| line.strip_prefix(name).map(str::to_owned))
        };
        events
            .filter(|event| !event.starts_with(':'))
            .map(|event| {
                (field(event, "event: ").unwrap_or_default(), field(event, "data: ").unwrap())
            })
            .collect()
    }
}

impl Connection {
    pub(crate) fn open(address: SocketAddr) -> Self {
        Self { stream: BufReader::new(TcpStream::connect(address).unwrap()) }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).unwrap();
    }

    /// Sends a request with the right `Host`, unless `headers` bring one.
    pub(crate) fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) {
        let mut head = format!("{method} {path} HTTP/1.1\r\n");
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            head.push_str("Host: localhost\r\n");
        }
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if method == "POST" {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        self.send(head.as_bytes());
        self.send(body);
    }

    /// True if the server ends the connection without a word; false if it has not within ten seconds.
    pub(crate) fn is_ended(&mut self) -> bool {
        let patience = std::time::Duration::from_secs(10);
        self.stream.get_ref().set_read_timeout(Some(patience)).unwrap();
        matches!(self.stream.read(&mut [0]), Ok(0))
    }

    /// One line without its end; none at the end of the connection.
    pub(crate) fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(line.trim_end().to_owned()),
        }
    }

    /// Status and headers.
    pub(crate) fn head(&mut self) -> Option<Response> {
        let status = self.line()?.split(' ').nth(1)?.parse().ok()?;
        let mut headers = Vec::new();
        while let Some(line) = self.line().filter(|line| !line.is_empty()) {
            let (name, value) = line.split_once(": ").unwrap();
            headers.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        Some(Response { status, headers, body: String::new() })
    }

    /// One piece of a chunked body; none at its end or when the connection breaks.
    pub(crate) fn chunk(&mut self) -> Option<Vec<u8>> {
        let length = usize::from_str_radix(&self.line()?, 16).ok()?;
        let mut chunk = vec![0; length + 2];
        self.stream.read_exact(&mut chunk).ok()?;
        chunk.truncate(length);
        (length > 0).then_some(chunk)
    }

    /// A whole response.
    pub(crate) fn response(&mut self) -> Response {
        let mut response = self.head().expect("a response");
        let mut body = Vec::new();
        if response.header("transfer-encoding") == Some("chunked") {
            while let Some(chunk) = self.chunk() {
                body.extend(chunk);
            }
        } else if let Some(length) = response.header("content-length") {
            body.resize(length.parse().unwrap(), 0);
            self.stream.read_exact(&mut body).unwrap();
        }
        response.body = String::from_utf8(body).unwrap();
        response
    }
}

pub(crate) fn get(address: SocketAddr, path: &str) -> Response {
    get_with(address, path, &[])
}

pub(crate) fn get_with(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Response {
    let mut connection = Connection::open(address);
    connection.request("GET", path, headers, b"");
    connection.response()
}

pub(crate) fn post(address: SocketAddr, path: &str, body: &Value) -> Response {
    let mut connection = Connection::open(address);
    let body = body.to_string();
    connection.request("POST", path, &[("Content-Type", "application/json")], body.as_bytes());
    connection.response()
}
