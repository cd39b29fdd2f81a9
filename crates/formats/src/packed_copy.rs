//! Kept copies of a model's weights in the order that the kernels want: one file each, in a folder.
//!
//! A copy is named by what it was made of: paths, sizes and times of the files of weights, and a text that describes its own
//! order. Nothing is lost with it, and it is made again when any of these is another.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::digest::hex;
use crate::durable::{open_regular, parent_of, write_atomically};
use crate::{FormatError, ModelWeights};

/// Hexadecimal digits of each half of a name.
const DIGITS: usize = 24;

/// The ending of a name.
const ENDING: &str = ".packed";

/// The place of a copy.
#[derive(Clone, Debug)]
pub struct PackedCopy {
    path: PathBuf,
    n_bytes: usize,
}

impl PackedCopy {
    /// The copy of some weights in `dir`, described by a text, of so many bytes. It may not exist yet.
    ///
    /// # Errors
    /// When a file of weights is gone.
    pub fn new(
        dir: &Path,
        weights: &ModelWeights,
        description: &str,
        n_bytes: usize,
    ) -> Result<Self, FormatError> {
        let mut made_of = Sha256::new();
        for path in weights.paths() {
            let found = fs::metadata(path).map_err(FormatError::io("inspect", path))?;
            let (time, nanoseconds) = (found.mtime(), found.mtime_nsec());
            made_of.update(format!("{} {time} {nanoseconds} {}\n", found.len(), found.ino()));
        }
        made_of.update(description);
        let name = format!("{}-{}{ENDING}", source(weights)?, &hex(made_of)[..DIGITS]);
        Ok(Self { path: dir.join(name), n_bytes })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens it, if it exists and is as long as it should be.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(&self) -> Result<Option<OpenCopy>, FormatError> {
        if !self.path.exists() {
            return Ok(None);
        }
        let file = open_regular(&self.path)?;
        let found = file.metadata().map_err(FormatError::io("inspect", &self.path))?;
        let is_whole = found.len() == self.n_bytes as u64;
        Ok(is_whole.then(|| OpenCopy { file, path: self.path.clone() }))
    }

    /// Writes it, and removes copies of the same files that were made of what they were before.
    ///
    /// # Errors
    /// When it cannot be written; the older copies stay then.
    pub fn write(
        &self,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), FormatError> {
        let dir = parent_of(&self.path);
        fs::create_dir_all(dir).map_err(FormatError::io("create", dir))?;
        write_atomically(&self.path, write)?;
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let (source, _) = name.split_once('-').unwrap_or_default();
        remove_matching(dir, |other| other.starts_with(source) && other != name)
    }
}

/// A copy that is read, by several threads at once.
#[derive(Debug)]
pub struct OpenCopy {
    file: File,
    path: PathBuf,
}

impl OpenCopy {
    /// Fills `out` with the bytes from `start` on.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn read_at(&self, start: usize, out: &mut [u8]) -> Result<(), FormatError> {
        self.file.read_exact_at(out, start as u64).map_err(FormatError::io("read", &self.path))
    }
}

/// Removes all copies of some weights from a folder, which may not exist.
///
/// # Errors
/// When one cannot be removed.
pub fn remove_copies(dir: &Path, weights: &ModelWeights) -> Result<(), FormatError> {
    let source = source(weights)?;
    remove_matching(dir, |name| name.starts_with(&source))
}

fn remove_matching(dir: &Path, matches: impl Fn(&str) -> bool) -> Result<(), FormatError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(FormatError::io("list", dir))?,
    };
    for entry in entries {
        let entry = entry.map_err(FormatError::io("list", dir))?;
        if entry.file_name().to_str().is_some_and(|name| name.ends_with(ENDING) && matches(name)) {
            let path = entry.path();
            fs::remove_file(&path).map_err(FormatError::io("remove", &path))?;
        }
    }
    Ok(())
}

/// What copies of the same files begin with.
fn source(weights: &ModelWeights) -> Result<String, FormatError> {
    let mut paths = Sha256::new();
    for path in weights.paths() {
        let path = path.canonicalize().map_err(FormatError::io("find", path))?;
        paths.update(path.as_os_str().as_encoded_bytes());
        paths.update([0]);
    }
    Ok(hex(paths)[..DIGITS].to_owned())
}

#[cfg(test)]
mod tests {
    use testkit::golden::workspace_root;
    use testkit::test_dir::TestDir;

    use super::*;
    use crate::model_dir::ModelDir;

    #[test]
    fn a_copy_is_found_as_long_as_all_that_it_was_made_of_is_the_same() {
        let scratch = TestDir::new("packed-copy");
        let model = scratch.path().join("model");
        fs::create_dir(&model).unwrap();
        let golden = workspace_root().join("golden/architectures/mistral/hf");
        let copy_files = || {
            for name in ["config.json", "model.safetensors"] {
                fs::write(model.join(name), fs::read(golden.join(name)).unwrap()).unwrap();
            }
        };
        copy_files();
        let dir = scratch.path().join("cache/packed");
        let open = || ModelDir::open(&model).unwrap();
        let copy = |text| PackedCopy::new(&dir, open().weights(), text, 4).unwrap();
        let first = copy("one");
        assert!(first.open().unwrap().is_none());
        first.write(|out| out.write_all(b"abcd")).unwrap();
        let mut middle = [0; 2];
        copy("one").open().unwrap().unwrap().read_at(1, &mut middle).unwrap();
        assert_eq!(&middle, b"bc");
        assert!(copy("two").open().unwrap().is_none());
        // A failed copy leaves what there is.
        copy("two").write(|_| Err(io::ErrorKind::StorageFull.into())).unwrap_err();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
        fs::write(first.path(), b"abc").unwrap();
        assert!(first.open().unwrap().is_none());
        // Another file under the name: the copy of the old one goes when the new one comes.
        fs::remove_file(model.join("model.safetensors")).unwrap();
        copy_files();
        let second = copy("one");
        assert_ne!(second.path(), first.path());
        second.write(|out| out.write_all(b"efgh")).unwrap();
        assert!(!first.path().exists() && second.path().exists());
        remove_copies(&dir, open().weights()).unwrap();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
        remove_copies(&scratch.path().join("none"), open().weights()).unwrap();
    }
}
