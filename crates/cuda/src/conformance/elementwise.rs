//! Conversions, sums and updates over whole matrices, and copies of rows.

use kernels::adamw::{AdamW, adamw_step};
use kernels::experts::{Routes, add_weighted_rows};
use kernels::{Compute, Family};

use super::{Case, Deviation, Numbers, Size, rounded};
use crate::gpu::Gpu;
use crate::memory::{DeviceMatrix, NumberType};
use crate::ops::elementwise as ops;
use crate::ops::row_numbers::RowNumbers;

pub(super) const CASES: &[Case] = &[
    Case { name: "convert", run: convert },
    Case { name: "round_to_bf16", run: round_to_bf16 },
    Case { name: "scale", run: scale },
    Case { name: "adamw_step", run: adamw },
    Case { name: "sum_of_squares", run: sum_of_squares },
    Case { name: "add_weighted_sum", run: weighted_sum },
    Case { name: "fill_uniform", run: fill_uniform },
    Case { name: "gather_rows", run: gather_rows },
    Case { name: "add_weighted_rows", run: weighted_rows },
];

pub(super) const TYPES: [NumberType; 2] = [NumberType::F32, NumberType::Bf16];

/// The definitions.
pub(super) fn reference() -> Compute {
    Compute::forced(Family::Reference, 1).expect("the reference family runs everywhere")
}

/// Counts of numbers around the packs of a thread and of a block.
fn counts(size: Size) -> &'static [usize] {
    match size {
        Size::Small => &[1, 6, 30, 1024, 4099, 9000],
        Size::Large => &[1, 6, 30, 1024, 4099, 9000, 1 << 20, (1 << 22) + 3],
    }
}

/// Rows, width.
fn shapes(size: Size) -> &'static [[usize; 2]] {
    match size {
        Size::Small => &[[1, 1], [3, 6], [17, 30], [5, 96], [2, 1026], [3, 4096]],
        Size::Large => &[[1, 1], [3, 6], [17, 30], [300, 96], [300, 1026], [4096, 768], [1, 4096]],
    }
}

/// The worst of all sizes and types.
pub(super) fn worst(deviations: impl IntoIterator<Item = Deviation>) -> Deviation {
    deviations.into_iter().reduce(Deviation::worst).expect("there are sizes")
}

/// Numbers of all kinds: those that round to even and away, the largest, subnormal ones, infinities.
fn all_kinds(numbers: &mut Numbers, n: usize) -> Vec<f32> {
    let kinds = [1e30, -3.4e38, f32::INFINITY, 1e-40, 0.0, -0.0, 1.003_906_3, 1.011_718_8];
    let mut values = numbers.normal(n);
    values.iter_mut().step_by(7).zip(kinds.iter().cycle()).for_each(|(value, &kind)| *value = kind);
    values
}

fn convert(gpu: &Gpu, size: Size) -> Deviation {
    let mut numbers = Numbers::new(1);
    worst(counts(size).iter().flat_map(|&n| [0, 3].map(|first| (n, first))).map(|(n, first)| {
        // Behind `first` numbers neither matrix is aligned.
        let x = all_kinds(&mut numbers, n + first);
        let x_there = DeviceMatrix::of_f32(gpu, NumberType::F32, &x, 1);
        let mut narrow = DeviceMatrix::poisoned(gpu, NumberType::Bf16, n + first, 1);
        let mut wide = DeviceMatrix::poisoned(gpu, NumberType::F32, n + first, 1);
        let rows = first..n + first;
        ops::convert(gpu, x_there.rows(rows.clone(), 1), narrow.rows_mut(rows.clone(), 1));
        ops::convert(gpu, narrow.rows(rows.clone(), 1), wide.rows_mut(rows.clone(), 1));
        let expected = rounded(&x[first..]);
        let got = [&narrow, &wide].map(|out| out.rows(rows.clone(), 1).to_f32());
        worst(got.map(|got| Deviation::equal(&got, &expected)))
    }))
}

