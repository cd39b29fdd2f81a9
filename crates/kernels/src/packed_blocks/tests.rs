use half::bf16;
use proptest::prelude::*;
use testkit::amx_emulator::{self, Opcode};
use testkit::close::Tolerance;
use testkit::random::Rng;

use super::*;
use crate::blocks::BlockMatrix;
use crate::operand::Operand;
use crate::test_support::{
    LARGE, bits, check_rows_alone_and_among_others, check_special_values_of, check_threads,
    computes, fnv, normal, reference as reference_compute, rows as rows_of,
};

const KINDS: [BlockKind; 8] = [
    BlockKind::Q4_0,
    BlockKind::Q4_1,
    BlockKind::Q5_0,
    BlockKind::Q5_1,
    BlockKind::Q8_0,
    BlockKind::Q4_K,
    BlockKind::Q5_K,
    BlockKind::Q6_K,
];

/// Where the factors of a block stand.
fn factor_places(kind: BlockKind) -> &'static [usize] {
    match kind {
        BlockKind::Q4_1 | BlockKind::Q5_1 | BlockKind::Q4_K | BlockKind::Q5_K => &[0, 2],
        BlockKind::Q6_K => &[208],
        _ => &[0],
    }
}

/// A matrix of random blocks with the factors given.
fn blocks_with(kind: BlockKind, factors: &[f32], seed: u64) -> Vec<u8> {
    let places = factor_places(kind);
    let mut rng = Rng::new(seed);
    let mut bytes = Vec::new();
    for factors in factors.chunks_exact(places.len()) {
        let mut block: Vec<u8> = (0..kind.block_bytes()).map(|_| rng.below(256) as u8).collect();
        for (&at, &factor) in places.iter().zip(factors) {
            block[at..at + 2].copy_from_slice(&half::f16::from_f32(factor).to_le_bytes());
        }
        bytes.extend(block);
    }
    bytes
}

fn n_factors(kind: BlockKind, [n, k]: [usize; 2]) -> usize {
    n * k / kind.block_len() * factor_places(kind).len()
}

fn random_blocks(kind: BlockKind, shape: [usize; 2], seed: u64) -> Vec<u8> {
    blocks_with(kind, &normal(seed ^ 1, n_factors(kind, shape), 0.01), seed)
}

fn packed(compute: &Compute, kind: BlockKind, blocks: &[u8], shape: [usize; 2]) -> Vec<u8> {
    let mut out = vec![0xAA; packed_len(kind, shape)];
    pack(compute, BlockMatrix::new(kind, blocks, shape), &mut out);
    out
}

/// The families that round rows to 8 bits, whose bits are the same; AVX2 without AVX-VNNI too, where that is found.
fn code_computes(n_threads: usize) -> Vec<Compute> {
    let mut all = computes(n_threads);
    all.retain(|compute| Form::of(compute.family()) == Form::Codes);
    let avx2 = all.iter().find(|c| c.family() == Family::Avx2 && c.has_avx_vnni()).cloned();
    all.extend(avx2.map(Compute::without_avx_vnni));
    all
}

fn amx_compute(n_threads: usize) -> Option<Compute> {
    let amx = computes(n_threads).into_iter().find(|c| c.family() == Family::Amx);
    if amx.is_none() {
        eprintln!("no AVX-512 on this machine: the AMX family cannot run even emulated");
    }
    amx
}

fn quantised<T: Operand>(compute: &Compute, x: &[T], shape: [usize; 2]) -> Vec<u8> {
    let mut out = vec![0xAA; rows_len(shape)];
    let _ = round_rows(compute, x, shape, &mut out);
    out
}

/// Rows that [`quantised`] rounded to 8 bits.
fn codes(bytes: &[u8], [m, k]: [usize; 2]) -> Rows<'_> {
    Rows { bytes, form: Form::Codes, m, k }
}

