//! The kernels as `cargo xtask cuda-kernels` compiled them.

/// Compute capability that there is machine code for.
pub(crate) const MACHINE_CODE: (i32, i32) = (9, 0);

/// The kernels of one source file.
pub(crate) struct Kernels {
    /// Machine code of Hopper.
    pub(crate) sm_90a: &'static [u8],
    /// Text that drivers compile for every GPU since Ampere.
    pub(crate) compute_80: &'static [u8],
}

macro_rules! kernels {
    ($($name:literal)*) => {
        &[$(Kernels {
            sm_90a: include_bytes!(concat!("../kernels/compiled/", $name, ".sm_90a.cubin")),
            compute_80: include_bytes!(concat!("../kernels/compiled/", $name, ".compute_80.ptx")),
        }),*]
    };
}

pub(crate) const ALL: &[Kernels] = kernels![
    "attention_hopper"
    "attention_hopper_backward"
    "attention_packed"
    "attention_paged"
    "attention_plain"
    "blocks"
    "chain"
    "elementwise"
    "embedding"
    "few_rows"
    "loss"
    "norm"
    "paged_cache"
    "rope"
    "swiglu"
];
