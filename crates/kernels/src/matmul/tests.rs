use half::bf16;
use proptest::prelude::*;

use super::*;
use crate::buffer::Buffer;
use crate::panels::{Panels, Source, SourceOrder};
use crate::test_support::{
    LARGE, bits, check_rows_alone_and_among_others, check_special_values, check_threads, computes,
    fast_computes, normal, reference, rows,
};
use testkit::close::Tolerance;

/// The product of `a [m, k]` and `b [n, k]` added to ones, from rows or from columns of `a`.
fn product<T: Operand>(
    compute: &Compute,
    a: &[f32],
    b: &[f32],
    dims: [usize; 3],
    write: Write,
    from_columns: bool,
) -> Vec<f32> {
    let [m, n, k] = dims;
    let panels = Panels::<T>::packed(compute, Source::rows_of_n(b, k), n, k);
    let rows: Vec<T> = a.iter().map(|&x| T::from_f32(x)).collect();
    let columns: Vec<T> = (0..k * m).map(|i| rows[i % m * k + i / m]).collect();
    let left = if from_columns {
        Left::Columns { values: &columns, stride: m }
    } else {
        Left::Rows { values: &rows, stride: k }
    };
    let mut out = vec![1.0; m * n];
    matmul(compute, left, Right::Panels(panels.values()), dims, &mut out, write);
    out
}

/// Sums in another order differ by rounding: at most about K times half a unit in the last place of the sum of
/// magnitudes; 2^-20 of that sum is far above for K of thousands and far below one bf16 rounding (2^-9).
fn assert_products_close<T: Operand>(
    actual: &[f32],
    a: &[f32],
    b: &[f32],
    [m, n, k]: [usize; 3],
    start: f32,
) {
    for i in 0..m {
        for j in 0..n {
            let (mut sum, mut magnitude) = (f64::from(start), 1e-30);
            for l in 0..k {
                let round = |x: f32| f64::from(T::from_f32(x).to_f32());
                let term = round(a[i * k + l]) * round(b[j * k + l]);
                sum += term;
                magnitude += term.abs();
            }
            let difference = (f64::from(actual[i * n + j]) - sum).abs();
            assert!(
                difference <= (magnitude + f64::from(start)) * 2.0_f64.powi(-20),
                "[{i}, {j}] of [{m}, {n}, {k}]: {} is not {sum}",
                actual[i * n + j]
            );
        }
    }
}

fn check_all_shapes<T: Operand>(compute: &Compute) {
    let dims = [1, 2, 5, 6, 7, 15, 16, 17, 31, 33, 200];
    for (case, m) in dims.into_iter().enumerate() {
        for n in [1, 15, 16, 17, 63, 64, 65, 130] {
            for k in [2, 6, 32, 34, 64, 100] {
                let seed = (case * 1000 + n * 10 + k) as u64;
                let (a, b) = (normal(seed, m * k, 1.0), normal(seed + 1, n * k, 1.0));
                for from_columns in [false, true] {
                    let out =
                        product::<T>(compute, &a, &b, [m, n, k], Write::Overwrite, from_columns);
                    assert_products_close::<T>(&out, &a, &b, [m, n, k], 0.0);
                }
            }
        }
    }
}

#[test]
fn products_equal_the_definition_over_odd_shapes() {
    for compute in computes(2) {
        check_all_shapes::<f32>(&compute);
        check_all_shapes::<bf16>(&compute);
    }
}

#[test]
fn blocks_of_k_are_added_in_order() {
    let [m, n, k] = [3, 20, 2 * K_BLOCK + 70];
    let (a, b) = (normal(1, m * k, 1.0), normal(2, n * k, 1.0));
    for compute in computes(2) {
        for from_columns in [false, true] {
            let out = product::<bf16>(&compute, &a, &b, [m, n, k], Write::Accumulate, from_columns);
            assert_products_close::<bf16>(&out, &a, &b, [m, n, k], 1.0);
        }
    }
}

