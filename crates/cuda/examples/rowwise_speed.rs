//! Prints how fast the operations on rows are: `cargo run --release -p cuda --example rowwise_speed [NAME] [small] [DIR]`.
//!
//! Each line: operation, shape, microseconds, GB of memory read and written per second, and that as a share of a copy on the
//! device. `small` takes shapes that an emulated GPU is done with, to see that all of them run. Libraries are first looked
//! for in the folder DIR, which is written with a slash.
#![expect(clippy::print_stdout, reason = "an example prints")]

use std::path::PathBuf;

use cuda::ops::{elementwise, embedding, loss, norm, rope, row_numbers::RowNumbers, swiglu};
use cuda::{DeviceMatrix, Gpu, LibraryPath, NumberType};
use kernels::adamw::AdamW;
use kernels::rope::{Direction, RopeFrequencies, RopeTable, RotatedHeads};
use kernels::{Compute, Family};

use NumberType::{Bf16, F32};

/// Calls that are timed together.
const N_CALLS: usize = 20;

struct Bench {
    gpu: Gpu,
    wanted: String,
    small: bool,
    copy_bytes_per_s: f64,
}

impl Bench {
    /// Seconds of one call.
    fn seconds(&self, mut call: impl FnMut()) -> f64 {
        call();
        let n_calls = if self.small { 1 } else { N_CALLS };
        self.gpu.timed(|| (0..n_calls).for_each(|_| call())) / n_calls as f64
    }

    fn line(&self, name: &str, [n_rows, width]: [usize; 2], bytes: usize, call: impl FnMut()) {
        if !name.contains(&self.wanted) {
            return;
        }
        let seconds = self.seconds(call);
        let bytes_per_s = bytes as f64 / seconds;
        let share = 100.0 * bytes_per_s / self.copy_bytes_per_s;
        let (us, gb) = (seconds * 1e6, bytes_per_s / 1e9);
        println!("{name:24} {n_rows:6} x {width:6} {us:9.1} us {gb:7.0} GB/s {share:4.0} %");
    }

    fn matrix(&self, number_type: NumberType, [n_rows, width]: [usize; 2]) -> DeviceMatrix {
        let mut matrix = DeviceMatrix::uninitialised(&self.gpu, number_type, n_rows, width);
        elementwise::fill_uniform(&self.gpu, matrix.view_mut(), 1, 1.0);
        matrix
    }

