//! A download: into `FILE.DIGEST.part`, resumed where it stopped, checked, then renamed.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::{Add, ControlFlow};
use std::path::{Path, PathBuf};

use crate::ClientError;
use crate::digest::Hasher;
use crate::http::{Tries, Waited};
use crate::hub::{Hub, RemoteFile, Repository};

/// Bytes read at a time.
const READ_BYTES: usize = 1 << 18;
/// Digits of a digest that tell the parts of two files apart.
const N_DIGITS: usize = 12;

/// What a download took, or has taken so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Downloaded {
    /// Bytes that were there from an earlier try.
    pub n_kept: u64,
    /// Bytes that came over the network.
    pub n_fetched: u64,
}

impl Downloaded {
    /// Bytes that are there.
    #[must_use]
    pub fn n_bytes(self) -> u64 {
        self.n_kept + self.n_fetched
    }
}

impl Add for Downloaded {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let Self { n_kept, n_fetched } = other;
        Self { n_kept: self.n_kept + n_kept, n_fetched: self.n_fetched + n_fetched }
    }
}

/// Told how far a download is; may break it off.
type Observer<'a> = &'a mut dyn FnMut(Downloaded) -> ControlFlow<()>;

impl RemoteFile {
    /// Where the file is until it is whole. The name says of which bytes it is a part: a repository may come to hold others under
    /// the same name, of which they are no beginning.
    #[must_use]
    pub fn partial_path(&self, path: &Path) -> PathBuf {
        let hex = self.digest.hex();
        let mut name = OsString::from(path);
        name.push(format!(".{}.part", hex.get(..N_DIGITS).unwrap_or(hex)));
        PathBuf::from(name)
    }
}

impl Hub {
    /// Downloads a file to `path`, and makes it durable. `observe` is told how far it is, also while what an earlier try left is
    /// summed up, and may break the download off; what has arrived stays in [`RemoteFile::partial_path`] and the next call goes on
    /// from it. A file that is there already is kept where it is the one that the hub lists, and fetched anew where it is not.
    ///
    /// A connection that breaks is made again for as long as bytes arrive between the breaks.
    ///
    /// # Errors
    /// When the hub cannot be reached, the bytes are not those it lists (they are removed), a file cannot be written, or `observe`
    /// broke off ([`ClientError::Stopped`]).
    pub fn download(
        &self,
        repository: &Repository,
        file: &RemoteFile,
        path: &Path,
        observe: Observer<'_>,
    ) -> Result<Downloaded, ClientError> {
        let url = self.url(repository, file);
        if path.is_file() {
            if is_listed(file, path, &url, observe)? {
                return Ok(Downloaded { n_kept: file.n_bytes, n_fetched: 0 });
            }
            fs::remove_file(path).map_err(ClientError::io("remove", path))?;
        }
        let mut partial = Partial::open(file, path, &url, observe)?;
        let mut tries = Tries::new();
        while partial.n_bytes() < file.n_bytes {
            let before = partial.n_bytes();
            let end = self.fetch(&url, &mut partial, observe)?;
            if partial.n_bytes() > before {
                tries = Tries::new();
            }
            let Some(reason) = end else { continue };
            match tries.wait(None, &mut || observe(partial.so_far)) {
                Waited::Next => {}
                Waited::NoneLeft => return Err(ClientError::Unreachable { url, reason }),
                Waited::Stopped => return Err(ClientError::Stopped { url }),
            }
        }
        partial.finish()
    }

    /// One answer, from where the partial file ends. Gives the reason when it broke off before its end.
    fn fetch(
        &self,
        url: &str,
        partial: &mut Partial<'_>,
        observe: Observer<'_>,
    ) -> Result<Option<String>, ClientError> {
        let from = partial.n_bytes();
        let response = self.http.get(url, from, None, &mut || observe(partial.so_far))?;
        if from > 0 && !is_from(&response, from) {
            // A server without ranges sends the whole.
            partial.restart()?;
        }
        let n_missing = partial.remote.n_bytes - partial.n_bytes();
        let mut body = response.into_body().into_with_config().limit(u64::MAX).reader();
        let mut buffer = vec![0; READ_BYTES];
        let mut n_read = 0;
        loop {
            if observe(partial.so_far).is_break() {
                partial.sync()?;
                return Err(ClientError::Stopped { url: url.to_owned() });
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

/// Whether a file is the one that the hub lists.
fn is_listed(
    remote: &RemoteFile,
    path: &Path,
    url: &str,
    observe: Observer<'_>,
) -> Result<bool, ClientError> {
    let mut file = File::open(path).map_err(ClientError::io("open", path))?;
    let found = file.metadata().map_err(ClientError::io("inspect", path))?;
    if found.len() != remote.n_bytes {
        return Ok(false);
    }
    let (_, sum) = sum_up(&mut file, remote, path, url, observe)?;
    Ok(sum.hex() == remote.digest.hex())
}

/// The number of bytes in a file, and the sum that they begin or make.
fn sum_up(
    file: &mut File,
    remote: &RemoteFile,
    path: &Path,
    url: &str,
    observe: Observer<'_>,
) -> Result<(u64, Hasher), ClientError> {
    let mut hasher = remote.digest.hasher(remote.n_bytes);
    let mut n_bytes = 0;
    let mut buffer = vec![0; READ_BYTES];
    loop {
        if observe(Downloaded { n_kept: n_bytes, n_fetched: 0 }).is_break() {
            return Err(ClientError::Stopped { url: url.to_owned() });
        }
        let n = file.read(&mut buffer).map_err(ClientError::io("read", path))?;
        if n == 0 {
            return Ok((n_bytes, hasher));
        }
        n_bytes += n as u64;
        hasher.update(&buffer[..n]);
    }
}

/// The file being filled, and the sum of what is in it.
struct Partial<'a> {
    path: &'a Path,
    partial: PathBuf,
    file: File,
    hasher: Hasher,
    so_far: Downloaded,
    remote: &'a RemoteFile,
}

impl<'a> Partial<'a> {
    /// Opens what an earlier try left, and sums it up.
    fn open(
        remote: &'a RemoteFile,
        path: &'a Path,
        url: &str,
        observe: Observer<'_>,
    ) -> Result<Self, ClientError> {
        let partial = remote.partial_path(path);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(&partial).map_err(ClientError::io("open", &partial))?;
        let (n_kept, hasher) = sum_up(&mut file, remote, &partial, url, observe)?;
        let so_far = Downloaded { n_kept, n_fetched: 0 };
        let mut opened = Self { path, partial, file, hasher, so_far, remote };
        if n_kept > remote.n_bytes {
            opened.restart()?;
        }
        Ok(opened)
    }

    fn n_bytes(&self) -> u64 {
        self.so_far.n_bytes()
    }

    fn restart(&mut self) -> Result<(), ClientError> {
        let emptied = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        emptied.map_err(ClientError::io("empty", &self.partial))?;
        self.hasher = self.remote.digest.hasher(self.remote.n_bytes);
        self.so_far = Downloaded::default();
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        self.file.write_all(bytes).map_err(ClientError::io("write", &self.partial))?;
        self.hasher.update(bytes);
        self.so_far.n_fetched += bytes.len() as u64;
        Ok(())
    }

    fn sync(&self) -> Result<(), ClientError> {
        self.file.sync_all().map_err(ClientError::io("sync", &self.partial))
    }

    /// Compares the sum, and gives the file its name.
    fn finish(self) -> Result<Downloaded, ClientError> {
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
        fs::rename(&self.partial, self.path).map_err(ClientError::io("rename", self.path))?;
        Ok(self.so_far)
    }
}