#[test]
fn an_odd_k_works_from_columns() {
    let [m, n, k] = [5, 18, 33];
    let (a, b) = (normal(1, m * k, 1.0), normal(2, n * k, 1.0));
    for compute in computes(1) {
        let columns: Vec<bf16> = (0..k * m).map(|i| bf16::from_f32(a[i % m * k + i / m])).collect();
        let pb = Panels::<bf16>::packed(&compute, Source::rows_of_n(&b, k), n, k);
        let mut out = vec![0.0; m * n];
        matmul(
            &compute,
            Left::Columns { values: &columns, stride: m },
            Right::Panels(pb.values()),
            [m, n, k],
            &mut out,
            Write::Overwrite,
        );
        assert_products_close::<bf16>(&out, &a, &b, [m, n, k], 0.0);
    }
}

/// Rows and columns that are widened within tiles, and so many that they are widened before, with one, two, three and four panels in the last
/// tile; a K of one block and of two, and of columns an odd one.
#[test]
fn bf16_products_of_vector_families_have_the_bits_of_the_reference() {
    let of_vectors = |c: &Compute| matches!(c.family(), Family::Avx2 | Family::Avx512);
    let [short, long] = [70, K_BLOCK + 70];
    for [m, n, k] in [
        [7, 33, 300],
        [48, 145, short],
        [49, 128, short],
        [49, 129, short],
        [50, 150, short],
        [51, 170, short],
        [55, 192, short],
        [61, 205, long],
    ] {
        for (write, from_columns) in [(Write::Overwrite, false), (Write::Accumulate, true)] {
            let dims = [m, n, if from_columns { k + 1 } else { k }];
            let (a, b) = (normal(1, m * dims[2], 1.0), normal(2, n * dims[2], 1.0));
            let expected = product::<bf16>(&reference(), &a, &b, dims, write, from_columns);
            for compute in computes(2).into_iter().filter(of_vectors) {
                // A product of other numbers came before, and left them in the working memory.
                let nan = vec![f32::NAN; 64 * 240];
                let _ = product::<bf16>(&compute, &nan, &nan, [64, 240, 64], write, from_columns);
                let out = product::<bf16>(&compute, &a, &b, dims, write, from_columns);
                assert!(bits(&out) == bits(&expected), "{dims:?} {}", compute.family());
            }
        }
    }
}

#[test]
fn nan_and_infinity_stay_in_their_row_and_column() {
    let [m, n, k] = [4, 40, 64];
    let (mut a, mut b) = (normal(1, m * k, 1.0), normal(2, n * k, 1.0));
    a[k + 3] = f32::NAN;
    b[17 * k + 5] = f32::INFINITY;
    for compute in fast_computes(2) {
        let out = product::<bf16>(&compute, &a, &b, [m, n, k], Write::Overwrite, false);
        for i in 0..m {
            for j in 0..n {
                assert_eq!(out[i * n + j].is_finite(), i != 1 && j != 17, "{i} {j}");
            }
        }
    }
}

#[test]
fn the_amx_path_is_reached() {
    let before = testkit::amx_emulator::counts();
    let (a, b) = (normal(1, 32 * 64, 1.0), normal(2, 32 * 64, 1.0));
    let computes = computes(1);
    let Some(compute) = computes.iter().find(|c| c.family() == Family::Amx) else {
        eprintln!("no AVX-512 on this machine: the AMX family cannot run even emulated");
        return;
    };
    let _ = product::<bf16>(compute, &a, &b, [32, 32, 64], Write::Overwrite, false);
    let ran_emulated = testkit::amx_emulator::counts().since(before).total() > 0;
    assert!(ran_emulated || crate::detect_features().amx, "no tile instruction was run");
}

