//! Token shards: the tokens of many documents on disk.
//!
//! A shard is a folder with `tokens.bin` (u16 when the vocabulary fits, else u32; little-endian), `offsets.bin` (u64,
//! one per document and one more: where each document begins, and the end) and `manifest.json`, which names the
//! tokenizer and the sources and holds the sums of both files. It is written under a temporary name and renamed.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use formats::check_format_version;
use formats::digest::hex;
use formats::durable::{TemporaryDir, open_regular, read_bounded, write_json_atomically};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::DataError;

mod documents;

pub use documents::TokenDocuments;

/// Tokens of all documents, one after another.
pub const TOKENS_FILE: &str = "tokens.bin";
/// Where each document begins, and the end of the last.
pub const OFFSETS_FILE: &str = "offsets.bin";
/// What the shard holds.
pub const MANIFEST_FILE: &str = "manifest.json";

const FORMAT_VERSION: u64 = 1;
/// Largest manifest that is read.
const MAX_MANIFEST_BYTES: u64 = 16 << 20;
/// Most tokens of one shard.
const MAX_TOKENS: u64 = 1 << 40;
/// Bytes read or written at a time.
const BUFFER_BYTES: usize = 1 << 18;

/// Number type of stored token ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenDtype {
    /// 16-bit, for vocabularies of at most 65,536 ids.
    U16,
    /// 32-bit.
    U32,
}

impl TokenDtype {
    /// The smallest type that holds every id of a vocabulary.
    #[must_use]
    pub fn for_vocab(vocab_size: usize) -> Self {
        if vocab_size <= 1 << 16 { Self::U16 } else { Self::U32 }
    }

    /// Bytes of one token.
    #[must_use]
    pub const fn n_bytes(self) -> u64 {
        match self {
            Self::U16 => 2,
            Self::U32 => 4,
        }
    }
}

/// What a shard holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this format.
    pub format_version: u64,
    /// Digest of the tokenizer that made the tokens.
    pub tokenizer_digest: String,
    /// Number of ids of that tokenizer.
    pub vocab_size: usize,
    /// Number type of the tokens.
    pub dtype: TokenDtype,
    /// Tokens of all documents.
    pub n_tokens: u64,
    /// Number of documents.
    pub n_documents: u64,
    /// Where the text comes from, as the caller names it.
    pub sources: Vec<String>,
    /// SHA-256 of `tokens.bin`.
    pub tokens_sha256: String,
    /// SHA-256 of `offsets.bin`.
    pub offsets_sha256: String,
}

/// A file that is summed while it is written.
#[derive(Debug)]
struct SummedFile {
    /// The file under its temporary folder, for messages.
    path: PathBuf,
    writer: BufWriter<File>,
    sum: Sha256,
}

impl SummedFile {
    fn create(path: PathBuf) -> Result<Self, DataError> {
        let file = File::create_new(&path).map_err(DataError::io("create", &path))?;
        let writer = BufWriter::with_capacity(BUFFER_BYTES, file);
        Ok(Self { path, writer, sum: Sha256::new() })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), DataError> {
        self.sum.update(bytes);
        self.writer.write_all(bytes).map_err(DataError::io("write", &self.path))
    }

    /// Flushes and returns the sum; the file is synced by the commit of the folder.
    fn finish(mut self) -> Result<String, DataError> {
        self.writer.flush().map_err(DataError::io("write", &self.path))?;
        Ok(hex(self.sum))
    }
}

/// Writes a shard document by document; memory is two buffers. Dropped without [`ShardWriter::finish`], it leaves
/// nothing.
#[derive(Debug)]
pub struct ShardWriter {
    temporary: TemporaryDir,
    tokens: SummedFile,
    offsets: SummedFile,
    manifest: Manifest,
    /// Bytes of the document being written, kept to save allocations.
    bytes: Vec<u8>,
}

