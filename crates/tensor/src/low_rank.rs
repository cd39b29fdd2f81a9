//! Low-rank changes to linear layers (LoRA), computed beside the weight, which may be quantised and stays as it is.

use kernels::matmul::Write;

use crate::linear::{Linear, LinearScratch, OperandScratch, Passes};
use crate::tensor::{DType, Tensor, View, ViewMut};
use crate::{Device, ops};

/// A change to some outputs of a linear layer: `y[t, first + o] += sum_r (sum_i x[t, i] a[r, i]) b[o, r]`.
///
/// Numerics: a and b are rounded to the layer's number type, the sums over i are f32 and rounded to it before they are
/// multiplied with b. Source: arXiv 2106.09685, eq. 3.
#[derive(Clone, Debug)]
pub struct LowRank {
    first_out: usize,
    /// `[rank, n_in]`.
    a: Linear,
    /// `[n_out, rank]`.
    b: Linear,
}

impl LowRank {
    /// A change to the outputs from `first_out` on, with a scaling that is already in b.
    ///
    /// Shapes: a `[rank, n_in]`; b `[n_out, rank]`.
    ///
    /// # Panics
    /// When the ranks differ.
    #[must_use]
    pub fn new(device: &Device, dtype: DType, first_out: usize, a: &Tensor, b: &Tensor) -> Self {
        assert_eq!(a.n_rows(), b.width(), "ranks of a and b");
        let packed = |factor: &Tensor| {
            let mut linear =
                Linear::zeroed(device, dtype, factor.n_rows(), factor.width(), Passes::Forward);
            linear.pack(device, factor.view());
            linear
        };
        Self { first_out, a: packed(a), b: packed(b) }
    }

    /// A change of zeros that can be trained, until [`LowRank::pack`] gives it numbers.
    #[must_use]
    pub fn trainable(
        device: &Device,
        dtype: DType,
        first_out: usize,
        [n_in, n_out, rank]: [usize; 3],
    ) -> Self {
        let linear =
            |n_out, n_in| Linear::zeroed(device, dtype, n_out, n_in, Passes::ForwardAndBackward);
        Self { first_out, a: linear(rank, n_in), b: linear(n_out, rank) }
    }

    /// Overwrites the factors of a trainable change with f32 numbers on its device; b is multiplied with the scaling first.
    ///
    /// # Panics
    /// When a shape differs.
    pub fn pack(&mut self, device: &Device, a: View<'_>, b: View<'_>, scaling: f32) {
        self.a.pack(device, a);
        let mut scaled = Tensor::zeroed_on(device, DType::F32, b.n_rows(), b.width());
        ops::scale(device, b, scaling, scaled.view_mut());
        self.b.pack(device, scaled.view());
    }

    /// Bytes that the packed factors of a change of this shape take.
    #[must_use]
    pub fn bytes_for(dtype: DType, [n_in, n_out, rank]: [usize; 3], passes: Passes) -> usize {
        let linear = |n_out, n_in| Linear::bytes_for(dtype, n_out, n_in, passes);
        linear(rank, n_in) + linear(n_out, rank)
    }

