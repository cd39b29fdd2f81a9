//! Transposition of a left operand: `out[row, k] = source[k, row]`.
//!
//! Products whose inner dimension is the tokens (gradients of weights) find their left operand with the wrong
//! dimension in front. Each task turns its own part over; the copy stays in the second-level cache.

use crate::compute::Family;
use crate::operand::Operand;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;

/// `out[row, k] = source[k, row]` for `k < n_k`, zero beyond. Overwrites.
///
/// Shapes: source `[n_k, n_rows]` at rows of `stride`; out `[n_rows, out_stride]`, where `out_stride` is a multiple of
/// [`Operand::GROUP`] and at least `n_k`. Exact: values are moved.
///
/// # Panics
/// When a slice does not fit the shape.
#[expect(unsafe_code, reason = "the vector versions take pointers; all lengths are checked here")]
pub(crate) fn transpose<T: Operand>(
    family: Family,
    source: &[T],
    stride: usize,
    [n_rows, n_k]: [usize; 2],
    out: &mut [T],
    out_stride: usize,
) {
    check_source(source, stride, [n_rows, n_k]);
    assert!(out_stride >= n_k && out_stride.is_multiple_of(T::GROUP), "{out_stride} per row");
    assert_eq!(out.len(), n_rows * out_stride, "out is [{n_rows}, {out_stride}]");
    #[cfg(target_arch = "x86_64")]
    {
        let job = Job {
            source: source.as_ptr(),
            stride,
            n_rows,
            n_k,
            out: out.as_mut_ptr().cast(),
            out_groups: out_stride / T::GROUP,
            layout: Layout::rows(out_stride / T::GROUP),
        };
        match family {
            Family::Reference => {}
            // SAFETY: lengths were checked above, and the family is there only where its instructions are.
            Family::Avx2 => return unsafe { avx2::transpose(&job) },
            // SAFETY: as above.
            Family::Avx512 | Family::Amx => return unsafe { avx512::transpose(&job) },
        }
    }
    let _ = family;
    for (row, out) in out.chunks_exact_mut(out_stride.max(1)).enumerate() {
        for (k, value) in out.iter_mut().enumerate() {
            *value = if k < n_k { source[k * stride + row] } else { T::from_f32(0.0) };
        }
    }
}

/// As [`transpose`] into tiles of 16 rows of 16 groups: `[n_rows / 16, n_k / K_STEP, 16, K_STEP]`, zeros behind the last of K. Rows
/// behind the last keep what they held.
///
/// # Panics
/// When a slice does not fit the shape.
///
/// # Safety
/// On a processor with AVX-512 F, BW and VL.
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "the vector version takes pointers; all lengths are checked here")]
pub(crate) unsafe fn transpose_into_tiles<T: Operand>(
    source: &[T],
    stride: usize,
    [n_rows, n_k]: [usize; 2],
    out: &mut [T],
) {
    check_source(source, stride, [n_rows, n_k]);
    let k_padded = n_k.next_multiple_of(T::K_STEP);
    let out_groups = k_padded / T::GROUP;
    assert!(T::K_STEP == 16 * T::GROUP, "steps of K are tiles");
    assert!(out.len() >= n_rows.next_multiple_of(16) * k_padded, "out is [{n_rows}, {k_padded}]");
    let layout = Layout { bundle: 16 * out_groups, step: 256, row: 16 };
    let (source, out) = (source.as_ptr(), out.as_mut_ptr().cast());
    // SAFETY: lengths were checked above; the rest is the caller's promise.
    unsafe { avx512::transpose(&Job { source, stride, n_rows, n_k, out, out_groups, layout }) };
}

fn check_source<T>(source: &[T], stride: usize, [n_rows, n_k]: [usize; 2]) {
    assert!(n_rows <= stride || n_k <= 1, "rows of {n_rows} overlap at a distance of {stride}");
    assert!(n_k == 0 || source.len() >= (n_k - 1) * stride + n_rows, "source is [{n_k}, {n_rows}]");
}

