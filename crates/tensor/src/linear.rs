//! The weight of a linear layer, packed for its passes.

use std::sync::Arc;

use cuda::ops::blocks::{
    DeviceBlocks, MAX_FEW_ROWS_OF_BLOCKS, product_few_rows_of_blocks, unpack_blocks,
};
use cuda::ops::few_rows;
use cuda::ops::row_numbers::RowNumbers;
use cuda::{DeviceMatrix, Gpu};
use half::bf16;
use kernels::blocks::{BlockKind, BlockMatrix};
use kernels::matmul::{Left, Right, Write, matmul, matmul_columns};
use kernels::packed_blocks::{self, PackedBlocks, PackedColumns};
use kernels::panels::{self, Panels, Source, panels_len};
use kernels::{Buffer, Operand, elementwise, embedding};

use crate::Device;
use crate::tensor::{DType, HostNumber, View, ViewMut};

/// Which passes a weight is packed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passes {
    /// Forward only: serving and scoring.
    Forward,
    /// Forward, and backward for the gradient of the input: training.
    ForwardAndBackward,
}

/// A weight `W [n_out, n_in]`: `y = x W^T`.
#[derive(Clone, Debug)]
pub struct Linear {
    n_out: usize,
    n_in: usize,
    packed: Packed,
}

#[derive(Clone, Debug)]
enum Packed {
    F32(PackedWeight<f32>),
    Bf16(PackedWeight<bf16>),
    /// Quantised rows, for serving and scoring; those that are not packed are rounded to the number type.
    Blocks(DType, Vec<BlockRows>),
    /// On a GPU, as it is: its products take either operand in either direction.
    Cuda(DeviceMatrix),
    /// Quantised rows on a GPU, for serving and scoring.
    CudaBlocks(DType, Vec<DeviceBlocks>),
}

/// Some rows of a weight, quantised in one kind.
#[derive(Clone, Debug)]
pub struct BlockRows {
    kind: RowKind,
    n_rows: usize,
    order: BlockOrder,
    bytes: BlockBytes,
}

#[derive(Clone, Copy, Debug)]
enum RowKind {
    Blocks(BlockKind),
    /// 8-bit floats (E4M3), times a scale.
    F8 {
        scale: f32,
    },
}

/// Where the numbers of quantised rows stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockOrder {
    /// Row after row, as in files. Products round the numbers to the type of their other operand.
    Rows,
    /// As [`kernels::packed_blocks`] packs them. Products round their other operand as the kernel family does.
    Packed,
}

/// The bytes of quantised rows.
#[derive(Clone)]
pub enum BlockBytes {
    /// Their own.
    Owned(Buffer<u8>),
    /// Of someone else, such as a mapped file.
    Shared(Arc<dyn AsRef<[u8]> + Send + Sync>),
}

impl std::fmt::Debug for BlockBytes {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} bytes", self.as_slice().len())
    }
}

impl BlockBytes {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Owned(bytes) => bytes,
            Self::Shared(bytes) => (**bytes).as_ref(),
        }
    }
}

impl BlockRows {
    /// Rows `[n_rows, n_in]` of blocks in some order; [`Linear::of_blocks`] checks their number of bytes.
    #[must_use]
    pub fn new(kind: BlockKind, n_rows: usize, order: BlockOrder, bytes: BlockBytes) -> Self {
        Self { kind: RowKind::Blocks(kind), n_rows, order, bytes }
    }

    /// Rows `[n_rows, n_in]` of 8-bit floats (E4M3) that are multiplied by a scale, for a GPU.
    #[must_use]
    pub fn of_f8(scale: f32, n_rows: usize, bytes: BlockBytes) -> Self {
        Self { kind: RowKind::F8 { scale }, n_rows, order: BlockOrder::Rows, bytes }
    }

