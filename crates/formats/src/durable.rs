//! Writing that loses nothing: temporary name, write, fsync, rename, fsync of the folder.
//!
//! A reader sees the old file or the new one, never a part. When anything fails, the temporary is removed and the old
//! file is as it was; when the process is killed, `remove_leftovers` finds what remains.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::FormatError;
use crate::os::exchange_names;

/// Bytes gathered before a write reaches the system.
const WRITE_BUFFER_BYTES: usize = 1 << 18;

/// A writer holds a lock on its temporary; one without a lock is dead at this age. Not before, for the folder may be shared with
/// another machine whose locks are its own.
const DEAD_AFTER: Duration = Duration::from_secs(3600);

/// Age at which one is dead where the file system has no locks.
const DEAD_WITHOUT_LOCKS_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Most temporaries of one process and one final name that can exist at a time.
const MAX_TEMPORARIES: u32 = 1000;

/// Writes a file so that it is there whole or not at all.
///
/// `write` gets a buffered writer of the temporary file. The old file, if any, stays until the rename.
///
/// # Errors
/// What `write` returns, or the system's refusal; nothing is left behind in either case.
pub fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), FormatError> {
    let (temporary, file) = new_temporary_file(path)?;
    let result = fill_and_sync(file, path, write)
        .and_then(|()| fs::rename(&temporary, path).map_err(FormatError::io("rename", path)));
    if let Err(error) = result {
        // The first error is the one to report; a temporary that cannot be removed is found by `remove_leftovers`.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    sync_dir(parent_of(path))
}

/// Writes bytes with [`write_atomically`].
///
/// # Errors
/// As [`write_atomically`].
pub fn write_bytes_atomically(path: &Path, bytes: &[u8]) -> Result<(), FormatError> {
    write_atomically(path, |writer| writer.write_all(bytes))
}

/// Writes a value as indented JSON with a final newline, with [`write_atomically`].
///
/// # Errors
/// As [`write_atomically`].
pub fn write_json_atomically(
    path: &Path,
    value: &impl serde::Serialize,
) -> Result<(), FormatError> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(FormatError::json(path))?;
    bytes.push(b'\n');
    write_bytes_atomically(path, &bytes)
}

/// Fills a file that nobody else sees yet and waits until it is on the disk. `path` is for messages.
pub(crate) fn fill_and_sync(
    file: File,
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), FormatError> {
    let mut buffered = BufWriter::with_capacity(WRITE_BUFFER_BYTES, file);
    if let Err(source) = write(&mut buffered).and_then(|()| buffered.flush()) {
        // Dropping a `BufWriter` would try to write the rest.
        drop(buffered.into_parts());
        return Err(FormatError::io("write", path)(source));
    }
    buffered.get_ref().sync_all().map_err(FormatError::io("sync", path))
}

/// Makes the names in a folder durable.
///
/// # Errors
/// When the folder cannot be opened or synced.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), FormatError> {
    let file = File::open(dir).map_err(FormatError::io("open", dir))?;
    file.sync_all().map_err(FormatError::io("sync", dir))
}

/// A folder that is filled under a temporary name beside its final one. Dropped before [`TemporaryDir::commit`], it is
/// removed with all that is in it.
#[derive(Debug)]
pub struct TemporaryDir {
    path: PathBuf,
    final_dir: PathBuf,
    is_committed: bool,
    /// Says that the writer lives.
    _lock: Option<File>,
}

impl TemporaryDir {
    /// Creates the empty folder.
    ///
    /// # Errors
    /// When the parent of `final_dir` is missing or refuses.
    pub fn beside(final_dir: &Path) -> Result<Self, FormatError> {
        let (path, ()) = first_free(final_dir, |temporary| fs::create_dir(temporary))?;
        let lock = File::open(&path).ok();
        lock.iter().for_each(say_alive);
        Ok(Self { path, final_dir: final_dir.to_owned(), is_committed: false, _lock: lock })
    }

    /// Where the files go.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The name that the folder will have.
    #[must_use]
    pub fn final_dir(&self) -> &Path {
        &self.final_dir
    }

