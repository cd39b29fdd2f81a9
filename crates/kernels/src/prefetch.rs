//! Asking for memory ahead of its use.

/// Bytes between what is in use and what is asked for, for one consecutive stream: the best of 5 to 128 KiB (`docs/experiments.md`). A multiple of
/// 4 KiB would stand in the same places of the caches as what is in use.
#[cfg(target_arch = "x86_64")]
pub(crate) const DISTANCE: usize = 17 << 10;

/// Bytes that come together.
const LINE: usize = 64;

/// Asks for `len` bytes from `first` on, which may be any address, into the second cache: the first has too few places for lines on
/// their way to keep memory busy.
#[inline(always)]
pub(crate) fn prefetch(first: *const u8, len: usize) {
    #[cfg(target_arch = "x86_64")]
    ask::<{ std::arch::x86_64::_MM_HINT_T1 }>(first, len);
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (first, len, LINE);
}

/// As [`prefetch`], into the first cache: of what lies in the second and is used soon.
#[inline(always)]
pub(crate) fn prefetch_near(first: *const u8, len: usize) {
    #[cfg(target_arch = "x86_64")]
    ask::<{ std::arch::x86_64::_MM_HINT_T0 }>(first, len);
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (first, len, LINE);
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
#[expect(unsafe_code, reason = "a prefetch reads nothing that the program sees")]
fn ask<const HINT: i32>(first: *const u8, len: usize) {
    for at in (0..len).step_by(LINE) {
        // SAFETY: every address may be prefetched.
        unsafe { std::arch::x86_64::_mm_prefetch::<HINT>(first.wrapping_add(at).cast()) };
    }
}