    fn numbers(&self, n_in: usize) -> BlockNumbers<'_> {
        let RowKind::Blocks(kind) = self.kind else { panic!("8-bit floats on the processors") };
        let (bytes, shape) = (self.bytes.as_slice(), [self.n_rows, n_in]);
        match self.order {
            BlockOrder::Rows => BlockNumbers::Rows(BlockMatrix::new(kind, bytes, shape)),
            BlockOrder::Packed => BlockNumbers::Packed(PackedBlocks::new(kind, bytes, shape)),
        }
    }

    fn on_gpu(&self, gpu: &Gpu, n_in: usize) -> DeviceBlocks {
        assert_eq!(self.order, BlockOrder::Rows, "packed blocks on a GPU");
        let (bytes, shape) = (self.bytes.as_slice(), [self.n_rows, n_in]);
        match self.kind {
            RowKind::Blocks(kind) => DeviceBlocks::new(gpu, kind, bytes, shape),
            RowKind::F8 { scale } => DeviceBlocks::of_f8(gpu, scale, bytes, shape),
        }
    }
}

/// A view of quantised rows.
enum BlockNumbers<'a> {
    Rows(BlockMatrix<'a>),
    Packed(PackedBlocks<'a>),
}

/// Working memory of products whose input is not in their weight's number type: the input, rounded.
#[derive(Debug)]
pub struct OperandScratch {
    /// Rounded as the kernel family does it, for packed blocks.
    quantised: Buffer<u8>,
    /// Of an input of f32, for a weight of bf16.
    rounded: Buffer<bf16>,
}

impl OperandScratch {
    /// Room for up to `max_rows` rows of up to `max_in` numbers.
    #[must_use]
    pub fn new(max_rows: usize, max_in: usize) -> Self {
        let [quantised, rounded] = Self::lens(max_rows, max_in);
        Self { quantised: Buffer::zeroed(quantised), rounded: Buffer::zeroed(rounded) }
    }

    /// No room: for inputs in their weight's number type.
    #[must_use]
    pub fn none() -> Self {
        Self::new(0, 0)
    }

    /// Bytes of [`OperandScratch::new`].
    #[must_use]
    pub fn bytes_for(max_rows: usize, max_in: usize) -> usize {
        let [quantised, rounded] = Self::lens(max_rows, max_in);
        quantised + rounded * size_of::<bf16>()
    }

    fn lens(max_rows: usize, max_in: usize) -> [usize; 2] {
        // Packed rows are whole groups of 32; others have any width.
        [packed_blocks::rows_len([max_rows, max_in.next_multiple_of(32)]), max_rows * max_in]
    }

    /// Bytes that it holds.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        self.quantised.len() + size_of_val::<[bf16]>(&self.rounded)
    }

    fn quantised<'a>(&'a mut self, device: &Device, x: View<'_>) -> packed_blocks::Rows<'a> {
        let (compute, shape) = (device.compute(), [x.n_rows(), x.width()]);
        let n_bytes = packed_blocks::rows_len(shape);
        assert!(n_bytes <= self.quantised.len(), "no room for {shape:?} as packed blocks take it");
        let bytes = &mut self.quantised[..n_bytes];
        match x {
            View::F32 { values, .. } => packed_blocks::round_rows(compute, values, shape, bytes),
            x => packed_blocks::round_rows(compute, x.of::<bf16>(), shape, bytes),
        }
    }

    /// The input as bf16.
    fn bf16<'a>(&'a mut self, device: &Device, x: View<'a>) -> &'a [bf16] {
        match x {
            View::F32 { values, .. } => {
                assert!(values.len() <= self.rounded.len(), "no room for {} in bf16", values.len());
                let rounded = &mut self.rounded[..values.len()];
                elementwise::convert(device.compute(), values, rounded);
                rounded
            }
            x => x.of::<bf16>(),
        }
    }
}

#[derive(Clone, Debug)]
struct PackedWeight<T: Operand> {
    /// `[n_out, n_in]`.
    forward: Panels<T>,
    /// `[n_in, n_out]`, for training.
    backward: Option<Panels<T>>,
}

impl<T: HostNumber> PackedWeight<T> {
    fn zeroed(n_out: usize, n_in: usize, passes: Passes) -> Self {
        let backward = (passes == Passes::ForwardAndBackward).then(|| Panels::zeroed(n_in, n_out));
        Self { forward: Panels::zeroed(n_out, n_in), backward }
    }