    /// Makes the folder visible under its final name: syncs every file and folder in it, renames, syncs the parent.
    ///
    /// # Errors
    /// [`FormatError::Exists`] when the final name is taken (nothing is overwritten), or the system's refusal.
    pub fn commit(mut self) -> Result<(), FormatError> {
        move_dir(&self.path, &self.final_dir)?;
        self.is_committed = true;
        Ok(())
    }

    /// Takes the place of a folder that has the final name already, in one step, and removes the old one. The files in
    /// the folder must be synced.
    pub(crate) fn replace(mut self) -> Result<(), FormatError> {
        sync_dir(&self.path)?;
        exchange_names(&self.path, &self.final_dir)?;
        self.is_committed = true;
        sync_dir(parent_of(&self.final_dir))?;
        remove_any(&self.path)
    }
}

impl Drop for TemporaryDir {
    fn drop(&mut self) {
        if !self.is_committed {
            // What cannot be removed now is found by `remove_leftovers`.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Moves a folder of this file system to a new name, and makes both it and the name durable.
///
/// # Errors
/// [`FormatError::Exists`] when the name is taken (nothing is overwritten), or the system's refusal.
pub(crate) fn move_dir(dir: &Path, final_dir: &Path) -> Result<(), FormatError> {
    sync_tree(dir)?;
    if final_dir.symlink_metadata().is_ok() {
        return Err(FormatError::Exists { path: final_dir.to_owned() });
    }
    let parent = parent_of(final_dir);
    fs::create_dir_all(parent).map_err(FormatError::io("create", parent))?;
    fs::rename(dir, final_dir).map_err(FormatError::io("rename", final_dir))?;
    sync_dir(parent)
}

fn sync_tree(dir: &Path) -> Result<(), FormatError> {
    for entry in fs::read_dir(dir).map_err(FormatError::io("list", dir))? {
        let entry = entry.map_err(FormatError::io("list", dir))?;
        let path = entry.path();
        let kind = entry.file_type().map_err(FormatError::io("inspect", &path))?;
        if kind.is_dir() {
            sync_tree(&path)?;
        } else if kind.is_file() {
            let file = File::open(&path).map_err(FormatError::io("open", &path))?;
            file.sync_all().map_err(FormatError::io("sync", &path))?;
        }
    }
    sync_dir(dir)
}

/// The folder that holds `path`; `.` for a bare name.
pub(crate) fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// `.name.tmp-PID-N` beside `path`.
fn temporary_name(path: &Path, number: u32) -> Result<PathBuf, FormatError> {
    let dir = parent_of(path);
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
        let name = path.to_string_lossy().into_owned();
        return Err(FormatError::FileName { dir: dir.to_owned(), name });
    };
    Ok(dir.join(format!(".{name}.tmp-{}-{number}", std::process::id())))
}

/// The final name of what has a name that [`write_atomically`] or [`TemporaryDir`] gives.
fn final_name(name: &str) -> Option<&str> {
    let (final_name, numbers) = name.strip_prefix('.')?.rsplit_once(".tmp-")?;
    let (pid, number) = numbers.split_once('-')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(pid) && is_number(number)).then_some(final_name)
}

/// Holds a temporary, so that no other process takes it for a dead one's. On a file system without locks only its age says so.
fn say_alive(temporary: &File) {
    let _ = temporary.try_lock();
}

/// Removes a file, or a folder with all that is in it. That it is gone already is no error: another process was faster.
///
/// # Errors
/// When the system refuses.
pub fn remove_any(path: &Path) -> Result<(), FormatError> {
    let is_dir = path.symlink_metadata().is_ok_and(|found| found.is_dir());
    let result = if is_dir { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(FormatError::io("remove", path)),
    }
}

/// Tries names until one is free: a killed process with the same id may have left some.
fn first_free<T>(
    path: &Path,
    mut create: impl FnMut(&Path) -> io::Result<T>,
) -> Result<(PathBuf, T), FormatError> {
    for number in 0..MAX_TEMPORARIES {
        let temporary = temporary_name(path, number)?;
        match create(&temporary) {
            Ok(made) => return Ok((temporary, made)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(FormatError::io("create", &temporary)(error)),
        }
    }
    Err(FormatError::Exists { path: temporary_name(path, MAX_TEMPORARIES - 1)? })
}

fn new_temporary_file(path: &Path) -> Result<(PathBuf, File), FormatError> {
    let made = first_free(path, |temporary| {
        OpenOptions::new().write(true).create_new(true).open(temporary)
    })?;
    say_alive(&made.1);
    Ok(made)
}

/// Removes the temporaries that killed processes left in a folder and returns their paths.
///
/// Call it only while holding the folder ([`DirLock`]): a living writer's temporary looks the same.
///
/// # Errors
/// When the folder cannot be listed or a leftover cannot be removed.
pub(crate) fn remove_leftovers(dir: &Path) -> Result<Vec<PathBuf>, FormatError> {
    let mut removed = Vec::new();
    for entry in fs::read_dir(dir).map_err(FormatError::io("list", dir))? {
        let entry = entry.map_err(FormatError::io("list", dir))?;
        if entry.file_name().to_str().and_then(final_name).is_some() {
            remove_any(&entry.path())?;
            removed.push(entry.path());
        }
    }
    removed.sort();
    Ok(removed)
}

/// Removes the temporaries of `final_path`, a file or a folder, whose writers are dead: as [`remove_dead_temporaries`].
pub(crate) fn remove_dead_leftovers(final_path: &Path) -> Result<(), FormatError> {
    let name = final_path.file_name().unwrap_or_default().to_string_lossy();
    remove_dead_temporaries(parent_of(final_path), |of| of == name)
}

/// Removes the temporaries in a folder, of the final names that match, whose writers are dead: nobody holds them, and they were
/// untouched for an hour.
pub(crate) fn remove_dead_temporaries(
    dir: &Path,
    matches: impl Fn(&str) -> bool,
) -> Result<(), FormatError> {
    for entry in fs::read_dir(dir).map_err(FormatError::io("list", dir))? {
        let entry = entry.map_err(FormatError::io("list", dir))?;
        let name = entry.file_name();
        let of_a_match = name.to_str().and_then(final_name).is_some_and(&matches);
        if of_a_match && is_dead(&entry.path()) {
            remove_any(&entry.path())?;
        }
    }
    Ok(())
}

/// Whether a temporary's writer is gone. What cannot be opened or has no time is left alone.
fn is_dead(temporary: &Path) -> bool {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW);
    // Some network file systems lock files only for those that may write to them; a folder cannot be opened so.
    let opened = options.clone().write(true).open(temporary).or_else(|_| options.open(temporary));
    let Ok(file) = opened else { return false };
    let modified = file.metadata().and_then(|found| found.modified());
    let Some(age) = modified.ok().and_then(|time| time.elapsed().ok()) else { return false };
    // A new one is let alone: its writer may be about to take the lock.
    if age <= DEAD_AFTER {
        return false;
    }
    match file.try_lock() {
        Ok(()) => true,
        Err(TryLockError::WouldBlock) => false,
        Err(TryLockError::Error(_)) => age > DEAD_WITHOUT_LOCKS_AFTER,
    }
}

/// Removes a folder so that a reader never sees a part of it: it is renamed first. Of a link the name goes, and what it
/// leads to stays.
///
/// # Errors
/// When the system refuses; the folder is then as it was, or is left under a name that is cleared away with other leftovers.
pub fn remove_dir_at_once(dir: &Path) -> Result<(), FormatError> {
    if dir.is_symlink() {
        return fs::remove_file(dir).map_err(FormatError::io("remove", dir));
    }
    let (grave, ()) = first_free(dir, |grave| fs::create_dir(grave))?;
    fs::rename(dir, &grave).map_err(|source| {
        // Still empty, for nothing was moved to it.
        let _ = fs::remove_dir(&grave);
        FormatError::io("remove", dir)(source)
    })?;
    remove_any(&grave)
}

/// Refuses a folder that is a link: what is written and removed in it would be another folder's.
///
/// # Errors
/// When it is one.
pub fn refuse_link(dir: &Path) -> Result<(), FormatError> {
    if !dir.is_symlink() {
        return Ok(());
    }
    let source = io::Error::new(io::ErrorKind::InvalidInput, "it is a link, not a folder");
    Err(FormatError::io("open", dir)(source))
}

/// Opens a file for reading. Pipes and devices are refused: opening or reading one may never end.
///
/// # Errors
/// When it is no regular file, or the system refuses.
pub fn open_regular(path: &Path) -> Result<File, FormatError> {
    open_checked(path, OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK))
}

