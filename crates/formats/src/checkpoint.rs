//! Checkpoints: what a run needs to go on, whole or not at all.
//!
//! A checkpoint is the folder `checkpoints/step-00001234` of a run with `model.safetensors` (f32 masters; of a run that trains an
//! adapter `adapter.safetensors`, and no model), `optimizer.safetensors`, `state.json` and `SHA256SUMS`. It is written under a temporary name, synced and renamed; the
//! text file `checkpoints/LATEST`, which names it, moves last. So a process killed at any moment leaves the last
//! checkpoint usable, and at most leftovers that [`clean_leftovers`] removes.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::FormatError;
use crate::digest::{hex, sha256_of_file};
use crate::durable::{
    self, TemporaryDir, read_bounded, refuse_link, remove_dir_at_once, write_bytes_atomically,
};
use crate::version::check_format_version;
use crate::weights::{TensorSource, WeightFiles, is_plain_name, write_safetensors_to};

mod sums;

pub use sums::SUMS_FILE;

use sums::{read_sums, sums_text};

/// The weights of a checkpoint.
pub const MODEL_FILE: &str = "model.safetensors";
/// The factors of an adapter, in a checkpoint that holds no weights of a model.
pub const ADAPTER_FILE: &str = "adapter.safetensors";
/// The optimiser's state.
pub const OPTIMIZER_FILE: &str = "optimizer.safetensors";
/// Everything else: step, counters, schedules, random states.
pub const STATE_FILE: &str = "state.json";
/// Names the last checkpoint; in the folder `checkpoints`.
const LATEST_FILE: &str = "LATEST";

/// What every checkpoint has; of each line one file will do, and the first is named where there is none.
const REQUIRED_FILES: [&[&str]; 3] =
    [&[MODEL_FILE, ADAPTER_FILE], &[OPTIMIZER_FILE], &[STATE_FILE]];
/// Version 1 did not hold the model's configuration, which the training code puts into its state.
const FORMAT_VERSION: u64 = 2;
/// Largest `state.json` or `LATEST` that is written or read; a state of the digests of thousands of files is smaller.
const MAX_TEXT_BYTES: u64 = 1 << 20;

/// The folder of a run that holds its checkpoints.
#[must_use]
pub fn checkpoints_dir(run_dir: &Path) -> PathBuf {
    run_dir.join("checkpoints")
}

fn dir_name(step: u64) -> String {
    format!("step-{step:08}")
}

/// The step in a folder name, or `None` when it is not a checkpoint's.
fn step_of(name: &str) -> Option<u64> {
    let step = name.strip_prefix("step-")?.parse().ok()?;
    (dir_name(step) == name).then_some(step)
}

/// What `state.json` holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckpointState {
    /// Version of the file's format, at most the one that is written now.
    pub format_version: u64,
    /// Number of training steps done.
    pub step: u64,
    /// What the training code gave to [`CheckpointWriter::state`].
    pub state: Value,
}

/// A checkpoint being written. Dropped without [`CheckpointWriter::commit`], it leaves nothing.
#[derive(Debug)]
pub struct CheckpointWriter {
    step: u64,
    temporary: TemporaryDir,
    /// Name and hexadecimal sum of each file, in the order written.
    sums: Vec<(String, String)>,
}

impl CheckpointWriter {
    /// Starts the checkpoint of `step` in the folder `checkpoints` of the run, which is created when missing.
    ///
    /// # Errors
    /// When the folder cannot be created.
    pub fn begin(run_dir: &Path, step: u64) -> Result<Self, FormatError> {
        let parent = checkpoints_dir(run_dir);
        refuse_link(&parent)?;
        if !parent.is_dir() {
            fs::create_dir_all(&parent).map_err(FormatError::io("create", &parent))?;
            durable::sync_dir(run_dir)?;
        }
        let temporary = TemporaryDir::beside(&parent.join(dir_name(step)))?;
        Ok(Self { step, temporary, sums: Vec::new() })
    }

    /// Writes one file of the checkpoint through `write` and syncs it; its sum is taken on the way.
    ///
    /// # Errors
    /// When the name is taken or is not a plain file name, or what `write` or the system says.
    pub fn file(
        &mut self,
        name: &str,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), FormatError> {
        let is_taken = self.sums.iter().any(|(other, _)| other == name);
        if is_taken || !is_plain_name(name) || name == SUMS_FILE {
            let (dir, name) = (self.temporary.path().to_owned(), name.to_owned());
            return Err(FormatError::FileName { dir, name });
        }
        let path = self.temporary.path().join(name);
        let file = fs::File::create_new(&path).map_err(FormatError::io("create", &path))?;
        let mut sum = Sha256::new();
        durable::fill_and_sync(file, &path, |writer| {
            write(&mut Summed { inner: writer, sum: &mut sum })
        })?;
        self.sums.push((name.to_owned(), hex(sum)));
        Ok(())
    }