    fn pack<S: Operand>(&mut self, device: &Device, values: &[S]) {
        let (compute, n_in) = (device.compute(), self.forward.k());
        self.forward.pack(compute, Source::rows_of_n(values, n_in));
        if let Some(backward) = &mut self.backward {
            backward.pack(compute, Source::rows_of_k(values, n_in));
        }
    }

    fn pack_rows<S: Operand>(&mut self, device: &Device, first_row: usize, values: &[S]) {
        assert!(self.backward.is_none(), "the weight is packed for training");
        let source = Source::rows_of_n(values, self.forward.k());
        self.forward.pack_rows(device.compute(), first_row, source);
    }

    fn n_bytes(&self) -> usize {
        let backward = self.backward.as_ref().map_or(0, |panels| panels.values().len());
        (self.forward.values().len() + backward) * size_of::<T>()
    }

    fn backward(&self) -> &Panels<T> {
        self.backward.as_ref().expect("the weight is packed for training")
    }
}

impl Linear {
    /// A weight of zeros.
    #[must_use]
    pub fn zeroed(
        device: &Device,
        dtype: DType,
        n_out: usize,
        n_in: usize,
        passes: Passes,
    ) -> Self {
        let packed = match (device, dtype) {
            (Device::Cuda { gpu, .. }, dtype) => {
                Packed::Cuda(DeviceMatrix::zeroed(gpu, dtype.on_gpu(), n_out, n_in))
            }
            (Device::Cpu(_), DType::F32) => Packed::F32(PackedWeight::zeroed(n_out, n_in, passes)),
            (Device::Cpu(_), DType::Bf16) => {
                Packed::Bf16(PackedWeight::zeroed(n_out, n_in, passes))
            }
        };
        Self { n_out, n_in, packed }
    }

    /// A weight of quantised rows, in the order given; products with those that are not packed have operands of `dtype`.
    ///
    /// # Panics
    /// When rows are not of `n_in` numbers.
    #[must_use]
    pub fn of_blocks(device: &Device, dtype: DType, n_in: usize, parts: Vec<BlockRows>) -> Self {
        let n_out = parts.iter().map(|part| part.n_rows).sum();
        if let Device::Cuda { gpu, .. } = device {
            let parts = parts.iter().map(|part| part.on_gpu(gpu, n_in));
            return Self { n_out, n_in, packed: Packed::CudaBlocks(dtype, parts.collect()) };
        }
        for part in &parts {
            let _checked = part.numbers(n_in);
        }
        Self { n_out, n_in, packed: Packed::Blocks(dtype, parts) }
    }

    /// Fills a weight on a GPU with uniform numbers of this standard deviation, which are made there.
    ///
    /// # Panics
    /// When the weight is in this machine's memory.
    pub fn fill_uniform(&mut self, device: &Device, seed: u64, std: f32) {
        let Packed::Cuda(weight) = &mut self.packed else { panic!("a weight in memory") };
        // The standard deviation of a uniform number in -1..1 is 1 / sqrt(3).
        let half_width = 3.0_f32.sqrt() * std;
        cuda::ops::elementwise::fill_uniform(device.gpu(), weight.view_mut(), seed, half_width);
    }

    /// Inputs.
    #[must_use]
    pub fn n_in(&self) -> usize {
        self.n_in
    }

    /// Whether some of its rows are packed blocks.
    #[must_use]
    pub fn has_packed_blocks(&self) -> bool {
        let Packed::Blocks(_, parts) = &self.packed else { return false };
        parts.iter().any(|part| part.order == BlockOrder::Packed)
    }

    /// Bytes that a weight of this shape takes.
    #[must_use]
    pub fn bytes_for(dtype: DType, n_out: usize, n_in: usize, passes: Passes) -> usize {
        let bytes = |n, k| match dtype {
            DType::F32 => panels_len::<f32>(n, k) * 4,
            DType::Bf16 => panels_len::<bf16>(n, k) * 2,
        };
        match passes {
            Passes::Forward => bytes(n_out, n_in),
            Passes::ForwardAndBackward => bytes(n_out, n_in) + bytes(n_in, n_out),
        }
    }

