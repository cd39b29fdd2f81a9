//! Repositories of a model hub: `GET /api/models/OWNER/NAME/revision/REVISION?blobs=true` lists the files,
//! `GET /OWNER/NAME/resolve/COMMIT/PATH` gives one.

use std::fmt;
use std::ops::ControlFlow;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;

use crate::ClientError;
use crate::digest::FileDigest;
use crate::http::{Http, Scheme, is_loopback, unreachable};

/// Largest list of a repository that is read, and the longest time until all of it is there.
const MAX_LIST_BYTES: u64 = 32 << 20;
const LIST_LIMIT: Duration = Duration::from_secs(120);
/// Most files of a repository, and the largest: sums of sizes fit.
const MAX_FILES: usize = 100_000;
const MAX_FILE_BYTES: u64 = 1 << 45;
/// Longest name of a repository or revision, bytes.
const MAX_NAME_BYTES: usize = 200;
/// Digits of a commit.
const COMMIT_DIGITS: usize = 40;
/// Longest part of an answer that a message repeats, characters.
const MAX_QUOTED: usize = 100;

/// A model hub.
#[derive(Clone, Debug)]
pub struct Hub {
    pub(crate) http: Http,
    /// Without a slash at the end.
    endpoint: String,
}

/// `OWNER/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepoName {
    owner: String,
    name: String,
}

/// A branch, a tag or a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revision(String);

/// A repository at one commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repository {
    /// Its name.
    pub name: RepoName,
    /// The commit that the revision meant, in hexadecimal.
    pub commit: String,
    /// All files.
    pub files: Vec<RemoteFile>,
}

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    /// Path in the repository. It comes from the hub: check it before a file is named by it.
    pub path: String,
    /// Size.
    pub n_bytes: u64,
    /// What the bytes add up to.
    pub digest: FileDigest,
}

impl Hub {
    /// A hub at an address, asked in the name of a token's owner, or of nobody. A token needs an encrypted address, or this machine.
    ///
    /// # Errors
    /// [`ClientError::Endpoint`], [`ClientError::Token`], [`ClientError::OpenToken`] and [`ClientError::Proxy`].
    pub fn new(endpoint: &str, token: Option<&str>) -> Result<Self, ClientError> {
        let wrong = || ClientError::Endpoint { endpoint: endpoint.to_owned() };
        let trimmed = endpoint.trim_end_matches('/');
        let (scheme, host) = match trimmed.split_once("://") {
            Some(("https", host)) => (Scheme::Https, host),
            Some(("http", host)) => (Scheme::Http, host),
            _ => return Err(wrong()),
        };
        // A name and password in the address would show in every message.
        let is_plain = |c: char| c.is_ascii_graphic() && !matches!(c, '?' | '#' | '@' | '\\');
        if host.is_empty() || host.starts_with('/') || !host.chars().all(is_plain) {
            return Err(wrong());
        }
        if token
            .is_some_and(|token| token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()))
        {
            return Err(ClientError::Token);
        }
        if token.is_some() && scheme == Scheme::Http && !is_loopback(host) {
            return Err(ClientError::OpenToken { endpoint: endpoint.to_owned() });
        }
        Ok(Self { http: Http::new(scheme, host, token)?, endpoint: trimmed.to_owned() })
    }

    /// The files of a repository.
    ///
    /// # Errors
    /// When the hub cannot be reached, does not know the repository, or answers something else.
    pub fn repository(
        &self,
        name: &RepoName,
        revision: &Revision,
    ) -> Result<Repository, ClientError> {
        let name_in_url = encoded(&revision.0, false);
        let url = format!("{}/api/models/{name}/revision/{name_in_url}?blobs=true", self.endpoint);
        let look = &mut || ControlFlow::Continue(());
        let mut response = self.http.get(&url, 0, Some(LIST_LIMIT), look)?;
        let body = response.body_mut().with_config().limit(MAX_LIST_BYTES).read_to_vec();
        let wrong = |problem: String| ClientError::Answer { url: url.clone(), problem };
        let body = body.map_err(|error| match error {
            ureq::Error::BodyExceedsLimit(limit) => {
                wrong(format!("the answer is longer than {limit} bytes"))
            }
            error => unreachable(&url, &error),
        })?;
        Repository::parse(name, revision, &body).map_err(wrong)
    }

    /// The address of a file.
    pub(crate) fn url(&self, repository: &Repository, file: &RemoteFile) -> String {
        let Repository { name, commit, .. } = repository;
        format!("{}/{name}/resolve/{commit}/{}", self.endpoint, encoded(&file.path, true))
    }
}

