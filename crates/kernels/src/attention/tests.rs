use half::bf16;
use testkit::close::{Tolerance, assert_close};
use testkit::finite_difference::assert_gradient;

use super::*;
use crate::test_support::{bits, computes, fast_computes, normal, reference};

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

fn run<T: Operand>(
    compute: &Compute,
    shape: HeadShape,
    qkv: &[f32],
    lens: &[usize],
) -> (Vec<T>, Vec<f32>) {
    let n_tokens: usize = lens.iter().sum();
    let qkv: Vec<T> = qkv.iter().map(|&x| T::from_f32(x)).collect();
    let (tables, n_blocks) = tables(lens);
    let mut blocks = vec![T::from_f32(3.0); n_blocks * shape.block_len::<T>()];
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
            }
        }
    }
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
    for (compute, window) in fast_computes(2).iter().flat_map(|c| WINDOWS.map(|w| (c, w))) {
        let shape = HeadShape { window, ..shape };
        let (all, all_lse) = run::<bf16>(compute, shape, &qkv, &[len]);
        for chunk_len in [1, 7, 33, 64] {
            // Scattered block ids, and blocks that hold the values of an earlier owner.
            let table = [5, 2, 7, 0];
            let mut blocks = vec![bf16::from_f32(9.0); 8 * shape.block_len::<bf16>()];
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
            assert_eq!(out, all, "{} chunks of {chunk_len}", compute.family());
            assert_eq!(bits(&lse), bits(&all_lse));
        }
    }
}

fn backward<T: Operand>(
    compute: &Compute,
    shape: HeadShape,
    qkv: &[f32],
    lens: &[usize],
    d_out: &[f32],
) -> Vec<f32> {
    let (out, log_sum_exp) = run::<T>(compute, shape, qkv, lens);
    let qkv: Vec<T> = qkv.iter().map(|&x| T::from_f32(x)).collect();
    let mut starts = vec![0];
    lens.iter().for_each(|len| starts.push(starts[starts.len() - 1] + *len as u32));
    let inputs = AttentionBackward {
        qkv: &qkv,
        out: &out,
        log_sum_exp: &log_sum_exp,
        d_out,
        segment_starts: &starts,
    };
    let mut d_qkv = vec![7.0; qkv.len()];
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

#[test]
fn bf16_gradients_are_near_those_of_f32() {
    let shape = shape(6, 2, 64);
    let lens = [100, 130];
    let qkv: Vec<f32> = normal(7, 230 * shape.qkv_width(), 1.0)
        .into_iter()
        .map(|x| bf16::from_f32(x).to_f32())
        .collect();
    let c = normal(8, 230 * 6 * 64, 1.0);
    let expected = backward::<f32>(&reference(), shape, &qkv, &lens, &c);
    for compute in computes(2) {
        let d = backward::<bf16>(&compute, shape, &qkv, &lens, &c);
        // Operands of 8 bits: a few parts in a thousand of the typical size (values up to about 5).
        assert_close(&d, &expected, Tolerance { absolute: 0.05, relative: 0.02 });
    }
}

#[test]
fn gradients_do_not_depend_on_threads() {
    let shape = shape(6, 2, 32);
    let lens = [70, 33, 65];
    let qkv = normal(9, 168 * shape.qkv_width(), 1.0);
    let c = normal(10, 168 * 6 * 32, 1.0);
    for (one, three) in fast_computes(1).iter().zip(&fast_computes(3)) {
        let d = backward::<bf16>(one, shape, &qkv, &lens, &c);
        assert_eq!(bits(&d), bits(&backward::<bf16>(three, shape, &qkv, &lens, &c)));
    }
}
