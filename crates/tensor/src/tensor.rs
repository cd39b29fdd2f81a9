//! Number types, tensors and views of their rows.

use std::ops::Range;

use cuda::ops::elementwise::gather_rows;
use cuda::ops::row_numbers::RowNumbers;
use cuda::{DeviceMatrix, Matrix, MatrixMut, NumberType, PinnedNumbers};
use half::bf16;
use kernels::{Buffer, Operand};

use crate::Device;

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

    /// The type on a GPU.
    pub(crate) fn on_gpu(self) -> NumberType {
        match self {
            Self::F32 => NumberType::F32,
            Self::Bf16 => NumberType::Bf16,
        }
    }

    fn from_gpu(number: NumberType) -> Self {
        match number {
            NumberType::F32 => Self::F32,
            NumberType::Bf16 => Self::Bf16,
        }
    }
}

#[derive(Clone, Debug)]
enum Storage {
    F32(Buffer<f32>),
    Bf16(Buffer<bf16>),
    Cuda(DeviceMatrix),
}

/// A matrix `[rows, width]` with room for a fixed number of rows, of which the first some are in use.
#[derive(Clone, Debug)]
pub struct Tensor {
    n_rows: usize,
    width: usize,
    storage: Storage,
}

impl Tensor {
    /// A tensor of zeros on a device, all of its `max_rows` rows in use.
    #[must_use]
    pub fn zeroed_on(device: &Device, dtype: DType, max_rows: usize, width: usize) -> Self {
        match device {
            Device::Cpu(_) => Self::zeroed(dtype, max_rows, width),
            Device::Cuda { gpu, .. } => {
                let matrix = DeviceMatrix::zeroed(gpu, dtype.on_gpu(), max_rows, width);
                Self { n_rows: max_rows, width, storage: Storage::Cuda(matrix) }
            }
        }
    }

    /// A tensor of zeros in this machine's memory, all of its `max_rows` rows in use.
    #[must_use]
    pub fn zeroed(dtype: DType, max_rows: usize, width: usize) -> Self {
        let len = max_rows.checked_mul(width).expect("the number of values fits usize");
        let storage = match dtype {
            DType::F32 => Storage::F32(Buffer::zeroed(len)),
            DType::Bf16 => Storage::Bf16(Buffer::zeroed(len)),
        };
        Self { n_rows: max_rows, width, storage }
    }

    /// Whether it is in this machine's memory.
    #[must_use]
    pub fn is_in_memory(&self) -> bool {
        !matches!(self.storage, Storage::Cuda(_))
    }

    /// Copies the numbers of an f32 tensor's rows in use.
    ///
    /// # Panics
    /// When the tensor is not f32, or there are not as many.
    pub fn read_into(&self, out: &mut [f32]) {
        match self.view() {
            View::Cuda(rows) => rows.read_f32(out),
            here => out.copy_from_slice(here.f32()),
        }
    }

    /// Moves the rows in use to a device, where they are not there already.
    pub fn move_to(&mut self, device: &Device) {
        let empty = Self::zeroed(DType::F32, 0, 0);
        *self = std::mem::replace(self, empty).on(device);
    }

    /// The rows in use on a device: itself where it is there already, else a copy. From memory to a GPU or back.
    #[must_use]
    pub fn on(self, device: &Device) -> Self {
        match (device, &self.storage) {
            (Device::Cuda { .. }, Storage::F32(_) | Storage::Bf16(_)) => {
                let mut there = Self::zeroed_on(device, self.dtype(), self.n_rows, self.width);
                there.write_f32(&self.to_f32());
                there
            }
            (Device::Cpu(_), Storage::Cuda(_)) => {
                let mut here = Self::zeroed(self.dtype(), self.n_rows, self.width);
                here.write_f32(&self.to_f32());
                here
            }
            _ => self,
        }
    }