/// The product of `x [m, k]` and packed blocks.
fn product(
    compute: &Compute,
    x: &[f32],
    (kind, packed): (BlockKind, &[u8]),
    [m, n, k]: [usize; 3],
) -> Vec<f32> {
    let mut bytes = vec![0xAA; rows_len([m, k])];
    let rows = round_rows(compute, x, [m, k], &mut bytes);
    let mut out = vec![7.0; m * n];
    let weight = PackedBlocks::new(kind, packed, [n, k]);
    matmul(compute, rows, weight, &mut out, Write::Overwrite);
    out
}

/// The product of the family amx, number by number as the module documentation has it, added to what `out` holds.
fn amx_definition(x: &[f32], weight: PackedBlocks<'_>, [m, n, k]: [usize; 3], out: &mut [f32]) {
    let numbers: Vec<[f32; GROUP]> = (0..n)
        .flat_map(|column| (0..k / GROUP).map(move |group| amx_numbers(weight, column, group)))
        .collect();
    for (i, out) in out.iter_mut().enumerate().take(m * n) {
        let (row, column) = (i / n, i % n);
        for group in 0..k / GROUP {
            let w = numbers[column * (k / GROUP) + group];
            let x = &x[row * k + group * GROUP..][..GROUP];
            let mut sums = [0.0_f32; 2];
            for (i, (x, w)) in x.iter().zip(w).enumerate() {
                sums[i % 2] = bf16::from_f32(*x).to_f32().mul_add(w, sums[i % 2]);
            }
            *out += sums[0] + sums[1];
        }
    }
}

/// Compares a product of random blocks with [`amx_definition`], overwriting and accumulating.
fn check_amx(compute: &Compute, kind: BlockKind, [m, n, k]: [usize; 3]) {
    let blocks = random_blocks(kind, [n, k], (m * 100 + n) as u64);
    let packed = packed(&reference_compute(), kind, &blocks, [n, k]);
    let weight = PackedBlocks::new(kind, &packed, [n, k]);
    let x = normal(m as u64, m * k, 1.0);
    let mut bytes = vec![0xAA; rows_len([m, k])];
    let rows = round_rows(compute, &x, [m, k], &mut bytes);
    for write in [Write::Overwrite, Write::Accumulate] {
        // Aligned, as outputs are that pass by the caches.
        let (mut got, held) = (crate::Buffer::<f32>::zeroed(m * n), normal(5, m * n, 1.0));
        got.copy_from_slice(&held);
        let mut expected = if write == Write::Accumulate { held } else { vec![0.0; m * n] };
        matmul(compute, rows, weight, &mut got, write);
        amx_definition(&x, weight, [m, n, k], &mut expected);
        assert!(bits(&got) == bits(&expected), "{kind:?} {m} {n} {k} {write:?}");
    }
}

fn amx_numbers(weight: PackedBlocks<'_>, column: usize, group: usize) -> [f32; GROUP] {
    let growth = 1.0 + 0.5 / (128.0 * 1.44);
    let codes = reference::codes(weight, column, group);
    let factors = reference::factors(weight, column, group).map(|factor| factor * growth);
    let offset = f32::from(weight.layout.offset());
    let term = weight.layout.term();
    std::array::from_fn(|i| {
        let half = i / (GROUP / 2);
        let a = factors[if term == layout::term::HALVES { half } else { 0 }];
        let minimum = if term == layout::term::MINIMUM { factors[1] } else { 0.0 };
        let base = match weight.layout.bits {
            4 => [2048.0, 128.0][half],
            _ => 32768.0,
        };
        let addend = (-(base + offset)).mul_add(a, -minimum);
        let w = (base + f32::from(codes[i])).mul_add(a, addend);
        f32::from_bits(w.to_bits() & 0xFFFF_0000)
    })
}

/// Lengths of K that are whole blocks, within a span of groups and beyond.
fn some_k(kind: BlockKind) -> &'static [usize] {
    if kind.block_len() == 32 { &[32, 96, 544, 1120] } else { &[256, 768, 1280] }
}

