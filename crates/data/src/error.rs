//! What can go wrong while reading or preparing data.

use std::path::{Path, PathBuf};

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A file or folder could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried: `read`, `write`, `list`, ...
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Writing a shard failed.
    #[error(transparent)]
    Format(#[from] formats::FormatError),
    /// A folder without anything to read.
    #[error("{} is empty: expected .txt or .md files", dir.display())]
    EmptyFolder {
        /// The folder.
        dir: PathBuf,
    },
    /// A folder with files, none of which is a text file.
    #[error("no text in {}: none of its {n_files} files is a .txt or .md file with text", dir.display())]
    NoText {
        /// The folder.
        dir: PathBuf,
        /// Files that are there.
        n_files: u64,
    },
    /// A text that cannot be in memory as a whole.
    #[error("{} has {n_bytes} bytes, expected at most {limit}: cut it into several files", path.display())]
    FileTooLong {
        /// The file.
        path: PathBuf,
        /// Its length.
        n_bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// A file named as text that holds something else.
    #[error("{} looks like a binary file: NUL at byte {offset}, expected UTF-8 text", path.display())]
    Binary {
        /// The file.
        path: PathBuf,
        /// Where the first NUL byte is.
        offset: u64,
    },
    /// Text in another encoding, or damaged.
    #[error("{} is not valid UTF-8 at byte {offset}", path.display())]
    InvalidUtf8 {
        /// The file.
        path: PathBuf,
        /// Where the first invalid byte is.
        offset: u64,
    },
    /// Folders inside folders without end.
    #[error("{} is nested more than {limit} folders deep", path.display())]
    TooDeep {
        /// The folder.
        path: PathBuf,
        /// The bound.
        limit: usize,
    },
    /// A field of a shard's manifest cannot be right.
    #[error("field `{field}` of {} is {got}, expected {expected}", path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// The field.
        field: &'static str,
        /// Its value.
        got: String,
        /// What would have been accepted.
        expected: String,
    },
    /// A manifest is not JSON, or not the JSON it should be.
    #[error("{} is not a valid manifest: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A shard's file is not what its manifest says.
    #[error("{} is damaged: {what} is {got}, expected {expected}", path.display())]
    DamagedShard {
        /// The file.
        path: PathBuf,
        /// What was compared: `size in bytes`, `sha256`, `token id`, ...
        what: &'static str,
        /// What was found.
        got: String,
        /// What the manifest says.
        expected: String,
    },
    /// A token id that the shard's number type or vocabulary does not hold.
    #[error("token id {got} of document {document_idx} is outside the vocabulary of {vocab_size}")]
    TokenId {
        /// The document.
        document_idx: usize,
        /// The id.
        got: u32,
        /// Number of ids.
        vocab_size: usize,
    },
    /// Token ids and marks of a sample differ in number.
    #[error(
        "sample {sample_idx} has {n_tokens} tokens and {n_marks} trained marks, expected as many"
    )]
    SampleLength {
        /// The sample.
        sample_idx: usize,
        /// Its tokens.
        n_tokens: usize,
        /// Its marks.
        n_marks: usize,
    },
    /// A setting of the packing cannot be used.
    #[error("{field} is {got}, expected {expected}")]
    Setting {
        /// The setting.
        field: &'static str,
        /// Its value.
        got: String,
        /// What would have been accepted.
        expected: &'static str,
    },
    /// Nothing is left to train on.
    #[error(
        "nothing to train on: {n_samples} samples, {n_too_long} of them longer than {seq_len} tokens"
    )]
    NothingToTrain {
        /// Samples given.
        n_samples: usize,
        /// Those that do not fit into a row.
        n_too_long: usize,
        /// Tokens of a row.
        seq_len: usize,
    },
}

impl DataError {
    /// Makes `map_err` closures short: `.map_err(DataError::io("read", path))`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}