    /// Bytes that the packed weight holds.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        match &self.packed {
            Packed::F32(weight) => weight.n_bytes(),
            Packed::Bf16(weight) => weight.n_bytes(),
            Packed::Blocks(_, parts) => parts.iter().map(|part| part.bytes.as_slice().len()).sum(),
            Packed::Cuda(weight) => weight.n_bytes(),
            Packed::CudaBlocks(_, parts) => parts.iter().map(DeviceBlocks::n_bytes).sum(),
        }
    }

    /// Overwrites the weight with `values [n_out, n_in]`, rounding to its number type.
    ///
    /// # Panics
    /// When the shape differs.
    pub fn pack(&mut self, device: &Device, values: View<'_>) {
        assert_eq!(
            [values.n_rows(), values.width()],
            [self.n_out, self.n_in],
            "shape of the weight"
        );
        match (&mut self.packed, values) {
            (Packed::F32(packed), View::F32 { values, .. }) => packed.pack(device, values),
            (Packed::F32(packed), View::Bf16 { values, .. }) => packed.pack(device, values),
            (Packed::Bf16(packed), View::F32 { values, .. }) => packed.pack(device, values),
            (Packed::Bf16(packed), View::Bf16 { values, .. }) => packed.pack(device, values),
            (Packed::Cuda(weight), View::Cuda(values)) => {
                cuda::ops::elementwise::convert(device.gpu(), values, weight.view_mut());
            }
            (Packed::Cuda(_), values) => self.pack_rows(device, 0, values),
            (Packed::Blocks(..) | Packed::CudaBlocks(..), _) => {
                panic!("quantised rows are not packed from numbers")
            }
            (_, View::Cuda(_)) => panic!("numbers on a GPU for a weight in memory"),
        }
    }

    /// Overwrites the rows of the weight from `first_row` on with `values [rows, n_in]`, for a weight that only the forward pass
    /// uses. Rows come in whole panels, but for the last.
    ///
    /// # Panics
    /// When the rows are not in the weight, do not fill panels, or the weight is packed for training.
    pub fn pack_rows(&mut self, device: &Device, first_row: usize, values: View<'_>) {
        assert_eq!(values.width(), self.n_in, "width of the weight");
        let end = first_row + values.n_rows();
        assert!(end <= self.n_out, "rows up to {end} of a weight of {}", self.n_out);
        match (&mut self.packed, values) {
            (Packed::F32(packed), View::F32 { values, .. }) => {
                packed.pack_rows(device, first_row, values);
            }
            (Packed::F32(packed), View::Bf16 { values, .. }) => {
                packed.pack_rows(device, first_row, values);
            }
            (Packed::Bf16(packed), View::F32 { values, .. }) => {
                packed.pack_rows(device, first_row, values);
            }
            (Packed::Bf16(packed), View::Bf16 { values, .. }) => {
                packed.pack_rows(device, first_row, values);
            }
            (Packed::Cuda(weight), View::F32 { values, .. }) => {
                weight.rows_mut(first_row..end, self.n_in).write_f32(values);
            }
            (Packed::Cuda(weight), View::Bf16 { values, .. }) => {
                let values: Vec<f32> = values.iter().map(|x| x.to_f32()).collect();
                weight.rows_mut(first_row..end, self.n_in).write_f32(&values);
            }
            (Packed::Blocks(..) | Packed::CudaBlocks(..), _) => {
                panic!("quantised rows are not packed from numbers")
            }
            (_, View::Cuda(_)) => panic!("numbers on a GPU for a weight in memory"),
        }
    }

    /// `y[t, o] (+)= sum_i x[t, i] W[o, i]`.
    ///
    /// Shapes: x `[tokens, n_in]` in the weight's number type, or, on the processors, f32; y `[tokens, n_out]` f32, or, but for packed
    /// blocks, of the weight's type.
    ///
    /// # Panics
    /// When a shape or number type does not fit, or the scratch has no room for an x that must be rounded.
    pub fn forward(
        &self,
        device: &Device,
        x: View<'_>,
        y: ViewMut<'_>,
        write: Write,
        scratch: &mut OperandScratch,
    ) {
        assert_eq!(y.width(), self.n_out, "width of y");
        self.forward_columns(device, x, y, 0, write, scratch);
    }

    /// As [`Linear::forward`], into the columns of a wider `y` from `first_column` on.
    ///
    /// # Panics
    /// As [`Linear::forward`].
    pub fn forward_columns(
        &self,
        device: &Device,
        x: View<'_>,
        y: ViewMut<'_>,
        first_column: usize,
        write: Write,
        scratch: &mut OperandScratch,
    ) {
        assert_eq!(x.width(), self.n_in, "width of x");
        let end = first_column + self.n_out;
        assert!(end <= y.width(), "columns up to {end} of {}", y.width());
        let columns = Columns { device, first: first_column, stride: y.width(), write };
        let (n_rows, stride) = (x.n_rows(), self.n_in);
        match &self.packed {
            Packed::F32(weight) => {
                let left = Left::Rows { values: x.f32(), stride };
                columns.product(left, n_rows, &weight.forward, y);
            }
            Packed::Bf16(weight) => {
                let left = Left::Rows { values: scratch.bf16(device, x), stride };
                columns.product(left, n_rows, &weight.forward, y);
            }
            Packed::Blocks(dtype, parts) => columns.block_products(*dtype, parts, x, y, scratch),
            Packed::Cuda(weight) => {
                let (x, y) = (x.on_gpu(), y.on_gpu());
                product_on_gpu(device.gpu(), x, weight.view(), y, first_column, write);
            }
            Packed::CudaBlocks(dtype, parts) => {
                let (gpu, x, mut y) = (device.gpu(), x.on_gpu(), y.on_gpu());
                let mut first_column = first_column;
                for part in parts {
                    let y = y.reborrow();
                    product_of_blocks_on_gpu(gpu, x, (*dtype, part), y, first_column, write);
                    first_column += part.shape()[0];
                }
            }
        }
    }

    /// Gradient of the input: `d_x[t, i] = sum_o d_y[t, o] W[o, i]`. Overwrites.
    ///
    /// Shapes: d_y `[tokens, n_out]` in the weight's number type; d_x `[tokens, n_in]` f32 or of that type.
    ///
    /// # Panics
    /// When a shape or number type does not fit, or the weight is not packed for training.
    pub fn backward_input(&self, device: &Device, d_y: View<'_>, d_x: ViewMut<'_>) {
        assert_eq!(d_y.width(), self.n_out, "width of d_y");
        self.backward_input_columns(device, d_y, 0, d_x, Write::Overwrite);
    }

    /// As [`Linear::backward_input`], of the columns of a wider `d_y` from `first_column` on: the gradient of
    /// [`Linear::forward_columns`].
    ///
    /// # Panics
    /// As [`Linear::backward_input`].
    pub fn backward_input_columns(
        &self,
        device: &Device,
        d_y: View<'_>,
        first_column: usize,
        d_x: ViewMut<'_>,
        write: Write,
    ) {
        assert_eq!(d_x.width(), self.n_in, "width of d_x");
        let (end, stride) = (first_column + self.n_out, d_y.width());
        assert!(end <= stride, "columns up to {end} of {stride}");
        let columns = Columns { device, first: 0, stride: self.n_in, write };
        let n_rows = d_y.n_rows();
        match &self.packed {
            Packed::F32(weight) => {
                let left = Left::Rows { values: columns_from(d_y.f32(), first_column), stride };
                columns.product(left, n_rows, weight.backward(), d_x);
            }
            Packed::Bf16(weight) => {
                let values = columns_from(d_y.of::<bf16>(), first_column);
                let left = Left::Rows { values, stride };
                columns.product(left, n_rows, weight.backward(), d_x);
            }
            Packed::Blocks(..) | Packed::CudaBlocks(..) => {
                panic!("quantised rows have no backward pass")
            }
            Packed::Cuda(weight) => {
                let (gpu, d_y, d_x) = (device.gpu(), d_y.on_gpu(), d_x.on_gpu());
                let weight = weight.view();
                cuda::ops::product_backward_input(gpu, d_y, first_column, weight, d_x, write);
            }
        }
    }

    /// The rows of the weight at `token_ids`, as f32: the embedding. Shapes: out `[tokens, n_in]`. Overwrites.
    ///
    /// # Panics
    /// When an id is not below `n_out`.
    pub fn gather(&self, device: &Device, token_ids: &[u32], out: ViewMut<'_>) {
        let (compute, shape) = (device.compute(), [self.n_out, self.n_in]);
        assert_eq!(out.width(), self.n_in, "width of the output");
        match &self.packed {
            Packed::F32(weight) => {
                embedding::gather(compute, token_ids, weight.forward.values(), shape, out.f32());
            }
            Packed::Bf16(weight) => {
                embedding::gather(compute, token_ids, weight.forward.values(), shape, out.f32());
            }
            Packed::Cuda(weight) => {
                let (gpu, table) = (device.gpu(), weight.view());
                let token_ids = RowNumbers::new(gpu, token_ids);
                cuda::ops::embedding::gather(gpu, table, &token_ids, out.on_gpu());
            }
            Packed::CudaBlocks(_, parts) => {
                let [table] = parts.as_slice() else {
                    panic!("an embedding of {} parts", parts.len())
                };
                let mut out = out.on_gpu();
                for (row, &token_id) in token_ids.iter().enumerate() {
                    let id = token_id as usize;
                    unpack_blocks(device.gpu(), table, id..id + 1, out.row_mut(row));
                }
            }
            Packed::Blocks(_, parts) => match parts.as_slice() {
                [rows] => match rows.numbers(self.n_in) {
                    BlockNumbers::Rows(table) => {
                        embedding::gather_blocks(compute, token_ids, table, out.f32());
                    }
                    BlockNumbers::Packed(table) => {
                        embedding::gather_packed(compute, token_ids, table, out.f32());
                    }
                },
                _ => panic!("an embedding of {} parts", parts.len()),
            },
        }
    }
}