impl Repository {
    /// Reads a hub's list of the files of a revision.
    ///
    /// # Errors
    /// Says what is wrong with the list.
    pub fn parse(name: &RepoName, revision: &Revision, list: &[u8]) -> Result<Self, String> {
        let listed: Listed = serde_json::from_slice(list).map_err(|error| {
            format!("the answer is no list of files: {}", quoted(&error.to_string()))
        })?;
        if !is_commit(&listed.sha) {
            return Err(format!("`sha` is {}, expected a commit", quoted(&listed.sha)));
        }
        let asked_for = revision.0.to_ascii_lowercase();
        if is_commit(&asked_for) && listed.sha != asked_for {
            return Err(format!("`sha` is \"{}\", expected {asked_for}", listed.sha));
        }
        if listed.siblings.len() > MAX_FILES {
            let n = listed.siblings.len();
            return Err(format!("{n} files, expected at most {MAX_FILES}"));
        }
        let files = listed.siblings.into_iter().map(ListedFile::checked);
        let files = files.collect::<Result<_, _>>()?;
        Ok(Self { name: name.clone(), commit: listed.sha, files })
    }
}

/// The parts of the answer that are used.
#[derive(Deserialize)]
struct Listed {
    sha: String,
    siblings: Vec<ListedFile>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListedFile {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<ListedLfs>,
}

#[derive(Deserialize)]
struct ListedLfs {
    sha256: String,
    size: u64,
}

impl ListedFile {
    fn checked(self) -> Result<RemoteFile, String> {
        let path = self.rfilename;
        let (n_bytes, digest) = match (self.lfs, self.size, self.blob_id) {
            (Some(lfs), _, _) => (lfs.size, FileDigest::Sha256(lfs.sha256)),
            (None, Some(size), Some(id)) => (size, FileDigest::GitBlob(id)),
            _ => return Err(format!("file {} has no size or digest", quoted(&path))),
        };
        if n_bytes > MAX_FILE_BYTES {
            let path = quoted(&path);
            return Err(format!(
                "file {path} has {n_bytes} bytes, expected at most {MAX_FILE_BYTES}"
            ));
        }
        if !digest.is_well_formed() {
            let (path, hex) = (quoted(&path), quoted(digest.hex()));
            return Err(format!("{} of file {path} is {hex}", digest.kind()));
        }
        Ok(RemoteFile { path, n_bytes, digest })
    }
}

impl FromStr for RepoName {
    type Err = ClientError;

    fn from_str(text: &str) -> Result<Self, ClientError> {
        let is_part = |part: &str| {
            let is_known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            !part.is_empty()
                && part.len() <= MAX_NAME_BYTES
                && !part.starts_with('.')
                && part.chars().all(is_known)
        };
        match text.split_once('/') {
            Some((owner, name)) if is_part(owner) && is_part(name) => {
                Ok(Self { owner: owner.to_owned(), name: name.to_owned() })
            }
            _ => Err(ClientError::RepoName { name: text.to_owned() }),
        }
    }
}

impl fmt::Display for RepoName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.owner, self.name)
    }
}

impl RepoName {
    /// Who owns it.
    #[must_use]
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Revision {
    /// The branch `main`.
    #[must_use]
    pub fn main() -> Self {
        Self("main".to_owned())
    }
}

impl FromStr for Revision {
    type Err = ClientError;

