//! A model hub on a local port, with one repository and faults on demand.

use std::collections::{HashMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// The repository.
pub const REPOSITORY: &str = "acme/tiny";
/// The commit that [`FakeHub::start`] serves.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What goes wrong with the next answer that holds a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connection ends after so many bytes of the body.
    BreakAfter(usize),
    /// An answer without a body.
    Status(u16),
    /// The whole file, whatever part was asked for.
    Whole,
    /// The first byte is another one.
    Damaged,
    /// More bytes than the list says.
    Longer,
}

/// A request that was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Path and query.
    pub path: String,
    /// `host`.
    pub host: Option<String>,
    /// `authorization`.
    pub authorization: Option<String>,
    /// `range`.
    pub range: Option<String>,
}

/// The hub; its threads end with the process.
#[derive(Debug)]
pub struct FakeHub {
    port: u16,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    commit: &'static str,
    files: Vec<(String, Vec<u8>)>,
    /// Told in place of the true ones.
    sizes: Mutex<HashMap<String, u64>>,
    faults: Mutex<VecDeque<Fault>>,
    requests: Mutex<Vec<Request>>,
}

impl FakeHub {
    /// Serves files of the repository. Weights are told by SHA-256 and come from another host, by a redirect; other files are
    /// told by git's digest and come from the hub itself.
    ///
    /// # Panics
    /// When no port can be opened.
    #[must_use]
    pub fn start(files: Vec<(String, Vec<u8>)>) -> Self {
        Self::start_at(COMMIT, files)
    }

    /// As [`FakeHub::start`], at another commit, in hexadecimal.
    ///
    /// # Panics
    /// As [`FakeHub::start`].
    #[must_use]
    pub fn start_at(commit: &'static str, files: Vec<(String, Vec<u8>)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("a bound port").port();
        let (sizes, faults, requests) = Default::default();
        let state = Arc::new(State { commit, files, sizes, faults, requests });
        let shared = Arc::clone(&state);
        spawn("hub", move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                // A client that goes away ends its thread.
                spawn("hub-client", move || while state.answer(&stream, port).unwrap_or(false) {});
            }
        });
        Self { port, state }
    }

    /// Its address.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Lets the next answers with files fail, one fault each.
    ///
    /// # Panics
    /// When a thread of the hub panicked.
    pub fn fail_with(&self, faults: impl IntoIterator<Item = Fault>) {
        self.state.faults.lock().expect("no thread panicked").extend(faults);
    }

    /// Lets the list tell another size of a file than the true one.
    ///
    /// # Panics
    /// When a thread of the hub panicked.
    pub fn tell_size(&self, name: &str, n_bytes: u64) {
        let mut sizes = self.state.sizes.lock().expect("no thread panicked");
        sizes.insert(name.to_owned(), n_bytes);
    }

    /// What was asked since the last call.
    ///
    /// # Panics
    /// When a thread of the hub panicked.
    #[must_use]
    pub fn take_requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.state.requests.lock().expect("no thread panicked"))
    }
}

impl State {
    /// Answers one request; false when there is none any more.
    fn answer(&self, mut stream: &TcpStream, port: u16) -> std::io::Result<bool> {
        let mut reader = BufReader::new(stream);
        let mut first = String::new();
        if reader.read_line(&mut first)? == 0 {
            return Ok(false);
        }
        let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut request = Request { path, host: None, authorization: None, range: None };
        let mut line = String::new();
        while reader.read_line(&mut line)? > 2 {
            if let Some((name, value)) = line.split_once(':') {
                let value = Some(value.trim().to_owned());
                match name.to_ascii_lowercase().as_str() {
                    "host" => request.host = value,
                    "authorization" => request.authorization = value,
                    "range" => request.range = value,
                    _ => {}
                }
            }
            line.clear();
        }
        self.requests.lock().expect("no thread panicked").push(request.clone());
        let list = format!("/api/models/{REPOSITORY}/revision/");
        let resolve = format!("/{REPOSITORY}/resolve/{}/", self.commit);
        if request.path.starts_with(&list) {
            let body = self.list();
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
        } else if let Some(name) = request.path.strip_prefix(&resolve) {
            if is_large(name) {
                // Another name of this machine is another host.
                write!(
                    stream,
                    "HTTP/1.1 302 Found\r\nLocation: http://localhost:{port}/storage/{name}\r\nContent-Length: 0\r\n\r\n"
                )?;
            } else {
                return self.send(stream, name, &request);
            }
        } else if let Some(name) = request.path.strip_prefix("/storage/") {
            return self.send(stream, name, &request);
        } else {
            write!(stream, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?;
        }
        Ok(true)
    }

    fn list(&self) -> String {
        let sizes = self.sizes.lock().expect("no thread panicked");
        let describe = |(name, bytes): &(String, Vec<u8>)| {
            let n = sizes.get(name).copied().unwrap_or(bytes.len() as u64);
            let id = hex(&Sha1::new()
                .chain_update(format!("blob {n}\0"))
                .chain_update(bytes)
                .finalize());
            let lfs = if is_large(name) {
                format!(
                    r#","lfs":{{"sha256":"{}","size":{n},"pointerSize":130}}"#,
                    hex(&Sha256::digest(bytes))
                )
            } else {
                String::new()
            };
            format!(r#"{{"rfilename":"{name}","size":{n},"blobId":"{id}"{lfs}}}"#)
        };
        let files: Vec<String> = self.files.iter().map(describe).collect();
        let (sha, files) = (self.commit, files.join(","));
        format!(r#"{{"id":"{REPOSITORY}","sha":"{sha}","siblings":[{files}]}}"#)
    }

    fn send(&self, mut stream: &TcpStream, name: &str, request: &Request) -> std::io::Result<bool> {
        let Some((_, bytes)) = self.files.iter().find(|(found, _)| found == name) else {
            write!(stream, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?;
            return Ok(true);
        };
        let fault = self.faults.lock().expect("no thread panicked").pop_front();
        let mut bytes = bytes.clone();
        match fault {
            Some(Fault::Status(status)) => {
                write!(stream, "HTTP/1.1 {status} Fault\r\nContent-Length: 0\r\n\r\n")?;
                return Ok(true);
            }
            Some(Fault::Damaged) => bytes[0] ^= 1,
            Some(Fault::Longer) => bytes.push(0),
            _ => {}
        }
        let start = request.range.as_deref().and_then(|range| {
            range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok()
        });
        let start = start.filter(|_| fault != Some(Fault::Whole));
        let n_total = bytes.len();
        let body = &bytes[start.unwrap_or(0).min(n_total)..];
        match start {
            None => write!(stream, "HTTP/1.1 200 OK\r\n")?,
            Some(start) => write!(
                stream,
                "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {start}-{}/{n_total}\r\n",
                n_total - 1
            )?,
        }
        write!(stream, "Content-Length: {}\r\n\r\n", body.len())?;
        if let Some(Fault::BreakAfter(n)) = fault {
            stream.write_all(&body[..n.min(body.len())])?;
            return Ok(false);
        }
        stream.write_all(body)?;
        Ok(true)
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) {
    let thread = thread::Builder::new().name(name.to_owned()).spawn(run);
    drop(thread.expect("the system gives a thread"));
}

fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors") || name.ends_with(".gguf")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
