//! The data sheet: what a corpus holds, per language, with its redundancy.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use formats::check_format_version;
use formats::digest::hex;
use formats::durable::{read_bounded, write_bytes_atomically, write_json_atomically};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{DataError, Document, Language};

/// The version of the sheet's JSON form that this program writes.
pub const FORMAT_VERSION: u64 = 1;

/// Largest `sheet.json` that is read.
const MAX_BYTES: u64 = 16 << 20;
/// The zstd level of the redundancy figure.
const LEVEL: i32 = 19;

/// A window of 2^27 bytes: longer than any language of the bundled corpus.
const WINDOW_LOG: u32 = 27;

/// Where the text comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Origin {
    /// The bundled generator.
    Bundled {
        /// Version of the generator.
        generator_version: u32,
        /// Its seed.
        seed: u64,
    },
    /// A user's own files.
    Files {
        /// The folder or file as the user named it.
        path: String,
    },
}

/// Figures of one language.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LanguageSheet {
    /// ISO 639-1 code, or `und` when the files do not say.
    pub language: String,
    /// Number of documents.
    pub documents: u64,
    /// Bytes of UTF-8 text.
    pub bytes: u64,
    /// Number of sentences.
    pub sentences: u64,
    /// Sentences whose normalised text occurred before, as a share of all.
    pub repeated_sentence_share: f64,
    /// Bytes that `zstd -19` leaves, as a share of all bytes.
    pub zstd19_ratio: f64,
    /// Number of documents of each kind.
    pub kinds: BTreeMap<String, u64>,
}

/// What a corpus holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DataSheet {
    /// Version of this form.
    pub format_version: u64,
    /// Where the text comes from.
    pub origin: Origin,
    /// Licence of the text, as far as it is known.
    pub licence: Option<String>,
    /// SHA-256 of the documents in order, each followed by two newlines, in hexadecimal.
    pub sha256: String,
    /// One entry per language that occurs.
    pub languages: Vec<LanguageSheet>,
}

impl DataSheet {
    /// Writes `SHEET.md`, then `sheet.json` into a folder, each by renaming a finished file.
    ///
    /// # Errors
    ///
    /// When a file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<(), DataError> {
        write_bytes_atomically(&folder.join("SHEET.md"), self.to_markdown().as_bytes())?;
        Ok(write_json_atomically(&folder.join("sheet.json"), self)?)
    }

    /// Reads a `sheet.json`.
    ///
    /// # Errors
    ///
    /// When it cannot be read, is damaged or of a newer version.
    pub fn read(path: &Path) -> Result<Self, DataError> {
        let json = |source| DataError::Json { path: path.to_owned(), source };
        let bytes = read_bounded(path, MAX_BYTES)?;
        let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(json)?;
        check_format_version(path, &value, FORMAT_VERSION)?;
        serde_json::from_value(value).map_err(json)
    }

    /// The sheet for people.
    #[must_use]
    pub fn to_markdown(&self) -> String {
        let mut out = String::from("# Data sheet\n\n");
        let origin = match &self.origin {
            Origin::Bundled { generator_version, seed } => {
                format!("bundled generator, version {generator_version}, seed {seed}")
            }
            Origin::Files { path } => format!("files of `{path}`"),
        };
        let licence = self.licence.as_deref().unwrap_or("not stated");
        // Writing to a String cannot fail.
        let _ =
            writeln!(out, "Origin: {origin}.\nLicence: {licence}.\nSHA-256: `{}`.\n", self.sha256);
        out.push_str("| Language | Documents | Bytes | Sentences | Repeated | zstd -19 leaves |\n");
        out.push_str("|---|---|---|---|---|---|\n");
        for l in &self.languages {
            let _ = writeln!(
                out,
                "| {} | {} | {} | {} | {:.3} % | {:.1} % |",
                l.language,
                l.documents,
                l.bytes,
                l.sentences,
                l.repeated_sentence_share * 100.0,
                l.zstd19_ratio * 100.0
            );
        }
        for l in &self.languages {
            let kinds: Vec<String> = l.kinds.iter().map(|(k, n)| format!("{k} {n}")).collect();
            let _ = writeln!(out, "\nKinds ({}): {}.", l.language, kinds.join(", "));
        }
        out
    }
}