/// A product on a GPU: of few rows by a kernel that reads the weight once as fast as memory gives it, of many by cuBLASLt.
fn product_on_gpu(
    gpu: &Gpu,
    x: cuda::Matrix<'_>,
    weight: cuda::Matrix<'_>,
    y: cuda::MatrixMut<'_>,
    first_column: usize,
    write: Write,
) {
    match x.n_rows() <= few_rows::max_few_rows(weight.number_type()) {
        true => few_rows::product_few_rows(gpu, x, weight, y, first_column, write),
        false => cuda::ops::product(gpu, x, weight, y, first_column, write),
    }
}

/// As [`product_on_gpu`], with quantised rows: of many rows of x the numbers are unpacked first.
fn product_of_blocks_on_gpu(
    gpu: &Gpu,
    x: cuda::Matrix<'_>,
    (dtype, blocks): (DType, &DeviceBlocks),
    y: cuda::MatrixMut<'_>,
    first_column: usize,
    write: Write,
) {
    let is_few = x.n_rows() <= MAX_FEW_ROWS_OF_BLOCKS && dtype == DType::Bf16;
    if is_few && blocks.has_product_of_few_rows() {
        return product_few_rows_of_blocks(gpu, x, blocks, y, first_column, write);
    }
    let [n_out, n_in] = blocks.shape();
    // It is given back at once, so that the product never waits for others, which might ask for it before it is unpacked.
    let mut weight = DeviceMatrix::uninitialised(gpu, dtype.on_gpu(), n_out, n_in);
    unpack_blocks(gpu, blocks, 0..n_out, weight.view_mut());
    product_on_gpu(gpu, x, weight.view(), y, first_column, write);
}