/// Every number is the scale times the code less the offset, or less the minimum, in the very f32 operations of `decode`.
#[test]
fn packed_numbers_are_those_of_the_blocks() {
    for kind in KINDS {
        for shape in [[1, 256], [16, 512], [37, 768]] {
            let [n, k] = shape;
            let blocks = random_blocks(kind, shape, 1);
            let mut numbers = vec![0.0; n * k];
            kind.decode(&blocks, &mut numbers);
            for compute in computes(2) {
                let bytes = packed(&compute, kind, &blocks, shape);
                let weight = PackedBlocks::new(kind, &bytes, shape);
                let mut out = vec![7.0; n * k];
                for (row, out) in out.chunks_exact_mut(k).enumerate() {
                    weight.read_row(row, out);
                }
                assert_eq!(bits(&out), bits(&numbers), "{kind:?} {shape:?}");
            }
        }
    }
}

/// Kept copies of packed weights are read by later versions of this crate: when a sum here must change, so must
/// [`ORDER_VERSION`].
#[test]
fn the_order_of_packed_bytes_is_that_of_its_version() {
    let compute = reference_compute();
    let shape = [37, 512];
    let sums =
        KINDS.map(|kind| fnv(&packed(&compute, kind, &random_blocks(kind, shape, 3), shape)));
    let expected = [
        0xC72A_3F9A_B874_CA7D,
        0x29A5_9894_1E61_8936,
        0x04E2_1C5F_6BC8_4E18,
        0x11C4_88B3_18C1_5388,
        0xA48C_7356_DFAA_814B,
        0xF5F3_1605_824F_69F5,
        0xAC80_7724_C5C0_54E9,
        0xD91B_C4B2_7995_F9D2,
    ];
    assert_eq!((ORDER_VERSION, sums), (1, expected));
}

/// A length that wraps around would let a few bytes pass for a large matrix.
#[test]
fn lengths_that_overflow_are_refused() {
    let k = usize::MAX / 256 * 256;
    let refuses = |f: &dyn Fn() -> usize| {
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).unwrap_err();
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        // Not the overflow check of a debug build, which a release build does not have.
        text == Some("the number of bytes fits usize")
    };
    assert!(refuses(&|| BlockKind::Q8_0.bytes_of(k)));
    assert!(refuses(&|| rows_len([1, k])) && refuses(&|| rows_len([usize::MAX / 64, 64])));
    for kind in KINDS {
        assert!(refuses(&|| packed_len(kind, [usize::MAX / 1024, 1 << 20])), "{kind:?}");
        assert!(refuses(&|| packed_len(kind, [1, k])), "{kind:?}");
    }
}

#[test]
fn packing_adds_nothing_to_whole_panels() {
    for kind in KINDS {
        let (n, k) = (64, 4096);
        assert_eq!(packed_len(kind, [n, k]), n * kind.bytes_of(k), "{kind:?}");
        let odd = kind.block_len();
        assert!(packed_len(kind, [1, odd]) <= 16 * kind.bytes_of(odd) + 32, "{kind:?}");
        assert_eq!(packed_len(kind, [0, odd]) + packed_len(kind, [5, 0]), 0);
    }
}

fn check_quantised<T: Operand>(x: &[f32], [m, k]: [usize; 2]) {
    let x: Vec<T> = x.iter().map(|&x| T::from_f32(x)).collect();
    let expected = quantised(&reference_compute(), &x, [m, k]);
    for compute in [code_computes(1), code_computes(2)].concat() {
        assert!(quantised(&compute, &x, [m, k]) == expected, "{}", compute.family());
    }
    let rows = codes(&expected, [m, k]);
    for row in 0..m {
        for group in 0..k / GROUP {
            let x = &x[row * k + group * GROUP..][..GROUP];
            let got = reference::row_group(rows, row, group);
            let sum: i32 = got.codes.iter().copied().map(i32::from).sum();
            assert_eq!(got.sum, sum as f32);
            let peak = x.iter().fold(0.0_f32, |peak, x| peak.max(x.to_f32().abs()));
            check_scale(&x.iter().map(|x| x.to_f32()).collect::<Vec<_>>(), peak, got.scale);
            for (x, code) in x.iter().zip(got.codes) {
                let error = (f64::from(x.to_f32()) - f64::from(got.scale) * f64::from(code)).abs();
                assert!(code > -128 && error <= f64::from(got.scale) * 0.50001, "{x:?} {code}");
            }
        }
    }
}

