//! Memory of a GPU, and matrices in it.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::NonNull;

use half::bf16;

use crate::driver::{self, Address};
use crate::error::CudaError;
use crate::gpu::Gpu;
use crate::staging::copy_to_device;

/// Numbers that are copied to and from a GPU byte by byte: types without padding, of which every pattern of bits is a value.
pub(crate) trait Plain: Copy + Default {}

macro_rules! plain {
    ($($number:ty)*) => { $(impl Plain for $number {})* };
}
plain!(u8 u32 u64 f32 f64 bf16);

/// Some memory of a GPU. It is given back, when dropped, after what was asked of the GPU before.
pub(crate) struct Memory {
    gpu: Gpu,
    /// 0 where there are no bytes.
    address: Address,
    n_bytes: usize,
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} bytes on a GPU", self.n_bytes)
    }
}

#[expect(unsafe_code, reason = "calls of the driver")]
impl Memory {
    pub(crate) fn new(gpu: &Gpu, n_bytes: usize) -> Self {
        let mut address = 0;
        if n_bytes > 0 {
            // SAFETY: a pointer to a local variable, an open stream.
            let status =
                unsafe { (gpu.driver().allocate)(&raw mut address, n_bytes, gpu.stream()) };
            if status == driver::OUT_OF_MEMORY {
                has_no_room(gpu, n_bytes);
            }
            gpu.expect("cuMemAllocAsync", status);
            gpu.count_taken(n_bytes);
        }
        Self { gpu: gpu.clone(), address, n_bytes }
    }

    /// Where it begins; 0 where there are no bytes.
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    /// Its bytes.
    pub(crate) fn n_bytes(&self) -> usize {
        self.n_bytes
    }

    /// Copies values from its start on, and waits for them.
    ///
    /// # Panics
    /// When it is too small.
    pub(crate) fn read<T: Plain>(&self, out: &mut [T]) {
        assert!(size_of_val(out) <= self.n_bytes, "reading past {} bytes", self.n_bytes);
        copy_to_host(&self.gpu, self.address, out);
    }

    /// Overwrites its start.
    ///
    /// # Panics
    /// When it is too small.
    pub(crate) fn write<T: Plain>(&self, values: &[T]) {
        assert!(size_of_val(values) <= self.n_bytes, "writing past {} bytes", self.n_bytes);
        copy_to_device(&self.gpu, values, self.address);
    }

    /// Sets every byte.
    pub(crate) fn fill(&self, byte: u8) {
        fill(&self.gpu, self.address, self.n_bytes, byte);
    }
}

#[expect(unsafe_code, reason = "calls of the driver")]
impl Drop for Memory {
    fn drop(&mut self) {
        if self.address != 0 {
            // SAFETY: the address was allocated on this stream and is not used by later calls. A failure here follows one
            // that a later call reports.
            let _status = unsafe { (self.gpu.driver().free)(self.address, self.gpu.last_stream()) };
            self.gpu.count_given_back(self.n_bytes);
        }
    }
}

