//! What the system says about this machine, where it says it (Linux); absent elsewhere.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use cuda::out_of_memory_as_error;
use eval::figures::bytes;
use formats::free_disk_bytes;
use tensor::Device;

use crate::failure::Failure;

/// Bytes of a disk that large files leave free.
const DISK_RESERVE_BYTES: u64 = 256 << 20;

/// Memory of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    /// All of it.
    pub(crate) total_bytes: u64,
    /// What programs can still take.
    pub(crate) available_bytes: u64,
}

impl Memory {
    /// With a limit of which so much is used; used pages that the kernel can drop count as used.
    fn within(self, limit: Option<u64>, used: u64) -> Self {
        let Some(limit) = limit.filter(|&limit| limit < self.total_bytes) else { return self };
        let available_bytes = self.available_bytes.min(limit.saturating_sub(used));
        Self { total_bytes: limit, available_bytes }
    }
}

/// Bytes of a GPU that answers take beside what is planned on every device: the workspace of a product, and results of partitions
/// of attention.
pub(crate) const GPU_WORKING_BYTES: u64 = 320 << 20;

/// Bytes that a device has left: this machine's memory, as far as it is known, or a GPU's.
pub(crate) fn available_bytes(device: &Device) -> Option<u64> {
    match device {
        Device::Cuda { gpu, .. } => Some(gpu.free_bytes() as u64),
        _ => memory().map(|memory| memory.available_bytes),
    }
}

/// Refuses what a device cannot hold, before any of it is taken: on the processors what the machine can never hold, on a GPU what
/// is more than other programs leave of it.
///
/// # Errors
/// [`Failure::Memory`], [`Failure::GpuMemory`].
pub(crate) fn check_memory(device: &Device, what: &str, needed_bytes: u64) -> Result<(), Failure> {
    let Device::Cuda { gpu, .. } = device else { return check_host_memory(what, needed_bytes) };
    let free_bytes = gpu.free_bytes() as u64;
    if needed_bytes > free_bytes {
        let (what, gpu) = (what.to_owned(), gpu.description().name.clone());
        return Err(Failure::GpuMemory { what, gpu, needed_bytes, free_bytes });
    }
    Ok(())
}

/// Checks the memory, then does work that takes it; a GPU that is full all the same, as another program came first, is an error.
///
/// # Errors
/// As [`check_memory`], and when the GPU is full.
pub(crate) fn take_memory<T>(
    device: &Device,
    what: &str,
    needed_bytes: u64,
    work: impl FnOnce() -> T,
) -> anyhow::Result<T> {
    check_memory(device, what, needed_bytes)?;
    let needs = || format!("{what} needs {} of the GPU's memory", bytes(needed_bytes));
    out_of_memory_as_error(work).with_context(needs)
}

/// Refuses what this machine's memory can never hold.
///
/// # Errors
/// [`Failure::Memory`].
pub(crate) fn check_host_memory(what: &str, needed_bytes: u64) -> Result<(), Failure> {
    match memory() {
        Some(Memory { total_bytes, .. }) if needed_bytes > total_bytes => {
            Err(Failure::Memory { what: what.to_owned(), needed_bytes, total_bytes })
        }
        _ => Ok(()),
    }
}

/// Refuses what the disk of a folder, which may not exist yet, has no room for. A reserve stays free, for a disk that is full
/// to the last byte stops other programs too; nothing to write needs none.
///
/// # Errors
/// [`Failure::DiskSpace`], or the system's refusal to say.
pub(crate) fn check_disk(what: &'static str, dir: &Path, needed_bytes: u64) -> anyhow::Result<()> {
    let free_bytes = free_disk_bytes(existing_ancestor(dir))?;
    if needed_bytes > 0 && free_bytes < needed_bytes.saturating_add(DISK_RESERVE_BYTES) {
        let (dir, reserve_bytes) = (dir.to_owned(), DISK_RESERVE_BYTES);
        return Err(
            Failure::DiskSpace { what, dir, free_bytes, needed_bytes, reserve_bytes }.into()
        );
    }
    Ok(())
}

/// Memory as the kernel counts it, within the limit of the container where there is one.
pub(crate) fn memory() -> Option<Memory> {
    let memory = parse_memory(&fs::read_to_string("/proc/meminfo").ok()?)?;
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let limit = number("/sys/fs/cgroup/memory.max");
    let used = number("/sys/fs/cgroup/memory.current");
    Some(memory.within(limit, used.unwrap_or(0)))
}

fn parse_memory(text: &str) -> Option<Memory> {
    let field = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        kib.checked_mul(1024)
    };
    Some(Memory { total_bytes: field("MemTotal:")?, available_bytes: field("MemAvailable:")? })
}

/// When the kernel backs memory with huge pages: `always`, `madvise` or `never`.
pub(crate) fn huge_pages() -> Option<String> {
    chosen(&fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").ok()?)
}

/// The word in brackets.
fn chosen(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    Some(rest.split_once(']')?.0.to_owned())
}

/// The nearest folder that exists: the one given, or one above it.
pub(crate) fn existing_ancestor(path: &Path) -> &Path {
    path.ancestors()
        .find(|dir| !dir.as_os_str().is_empty() && dir.exists())
        .unwrap_or_else(|| Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_the_kernel_are_read_and_nonsense_is_absent() {
        let text = "MemTotal:       24575020 kB\nMemFree: 1 kB\nMemAvailable:   20000000 kB\n";
        let memory = parse_memory(text).unwrap();
        assert_eq!(memory.total_bytes, 24_575_020 * 1024);
        assert_eq!(memory.available_bytes, 20_000_000 * 1024);
        assert_eq!(parse_memory("MemTotal: many kB"), None);
        assert_eq!(memory.within(None, 7), memory);
        assert_eq!(memory.within(Some(u64::MAX), 7), memory);
        let limited = memory.within(Some(1 << 30), 1 << 20);
        assert_eq!((limited.total_bytes, limited.available_bytes), (1 << 30, 1023 << 20));
        assert_eq!(chosen("always [madvise] never\n").as_deref(), Some("madvise"));
        assert_eq!(chosen("madvise"), None);
    }

    #[test]
    fn a_disk_too_small_is_refused_for_a_folder_that_is_still_to_be_made() {
        let dir = std::env::temp_dir().join("galerne-none/x");
        check_disk("the run", &dir, 1).unwrap();
        check_disk("nothing", &dir, 0).unwrap();
        let to_the_last_byte = free_disk_bytes(&std::env::temp_dir()).unwrap();
        check_disk("the run", &dir, to_the_last_byte).unwrap_err();
        let error = check_disk("the run", &dir, u64::MAX).unwrap_err().to_string();
        assert!(error.contains("galerne-none/x has "), "{error}");
        assert!(error.contains("the run needs") && error.contains("and a reserve of "), "{error}");
    }

    #[test]
    fn the_nearest_existing_folder_is_found() {
        let dir = std::env::temp_dir();
        assert_eq!(existing_ancestor(&dir.join("galerne-none/x/y")), dir);
        assert_eq!(existing_ancestor(Path::new("none-such")), Path::new("."));
    }
}