    fn from_str(text: &str) -> Result<Self, ClientError> {
        let is_known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
        let is_right = !text.is_empty()
            && text.len() <= MAX_NAME_BYTES
            && !text.contains("..")
            && text.chars().all(is_known);
        if is_right {
            Ok(Self(text.to_owned()))
        } else {
            Err(ClientError::Revision { revision: text.to_owned() })
        }
    }
}

fn is_commit(text: &str) -> bool {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    text.len() == COMMIT_DIGITS && text.bytes().all(is_digit)
}

/// What a hub said, for a message: cut, and without what would break its line.
fn quoted(text: &str) -> String {
    let mut cut: String = text.chars().take(MAX_QUOTED).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    format!("{cut:?}")
}

/// Percent-encodes what a path of an address cannot hold; slashes stay where they part folders.
fn encoded(text: &str, keep_slashes: bool) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'/' if keep_slashes => out.push('/'),
            b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ if byte.is_ascii_alphanumeric() => out.push(char::from(byte)),
            _ => {
                out.push('%');
                out.push_str(&format!("{byte:02X}"));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_plain_addresses() {
        for right in ["https://huggingface.co", "http://127.0.0.1:8000/", "https://a.b/mirror/hf"] {
            assert!(Hub::new(right, None).is_ok(), "{right}");
        }
        for wrong in
            ["huggingface.co", "ftp://a", "https://", "https://a b", "https://me:pw@a", "http:///x"]
        {
            assert!(Hub::new(wrong, None).is_err(), "{wrong}");
        }
        assert!(matches!(Hub::new("https://a", Some("a b")), Err(ClientError::Token)));
        assert!(matches!(Hub::new("https://a", Some("a\r\nx: y")), Err(ClientError::Token)));
        let open = Hub::new("http://mirror.example", Some("a"));
        assert!(matches!(open, Err(ClientError::OpenToken { .. })), "{open:?}");
        for closed in ["https://mirror.example", "http://localhost:80"] {
            assert!(Hub::new(closed, Some("a")).is_ok(), "{closed}");
        }
    }

    #[test]
    fn names_cannot_leave_their_place_in_an_address() {
        let name: RepoName = "mistralai/Mistral-7B-v0.3".parse().unwrap();
        assert_eq!((name.owner(), name.name()), ("mistralai", "Mistral-7B-v0.3"));
        for wrong in ["a", "a/", "/b", "a/b/c", "../b", "a/..", "a/b?x", "a/b c", "a/é"] {
            assert!(wrong.parse::<RepoName>().is_err(), "{wrong}");
        }
        assert_eq!(encoded("refs/pr/1", false), "refs%2Fpr%2F1");
        assert_eq!(encoded("a b/é.gguf", true), "a%20b/%C3%A9.gguf");
        for wrong in ["", "a/../b", "a b", "x?y"] {
            assert!(wrong.parse::<Revision>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_list_without_digests_is_refused() {
        let file = |json: &str| serde_json::from_str::<ListedFile>(json).unwrap().checked();
        let lfs =
            r#"{"rfilename": "a", "size": 3, "blobId": "x", "lfs": {"sha256": "SUM", "size": 9}}"#;
        let sum = "0a".repeat(32);
        let large = lfs.replace("SUM", &sum).replace(": 9}", ": 18446744073709551615}");
        assert!(file(&large).unwrap_err().contains("expected at most"));
        let right = file(&lfs.replace("SUM", &sum)).unwrap();
        assert_eq!((right.n_bytes, right.digest), (9, FileDigest::Sha256(sum)));
        assert!(file(lfs).unwrap_err().contains(r#"SHA-256 of file "a" is "SUM""#));
        assert!(
            file(r#"{"rfilename": "a", "size": 3}"#).unwrap_err().contains("no size or digest")
        );
    }

    #[test]
    fn what_a_hub_says_forges_no_line_of_a_message() {
        let path = format!("a\\nhint: all is well{}", "b".repeat(1000));
        let listed = format!(r#"{{"rfilename": "{path}", "size": 3}}"#);
        let error = serde_json::from_str::<ListedFile>(&listed).unwrap().checked().unwrap_err();
        assert!(!error.contains('\n') && error.contains("a\\nhint"), "{error}");
        assert!(error.len() < 200 && error.contains('…'), "{error}");
    }
}
