use half::bf16;
use proptest::prelude::*;
use testkit::close::{Tolerance, assert_close};
use testkit::finite_difference::assert_gradient;

use super::*;
use crate::rope::{Direction, RopeFrequencies, RopeTable, rotate};
use crate::test_support::{
    LARGE, N_ROWS, bits, check_rows_alone_and_among_others, check_special_values, check_threads,
    computes, fast_computes, normal, reference, rounded,
};

fn shape(n_heads: usize, n_kv_heads: usize, head_dim: usize) -> HeadShape {
    HeadShape { n_heads, n_kv_heads, head_dim, scale: 1.0 / (head_dim as f32).sqrt(), window: None }
}

/// Of one key, within a block, of whole blocks, beyond most documents.
const WINDOWS: [Option<usize>; 6] = [None, Some(1), Some(7), Some(32), Some(33), Some(100)];

/// Attention in f64, straight from the formula, for documents of the lengths given.
fn formula(shape: HeadShape, qkv: &[f64], lens: &[usize]) -> Vec<f64> {
    let (width, hd) = (shape.qkv_width(), shape.head_dim);
    let mut out = Vec::new();
    let mut start = 0;
    for &len in lens {
        for t in start..start + len {
            for head in 0..shape.n_heads {
                let kv_head = head / shape.group_len();
                let value = |t: usize, head: usize, i: usize| qkv[t * width + head * hd + i];
                let first = start + shape.first_visible(t - start);
                let scores: Vec<f64> = (first..=t)
                    .map(|k| {
                        let key = shape.n_heads + kv_head;
                        let dot: f64 = (0..hd).map(|i| value(t, head, i) * value(k, key, i)).sum();
                        (dot * f64::from(shape.scale)).exp()
                    })
                    .collect();
                let sum: f64 = scores.iter().sum();
                for i in 0..hd {
                    let head = shape.n_heads + shape.n_kv_heads + kv_head;
                    let mixed = (first..=t).zip(&scores).map(|(k, p)| p * value(k, head, i));
                    out.push(mixed.sum::<f64>() / sum);
                }
            }
        }
        start += len;
    }
    out
}

/// Block tables of documents that lie one after the other.
fn tables(lens: &[usize]) -> (Vec<Vec<u32>>, usize) {
    let mut next = 0;
    let tables = lens
        .iter()
        .map(|len| {
            let n = len.div_ceil(KEY_BLOCK) as u32;
            next += n;
            (next - n..next).collect()
        })
        .collect();
    (tables, next as usize)
}

const KINDS: [CacheKind; 2] = [CacheKind::Operands, CacheKind::Int8];

/// Blocks with what an earlier owner left: it may be no number.
fn used_blocks<T: Operand>(kind: CacheKind, shape: HeadShape, n_blocks: usize) -> KeyBlocks<T> {
    let mut blocks = KeyBlocks::zeroed(kind, shape, n_blocks);
    match &mut blocks {
        KeyBlocks::Operands(values) => values.fill(T::from_f32(f32::NAN)),
        // Scales of such bytes are NaN.
        KeyBlocks::Int8(bytes) => bytes.fill(0xFF),
    }
    blocks
}

fn run<T: Operand>(
    compute: &Compute,
    shape: HeadShape,
    qkv: &[f32],
    lens: &[usize],
) -> (Vec<T>, Vec<f32>) {
    run_kept(compute, CacheKind::Operands, shape, qkv, lens)
}

fn run_kept<T: Operand>(
    compute: &Compute,
    kind: CacheKind,
    shape: HeadShape,
    qkv: &[f32],
    lens: &[usize],
) -> (Vec<T>, Vec<f32>) {
    let n_tokens: usize = lens.iter().sum();
    let qkv: Vec<T> = qkv.iter().map(|&x| T::from_f32(x)).collect();
    let (tables, n_blocks) = tables(lens);
    let mut blocks = used_blocks(kind, shape, n_blocks);
    let mut first_row = 0;
    let mut sequences = Vec::new();
    for (len, table) in lens.iter().zip(&tables) {
        sequences.push(SequenceRows {
            first_row,
            n_rows: *len,
            first_position: 0,
            block_table: table,
        });
        first_row += len;
    }
    let mut out = vec![T::from_f32(7.0); n_tokens * shape.n_heads * shape.head_dim];
    let mut lse = vec![7.0; n_tokens * shape.n_heads];
    append_keys_values(compute, shape, &qkv, &sequences, &mut blocks);
    attention(compute, shape, &qkv, &sequences, &blocks, &mut out, &mut lse);
    (out, lse)
}

