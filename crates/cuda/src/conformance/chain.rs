//! Operations of one row in one launch, against the same launched one by one.

use kernels::matmul::Write;

use super::{Case, Deviation, Numbers, Size};
use crate::chain::{Link, LinkKind, MAX_LINKS, part_of};
use crate::gpu::{Gpu, KernelTime};
use crate::memory::{DeviceMatrix, NumberType};
use crate::ops::few_rows::product_few_rows;
use crate::ops::norm::rms_norm;
use crate::ops::swiglu::swiglu;

pub(super) const CASES: &[Case] =
    &[Case { name: "chain", run: layers }, Case { name: "chain_product", run: products }];

/// Layers that are compared, and how far they may be. Sums have another order in a chain, so what is rounded to bf16 differs here and there, by
/// up to 2^-8, and layers carry that on: after four 4.6e-3 was seen. The most have, with logits and a norm, two links more than a launch.
const N_LAYERS_AND_LIMITS: [(usize, f64); 2] = [(4, 1e-2), (MAX_LINKS / 2, 2e-2)];

/// What layers without attention read and write.
struct Layers {
    norm: DeviceMatrix,
    gate_up: DeviceMatrix,
    down: DeviceMatrix,
    head: DeviceMatrix,
    residual: DeviceMatrix,
    scales: DeviceMatrix,
    normed: DeviceMatrix,
    gates_and_ups: DeviceMatrix,
    activated: DeviceMatrix,
    logits: DeviceMatrix,
}

impl Layers {
    fn new(gpu: &Gpu, [hidden, ffn, vocab]: [usize; 3]) -> Self {
        let mut numbers = Numbers::new(11);
        let mut matrix = |number_type, [rows, width]: [usize; 2], scale: f32| {
            let values: Vec<f32> = numbers.normal(rows * width).iter().map(|x| x * scale).collect();
            DeviceMatrix::of_f32(gpu, number_type, &values, width)
        };
        let (f32, bf16) = (NumberType::F32, NumberType::Bf16);
        let empty = |number_type, width| DeviceMatrix::poisoned(gpu, number_type, 1, width);
        let by_width = |width: usize| 1.0 / (width as f32).sqrt();
        Self {
            norm: matrix(f32, [1, hidden], 1.0),
            gate_up: matrix(bf16, [2 * ffn, hidden], by_width(hidden)),
            down: matrix(bf16, [hidden, ffn], by_width(ffn)),
            head: matrix(bf16, [vocab, hidden], by_width(hidden)),
            residual: matrix(f32, [1, hidden], 1.0),
            scales: empty(f32, 1),
            normed: empty(bf16, hidden),
            gates_and_ups: empty(bf16, 2 * ffn),
            activated: empty(bf16, ffn),
            logits: empty(f32, vocab),
        }
    }

    /// Layers and logits, and a norm that no product follows; `between` is called after each operation.
    fn run(&mut self, gpu: &Gpu, n_layers: usize, between: impl Fn()) -> [Vec<f32>; 5] {
        for _ in 0..n_layers {
            self.norm(gpu);
            between();
            let y = self.gates_and_ups.view_mut();
            product_few_rows(gpu, self.normed.view(), self.gate_up.view(), y, 0, Write::Overwrite);
            between();
            swiglu(gpu, self.gates_and_ups.view(), self.activated.view_mut());
            between();
            let (x, y) = (self.activated.view(), self.residual.view_mut());
            product_few_rows(gpu, x, self.down.view(), y, 0, Write::Accumulate);
            between();
        }
        self.norm(gpu);
        between();
        let (x, y) = (self.normed.view(), self.logits.view_mut());
        product_few_rows(gpu, x, self.head.view(), y, 0, Write::Overwrite);
        between();
        self.norm(gpu);
        between();
        let results = [&self.residual, &self.logits, &self.scales, &self.normed, &self.activated];
        results.map(DeviceMatrix::to_f32)
    }

    fn norm(&mut self, gpu: &Gpu) {
        let (out, scales) = (self.normed.view_mut(), self.scales.view_mut());
        rms_norm(gpu, self.residual.view(), self.norm.view(), 1e-5, out, scales);
    }
}