/// The scale is one of six, and none of the others has an error that is smaller by more than the parts that errors are rounded to.
fn check_scale(x: &[f32], peak: f32, scale: f32) {
    let squares = |scale: f32| -> f64 {
        let errors = x.iter().map(|&x| {
            let (x, scale) = (f64::from(x), f64::from(scale));
            x / scale - (x / scale).round_ties_even()
        });
        errors.map(|error| error * error).sum::<f64>() * f64::from(scale) * f64::from(scale)
    };
    let scales = [127.0, 126.0, 125.0, 124.0, 123.0, 122.0].map(|n| peak / n);
    assert!(scales.contains(&scale), "{scale} of {peak}");
    let least = scales.into_iter().map(squares).fold(f64::INFINITY, f64::min);
    assert!(peak == 0.0 || squares(scale) <= 1.02 * least, "{} against {least}", squares(scale));
}

#[test]
fn codes_are_the_nearest_and_the_same_in_every_family() {
    for m in [1, 2, 15, 16, 17, 40] {
        let k = 2176;
        for scale in [1.0, 1e-30, 1e35] {
            check_quantised::<f32>(&normal(m as u64, m * k, scale), [m, k]);
            check_quantised::<bf16>(&normal(m as u64, m * k, scale), [m, k]);
        }
    }
    check_quantised::<f32>(&[0.0; 64], [1, 64]);
}

#[test]
fn ties_go_to_even_and_unusual_groups_have_their_scales() {
    let mut x = [0.0; 4 * GROUP];
    // A step of two: 1 and 3 lie between codes. Even numbers, which have no error, make it the best one.
    x[..GROUP].copy_from_slice(&std::array::from_fn::<f32, GROUP, _>(|i| (6 * i) as f32));
    x[..5].copy_from_slice(&[254.0, 1.0, 3.0, -1.0, -5.0]);
    x[GROUP + 7] = f32::NAN;
    x[2 * GROUP + 7] = f32::NEG_INFINITY;
    x[3 * GROUP + 7] = 1e-40;
    for compute in code_computes(1) {
        let bytes = quantised(&compute, &x, [1, x.len()]);
        let rows = codes(&bytes, [1, x.len()]);
        assert_eq!(reference::row_group(rows, 0, 0).codes[..5], [127, 0, 2, 0, -2]);
        for group in 1..4 {
            let got = reference::row_group(rows, 0, group);
            assert_eq!((got.codes, got.sum), ([0; GROUP], 0.0));
            assert_eq!(got.scale.is_nan(), group < 3, "{}", got.scale);
        }
    }
}

#[test]
fn every_family_has_the_bits_of_the_definition_over_odd_shapes() {
    for kind in KINDS {
        for (case, &k) in some_k(kind).iter().enumerate() {
            for n in [1, 15, 16, 17, 40, 70] {
                let blocks = random_blocks(kind, [n, k], (case * 100 + n) as u64);
                let packed = packed(&reference_compute(), kind, &blocks, [n, k]);
                for m in [1, 2, 3, 4, 5, 7, 12, 16, 17, 23] {
                    let x = normal(m as u64, m * k, 1.0);
                    let expected = product(&reference_compute(), &x, (kind, &packed), [m, n, k]);
                    for compute in code_computes(2) {
                        let got = product(&compute, &x, (kind, &packed), [m, n, k]);
                        let family = compute.family();
                        assert!(bits(&got) == bits(&expected), "{kind:?} {m} {n} {k} {family}");
                    }
                }
            }
        }
    }
}

