//! Number types, tensors and views of their rows.

use std::ops::Range;

use half::bf16;
use kernels::{Buffer, Operand};

/// Type of a tensor's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit floating point.
    F32,
    /// bfloat16: the upper half of an f32.
    Bf16,
}

impl DType {
    /// Bytes of one number.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

#[derive(Clone, Debug)]
enum Storage {
    F32(Buffer<f32>),
    Bf16(Buffer<bf16>),
}

/// A matrix `[rows, width]` with room for a fixed number of rows, of which the first some are in use.
#[derive(Clone, Debug)]
pub struct Tensor {
    n_rows: usize,
    width: usize,
    storage: Storage,
}

impl Tensor {
    /// A tensor of zeros, all of its `max_rows` rows in use.
    #[must_use]
    pub fn zeroed(dtype: DType, max_rows: usize, width: usize) -> Self {
        let len = max_rows.checked_mul(width).expect("the number of values fits usize");
        let storage = match dtype {
            DType::F32 => Storage::F32(Buffer::zeroed(len)),
            DType::Bf16 => Storage::Bf16(Buffer::zeroed(len)),
        };
        Self { n_rows: max_rows, width, storage }
    }

    /// An f32 tensor holding `values`, `[rows, width]`.
    ///
    /// # Panics
    /// When the values do not make whole rows.
    #[must_use]
    pub fn from_f32(values: &[f32], width: usize) -> Self {
        assert!(values.len().is_multiple_of(width), "{} values in rows of {width}", values.len());
        let n_rows = values.len() / width;
        Self { n_rows, width, storage: Storage::F32(Buffer::from_slice(values)) }
    }

    /// Type of the numbers.
    #[must_use]
    pub fn dtype(&self) -> DType {
        match self.storage {
            Storage::F32(_) => DType::F32,
            Storage::Bf16(_) => DType::Bf16,
        }
    }

    /// Rows in use.
    #[must_use]
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Numbers in a row.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows that there is room for.
    #[must_use]
    pub fn max_rows(&self) -> usize {
        let len = match &self.storage {
            Storage::F32(values) => values.len(),
            Storage::Bf16(values) => values.len(),
        };
        len / self.width.max(1)
    }

    /// Bytes that it holds, for all the rows that there is room for.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        match &self.storage {
            Storage::F32(values) => size_of_val::<[f32]>(values),
            Storage::Bf16(values) => size_of_val::<[bf16]>(values),
        }
    }

    /// Uses the first `n_rows` rows from now on; their values are kept.
    ///
    /// # Panics
    /// When there is no room for them.
    pub fn set_rows(&mut self, n_rows: usize) {
        assert!(n_rows <= self.max_rows(), "{n_rows} rows in a tensor for {}", self.max_rows());
        self.n_rows = n_rows;
    }

    /// Uses `n_rows` rows of `width` numbers from now on, which have no values until they are written.
    ///
    /// # Panics
    /// When there is no room for them.
    pub fn set_shape(&mut self, n_rows: usize, width: usize) {
        self.width = width;
        self.set_rows(n_rows);
    }

    /// The rows in use.
    #[must_use]
    pub fn view(&self) -> View<'_> {
        self.rows(0..self.n_rows)
    }

    /// Some of the rows in use.
    #[must_use]
    pub fn rows(&self, rows: Range<usize>) -> View<'_> {
        assert!(rows.end <= self.n_rows, "rows {rows:?} of {}", self.n_rows);
        let range = rows.start * self.width..rows.end * self.width;
        let width = self.width;
        match &self.storage {
            Storage::F32(values) => View::F32 { values: &values[range], width },
            Storage::Bf16(values) => View::Bf16 { values: &values[range], width },
        }
    }

    /// The rows in use, to be written.
    pub fn view_mut(&mut self) -> ViewMut<'_> {
        self.rows_mut(0..self.n_rows)
    }

    /// Some of the rows in use, to be written.
    pub fn rows_mut(&mut self, rows: Range<usize>) -> ViewMut<'_> {
        assert!(rows.end <= self.n_rows, "rows {rows:?} of {}", self.n_rows);
        let range = rows.start * self.width..rows.end * self.width;
        let width = self.width;
        match &mut self.storage {
            Storage::F32(values) => ViewMut::F32 { values: &mut values[range], width },
            Storage::Bf16(values) => ViewMut::Bf16 { values: &mut values[range], width },
        }
    }

    /// Overwrites row `to` with row `from`.
    ///
    /// # Panics
    /// When one of them is not in use.
    pub fn copy_row(&mut self, from: usize, to: usize) {
        let n_rows = self.n_rows;
        assert!(from < n_rows && to < n_rows, "rows {from} and {to} of {n_rows}");
        let (range, to) = (from * self.width..(from + 1) * self.width, to * self.width);
        match &mut self.storage {
            Storage::F32(values) => values.copy_within(range, to),
            Storage::Bf16(values) => values.copy_within(range, to),
        }
    }

    /// The numbers of an f32 tensor's rows in use.
    ///
    /// # Panics
    /// When the tensor is not f32.
    #[must_use]
    pub fn f32(&self) -> &[f32] {
        self.view().f32()
    }

    /// The numbers of an f32 tensor's rows in use, to be written.
    ///
    /// # Panics
    /// When the tensor is not f32.
    pub fn f32_mut(&mut self) -> &mut [f32] {
        self.view_mut().f32()
    }

    /// A copy of the rows in use, widened.
    #[must_use]
    pub fn to_f32(&self) -> Vec<f32> {
        match self.view() {
            View::F32 { values, .. } => values.to_vec(),
            View::Bf16 { values, .. } => values.iter().map(|x| x.to_f32()).collect(),
        }
    }
}