    /// Writes a safetensors file of the checkpoint, tensor by tensor.
    ///
    /// # Errors
    /// As [`CheckpointWriter::file`] and [`write_safetensors_to`].
    pub fn tensors<'a>(
        &mut self,
        name: &str,
        tensors: impl IntoIterator<Item = TensorSource<'a>>,
    ) -> Result<(), FormatError> {
        let path = self.temporary.path().join(name);
        self.file(name, |writer| {
            write_safetensors_to(writer, &path, tensors).map_err(io::Error::from)
        })
    }

    /// Writes `state.json`: format version, step, and `state` as the training code wants it back.
    ///
    /// # Errors
    /// [`FormatError::TooLarge`] for what could not be read again, and as [`CheckpointWriter::file`].
    pub fn state(&mut self, state: &Value) -> Result<(), FormatError> {
        let file = CheckpointState {
            format_version: FORMAT_VERSION,
            step: self.step,
            state: state.clone(),
        };
        let path = self.temporary.path().join(STATE_FILE);
        let mut bytes = serde_json::to_vec_pretty(&file).map_err(FormatError::json(&path))?;
        bytes.push(b'\n');
        let (limit, got) = (MAX_TEXT_BYTES, bytes.len() as u64);
        if got > limit {
            return Err(FormatError::TooLarge { path, limit, got });
        }
        self.file(STATE_FILE, |writer| writer.write_all(&bytes))
    }

    /// Makes the checkpoint visible, then moves `LATEST` to it. A checkpoint of the same step is replaced in one step.
    ///
    /// # Errors
    /// [`FormatError::FileMissing`] when one of the files that it must have was not written, or the system's refusal; `LATEST` then
    /// still names the checkpoint before.
    pub fn commit(self) -> Result<PathBuf, FormatError> {
        check_required(self.temporary.path(), &self.sums)?;
        let text = sums_text(&self.sums);
        write_bytes_atomically(&self.temporary.path().join(SUMS_FILE), text.as_bytes())?;
        let final_dir = self.temporary.final_dir().to_owned();
        if final_dir.symlink_metadata().is_ok() {
            // A run that was set back reaches the same step again.
            self.temporary.replace()?;
        } else {
            self.temporary.commit()?;
        }
        let latest = format!("{}\n", dir_name(self.step));
        let parent = durable::parent_of(&final_dir);
        write_bytes_atomically(&parent.join(LATEST_FILE), latest.as_bytes())?;
        Ok(final_dir)
    }
}

/// Passes bytes on and sums those that were taken.
struct Summed<'a> {
    inner: &'a mut dyn Write,
    sum: &'a mut Sha256,
}

impl Write for Summed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.sum.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// A checkpoint whose files have all been verified.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    state: CheckpointState,
}

impl Checkpoint {
    /// Opens a checkpoint after verifying the sum of every file; reads all of them once.
    ///
    /// # Errors
    /// [`FormatError::Damaged`] or [`FormatError::FileMissing`] naming the file, [`FormatError::FormatVersion`] when a
    /// newer program wrote it.
    pub fn open(dir: &Path) -> Result<Self, FormatError> {
        let sums = read_sums(dir)?;
        check_required(dir, &sums)?;
        for (name, expected) in sums {
            verify(dir, name, expected)?;
        }
        Ok(Self { dir: dir.to_owned(), state: read_state(dir)? })
    }

    /// The folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Number of training steps done.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.state.step
    }

    /// What its `state.json` holds.
    #[must_use]
    pub fn state(&self) -> &CheckpointState {
        &self.state
    }

    /// Maps the weights.
    ///
    /// # Errors
    /// As [`WeightFiles::open_file`].
    pub fn model(&self) -> Result<WeightFiles, FormatError> {
        WeightFiles::open_file(&self.dir.join(MODEL_FILE))
    }

    /// Maps the factors of an adapter.
    ///
    /// # Errors
    /// As [`WeightFiles::open_file`].
    pub fn adapter(&self) -> Result<WeightFiles, FormatError> {
        WeightFiles::open_file(&self.dir.join(ADAPTER_FILE))
    }

    /// Maps the optimiser's state.
    ///
    /// # Errors
    /// As [`WeightFiles::open_file`].
    pub fn optimizer(&self) -> Result<WeightFiles, FormatError> {
        WeightFiles::open_file(&self.dir.join(OPTIMIZER_FILE))
    }
}

/// Whether every file that a checkpoint must have is among those of its sums.
fn check_required(dir: &Path, sums: &[(String, String)]) -> Result<(), FormatError> {
    let is_there = |required: &&str| sums.iter().any(|(name, _)| name == required);
    match REQUIRED_FILES.iter().find(|choices| !choices.iter().any(is_there)) {
        None => Ok(()),
        Some(choices) => {
            let (dir, name) = (dir.to_owned(), choices.join(" or "));
            Err(FormatError::FileMissing { dir, name })
        }
    }
}