#[test]
fn tiles_of_bf16_have_the_bits_of_their_definition_over_odd_shapes() {
    let Some(compute) = amx_compute(2) else { return };
    for kind in KINDS {
        for &k in some_k(kind) {
            for n in [1, 16, 37] {
                // One or two bundles while groups are unpacked, then pairs of them, whole and not.
                for m in [1, 5, 16, 17, 32, 33, 65] {
                    check_amx(&compute, kind, [m, n, k]);
                }
            }
        }
    }
}

#[test]
fn tiles_of_bf16_have_the_bits_of_their_definition_where_outputs_pass_by_the_caches() {
    let Some(compute) = amx_compute(2) else { return };
    check_amx(&compute, BlockKind::Q8_0, [512, 528, 64]);
}

/// Several pairs of panels in a task, with few rows, and with many over several chunks of K; a last panel alone.
#[test]
fn tiles_of_bf16_have_the_bits_of_their_definition_over_tasks_of_many_panels() {
    let Some(compute) = amx_compute(1) else { return };
    for kind in [BlockKind::Q4_K, BlockKind::Q6_K, BlockKind::Q5_1] {
        for m in [1, 17, 32] {
            check_amx(&compute, kind, [m, 300, 256]);
        }
        check_amx(&compute, kind, [70, 210, 1280]);
    }
    // A second task of one row.
    check_amx(&compute, BlockKind::Q8_0, [TASK_ROWS + 1, 36, 96]);
}

/// What [`amx_numbers`] cuts off is on average what rounding would have: no product is smaller than it should be.
#[test]
fn numbers_cut_to_bf16_are_right_on_average() {
    for kind in KINDS {
        let shape = [64, 1024];
        let blocks = random_blocks(kind, shape, 5);
        let packed = packed(&reference_compute(), kind, &blocks, shape);
        let weight = PackedBlocks::new(kind, &packed, shape);
        let (mut excess, mut magnitude) = (0.0, 0.0);
        for column in 0..shape[0] {
            for group in 0..shape[1] / GROUP {
                let exact = reference::numbers(weight, column, group);
                let factors = reference::factors(weight, column, group);
                let step = factors.into_iter().fold(0.0_f32, |max, a| max.max(a.abs()));
                for (w, exact) in amx_numbers(weight, column, group).into_iter().zip(exact) {
                    let (w, exact) = (f64::from(w), f64::from(exact));
                    excess += (w - exact) * exact.signum();
                    magnitude += exact.abs();
                    let bound = exact.abs() / 85.0 + f64::from(step) / 500.0;
                    assert!((w - exact).abs() <= bound, "{kind:?}: {w} for {exact}");
                }
            }
        }
        assert!((excess / magnitude).abs() < 3e-4, "{kind:?}: {}", excess / magnitude);
    }
}

/// The largest codes there are: sums must not leave their types.
#[test]
fn extreme_codes_are_exact() {
    for kind in KINDS {
        for byte in [0x00, 0x7F, 0x80, 0xFF] {
            let (n, k) = (17, 512);
            let mut blocks = vec![byte; n * kind.bytes_of(k)];
            for block in blocks.chunks_exact_mut(kind.block_bytes()) {
                for &at in factor_places(kind) {
                    block[at..at + 2].copy_from_slice(&half::f16::from_f32(0.5).to_le_bytes());
                }
            }
            let packed = packed(&reference_compute(), kind, &blocks, [n, k]);
            for sign in [1.0, -1.0] {
                let x = vec![sign; 20 * k];
                for m in [1, 6, 20] {
                    let (x, dims) = (&x[..m * k], [m, n, k]);
                    let expected = product(&reference_compute(), x, (kind, &packed), dims);
                    for compute in code_computes(1) {
                        let got = product(&compute, x, (kind, &packed), dims);
                        let family = compute.family();
                        assert!(bits(&got) == bits(&expected), "{kind:?} {byte} {m} {family}");
                    }
                }
            }
        }
    }
}