fn wide<T: Operand>(values: &[T]) -> Vec<f64> {
    values.iter().map(|x| f64::from(x.to_f32())).collect()
}

#[test]
fn attention_equals_the_formula() {
    for (n_heads, n_kv_heads, head_dim) in
        [(1, 1, 16), (4, 2, 16), (6, 2, 64), (3, 1, 24), (2, 2, 80)]
    {
        let shape = shape(n_heads, n_kv_heads, head_dim);
        let lens = [1, 31, 32, 33, 70, 130];
        let qkv = normal(1, lens.iter().sum::<usize>() * shape.qkv_width(), 1.0);
        let rounded: Vec<f32> = qkv.iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
        for window in WINDOWS {
            let shape = HeadShape { window, ..shape };
            for compute in computes(2) {
                let (out, _) = run::<f32>(&compute, shape, &qkv, &lens);
                let expected = formula(shape, &wide(&qkv), &lens);
                assert_close(&wide(&out), &expected, Tolerance { absolute: 1e-5, relative: 1e-5 });
                let (out, _) = run::<bf16>(&compute, shape, &qkv, &lens);
                let expected = formula(shape, &wide(&rounded), &lens);
                // p and the output are rounded to 8 bits; values are about 1.
                let tolerance = Tolerance { absolute: 0.012, relative: 0.012 };
                assert_close(&wide(&out), &expected, tolerance);
                // Half a step of 8 bits, about 0.01, in each number of a key and a value.
                let expected = formula(shape, &wide(&qkv), &lens);
                let (out, _) = run_kept::<f32>(&compute, CacheKind::Int8, shape, &qkv, &lens);
                assert_close(&wide(&out), &expected, Tolerance::absolute(0.05));
                let (out, _) = run_kept::<bf16>(&compute, CacheKind::Int8, shape, &qkv, &lens);
                assert_close(&wide(&out), &expected, Tolerance::absolute(0.07));
            }
        }
    }
}

/// The numbers that 8 bits stand for, attended to without 8 bits.
#[test]
fn keys_and_values_in_8_bits_are_what_their_scales_and_codes_say() {
    let (shape, len) = (shape(4, 2, 24), 70);
    let mut qkv = normal(14, len * shape.qkv_width(), 1.0);
    let mut rounded = qkv.clone();
    for (t, (x, rounded)) in qkv.chunks_mut(24).zip(rounded.chunks_mut(24)).enumerate() {
        // Tokens have 4 heads of queries, then those of keys and values.
        if t % 8 < 4 {
            continue;
        }
        match t / 8 {
            10 => x.fill(0.0),
            // Its scale would be subnormal.
            11 => x.iter_mut().for_each(|x| *x *= 1e-38),
            _ => {}
        }
        let scale = x.iter().fold(0.0_f32, |peak, x| peak.max(x.abs())) / 127.0;
        let code =
            |x: f32| if scale.is_normal() { (x * (1.0 / scale)).round_ties_even() } else { 0.0 };
        rounded.iter_mut().zip(x).for_each(|(rounded, x)| *rounded = code(*x) * scale);
    }
    let expected = formula(shape, &wide(&rounded), &[len]);
    for compute in computes(2) {
        let (out, _) = run_kept::<f32>(&compute, CacheKind::Int8, shape, &qkv, &[len]);
        assert_close(&wide(&out), &expected, Tolerance { absolute: 1e-5, relative: 1e-5 });
    }
    let of = |kind| KeyBlocks::<bf16>::block_bytes(kind, HeadShape { head_dim: 64, ..shape });
    assert_eq!(of(CacheKind::Operands), 2 * 2 * 32 * 64 * 2);
    assert_eq!(of(CacheKind::Int8), 2 * (2 * 32 * 64 + 2 * 32 * 4));
}

