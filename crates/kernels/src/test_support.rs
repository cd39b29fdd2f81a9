//! What the tests of this crate share.
#![expect(unsafe_code, reason = "forces the AMX family where it is emulated")]

use std::ops::Range;

use testkit::close::Tolerance;
use testkit::random::Rng;

use crate::{Compute, Family, Operand, detect_features};

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

/// As operands of a type.
pub(crate) fn rounded<T: Operand>(x: &[f32]) -> Vec<T> {
    x.iter().map(|&x| T::from_f32(x)).collect()
}

/// Normal values with the given standard deviation.
pub(crate) fn normal(seed: u64, len: usize, std: f32) -> Vec<f32> {
    let mut rng = Rng::new(seed);
    (0..len).map(|_| rng.normal() as f32 * std).collect()
}

pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// A matrix as its rows.
pub(crate) fn rows(values: &[f32], width: usize) -> Vec<Vec<f32>> {
    values.chunks_exact(width).map(<[f32]>::to_vec).collect()
}

/// A large number whose product with an ordinary one is finite, and whose square is not.
pub(crate) const LARGE: f32 = 1e30;

/// Values that arithmetic treats apart. A NaN has either sign: x86 gives `inf - inf` the negative one.
fn special_values(large: f32) -> [f32; 9] {
    let (infinity, nan) = (f32::INFINITY, f32::NAN);
    [0.0, -0.0, large, -large, 1e-40, infinity, -infinity, nan, -nan]
}

/// Puts zeros, large and tiny numbers, infinities and NaN at some places of each input of an operation, one at a time, and
/// asserts that
/// - every family agrees with the definition about what each output is: NaN, which infinity, or which number;
/// - outputs that the place does not reach keep their bits;
/// - a NaN that reaches an output is seen in one;
/// - nothing of it is left in working memory: afterwards, ordinary inputs give what they gave before.
///
/// `run` gives all outputs one after the other; `reaches(input, place, output)` tells whether that value is a part of that
/// output.
pub(crate) fn check_special_values<const N: usize>(
    ordinary: [Vec<f32>; N],
    large: f32,
    tolerance: Tolerance,
    run: impl Fn(&Compute, &[Vec<f32>; N]) -> Vec<f32>,
    reaches: impl Fn(usize, usize, usize) -> bool,
) {
    check_special_values_of(&computes(1), ordinary, large, tolerance, run, reaches);
}

/// As [`check_special_values`], of some families, the first of which says what is expected.
pub(crate) fn check_special_values_of<const N: usize>(
    computes: &[Compute],
    ordinary: [Vec<f32>; N],
    large: f32,
    tolerance: Tolerance,
    run: impl Fn(&Compute, &[Vec<f32>; N]) -> Vec<f32>,
    reaches: impl Fn(usize, usize, usize) -> bool,
) {
    let before: Vec<Vec<f32>> = computes.iter().map(|compute| run(compute, &ordinary)).collect();
    let check = |inputs: &[Vec<f32>; N], is_kept: &dyn Fn(usize) -> bool, what: &str| {
        let expected = run(&computes[0], inputs);
        for (compute, before) in computes.iter().zip(&before) {
            let family = compute.family();
            let out = run(compute, inputs);
            for (i, (&got, &expected)) in out.iter().zip(&expected).enumerate() {
                let is_close = tolerance.allows(got.into(), expected.into());
                assert!(is_close, "{what}: output {i} is {got}, expected {expected} ({family})");
                let is_same = !is_kept(i) || got.to_bits() == before[i].to_bits();
                assert!(is_same, "{what}: output {i} is {got} instead of {} ({family})", before[i]);
            }
        }
        expected
    };
    for input in 0..N {
        let len = ordinary[input].len();
        // An odd distance: rows of even length are not met in the same column.
        for place in (0..len).step_by((len / 8).max(1) | 1).chain([len - 1]) {
            for value in special_values(large) {
                let mut inputs = ordinary.clone();
                inputs[input][place] = value;
                let what = format!("{value} at {place} of input {input}");
                let expected = check(&inputs, &|i| !reaches(input, place, i), &what);
                let is_lost = value.is_nan()
                    && (0..expected.len()).any(|i| reaches(input, place, i))
                    && !expected.iter().any(|x| x.is_nan());
                assert!(!is_lost, "{what} is lost");
            }
        }
        for value in [0.0, f32::NAN] {
            let mut inputs = ordinary.clone();
            inputs[input].fill(value);
            check(&inputs, &|_| false, &format!("{value} everywhere in input {input}"));
        }
    }
    check(&ordinary, &|_| true, "ordinary inputs again");
}

/// Rows of [`check_rows_alone_and_among_others`].
pub(crate) const N_ROWS: usize = 512;

/// Asserts that rows have the same bits alone and among 2, 15, 16, 17 and 512, on one thread and on two. `run` does some of
/// 512 rows, and gives the outputs of each.
pub(crate) fn check_rows_alone_and_among_others(
    seed: u64,
    run: impl Fn(&Compute, Range<usize>) -> Vec<Vec<f32>>,
) {
    for (one, two) in computes(1).iter().zip(&computes(2)) {
        let all = run(one, 0..N_ROWS);
        let mut rng = Rng::new(seed);
        for n_rows in [1, 1, 1, 2, 15, 16, 17, N_ROWS] {
            let first = rng.below(N_ROWS + 1 - n_rows);
            let computes = if n_rows == N_ROWS { &[two][..] } else { &[one, two] };
            for compute in computes {
                let some = run(compute, first..first + n_rows);
                assert_eq!(some.len(), n_rows);
                for (i, row) in some.iter().enumerate() {
                    assert!(
                        bits(row) == bits(&all[first + i]),
                        "row {} among {n_rows} on {} threads ({})",
                        first + i,
                        compute.n_threads(),
                        compute.family()
                    );
                }
            }
        }
    }
}

/// Asserts that an operation has the same bits on one, two and three threads.
pub(crate) fn check_threads(run: impl Fn(&Compute) -> Vec<f32>) {
    for (i, one) in computes(1).iter().enumerate() {
        let expected = bits(&run(one));
        for n_threads in [2, 3] {
            let family = one.family();
            let out = bits(&run(&computes(n_threads)[i]));
            assert!(out == expected, "{n_threads} threads ({family})");
        }
    }
}

/// A sum of bytes that tells them from others (FNV-1a).
pub(crate) fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |sum, &byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3)
    })
}