    /// Bytes that the packed factors hold.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        self.a.n_bytes() + self.b.n_bytes()
    }

    /// Adds the change. Shapes: x `[tokens, n_in]` in the number type of the change, or f32; y `[tokens, outputs of the layer]`, f32 or in
    /// that type. Numerics: sums in f32; the inner ones are rounded to the number type before they are multiplied, and a y of that type
    /// once more for each change.
    ///
    /// # Panics
    /// When a shape or number type does not fit, or the scratch is too small.
    pub fn add(
        &self,
        device: &Device,
        x: View<'_>,
        y: ViewMut<'_>,
        scratch: &mut LowRankScratch,
        operands: &mut OperandScratch,
    ) {
        let LowRankScratch { inner } = scratch;
        inner.set_shape(x.n_rows(), self.b.n_in());
        self.a.forward(device, x, inner.view_mut(), Write::Overwrite, operands);
        let write = Write::Accumulate;
        self.b.forward_columns(device, inner.view(), y, self.first_out, write, operands);
    }

    /// Gradient of the input: `d_inner[t, r] = sum_o d_y[t, first + o] b[o, r]`, which stays in the scratch, and
    /// `d_x[t, i] (+)= sum_r d_inner[t, r] a[r, i]`, where that is wanted.
    ///
    /// Shapes: d_y `[tokens, outputs of the layer]` in the number type of the change; d_x `[tokens, n_in]` f32 or of that
    /// type. Numerics: sums in f32; d_inner is rounded to the number type before it is multiplied; a d_x of that type is rounded
    /// once more for each product that is added.
    ///
    /// # Panics
    /// When a shape or number type does not fit, or the change is not trainable.
    pub fn backward_input(
        &self,
        device: &Device,
        d_y: View<'_>,
        d_x: Option<(ViewMut<'_>, Write)>,
        scratch: &mut LowRankGradients,
    ) {
        scratch.set_shape(d_y.n_rows(), self.b.n_in());
        let LowRankGradients { d_inner, .. } = scratch;
        let (out, overwrite) = (d_inner.view_mut(), Write::Overwrite);
        self.b.backward_input_columns(device, d_y, self.first_out, out, overwrite);
        if let Some((d_x, write)) = d_x {
            self.a.backward_input_columns(device, d_inner.view(), 0, d_x, write);
        }
    }

    /// Gradients of the factors, b without its scaling, after [`LowRank::backward_input`] of the same d_y:
    /// `d_a[r, i] += sum_t d_inner[t, r] x[t, i]` and `d_b[o, r] += scaling sum_t d_y[t, first + o] sum_i x[t, i] a[r, i]`.
    ///
    /// Shapes: x `[tokens, n_in]` and d_y in the number type of the change; d_a, d_b f32, as the factors. Numerics: sums in f32; the
    /// inner sum is multiplied with the scaling, then rounded to the number type.
    ///
    /// # Panics
    /// When a shape or number type does not fit, or a scratch is too small.
    pub fn backward_factors(
        &self,
        device: &Device,
        (x, d_y): (View<'_>, View<'_>),
        scaling: f32,
        [d_a, d_b]: [ViewMut<'_>; 2],
        scratch: &mut LowRankGradients,
        weights: &mut LinearScratch,
    ) {
        let LowRankGradients { sums, inner, d_inner } = scratch;
        weights.backward_weight(device, d_inner.view(), x, d_a);
        let none = &mut OperandScratch::none();
        self.a.forward(device, x, sums.view_mut(), Write::Overwrite, none);
        ops::scale(device, sums.view(), scaling, inner.view_mut());
        weights.backward_weight_columns(device, d_y, self.first_out, inner.view(), d_b);
    }
}

/// Working memory of changes.
#[derive(Debug)]
pub struct LowRankScratch {
    /// In the number type of the changes, `[tokens, rank]`.
    inner: Tensor,
}

impl LowRankScratch {
    /// Room for up to `max_rows` tokens and changes of up to `max_rank`.
    #[must_use]
    pub fn new(device: &Device, dtype: DType, max_rows: usize, max_rank: usize) -> Self {
        Self { inner: Tensor::zeroed_on(device, dtype, max_rows, max_rank) }
    }

    /// Bytes of [`LowRankScratch::new`] where the processors compute.
    #[must_use]
    pub fn bytes_for(dtype: DType, max_rows: usize, max_rank: usize) -> usize {
        max_rows * max_rank * dtype.bytes()
    }

    /// Bytes that it holds.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        self.inner.n_bytes()
    }
}

/// Working memory of the backward pass of changes.
#[derive(Debug)]
pub struct LowRankGradients {
    /// f32 `[tokens, rank]`.
    sums: Tensor,
    /// Products of x and a, with the scaling, in the number type of the changes.
    inner: Tensor,
    /// Their gradient, in the same type.
    d_inner: Tensor,
}

impl LowRankGradients {
    /// Room for up to `max_rows` tokens and changes of up to `max_rank`.
    #[must_use]
    pub fn new(device: &Device, dtype: DType, max_rows: usize, max_rank: usize) -> Self {
        let zeroed = |dtype| Tensor::zeroed_on(device, dtype, max_rows, max_rank);
        Self { sums: zeroed(DType::F32), inner: zeroed(dtype), d_inner: zeroed(dtype) }
    }

    /// Bytes of [`LowRankGradients::new`].
    #[must_use]
    pub fn bytes_for(dtype: DType, max_rows: usize, max_rank: usize) -> usize {
        max_rows * max_rank * (size_of::<f32>() + 2 * dtype.bytes())
    }

    /// Bytes that it holds.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        let Self { sums, inner, d_inner } = self;
        [sums, inner, d_inner].map(Tensor::n_bytes).into_iter().sum()
    }

    fn set_shape(&mut self, n_rows: usize, rank: usize) {
        let Self { sums, inner, d_inner } = self;
        [sums, inner, d_inner].into_iter().for_each(|tensor| tensor.set_shape(n_rows, rank));
    }
}

#[cfg(test)]
mod tests {
    use kernels::{Compute, Family};

    use super::*;

