//! Folders of new runs: which name they get, and that they go when no run comes of it.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use formats::durable::DirLock;

use crate::context::Context;
use crate::failure::Failure;
use crate::names::check_name;

/// A new run folder that belongs to this process; dropped without [`ClaimedDir::keep`], it goes.
pub(crate) struct ClaimedDir {
    dir: PathBuf,
    is_kept: bool,
}

impl ClaimedDir {
    /// A folder that this process has just made.
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir, is_kept: false }
    }

    /// Makes the folder of the run that `--run` names, or takes over what is left of one that was killed before it was a run.
    ///
    /// # Errors
    /// When it is no name for a run, there is a run, a model or an adapter of that name, or the system refuses.
    pub(crate) fn named(name: &str, context: &Context) -> anyhow::Result<Self> {
        check_name("--run", name)?;
        for (what, path) in made_dirs(name, context) {
            if path.exists() {
                let hint = format!("choose another --run: the {what} gets the same name");
                return Err(Failure::Exists { path, hint }.into());
            }
        }
        context.make_dir(&context.runs_dir())?;
        let path = context.runs_dir().join(name);
        if make_new_dir(&path)? || is_abandoned(&path)? {
            return Ok(Self::new(path));
        }
        let hint = format!("choose another --run, or go on with `galerne resume {name}`");
        Err(Failure::Exists { path, hint }.into())
    }

    /// Makes the first free numbered folder after the name of a recipe's file.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn numbered(recipe: &Path, context: &Context) -> anyhow::Result<Self> {
        let stem = recipe.file_stem().unwrap_or_default().to_string_lossy();
        let stem = stem.replace(|c: char| matches!(c, '.' | '\\') || c.is_control(), "-");
        let is_taken = |name: &str| made_dirs(name, context).iter().any(|(_, path)| path.exists());
        make_numbered_dir(&stem, is_taken, context).map(Self::new)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.dir
    }

    /// The run is there: the folder stays.
    pub(crate) fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for ClaimedDir {
    fn drop(&mut self) {
        // Another process may have taken over a folder without a run. What cannot be removed holds a lock file and no run.
        if !self.is_kept && DirLock::acquire(&self.dir).is_ok() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// Makes the run folder `STEM-N` with the first number whose folder is free and whose name is not
/// taken otherwise.
///
/// # Errors
/// When the system refuses.
pub(crate) fn make_numbered_dir(
    stem: &str,
    is_taken: impl Fn(&str) -> bool,
    context: &Context,
) -> anyhow::Result<PathBuf> {
    context.make_dir(&context.runs_dir())?;
    let names = (1_u64..).map(|number| format!("{stem}-{number}"));
    for name in names.filter(|name| !is_taken(name)) {
        let dir = context.runs_dir().join(name);
        if make_new_dir(&dir)? {
            return Ok(dir);
        }
    }
    unreachable!("there are fewer folders than numbers")
}

/// Where a run of this name may put what it makes.
fn made_dirs(name: &str, context: &Context) -> [(&'static str, PathBuf); 2] {
    [("model", context.models_dir().join(name)), ("adapter", context.adapters_dir().join(name))]
}

/// Whether a folder holds at most a lock, which nobody holds.
fn is_abandoned(dir: &Path) -> anyhow::Result<bool> {
    let failed = || format!("cannot look at {}", dir.display());
    if dir.is_symlink() || !dir.is_dir() {
        return Ok(false);
    }
    for entry in fs::read_dir(dir).with_context(failed)? {
        if entry.with_context(failed)?.file_name() != ".lock" {
            return Ok(false);
        }
    }
    Ok(DirLock::acquire(dir).is_ok())
}

/// False when the folder is there already.
fn make_new_dir(dir: &Path) -> anyhow::Result<bool> {
    match fs::create_dir(dir) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot create {}", dir.display())),
    }
}
