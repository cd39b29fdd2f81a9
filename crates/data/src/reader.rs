//! A user's own text: `.txt` and `.md` files of a folder.
//!
//! Files are read in the order of their paths, folders inside folders included; hidden names and other kinds of files
//! are skipped and counted. Text is normalised to NFC, line ends become `\n`, a byte-order mark is dropped. A file
//! larger than [`MAX_DOCUMENT_BYTES`] becomes several documents, cut between paragraphs where there are any: so that
//! shuffling documents mixes the text of a few long books, and a held-out share can be taken from a single file.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use formats::durable::open_own;
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

use crate::{DataError, Document, Language};

/// Largest document that is made from a file.
pub const MAX_DOCUMENT_BYTES: usize = 64 << 10;
/// Largest file that is read; a file is held in memory while it is cut.
pub const MAX_FILE_BYTES: u64 = 4 << 30;

/// Deepest nesting of folders.
const MAX_DEPTH: usize = 64;

/// What was read and what was not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadReport {
    /// Text files read.
    pub n_files: u64,
    /// Documents made of them.
    pub n_documents: u64,
    /// Bytes of text in the documents.
    pub n_bytes: u64,
    /// Files cut into several documents.
    pub n_files_split: u64,
    /// Text files without text.
    pub n_empty_files: u64,
    /// Hidden files and folders (their names begin with a dot) that were skipped.
    pub n_hidden: u64,
    /// Files that are neither `.txt` nor `.md`, links, and devices, all skipped.
    pub n_other_files: u64,
}

impl std::fmt::Display for ReadReport {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            formatter,
            "{} text files read as {} documents ({} bytes), {} of them split; skipped: {} empty, {} hidden, {} of other kinds",
            self.n_files,
            self.n_documents,
            self.n_bytes,
            self.n_files_split,
            self.n_empty_files,
            self.n_hidden,
            self.n_other_files
        )
    }
}

/// Reads every text file of a folder into memory.
///
/// # Errors
/// As [`FolderReader::open`] and its iterator; also [`DataError::NoText`] when all text files are empty.
pub fn read_folder(dir: &Path) -> Result<(Vec<Document>, ReadReport), DataError> {
    let mut reader = FolderReader::open(dir)?;
    let documents = reader.by_ref().collect::<Result<Vec<_>, _>>()?;
    let report = reader.report().clone();
    if documents.is_empty() {
        let n_files = report.n_files + report.n_empty_files + report.n_other_files;
        return Err(DataError::NoText { dir: dir.to_owned(), n_files });
    }
    Ok((documents, report))
}

/// Documents of a folder, one file in memory at a time.
#[derive(Debug)]
pub struct FolderReader {
    dir: PathBuf,
    /// Paths still to be read, last first.
    paths: Vec<PathBuf>,
    /// Documents of the current file, last first.
    pending: Vec<Document>,
    report: ReadReport,
}

impl FolderReader {
    /// Lists the text files of a folder, sorted by path.
    ///
    /// # Errors
    /// When the folder is missing, is empty, or holds no text file.
    pub fn open(dir: &Path) -> Result<Self, DataError> {
        let mut report = ReadReport::default();
        let mut paths = Vec::new();
        list_texts(dir, MAX_DEPTH, &mut paths, &mut report)?;
        if paths.is_empty() {
            return Err(match report.n_other_files {
                0 => DataError::EmptyFolder { dir: dir.to_owned() },
                n_files => DataError::NoText { dir: dir.to_owned(), n_files },
            });
        }
        paths.sort();
        paths.reverse();
        Ok(Self { dir: dir.to_owned(), paths, pending: Vec::new(), report })
    }

    /// What has been read until now; complete when the iterator has ended.
    #[must_use]
    pub fn report(&self) -> &ReadReport {
        &self.report
    }

    fn read_file(&mut self, path: &Path) -> Result<(), DataError> {
        let text = read_text(path)?;
        if text.is_empty() {
            self.report.n_empty_files += 1;
            return Ok(());
        }
        let kind = path.strip_prefix(&self.dir).unwrap_or(path).to_string_lossy().into_owned();
        let pieces = split_text(&text);
        self.report.n_files += 1;
        self.report.n_documents += pieces.len() as u64;
        self.report.n_files_split += u64::from(pieces.len() > 1);
        self.report.n_bytes += pieces.iter().map(|piece| piece.len() as u64).sum::<u64>();
        self.pending = pieces
            .into_iter()
            .rev()
            .map(|piece| Document { language: None, kind: kind.clone(), text: piece.to_owned() })
            .collect();
        Ok(())
    }
}

impl Iterator for FolderReader {
    type Item = Result<Document, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(document) = self.pending.pop() {
                return Some(Ok(document));
            }
            let path = self.paths.pop()?;
            if let Err(error) = self.read_file(&path) {
                self.paths.clear();
                return Some(Err(error));
            }
        }
    }
}