/// Rounding a row to 8 bits moves each value by at most half a step: `sum over groups of s / 2 * sum |W|`. Beside that stand f32 roundings:
/// of `k / 32` sums, and of products with codes and minima, which are larger than the numbers: 2^-18 of the magnitudes is far above.
#[test]
fn products_are_within_half_a_step_of_the_exact_product() {
    let (m, n) = (5, 20);
    for kind in KINDS {
        for &k in some_k(kind) {
            let blocks = random_blocks(kind, [n, k], 3);
            let mut w = vec![0.0; n * k];
            kind.decode(&blocks, &mut w);
            let packed = packed(&reference_compute(), kind, &blocks, [n, k]);
            let x = normal(4, m * k, 1.0);
            for compute in code_computes(1) {
                let got = product(&compute, &x, (kind, &packed), [m, n, k]);
                for (i, got) in got.iter().enumerate() {
                    let (x, w) = (&x[i / n * k..][..k], &w[i % n * k..][..k]);
                    let (mut exact, mut bound) = (0.0, 0.0);
                    for (x, w) in x.chunks(GROUP).zip(w.chunks(GROUP)) {
                        let peak = x.iter().fold(0.0_f32, |peak, x| peak.max(x.abs()));
                        let step = f64::from(peak) / 122.0;
                        for (x, w) in x.iter().zip(w) {
                            let w = f64::from(*w);
                            exact += f64::from(*x) * w;
                            bound += (step / 2.0 + f64::from(peak) * 2.0_f64.powi(-18)) * w.abs();
                        }
                    }
                    let error = (f64::from(*got) - exact).abs();
                    assert!(error <= bound, "{kind:?} {k}: {got} is not {exact}, {bound}");
                }
            }
        }
    }
}

/// A product of two weights at once against those of each alone.
#[test]
fn columns_of_a_wider_matrix_are_replaced_or_added_to_and_no_others_touched() {
    let (k, stride, reference) = (768, 50, reference_compute());
    let columns = [(BlockKind::Q4_K, 9..42), (BlockKind::Q6_K, 44..49)];
    let packed = columns.clone().map(|(kind, columns)| {
        let shape = [columns.len(), k];
        packed(&reference, kind, &random_blocks(kind, shape, 3), shape)
    });
    let weights = [0, 1].map(|i| {
        let (kind, columns) = &columns[i];
        let weight = PackedBlocks::new(*kind, &packed[i], [columns.len(), k]);
        PackedColumns { weight, first_column: columns.start }
    });
    for (m, compute) in
        [1, 20, 70].into_iter().flat_map(|m| computes(2).into_iter().map(move |c| (m, c)))
    {
        let mut bytes = vec![0xAA; rows_len([m, k])];
        let x = round_rows(&compute, &normal(4, m * k, 1.0), [m, k], &mut bytes);
        let before = normal(5, m * stride, 1.0);
        for write in [Write::Overwrite, Write::Accumulate] {
            let mut expected = before.clone();
            for PackedColumns { weight, first_column: first } in weights {
                let of_row = |t: usize| t * stride + first..t * stride + first + weight.n;
                let mut out: Vec<f32> = (0..m).flat_map(|t| before[of_row(t)].to_vec()).collect();
                matmul(&compute, x, weight, &mut out, write);
                for (t, out) in out.chunks(weight.n).enumerate() {
                    assert!(bits(out) != bits(&before[of_row(t)]), "row {t} is as before");
                    expected[of_row(t)].copy_from_slice(out);
                }
            }
            let mut out = before.clone();
            matmul_columns(&compute, x, weights.into_iter(), &mut out, stride, write);
            assert!(bits(&out) == bits(&expected), "{m} {write:?} {}", compute.family());
        }
    }
}

#[test]
#[should_panic(expected = "columns from 1 on overlap those before 2")]
fn columns_that_overlap_are_refused() {
    let (compute, kind, shape) = (reference_compute(), BlockKind::Q8_0, [2, 32]);
    let packed = packed(&compute, kind, &random_blocks(kind, shape, 1), shape);
    let weight = PackedBlocks::new(kind, &packed, shape);
    let weights = [0, 1].map(|first_column| PackedColumns { weight, first_column });
    let x = quantised(&compute, &[1.0; 32], [1, 32]);
    let (rows, out) = (codes(&x, [1, 32]), &mut [0.0; 4]);
    matmul_columns(&compute, rows, weights.into_iter(), out, 4, Write::Overwrite);
}