/// Each part and the column where its outputs begin.
fn columns_of(
    parts: &[BlockRows],
    n_in: usize,
) -> impl Iterator<Item = (BlockNumbers<'_>, usize)> + Clone + Sync {
    parts.iter().scan(0, move |column, part| {
        let first = *column;
        *column += part.n_rows;
        Some((part.numbers(n_in), first))
    })
}

/// The values from a column of the first row on; of no rows none.
fn columns_from<T>(values: &[T], first_column: usize) -> &[T] {
    values.get(first_column..).unwrap_or_default()
}

/// Where products go: the columns of a matrix from `first` on, whose rows are `stride` apart.
#[derive(Clone, Copy)]
struct Columns<'a> {
    device: &'a Device,
    first: usize,
    stride: usize,
    write: Write,
}

impl Columns<'_> {
    fn product<T: Operand>(
        self,
        left: Left<'_, T>,
        n_rows: usize,
        weight: &Panels<T>,
        y: ViewMut<'_>,
    ) {
        let dims = [n_rows, weight.n(), weight.k()];
        self.write(left, Right::Panels(weight.values()), dims, 0, y);
    }

    /// The products of all parts, each into its columns.
    fn block_products(
        self,
        dtype: DType,
        parts: &[BlockRows],
        x: View<'_>,
        mut y: ViewMut<'_>,
        scratch: &mut OperandScratch,
    ) {
        if parts.iter().any(|part| part.order == BlockOrder::Packed) {
            let quantised = scratch.quantised(self.device, x);
            let weights =
                columns_of(parts, x.width()).filter_map(|(weight, first_column)| match weight {
                    BlockNumbers::Packed(weight) => Some(PackedColumns { weight, first_column }),
                    BlockNumbers::Rows(_) => None,
                });
            let out = y.reborrow().f32().get_mut(self.first..).unwrap_or_default();
            let compute = self.device.compute();
            packed_blocks::matmul_columns(
                compute,
                quantised,
                weights,
                out,
                self.stride,
                self.write,
            );
        }
        if parts.iter().any(|part| part.order == BlockOrder::Rows) {
            match dtype {
                DType::F32 => self.row_products(parts, x.f32(), x.width(), y),
                DType::Bf16 => {
                    self.row_products(parts, scratch.bf16(self.device, x), x.width(), y);
                }
            }
        }
    }

    /// The products of the parts that are not packed.
    fn row_products<T: Operand>(
        self,
        parts: &[BlockRows],
        x: &[T],
        n_in: usize,
        mut y: ViewMut<'_>,
    ) {
        let left = Left::Rows { values: x, stride: n_in };
        for (weight, column) in columns_of(parts, n_in) {
            let BlockNumbers::Rows(weight) = weight else { continue };
            let dims = [x.len() / n_in.max(1), weight.shape()[0], n_in];
            self.write(left, Right::Blocks(weight), dims, column, y.reborrow());
        }
    }

    fn write<T: Operand>(
        self,
        left: Left<'_, T>,
        right: Right<'_, T>,
        dims: [usize; 3],
        column: usize,
        y: ViewMut<'_>,
    ) {
        let (compute, first) = (self.device.compute(), self.first + column);
        match y {
            ViewMut::F32 { values, .. } => {
                let out = values.get_mut(first..).unwrap_or_default();
                matmul_columns(compute, left, right, dims, out, self.stride, self.write);
            }
            y => {
                let out = y.of::<bf16>().get_mut(first..).unwrap_or_default();
                matmul_columns(compute, left, right, dims, out, self.stride, self.write);
            }
        }
    }
}