    /// Ids of which low ones are frequent, as in text.
    fn ids(&self, n: usize, below: usize) -> Vec<u32> {
        let share = |i: usize| (i * 7919 % n) as f64 / n as f64;
        (0..n).map(|i| ((below as f64).powf(share(i)) as u32).min(below as u32) - 1).collect()
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
    let mut bench = Bench { gpu, wanted, small, copy_bytes_per_s: 0.0 };
    let n = if small { 64 } else { 65536 };
    let from = bench.matrix(F32, [n, 4096]);
    let mut to = bench.matrix(F32, [n, 4096]);
    let seconds = bench.seconds(|| from.view().copy_to(to.view_mut()));
    bench.copy_bytes_per_s = 2.0 * from.n_bytes() as f64 / seconds;
    println!("copy {:.0} GB/s", bench.copy_bytes_per_s / 1e9);
    drop((from, to));
    let cut = |[n_rows, width]: [usize; 2]| [if small { n_rows.min(4) } else { n_rows }, width];
    for shape in [[65536, 768], [16384, 2048], [8192, 4096], [1, 4096]].map(cut) {
        whole_matrices(&bench, shape);
        rows(&bench, shape);
    }
    for [n_rows, heads, head_dim] in
        [[65536, 20, 64], [16384, 48, 64], [8192, 48, 128], [1, 48, 128]]
    {
        rotation(&bench, cut([n_rows, heads])[0], heads, head_dim);
    }
    for shape in [[65536, 2048], [16384, 5632], [8192, 14336], [1, 14336]].map(cut) {
        activation(&bench, shape);
    }
    for shape in
        [[65536, 1024], [8192, 16384], [8192, 32768], [8192, 50257], [2048, 131_072]].map(cut)
    {
        losses(&bench, shape);
    }
    for shape in [[1, 32768], [1, 131_072], [16, 131_072]].map(cut) {
        let logits = bench.matrix(F32, shape);
        bench.line("likeliest", shape, logits.n_bytes(), || {
            drop(loss::likeliest(&bench.gpu, logits.view()))
        });
    }
    Ok(())
}

fn whole_matrices(bench: &Bench, shape: [usize; 2]) {
    let gpu = &bench.gpu;
    let (grad, n) = (bench.matrix(F32, shape), shape[0] * shape[1]);
    let [mut weight, mut m, mut v] = [(); 3].map(|()| bench.matrix(F32, shape));
    let mut narrow = bench.matrix(Bf16, shape);
    bench.line("convert f32 bf16", shape, 6 * n, || {
        elementwise::convert(gpu, grad.view(), narrow.view_mut());
    });
    bench.line("convert bf16 f32", shape, 6 * n, || {
        elementwise::convert(gpu, narrow.view(), m.view_mut());
    });
    bench.line("round_to_bf16", shape, 8 * n, || {
        elementwise::round_to_bf16(gpu, grad.view(), m.view_mut());
    });
    bench.line("fill_uniform bf16", shape, 2 * n, || {
        elementwise::fill_uniform(gpu, narrow.view_mut(), 1, 0.02);
    });
    bench.line("sum_of_squares", shape, 4 * n, || {
        let _sum = elementwise::sum_of_squares(gpu, &[grad.view()]);
    });
    let step = AdamW {
        learning_rate: 1e-3,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        grad_scale: 1.0,
        bias_correction1: 0.19,
        bias_correction2: 0.0975,
    };
    bench.line("adamw_step", shape, 28 * n, || {
        let (weight, m, v) = (weight.view_mut(), m.view_mut(), v.view_mut());
        elementwise::adamw_step(gpu, step, weight, grad.view(), m, v);
    });
}

fn rows(bench: &Bench, shape: [usize; 2]) {
    let gpu = &bench.gpu;
    let ([n_rows, width], n) = (shape, shape[0] * shape[1]);
    let x = bench.matrix(F32, shape);
    let weight = bench.matrix(F32, [1, width]);
    let [mut out, mut d_out] = [(); 2].map(|()| bench.matrix(Bf16, shape));
    let mut scales = bench.matrix(F32, [n_rows, 1]);
    bench.line("rms_norm", shape, 6 * n, || {
        let (out, scales) = (out.view_mut(), scales.view_mut());
        norm::rms_norm(gpu, x.view(), weight.view(), 1e-5, out, scales);
    });
    let (mut d_x, mut d_weight) = (bench.matrix(F32, shape), bench.matrix(F32, [1, width]));
    let mut rounded = bench.matrix(Bf16, shape);
    bench.line("rms_norm_backward", shape, 14 * n, || {
        let gradients = norm::NormGradients {
            d_x: d_x.view_mut(),
            rounded: Some(rounded.view_mut()),
            d_weight: Some(d_weight.view_mut()),
        };
        norm::rms_norm_backward(
            gpu,
            out.view(),
            weight.view(),
            scales.view(),
            d_out.view(),
            gradients,
        );
    });
    let vocab_size = if bench.small { 16 } else { 32768 };
    let ids = bench.ids(n_rows, vocab_size);
    let (table, numbers) = (bench.matrix(Bf16, [vocab_size, width]), RowNumbers::new(gpu, &ids));
    bench.line("embedding gather", shape, 6 * n, || {
        embedding::gather(gpu, table.view(), &numbers, d_x.view_mut());
    });
    let groups = embedding::TokenGroups::new(gpu, &ids);
    let mut d_table = bench.matrix(F32, [vocab_size, width]);
    bench.line("embedding gather_backward", shape, 4 * n, || {
        embedding::gather_backward(gpu, x.view(), &groups, d_table.view_mut());
    });
    let every = RowNumbers::new(gpu, &(0..n_rows as u32).rev().collect::<Vec<_>>());
    bench.line("gather_rows", shape, 4 * n, || {
        elementwise::gather_rows(gpu, out.view(), &every, d_out.view_mut());
    });
    let every = RowNumbers::new(gpu, &(0..n_rows as u32).collect::<Vec<_>>());
    bench.line("add_weighted_rows", shape, 12 * n, || {
        elementwise::add_weighted_rows(gpu, x.view(), &every, scales.view(), d_x.view_mut());
    });
}

fn rotation(bench: &Bench, n_rows: usize, n_heads: usize, head_dim: usize) {
    let shape = [n_rows, n_heads * head_dim];
    let compute =
        Compute::forced(Family::Reference, 1).expect("the reference family runs everywhere");
    let mut table = RopeTable::with_capacity(n_rows, head_dim);
    let positions: Vec<u32> = (0..n_rows as u32).map(|row| row % 2048).collect();
    table.set(&compute, &RopeFrequencies::plain(head_dim, 1e4), &positions);
    let table = rope::DeviceRopeTable::new(&bench.gpu, &table);
    let heads = RotatedHeads { n_query: n_heads / 2, n_key: n_heads / 4, n_copied: n_heads / 4 };
    let mut x = bench.matrix(Bf16, shape);
    let bytes = 4 * n_rows * (heads.n_query + heads.n_key) * head_dim;
    bench.line("rotate_in_place", shape, bytes, || {
        rope::rotate_in_place(&bench.gpu, x.view_mut(), &table, heads, Direction::Forward);
    });
    let mut out = bench.matrix(Bf16, shape);
    bench.line("rotate", shape, 4 * n_rows * heads.n_all() * head_dim, || {
        let (x, out) = (x.view(), out.view_mut());
        rope::rotate(&bench.gpu, x, &table, heads, Direction::Backward, out);
    });
}

fn activation(bench: &Bench, [n_rows, ffn_dim]: [usize; 2]) {
    let (shape, n) = ([n_rows, ffn_dim], n_rows * ffn_dim);
    let [gate_up, mut d_gate_up] = [(); 2].map(|()| bench.matrix(Bf16, [n_rows, 2 * ffn_dim]));
    let [d_out, mut out] = [(); 2].map(|()| bench.matrix(Bf16, shape));
    bench.line("swiglu", shape, 6 * n, || {
        swiglu::swiglu(&bench.gpu, gate_up.view(), out.view_mut())
    });
    bench.line("swiglu_backward", shape, 10 * n, || {
        swiglu::swiglu_backward(&bench.gpu, gate_up.view(), d_out.view(), d_gate_up.view_mut());
    });
}

fn losses(bench: &Bench, shape: [usize; 2]) {
    let gpu = &bench.gpu;
    let ([n_rows, vocab_size], n) = (shape, shape[0] * shape[1]);
    let weights = bench.matrix(F32, [n_rows, 1]);
    let mut losses = bench.matrix(F32, [n_rows, 1]);
    let targets = RowNumbers::new(gpu, &bench.ids(n_rows, vocab_size));
    let mut logits = bench.matrix(Bf16, shape);
    bench.line("cross_entropy_in_place", shape, 4 * n, || {
        let (weights, losses) = (weights.view(), losses.view_mut());
        let rows = loss::LossRows { targets: &targets, weights, losses };
        loss::cross_entropy_in_place(gpu, logits.view_mut(), rows);
    });
    let logits = bench.matrix(F32, shape);
    bench.line("cross_entropy f32", shape, 4 * n, || {
        let (weights, losses) = (weights.view(), losses.view_mut());
        let rows = loss::LossRows { targets: &targets, weights, losses };
        loss::cross_entropy(gpu, logits.view(), rows);
    });
}
