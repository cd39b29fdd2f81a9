//! Low-rank changes to linear layers (LoRA), computed beside the weight, which may be quantised and stays as it is.

use kernels::matmul::Write;

use crate::linear::{Linear, OperandScratch, Passes};
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

    /// Bytes that the packed factors of a change of this shape take.
    #[must_use]
    pub fn bytes_for(dtype: DType, n_in: usize, n_out: usize, rank: usize) -> usize {
        let linear = |n_out, n_in| Linear::bytes_for(dtype, n_out, n_in, Passes::Forward);
        linear(rank, n_in) + linear(n_out, rank)
    }

    /// Bytes that the packed factors hold.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        self.a.n_bytes() + self.b.n_bytes()
    }

    /// Adds the change. Shapes: x `[tokens, n_in]` in the number type of the change, or f32; y f32 `[tokens, outputs of the layer]`.
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
        let LowRankScratch { sums, rounded } = scratch;
        let rank = self.b.n_in();
        for tensor in [&mut *sums, &mut *rounded] {
            tensor.set_shape(x.n_rows(), rank);
        }
        self.a.forward(device, x, sums.view_mut(), Write::Overwrite, operands);
        ops::convert(device, sums.view(), rounded.view_mut());
        let (x, write) = (rounded.view(), Write::Accumulate);
        self.b.forward_columns(device, x, y, self.first_out, write, operands);
    }
}

/// Working memory of changes.
#[derive(Debug)]
pub struct LowRankScratch {
    /// As products give it, `[tokens, rank]`.
    sums: Tensor,
    /// In the number type of the changes.
    rounded: Tensor,
}

impl LowRankScratch {
    /// Room for up to `max_rows` tokens and changes of up to `max_rank`.
    #[must_use]
    pub fn new(device: &Device, dtype: DType, max_rows: usize, max_rank: usize) -> Self {
        Self {
            sums: Tensor::zeroed_on(device, device.product_dtype(dtype), max_rows, max_rank),
            rounded: Tensor::zeroed_on(device, dtype, max_rows, max_rank),
        }
    }

    /// Bytes of [`LowRankScratch::new`].
    #[must_use]
    pub fn bytes_for(dtype: DType, max_rows: usize, max_rank: usize) -> usize {
        max_rows * max_rank * (size_of::<f32>() + dtype.bytes())
    }

    /// Bytes that it holds.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        self.sums.n_bytes() + self.rounded.n_bytes()
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
        }
    }
}