#[test]
fn large_scores_do_not_overflow() {
    let shape = shape(2, 1, 16);
    let qkv = normal(2, 50 * shape.qkv_width(), 100.0);
    for compute in computes(1) {
        let (out, lse) = run::<f32>(&compute, shape, &qkv, &[50]);
        assert!(out.iter().chain(&lse).all(|x| x.is_finite()));
    }
}

#[test]
fn changing_one_document_leaves_the_bits_of_the_other() {
    let shape = shape(4, 2, 32);
    let lens = [45, 60];
    let mut qkv = normal(3, 105 * shape.qkv_width(), 1.0);
    for compute in fast_computes(2) {
        let (before, _) = run::<bf16>(&compute, shape, &qkv, &lens);
        qkv[..45 * shape.qkv_width()].iter_mut().for_each(|x| *x = -*x * 3.0);
        let (after, _) = run::<bf16>(&compute, shape, &qkv, &lens);
        let half = 45 * shape.n_heads * shape.head_dim;
        assert_eq!(before[half..], after[half..]);
        assert_ne!(before[..half], after[..half]);
    }
}

/// One token after the other from a paged cache, and chunks of odd lengths, against all at once.
#[test]
fn chunks_from_a_cache_have_the_bits_of_one_pass() {
    let shape = shape(6, 2, 32);
    let len = 100;
    let qkv = normal(4, len * shape.qkv_width(), 1.0);
    let rounded: Vec<bf16> = qkv.iter().map(|&x| bf16::from_f32(x)).collect();
    let cases = KINDS.into_iter().flat_map(|kind| WINDOWS.map(|window| (kind, window)));
    for (compute, (kind, window)) in
        fast_computes(2).iter().flat_map(|compute| cases.clone().map(move |case| (compute, case)))
    {
        let shape = HeadShape { window, ..shape };
        let (all, all_lse) = run_kept::<bf16>(compute, kind, shape, &qkv, &[len]);
        // Of 48: a chunk that begins within a block, and holds a whole one after it.
        for chunk_len in [1, 7, 33, 48, 64] {
            // Scattered block ids, and blocks that hold the values of an earlier owner.
            let table = [5, 2, 7, 0];
            let mut blocks = used_blocks(kind, shape, 8);
            let (mut out, mut lse) = (Vec::new(), Vec::new());
            for first in (0..len).step_by(chunk_len) {
                let n_rows = chunk_len.min(len - first);
                let rows = &rounded[first * shape.qkv_width()..][..n_rows * shape.qkv_width()];
                let sequence = SequenceRows {
                    first_row: 0,
                    n_rows,
                    first_position: first,
                    block_table: &table,
                };
                let mut chunk_out = vec![bf16::ZERO; n_rows * shape.n_heads * shape.head_dim];
                let mut chunk_lse = vec![0.0; n_rows * shape.n_heads];
                append_keys_values(compute, shape, rows, &[sequence], &mut blocks);
                attention(
                    compute,
                    shape,
                    rows,
                    &[sequence],
                    &blocks,
                    &mut chunk_out,
                    &mut chunk_lse,
                );
                out.extend(chunk_out);
                lse.extend(chunk_lse);
            }
            assert_eq!(out, all, "{} chunks of {chunk_len}, {kind:?}", compute.family());
            assert_eq!(bits(&lse), bits(&all_lse));
        }
    }
}

/// Gradients of what was rotated: the angles are zero.
fn backward<T: Operand>(
    compute: &Compute,
    shape: HeadShape,
    qkv: &[f32],
    lens: &[usize],
    d_out: &[f32],
) -> Vec<f32> {
    let radians = vec![0.0; shape.head_dim / 2];
    let frequencies = RopeFrequencies { radians, ..RopeFrequencies::plain(shape.head_dim, 1e4) };
    backward_rotated::<T, f32>(
        compute,
        shape,
        qkv,
        lens,
        d_out,
        &table(compute, lens, &frequencies),
    )
}

/// The angles of documents.
fn table(compute: &Compute, lens: &[usize], frequencies: &RopeFrequencies) -> RopeTable {
    let positions: Vec<u32> = lens.iter().flat_map(|&len| 0..len as u32).collect();
    let mut table = RopeTable::with_capacity(positions.len(), 2 * frequencies.radians.len());
    table.set(compute, frequencies, &positions);
    table
}

