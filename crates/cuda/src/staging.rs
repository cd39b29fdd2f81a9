//! Copies to a GPU that do not wait for what it was asked to do before.
//!
//! The driver takes a small copy at once from any memory. A larger one from memory that is not pinned goes through the driver's own
//! buffers, and the call may return only when the GPU has come to it; so such copies go through pinned memory here.

use std::ffi::c_void;
use std::ptr::NonNull;

use crate::driver::{Address, Driver, Event};
use crate::gpu::Gpu;
use crate::memory::Plain;

/// Bytes of a copy that the driver takes at once.
const TAKEN_AT_ONCE: usize = 64 << 10;
/// Pinned memory is used in turn, a segment after the other: one is written again when the GPU has read all of it.
const SEGMENT_BYTES: usize = 4 << 20;
const N_SEGMENTS: usize = 4;
/// Copies begin at multiples of these bytes, where the GPU reads fastest.
const ALIGNMENT: usize = 256;

/// The pinned memory of a GPU's copies, taken when it is needed first.
#[derive(Default)]
pub(crate) struct Staging {
    segments: [Segment; N_SEGMENTS],
    current: usize,
    /// Bytes of the current segment that were written.
    used: usize,
}

#[derive(Default)]
struct Segment {
    memory: Option<NonNull<u8>>,
    /// Recorded after the copies from it; none while it is written, or before it was.
    is_read: Option<Event>,
}

impl Staging {
    /// Whether a copy of so many bytes goes through pinned memory. Larger ones are those of whole models, which wait for nothing.
    pub(crate) fn takes(n_bytes: usize) -> bool {
        (TAKEN_AT_ONCE + 1..=SEGMENT_BYTES).contains(&n_bytes)
    }

    /// A copy of values that the GPU does not write and nothing here overwrites before the GPU has come to a copy that the caller asks
    /// for next.
    #[expect(unsafe_code, reason = "pinned memory of the driver is a pointer")]
    pub(crate) fn stage<T: Plain>(&mut self, gpu: &Gpu, values: &[T]) -> *const c_void {
        let n_bytes = size_of_val(values);
        assert!(n_bytes <= SEGMENT_BYTES, "{n_bytes} bytes in a segment of {SEGMENT_BYTES}");
        if self.used + n_bytes > SEGMENT_BYTES {
            self.segments[self.current].is_read = Some(gpu.event());
            self.current = (self.current + 1) % N_SEGMENTS;
            self.used = 0;
            if let Some(is_read) = self.segments[self.current].is_read.take() {
                gpu.wait_for(is_read);
            }
        }
        let memory = &mut self.segments[self.current].memory;
        let memory = *memory.get_or_insert_with(|| gpu.pinned_bytes(SEGMENT_BYTES));
        // SAFETY: the segment has room behind what is used of it, which the GPU has read, as was waited for, or was never
        // asked to read. It is memory of this GPU alone and overlaps no slice.
        let staged = unsafe {
            let staged = memory.add(self.used);
            staged.copy_from_nonoverlapping(NonNull::from(values).cast(), n_bytes);
            staged
        };
        self.used = (self.used + n_bytes).next_multiple_of(ALIGNMENT);
        staged.as_ptr().cast_const().cast()
    }

    /// Gives the memory back. The stream has been waited for, and the context is current.
    #[expect(unsafe_code, reason = "calls of the driver")]
    pub(crate) fn free(&mut self, driver: &Driver) {
        for segment in &mut self.segments {
            // SAFETY: the driver gave event and memory, which are not used after this. A failure here follows one that an
            // earlier call reported.
            unsafe {
                if let Some(event) = segment.is_read.take() {
                    let _status = (driver.destroy_event)(event);
                }
                if let Some(memory) = segment.memory.take() {
                    let _status = (driver.free_on_host)(memory.as_ptr().cast());
                }
            }
        }
    }
}

/// Copies values to an address, and does not wait.
#[expect(unsafe_code, reason = "calls of the driver")]
pub(crate) fn copy_to_device<T: Plain>(gpu: &Gpu, values: &[T], address: Address) {
    let n_bytes = size_of_val(values);
    if n_bytes == 0 {
        return;
    }
    let copy = |from: *const c_void| {
        // SAFETY: memory that is not pinned is read before the call returns, and what is staged stays until the GPU has read it;
        // the caller saw that there is room.
        let status = unsafe { (gpu.driver().copy_to_device)(address, from, n_bytes, gpu.stream()) };
        gpu.expect("cuMemcpyHtoDAsync", status);
    };
    match Staging::takes(n_bytes) {
        // The lock is held until the copy was asked for: the event after it must be that of a later one.
        true => gpu.staged(|staging| copy(staging.stage(gpu, values))),
        false => copy(values.as_ptr().cast()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::library::LibraryPath;

    #[test]
    #[expect(unsafe_code, reason = "pinned memory is read where the GPU would")]
    fn what_is_staged_stays_while_the_gpu_may_not_have_read_it() {
        let Some(directory) = testkit::cuda_emulator::directory() else { return };
        let gpu = Gpu::open(&LibraryPath::new(Some(directory))).unwrap();
        let mut staging = Staging::default();
        // Three segments and a half.
        let len = SEGMENT_BYTES / 4 / 2 - 1;
        let staged: Vec<_> =
            (0..7_u32).map(|i| staging.stage(&gpu, &vec![i; len]).cast::<u32>()).collect();
        for (i, staged) in (0..).zip(staged) {
            // SAFETY: memory of `staging`, aligned and with as many numbers.
            let values = unsafe { std::slice::from_raw_parts(staged, len) };
            assert!(values.iter().all(|&x| x == i), "copy {i}");
        }
        gpu.synchronize();
        staging.free(gpu.driver());
    }

    #[test]
    fn staged_copies_arrive_whole_and_in_order() {
        let Some(directory) = testkit::cuda_emulator::directory() else { return };
        let gpu = Gpu::open(&LibraryPath::new(Some(directory))).unwrap();
        // More than all segments hold, of sizes that do not fill them; the last is too large for one.
        let lens = [1, 20_000, 300_001, 700_000, SEGMENT_BYTES / 4, SEGMENT_BYTES / 4 + 1];
        let mut kept = Vec::new();
        for round in 0..4 {
            for len in lens {
                let values: Vec<u32> = (0..len as u32).map(|i| i * 7 + round).collect();
                kept.push((gpu.upload(&values), values));
            }
        }
        for (there, values) in &kept {
            let mut back = vec![0_u32; values.len()];
            there.read(&mut back);
            assert!(back == *values, "{} values", values.len());
        }
    }
}