/// Collects a data sheet while documents pass by.
///
/// Memory: 16 bytes a sentence, and the compressors' windows (at most 128 MiB each, as much as the
/// language has text, plus the tables of level 19).
pub struct SheetBuilder {
    digest: Sha256,
    languages: BTreeMap<Option<Language>, Tally>,
}

struct Tally {
    documents: u64,
    bytes: u64,
    sentences: u64,
    repeated: u64,
    seen: HashSet<u64>,
    kinds: BTreeMap<String, u64>,
    compressor: zstd::stream::write::Encoder<'static, CountingSink>,
}

/// Counts what it is given and keeps nothing.
struct CountingSink(u64);

impl std::io::Write for CountingSink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl std::fmt::Debug for SheetBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SheetBuilder")
            .field("languages", &self.languages.len())
            .finish_non_exhaustive()
    }
}

impl Default for SheetBuilder {
    fn default() -> Self {
        Self { digest: Sha256::new(), languages: BTreeMap::new() }
    }
}

impl SheetBuilder {
    /// Takes one document into account.
    ///
    /// # Errors
    ///
    /// When the compressor fails.
    pub fn add(&mut self, document: &Document) -> Result<(), DataError> {
        self.digest.update(document.text.as_bytes());
        self.digest.update(b"\n\n");
        let tally = match self.languages.entry(document.language) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => entry.insert(Tally::new()?),
        };
        tally.add(document)
    }

    /// Ends the sheet.
    ///
    /// # Errors
    ///
    /// When the compressor fails.
    pub fn finish(self, origin: Origin, licence: Option<String>) -> Result<DataSheet, DataError> {
        let sha256 = hex(self.digest);
        let mut languages = Vec::new();
        for (language, tally) in self.languages {
            languages.push(tally.finish(language)?);
        }
        Ok(DataSheet { format_version: FORMAT_VERSION, origin, licence, sha256, languages })
    }
}

impl Tally {
    fn new() -> Result<Self, DataError> {
        let mut compressor =
            zstd::stream::write::Encoder::new(CountingSink(0), LEVEL).map_err(compress_failed)?;
        compressor.window_log(WINDOW_LOG).map_err(compress_failed)?;
        Ok(Self {
            documents: 0,
            bytes: 0,
            sentences: 0,
            repeated: 0,
            seen: HashSet::new(),
            kinds: BTreeMap::new(),
            compressor,
        })
    }

    fn add(&mut self, document: &Document) -> Result<(), DataError> {
        self.documents += 1;
        self.bytes += document.text.len() as u64;
        *self.kinds.entry(document.kind.clone()).or_default() += 1;
        for sentence in sentences(&document.text) {
            self.sentences += 1;
            if !self.seen.insert(sentence_hash(sentence)) {
                self.repeated += 1;
            }
        }
        self.compressor.write_all(document.text.as_bytes()).map_err(compress_failed)
    }

    fn finish(self, language: Option<Language>) -> Result<LanguageSheet, DataError> {
        let compressed = self.compressor.finish().map_err(compress_failed)?.0;
        let share =
            |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
        Ok(LanguageSheet {
            language: language.map_or("und", Language::code).to_owned(),
            documents: self.documents,
            bytes: self.bytes,
            sentences: self.sentences,
            repeated_sentence_share: share(self.repeated, self.sentences),
            zstd19_ratio: share(compressed, self.bytes),
            kinds: self.kinds,
        })
    }
}

fn compress_failed(source: std::io::Error) -> DataError {
    DataError::Io { action: "compress", path: "the text".into(), source }
}

/// The sentences of a text: split after `.`, `!`, `?` or `…`, with closing quotes or brackets, before
/// white space; a line end is a sentence end. Pieces without a letter or digit are left out.
pub fn sentences(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .flat_map(|line| Sentences { rest: line })
        .filter(|s| s.chars().any(char::is_alphanumeric))
}

