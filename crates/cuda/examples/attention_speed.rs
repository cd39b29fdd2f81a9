//! Prints how fast attention over packed documents is: `cargo run --release -p cuda --example attention_speed [NAME] [small] [DIR]`.
//!
//! Each line: shape, kernels, direction, microseconds, and TFLOP/s by the formula: of each pair of a row and a key that it sees
//! `4 n_heads head_dim` FLOP forward, 10 backward. `small` takes shapes that an emulated GPU is done with.
//! Libraries are first looked for in the folder DIR, which is written with a slash.
#![expect(clippy::print_stdout, reason = "an example prints")]

use std::path::PathBuf;

use cuda::ops::attention_packed::{
    AttentionBackward, AttentionKernels, PackedRows, attention_backward_with, attention_with,
};
use cuda::ops::elementwise;
use cuda::ops::rope::DeviceRopeTable;
use cuda::{DeviceMatrix, Gpu, LibraryPath, NumberType};
use kernels::attention::HeadShape;
use kernels::rope::{RopeFrequencies, RopeTable};
use kernels::{Compute, Family};

/// Calls that are timed together.
const N_CALLS: usize = 20;

struct Bench {
    name: &'static str,
    n_documents: usize,
    document_len: usize,
    shape: HeadShape,
}

impl Bench {
    fn new(name: &'static str, lens: [usize; 2], heads: [usize; 2], head_dim: usize) -> Self {
        let [n_documents, document_len] = lens;
        let [n_heads, n_kv_heads] = heads;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let shape = HeadShape { n_heads, n_kv_heads, head_dim, scale, window: None };
        Self { name, n_documents, document_len, shape }
    }

    /// FLOP of one product of all pairs of a row and a key that it sees.
    fn product_flop(&self) -> f64 {
        let pairs = self.n_documents * self.document_len * (self.document_len + 1) / 2;
        2.0 * (pairs * self.shape.n_heads * self.shape.head_dim) as f64
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let small = arguments.iter().any(|argument| argument == "small");
    // A folder has a slash, names have none.
    let libraries = arguments.iter().find(|argument| argument.contains('/')).map(PathBuf::from);
    arguments.retain(|argument| argument != "small" && !argument.contains('/'));
    let wanted = arguments.pop().unwrap_or_default();
    let gpu = Gpu::open(&LibraryPath::new(libraries))?;
    println!("{}", gpu.description().name);
    let len = |n: usize| if small { n.min(160) } else { n };
    let n = |n: usize| if small { 1 } else { n };
    let benches = [
        Bench::new("124m", [n(64), len(1024)], [12, 12].map(n), 64),
        Bench::new("1b", [n(16), len(2048)], [32, 8].map(n), 64),
        Bench::new("wide", [n(8), len(2048)], [32, 8].map(n), 128),
    ];
    for bench in benches.iter().filter(|bench| bench.name.contains(&wanted)) {
        for (name, kernels) in
            [("ampere", AttentionKernels::AMPERE), ("hopper", AttentionKernels::HOPPER)]
        {
            if kernels != AttentionKernels::AMPERE && gpu.description().capability != (9, 0) {
                continue;
            }
            run(&gpu, bench, name, kernels, if small { 1 } else { N_CALLS });
        }
    }
    Ok(())
}

fn run(gpu: &Gpu, bench: &Bench, kernels_name: &str, kernels: AttentionKernels, n_calls: usize) {
    let shape = bench.shape;
    let n_rows = bench.n_documents * bench.document_len;
    let starts: Vec<u32> =
        (0..=bench.n_documents).map(|i| (i * bench.document_len) as u32).collect();
    let rows = PackedRows::new(gpu, &starts);
    let out_width = shape.n_heads * shape.head_dim;
    let matrix = |number_type, width, seed| {
        let mut matrix = DeviceMatrix::uninitialised(gpu, number_type, n_rows, width);
        elementwise::fill_uniform(gpu, matrix.view_mut(), seed, 1.7);
        matrix
    };
    let qkv = matrix(NumberType::Bf16, shape.qkv_width(), 1);
    let d_out = matrix(NumberType::Bf16, out_width, 2);
    let mut out = matrix(NumberType::Bf16, out_width, 3);
    let mut log_sum_exp = matrix(NumberType::F32, shape.n_heads, 4);
    let mut d_qkv = matrix(NumberType::Bf16, shape.qkv_width(), 5);
    let line = |direction: &str, seconds: f64, n_products: f64| {
        let tflop_per_s = n_products * bench.product_flop() / seconds / 1e12;
        let us = seconds * 1e6;
        println!(
            "{:5} {kernels_name:7} {direction:9} {us:9.1} us {tflop_per_s:6.0} TFLOP/s",
            bench.name
        );
    };
    let seconds = timed(gpu, n_calls, || {
        let (out, log_sum_exp) = (out.view_mut(), log_sum_exp.view_mut());
        attention_with(gpu, kernels, shape, qkv.view(), &rows, out, log_sum_exp);
    });
    line("forward", seconds, 2.0);
    let inputs = AttentionBackward {
        qkv: qkv.view(),
        out: out.view(),
        log_sum_exp: log_sum_exp.view(),
        d_out: d_out.view(),
        rope: &rope(gpu, bench),
    };
    let mut backward =
        || attention_backward_with(gpu, kernels, shape, inputs, &rows, d_qkv.view_mut());
    let seconds = timed(gpu, n_calls, &mut backward);
    line("backward", seconds, 5.0);
    for kernel in gpu.profiled(backward) {
        println!("        {:40} {:9.1} us", kernel.name, kernel.seconds * 1e6);
    }
}

/// The angles of positions within the documents.
fn rope(gpu: &Gpu, bench: &Bench) -> DeviceRopeTable {
    let head_dim = bench.shape.head_dim;
    let document = 0..bench.document_len as u32;
    let positions: Vec<u32> = (0..bench.n_documents).flat_map(|_| document.clone()).collect();
    let mut table = RopeTable::with_capacity(positions.len(), head_dim);
    let compute = Compute::forced(Family::Reference, 1).expect("every machine has it");
    table.set(&compute, &RopeFrequencies::plain(head_dim, 1e4), &positions);
    DeviceRopeTable::new(gpu, &table)
}

/// Seconds of one call.
fn timed(gpu: &Gpu, n_calls: usize, mut call: impl FnMut()) -> f64 {
    call();
    gpu.timed(|| (0..n_calls).for_each(|_| call())) / n_calls as f64
}