    #[test]
    fn a_change_reaches_its_outputs_and_no_others() {
        let device = Device::Cpu(Compute::forced(Family::Reference, 1).unwrap());
        let a = Tensor::from_f32(&[1.0, 2.0, 3.0, 0.0, -1.0, 0.0, 1.0, 0.0], 4);
        let b = Tensor::from_f32(&[1.0, 0.0, 2.0, 1.0], 2);
        let x = Tensor::from_f32(&[1.0, 1.0, 1.0, 0.0, 2.0, 0.0, -1.0, 0.0], 4);
        let mut y = Tensor::from_f32(&[10.0; 10], 5);
        for dtype in [DType::F32, DType::Bf16] {
            let mut operand = Tensor::zeroed(dtype, 2, 4);
            ops::convert(&device, x.view(), operand.view_mut());
            let change = LowRank::new(&device, dtype, 2, &a, &b);
            let mut scratch = LowRankScratch::new(&device, dtype, 4, 6);
            y.f32_mut().fill(10.0);
            let none = &mut OperandScratch::none();
            change.add(&device, operand.view(), y.view_mut(), &mut scratch, none);
            // a x: (6, 0) and (-1, -3); b (a x): (6, 12) and (-1, -5).
            let expected = [10.0, 10.0, 16.0, 22.0, 10.0, 10.0, 10.0, 9.0, 5.0, 10.0];
            assert_eq!(y.f32(), expected, "{dtype:?}");
            // An output of the type of the change.
            let mut narrow = Tensor::zeroed(dtype, 2, 5);
            change.add(&device, operand.view(), narrow.view_mut(), &mut scratch, none);
            let mut wide = Tensor::zeroed(DType::F32, 2, 5);
            ops::convert(&device, narrow.view(), wide.view_mut());
            assert_eq!(wide.f32(), expected.map(|x| x - 10.0), "{dtype:?}");
        }
    }

    /// Of numbers whose sums are exact in bf16 too.
    #[test]
    fn gradients_are_those_of_the_formula() {
        let device = Device::Cpu(Compute::forced(Family::Reference, 1).unwrap());
        let a = Tensor::from_f32(&[1.0, 2.0, 0.0, -1.0, -1.0, 0.0, 1.0, 0.0], 4);
        let b = Tensor::from_f32(&[1.0, 0.0, 2.0, 1.0], 2);
        let x = Tensor::from_f32(&[1.0, 1.0, 1.0, 0.0, 2.0, 0.0, -1.0, 0.0], 4);
        // Columns 2 and 3 are those of the change.
        let mut d_y = Tensor::from_f32(&[9.0; 12], 6);
        d_y.f32_mut()[2..4].copy_from_slice(&[1.0, 2.0]);
        d_y.f32_mut()[8..10].copy_from_slice(&[-1.0, 0.0]);
        for dtype in [DType::F32, DType::Bf16] {
            let operand = |of: &Tensor| {
                let mut operand = Tensor::zeroed(dtype, of.n_rows(), of.width());
                ops::convert(&device, of.view(), operand.view_mut());
                operand
            };
            let (x, d_y) = (operand(&x), operand(&d_y));
            let mut change = LowRank::trainable(&device, dtype, 2, [4, 2, 2]);
            change.pack(&device, a.view(), b.view(), 0.5);
            let planned = LowRank::bytes_for(dtype, [4, 2, 2], Passes::ForwardAndBackward);
            assert_eq!(change.n_bytes(), planned);
            let mut scratch = LowRankGradients::new(&device, dtype, 3, 4);
            assert_eq!(scratch.n_bytes(), LowRankGradients::bytes_for(dtype, 3, 4));
            let mut weights = LinearScratch::new(&device, dtype, 3, 4);
            let mut d_x = Tensor::from_f32(&[100.0; 8], 4);
            let mut d_a = Tensor::from_f32(&[10.0; 8], 4);
            let mut d_b = Tensor::from_f32(&[20.0; 4], 2);
            let written = Some((d_x.view_mut(), Write::Accumulate));
            change.backward_input(&device, d_y.view(), written, &mut scratch);
            let gradients = [d_a.view_mut(), d_b.view_mut()];
            let operands = (x.view(), d_y.view());
            change.backward_factors(&device, operands, 0.5, gradients, &mut scratch, &mut weights);
            // b halved: (0.5, 0) and (1, 0.5); d_inner: (2.5, 1) and (-0.5, 0).
            let expected = [101.5, 105.0, 101.0, 97.5, 99.5, 99.0, 100.0, 100.5];
            assert_eq!(d_x.f32(), expected, "{dtype:?}");
            // d_inner^T x.
            let expected = [11.5, 12.5, 13.0, 10.0, 11.0, 11.0, 11.0, 10.0];
            assert_eq!(d_a.f32(), expected, "{dtype:?}");
            // x a^T: (3, 0) and (2, -3), halved; d_y^T of it.
            assert_eq!(d_b.f32(), [20.5, 21.5, 23.0, 20.0], "{dtype:?}");
        }
    }
}