fn backward_rotated<T: Operand, O: Operand>(
    compute: &Compute,
    shape: HeadShape,
    qkv: &[f32],
    lens: &[usize],
    d_out: &[f32],
    rope: &RopeTable,
) -> Vec<O> {
    let (out, log_sum_exp) = run::<T>(compute, shape, qkv, lens);
    let (qkv, d_out) = (rounded(qkv), rounded(d_out));
    let mut starts = vec![0];
    lens.iter().for_each(|len| starts.push(starts[starts.len() - 1] + *len as u32));
    let inputs = AttentionBackward {
        qkv: &qkv,
        out: &out,
        log_sum_exp: &log_sum_exp,
        d_out: &d_out,
        segment_starts: &starts,
        rope,
    };
    let mut d_qkv = vec![O::from_f32(7.0); qkv.len()];
    attention_backward(compute, shape, inputs, &mut d_qkv);
    d_qkv
}

#[test]
fn the_gradient_equals_finite_differences() {
    for (n_heads, n_kv_heads, head_dim) in [(2, 1, 16), (4, 2, 8)] {
        let shape = shape(n_heads, n_kv_heads, head_dim);
        let lens = [3, 1, 70];
        let n_tokens = 74;
        let qkv = normal(5, n_tokens * shape.qkv_width(), 1.0);
        let c = normal(6, n_tokens * n_heads * head_dim, 1.0);
        // Every 37th value covers queries, keys and values of all heads.
        let some: Vec<usize> = (0..qkv.len()).step_by(37).collect();
        for window in [None, Some(7), Some(65)] {
            let shape = HeadShape { window, ..shape };
            let loss = |qkv: &[f64]| {
                let out = formula(shape, qkv, &lens);
                out.iter().zip(&c).map(|(o, &c)| o * f64::from(c)).sum::<f64>()
            };
            for compute in computes(2) {
                let d = backward::<f32>(&compute, shape, &qkv, &lens, &c);
                let tolerance = Tolerance { absolute: 2e-5, relative: 1e-4 };
                assert_gradient(&wide(&d), loss, &wide(&qkv), &some, tolerance);
            }
        }
    }
}

/// Heads of whole tiles, of an odd number of panels, of part of one.
#[test]
fn bf16_gradients_are_near_those_of_f32() {
    for (head_dim, lens) in [(64, [100, 130]), (96, [33, 64]), (80, [1, 97]), (40, [35, 66])] {
        let (shape, n_tokens) = (shape(6, 2, head_dim), lens[0] + lens[1]);
        let as_bf16 = |x: Vec<f32>| -> Vec<f32> {
            rounded::<bf16>(&x).into_iter().map(bf16::to_f32).collect()
        };
        let qkv = as_bf16(normal(7, n_tokens * shape.qkv_width(), 1.0));
        let c = as_bf16(normal(8, n_tokens * 6 * head_dim, 1.0));
        let expected = backward::<f32>(&reference(), shape, &qkv, &lens, &c);
        for compute in computes(2) {
            let d = backward::<bf16>(&compute, shape, &qkv, &lens, &c);
            // Operands of 8 bits: a few parts in a thousand of the typical size (values up to about 5).
            assert_close(&d, &expected, Tolerance { absolute: 0.05, relative: 0.02 });
        }
    }
}

#[test]
fn gradients_are_rotated_back_and_rounded() {
    let (shape, lens) = (shape(4, 2, 40), [70, 3]);
    let qkv = normal(21, 73 * shape.qkv_width(), 1.0);
    let c = normal(22, 73 * 4 * 40, 1.0);
    let growth = Some((0.5, 5));
    let frequencies = RopeFrequencies { query_growth: growth, ..RopeFrequencies::plain(40, 1e4) };
    for compute in computes(2) {
        let rope = table(&compute, &lens, &frequencies);
        let rotated = backward::<bf16>(&compute, shape, &qkv, &lens, &c);
        let mut expected = vec![0.0; rotated.len()];
        let heads = shape.rotated();
        rotate(&compute, &rotated, &rope, heads, Direction::Backward, &mut expected);
        let d = backward_rotated::<bf16, f32>(&compute, shape, &qkv, &lens, &c, &rope);
        assert!(bits(&d) == bits(&expected), "{}", compute.family());
        let d = backward_rotated::<bf16, bf16>(&compute, shape, &qkv, &lens, &c, &rope);
        assert!(d == rounded::<bf16>(&expected), "{}", compute.family());
    }
}