fn layers(gpu: &Gpu, size: Size) -> Deviation {
    if !gpu.has_chains() {
        return Deviation::NONE;
    }
    let mut shapes = vec![[256, 512, 3], [768, 1280, 40], [2304, 256, 17], [5120, 256, 65]];
    if size == Size::Large {
        shapes.extend([[4096, 14336, 32768], [8192, 2048, 100]]);
    }
    let cases = shapes
        .into_iter()
        .flat_map(|shape| N_LAYERS_AND_LIMITS.map(|(n_layers, limit)| (shape, n_layers, limit)));
    let mut worst = Deviation::NONE;
    for (shape, n_layers, limit) in cases {
        let mut chained = Default::default();
        let run = || chained = Layers::new(gpu, shape).run(gpu, n_layers, || {});
        // A chain that was not one would show nothing.
        worst = worst.worst(is_launched_as(gpu, (2 * n_layers + 2).div_ceil(MAX_LINKS), run));
        let alone = Layers::new(gpu, shape).run(gpu, n_layers, || gpu.synchronize());
        for (chained, alone) in chained.iter().zip(&alone) {
            worst = worst.worst(Deviation::between(chained, alone, limit));
        }
    }
    worst
}

/// Whether what `work` asks of the GPU is launched as some number of chains, and nothing else.
pub(super) fn is_launched_as(gpu: &Gpu, n_chains: usize, work: impl FnOnce()) -> Deviation {
    let times = gpu.profiled(work);
    let is_so = matches!(times.as_slice(), [KernelTime { name, n_calls, .. }] if name == "chain" && *n_calls == n_chains);
    Deviation { value: if is_so { 0.0 } else { f64::INFINITY }, limit: 0.0 }
}

/// Products as chains of one link, of which any number of blocks gives the same bits.
fn products(gpu: &Gpu, size: Size) -> Deviation {
    if !gpu.has_chains() {
        return Deviation::NONE;
    }
    let mut numbers = Numbers::new(12);
    let mut shapes = vec![[1, 256], [100, 1280], [37, 2304], [16, 512]];
    if size == Size::Large {
        shapes.extend([[6144, 4096], [4096, 14336]]);
    }
    let mut worst = Deviation::NONE;
    for [n_out, n_in] in shapes {
        let (x, w) = (numbers.normal(n_in), numbers.normal(n_out * n_in));
        let x = DeviceMatrix::of_f32(gpu, NumberType::Bf16, &x, n_in);
        let w = DeviceMatrix::of_f32(gpu, NumberType::Bf16, &w, n_in);
        let before = numbers.normal(n_out);
        for (kind, number_type, write) in [
            (LinkKind::ProductBf16, NumberType::Bf16, Write::Overwrite),
            (LinkKind::ProductF32, NumberType::F32, Write::Overwrite),
            (LinkKind::AddedF32, NumberType::F32, Write::Accumulate),
        ] {
            let new = || DeviceMatrix::of_f32(gpu, number_type, &before, n_out);
            let mut expected = new();
            product_few_rows(gpu, x.view(), w.view(), expected.view_mut(), 0, write);
            let expected = expected.to_f32();
            let limit = if number_type == NumberType::F32 { 5e-6 } else { 4e-3 };
            let mut of_one_block = None;
            for n_blocks in [1, 2, 3, gpu.multiprocessors()] {
                let mut y = new();
                let link = Link {
                    kind,
                    from: x.view().address(),
                    w: w.view().address(),
                    y: y.view_mut().address(),
                    n_out: n_out as i32,
                    n_in: n_in as i32,
                    part: part_of(1, [n_out, n_in]).expect("a product that can be a link") as i32,
                    ..Link::default()
                };
                gpu.launch_link_alone(link, n_blocks);
                let y = y.to_f32();
                worst = worst.worst(Deviation::between(&y, &expected, limit));
                let of_one_block = of_one_block.get_or_insert_with(|| y.clone());
                worst = worst.worst(Deviation::equal(&y, of_one_block));
            }
        }
    }
    worst
}