thread_local! {
    /// Whether this thread is in [`out_of_memory_as_error`].
    static IS_CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// Does work that takes memory of a GPU. What was taken when there is no room for more is given back.
///
/// # Errors
/// [`CudaError::OutOfMemory`]; without this function it is a panic.
pub fn out_of_memory_as_error<T>(work: impl FnOnce() -> T) -> Result<T, CudaError> {
    let is_outermost = !IS_CAUGHT.replace(true);
    // What the work had in its hands is dropped or, in the callers, not used after an error.
    let outcome = catch_unwind(AssertUnwindSafe(work));
    IS_CAUGHT.set(!is_outermost);
    outcome.or_else(|panic| match panic.downcast() {
        Ok(error) => Err(*error),
        Err(panic) => resume_unwind(panic),
    })
}

fn has_no_room(gpu: &Gpu, needed_bytes: usize) -> ! {
    let error = CudaError::OutOfMemory { needed_bytes, free_bytes: gpu.free_bytes() };
    if IS_CAUGHT.get() {
        resume_unwind(Box::new(error));
    }
    panic!("{error}");
}

#[expect(unsafe_code, reason = "calls of the driver")]
fn copy_to_host<T: Plain>(gpu: &Gpu, address: Address, out: &mut [T]) {
    if !out.is_empty() {
        // SAFETY: the slice lives until the stream was waited for; every pattern of bits is a value of its type.
        let status = unsafe {
            (gpu.driver().copy_to_host)(
                out.as_mut_ptr().cast(),
                address,
                size_of_val(out),
                gpu.stream(),
            )
        };
        gpu.expect("cuMemcpyDtoHAsync", status);
    }
    gpu.synchronize();
}

#[expect(unsafe_code, reason = "calls of the driver")]
fn fill(gpu: &Gpu, address: Address, n_bytes: usize, byte: u8) {
    if n_bytes > 0 {
        // SAFETY: the caller's bytes are all within one allocation.
        let status = unsafe { (gpu.driver().set_bytes)(address, byte, n_bytes, gpu.stream()) };
        gpu.expect("cuMemsetD8Async", status);
    }
}

/// Numbers in this machine's memory that a GPU writes by itself, several times as fast as where the driver copies them. There is room
/// for the most that were asked for so far, up to the next power of two: to make it takes milliseconds.
#[derive(Default)]
pub struct PinnedNumbers {
    room: Option<PinnedMemory>,
}

impl PinnedNumbers {
    /// Bytes that they take.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        self.room.as_ref().map_or(0, |room| room.n_values * size_of::<f32>())
    }

    /// The numbers of a matrix of f32. Waits.
    ///
    /// # Panics
    /// When the matrix is of another type.
    pub fn read(&mut self, matrix: Matrix<'_>) -> &[f32] {
        let n_values = matrix.n_values();
        if self.room.as_ref().map_or(0, |room| room.n_values) < n_values {
            // The old ones go first, or both would be in memory for a moment.
            self.room = None;
            let room = n_values.next_power_of_two();
            self.room = Some(PinnedMemory::zeroed(matrix.gpu, room));
        }
        let values = self.room.as_mut().map_or(&mut [][..], PinnedMemory::values_mut);
        let values = &mut values[..n_values];
        matrix.read_f32(values);
        values
    }
}

impl std::fmt::Debug for PinnedNumbers {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} pinned bytes", self.n_bytes())
    }
}

struct PinnedMemory {
    gpu: Gpu,
    values: NonNull<f32>,
    n_values: usize,
}

// SAFETY: it owns its memory, which every thread may use and free once the context is current there (`Gpu::driver`).
#[expect(unsafe_code, reason = "memory of the driver is a pointer")]
unsafe impl Send for PinnedMemory {}
// SAFETY: as above; what is shared is only read.
#[expect(unsafe_code, reason = "memory of the driver is a pointer")]
unsafe impl Sync for PinnedMemory {}

#[expect(unsafe_code, reason = "calls of the driver, and the memory that they give")]
impl PinnedMemory {
    /// At least one number.
    fn zeroed(gpu: &Gpu, n_values: usize) -> Self {
        let values = gpu.pinned_bytes(n_values * size_of::<f32>()).cast::<f32>();
        // SAFETY: the driver gave that many bytes, aligned to a page, or as `malloc` aligns.
        unsafe { values.write_bytes(0, n_values) };
        Self { gpu: gpu.clone(), values, n_values }
    }

    fn values_mut(&mut self) -> &mut [f32] {
        // SAFETY: as many numbers, set when they were allocated, which nothing else refers to. The GPU writes them only while
        // `copy_to_host` waits; where they are copied to the GPU, that is done before it writes them again or they are freed.
        unsafe { std::slice::from_raw_parts_mut(self.values.as_ptr(), self.n_values) }
    }
}

#[expect(unsafe_code, reason = "calls of the driver")]
impl Drop for PinnedMemory {
    fn drop(&mut self) {
        let driver = self.gpu.driver();
        // SAFETY: the stream is open; the memory was allocated by its counterpart, is not used after this, and after the stream
        // was waited for not by the GPU either. A failure here follows one that a later call reports.
        unsafe {
            let _status = (driver.synchronize_stream)(self.gpu.last_stream());
            let _status = (driver.free_on_host)(self.values.as_ptr().cast());
        }
    }
}

/// Type of the numbers of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NumberType {
    /// 32-bit floating point.
    F32,
    /// bfloat16.
    Bf16,
}

impl NumberType {
    /// Bytes of one number.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    /// How names of kernels end.
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

/// A matrix `[rows, width]` on a GPU.
#[derive(Debug)]
pub struct DeviceMatrix {
    memory: Memory,
    number_type: NumberType,
    n_rows: usize,
    width: usize,
}

impl DeviceMatrix {
    /// A matrix without values.
    #[must_use]
    pub fn uninitialised(gpu: &Gpu, number_type: NumberType, n_rows: usize, width: usize) -> Self {
        let n = n_rows.checked_mul(width).and_then(|n| n.checked_mul(number_type.bytes()));
        let memory = gpu.memory(n.expect("the number of bytes fits usize"));
        Self { memory, number_type, n_rows, width }
    }