/// As [`open_regular`], but a link is refused: for files of a folder that others may write to.
///
/// # Errors
/// When it is no regular file, or the system refuses.
pub fn open_own(path: &Path) -> Result<File, FormatError> {
    let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
    open_checked(path, OpenOptions::new().read(true).custom_flags(flags))
}

/// Opens a file that this program alone writes, to append to it; it is created when missing. Links are refused as well:
/// one in a stranger's run folder could make any file of the user grow.
///
/// # Errors
/// When it is no regular file, or the system refuses.
pub fn open_to_append(path: &Path) -> Result<File, FormatError> {
    let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
    open_checked(path, OpenOptions::new().create(true).append(true).custom_flags(flags))
}

fn open_checked(path: &Path, options: &OpenOptions) -> Result<File, FormatError> {
    let file = options.open(path).map_err(FormatError::io("open", path))?;
    if file.metadata().map_err(FormatError::io("inspect", path))?.is_file() {
        return Ok(file);
    }
    let source = io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file");
    Err(FormatError::io("open", path)(source))
}

/// Reads a file of at most `limit` bytes.
///
/// # Errors
/// [`FormatError::TooLarge`], and those of [`open_regular`].
pub fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, FormatError> {
    let file = open_regular(path)?;
    let n_bytes = file.metadata().map_err(FormatError::io("inspect", path))?.len();
    if n_bytes > limit {
        return Err(FormatError::TooLarge { path: path.to_owned(), limit, got: n_bytes });
    }
    let mut bytes = Vec::new();
    // The size is a hint only: a file that grows has another.
    file.take(limit + 1).read_to_end(&mut bytes).map_err(FormatError::io("read", path))?;
    if bytes.len() as u64 > limit {
        return Err(FormatError::TooLarge {
            path: path.to_owned(),
            limit,
            got: bytes.len() as u64,
        });
    }
    Ok(bytes)
}