#[test]
fn gradients_do_not_depend_on_threads() {
    let shape = shape(6, 2, 32);
    let lens = [70, 33, 65];
    let qkv = normal(9, 168 * shape.qkv_width(), 1.0);
    let c = normal(10, 168 * 6 * 32, 1.0);
    check_threads(|compute| backward::<bf16>(compute, shape, &qkv, &lens, &c));
}

/// Exponents beyond what f32 holds, as rounding makes them of huge scores.
#[test]
fn probabilities_of_scores_far_above_their_sum_are_infinite() {
    let tile = BUNDLE * KEY_STEP;
    for compute in fast_computes(1) {
        let (mut scores, ones) = (vec![0.0; 2 * KEY_STEP], vec![1.0; tile]);
        scores[..3].copy_from_slice(&[200.0, f32::NAN, 1.0]);
        let mut outputs = [(); 3].map(|()| vec![7.0_f32; tile]);
        let [probability_panels, d_scores, d_score_panels] = &mut outputs;
        let step = GradientStep {
            scores: &scores,
            d_probabilities: &ones,
            columns: 0..KEY_STEP,
            scale: 1.0,
            log_sum_exp: &[0.0; BUNDLE],
            delta: &[0.0; BUNDLE],
            probability_panels,
            d_scores,
            d_score_panels,
        };
        step.update(compute.family());
        // The first row; in panels of f32 its keys stand side by side.
        for out in &outputs {
            assert!(out[0] == f32::INFINITY && out[1].is_nan(), "{:?}", &out[..3]);
            assert!((out[2] - 1.0_f32.exp()).abs() < 2e-6, "{:?}", &out[..3]);
        }
    }
}

/// Whether two rows are of one document, and their positions in it.
fn same_document(lens: &[usize], a: usize, b: usize) -> Option<[usize; 2]> {
    let mut start = 0;
    lens.iter().find_map(|len| {
        let rows = start..start + len;
        start += len;
        let both = rows.contains(&a) && rows.contains(&b);
        both.then(|| [a - rows.start, b - rows.start])
    })
}

fn check_special_scores<T: Operand>(kind: CacheKind, window: Option<usize>, tolerance: Tolerance) {
    let lens = [5, 40];
    let shape = HeadShape { window, ..shape(4, 2, 8) };
    let (hd, n_outputs) = (shape.head_dim, 45 * shape.n_heads * shape.head_dim);
    check_special_values(
        [normal(11, 45 * shape.qkv_width(), 1.0)],
        LARGE,
        tolerance,
        |compute, [qkv]| {
            let (out, lse) = run_kept::<T>(compute, kind, shape, qkv, &lens);
            out.into_iter().map(T::to_f32).chain(lse).collect()
        },
        |_, place, output| {
            let (token, head, i) =
                (place / shape.qkv_width(), place % shape.qkv_width() / hd, place % hd);
            let is_lse = output >= n_outputs;
            let out_head = if is_lse { output - n_outputs } else { output / hd };
            let (row, out_head) = (out_head / shape.n_heads, out_head % shape.n_heads);
            let Some([position, row]) = same_document(&lens, token, row) else { return false };
            let first_visible = shape.first_visible(row);
            if head < shape.n_heads {
                return head == out_head && position == row;
            }
            let kv_head = (head - shape.n_heads) % shape.n_kv_heads;
            let is_of_group = kv_head == out_head / shape.group_len();
            if head < shape.n_heads + shape.n_kv_heads {
                return is_of_group && (first_visible..=row).contains(&position);
            }
            // A value: the rows that see a key of its block have it times zero.
            let block = position / KEY_BLOCK;
            let sees_block = (first_visible / KEY_BLOCK..=row / KEY_BLOCK).contains(&block);
            // In 8 bits its scale is no number, and with it none of the value.
            let is_same = output % hd == i || kind == CacheKind::Int8;
            is_of_group && sees_block && !is_lse && is_same
        },
    );
}