fn verify(dir: &Path, name: String, expected: String) -> Result<(), FormatError> {
    let path = dir.join(&name);
    if !path.is_file() {
        return Err(FormatError::FileMissing { dir: dir.to_owned(), name });
    }
    let (got, n_bytes) = sha256_of_file(&path)?;
    if got != expected {
        return Err(FormatError::Damaged { path, got, expected, n_bytes });
    }
    Ok(())
}

/// Reads the `state.json` of a checkpoint, whose sum is right.
fn read_state(dir: &Path) -> Result<CheckpointState, FormatError> {
    let path = dir.join(STATE_FILE);
    let bytes = read_bounded(&path, MAX_TEXT_BYTES)?;
    let value: Value = serde_json::from_slice(&bytes).map_err(FormatError::json(&path))?;
    check_format_version(&path, &value, FORMAT_VERSION)?;
    serde_json::from_value(value).map_err(FormatError::json(&path))
}

/// The checkpoint that `LATEST` names, verified; `None` when there is no `LATEST`.
///
/// A run that was killed between the rename of its first checkpoint and the writing of `LATEST` has none, but [`list`]
/// shows the folder; it is complete, and the run may go on from it or write it anew.
///
/// # Errors
/// When `LATEST` is damaged or what it names is missing or damaged. [`list`] tells which older ones could be opened.
pub fn latest(run_dir: &Path) -> Result<Option<Checkpoint>, FormatError> {
    match latest_name(run_dir)? {
        None => Ok(None),
        Some(name) => Checkpoint::open(&checkpoints_dir(run_dir).join(name)).map(Some),
    }
}

/// The `state.json` of the checkpoint that `LATEST` names, verified by its own sum, without reading the tensors; `None` when
/// there is no `LATEST`.
///
/// # Errors
/// As [`latest`], for this file.
pub fn latest_state(run_dir: &Path) -> Result<Option<CheckpointState>, FormatError> {
    let Some(name) = latest_name(run_dir)? else { return Ok(None) };
    let dir = checkpoints_dir(run_dir).join(name);
    match read_sums(&dir)?.into_iter().find(|(name, _)| name == STATE_FILE) {
        Some((name, expected)) => verify(&dir, name, expected)?,
        None => return Err(FormatError::FileMissing { dir, name: STATE_FILE.to_owned() }),
    }
    read_state(&dir).map(Some)
}

fn latest_name(run_dir: &Path) -> Result<Option<String>, FormatError> {
    let path = checkpoints_dir(run_dir).join(LATEST_FILE);
    if !path.try_exists().map_err(FormatError::io("inspect", &path))? {
        return Ok(None);
    }
    let bytes = read_bounded(&path, MAX_TEXT_BYTES)?;
    let text = String::from_utf8_lossy(&bytes);
    let name = text.trim_end_matches('\n');
    if step_of(name).is_none() {
        return Err(FormatError::Line {
            path,
            line: 1,
            got: format!("{:?}", name.chars().take(40).collect::<String>()),
            expected: "the name of a checkpoint such as step-00001234",
        });
    }
    Ok(Some(name.to_owned()))
}

/// Step and folder of every checkpoint of a run, oldest first, not verified.
///
/// # Errors
/// When the folder cannot be listed; a missing one holds none.
pub fn list(run_dir: &Path) -> Result<Vec<(u64, PathBuf)>, FormatError> {
    let parent = checkpoints_dir(run_dir);
    refuse_link(&parent)?;
    let entries = match fs::read_dir(&parent) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(FormatError::io("list", &parent)(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(FormatError::io("list", &parent))?;
        if let Some(step) = entry.file_name().to_str().and_then(step_of) {
            found.push((step, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// Removes all but the `n_keep` newest checkpoints, and never the one that `LATEST` names. Returns what was removed.
///
/// # Errors
/// When `LATEST` is damaged or a folder cannot be removed.
pub fn prune(run_dir: &Path, n_keep: usize) -> Result<Vec<PathBuf>, FormatError> {
    let found = list(run_dir)?;
    let kept_name = latest_name(run_dir)?;
    let n_old = found.len().saturating_sub(n_keep);
    let mut removed = Vec::new();
    for (step, dir) in found.into_iter().take(n_old) {
        if kept_name.as_deref() == Some(dir_name(step).as_str()) {
            continue;
        }
        remove_dir_at_once(&dir)?;
        removed.push(dir);
    }
    Ok(removed)
}

/// Removes what killed writers left in the run and its folder `checkpoints`; call it while holding the run's lock.
///
/// # Errors
/// When a folder cannot be listed or a leftover cannot be removed.
pub fn clean_leftovers(run_dir: &Path) -> Result<Vec<PathBuf>, FormatError> {
    let mut removed = durable::remove_leftovers(run_dir)?;
    let parent = checkpoints_dir(run_dir);
    refuse_link(&parent)?;
    if parent.try_exists().map_err(FormatError::io("inspect", &parent))? {
        removed.extend(durable::remove_leftovers(&parent)?);
    }
    Ok(removed)
}

#[cfg(test)]
mod tests;