impl ShardWriter {
    /// Starts a shard that will be the folder `dir`; its parent must exist.
    ///
    /// # Errors
    /// When `dir` exists or cannot be created, or the vocabulary is empty or too large.
    pub fn create(
        dir: &Path,
        tokenizer_digest: &str,
        vocab_size: usize,
    ) -> Result<Self, DataError> {
        if vocab_size == 0 || u32::try_from(vocab_size).is_err() {
            let (got, expected) = (vocab_size.to_string(), "1 to 2^32 - 1");
            return Err(DataError::Setting { field: "vocab_size", got, expected });
        }
        if dir.symlink_metadata().is_ok() {
            return Err(formats::FormatError::Exists { path: dir.to_owned() }.into());
        }
        let temporary = TemporaryDir::beside(dir)?;
        let tokens = SummedFile::create(temporary.path().join(TOKENS_FILE))?;
        let mut offsets = SummedFile::create(temporary.path().join(OFFSETS_FILE))?;
        offsets.write(&0u64.to_le_bytes())?;
        let manifest = Manifest {
            format_version: FORMAT_VERSION,
            tokenizer_digest: tokenizer_digest.to_owned(),
            vocab_size,
            dtype: TokenDtype::for_vocab(vocab_size),
            n_tokens: 0,
            n_documents: 0,
            sources: Vec::new(),
            tokens_sha256: String::new(),
            offsets_sha256: String::new(),
        };
        Ok(Self { temporary, tokens, offsets, manifest, bytes: Vec::new() })
    }

    /// Adds one document.
    ///
    /// # Errors
    /// When an id is outside the vocabulary, or writing fails.
    pub fn add(&mut self, token_ids: &[u32]) -> Result<(), DataError> {
        let vocab_size = self.manifest.vocab_size;
        if let Some(&got) = token_ids.iter().find(|&&id| id as usize >= vocab_size) {
            let document_idx = usize::try_from(self.manifest.n_documents).unwrap_or(usize::MAX);
            return Err(DataError::TokenId { document_idx, got, vocab_size });
        }
        self.bytes.clear();
        for &id in token_ids {
            match self.manifest.dtype {
                // The vocabulary has at most 65,536 ids, so the upper half is zero.
                TokenDtype::U16 => self.bytes.extend_from_slice(&(id as u16).to_le_bytes()),
                TokenDtype::U32 => self.bytes.extend_from_slice(&id.to_le_bytes()),
            }
        }
        self.tokens.write(&self.bytes)?;
        self.manifest.n_tokens += token_ids.len() as u64;
        self.manifest.n_documents += 1;
        self.offsets.write(&self.manifest.n_tokens.to_le_bytes())
    }

    /// Writes the manifest and makes the shard visible.
    ///
    /// # Errors
    /// When writing, syncing or renaming fails; nothing is left behind.
    pub fn finish(mut self, sources: Vec<String>) -> Result<Manifest, DataError> {
        self.manifest.sources = sources;
        self.manifest.tokens_sha256 = self.tokens.finish()?;
        self.manifest.offsets_sha256 = self.offsets.finish()?;
        let path = self.temporary.path().join(MANIFEST_FILE);
        write_json_atomically(&path, &self.manifest)?;
        self.temporary.commit()?;
        Ok(self.manifest)
    }
}

/// A shard in memory: `n_tokens * dtype` bytes plus 8 bytes per document.
#[derive(Debug)]
pub struct Shard {
    /// What the shard holds.
    pub manifest: Manifest,
    /// Its documents.
    pub documents: TokenDocuments,
}