fn scale(gpu: &Gpu, size: Size) -> Deviation {
    let mut numbers = Numbers::new(8);
    let all = counts(size).iter().flat_map(|&n| [0, 3].map(|first| (n, first)));
    worst(all.flat_map(|(n, first)| TYPES.map(|out| (n, first, out))).map(|(n, first, out)| {
        let x = all_kinds(&mut numbers, n + first);
        let x_there = DeviceMatrix::of_f32(gpu, NumberType::F32, &x, 1);
        let mut there = DeviceMatrix::poisoned(gpu, out, n + first, 1);
        let rows = first..n + first;
        ops::scale(gpu, x_there.rows(rows.clone(), 1), 2.3, there.rows_mut(rows.clone(), 1));
        let exact: Vec<f32> = x[first..].iter().map(|&x| 2.3 * x).collect();
        let expected = if out == NumberType::F32 { exact } else { rounded(&exact) };
        Deviation::equal(&there.rows(rows, 1).to_f32(), &expected)
    }))
}

fn round_to_bf16(gpu: &Gpu, size: Size) -> Deviation {
    let mut numbers = Numbers::new(2);
    worst(counts(size).iter().flat_map(|&n| [0, 3].map(|first| (n, first))).map(|(n, first)| {
        let x = all_kinds(&mut numbers, n + first);
        let x_there = DeviceMatrix::of_f32(gpu, NumberType::F32, &x, 1);
        let mut out = DeviceMatrix::poisoned(gpu, NumberType::F32, n + first, 1);
        let rows = first..n + first;
        ops::round_to_bf16(gpu, x_there.rows(rows.clone(), 1), out.rows_mut(rows.clone(), 1));
        Deviation::equal(&out.rows(rows, 1).to_f32(), &rounded(&x[first..]))
    }))
}

fn adamw(gpu: &Gpu, size: Size) -> Deviation {
    let mut numbers = Numbers::new(3);
    let step = AdamW {
        learning_rate: 0.01,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        grad_scale: 0.5,
        bias_correction1: 0.19,
        bias_correction2: 0.0975,
    };
    worst(counts(size).iter().map(|&n| {
        let [mut weight, mut grad, mut m, mut v] = [(); 4].map(|()| numbers.normal(n));
        v.iter_mut().for_each(|v| *v = v.abs());
        // One whose square overflows, and one that was never seen.
        (m[n - 1], v[n - 1], grad[n - 1]) = (0.0, 0.0, 0.0);
        grad[0] = 1e30;
        let there = |values: &[f32]| DeviceMatrix::of_f32(gpu, NumberType::F32, values, 1);
        let [mut weight_there, grad_there, mut m_there, mut v_there] =
            [&weight, &grad, &m, &v].map(|values| there(values));
        ops::adamw_step(
            gpu,
            step,
            weight_there.view_mut(),
            grad_there.view(),
            m_there.view_mut(),
            v_there.view_mut(),
        );
        adamw_step(&reference(), step, &mut weight, &grad, &mut m, &mut v);
        // The momentum of the large gradient would hide all others.
        m[0] = 0.0;
        let mut m_got = m_there.to_f32();
        m_got[0] = if (m_got[0] / 5e28 - 1.0).abs() < 1e-5 { 0.0 } else { f32::NAN };
        // Sums of two or three products, fused or not, and two divisions in another order.
        let limit = 1e-6;
        worst([
            Deviation::between(&weight_there.to_f32(), &weight, limit),
            Deviation::between(&m_got, &m, limit),
            Deviation::between(&v_there.to_f32(), &v, limit),
        ])
    }))
}

fn sum_of_squares(gpu: &Gpu, size: Size) -> Deviation {
    let mut numbers = Numbers::new(4);
    let longest: &[usize] = &[65535, 65536, 65537, 150_001];
    let counts: Vec<usize> = counts(size).iter().chain(longest).copied().collect();
    let values: Vec<Vec<f32>> = counts.iter().map(|&n| numbers.normal(n)).collect();
    let of = |values: &Vec<f32>| DeviceMatrix::of_f32(gpu, NumberType::F32, values, 1);
    let there: Vec<DeviceMatrix> = values.iter().map(of).collect();
    let exact = |values: &[f32]| values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>();
    // f32 sums of up to 128 positive numbers, whose errors have either sign.
    let compared = |got: f64, expected: f64| Deviation {
        value: (got - expected).abs() / expected,
        limit: 1e-6,
    };
    let each = values.iter().zip(&there).map(|(values, there)| {
        let unaligned = there.rows(1.min(values.len() - 1)..values.len(), 1);
        let behind = &values[1.min(values.len() - 1)..];
        let got =
            [ops::sum_of_squares(gpu, &[there.view()]), ops::sum_of_squares(gpu, &[unaligned])];
        compared(got[0], exact(values)).worst(compared(got[1], exact(behind)))
    });
    let views: Vec<_> = there.iter().map(DeviceMatrix::view).collect();
    let together = compared(ops::sum_of_squares(gpu, &views), exact(&values.concat()));
    worst(each.chain([together]))
}