    /// A matrix of zeros.
    #[must_use]
    pub fn zeroed(gpu: &Gpu, number_type: NumberType, n_rows: usize, width: usize) -> Self {
        let matrix = Self::uninitialised(gpu, number_type, n_rows, width);
        matrix.memory.fill(0);
        matrix
    }

    /// A matrix of NaN, so that a value which nothing wrote is seen.
    pub(crate) fn poisoned(
        gpu: &Gpu,
        number_type: NumberType,
        n_rows: usize,
        width: usize,
    ) -> Self {
        let matrix = Self::uninitialised(gpu, number_type, n_rows, width);
        matrix.memory.fill(0xff);
        matrix
    }

    /// A matrix of these values, rounded to the number type.
    ///
    /// # Panics
    /// When the values do not make whole rows.
    #[must_use]
    pub fn of_f32(gpu: &Gpu, number_type: NumberType, values: &[f32], width: usize) -> Self {
        assert!(values.len().is_multiple_of(width), "{} values in rows of {width}", values.len());
        let memory = match number_type {
            NumberType::F32 => gpu.upload(values),
            NumberType::Bf16 => {
                let rounded: Vec<bf16> = values.iter().map(|&x| bf16::from_f32(x)).collect();
                gpu.upload(&rounded)
            }
        };
        Self { memory, number_type, n_rows: values.len() / width, width }
    }

    /// Type of the numbers.
    #[must_use]
    pub fn number_type(&self) -> NumberType {
        self.number_type
    }

    /// All rows.
    #[must_use]
    pub fn view(&self) -> Matrix<'_> {
        self.rows(0..self.n_rows, self.width)
    }

    /// All rows, to be written.
    pub fn view_mut(&mut self) -> MatrixMut<'_> {
        MatrixMut(self.view())
    }

    /// Its memory read as rows of another width.
    ///
    /// # Panics
    /// When there are not so many.
    #[must_use]
    pub fn rows(&self, rows: Range<usize>, width: usize) -> Matrix<'_> {
        let row_bytes = width * self.number_type.bytes();
        assert!(rows.start <= rows.end && rows.end * row_bytes <= self.memory.n_bytes());
        Matrix {
            address: self.memory.address() + (rows.start * row_bytes) as u64,
            number_type: self.number_type,
            n_rows: rows.len(),
            width,
            gpu: &self.memory.gpu,
            memory: PhantomData,
        }
    }

    /// As [`DeviceMatrix::rows`], to be written.
    ///
    /// # Panics
    /// As [`DeviceMatrix::rows`].
    pub fn rows_mut(&mut self, rows: Range<usize>, width: usize) -> MatrixMut<'_> {
        MatrixMut(self.rows(rows, width))
    }

    /// Bytes of its memory.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        self.memory.n_bytes()
    }

    /// A copy of all rows, widened. Waits.
    #[must_use]
    pub fn to_f32(&self) -> Vec<f32> {
        self.view().to_f32()
    }
}

impl Clone for DeviceMatrix {
    fn clone(&self) -> Self {
        let gpu = &self.memory.gpu;
        let mut copy = Self::uninitialised(gpu, self.number_type, self.n_rows, self.width);
        self.view().copy_to(copy.view_mut());
        copy
    }
}

/// Rows of a matrix on a GPU.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    address: Address,
    number_type: NumberType,
    n_rows: usize,
    width: usize,
    gpu: &'a Gpu,
    memory: PhantomData<&'a DeviceMatrix>,
}