#[test]
fn special_values_reach_the_rows_that_see_them() {
    for window in [None, Some(1), Some(7)] {
        for kind in KINDS {
            let tolerance = Tolerance { absolute: 1e-5, relative: 1e-5 };
            check_special_scores::<f32>(kind, window, tolerance);
            // p and the output are rounded to 8 bits.
            let tolerance = Tolerance { absolute: 0.012, relative: 0.012 };
            check_special_scores::<bf16>(kind, window, tolerance);
        }
    }
}

fn check_special_gradients<T: Operand>(window: Option<usize>, tolerance: Tolerance) {
    // Two tiles of keys and queries, the second short.
    let lens = [3, 67];
    let n_tokens = lens.iter().sum::<usize>();
    let shape = HeadShape { window, ..shape(4, 2, 4) };
    let (hd, width) = (shape.head_dim, shape.qkv_width());
    // The KV head of a query, key or value head.
    let kv_head = |head: usize| match head.checked_sub(shape.n_heads) {
        None => head / shape.group_len(),
        Some(head) => head % shape.n_kv_heads,
    };
    check_special_values(
        [normal(12, n_tokens * width, 1.0), normal(13, n_tokens * shape.n_heads * hd, 1.0)],
        // Probabilities come from score and log-sum-exp, which are rounded relative to their size.
        1e3,
        tolerance,
        |compute, [qkv, d_out]| backward::<T>(compute, shape, qkv, &lens, d_out),
        |input, place, output| {
            let n_heads = [width / hd, shape.n_heads][input];
            let head = kv_head(place / hd % n_heads);
            let token = place / hd / n_heads;
            head == kv_head(output / hd % (width / hd))
                && same_document(&lens, token, output / width).is_some()
        },
    );
}

#[test]
fn special_values_reach_the_gradients_of_their_document_and_head() {
    check_special_gradients::<f32>(None, Tolerance { absolute: 0.02, relative: 1e-3 });
    // A probability or a score's gradient, up to 1e3, may be rounded to the next of 8 bits.
    check_special_gradients::<bf16>(Some(7), Tolerance { absolute: 30.0, relative: 0.02 });
}

