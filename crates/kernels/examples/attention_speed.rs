//! Prints the speed of attention over long contexts: `cargo run --release -p kernels --example attention_speed [FAMILY] [ROWS] [KEYS] [DIM] [TYPE]`.
//!
//! Each line: family, threads, number type, head_dim, query rows of each sequence, sequences, keys of each; microseconds of a call, bytes of keys and
//! values per second as if read once, and operations per second of both products on the keys that rows see. The heads are those of the 1B shape,
//! 32 over 8 of 64, and of the 7B shape, of 128.
#![expect(clippy::print_stdout, reason = "an example prints")]

use std::time::Instant;

use half::bf16;
use kernels::attention::{
    CacheKind, HeadShape, KEY_BLOCK, KeyBlocks, SequenceRows, append_keys_values, attention,
};
use kernels::{Compute, Family, Operand, detect_features};

/// Heads of the 1B and of the 7B shape.
const SHAPES: [HeadShape; 2] = [
    HeadShape { n_heads: 32, n_kv_heads: 8, head_dim: 64, scale: 0.125, window: None },
    HeadShape { n_heads: 32, n_kv_heads: 8, head_dim: 128, scale: 0.088, window: None },
];

/// Rows of each sequence, sequences, keys before the rows.
const CASES: [[usize; 3]; 9] = [
    [1, 1, 2048],
    [1, 1, 8192],
    [1, 16, 512],
    [4, 1, 8192],
    [16, 1, 8192],
    [64, 1, 8192],
    [256, 1, 2048],
    [256, 1, 8192],
    [256, 1, 32768],
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let is_wanted = |place: usize, word: &str| wanted.get(place).is_none_or(|w| w == word);
    let families = Family::ALL.into_iter().skip(1).filter(|f| f.runs_on(detect_features()));
    for family in families.filter(|f| is_wanted(0, f.name())) {
        for n_threads in [1, 2] {
            let compute = Compute::forced(family, n_threads)?;
            let cases = CASES.into_iter().filter(|&[n_rows, _, n_keys]| {
                is_wanted(1, &n_rows.to_string()) && is_wanted(2, &n_keys.to_string())
            });
            let shapes = |case| SHAPES.map(|shape| (case, shape));
            for (case, shape) in cases.flat_map(shapes) {
                if !is_wanted(3, &shape.head_dim.to_string()) {
                    continue;
                }
                if is_wanted(4, "bf16") {
                    measure::<bf16>(&compute, "bf16", CacheKind::Operands, shape, case);
                }
                if is_wanted(4, "int8") {
                    measure::<bf16>(&compute, "int8", CacheKind::Int8, shape, case);
                }
                if is_wanted(4, "f32") {
                    measure::<f32>(&compute, "f32", CacheKind::Operands, shape, case);
                }
            }
        }
    }
    Ok(())
}

fn measure<T: Operand>(
    compute: &Compute,
    name: &str,
    kind: CacheKind,
    shape: HeadShape,
    [n_rows, n_sequences, n_keys]: [usize; 3],
) {
    let per_sequence = (n_keys + n_rows).div_ceil(KEY_BLOCK);
    let mut blocks = KeyBlocks::<T>::zeroed(kind, shape, n_sequences * per_sequence);
    let tables: Vec<Vec<u32>> = (0..n_sequences)
        .map(|i| (0..per_sequence).map(|j| (i * per_sequence + j) as u32).collect())
        .collect();
    let number = |i: usize| T::from_f32(((i * 37 % 101) as f32 - 50.0) / 50.0);
    let rows = |n: usize, first_position: usize| -> (Vec<T>, Vec<SequenceRows<'_>>) {
        let qkv = (0..n_sequences * n * shape.qkv_width()).map(number).collect();
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
        append_keys_values(compute, shape, &qkv, &sequences, &mut blocks);
    }
    let (qkv, sequences) = rows(n_rows, n_keys);
    append_keys_values(compute, shape, &qkv, &sequences, &mut blocks);
    let n_tokens = n_sequences * n_rows;
    let mut out = vec![T::from_f32(0.0); n_tokens * shape.n_heads * shape.head_dim];
    let mut log_sum_exp = vec![0.0; n_tokens * shape.n_heads];
    // The fastest call: others share the machine.
    let (start, mut best) = (Instant::now(), f64::INFINITY);
    while start.elapsed().as_secs_f64() < 0.4 {
        let call = Instant::now();
        attention(compute, shape, &qkv, &sequences, &blocks, &mut out, &mut log_sum_exp);
        best = best.min(call.elapsed().as_secs_f64());
    }
    let n_bytes = n_sequences * n_keys * KeyBlocks::<T>::block_bytes(kind, shape) / KEY_BLOCK;
    // Two products of two operations for each number of a head; a row sees itself and what was before it.
    let n_visible = n_tokens * n_keys + n_sequences * n_rows * (n_rows + 1) / 2;
    let n_operations = 4 * shape.n_heads * shape.head_dim * n_visible;
    println!(
        "{:7} {} threads {name:4} {:3} dim {n_rows:3} rows {n_sequences:2} sequences {n_keys:5} keys: {:9.1} us, {:6.1} GB/s, {:6.1} GFLOP/s",
        compute.family().name(),
        compute.n_threads(),
        shape.head_dim,
        best * 1e6,
        n_bytes as f64 / best / 1e9,
        n_operations as f64 / best / 1e9,
    );
}
