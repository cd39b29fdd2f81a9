//! Rotary position embedding.

use kernels::rope::{Direction, RopeTable, RotatedHeads};

use crate::gpu::{Argument, Gpu, Grid};
use crate::memory::{Matrix, MatrixMut, Memory, NumberType};

const THREADS: usize = 128;
/// Heads of a thread (`rope.cuh`).
const HEADS_PER_THREAD: usize = 4;

/// A [`RopeTable`] on the device.
#[derive(Debug)]
pub struct DeviceRopeTable {
    values: Memory,
    query_factors: Memory,
    entries: Memory,
    n_rows: usize,
    head_dim: usize,
}

impl DeviceRopeTable {
    /// A copy.
    #[must_use]
    pub fn new(gpu: &Gpu, table: &RopeTable) -> Self {
        Self {
            values: gpu.upload(table.values()),
            query_factors: gpu.upload(table.query_factors()),
            entries: gpu.upload(table.entries()),
            n_rows: table.n_rows(),
            head_dim: table.head_dim(),
        }
    }

    /// Rows of the batch.
    pub(crate) fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Size of a head.
    pub(crate) fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// The angles, the factors of queries, and the entries of rows.
    pub(super) fn addresses(&self) -> [u64; 3] {
        [&self.values, &self.query_factors, &self.entries].map(Memory::address)
    }

    /// As kernels take it.
    pub(super) fn arguments(&self) -> [Argument; 3] {
        self.addresses().map(Argument::Pointer)
    }

    /// The launch that rotates `n_moved` heads of `n_rows` rows; none where there is nothing to do.
    pub(super) fn grid(
        &self,
        number_type: NumberType,
        n_rows: usize,
        n_moved: usize,
    ) -> Option<Grid> {
        let (half, per_pack) = (self.head_dim / 2, 16 / number_type.bytes());
        let n_parts = if half.is_multiple_of(per_pack) { half / per_pack } else { half };
        let n_threads = n_rows * n_moved.div_ceil(HEADS_PER_THREAD) * n_parts;
        assert!(u32::try_from(n_threads + THREADS).is_ok(), "{n_threads} threads");
        let blocks = [n_threads.div_ceil(THREADS), 1, 1];
        (n_threads > 0).then_some(Grid { blocks, threads: THREADS, shared_bytes: 0 })
    }
}

/// [`kernels::rope::rotate`], `x` of the type of `out`.
///
/// # Panics
/// When the shapes or types do not fit.
pub fn rotate(
    gpu: &Gpu,
    x: Matrix<'_>,
    table: &DeviceRopeTable,
    heads: RotatedHeads,
    direction: Direction,
    out: MatrixMut<'_>,
) {
    assert_eq!([x.n_rows(), x.width()], [out.n_rows(), out.width()], "shapes of x and out");
    assert_eq!(x.number_type(), out.number_type(), "types of x and out");
    launch(gpu, x, table, heads, direction, out.address());
}

/// As [`rotate`], where `out` is `x`: the copied heads are left alone.
///
/// # Panics
/// When the shapes do not fit.
pub fn rotate_in_place(
    gpu: &Gpu,
    x: MatrixMut<'_>,
    table: &DeviceRopeTable,
    heads: RotatedHeads,
    direction: Direction,
) {
    launch(gpu, x.as_ref(), table, heads, direction, x.address());
}

fn launch(
    gpu: &Gpu,
    x: Matrix<'_>,
    table: &DeviceRopeTable,
    heads: RotatedHeads,
    direction: Direction,
    out: u64,
) {
    let (n_rows, head_dim) = (x.n_rows(), table.head_dim);
    assert_eq!(n_rows, table.n_rows, "rows of the table");
    assert_eq!(x.width(), heads.n_all() * head_dim, "x is [tokens, heads, head_dim]");
    let RotatedHeads { n_query, n_key, n_copied } = heads;
    let n_moved = n_query + n_key + if out == x.address() { 0 } else { n_copied };
    let Some(grid) = table.grid(x.number_type(), n_rows, n_moved) else { return };
    let [values, query_factors, entries] = table.arguments();
    let arguments = [
        Argument::Pointer(x.address()),
        values,
        query_factors,
        entries,
        Argument::Pointer(out),
        Argument::count(n_rows),
        Argument::count(n_query),
        Argument::count(n_key),
        Argument::count(n_copied),
        Argument::count(head_dim),
        Argument::F32(match direction {
            Direction::Forward => 1.0,
            Direction::Backward => -1.0,
        }),
    ];
    gpu.launch_early(&format!("rotate_{}", x.number_type().suffix()), grid, &arguments);
}
