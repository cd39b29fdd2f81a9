//! Prints the speed of dense products: `cargo run --release -p kernels --example matmul_speed [FAMILY] [THREADS] [INDEX]`.
//!
//! Each line: family, threads, what is multiplied, rows, columns and inner dimension; operations and bytes of the right operand per
//! second. Right operands that are used one after the other are together larger than a cache.
#![expect(clippy::print_stdout, reason = "an example prints")]

use std::time::Instant;

use half::bf16;
use kernels::matmul::{Left, Right, Write, matmul};
use kernels::panels::panels_len;
use kernels::{Buffer, Compute, Family, detect_features};

/// Bytes of all right operands that a measurement goes through.
const FOOTPRINT: usize = 128 << 20;

/// Rows, columns and inner dimension of forward products: what `galerne doctor` measures, inference, a training step, decoding.
const FORWARD: [[usize; 3]; 14] = [
    [768, 1024, 1024],
    [512, 2048, 2048],
    [512, 8192, 2048],
    [512, 2048, 8192],
    [512, 8192, 8192],
    [1024, 2048, 384],
    [1024, 768, 384],
    [1024, 384, 1024],
    [1024, 384, 2048],
    [256, 8192, 384],
    [256, 384, 8192],
    [1, 8192, 2048],
    [16, 8192, 2048],
    [64, 8192, 2048],
];

/// Outputs, inputs and tokens of gradients of weights.
const GRADIENTS: [[usize; 3]; 3] = [[2048, 384, 1024], [384, 1024, 1024], [8192, 384, 256]];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let index: Option<usize> = arguments.get(2).map(|index| index.parse()).transpose()?;
    let is_wanted = |i| index.is_none_or(|index| i == index);
    let families = Family::ALL.into_iter().skip(1).filter(|f| f.runs_on(detect_features()));
    for family in families.filter(|f| arguments.first().is_none_or(|name| name == f.name())) {
        let n_threads: Vec<usize> = match arguments.get(1) {
            Some(n) => vec![n.parse()?],
            None => vec![1, 2],
        };
        for n_threads in n_threads {
            let compute = Compute::forced(family, n_threads)?;
            let forward = FORWARD.into_iter().map(|dims| (dims, "rows"));
            let shapes = forward.chain(GRADIENTS.into_iter().map(|dims| (dims, "columns")));
            for (_, (dims, what)) in shapes.enumerate().filter(|(i, _)| is_wanted(*i)) {
                measure(&compute, dims, what);
            }
        }
    }
    Ok(())
}

fn measure(compute: &Compute, [m, n, k]: [usize; 3], what: &str) {
    let mut values = Buffer::<bf16>::zeroed(m * k);
    values.fill(bf16::from_f32(0.5));
    let len = panels_len::<bf16>(n, k);
    let mut panels = Buffer::<bf16>::zeroed((FOOTPRINT / 2 / len).max(1) * len);
    panels.fill(bf16::from_f32(0.25));
    let mut out = Buffer::<f32>::zeroed(m * n);
    let (left, write) = match what {
        "rows" => (Left::Rows { values: &values, stride: k }, Write::Overwrite),
        _ => (Left::Columns { values: &values, stride: m }, Write::Accumulate),
    };
    // The fastest product: others share the machine.
    let (start, mut best) = (Instant::now(), f64::INFINITY);
    for panels in panels.chunks_exact(len).cycle() {
        let product_start = Instant::now();
        matmul(compute, left, Right::Panels(panels), [m, n, k], &mut out, write);
        best = best.min(product_start.elapsed().as_secs_f64());
        if start.elapsed().as_secs_f64() > 0.5 {
            break;
        }
    }
    println!(
        "{:7} {} {what:7} [{m:4}, {n:4}, {k:4}]: {:7.1} Gop/s {:5.1} GB/s",
        compute.family().name(),
        compute.n_threads(),
        2.0 * (m * n * k) as f64 / best / 1e9,
        (len * size_of::<bf16>()) as f64 / best / 1e9,
    );
}
