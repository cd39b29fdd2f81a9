//! What the tests of this crate share.
#![expect(unsafe_code, reason = "forces the AMX family where it is emulated")]

use testkit::random::Rng;

use crate::{Compute, Family, detect_features};

/// One Compute of every family that this machine runs; AMX is emulated where it is missing.
pub(crate) fn computes(n_threads: usize) -> Vec<Compute> {
    let mut computes: Vec<Compute> = Family::ALL
        .into_iter()
        .filter(|&family| family != Family::Amx && family.runs_on(detect_features()))
        .map(|family| Compute::forced(family, n_threads).unwrap())
        .collect();
    if Family::Avx512.runs_on(detect_features()) {
        testkit::amx_emulator::install().unwrap();
        // SAFETY: the emulator was installed, or the hardware has AMX.
        computes.push(unsafe { Compute::with_emulated_amx(n_threads) }.unwrap());
    }
    computes
}

/// Families beside the reference.
pub(crate) fn fast_computes(n_threads: usize) -> Vec<Compute> {
    computes(n_threads).into_iter().filter(|c| c.family() != Family::Reference).collect()
}

pub(crate) fn reference() -> Compute {
    Compute::forced(Family::Reference, 1).unwrap()
}

/// Normal values with the given standard deviation.
pub(crate) fn normal(seed: u64, len: usize, std: f32) -> Vec<f32> {
    let mut rng = Rng::new(seed);
    (0..len).map(|_| rng.normal() as f32 * std).collect()
}

pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}
