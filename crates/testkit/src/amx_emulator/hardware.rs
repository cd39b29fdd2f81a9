//! Detection of AMX and the permission to use it.
#![expect(unsafe_code, reason = "xgetbv and arch_prctl have no safe form")]

use super::InstallError;
use std::arch::x86_64::{__cpuid_count, _xgetbv};

/// True when the CPU has tiles with bf16 and int8 products and the system saves their state.
pub(super) fn has_amx() -> bool {
    const BF16_TILE_INT8: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    const TILE_CONFIG_AND_DATA: u64 = 1 << 17 | 1 << 18;
    // Detection of AVX implies OSXSAVE, so xgetbv exists.
    if !std::arch::is_x86_feature_detected!("avx") || !std::arch::is_x86_feature_detected!("xsave")
    {
        return false;
    }
    let features = __cpuid_count(7, 0).edx;
    // SAFETY: the CPU has xsave and the system enabled it, both checked above.
    let enabled_state = unsafe { _xgetbv(0) };
    features & BF16_TILE_INT8 == BF16_TILE_INT8
        && enabled_state & TILE_CONFIG_AND_DATA == TILE_CONFIG_AND_DATA
}

/// Asks Linux for the tile state; the answer holds for all threads of the process.
pub(super) fn request_tile_permission() -> Result<(), InstallError> {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const TILE_DATA: libc::c_long = 18;
    // SAFETY: this request takes two integers and touches no memory of ours.
    let result = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) };
    if result == 0 { Ok(()) } else { Err(InstallError::TilePermission { errno: last_errno() }) }
}

/// The error number of the system call that just failed.
pub(super) fn last_errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}
