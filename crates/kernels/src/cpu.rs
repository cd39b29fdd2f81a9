//! What this processor and this system offer.
#![expect(unsafe_code, reason = "CPUID and arch_prctl have no safe interface")]

/// The instruction sets that the families need, as found on this machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuFeatures {
    /// AVX2 with FMA and F16C.
    pub avx2: bool,
    /// VNNI for registers of AVX2.
    pub avx_vnni: bool,
    /// AVX-512 F, BW, DQ and VL.
    pub avx512: bool,
    /// AVX-512 BF16.
    pub avx512_bf16: bool,
    /// AVX-512 VNNI.
    pub avx512_vnni: bool,
    /// AMX tiles with bf16 and int8 products, and the system's permission to use them.
    pub amx: bool,
}

/// Reads the processor's features and asks the system for the use of AMX tiles where they exist.
///
/// The permission holds for the whole process, threads that already run included.
#[must_use]
pub fn detect_features() -> CpuFeatures {
    detect_on_this_target()
}

#[cfg(not(target_arch = "x86_64"))]
fn detect_on_this_target() -> CpuFeatures {
    CpuFeatures::default()
}

#[cfg(target_arch = "x86_64")]
fn detect_on_this_target() -> CpuFeatures {
    CpuFeatures {
        avx2: is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c"),
        avx_vnni: is_x86_feature_detected!("avxvnni"),
        avx512: is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl"),
        avx512_bf16: is_x86_feature_detected!("avx512bf16"),
        avx512_vnni: is_x86_feature_detected!("avx512vnni"),
        amx: has_amx_tiles() && request_amx_permission(),
    }
}

/// CPUID leaf 7, EDX: bit 22 AMX-BF16, bit 24 AMX-TILE, bit 25 AMX-INT8 (Intel SDM, volume 2A, CPUID).
#[cfg(target_arch = "x86_64")]
fn has_amx_tiles() -> bool {
    const NEEDED: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    if core::arch::x86_64::__cpuid(0).eax < 7 {
        return false;
    }
    core::arch::x86_64::__cpuid_count(7, 0).edx & NEEDED == NEEDED
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn request_amx_permission() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: arch_prctl with this code only asks for a permission; it reads no memory of ours.
    let answer =
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) };
    answer == 0
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn request_amx_permission() -> bool {
    false
}