struct Sentences<'a> {
    rest: &'a str,
}

impl<'a> Iterator for Sentences<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        if self.rest.is_empty() {
            return None;
        }
        let mut after_ender = false;
        for (at, c) in self.rest.char_indices() {
            if after_ender && c.is_whitespace() {
                let (sentence, rest) = self.rest.split_at(at);
                self.rest = rest.trim_start();
                return Some(sentence);
            }
            let closes = matches!(c, '"' | '”' | '»' | ')' | '’' | '“');
            after_ender = matches!(c, '.' | '!' | '?' | '…') || (after_ender && closes);
        }
        Some(std::mem::take(&mut self.rest))
    }
}

/// A 64-bit hash of a sentence's letters and digits in lower case, words apart by one space.
#[must_use]
pub fn sentence_hash(sentence: &str) -> u64 {
    let mut hash = 0xCBF2_9CE4_8422_2325_u64;
    let mut pending_space = false;
    let mut push = |c: char| hash = (hash ^ u64::from(c)).wrapping_mul(0x0000_0100_0000_01B3);
    let mut is_first = true;
    for c in sentence.chars() {
        if !c.is_alphanumeric() {
            pending_space = !is_first;
            continue;
        }
        if std::mem::take(&mut pending_space) {
            push(' ');
        }
        is_first = false;
        if c.is_ascii() {
            push(c.to_ascii_lowercase());
        } else {
            c.to_lowercase().for_each(&mut push);
        }
    }
    // FNV-1a is weak in its high bits; one more mixing step spreads them.
    hash ^= hash >> 32;
    hash.wrapping_mul(0xD6E8_FEB8_6659_FD93) ^ (hash >> 29)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(language: Option<Language>, text: &str) -> Document {
        Document { language, kind: "story".to_owned(), text: text.to_owned() }
    }

    #[test]
    fn sentences_end_at_enders_and_lines() {
        let found: Vec<&str> =
            sentences("It is 3.5 km. “Go!” she said.\n\nTitle\n- Well?  Yes").collect();
        assert_eq!(found, ["It is 3.5 km.", "“Go!”", "she said.", "Title", "- Well?", "Yes"]);
    }

    #[test]
    fn hash_ignores_case_and_punctuation_only() {
        assert_eq!(sentence_hash("« Viens, Été ! »"), sentence_hash("viens été"));
        assert_ne!(sentence_hash("a bc"), sentence_hash("ab c"));
    }

    #[test]
    fn sheet_counts_repeats_per_language_and_round_trips() {
        let mut builder = SheetBuilder::default();
        builder.add(&document(Some(Language::French), "Il pleut. Il neige. Il pleut !")).unwrap();
        builder.add(&document(None, "Il pleut.")).unwrap();
        let sheet = builder.finish(Origin::Files { path: "x".into() }, None).unwrap();
        assert_eq!(sheet.languages[0].language, "und");
        assert_eq!(sheet.languages[1].sentences, 3);
        assert!((sheet.languages[1].repeated_sentence_share - 1.0 / 3.0).abs() < 1e-12);
        let json = serde_json::to_string(&sheet).unwrap();
        assert_eq!(serde_json::from_str::<DataSheet>(&json).unwrap(), sheet);
        assert!(sheet.to_markdown().contains("| fr | 1 | 30 | 3 |"), "{}", sheet.to_markdown());
    }

    #[test]
    fn repetitive_text_has_a_low_zstd_ratio() {
        let mut builder = SheetBuilder::default();
        builder.add(&document(None, &"the same words again. ".repeat(2_000))).unwrap();
        let sheet = builder.finish(Origin::Files { path: "x".into() }, None).unwrap();
        assert!(sheet.languages[0].zstd19_ratio < 0.01, "{}", sheet.languages[0].zstd19_ratio);
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_named() {
        let sheet =
            SheetBuilder::default().finish(Origin::Files { path: "x".into() }, None).unwrap();
        let error = sheet.write(Path::new("/proc/nowhere")).unwrap_err().to_string();
        assert!(error.contains("/proc/nowhere"), "{error}");
    }
}