/// Output and log-sum-exp of the rows of some sequences, row by row.
fn attended(
    compute: &Compute,
    shape: HeadShape,
    qkv: &[bf16],
    sequences: &[SequenceRows<'_>],
    blocks: &KeyBlocks<bf16>,
) -> Vec<Vec<f32>> {
    let n_rows = qkv.len() / shape.qkv_width();
    let width = shape.n_heads * shape.head_dim;
    let mut out = vec![bf16::from_f32(7.0); n_rows * width];
    let mut lse = vec![7.0; n_rows * shape.n_heads];
    attention(compute, shape, qkv, sequences, blocks, &mut out, &mut lse);
    let rows = out.chunks(width).zip(lse.chunks(shape.n_heads));
    rows.map(|(out, lse)| out.iter().map(|x| x.to_f32()).chain(lse.iter().copied()).collect())
        .collect()
}

/// The rows are tokens of one prompt, of which earlier ones are in the cache.
fn check_chunks_of_a_prompt(seed: u64, kind: CacheKind, shape: HeadShape) {
    let width = shape.qkv_width();
    let qkv = normal(seed, N_ROWS * width, 1.0).into_iter().map(bf16::from_f32);
    let qkv: Vec<bf16> = qkv.collect();
    let table: Vec<u32> = (0..(N_ROWS / KEY_BLOCK) as u32).rev().collect();
    check_rows_alone_and_among_others(seed, |compute, range| {
        let mut blocks = used_blocks(kind, shape, table.len());
        let (before, chunk) = qkv[..range.end * width].split_at(range.start * width);
        let sequence = |first_position, n_rows| SequenceRows {
            first_row: 0,
            n_rows,
            first_position,
            block_table: &table,
        };
        append_keys_values(compute, shape, before, &[sequence(0, range.start)], &mut blocks);
        let sequences = [sequence(range.start, range.len())];
        append_keys_values(compute, shape, chunk, &sequences, &mut blocks);
        attended(compute, shape, chunk, &sequences, &blocks)
    });
}

/// The rows are single tokens of as many sequences, with contexts of many lengths, as when many requests are served.
fn check_tokens_of_sequences(seed: u64, kind: CacheKind, shape: HeadShape) {
    let width = shape.qkv_width();
    let lens: Vec<usize> = (0..N_ROWS).map(|i| 1 + i * 29 % 70).collect();
    let (tables, n_blocks) = tables(&lens);
    let mut blocks = used_blocks(kind, shape, n_blocks);
    let mut last_tokens = Vec::new();
    for (i, (&n_rows, block_table)) in lens.iter().zip(&tables).enumerate() {
        let qkv = normal(seed ^ i as u64, n_rows * width, 1.0).into_iter().map(bf16::from_f32);
        let qkv: Vec<bf16> = qkv.collect();
        let sequence = SequenceRows { first_row: 0, n_rows, first_position: 0, block_table };
        append_keys_values(&reference(), shape, &qkv, &[sequence], &mut blocks);
        last_tokens.extend_from_slice(&qkv[(n_rows - 1) * width..]);
    }
    check_rows_alone_and_among_others(seed, |compute, range| {
        let qkv = &last_tokens[range.start * width..range.end * width];
        let sequence = |(first_row, i): (usize, usize)| SequenceRows {
            first_row,
            n_rows: 1,
            first_position: lens[i] - 1,
            block_table: &tables[i],
        };
        let sequences: Vec<SequenceRows<'_>> = range.enumerate().map(sequence).collect();
        attended(compute, shape, qkv, &sequences, &blocks)
    });
}

/// The rows are packed documents, some of them longer than a tile.
fn check_gradients_of_documents(seed: u64, shape: HeadShape) {
    let (width, out_width) = (shape.qkv_width(), shape.n_heads * shape.head_dim);
    let lens: Vec<usize> = (0..N_ROWS).map(|i| if i % 50 == 7 { 70 } else { 1 + i % 5 }).collect();
    let starts: Vec<usize> = (0..=N_ROWS).map(|i| lens[..i].iter().sum()).collect();
    let qkv = normal(seed, starts[N_ROWS] * width, 1.0);
    let d_out = normal(seed ^ 1, starts[N_ROWS] * out_width, 1.0);
    check_rows_alone_and_among_others(seed, |compute, range| {
        let (start, end) = (starts[range.start], starts[range.end]);
        let (qkv, d_out) =
            (&qkv[start * width..end * width], &d_out[start * out_width..end * out_width]);
        let d_qkv = backward::<bf16>(compute, shape, qkv, &lens[range.clone()], d_out);
        let document = |i: usize| (starts[i] - start) * width..(starts[i + 1] - start) * width;
        range.map(|i| d_qkv[document(i)].to_vec()).collect()
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3))]

    #[test]
    fn a_token_has_the_same_bits_in_any_chunk_of_its_prompt(
        seed: u64,
        n_kv_heads in 1_usize..3,
        half_dim in 1_usize..20,
        window in prop::option::of(1_usize..200),
        kind in prop::sample::select(&KINDS),
    ) {
        let shape = shape(3 * n_kv_heads, n_kv_heads, 2 * half_dim);
        check_chunks_of_a_prompt(seed, kind, HeadShape { window, ..shape });
    }

    #[test]
    fn a_token_has_the_same_bits_whatever_sequences_stand_beside_it(
        seed: u64,
        n_kv_heads in 1_usize..3,
        half_dim in 1_usize..20,
        window in prop::option::of(1_usize..60),
        kind in prop::sample::select(&KINDS),
    ) {
        let shape = shape(3 * n_kv_heads, n_kv_heads, 2 * half_dim);
        check_tokens_of_sequences(seed, kind, HeadShape { window, ..shape });
    }

    #[test]
    fn a_document_has_the_same_gradients_whatever_documents_stand_beside_it(
        seed: u64, half_dim in 1_usize..9, window in prop::option::of(1_usize..80),
    ) {
        let shape = shape(2, 1, 2 * half_dim);
        check_gradients_of_documents(seed, HeadShape { window, ..shape });
    }
}
