//! Memory for tensors: aligned to a cache line, zeroed, on huge pages where it is large, and given back to the system with what it held: the
//! allocator would keep much of a model that is dropped, between small pieces that are still in use.
#![expect(unsafe_code, reason = "memory from the system, aligned allocation and typed views of it")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use half::bf16;

/// A plain number for which all-zero bytes are a valid value.
///
/// # Safety
/// Every bit pattern of the type's size is a valid value, and the type needs no drop.
pub unsafe trait Element: Copy + Send + Sync + 'static {}

// SAFETY: every bit pattern of these types is a valid value.
unsafe impl Element for f32 {}
// SAFETY: as above; bf16 is a transparent u16.
unsafe impl Element for bf16 {}
// SAFETY: as above.
unsafe impl Element for u8 {}
// SAFETY: as above.
unsafe impl Element for u32 {}

const ALIGNMENT: usize = 64;
const HUGE_PAGE: usize = 2 << 20;

/// Bytes from which on memory comes from the system: fewer are asked for too often.
const MAPPED: usize = 256 << 10;

/// A fixed-length array of numbers, zeroed at birth, aligned to 64 bytes (to 2 MiB when it is larger than that,
/// with the advice to use huge pages: TLB misses cost a third of the memory bandwidth).
#[derive(Debug)]
pub struct Buffer<T: Element> {
    start: NonNull<T>,
    len: usize,
}

// SAFETY: a Buffer owns its memory like a Vec, and T is Send.
unsafe impl<T: Element> Send for Buffer<T> {}
// SAFETY: shared access gives only shared slices, and T is Sync.
unsafe impl<T: Element> Sync for Buffer<T> {}

impl<T: Element> Buffer<T> {
    /// `len` zeros.
    ///
    /// # Panics
    /// When the size in bytes overflows. Out of memory ends the process as for every allocation.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        if len == 0 {
            return Self { start: NonNull::dangling(), len };
        }
        let layout = Self::layout(len);
        // SAFETY: the layout's size is not zero, because len is not and T is not zero-sized.
        let bytes = unsafe { if is_mapped(layout) { map(layout) } else { alloc_zeroed(layout) } };
        let Some(start) = NonNull::new(bytes.cast::<T>()) else { handle_alloc_error(layout) };
        if is_mapped(layout) {
            // Touched now, and not where it is first used.
            // SAFETY: all of the allocation, which is ours.
            unsafe { bytes.write_bytes(0, layout.size()) };
        }
        Self { start, len }
    }

    /// A copy of `values`.
    #[must_use]
    pub fn from_slice(values: &[T]) -> Self {
        let mut buffer = Self::zeroed(values.len());
        buffer.copy_from_slice(values);
        buffer
    }

    fn layout(len: usize) -> Layout {
        let size = len.checked_mul(size_of::<T>()).expect("the size in bytes fits usize");
        let alignment = if size >= HUGE_PAGE { HUGE_PAGE } else { ALIGNMENT };
        Layout::from_size_align(size, alignment).expect("the size in bytes fits isize")
    }
}

/// Whether memory comes from [`map`].
fn is_mapped(layout: Layout) -> bool {
    cfg!(target_os = "linux") && layout.size() >= MAPPED
}

/// Bytes that are mapped for a layout: a multiple of every size of pages.
#[cfg(target_os = "linux")]
fn mapped_len(layout: Layout) -> usize {
    layout.size().next_multiple_of(64 << 10)
}

/// Zeros from the system, aligned as the layout says, or null. From 2 MiB on huge pages are asked for.
///
/// # Safety
/// The layout's size is not zero.
#[cfg(target_os = "linux")]
unsafe fn map(layout: Layout) -> *mut u8 {
    // Pages are aligned to 4 KiB at least; beyond that there is as much more as can be cut off in front.
    let len = mapped_len(layout);
    let more = if layout.align() > 4096 { layout.align() } else { 0 };
    let (read_write, private) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: asks for new pages wherever there is room; the ends that are cut off lie within them and are nobody's. Advice changes no
    // content, and an error only means small pages.
    unsafe {
        let start = libc::mmap(std::ptr::null_mut(), len + more, read_write, private, -1, 0);
        if start == libc::MAP_FAILED {
            return std::ptr::null_mut();
        }
        let start = start.cast::<u8>();
        let in_front = start.align_offset(layout.align());
        for (from, cut) in [(0, in_front), (in_front + len, more - in_front)] {
            if cut > 0 {
                libc::munmap(start.wrapping_add(from).cast(), cut);
            }
        }
        let start = start.wrapping_add(in_front);
        if layout.size() >= HUGE_PAGE {
            libc::madvise(start.cast(), len, libc::MADV_HUGEPAGE);
        }
        start
    }
}

#[cfg(not(target_os = "linux"))]
unsafe fn map(_layout: Layout) -> *mut u8 {
    unreachable!("only Linux maps memory here")
}

/// # Safety
/// `start` is of [`map`] with this layout, and is not used again.
#[cfg(target_os = "linux")]
unsafe fn unmap(start: *mut u8, layout: Layout) {
    let len = mapped_len(layout);
    // SAFETY: the caller's promise.
    unsafe {
        if libc::munmap(start.cast(), len) != 0 {
            // There are too many mappings for one to be cut out of its neighbours: at least its pages go back.
            libc::madvise(start.cast(), len, libc::MADV_DONTNEED);
        }
    }
}

#[cfg(not(target_os = "linux"))]
unsafe fn unmap(_start: *mut u8, _layout: Layout) {
    unreachable!("only Linux maps memory here")
}

impl<T: Element> Drop for Buffer<T> {
    fn drop(&mut self) {
        if self.len > 0 {
            let (start, layout) = (self.start.as_ptr().cast(), Self::layout(self.len));
            // SAFETY: allocated in `zeroed` with this very layout, in this very way.
            unsafe {
                if is_mapped(layout) { unmap(start, layout) } else { dealloc(start, layout) }
            };
        }
    }
}

impl<T: Element> AsRef<[T]> for Buffer<T> {
    fn as_ref(&self) -> &[T] {
        self
    }
}

impl<T: Element> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `start` holds `len` initialised values (zeroed at birth), owned by self.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: Element> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `&mut self` makes the access unique.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl<T: Element> Clone for Buffer<T> {
    fn clone(&self) -> Self {
        Self::from_slice(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_zeroed_aligned_and_copied() {
        // Of the allocator, of small pages, of huge ones, and around where one ends and the next begins.
        let [mapped, huge] = [MAPPED / 4, HUGE_PAGE / 4];
        for len in [0, 1, 15, mapped - 1, mapped, 100_001, huge - 1, huge, 1_234_567, 3 << 20] {
            let mut buffer = Buffer::<f32>::zeroed(len);
            assert_eq!(buffer.len(), len);
            assert!(buffer.iter().all(|&x| x == 0.0));
            if len > 0 {
                let bytes = 4 * len;
                let alignment = if bytes >= HUGE_PAGE { HUGE_PAGE } else { ALIGNMENT };
                assert_eq!(buffer.as_ptr() as usize % alignment, 0, "{len}");
                buffer[len - 1] = 7.0;
            }
            assert_eq!(&*buffer.clone(), &*buffer);
        }
    }
}
