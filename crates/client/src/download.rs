//! A download: into `FILE.part`, resumed where it stopped, checked, then renamed.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use crate::ClientError;
use crate::digest::Hasher;
use crate::http::Tries;
use crate::hub::{Hub, RemoteFile, Repository};

/// Bytes read at a time.
const READ_BYTES: usize = 1 << 18;

/// What a download took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Downloaded {
    /// Bytes that were there from an earlier try.
    pub n_kept: u64,
    /// Bytes that came over the network.
    pub n_fetched: u64,
}

/// Where a file is until it is whole.
#[must_use]
pub fn partial_path(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".part");
    PathBuf::from(name)
}

impl Hub {
    /// Downloads a file to `path`, and makes it durable. `observe` is told how many bytes are there, and may break the download
    /// off; what has arrived stays in [`partial_path`] and the next call goes on from it. A file that is there already is
    /// compared with its digest as a new one is.
    ///
    /// A connection that breaks is made again for as long as bytes arrive between the breaks.
    ///
    /// # Errors
    /// When the hub cannot be reached, the bytes are not those it lists (they are removed), or a file cannot be written.
    pub fn download(
        &self,
        repository: &Repository,
        file: &RemoteFile,
        path: &Path,
        observe: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<Downloaded, ClientError> {
        if path.is_file() {
            fs::rename(path, partial_path(path)).map_err(ClientError::io("rename", path))?;
        }
        let mut partial = Partial::open(file, path)?;
        let n_kept = partial.n_bytes;
        let url = self.url(repository, file);
        let mut tries = Tries::new();
        while partial.n_bytes < file.n_bytes {
            let before = partial.n_bytes;
            let end = self.fetch(&url, &mut partial, observe)?;
            if partial.n_bytes > before {
                tries = Tries::new();
            }
            if let Some(reason) = end
                && !tries.wait(None, &mut || observe(partial.n_bytes))
            {
                return Err(ClientError::Unreachable { url, reason });
            }
        }
        let n_fetched = partial.n_bytes - n_kept;
        partial.finish()?;
        Ok(Downloaded { n_kept, n_fetched })
    }

    /// One answer, from where the partial file ends. Gives the reason when it broke off before its end.
    fn fetch(
        &self,
        url: &str,
        partial: &mut Partial<'_>,
        observe: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<Option<String>, ClientError> {
        let from = partial.n_bytes;
        let response = self.http.get(url, from, &mut || observe(from))?;
        if partial.n_bytes > 0 && !is_from(&response, partial.n_bytes) {
            // A server without ranges sends the whole.
            partial.restart()?;
        }
        let n_missing = partial.remote.n_bytes - partial.n_bytes;
        let mut body = response.into_body().into_with_config().limit(u64::MAX).reader();
        let mut buffer = vec![0; READ_BYTES];
        let mut n_read = 0;
        loop {
            if observe(partial.n_bytes).is_break() {
                partial.sync()?;
                let (path, n_bytes) = (partial.path.to_owned(), partial.n_bytes);
                return Err(ClientError::Stopped { path, n_bytes });
            }
            match body.read(&mut buffer) {
                Ok(0) if n_read < n_missing => {
                    return Ok(Some(format!(
                        "the answer ended after {n_read} of {n_missing} bytes"
                    )));
                }
                Ok(0) => return Ok(None),
                Ok(n) => {
                    n_read += n as u64;
                    if n_read > n_missing {
                        return Err(ClientError::Answer {
                            url: url.to_owned(),
                            problem: format!(
                                "the file is longer than {} bytes",
                                partial.remote.n_bytes
                            ),
                        });
                    }
                    partial.append(&buffer[..n])?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Ok(Some(error.to_string())),
            }
        }
    }
}

/// Whether an answer is the part of a file that begins at a byte.
fn is_from(response: &ureq::http::Response<ureq::Body>, from: u64) -> bool {
    let range = response.headers().get("content-range").and_then(|value| value.to_str().ok());
    let start = range.and_then(|range| range.strip_prefix("bytes "));
    response.status() == 206 && start.is_some_and(|start| start.starts_with(&format!("{from}-")))
}

/// The file being filled, and the sum of what is in it.
struct Partial<'a> {
    path: &'a Path,
    partial: PathBuf,
    file: File,
    hasher: Hasher,
    n_bytes: u64,
    remote: &'a RemoteFile,
}

impl<'a> Partial<'a> {
    /// Opens what an earlier try left, and sums it up.
    fn open(remote: &'a RemoteFile, path: &'a Path) -> Result<Self, ClientError> {
        let partial = partial_path(path);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(&partial).map_err(ClientError::io("open", &partial))?;
        let mut hasher = remote.digest.hasher(remote.n_bytes);
        let mut n_bytes = 0;
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let n = file.read(&mut buffer).map_err(ClientError::io("read", &partial))?;
            if n == 0 {
                break;
            }
            n_bytes += n as u64;
            hasher.update(&buffer[..n]);
        }
        let mut opened = Self { path, partial, file, hasher, n_bytes, remote };
        if n_bytes > remote.n_bytes {
            opened.restart()?;
        }
        Ok(opened)
    }

    fn restart(&mut self) -> Result<(), ClientError> {
        let emptied = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        emptied.map_err(ClientError::io("empty", &self.partial))?;
        self.hasher = self.remote.digest.hasher(self.remote.n_bytes);
        self.n_bytes = 0;
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        self.file.write_all(bytes).map_err(ClientError::io("write", &self.partial))?;
        self.hasher.update(bytes);
        self.n_bytes += bytes.len() as u64;
        Ok(())
    }

    fn sync(&self) -> Result<(), ClientError> {
        self.file.sync_all().map_err(ClientError::io("sync", &self.partial))
    }

    /// Compares the sum, and gives the file its name.
    fn finish(self) -> Result<(), ClientError> {
        let (got, expected) = (self.hasher.hex(), &self.remote.digest);
        if got != expected.hex() {
            fs::remove_file(&self.partial).map_err(ClientError::io("remove", &self.partial))?;
            return Err(ClientError::Digest {
                path: self.path.to_owned(),
                kind: expected.kind(),
                got,
                expected: expected.hex().to_owned(),
            });
        }
        self.file.sync_all().map_err(ClientError::io("sync", &self.partial))?;
        fs::rename(&self.partial, self.path).map_err(ClientError::io("rename", self.path))
    }
}
