//! Prints the speed of products with packed blocks: `cargo run --release -p kernels --example packed_speed [FAMILY] [KIND] [ROWS] [THREADS]`.
//!
//! Each line: family, threads, kind, shape, rows; bytes of the packed weight and weights read per second, and operations per second; the time of
//! rounding the rows, which is not in them (before 2026-11-27 it was). Weights that are used one after the other are together larger than a cache, so that bytes come from memory.
#![expect(clippy::print_stdout, reason = "an example prints")]

use std::time::Instant;

use kernels::blocks::{BlockKind, BlockMatrix};
use kernels::matmul::Write;
use kernels::packed_blocks::{self, PackedBlocks};
use kernels::{Buffer, Compute, Family, detect_features};

const SHAPES: [[usize; 2]; 3] = [[2048, 2048], [8192, 2048], [14336, 4096]];
const KINDS: [BlockKind; 3] = [BlockKind::Q4_K, BlockKind::Q6_K, BlockKind::Q8_0];
const N_ROWS: [usize; 6] = [1, 4, 16, 64, 128, 512];

/// Bytes of all weights that a measurement goes through.
const FOOTPRINT: usize = 256 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let families = Family::ALL.into_iter().skip(1).filter(|f| f.runs_on(detect_features()));
    for family in families.filter(|f| arguments.first().is_none_or(|name| name == f.name())) {
        let threads: Option<usize> = arguments.get(3).map(|n| n.parse()).transpose()?;
        let rows: Option<usize> = arguments.get(2).map(|n| n.parse()).transpose()?;
        for n_threads in [1, 2].into_iter().filter(|n| threads.is_none_or(|wanted| wanted == *n)) {
            let compute = Compute::forced(family, n_threads)?;
            let is_wanted =
                |kind: &BlockKind| arguments.get(1).is_none_or(|name| *name == format!("{kind:?}"));
            for kind in KINDS.into_iter().filter(is_wanted) {
                for shape in SHAPES {
                    measure(&compute, kind, shape, rows);
                }
            }
        }
    }
    Ok(())
}

fn measure(compute: &Compute, kind: BlockKind, [n, k]: [usize; 2], rows: Option<usize>) {
    let mut state = 1_u64;
    let blocks: Vec<u8> = (0..n * kind.bytes_of(k))
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // Halves of small numbers, so that no factor is infinite.
            (state >> 57) as u8 & 0x2F
        })
        .collect();
    let len = packed_blocks::packed_len(kind, [n, k]);
    let n_weights = FOOTPRINT.div_ceil(len);
    let mut packed = Buffer::<u8>::zeroed(n_weights * len);
    for out in packed.chunks_exact_mut(len) {
        packed_blocks::pack(compute, BlockMatrix::new(kind, &blocks, [n, k]), out);
    }
    for m in rows.map_or(N_ROWS.to_vec(), |m| vec![m]) {
        let x: Vec<f32> = (0..m * k).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
        let mut rows = Buffer::<u8>::zeroed(packed_blocks::rows_len([m, k]));
        let mut out = Buffer::<f32>::zeroed(m * n);
        // The fastest product: others share the machine.
        let (start, mut best, mut best_rows) = (Instant::now(), f64::INFINITY, f64::INFINITY);
        for packed in packed.chunks_exact(len).cycle() {
            let rows_start = Instant::now();
            let rows = packed_blocks::round_rows(compute, &x, [m, k], &mut rows);
            best_rows = best_rows.min(rows_start.elapsed().as_secs_f64());
            let product_start = Instant::now();
            let weight = PackedBlocks::new(kind, packed, [n, k]);
            packed_blocks::matmul(compute, rows, weight, &mut out, Write::Overwrite);
            best = best.min(product_start.elapsed().as_secs_f64());
            if start.elapsed().as_secs_f64() > 1.0 {
                break;
            }
        }
        println!(
            "{:7} {} {kind:?} [{n:5}, {k}] m {m:3}: {:5.1} GB/s {:5.1} Gweights/s {:6.0} Gop/s; rows rounded in {:.0} us",
            compute.family().name(),
            compute.n_threads(),
            len as f64 / best / 1e9,
            (n * k) as f64 / best / 1e9,
            2.0 * (m * n * k) as f64 / best / 1e9,
            best_rows * 1e6,
        );
    }
}
