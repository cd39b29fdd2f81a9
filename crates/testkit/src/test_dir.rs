//! Folders of a test.

use std::fs;
use std::path::{Path, PathBuf};

/// An empty folder of its own, removed at the end of the test.
#[derive(Debug)]
pub struct TestDir(PathBuf);

impl TestDir {
    /// The folder of the test `name`, which no other test of the workspace may have.
    ///
    /// # Panics
    /// When the system refuses.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("galerne-test-{}-{name}", std::process::id()));
        // A killed process with the same id may have left one.
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).expect("the temporary folder can be written");
        Self(dir)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A path in it.
    #[must_use]
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// What is in it, sorted.
    ///
    /// # Panics
    /// As [`names_in`].
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        names_in(&self.0)
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What is in a folder, sorted.
///
/// # Panics
/// When it cannot be listed.
#[must_use]
pub fn names_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("the folder can be listed");
    let names = entries.map(|entry| entry.expect("an entry can be read").file_name());
    let mut names: Vec<String> =
        names.map(|name| name.into_string().expect("names are UTF-8")).collect();
    names.sort();
    names
}
