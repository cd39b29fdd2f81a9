//! The GPU kernels of `crates/cuda` as files: their sources, what is compiled of them, and the list of digests that holds the
//! two together.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

/// Where the sources are.
pub(crate) const SOURCES: &str = "crates/cuda/kernels/";

/// Where the outputs are.
pub(crate) const COMPILED: &str = "crates/cuda/kernels/compiled/";

/// The list of digests; `sha256sum --check` reads it in the root of the checkout.
pub(crate) const SUMS: &str = "crates/cuda/kernels/compiled/SHA256SUMS";

/// The packages of the compiler.
pub(crate) const REQUIREMENTS: &str = "xtask/cuda/requirements.txt";

/// The command that makes all of it.
pub(crate) const COMMAND: &str = "cargo xtask cuda-kernels";

/// Options of nvcc for every output. There is no fast mathematics: where an approximation will do, the source asks for it.
pub(crate) const OPTIONS: &[&str] = &["-std=c++17", "-O3", "-Werror=all-warnings"];

/// What each source is compiled to.
pub(crate) struct Target {
    /// What follows the name of the source without `.cu`.
    pub(crate) suffix: &'static str,
    /// Further options of nvcc.
    pub(crate) options: &'static [&'static str],
}

/// Machine code of Hopper, and text that drivers compile for every GPU since Ampere.
pub(crate) const TARGETS: &[Target] = &[
    Target {
        suffix: ".sm_90a.cubin",
        options: &["-cubin", "-gencode=arch=compute_90a,code=sm_90a", "-Xptxas=-v"],
    },
    Target {
        suffix: ".compute_80.ptx",
        options: &["-ptx", "-gencode=arch=compute_80,code=compute_80"],
    },
];

/// The name of a source without its end, if the path is one that is compiled.
pub(crate) fn source_name(path: &str) -> Option<&str> {
    path.strip_prefix(SOURCES)?.strip_suffix(".cu").filter(|name| !name.contains('/'))
}

/// Whether the list has this file: what is compiled, with what, and what came of it.
pub(crate) fn is_listed(path: &str) -> bool {
    let is_source =
        |name: &str| !name.contains('/') && (name.ends_with(".cu") || name.ends_with(".cuh"));
    path == REQUIREMENTS
        || (path.starts_with(COMPILED) && path != SUMS)
        || path.strip_prefix(SOURCES).is_some_and(is_source)
}

/// The SHA-256 of a file, in hexadecimal digits.
pub(crate) fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes every write");
        text
    })
}

/// The list, from paths to digests.
pub(crate) fn list(digests: &BTreeMap<String, String>) -> String {
    let mut text = format!("# Written by `{COMMAND}`, checked by `cargo xtask tidy`.\n");
    for Target { suffix, options } in TARGETS {
        let options = [OPTIONS, options].concat().join(" ");
        writeln!(text, "# NAME{suffix}: nvcc {options}").expect("a String takes every write");
    }
    for (path, digest) in digests {
        writeln!(text, "{digest}  {path}").expect("a String takes every write");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_outputs_and_the_compiler_are_listed() {
        for path in [
            "crates/cuda/kernels/norm.cu",
            "crates/cuda/kernels/primitives.cuh",
            "crates/cuda/kernels/compiled/norm.sm_90a.cubin",
            REQUIREMENTS,
        ] {
            assert!(is_listed(path), "{path}");
        }
        for path in [SUMS, "crates/cuda/kernels/old/norm.cu", "crates/cuda/src/lib.rs"] {
            assert!(!is_listed(path), "{path}");
        }
    }

    #[test]
    fn a_digest_is_that_of_sha256sum() {
        assert_eq!(
            digest(b"abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn names_are_those_of_sources() {
        assert_eq!(source_name("crates/cuda/kernels/norm.cu"), Some("norm"));
        assert_eq!(source_name("crates/cuda/kernels/primitives.cuh"), None);
        assert_eq!(source_name("crates/cuda/kernels/old/norm.cu"), None);
    }
}
