//! Kept copies of a model's weights in the order that the kernels want: one file each, in a folder.
//!
//! A copy is named by what it was made of: the paths of the files of weights, their stamps and the version of what packed them, and a
//! text that describes its own order. Nothing is lost with it, and it is made again when any of these is another.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::digest::hex;
use crate::durable::{open_own, parent_of, remove_any, remove_dead_temporaries, write_atomically};
use crate::os::FileStamp;
use crate::{FormatError, ModelWeights};

/// Hexadecimal digits of each part of a name.
const DIGITS: usize = 16;

/// The ending of a name.
const ENDING: &str = ".packed";

/// The place of a copy.
#[derive(Clone, Debug)]
pub struct PackedCopy {
    path: PathBuf,
    /// What the names of copies of these paths begin with.
    of_paths: String,
    /// What the names of copies of these files, packed by this version, begin with.
    of_files: String,
    /// The files of weights as they were opened.
    sources: Vec<(PathBuf, FileStamp)>,
    n_bytes: usize,
}

impl PackedCopy {
    /// The copy of some weights in `dir`, of so many bytes: `version` says what packs them, `description` what they are packed to. It may
    /// not exist yet.
    ///
    /// # Errors
    /// When a file of weights is gone.
    pub fn new(
        dir: &Path,
        weights: &ModelWeights,
        [version, description]: [&str; 2],
        n_bytes: usize,
    ) -> Result<Self, FormatError> {
        let sources: Vec<(PathBuf, FileStamp)> =
            weights.stamps().into_iter().map(|(path, stamp)| (path.to_owned(), stamp)).collect();
        let stamps: Vec<String> = sources.iter().map(|(_, stamp)| format!("{stamp:?}")).collect();
        let of_paths = of_paths(weights)?;
        let of_files = format!("{of_paths}-{}", digits([version, &stamps.concat()].concat()));
        let path = dir.join(format!("{of_files}-{}{ENDING}", digits(description)));
        Ok(Self { path, of_paths, of_files, sources, n_bytes })
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
        let file = match open_own(&self.path) {
            Err(error) if error.is_not_found() => return Ok(None),
            file => file?,
        };
        let found = file.metadata().map_err(FormatError::io("inspect", &self.path))?;
        let is_whole = found.len() == self.n_bytes as u64;
        Ok(is_whole.then(|| OpenCopy { file, path: self.path.clone() }))
    }

    /// Writes it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(
        &self,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), FormatError> {
        let dir = parent_of(&self.path);
        // The weights may be of a model that others may not read.
        let mut private = DirBuilder::new();
        private.recursive(true).mode(0o700);
        private.create(dir).map_err(FormatError::io("create", dir))?;
        write_atomically(&self.path, write)
    }

    /// Removes what killed processes left of copies of the same paths.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn remove_dead(&self) -> Result<(), FormatError> {
        remove_dead(parent_of(&self.path), &self.of_paths)
    }

    /// Removes copies of the same paths that were made of other files, or by another version; none if the files have been replaced
    /// since they were opened, for then the others may be those of the new ones.
    ///
    /// # Errors
    /// When one cannot be removed.
    pub fn remove_older(&self) -> Result<(), FormatError> {
        let is_there = |(path, stamp): &(PathBuf, FileStamp)| {
            fs::metadata(path).is_ok_and(|found| FileStamp::of(&found) == *stamp)
        };
        if !self.sources.iter().all(is_there) {
            return Ok(());
        }
        let is_older =
            |name: &str| name.starts_with(&self.of_paths) && !name.starts_with(&self.of_files);
        remove_matching(parent_of(&self.path), is_older)
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
    let of_paths = of_paths(weights)?;
    remove_dead(dir, &of_paths)?;
    remove_matching(dir, |name| name.starts_with(&of_paths))
}

fn remove_dead(dir: &Path, of_paths: &str) -> Result<(), FormatError> {
    match remove_dead_temporaries(dir, |name| name.starts_with(of_paths)) {
        Err(error) if error.is_not_found() => Ok(()),
        result => result,
    }
}

fn remove_matching(dir: &Path, matches: impl Fn(&str) -> bool) -> Result<(), FormatError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(FormatError::io("list", dir))?,
    };
    for entry in entries {
        let entry = entry.map_err(FormatError::io("list", dir))?;
        if entry.file_name().to_str().is_some_and(|name| name.ends_with(ENDING) && matches(name)) {
            remove_any(&entry.path())?;
        }
    }
    Ok(())
}

/// What the names of copies of the same paths begin with.
fn of_paths(weights: &ModelWeights) -> Result<String, FormatError> {
    let mut text = Vec::new();
    for (path, _) in weights.stamps() {
        let path = path.canonicalize().map_err(FormatError::io("find", path))?;
        text.extend_from_slice(path.as_os_str().as_encoded_bytes());
        text.push(0);
    }
    Ok(digits(text))
}

/// The first digits of a sum.
fn digits(text: impl AsRef<[u8]>) -> String {
    hex(Sha256::new_with_prefix(text))[..DIGITS].to_owned()
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

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
        let copy_by =
            |version, text| PackedCopy::new(&dir, open().weights(), [version, text], 4).unwrap();
        let copy = |text| copy_by("version 1", text);
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
        // Another file under the name: the copy of the old one goes, but not while only the old one is known.
        copy_by("version 2", "one").write(|out| out.write_all(b"1234")).unwrap();
        let changed = File::options().write(true).open(model.join("model.safetensors")).unwrap();
        changed.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        first.remove_older().unwrap();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 2);
        let second = copy("one");
        assert_ne!(second.path(), first.path());
        second.write(|out| out.write_all(b"efgh")).unwrap();
        let other = copy("two");
        other.write(|out| out.write_all(b"ijkl")).unwrap();
        second.remove_older().unwrap();
        assert!(!first.path().exists() && second.path().exists() && other.path().exists());
        // What was killed while it wrote is removed, if it is old.
        let name = second.path().file_name().unwrap().to_str().unwrap();
        let dead = dir.join(format!(".{name}.tmp-4194999-0"));
        File::create(&dead).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        second.remove_dead().unwrap();
        assert!(!dead.exists());
        copy_by("version 2", "one").remove_older().unwrap();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
        second.write(|out| out.write_all(b"efgh")).unwrap();
        remove_copies(&dir, open().weights()).unwrap();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
        remove_copies(&scratch.path().join("none"), open().weights()).unwrap();
    }
}