/// Some rows of a tensor.
#[derive(Clone, Copy, Debug)]
pub enum View<'a> {
    /// Rows of f32.
    F32 {
        /// `[rows, width]`.
        values: &'a [f32],
        /// Numbers in a row.
        width: usize,
    },
    /// Rows of bf16.
    Bf16 {
        /// `[rows, width]`.
        values: &'a [bf16],
        /// Numbers in a row.
        width: usize,
    },
}

impl<'a> View<'a> {
    /// Numbers in a row.
    #[must_use]
    pub fn width(self) -> usize {
        match self {
            Self::F32 { width, .. } | Self::Bf16 { width, .. } => width,
        }
    }

    /// Rows.
    #[must_use]
    pub fn n_rows(self) -> usize {
        let len = match self {
            Self::F32 { values, .. } => values.len(),
            Self::Bf16 { values, .. } => values.len(),
        };
        len / self.width().max(1)
    }

    /// The numbers, which must be f32.
    ///
    /// # Panics
    /// When they are not.
    #[must_use]
    pub fn f32(self) -> &'a [f32] {
        match self {
            Self::F32 { values, .. } => values,
            Self::Bf16 { .. } => panic!("expected an f32 tensor, got bf16"),
        }
    }

    /// The numbers, which must be of type `T`.
    pub(crate) fn of<T: NumberType>(self) -> &'a [T] {
        T::from_view(self)
    }
}

/// Some rows of a tensor, to be written.
#[derive(Debug)]
pub enum ViewMut<'a> {
    /// Rows of f32.
    F32 {
        /// `[rows, width]`.
        values: &'a mut [f32],
        /// Numbers in a row.
        width: usize,
    },
    /// Rows of bf16.
    Bf16 {
        /// `[rows, width]`.
        values: &'a mut [bf16],
        /// Numbers in a row.
        width: usize,
    },
}

impl<'a> ViewMut<'a> {
    /// Numbers in a row.
    #[must_use]
    pub fn width(&self) -> usize {
        match self {
            Self::F32 { width, .. } | Self::Bf16 { width, .. } => *width,
        }
    }

    /// Type of the numbers.
    #[must_use]
    pub fn dtype(&self) -> DType {
        match self {
            Self::F32 { .. } => DType::F32,
            Self::Bf16 { .. } => DType::Bf16,
        }
    }

    /// The numbers, which must be f32.
    ///
    /// # Panics
    /// When they are not.
    #[must_use]
    pub fn f32(self) -> &'a mut [f32] {
        match self {
            Self::F32 { values, .. } => values,
            Self::Bf16 { .. } => panic!("expected an f32 tensor, got bf16"),
        }
    }

    /// The numbers, which must be of type `T`.
    pub(crate) fn of<T: NumberType>(self) -> &'a mut [T] {
        T::from_view_mut(self)
    }
}

/// The kernels' operand types and where they are found in a view.
pub(crate) trait NumberType: Operand {
    fn from_view(view: View<'_>) -> &[Self];
    fn from_view_mut(view: ViewMut<'_>) -> &mut [Self];
}

impl NumberType for f32 {
    fn from_view(view: View<'_>) -> &[Self] {
        view.f32()
    }

    fn from_view_mut(view: ViewMut<'_>) -> &mut [Self] {
        view.f32()
    }
}

impl NumberType for bf16 {
    fn from_view(view: View<'_>) -> &[Self] {
        match view {
            View::Bf16 { values, .. } => values,
            View::F32 { .. } => panic!("expected a bf16 tensor, got f32"),
        }
    }

    fn from_view_mut(view: ViewMut<'_>) -> &mut [Self] {
        match view {
            ViewMut::Bf16 { values, .. } => values,
            ViewMut::F32 { .. } => panic!("expected a bf16 tensor, got f32"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_in_use_can_shrink_and_grow_back() {
        let mut tensor = Tensor::from_f32(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2);
        tensor.set_rows(1);
        assert_eq!(tensor.f32(), [1.0, 2.0]);
        tensor.set_rows(3);
        assert_eq!(tensor.rows(1..3).f32(), [3.0, 4.0, 5.0, 6.0]);
        assert_eq!((tensor.max_rows(), tensor.view().n_rows()), (3, 3));
    }

    #[test]
    #[should_panic(expected = "4 rows in a tensor for 3")]
    fn more_rows_than_there_is_room_for_are_refused() {
        Tensor::zeroed(DType::Bf16, 3, 2).set_rows(4);
    }
}