/// As [`read_bounded`], for text.
///
/// # Errors
/// Those of [`read_bounded`], and when the bytes are not UTF-8.
pub fn read_text(path: &Path, limit: u64) -> Result<String, FormatError> {
    String::from_utf8(read_bounded(path, limit)?).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let problem = format!("it is not UTF-8 at byte {at}");
        FormatError::io("read", path)(io::Error::new(io::ErrorKind::InvalidData, problem))
    })
}

/// A folder held by this process through `flock` on its file `.lock`; released on drop, and by the system when the
/// process dies.
#[derive(Debug)]
pub struct DirLock {
    _file: File,
}

impl DirLock {
    /// Takes the lock without waiting.
    ///
    /// # Errors
    /// [`FormatError::Locked`] when another process holds the folder, or the system's refusal.
    pub fn acquire(dir: &Path) -> Result<Self, FormatError> {
        let path = dir.join(".lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            // A link here could make a stranger's run folder empty any file of the user.
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .map_err(FormatError::io("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // The content only serves the message.
                let _ = (&mut file).take(64).read_to_string(&mut holder);
                let holder = holder.trim().to_owned();
                return Err(FormatError::Locked { dir: dir.to_owned(), holder });
            }
            Err(TryLockError::Error(source)) => return Err(FormatError::io("lock", &path)(source)),
        }
        file.set_len(0)
            .and_then(|()| writeln!(file, "process {}", std::process::id()))
            .map_err(FormatError::io("write", &path))?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests;
