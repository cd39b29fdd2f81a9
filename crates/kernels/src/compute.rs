//! Which kernels run, and on which threads.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::cpu::{CpuFeatures, detect_features};
use crate::paths::{KernelPath, PathCounts};
use crate::pool::Pool;

/// A kernel family: one arithmetic per operation (ARCHITECTURE.md, Determinism).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// Plain scalar code: the definition.
    Reference,
    /// AVX2 with FMA, and AVX-VNNI where it is found; bf16 is widened to f32.
    Avx2,
    /// AVX-512 with VNNI, and BF16 for rounding; products of bf16 are of f32.
    Avx512,
    /// AMX tiles for products, AVX-512 for the rest.
    Amx,
}

impl Family {
    /// Every family, slowest first.
    pub const ALL: [Self; 4] = [Self::Reference, Self::Avx2, Self::Avx512, Self::Amx];

    /// The name on the command line and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Reference => "reference",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Amx => "amx",
        }
    }

    /// The fastest family that a machine with these features can run.
    #[must_use]
    pub fn fastest(features: CpuFeatures) -> Self {
        let runs = |family: &Self| family.runs_on(features);
        Self::ALL.into_iter().rev().find(runs).expect("the reference family runs everywhere")
    }

    /// Whether a machine with these features can run the family.
    #[must_use]
    pub fn runs_on(self, features: CpuFeatures) -> bool {
        let avx512 =
            features.avx2 && features.avx512 && features.avx512_bf16 && features.avx512_vnni;
        match self {
            Self::Reference => true,
            Self::Avx2 => features.avx2,
            Self::Avx512 => avx512,
            Self::Amx => avx512 && features.amx,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Family {
    type Err = ComputeError;

    fn from_str(text: &str) -> Result<Self, ComputeError> {
        Self::ALL
            .into_iter()
            .find(|family| family.name() == text)
            .ok_or_else(|| ComputeError::UnknownFamily { got: text.to_owned() })
    }
}

/// Why a [`Compute`] could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ComputeError {
    /// No family has this name.
    #[error("unknown kernel family `{got}`, expected reference, avx2, avx512 or amx")]
    UnknownFamily {
        /// The name given.
        got: String,
    },
    /// The family needs instructions that this machine lacks.
    #[error("kernel family `{family}` cannot run on this machine: {features:?}")]
    Unsupported {
        /// The family asked for.
        family: Family,
        /// What the machine has.
        features: CpuFeatures,
    },
    /// A pool of no threads or of absurdly many.
    #[error("a thread pool has between 1 and 1024 threads, got {n_threads}")]
    ThreadCount {
        /// The number asked for.
        n_threads: usize,
    },
    /// The system refused a thread.
    #[error("cannot start a compute thread: {source}")]
    Spawn {
        /// The system's answer.
        source: std::io::Error,
    },
}

/// The kernel family and the thread pool; made once and passed to every operation. Clones share the pool and the counts of paths.
#[derive(Clone, Debug)]
pub struct Compute {
    family: Family,
    has_avx_vnni: bool,
    pool: Arc<Pool>,
    paths: Arc<PathCounts>,
}

impl Compute {
    /// The fastest family of this machine on all its processors.
    ///
    /// # Errors
    /// When the system refuses the threads.
    pub fn detect() -> Result<Self, ComputeError> {
        let family = Family::fastest(detect_features());
        let n_threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self::forced(family, n_threads)
    }

    /// A chosen family on a chosen number of threads, the calling thread included.
    ///
    /// # Errors
    /// When this machine cannot run the family, or the threads cannot be started.
    pub fn forced(family: Family, n_threads: usize) -> Result<Self, ComputeError> {
        let features = detect_features();
        if !family.runs_on(features) {
            return Err(ComputeError::Unsupported { family, features });
        }
        Self::of(family, n_threads)
    }

    /// The AMX family without asking whether the machine has AMX, for tests under an emulator.
    ///
    /// # Errors
    /// When the machine lacks AVX-512, which the family uses beside the tiles, or threads cannot be started.
    ///
    /// # Safety
    /// AMX instructions must work in this process: in hardware with the system's permission, or through a
    /// handler that emulates them.
    #[expect(unsafe_code, reason = "the caller vouches for instructions that detection denies")]
    pub unsafe fn with_emulated_amx(n_threads: usize) -> Result<Self, ComputeError> {
        let features = CpuFeatures { amx: true, ..detect_features() };
        if !Family::Amx.runs_on(features) {
            return Err(ComputeError::Unsupported { family: Family::Amx, features });
        }
        Self::of(Family::Amx, n_threads)
    }

    fn of(family: Family, n_threads: usize) -> Result<Self, ComputeError> {
        let has_avx_vnni = detect_features().avx_vnni;
        let pool = Arc::new(Pool::new(n_threads)?);
        Ok(Self { family, has_avx_vnni, pool, paths: Arc::default() })
    }

    /// The kernel family.
    #[must_use]
    pub fn family(&self) -> Family {
        self.family
    }

    /// Whether the family `avx2` may use AVX-VNNI, which changes no bit.
    #[cfg(any(test, target_arch = "x86_64"))]
    pub(crate) fn has_avx_vnni(&self) -> bool {
        self.has_avx_vnni
    }

    /// As on a machine that lacks it.
    #[cfg(test)]
    pub(crate) fn without_avx_vnni(self) -> Self {
        Self { has_avx_vnni: false, ..self }
    }

    /// The thread pool.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Operations so far that took a path.
    #[must_use]
    pub fn n_calls(&self, path: KernelPath) -> u64 {
        self.paths.n_calls(path)
    }

    /// Notes that an operation takes a path.
    pub(crate) fn count(&self, path: KernelPath) {
        self.paths.count(path);
    }

    /// Number of threads, the calling one included.
    #[must_use]
    pub fn n_threads(&self) -> usize {
        self.pool.n_threads()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fastest_family_is_the_last_that_runs() {
        let avx2 = CpuFeatures { avx2: true, ..CpuFeatures::default() };
        let avx512 = CpuFeatures { avx512: true, avx512_bf16: true, avx512_vnni: true, ..avx2 };
        for (features, expected) in [
            (CpuFeatures::default(), Family::Reference),
            (avx2, Family::Avx2),
            (CpuFeatures { avx512_vnni: false, ..avx512 }, Family::Avx2),
            (avx512, Family::Avx512),
            (CpuFeatures { amx: true, ..avx512 }, Family::Amx),
            (CpuFeatures { amx: true, ..avx2 }, Family::Avx2),
        ] {
            assert_eq!(Family::fastest(features), expected, "{features:?}");
        }
    }
}