impl Shard {
    /// Reads a shard and verifies sizes, sums, offsets and ids. Nothing is allocated that the files' sizes do not justify.
    ///
    /// # Errors
    /// When a file is missing, damaged or not what the manifest says; the error names it.
    pub fn open(dir: &Path) -> Result<Self, DataError> {
        let manifest = read_manifest(&dir.join(MANIFEST_FILE))?;
        let tokens_path = dir.join(TOKENS_FILE);
        let offsets_path = dir.join(OFFSETS_FILE);
        let n_tokens_bytes = manifest.n_tokens * manifest.dtype.n_bytes();
        let n_offsets_bytes = (manifest.n_documents + 1) * 8;
        let offset_bytes = read_whole(&offsets_path, n_offsets_bytes, &manifest.offsets_sha256)?;
        let offsets: Vec<u64> = offset_bytes
            .as_chunks::<8>()
            .0
            .iter()
            .map(|bytes| u64::from_le_bytes(*bytes))
            .collect();
        drop(offset_bytes);
        check_offsets(&offsets_path, &offsets, manifest.n_tokens)?;
        let bytes = read_whole(&tokens_path, n_tokens_bytes, &manifest.tokens_sha256)?;
        let documents = match manifest.dtype {
            TokenDtype::U16 => {
                let ids = bytes.as_chunks::<2>().0.iter().map(|bytes| u16::from_le_bytes(*bytes));
                TokenDocuments::from_u16(ids.collect(), offsets)
            }
            TokenDtype::U32 => {
                let ids = bytes.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes));
                TokenDocuments::from_u32(ids.collect(), offsets)
            }
        };
        match documents.largest_id() {
            Some(id) if id as usize >= manifest.vocab_size => Err(DataError::DamagedShard {
                path: tokens_path,
                what: "largest token id",
                got: id.to_string(),
                expected: format!("below {}", manifest.vocab_size),
            }),
            _ => Ok(Self { manifest, documents }),
        }
    }
}

fn read_manifest(path: &Path) -> Result<Manifest, DataError> {
    let bad = |field: &'static str, got: String, expected: String| DataError::Manifest {
        path: path.to_owned(),
        field,
        got,
        expected,
    };
    let bytes = read_bounded(path, MAX_MANIFEST_BYTES)?;
    let json = |source| DataError::Json { path: path.to_owned(), source };
    let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(json)?;
    // The version is judged before the fields, which a newer version may have changed.
    check_format_version(path, &value, FORMAT_VERSION)?;
    let manifest: Manifest = serde_json::from_value(value).map_err(json)?;
    if manifest.vocab_size == 0 || u32::try_from(manifest.vocab_size).is_err() {
        let got = manifest.vocab_size.to_string();
        return Err(bad("vocab_size", got, "1 to 2^32 - 1".to_owned()));
    }
    if manifest.dtype != TokenDtype::for_vocab(manifest.vocab_size) {
        let got = format!("{:?}", manifest.dtype).to_lowercase();
        return Err(bad("dtype", got, "the smallest type of the vocabulary".to_owned()));
    }
    for (field, got) in [("n_tokens", manifest.n_tokens), ("n_documents", manifest.n_documents)] {
        if got > MAX_TOKENS {
            return Err(bad(field, got.to_string(), format!("at most {MAX_TOKENS}")));
        }
    }
    Ok(manifest)
}

/// Reads a file whose size and sum are known.
fn read_whole(path: &Path, n_bytes: u64, sha256: &str) -> Result<Vec<u8>, DataError> {
    let damaged = |what: &'static str, got: String, expected: String| DataError::DamagedShard {
        path: path.to_owned(),
        what,
        got,
        expected,
    };
    let mut file = open_regular(path)?;
    let got = file.metadata().map_err(DataError::io("inspect", path))?.len();
    if got != n_bytes {
        return Err(damaged("size in bytes", got.to_string(), n_bytes.to_string()));
    }
    let mut bytes =
        vec![0; usize::try_from(n_bytes).expect("a file in memory fits the address space")];
    file.read_exact(&mut bytes).map_err(DataError::io("read", path))?;
    let sum = hex(Sha256::new_with_prefix(&bytes));
    if sum != sha256 {
        return Err(damaged("sha256", sum, sha256.to_owned()));
    }
    Ok(bytes)
}

fn check_offsets(path: &Path, offsets: &[u64], n_tokens: u64) -> Result<(), DataError> {
    let damaged = |what: &'static str, got: u64, expected: String| DataError::DamagedShard {
        path: path.to_owned(),
        what,
        got: got.to_string(),
        expected,
    };
    // There is at least one offset: the file has 8 bytes per document and 8 more.
    if offsets[0] != 0 {
        return Err(damaged("first offset", offsets[0], "0".to_owned()));
    }
    if let Some(pair) = offsets.windows(2).find(|pair| pair[1] < pair[0]) {
        return Err(damaged("an offset", pair[1], format!("at least {}, the one before", pair[0])));
    }
    match offsets.last() {
        Some(&last) if last != n_tokens => {
            Err(damaged("last offset", last, format!("{n_tokens}, the number of tokens")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