    /// An f32 tensor holding `values`, `[rows, width]`, in this machine's memory.
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
            Storage::Cuda(ref matrix) => DType::from_gpu(matrix.number_type()),
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
            Storage::Cuda(matrix) => matrix.n_bytes() / matrix.number_type().bytes(),
        };
        len / self.width.max(1)
    }

    /// Bytes that it holds, for all the rows that there is room for.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        match &self.storage {
            Storage::F32(values) => size_of_val::<[f32]>(values),
            Storage::Bf16(values) => size_of_val::<[bf16]>(values),
            Storage::Cuda(matrix) => matrix.n_bytes(),
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
            Storage::Cuda(matrix) => View::Cuda(matrix.rows(rows, width)),
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
            Storage::Cuda(matrix) => ViewMut::Cuda(matrix.rows_mut(rows, width)),
        }
    }

    /// Sets the rows in use to zero.
    pub fn clear(&mut self) {
        match self.view_mut() {
            ViewMut::F32 { values, .. } => values.fill(0.0),
            ViewMut::Bf16 { values, .. } => values.fill(bf16::ZERO),
            ViewMut::Cuda(mut rows) => rows.clear(),
        }
    }

    /// Overwrites the rows in use with f32 numbers, rounded to the tensor's type.
    ///
    /// # Panics
    /// When they are not as many.
    pub fn write_f32(&mut self, numbers: &[f32]) {
        match self.view_mut() {
            ViewMut::F32 { values, .. } => values.copy_from_slice(numbers),
            ViewMut::Bf16 { values, .. } => {
                assert_eq!(values.len(), numbers.len(), "numbers to be written");
                values.iter_mut().zip(numbers).for_each(|(x, &value)| *x = bf16::from_f32(value));
            }
            ViewMut::Cuda(mut rows) => rows.write_f32(numbers),
        }
    }

    /// Moves some of the rows in use to the front; ascending ones, so that none is overwritten before it moved.
    ///
    /// # Panics
    /// When one is not in use, or they do not ascend.
    pub fn keep_rows(&mut self, device: &Device, rows: &[u32]) {
        assert!(rows.is_sorted_by(|a, b| a < b), "rows ascend");
        assert!(rows.last().is_none_or(|&row| (row as usize) < self.n_rows), "rows in use");
        if rows.last().is_none_or(|&row| row as usize + 1 == rows.len()) {
            return;
        }
        let width = self.width;
        let range = |row: u32| row as usize * width..(row as usize + 1) * width;
        match &mut self.storage {
            Storage::F32(values) => {
                (0..).zip(rows).for_each(|(to, &row)| values.copy_within(range(row), to * width));
            }
            Storage::Bf16(values) => {
                (0..).zip(rows).for_each(|(to, &row)| values.copy_within(range(row), to * width));
            }
            Storage::Cuda(matrix) => {
                let all = 0..self.n_rows;
                let (gpu, number) = (device.gpu(), matrix.number_type());
                let mut kept = DeviceMatrix::uninitialised(gpu, number, rows.len(), width);
                let rows_there = matrix.rows(all, width);
                let rows = RowNumbers::new(gpu, rows);
                gather_rows(gpu, rows_there, &rows, kept.view_mut());
                kept.view().copy_to(matrix.rows_mut(0..rows.n(), width));
            }
        }
    }

    /// The numbers of an f32 tensor's rows in use: themselves where they are in this machine's memory, else a copy in `scratch`.
    ///
    /// # Panics
    /// When the tensor is not f32.
    pub fn read_f32<'a>(&'a self, scratch: &'a mut PinnedNumbers) -> &'a [f32] {
        match self.view() {
            View::Cuda(rows) => scratch.read(rows),
            here => here.f32(),
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
            View::Cuda(rows) => rows.to_f32(),
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
    /// Rows on a GPU.
    Cuda(Matrix<'a>),
}

impl<'a> View<'a> {
    /// Numbers in a row.
    #[must_use]
    pub fn width(self) -> usize {
        match self {
            Self::F32 { width, .. } | Self::Bf16 { width, .. } => width,
            Self::Cuda(rows) => rows.width(),
        }
    }

    /// Rows.
    #[must_use]
    pub fn n_rows(self) -> usize {
        let len = match self {
            Self::F32 { values, .. } => values.len(),
            Self::Bf16 { values, .. } => values.len(),
            Self::Cuda(rows) => return rows.n_rows(),
        };
        len / self.width().max(1)
    }

    /// The numbers, which must be f32 in this machine's memory.
    ///
    /// # Panics
    /// When they are not.
    #[must_use]
    pub fn f32(self) -> &'a [f32] {
        match self {
            Self::F32 { values, .. } => values,
            Self::Bf16 { .. } => panic!("expected an f32 tensor, got bf16"),
            Self::Cuda(_) => panic!("expected a tensor in memory, got one on a GPU"),
        }
    }

    /// The rows, which must be on a GPU.
    ///
    /// # Panics
    /// When they are not.
    pub(crate) fn on_gpu(self) -> Matrix<'a> {
        match self {
            Self::Cuda(rows) => rows,
            Self::F32 { .. } | Self::Bf16 { .. } => panic!("expected a tensor on the GPU"),
        }
    }

    /// The numbers, which must be of type `T`.
    pub(crate) fn of<T: HostNumber>(self) -> &'a [T] {
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
    /// Rows on a GPU.
    Cuda(MatrixMut<'a>),
}

impl<'a> ViewMut<'a> {
    /// Numbers in a row.
    #[must_use]
    pub fn width(&self) -> usize {
        match self {
            Self::F32 { width, .. } | Self::Bf16 { width, .. } => *width,
            Self::Cuda(rows) => rows.width(),
        }
    }

    /// Rows.
    #[must_use]
    pub fn n_rows(&self) -> usize {
        let len = match self {
            Self::F32 { values, .. } => values.len(),
            Self::Bf16 { values, .. } => values.len(),
            Self::Cuda(rows) => return rows.n_rows(),
        };
        len / self.width().max(1)
    }

    /// Type of the numbers.
    #[must_use]
    pub fn dtype(&self) -> DType {
        match self {
            Self::F32 { .. } => DType::F32,
            Self::Bf16 { .. } => DType::Bf16,
            Self::Cuda(rows) => DType::from_gpu(rows.number_type()),
        }
    }

    /// The same rows for a shorter time.
    pub fn reborrow(&mut self) -> ViewMut<'_> {
        match self {
            Self::F32 { values, width } => ViewMut::F32 { values, width: *width },
            Self::Bf16 { values, width } => ViewMut::Bf16 { values, width: *width },
            Self::Cuda(rows) => ViewMut::Cuda(rows.reborrow()),
        }
    }

    /// The numbers, which must be f32 in this machine's memory.
    ///
    /// # Panics
    /// When they are not.
    #[must_use]
    pub fn f32(self) -> &'a mut [f32] {
        match self {
            Self::F32 { values, .. } => values,
            Self::Bf16 { .. } => panic!("expected an f32 tensor, got bf16"),
            Self::Cuda(_) => panic!("expected a tensor in memory, got one on a GPU"),
        }
    }

    /// The rows, which must be on a GPU.
    ///
    /// # Panics
    /// When they are not.
    pub(crate) fn on_gpu(self) -> MatrixMut<'a> {
        match self {
            Self::Cuda(rows) => rows,
            Self::F32 { .. } | Self::Bf16 { .. } => panic!("expected a tensor on the GPU"),
        }
    }

    /// The numbers, which must be of type `T`.
    pub(crate) fn of<T: HostNumber>(self) -> &'a mut [T] {
        T::from_view_mut(self)
    }
}

/// The kernels' operand types and where they are found in a view.
pub(crate) trait HostNumber: Operand {
    fn from_view(view: View<'_>) -> &[Self];
    fn from_view_mut(view: ViewMut<'_>) -> &mut [Self];
}

impl HostNumber for f32 {
    fn from_view(view: View<'_>) -> &[Self] {
        view.f32()
    }

    fn from_view_mut(view: ViewMut<'_>) -> &mut [Self] {
        view.f32()
    }
}

impl HostNumber for bf16 {
    fn from_view(view: View<'_>) -> &[Self] {
        match view {
            View::Bf16 { values, .. } => values,
            View::F32 { .. } => panic!("expected a bf16 tensor, got f32"),
            View::Cuda(_) => panic!("expected a tensor in memory, got one on a GPU"),
        }
    }

    fn from_view_mut(view: ViewMut<'_>) -> &mut [Self] {
        match view {
            ViewMut::Bf16 { values, .. } => values,
            ViewMut::F32 { .. } => panic!("expected a bf16 tensor, got f32"),
            ViewMut::Cuda(_) => panic!("expected a tensor in memory, got one on a GPU"),
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
