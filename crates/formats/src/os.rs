//! What only the operating system can do: map a file, tell the free space, exchange two names.
#![expect(
    unsafe_code,
    reason = "the system's interface for mapping files and for statvfs is unsafe"
)]

use std::ffi::CString;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use crate::FormatError;

/// A file mapped read-only. Its pages are the page cache's, shared by all processes of the host.
#[derive(Debug)]
pub(crate) struct Mapping {
    map: memmap2::Mmap,
    stamp: FileStamp,
}

/// What tells a file from one that takes its name. Not the device, whose number may be another after each mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileStamp {
    n_bytes: u64,
    inode: u64,
    /// Seconds and nanoseconds of the last change of the bytes, which a copy may keep.
    modified: (i64, i64),
    /// Of the last change of the bytes or of what is known of the file, which nobody sets.
    changed: (i64, i64),
}

impl FileStamp {
    pub(crate) fn of(file: &std::fs::Metadata) -> Self {
        Self {
            n_bytes: file.len(),
            inode: file.ino(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        }
    }
}

impl Mapping {
    /// Maps the whole file.
    pub(crate) fn open(path: &Path) -> Result<Self, FormatError> {
        let file = crate::durable::open_regular(path)?;
        let stamp = file.metadata().map_err(FormatError::io("inspect", path))?;
        let stamp = FileStamp::of(&stamp);
        // SAFETY: the mapping is private and read-only, and the bytes are only ever read as `u8`. A file that is cut
        // while mapped raises SIGBUS and one that is written in place changes under the reader; weight files are
        // replaced by rename and never written in place (`durable`), and the documentation asks the same of others.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(FormatError::io("map", path))?;
        Ok(Self { map, stamp })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Of the file as it was opened.
    pub(crate) fn stamp(&self) -> FileStamp {
        self.stamp
    }
}

/// Some bytes of a mapped file, which stays mapped as long as they are used.
#[derive(Clone, Debug)]
pub struct SharedBytes {
    mapping: Arc<Mapping>,
    range: Range<usize>,
}

impl SharedBytes {
    /// The bytes of a slice of the mapping; `None` when it is a slice of something else.
    pub(crate) fn of(mapping: &Arc<Mapping>, slice: &[u8]) -> Option<Self> {
        let begin = (slice.as_ptr() as usize).checked_sub(mapping.bytes().as_ptr() as usize)?;
        let range = begin..begin + slice.len();
        (range.end <= mapping.bytes().len()).then(|| Self { mapping: Arc::clone(mapping), range })
    }
}

impl AsRef<[u8]> for SharedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.mapping.bytes()[self.range.clone()]
    }
}

fn c_path(path: &Path) -> std::io::Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| std::io::Error::new(std::io::ErrorKind::InvalidInput, "path with a NUL byte"))
}

/// The bytes an unprivileged process may still write to the file system that holds `path`.
///
/// # Errors
/// When `path` does not exist or the system does not say.
pub fn free_disk_bytes(path: &Path) -> Result<u64, FormatError> {
    let name = c_path(path).map_err(FormatError::io("ask the free space of", path))?;
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: `name` is a NUL-terminated string that lives through the call, and `stat` is large enough for the
    // structure that the call fills.
    let status = unsafe { libc::statvfs(name.as_ptr(), stat.as_mut_ptr()) };
    if status != 0 {
        let source = std::io::Error::last_os_error();
        return Err(FormatError::io("ask the free space of", path)(source));
    }
    // SAFETY: the call returned 0, so it has filled the structure.
    let stat = unsafe { stat.assume_init() };
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Exchanges two names of one file system in one step, so that at no time one of them is missing.
pub(crate) fn exchange_names(first: &Path, second: &Path) -> Result<(), FormatError> {
    let a = c_path(first).map_err(FormatError::io("rename", first))?;
    let b = c_path(second).map_err(FormatError::io("rename", second))?;
    // SAFETY: both names are NUL-terminated strings that live through the call.
    let status = unsafe {
        libc::renameat2(
            libc::AT_FDCWD,
            a.as_ptr(),
            libc::AT_FDCWD,
            b.as_ptr(),
            libc::RENAME_EXCHANGE,
        )
    };
    if status == 0 {
        return Ok(());
    }
    Err(FormatError::io("exchange the name of", second)(std::io::Error::last_os_error()))
}