/// Working memory of [`LinearScratch::backward_weight`]: the layer's input, packed with tokens as the inner dimension.
#[derive(Clone, Debug)]
pub struct LinearScratch {
    packed: ScratchPanels,
}

#[derive(Clone, Debug)]
enum ScratchPanels {
    F32(Buffer<f32>),
    Bf16(Buffer<bf16>),
    /// On a GPU, where products take operands in either direction.
    None,
}

impl LinearScratch {
    /// Room for weights of up to `max_in` inputs and up to `max_rows` tokens.
    #[must_use]
    pub fn new(device: &Device, dtype: DType, max_rows: usize, max_in: usize) -> Self {
        let packed = match (device, dtype) {
            (Device::Cuda { .. }, _) => ScratchPanels::None,
            (Device::Cpu(_), DType::F32) => {
                ScratchPanels::F32(Buffer::zeroed(panels_len::<f32>(max_in, max_rows)))
            }
            (Device::Cpu(_), DType::Bf16) => {
                ScratchPanels::Bf16(Buffer::zeroed(panels_len::<bf16>(max_in, max_rows)))
            }
        };
        Self { packed }
    }

    /// Bytes of a scratch of this shape.
    #[must_use]
    pub fn bytes_for(dtype: DType, max_rows: usize, max_in: usize) -> usize {
        Linear::bytes_for(dtype, max_in, max_rows, Passes::Forward)
    }