/// Operands that lie in wider matrices: rows of `k + 2` or columns of `m + 3` on the left, rows of `k + 3` on the right.
fn check_special_products<T: Operand>(tolerance: Tolerance, write: Write, from_columns: bool) {
    // Tiles of every height with a rest, two panels, a step of K with a rest.
    let [m, n, k] = [18, 20, 38];
    let (a_stride, b_stride) = (if from_columns { m + 3 } else { k + 2 }, k + 3);
    let a_len = if from_columns { k * a_stride } else { m * a_stride };
    check_special_values(
        [normal(1, a_len, 1.0), normal(2, n * b_stride, 1.0)],
        LARGE,
        tolerance,
        |compute, [a, b]| {
            let source = Source { values: b, stride: b_stride, order: SourceOrder::RowsOfN };
            let panels = Panels::<T>::packed(compute, source, n, k);
            let values: Vec<T> = a.iter().map(|&x| T::from_f32(x)).collect();
            let left = if from_columns {
                Left::Columns { values: &values, stride: a_stride }
            } else {
                Left::Rows { values: &values, stride: a_stride }
            };
            // A product of other numbers came before, and left them in the working memory.
            let nan = vec![f32::NAN; 20 * 62];
            let _ = product::<T>(compute, &nan, &nan, [20, 20, 62], write, from_columns);
            let mut out = vec![1.0; m * n];
            matmul(compute, left, Right::Panels(panels.values()), [m, n, k], &mut out, write);
            out
        },
        |input, place, output| match input {
            0 if from_columns => place % a_stride == output / n,
            0 => place % a_stride < k && place / a_stride == output / n,
            _ => place % b_stride < k && place / b_stride == output % n,
        },
    );
}

#[test]
fn special_values_stay_in_their_row_and_column_and_are_not_read_beside_them() {
    // Sums of 38 products of about one in other orders.
    let tolerance = Tolerance { absolute: 1e-4, relative: 1e-5 };
    for from_columns in [false, true] {
        for write in [Write::Overwrite, Write::Accumulate] {
            check_special_products::<f32>(tolerance, write, from_columns);
            check_special_products::<bf16>(tolerance, write, from_columns);
        }
    }
}

/// The inner dimension of a weight's gradient is the tokens: no thread takes a part of them.
#[test]
fn products_over_tokens_do_not_depend_on_threads() {
    let [m, n, k] = [200, 70, K_BLOCK + 70];
    let (a, b) = (normal(1, m * k, 1.0), normal(2, n * k, 1.0));
    check_threads(|compute| product::<bf16>(compute, &a, &b, [m, n, k], Write::Accumulate, true));
}

/// More than one part of K, more than one task, an output that passes by the caches.
#[test]
fn a_row_of_a_large_product_has_the_bits_that_it_has_alone() {
    for k in [K_BLOCK + 70, AMX_WHOLE_K + 70] {
        check_rows_alone([320, 1072, k]);
    }
}

