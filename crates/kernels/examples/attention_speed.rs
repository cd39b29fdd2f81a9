//! Prints the speed of attention over long contexts: `cargo run --release -p kernels --example attention_speed [FAMILY] [ROWS]`.
//!
//! Each line: family, threads, number type, query rows of each sequence, sequences, keys of each; microseconds of a call and bytes of keys and
//! values read per second. The heads are those of the 1B shape: 32 over 8 of 64.
#![expect(clippy::print_stdout, reason = "an example prints")]

use std::time::Instant;

use half::bf16;
use kernels::attention::{
    CacheKind, HeadShape, KEY_BLOCK, KeyBlocks, SequenceRows, append_keys_values, attention,
};
use kernels::{Compute, Family, Operand, detect_features};

const SHAPE: HeadShape =
    HeadShape { n_heads: 32, n_kv_heads: 8, head_dim: 64, scale: 0.125, window: None };

/// Rows of each sequence, sequences, keys before the rows.
const CASES: [[usize; 3]; 5] =
    [[1, 1, 2048], [1, 1, 8192], [1, 16, 512], [4, 1, 8192], [256, 1, 2048]];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let [wanted, wanted_rows] = [1, 2].map(|i| std::env::args().nth(i));
    let families = Family::ALL.into_iter().skip(1).filter(|f| f.runs_on(detect_features()));
    for family in families.filter(|f| wanted.as_ref().is_none_or(|name| name == f.name())) {
        for n_threads in [1, 2] {
            let compute = Compute::forced(family, n_threads)?;
            let is_wanted = |case: &[usize; 3]| {
                wanted_rows.as_ref().is_none_or(|rows| *rows == case[0].to_string())
            };
            for case in CASES.into_iter().filter(is_wanted) {
                measure::<bf16>(&compute, "bf16", CacheKind::Operands, case);
                measure::<bf16>(&compute, "int8", CacheKind::Int8, case);
                measure::<f32>(&compute, "f32", CacheKind::Operands, case);
            }
        }
    }
    Ok(())
}

fn measure<T: Operand>(
    compute: &Compute,
    name: &str,
    kind: CacheKind,
    [n_rows, n_sequences, n_keys]: [usize; 3],
) {
    let per_sequence = (n_keys + n_rows).div_ceil(KEY_BLOCK);
    let mut blocks = KeyBlocks::<T>::zeroed(kind, SHAPE, n_sequences * per_sequence);
    let tables: Vec<Vec<u32>> = (0..n_sequences)
        .map(|i| (0..per_sequence).map(|j| (i * per_sequence + j) as u32).collect())
        .collect();
    let number = |i: usize| T::from_f32(((i * 37 % 101) as f32 - 50.0) / 50.0);
    let rows = |n: usize, first_position: usize| -> (Vec<T>, Vec<SequenceRows<'_>>) {
        let qkv = (0..n_sequences * n * SHAPE.qkv_width()).map(number).collect();
        let sequences = tables.iter().enumerate().map(|(i, block_table)| SequenceRows {
            first_row: i * n,
            n_rows: n,
            first_position,
            block_table,
        });
        (qkv, sequences.collect())
    };
    for first in (0..n_keys).step_by(256) {
        let (qkv, sequences) = rows(256.min(n_keys - first), first);
        append_keys_values(compute, SHAPE, &qkv, &sequences, &mut blocks);
    }
    let (qkv, sequences) = rows(n_rows, n_keys);
    append_keys_values(compute, SHAPE, &qkv, &sequences, &mut blocks);
    let n_tokens = n_sequences * n_rows;
    let mut out = vec![T::from_f32(0.0); n_tokens * SHAPE.n_heads * SHAPE.head_dim];
    let mut log_sum_exp = vec![0.0; n_tokens * SHAPE.n_heads];
    // The fastest call: others share the machine.
    let (start, mut best) = (Instant::now(), f64::INFINITY);
    while start.elapsed().as_secs_f64() < 0.4 {
        let call = Instant::now();
        attention(compute, SHAPE, &qkv, &sequences, &blocks, &mut out, &mut log_sum_exp);
        best = best.min(call.elapsed().as_secs_f64());
    }
    let n_bytes = n_sequences * n_keys * KeyBlocks::<T>::block_bytes(kind, SHAPE) / KEY_BLOCK;
    println!(
        "{:7} {} threads {name:4} {n_rows:3} rows {n_sequences:2} sequences {n_keys:5} keys: {:9.1} us, {:6.1} GB/s",
        compute.family().name(),
        compute.n_threads(),
        best * 1e6,
        n_bytes as f64 / best / 1e9,
    );
}