fn list_texts(
    dir: &Path,
    n_levels_left: usize,
    paths: &mut Vec<PathBuf>,
    report: &mut ReadReport,
) -> Result<(), DataError> {
    if n_levels_left == 0 {
        return Err(DataError::TooDeep { path: dir.to_owned(), limit: MAX_DEPTH });
    }
    for entry in fs::read_dir(dir).map_err(DataError::io("list", dir))? {
        let entry = entry.map_err(DataError::io("list", dir))?;
        let path = entry.path();
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            report.n_hidden += 1;
            continue;
        }
        let kind = entry.file_type().map_err(DataError::io("inspect", &path))?;
        if kind.is_dir() {
            list_texts(&path, n_levels_left - 1, paths, report)?;
        } else if is_text_name(&path) && kind.is_file() {
            // Links are not followed: they may lead back, or out of the folder to what nobody meant to train on.
            paths.push(path);
        } else {
            report.n_other_files += 1;
        }
    }
    Ok(())
}

fn is_text_name(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|name| ["txt", "md"].iter().any(|text| name.eq_ignore_ascii_case(text)))
}

/// Reads and normalises one file; the result does not begin or end with an empty line.
fn read_text(path: &Path) -> Result<String, DataError> {
    // Since the folder was listed, a pipe or a link may have come in place of the file.
    let file = open_own(path)?;
    let n_bytes = file.metadata().map_err(DataError::io("inspect", path))?.len();
    let too_long = |n_bytes| {
        let (path, limit) = (path.to_owned(), MAX_FILE_BYTES);
        DataError::FileTooLong { path, n_bytes, limit }
    };
    if n_bytes > MAX_FILE_BYTES {
        return Err(too_long(n_bytes));
    }
    let mut bytes = Vec::with_capacity(n_bytes as usize);
    // A file that grows has another size than it said.
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(DataError::io("read", path))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(too_long(bytes.len() as u64));
    }
    if let Some(offset) = bytes.iter().position(|&byte| byte == 0) {
        return Err(DataError::Binary { path: path.to_owned(), offset: offset as u64 });
    }
    let text = String::from_utf8(bytes).map_err(|error| DataError::InvalidUtf8 {
        path: path.to_owned(),
        offset: error.utf8_error().valid_up_to() as u64,
    })?;
    Ok(normalise(&text))
}

fn normalise(text: &str) -> String {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines = if text.contains('\r') {
        text.replace("\r\n", "\n").replace('\r', "\n")
    } else {
        text.to_owned()
    };
    let text = match is_nfc_quick(lines.chars()) {
        IsNormalized::Yes => lines,
        _ => lines.nfc().collect(),
    };
    text.trim_end().trim_start_matches('\n').to_owned()
}

/// Pieces of at most [`MAX_DOCUMENT_BYTES`], cut at the last paragraph border that leaves at least half of that, else
/// at a line, a space, or a character. Only the white space at the cuts is lost.
fn split_text(text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while rest.len() > MAX_DOCUMENT_BYTES {
        let end = rest.floor_char_boundary(MAX_DOCUMENT_BYTES);
        let window = &rest[..end];
        let cut = ["\n\n", "\n", " "]
            .iter()
            .filter_map(|border| window.rfind(border))
            .find(|&cut| cut >= MAX_DOCUMENT_BYTES / 2)
            .unwrap_or(end);
        let (piece, after) = rest.split_at(cut);
        pieces.push(piece.trim_end());
        // At a border the white space goes; inside a word the next piece begins where this one ends.
        rest = after.trim_start_matches(['\n', ' ']);
    }
    pieces.push(rest);
    pieces.retain(|piece| !piece.is_empty());
    pieces
}

/// Training and held-out documents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeldOutSplit {
    /// Documents to train on, in their order.
    pub train: Vec<Document>,
    /// Documents never trained on, in their order.
    pub held_out: Vec<Document>,
}

/// Takes a share of the documents of each language for validation, drawn from the seed.
///
/// Of a language with two documents or more at least one is held out and at least one is kept. The choice depends on
/// the seed, the share and the number of documents of each language only.
///
/// # Errors
/// When `share` is not in `0.0..=0.5`.
pub fn hold_out(
    documents: Vec<Document>,
    share: f64,
    seed: u64,
) -> Result<HeldOutSplit, DataError> {
    if !(0.0..=0.5).contains(&share) {
        let got = share.to_string();
        return Err(DataError::Setting { field: "share", got, expected: "0.0 to 0.5" });
    }
    let mut by_language: BTreeMap<Option<Language>, Vec<usize>> = BTreeMap::new();
    for (document_idx, document) in documents.iter().enumerate() {
        by_language.entry(document.language).or_default().push(document_idx);
    }
    let mut is_held_out = vec![false; documents.len()];
    for indices in by_language.values() {
        let n_held_out = match indices.len() {
            0 | 1 => 0,
            _ if share == 0.0 => 0,
            n => ((n as f64 * share).round() as usize).clamp(1, n - 1),
        };
        let order = crate::packing::permutation(indices.len(), seed, 0);
        for &number in order.iter().take(n_held_out) {
            is_held_out[indices[number as usize]] = true;
        }
    }
    let mut split = HeldOutSplit::default();
    for (document, is_held_out) in documents.into_iter().zip(is_held_out) {
        if is_held_out { split.held_out.push(document) } else { split.train.push(document) }
    }
    Ok(split)
}

#[cfg(test)]
mod tests;