/// Sums that go on from one batch to the next.
fn weighted_sum(gpu: &Gpu, size: Size) -> Deviation {
    let mut numbers = Numbers::new(8);
    let mut sum = ops::DeviceSum::zero(gpu);
    let mut expected = 0.0;
    worst(counts(size).iter().map(|&n| {
        let (x, weights) = (numbers.normal(n), numbers.normal(n));
        let [x_there, weights_there] =
            [&x, &weights].map(|values| DeviceMatrix::of_f32(gpu, NumberType::F32, values, 1));
        sum.add_weighted(gpu, x_there.view(), weights_there.view());
        let products = x.iter().zip(&weights).map(|(&x, &w)| f64::from(x) * f64::from(w));
        expected += products.sum::<f64>();
        // Both are sums in f64, in another order.
        Deviation { value: ((sum.read() - expected) / expected).abs(), limit: 1e-11 }
    }))
}

/// As the crate `model` draws the weights of a new model.
fn fill_uniform(gpu: &Gpu, size: Size) -> Deviation {
    worst(counts(size).iter().flat_map(|&n| TYPES.map(|number_type| (n, number_type))).map(
        |(n, number_type)| {
            let (seed, half_width) = (0x1234_5678_9abc_def0_u64, 0.02);
            let mut numbers = Numbers::new(seed);
            let mut uniform = || (numbers.next() >> 40) as f32 / (1_u64 << 24) as f32;
            let mut expected: Vec<f32> =
                (0..n).map(|_| (uniform() * 2.0 - 1.0) * half_width).collect();
            if number_type == NumberType::Bf16 {
                expected = rounded(&expected);
            }
            let mut out = DeviceMatrix::poisoned(gpu, number_type, n, 1);
            ops::fill_uniform(gpu, out.view_mut(), seed, half_width);
            Deviation::equal(&out.to_f32(), &expected)
        },
    ))
}

fn gather_rows(gpu: &Gpu, size: Size) -> Deviation {
    let mut numbers = Numbers::new(5);
    let all = shapes(size).iter().flat_map(|&shape| TYPES.map(|number_type| (shape, number_type)));
    worst(all.map(|([n_rows, width], number_type)| {
        let x = rounded(&numbers.normal((n_rows + 5) * width));
        let rows = numbers.ids(n_rows, n_rows as u32 + 5);
        let x_there = DeviceMatrix::of_f32(gpu, number_type, &x, width);
        let mut out = DeviceMatrix::poisoned(gpu, number_type, n_rows, width);
        ops::gather_rows(gpu, x_there.view(), &RowNumbers::new(gpu, &rows), out.view_mut());
        let mut expected = vec![0.0; n_rows * width];
        kernels::experts::gather_rows(&reference(), &x, &rows, width, &mut expected);
        Deviation::equal(&out.to_f32(), &expected)
    }))
}

fn weighted_rows(gpu: &Gpu, size: Size) -> Deviation {
    let mut numbers = Numbers::new(6);
    worst(shapes(size).iter().map(|&[n_rows, width]| {
        // Each row of a batch that is twice as long goes to two of three experts; one of them is looked at.
        let mut routes = Routes::with_capacity(3, 2 * n_rows);
        routes.set(&numbers.normal(6 * n_rows), 2);
        let route = routes.expert(0);
        let x = numbers.normal(route.rows.len() * width);
        let mut out = numbers.normal(2 * n_rows * width);
        let x_there = DeviceMatrix::of_f32(gpu, NumberType::F32, &x, width);
        let weights = DeviceMatrix::of_f32(gpu, NumberType::F32, &route.weights, 1);
        let mut out_there = DeviceMatrix::of_f32(gpu, NumberType::F32, &out, width);
        let rows = RowNumbers::new(gpu, &route.rows);
        ops::add_weighted_rows(gpu, x_there.view(), &rows, weights.view(), out_there.view_mut());
        add_weighted_rows(&reference(), &x, route, width, &mut out);
        // A product and a sum, fused or not.
        Deviation::between(&out_there.to_f32(), &out, 1e-7)
    }))
}