#[test]
fn empty_products_are_zero() {
    let kind = BlockKind::Q8_0;
    for compute in computes(1) {
        for m in [1, 6, 40] {
            assert_eq!(product(&compute, &[], (kind, &[]), [m, 5, 0]), vec![0.0; m * 5]);
            assert!(product(&compute, &[], (kind, &[]), [0, 0, 32]).is_empty());
            let mut rows = crate::Buffer::<u8>::zeroed(rows_len([m, 0]));
            let rows = round_rows::<f32>(&compute, &[], [m, 0], &mut rows);
            let (weight, mut out) = (PackedBlocks::new(kind, &[], [5, 0]), vec![7.0; m * 5]);
            matmul(&compute, rows, weight, &mut out, Write::Accumulate);
            assert_eq!(out, vec![7.0; m * 5], "nothing is added");
        }
    }
}

#[test]
fn zeros_give_zeros() {
    for kind in KINDS {
        let (n, k) = (17, 512);
        let blocks = random_blocks(kind, [n, k], 1);
        let none = blocks_with(kind, &vec![0.0; n_factors(kind, [n, k])], 1);
        for compute in computes(1) {
            for m in [1, 6] {
                for (blocks, x) in [(&blocks, vec![0.0; m * k]), (&none, normal(2, m * k, 1.0))] {
                    let packed = packed(&compute, kind, blocks, [n, k]);
                    let out = product(&compute, &x, (kind, &packed), [m, n, k]);
                    assert!(out.iter().all(|&x| x == 0.0), "{kind:?}");
                }
            }
        }
    }
}

fn check_special(kind: BlockKind, m: usize) {
    check_special_of(&code_computes(1), kind, m);
    check_special_of(amx_compute(1).as_slice(), kind, m);
}

fn check_special_of(computes: &[Compute], kind: BlockKind, m: usize) {
    if computes.is_empty() {
        return;
    }
    let (n, k) = (18, 512);
    let per_row = n_factors(kind, [1, k]);
    check_special_values_of(
        computes,
        [normal(6, n * per_row, 0.01), normal(7, m * k, 1.0)],
        LARGE,
        // They have the same bits, but for the sign of a NaN.
        Tolerance::EXACT,
        |compute, [factors, x]| {
            let blocks = blocks_with(kind, factors, 8);
            let packed = packed(compute, kind, &blocks, [n, k]);
            product(compute, x, (kind, &packed), [m, n, k])
        },
        |input, place, output| match input {
            0 => place / per_row == output % n,
            _ => place / k == output / n,
        },
    );
}

#[test]
fn special_values_stay_in_their_row_and_column() {
    for kind in KINDS {
        check_special(kind, 2);
        check_special(kind, 17);
        check_special(kind, 65);
    }
}

#[test]
fn a_value_that_is_not_finite_leaves_no_finite_number_in_its_row() {
    for kind in KINDS {
        let (m, n, k) = (18, 17, 512);
        let packed = packed(&reference_compute(), kind, &random_blocks(kind, [n, k], 3), [n, k]);
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = normal(4, m * k, 1.0);
            x[3 * k + 70] = value;
            for compute in computes(1) {
                let out = product(&compute, &x, (kind, &packed), [m, n, k]);
                let is_codes = Form::of(compute.family()) == Form::Codes;
                for (i, out) in out.iter().enumerate() {
                    let is_lost = if is_codes { out.is_nan() } else { !out.is_finite() };
                    assert_eq!(is_lost, i / n == 3, "{kind:?} {value} {i}: {out}");
                }
            }
        }
    }
}