/// Where 16 rows of 16 groups go: distances in groups.
#[cfg(target_arch = "x86_64")]
struct Layout {
    /// Between bundles of 16 rows.
    bundle: usize,
    /// Between steps of 16 groups.
    step: usize,
    /// Between rows of a bundle.
    row: usize,
}

#[cfg(target_arch = "x86_64")]
impl Layout {
    /// Rows of groups.
    fn rows(n_groups: usize) -> Self {
        Self { bundle: 16 * n_groups, step: 16, row: n_groups }
    }
}

/// A checked transposition. Groups of K have 4 bytes.
#[cfg(target_arch = "x86_64")]
struct Job<T> {
    source: *const T,
    stride: usize,
    n_rows: usize,
    n_k: usize,
    out: *mut u32,
    /// Groups in a row of the output.
    out_groups: usize,
    /// For AVX-512; AVX2 writes rows.
    layout: Layout,
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::test_support::{LARGE, bits, check_special_values, computes, fast_computes, normal};
    use testkit::close::Tolerance;

    fn check<T: Operand>(family: Family) {
        for n_rows in [1, 7, 8, 9, 15, 16, 17, 40] {
            for n_k in [0, 1, 2, 15, 16, 17, 31, 32, 33, 70] {
                for padding in [0, 2, 34] {
                    let stride = n_rows + 3;
                    let source: Vec<T> = normal(7, (n_k + 1) * stride, 1.0)
                        .into_iter()
                        .map(|value| T::from_f32(value))
                        .collect();
                    let out_stride = (n_k + padding).next_multiple_of(T::GROUP);
                    let mut out = vec![T::from_f32(f32::NAN); n_rows * out_stride];
                    let shape = [n_rows, n_k];
                    transpose(family, &source, stride, shape, &mut out, out_stride);
                    for row in 0..n_rows {
                        for k in 0..out_stride {
                            let expected =
                                if k < n_k { source[k * stride + row] } else { T::from_f32(0.0) };
                            assert_eq!(out[row * out_stride + k], expected, "{shape:?} {row} {k}");
                        }
                    }
                }
            }
        }
    }

    fn check_special<T: Operand>() {
        let (n_rows, n_k, stride) = (21, 35, 23);
        let out_stride = 38;
        check_special_values(
            [normal(8, n_k * stride, 1.0)],
            LARGE,
            Tolerance::EXACT,
            |compute, [source]| {
                let source: Vec<T> = source.iter().map(|&x| T::from_f32(x)).collect();
                let mut out = vec![T::from_f32(7.0); n_rows * out_stride];
                transpose(compute.family(), &source, stride, [n_rows, n_k], &mut out, out_stride);
                out.into_iter().map(T::to_f32).collect()
            },
            |_, place, output| {
                place % stride == output / out_stride && place / stride == output % out_stride
            },
        );
    }

    #[test]
    fn special_values_move_and_the_padding_beside_them_is_zero() {
        check_special::<f32>();
        check_special::<bf16>();
        // Every bit pattern moves as it is: groups of quantised panels are no numbers.
        let source = [0x7f80_0001_u32, 0xffc1_2345, 0x0000_0001, 0x8000_0000].map(f32::from_bits);
        for compute in computes(1) {
            let mut out = [0.0_f32; 4];
            transpose(compute.family(), &source, 2, [2, 2], &mut out, 2);
            let expected = [source[0], source[2], source[1], source[3]];
            assert_eq!(bits(&out), bits(&expected), "{}", compute.family());
        }
    }

    #[test]
    fn every_value_moves_and_the_rest_is_zero() {
        let fast = fast_computes(1);
        for family in fast.iter().map(|compute| compute.family()).chain([Family::Reference]) {
            check::<f32>(family);
            check::<bf16>(family);
        }
    }
}