fn check_rows_alone([m, n, k]: [usize; 3]) {
    let (a, b) = (normal(1, m * k, 1.0), normal(2, n * k, 1.0));
    for compute in fast_computes(2) {
        let panels = Panels::<bf16>::packed(&compute, Source::rows_of_n(&b, k), n, k);
        let a: Vec<bf16> = a.iter().map(|&x| bf16::from_f32(x)).collect();
        for write in [Write::Overwrite, Write::Accumulate] {
            let product = |a: &[bf16], m: usize| {
                // Aligned, and ones.
                let mut out = crate::Buffer::<f32>::zeroed(m * n);
                out.fill(1.0);
                let left = Left::Rows { values: a, stride: k };
                let right = Right::Panels(panels.values());
                matmul(&compute, left, right, [m, n, k], &mut out, write);
                out
            };
            let all = product(&a, m);
            for row in [0, 31, 200, m - 1] {
                let alone = product(&a[row * k..(row + 1) * k], 1);
                let among = &all[row * n..(row + 1) * n];
                assert!(bits(among) == bits(&alone), "row {row}, {write:?} ({})", compute.family());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn a_row_has_the_same_bits_whatever_rows_stand_beside_it(
        seed: u64, n in 1_usize..150, k_half in 1_usize..80, from_columns: bool, is_f32: bool,
    ) {
        let k = 2 * k_half;
        let (a, b) = (normal(seed, 512 * k, 1.0), normal(seed ^ 1, n * k, 1.0));
        check_rows_alone_and_among_others(seed, |compute, range| {
            let (a, dims) = (&a[range.start * k..range.end * k], [range.len(), n, k]);
            let product = if is_f32 { product::<f32> } else { product::<bf16> };
            rows(&product(compute, a, &b, dims, Write::Overwrite, from_columns), n)
        });
    }
}

/// A thread comes back to rows that it packed after it multiplied the last few of the product, which have another way.
#[test]
fn rows_stay_packed_only_while_nothing_else_takes_their_place() {
    let [m, n, k] = [200, 300, 98];
    let (a, b) = (normal(1, m * k, 1.0), normal(2, n * k, 1.0));
    let a: Vec<bf16> = a.iter().map(|&x| bf16::from_f32(x)).collect();
    for compute in fast_computes(1) {
        let panels = Panels::<bf16>::packed(&compute, Source::rows_of_n(&b, k), n, k);
        let product = |a: &[bf16], m: usize| {
            let mut out = vec![bf16::ONE; m * n];
            let (left, right) =
                (Left::Rows { values: a, stride: k }, Right::Panels(panels.values()));
            matmul(&compute, left, right, [m, n, k], &mut out, Write::Accumulate);
            out
        };
        let all = product(&a, m);
        for (row, among) in all.chunks_exact(n).enumerate() {
            let alone = product(&a[row * k..(row + 1) * k], 1);
            assert!(among == alone, "row {row} ({})", compute.family());
        }
    }
    let [m, n, k] = [80, 1280, 98];
    let (a, b) = (normal(1, m * k, 1.0), normal(2, n * k, 1.0));
    let of =
        |compute: &Compute| product::<bf16>(compute, &a, &b, [m, n, k], Write::Overwrite, false);
    let expected: Vec<Vec<f32>> = fast_computes(1).iter().map(of).collect();
    for _ in 0..20 {
        let made: Vec<Vec<f32>> = fast_computes(5).iter().map(of).collect();
        assert!(made == expected, "five threads");
    }
}

/// Shapes whose product wraps around to the two values that are there.
#[test]
#[should_panic(expected = "the number of values fits usize")]
fn a_shape_beyond_memory_is_refused() {
    let compute = reference();
    let m = usize::MAX / 2 + 2;
    let panels = Panels::<f32>::zeroed(1, 2);
    let (left, right) =
        (Left::Rows { values: &[1.0_f32; 2], stride: 2 }, Right::Panels(panels.values()));
    matmul_columns(&compute, left, right, [m, 1, 2], &mut [0.0; 2], 2, Write::Overwrite);
}

#[test]
fn outputs_of_bf16_are_the_sums_rounded() {
    // Few rows, parts of tiles, more of K than a block, an output that is streamed, one without a K.
    for [m, n, k] in [
        [3, 20, 64],
        [48, 70, 34],
        [49, 70, 34],
        [200, 130, 2 * K_BLOCK + 70],
        [49, 130, 34],
        [1024, 1024, 32],
        [5, 7, 0],
    ] {
        let (a, b) = (normal(11, m * k, 1.0), normal(12, n * k, 1.0));
        let rows: Vec<bf16> = a.iter().map(|&x| bf16::from_f32(x)).collect();
        let columns: Vec<bf16> = (0..k * m).map(|i| rows[i % m * k + i / m]).collect();
        for compute in computes(2) {
            let panels = Panels::<bf16>::packed(&compute, Source::rows_of_n(&b, k), n, k);
            let right = Right::Panels(panels.values());
            for left in [
                Left::Rows { values: &rows, stride: k },
                Left::Columns { values: &columns, stride: m },
            ] {
                let mut sums = Buffer::<f32>::zeroed(m * n);
                matmul(&compute, left, right, [m, n, k], &mut sums, Write::Overwrite);
                // Aligned, as those that are streamed are.
                let mut out = Buffer::<bf16>::zeroed(m * n);
                out.fill(bf16::from_f32(3.0));
                matmul(&compute, left, right, [m, n, k], &mut out, Write::Overwrite);
                let expected: Vec<bf16> = sums.iter().map(|&sum| bf16::from_f32(sum)).collect();
                assert!(*out == *expected, "{} [{m}, {n}, {k}]", compute.family());
                matmul(&compute, left, right, [m, n, k], &mut out, Write::Accumulate);
                for (i, (out, rounded)) in out.iter().zip(&expected).enumerate() {
                    assert_eq!(*out, bf16::from_f32(rounded.to_f32() + sums[i]), "{i}");
                }
            }
        }
    }
}
