//! Training a tokenizer, and encoding with it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use tokenizer::{BpeTrainer, Error, Tokenizer, TrainOptions};

/// Entries of the vocabulary that peers are compared on.
pub const BENCH_VOCAB_SIZE: usize = 32_768;

/// Why texts could not be measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// The system refused, or a file is not UTF-8.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Nothing to measure.
    #[error("there is no text in the .txt files below {}", dir.display())]
    NoText {
        /// The folder.
        dir: PathBuf,
    },
    /// The texts do not support the vocabulary.
    #[error(transparent)]
    Train(#[from] Error),
}

/// The `.txt` files below a folder, sorted.
#[derive(Clone, Debug)]
pub struct TextFiles {
    paths: Vec<PathBuf>,
    /// Bytes of all files.
    n_bytes: u64,
}

impl TextFiles {
    /// Finds the files; links are not followed.
    ///
    /// # Errors
    /// When a folder cannot be listed, or there is no text.
    pub fn find(dir: &Path) -> Result<Self, TextError> {
        let (mut paths, mut n_bytes) = (Vec::new(), 0);
        let mut folders = vec![dir.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).map_err(at(&folder))? {
                let entry = entry.map_err(at(&folder))?;
                let path = entry.path();
                let metadata = fs::symlink_metadata(&path).map_err(at(&path))?;
                if metadata.is_dir() {
                    folders.push(path);
                } else if metadata.is_file() && path.extension().is_some_and(|end| end == "txt") {
                    n_bytes += metadata.len();
                    paths.push(path);
                }
            }
        }
        if n_bytes == 0 {
            return Err(TextError::NoText { dir: dir.to_owned() });
        }
        paths.sort();
        Ok(Self { paths, n_bytes })
    }

    /// The lines that are not empty.
    ///
    /// # Errors
    /// When a file cannot be read or is not UTF-8.
    pub fn lines(&self) -> Result<Vec<String>, TextError> {
        let mut lines = Vec::new();
        for path in &self.paths {
            let text = fs::read_to_string(path).map_err(at(path))?;
            lines.extend(text.split('\n').filter(|line| !line.is_empty()).map(str::to_owned));
        }
        Ok(lines)
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> TextError {
    move |source| TextError::Io { path: path.to_owned(), source }
}

/// A tokenizer of `vocab_size` entries, and the megabytes of text per second of its training, reading the files included.
///
/// # Errors
/// When a file cannot be read, or the texts do not support the vocabulary.
pub fn tokenizer_train(
    files: &TextFiles,
    vocab_size: usize,
    n_threads: usize,
) -> Result<(Tokenizer, f64), TextError> {
    let start = Instant::now();
    let mut trainer = BpeTrainer::new(TrainOptions { vocab_size, n_threads });
    for path in &files.paths {
        trainer.feed(&fs::read_to_string(path).map_err(at(path))?);
    }
    let tokenizer = trainer.train()?;
    Ok((tokenizer, megabytes_per_s(files.n_bytes, start)))
}

/// The number of tokens of lines, and the megabytes per second of encoding them on one thread. A tokenizer remembers words that it has
/// met, so the first pass of each is slower than others.
#[must_use]
pub fn tokenizer_encode(tokenizer: &Tokenizer, lines: &[String]) -> (u64, f64) {
    let n_bytes: usize = lines.iter().map(String::len).sum();
    let start = Instant::now();
    let mut token_ids = Vec::new();
    for line in lines {
        tokenizer.encode_into(line, &mut token_ids);
    }
    (token_ids.len() as u64, megabytes_per_s(n_bytes as u64, start))
}

fn megabytes_per_s(n_bytes: u64, start: Instant) -> f64 {
    n_bytes as f64 / 1e6 / start.elapsed().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use testkit::test_dir::TestDir;

    use super::*;

    #[test]
    fn text_files_of_all_folders_are_trained_on_and_encoded_line_by_line() {
        let scratch = TestDir::new("bench-text");
        let dir = scratch.path();
        assert!(matches!(TextFiles::find(dir), Err(TextError::NoText { .. })));
        fs::create_dir(dir.join("b")).unwrap();
        fs::write(dir.join("b/second.txt"), "le chat, le chien\n\net le cheval").unwrap();
        fs::write(dir.join("first.txt"), "the cat, the dog and the horse\n").unwrap();
        fs::write(dir.join("not.md"), "the the the").unwrap();
        let files = TextFiles::find(dir).unwrap();
        assert_eq!((files.paths.len(), files.n_bytes), (2, 31 + 31));
        let lines = files.lines().unwrap();
        // Folders after files: the order of the paths.
        assert_eq!(lines, ["le chat, le chien", "et le cheval", "the cat, the dog and the horse"]);
        let (tokenizer, speed) = tokenizer_train(&files, 268, 2).unwrap();
        assert!(tokenizer.vocab_size() == 268 && speed > 0.0);
        let (n_tokens, speed) = tokenizer_encode(&tokenizer, &lines);
        let one_by_one: usize = lines.iter().map(|line| tokenizer.encode(line).len()).sum();
        assert_eq!(n_tokens, one_by_one as u64);
        assert!(speed > 0.0 && n_tokens < 59);
        let error = tokenizer_train(&files, 32_768, 1).unwrap_err();
        assert!(matches!(error, TextError::Train(Error::TextTooSmall { .. })), "{error}");
        fs::write(dir.join("bad.txt"), b"\xff\xfe").unwrap();
        let error = TextFiles::find(dir).unwrap().lines().unwrap_err().to_string();
        assert!(error.contains("bad.txt"), "{error}");
    }
}