impl Matrix<'_> {
    /// Where the first row begins.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Type of the numbers.
    #[must_use]
    pub fn number_type(&self) -> NumberType {
        self.number_type
    }

    /// Rows.
    #[must_use]
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Numbers in a row.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Numbers in all rows.
    #[must_use]
    pub fn n_values(&self) -> usize {
        self.n_rows * self.width
    }

    /// Bytes of all rows.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        self.n_values() * self.number_type.bytes()
    }

    /// A copy, widened. Waits.
    #[must_use]
    pub fn to_f32(&self) -> Vec<f32> {
        match self.number_type {
            NumberType::F32 => {
                let mut values = vec![0.0; self.n_values()];
                self.read_f32(&mut values);
                values
            }
            NumberType::Bf16 => {
                let mut values = vec![bf16::ZERO; self.n_values()];
                copy_to_host(self.gpu, self.address, &mut values);
                values.iter().map(|x| x.to_f32()).collect()
            }
        }
    }

    /// Copies f32 numbers. Waits.
    ///
    /// # Panics
    /// When the numbers are of another type or count.
    pub fn read_f32(&self, out: &mut [f32]) {
        assert_eq!(self.number_type, NumberType::F32, "type of the numbers");
        assert_eq!(out.len(), self.n_values(), "numbers to be read");
        copy_to_host(self.gpu, self.address, out);
    }

    /// Copies the numbers to another matrix of the same type and count.
    ///
    /// # Panics
    /// When they differ.
    #[expect(unsafe_code, reason = "calls of the driver")]
    pub fn copy_to(&self, out: MatrixMut<'_>) {
        assert_eq!(self.number_type, out.number_type(), "types of the numbers");
        assert_eq!(self.n_values(), out.n_values(), "counts of the numbers");
        if self.n_values() > 0 {
            // SAFETY: both views are of open allocations with room for their bytes.
            let status = unsafe {
                (self.gpu.driver().copy_on_device)(
                    out.address(),
                    self.address,
                    self.n_bytes(),
                    self.gpu.stream(),
                )
            };
            self.gpu.expect("cuMemcpyDtoDAsync", status);
        }
    }
}

/// Rows of a matrix on a GPU, to be written.
#[derive(Debug)]
pub struct MatrixMut<'a>(Matrix<'a>);

impl MatrixMut<'_> {
    /// The same rows, to be read.
    #[must_use]
    pub fn as_ref(&self) -> Matrix<'_> {
        self.0
    }

    /// The same rows for a shorter time.
    pub fn reborrow(&mut self) -> MatrixMut<'_> {
        MatrixMut(self.0)
    }

    /// One of the rows.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn row_mut(&mut self, row: usize) -> MatrixMut<'_> {
        assert!(row < self.n_rows(), "row {row} of {}", self.n_rows());
        let row_bytes = self.width() * self.number_type().bytes();
        let address = self.0.address + (row * row_bytes) as u64;
        MatrixMut(Matrix { address, n_rows: 1, ..self.0 })
    }

    /// Where the first row begins.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.0.address
    }

    /// Type of the numbers.
    #[must_use]
    pub fn number_type(&self) -> NumberType {
        self.0.number_type
    }

    /// Rows.
    #[must_use]
    pub fn n_rows(&self) -> usize {
        self.0.n_rows
    }

    /// Numbers in a row.
    #[must_use]
    pub fn width(&self) -> usize {
        self.0.width
    }

    /// Numbers in all rows.
    #[must_use]
    pub fn n_values(&self) -> usize {
        self.0.n_values()
    }

    /// Overwrites all rows with f32 numbers, rounded to the number type.
    ///
    /// # Panics
    /// When they are not as many.
    pub fn write_f32(&mut self, values: &[f32]) {
        assert_eq!(values.len(), self.n_values(), "numbers to be written");
        match self.0.number_type {
            NumberType::F32 => copy_to_device(self.0.gpu, values, self.0.address),
            NumberType::Bf16 => {
                let rounded: Vec<bf16> = values.iter().map(|&x| bf16::from_f32(x)).collect();
                copy_to_device(self.0.gpu, &rounded, self.0.address);
            }
        }
    }

    /// Overwrites all rows with zeros.
    pub fn clear(&mut self) {
        fill(self.0.gpu, self.0.address, self.0.n_bytes(), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::library::LibraryPath;

    #[test]
    fn memory_that_is_not_there_is_an_error_where_that_is_asked_for() {
        let Some(directory) = testkit::cuda_emulator::directory() else { return };
        let gpu = Gpu::open(&LibraryPath::new(Some(directory))).unwrap();
        let (some, all) = (1 << 20, gpu.description().memory_bytes);
        let take = || {
            let _some = gpu.memory(some);
            gpu.memory(all)
        };
        let error = out_of_memory_as_error(take).unwrap_err();
        let CudaError::OutOfMemory { needed_bytes, free_bytes } = error else { panic!("{error}") };
        assert_eq!(needed_bytes, all);
        assert!(free_bytes <= all - some, "{free_bytes} of {all}");
        // What was taken before was given back, and the next is a panic again.
        assert_eq!([gpu.used_bytes(), gpu.most_used_bytes()], [0, some]);
        let panic = catch_unwind(AssertUnwindSafe(take)).unwrap_err();
        let said = panic.downcast_ref::<String>().expect("words");
        assert!(said.starts_with("the GPU has no room for 1073741824 bytes more"), "{said}");
        // Other panics stay what they are.
        let other = || out_of_memory_as_error(|| panic!("another"));
        let panic = catch_unwind(AssertUnwindSafe(other)).unwrap_err();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"another"));
    }
}
