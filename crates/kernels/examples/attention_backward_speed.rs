//! Prints the speed of the gradient of attention: `cargo run --release -p kernels --example attention_backward_speed [FAMILY] [THREADS] [TOKENS]`.
//!
//! Each line: family, threads, tokens of a document, documents, heads; microseconds of a call, and operations per second of its five products on the
//! pairs of positions that see one another.
#![expect(clippy::print_stdout, reason = "an example prints")]

use std::time::Instant;

use half::bf16;
use kernels::attention::{AttentionBackward, HeadShape, attention_backward};
use kernels::rope::{RopeFrequencies, RopeTable};
use kernels::{Compute, Family, detect_features};

/// Tokens of a document, documents; query heads, KV heads, head_dim.
const CASES: [[usize; 5]; 3] = [[512, 2, 6, 2, 64], [2048, 1, 32, 8, 64], [100, 10, 6, 2, 64]];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let is_wanted = |place: usize, word: &str| wanted.get(place).is_none_or(|w| w == word);
    let families = Family::ALL.into_iter().skip(1).filter(|f| f.runs_on(detect_features()));
    for family in families.filter(|f| is_wanted(0, f.name())) {
        for n_threads in [1, 2].into_iter().filter(|n| is_wanted(1, &n.to_string())) {
            let compute = Compute::forced(family, n_threads)?;
            let cases = CASES.into_iter().filter(|[len, ..]| is_wanted(2, &len.to_string()));
            cases.for_each(|case| measure(&compute, case));
        }
    }
    Ok(())
}

fn measure(compute: &Compute, [len, n_documents, n_heads, n_kv_heads, head_dim]: [usize; 5]) {
    let scale = 1.0 / (head_dim as f32).sqrt();
    let shape = HeadShape { n_heads, n_kv_heads, head_dim, scale, window: None };
    let n_tokens = len * n_documents;
    let number = |i: usize| ((i * 37 % 101) as f32 - 50.0) / 50.0;
    let numbers = |n: usize| -> Vec<bf16> { (0..n).map(|i| bf16::from_f32(number(i))).collect() };
    let (qkv, out) =
        (numbers(n_tokens * shape.qkv_width()), numbers(n_tokens * n_heads * head_dim));
    let d_out = numbers(out.len());
    let starts: Vec<u32> = (0..=n_documents).map(|i| (i * len) as u32).collect();
    let log_sum_exp = vec![(len as f32).ln(); n_tokens * n_heads];
    let mut rope = RopeTable::with_capacity(n_tokens, head_dim);
    let positions: Vec<u32> = (0..n_tokens).map(|i| (i % len) as u32).collect();
    rope.set(compute, &RopeFrequencies::plain(head_dim, 1e4), &positions);
    let inputs = AttentionBackward {
        qkv: &qkv,
        out: &out,
        log_sum_exp: &log_sum_exp,
        d_out: &d_out,
        segment_starts: &starts,
        rope: &rope,
    };
    let mut d_qkv = vec![bf16::ZERO; qkv.len()];
    // The fastest call: others share the machine.
    let (start, mut best) = (Instant::now(), f64::INFINITY);
    while start.elapsed().as_secs_f64() < 0.4 {
        let call = Instant::now();
        attention_backward(compute, shape, inputs, &mut d_qkv);
        best = best.min(call.elapsed().as_secs_f64());
    }
    let n_pairs = n_documents * len * (len + 1) / 2;
    println!(
        "{:7} {} threads {n_documents:2} documents of {len:4}, {n_heads:2} heads on {n_kv_heads} of {head_dim}: {:9.1} us, {:6.1} GFLOP/s",
        compute.family().name(),
        compute.n_threads(),
        best * 1e6,
        (10 * n_heads * head_dim * n_pairs) as f64 / best / 1e9,
    );
}