    /// Bytes that it holds.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        match &self.packed {
            ScratchPanels::F32(values) => size_of_val::<[f32]>(values),
            ScratchPanels::Bf16(values) => size_of_val::<[bf16]>(values),
            ScratchPanels::None => 0,
        }
    }

    /// Gradient of a weight: `d_weight[o, i] += sum_t d_y[t, o] x[t, i]`.
    ///
    /// Shapes: d_y `[tokens, n_out]`, x `[tokens, n_in]`, of one number type; d_weight `[n_out, n_in]` f32. Accumulates.
    ///
    /// # Panics
    /// When a shape or number type does not fit.
    pub fn backward_weight(
        &mut self,
        device: &Device,
        d_y: View<'_>,
        x: View<'_>,
        d_weight: ViewMut<'_>,
    ) {
        assert_eq!(d_y.width(), d_weight.n_rows(), "outputs of the weight's gradient");
        self.backward_weight_columns(device, d_y, 0, x, d_weight);
    }

    /// As [`LinearScratch::backward_weight`], of the columns of a wider `d_y` from `first_column` on, as many as d_weight has
    /// rows.
    ///
    /// # Panics
    /// As [`LinearScratch::backward_weight`].
    pub fn backward_weight_columns(
        &mut self,
        device: &Device,
        d_y: View<'_>,
        first_column: usize,
        x: View<'_>,
        d_weight: ViewMut<'_>,
    ) {
        assert_eq!(d_y.n_rows(), x.n_rows(), "one gradient row per token");
        assert_eq!(d_weight.width(), x.width(), "width of the weight's gradient");
        let end = first_column + d_weight.n_rows();
        assert!(end <= d_y.width(), "columns up to {end} of {}", d_y.width());
        match &mut self.packed {
            ScratchPanels::F32(right) => {
                outer_product::<f32>(device, (d_y, first_column), x, right, d_weight);
            }
            ScratchPanels::Bf16(right) => {
                outer_product::<bf16>(device, (d_y, first_column), x, right, d_weight);
            }
            ScratchPanels::None => {
                let (gpu, d_y, x) = (device.gpu(), d_y.on_gpu(), x.on_gpu());
                let d_weight = d_weight.on_gpu();
                cuda::ops::product_backward_weight(gpu, d_y, first_column, x, d_weight);
            }
        }
    }
}

fn outer_product<T: HostNumber>(
    device: &Device,
    (d_y, first_column): (View<'_>, usize),
    x: View<'_>,
    right: &mut [T],
    d_weight: ViewMut<'_>,
) {
    let (compute, n_tokens) = (device.compute(), x.n_rows());
    let (n_out, n_in) = (d_weight.n_rows(), x.width());
    let right = &mut right[..panels_len::<T>(n_in, n_tokens)];
    panels::pack(compute, Source::rows_of_k(x.of::<T>(), n_in), [n_in, n_tokens], right);
    let values = columns_from(d_y.of::<T>(), first_column);
    let left = Left::Columns { values, stride: d_y.width() };
    let dims = [n_out, n_in, n_tokens];
    matmul(compute, left, Right::Panels(&*right), dims, d_weight.f32(), Write::Accumulate);
}