#[test]
fn products_do_not_depend_on_threads() {
    let (m, n, k, kind) = (40, 700, 256, BlockKind::Q5_K);
    let packed = packed(&reference_compute(), kind, &random_blocks(kind, [n, k], 3), [n, k]);
    for m in [1, m] {
        let x = normal(4, m * k, 1.0);
        check_threads(|compute| product(compute, &x, (kind, &packed), [m, n, k]));
    }
}

/// 200 rows are among the 512.
fn check_rows(kind: BlockKind, seed: u64, [n, k]: [usize; 2]) {
    let packed = packed(&reference_compute(), kind, &random_blocks(kind, [n, k], seed), [n, k]);
    let x = normal(seed ^ 2, 512 * k, 1.0);
    check_rows_alone_and_among_others(seed, |compute, range| {
        let x = &x[range.start * k..range.end * k];
        rows_of(&product(compute, x, (kind, &packed), [range.len(), n, k]), n)
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2))]

    #[test]
    fn a_row_has_the_same_bits_whatever_rows_stand_beside_it(
        seed: u64, n in 1_usize..50, n_blocks in 1_usize..20,
    ) {
        for kind in KINDS {
            let k = (n_blocks * 32).next_multiple_of(kind.block_len());
            check_rows(kind, seed, [n, k]);
        }
    }
}

/// More rows than a task has.
#[test]
fn rows_of_several_tasks_are_the_rows_of_one() {
    let (m, n, k, kind) = (TASK_ROWS + 17, 20, 256, BlockKind::Q6_K);
    let packed = packed(&reference_compute(), kind, &random_blocks(kind, [n, k], 3), [n, k]);
    let x = normal(4, m * k, 1.0);
    for compute in computes(2) {
        let got = product(&compute, &x, (kind, &packed), [m, n, k]);
        let (first, rest) = x.split_at(TASK_ROWS * k);
        let of = |x: &[f32]| product(&compute, x, (kind, &packed), [x.len() / k, n, k]);
        assert!(bits(&got) == bits(&[of(first), of(rest)].concat()), "{}", compute.family());
    }
}

#[test]
fn the_amx_path_is_reached() {
    let Some(compute) = amx_compute(1) else { return };
    let before = amx_emulator::counts();
    let (n, k, kind) = (16, 256, BlockKind::Q4_K);
    let packed = packed(&compute, kind, &random_blocks(kind, [n, k], 1), [n, k]);
    let _ = product(&compute, &normal(2, 16 * k, 1.0), (kind, &packed), [16, n, k]);
    let n_products = amx_emulator::counts().since(before).of(Opcode::Tdpbf16ps);
    assert!(n_products >= 8 || crate::detect_features().amx, "{n_products} tile products");
}

#[test]
#[should_panic(expected = "k of the rows and of the weight")]
fn shapes_that_do_not_fit_are_refused() {
    let compute = reference_compute();
    let (x, kind) = (quantised(&compute, &[1.0; 64], [1, 64]), BlockKind::Q8_0);
    let packed = packed(&compute, kind, &random_blocks(kind, [1, 32], 1), [1, 32]);
    let weight = PackedBlocks::new(kind, &packed, [1, 32]);
    matmul(&compute, codes(&x, [1, 64]), weight, &mut [0.0], Write::Overwrite);
}

#[test]
#[should_panic(expected = "out is [2, 1]")]
fn an_output_that_is_too_short_is_refused() {
    let compute = reference_compute();
    let (x, kind) = (quantised(&compute, &[1.0; 64], [2, 32]), BlockKind::Q8_0);
    let packed = packed(&compute, kind, &random_blocks(kind, [1, 32], 1), [1, 32]);
    let weight = PackedBlocks::new(kind, &packed, [1, 32]);
    matmul(&compute, codes(&x, [2, 32]), weight, &mut [0.0], Write::Overwrite);
}

#[test]
#[should_panic(expected = "IQ4_XS is not packed")]
fn a_kind_without_a_layout_is_refused() {
    assert!(!is_packed(BlockKind::IQ4_XS) && KINDS.into_iter().all(is_packed));
    let _ = packed_len(BlockKind::IQ4_XS, [1, 256]);
}
