//! Operations of one row that are done by one launch, each of which needs what the one before wrote.
//!
//! Writing a token is a row of such operations, and a launch of each would leave memory idle at both of its ends. An operation that can
//! be a link of a chain ([`Gpu::launch_linked`](crate::Gpu)) is therefore not launched at once: it waits, with the others before it,
//! until something else is asked of the GPU. The order of what is asked stays as it was.

use crate::driver::Address;
use crate::gpu::{Argument, Grid};
use crate::memory::NumberType;

/// Threads of a block (`chain.cu`).
pub(crate) const THREADS: usize = 256;
/// The most operations of a launch.
pub(crate) const MAX_LINKS: usize = 22;
const _: () = assert!(size_of::<Links>() + 12 <= 4096, "arguments of a kernel");
/// Rows of an operation. Of more the sums, which are not those of tensor cores, would take longer than reading the weight.
const N_ROWS: usize = 1;
/// The most numbers of a part of a row, of which 8 warps have 4 each on their way.
const MAX_PART: usize = 2048;
const PARTS_BYTES: usize = 8 * 4 * MAX_PART * 2;
/// Parts are so many numbers or a multiple.
const UNIT: usize = 256;
/// Shared memory for the left operand of a product, or for what the 8 warps of attention keep of 8 queries of up to 128 numbers: sums, a
/// maximum and a divisor in f32.
const OPERAND_BYTES: usize = 92 << 10;
const _: () = assert!(8 * 8 * (128 + 2) * size_of::<f32>() <= OPERAND_BYTES, "attention");
/// The most outputs of a product: times the warps of up to 1023 blocks they are below 2^32.
const MAX_OUT: usize = 1 << 19;
/// Dynamic shared memory of a block; a block may have 227 KiB in all.
pub(crate) const SHARED_BYTES: usize = PARTS_BYTES + OPERAND_BYTES;

/// Whether what an operation writes can be that of a link.
pub(crate) fn is_row(n_rows: usize, number_type: NumberType) -> bool {
    n_rows == N_ROWS && number_type == NumberType::Bf16
}

/// Whether a norm or an activation of `n_in` numbers can make the left operand of a link: there is room, and it is copied by eights.
pub(crate) fn fits_operand(n_rows: usize, number_type: NumberType, n_in: usize) -> bool {
    is_row(n_rows, number_type) && n_in * 2 <= OPERAND_BYTES && n_in.is_multiple_of(8)
}

/// Numbers of the parts in which rows of a weight are read; none where the product cannot be a link.
pub(crate) fn part_of(n_rows: usize, [n_out, n_in]: [usize; 2]) -> Option<usize> {
    let has_room = n_rows == N_ROWS && n_in * 2 <= OPERAND_BYTES && n_out <= MAX_OUT;
    let mut parts = (1..=MAX_PART / UNIT).rev().map(|n_units| n_units * UNIT);
    parts.find(|part| has_room && n_in.is_multiple_of(*part) && n_in > 0)
}

/// What an operation does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum LinkKind {
    /// `y = x w^T`, in bf16.
    #[default]
    ProductBf16 = 0,
    /// `y = x w^T`, in f32.
    ProductF32 = 1,
    /// `y += x w^T`, in f32.
    AddedF32 = 2,
    /// The left operand of a product, x, of a norm or an activation.
    Operand = 3,
    /// Rotation of queries and keys, and keys and values into the cache.
    Append = 4,
    /// Attention over the cache; with angles it does first what [`LinkKind::Append`] does.
    Attend = 5,
}

/// What the left operand of a product is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum Source {
    /// A row of bf16.
    #[default]
    Row = 0,
    /// The root-mean-square norm of a row of f32.
    Norm = 1,
    /// `silu(gate) up` of a row of both, in bf16.
    Swiglu = 2,
}

/// An operation as the kernel reads it; `chain.cu` says what the addresses are of.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Link {
    pub(crate) from: Address,
    pub(crate) norm_weight: Address,
    pub(crate) scale: Address,
    pub(crate) x: Address,
    pub(crate) w: Address,
    pub(crate) y: Address,
    /// Of the rotation: table, factors of queries, entries of rows.
    pub(crate) angles: [Address; 3],
    pub(crate) blocks: Address,
    pub(crate) tables: Address,
    pub(crate) row_sequences: Address,
    pub(crate) row_positions: Address,
    /// Of attention in several shares.
    pub(crate) scratch: Address,
    pub(crate) n_done: Address,
    pub(crate) kind: LinkKind,
    pub(crate) source: Source,
    pub(crate) n_out: i32,
    pub(crate) n_in: i32,
    pub(crate) eps: f32,
    pub(crate) n_heads: i32,
    pub(crate) n_kv_heads: i32,
    pub(crate) head_dim: i32,
    pub(crate) table_stride: i32,
    /// Numbers of a part of a row of w.
    pub(crate) part: i32,
    /// Of attention, 0 for none.
    pub(crate) window: i32,
    /// Of the positions that a row sees.
    pub(crate) n_shares: i32,
    /// Of the scores, with log2(e) in it.
    pub(crate) factor: f32,
}

impl Link {
    fn is_product(&self) -> bool {
        matches!(self.kind, LinkKind::ProductBf16 | LinkKind::ProductF32 | LinkKind::AddedF32)
    }

    /// This operation and the one before in one: a product of the operand that `earlier` makes, or attention of the row that it rotates and
    /// appends. None where they are not.
    fn joined(self, earlier: &Self) -> Option<Self> {
        if earlier.kind == LinkKind::Append && self.kind == LinkKind::Attend {
            let row = |link: &Self| [link.blocks, link.tables, link.row_positions];
            let is_of_earlier = earlier.y == self.from && row(earlier) == row(&self);
            return is_of_earlier.then_some(Self { angles: earlier.angles, ..self });
        }
        let is_of_earlier = earlier.kind == LinkKind::Operand
            && self.is_product()
            && self.from == earlier.x
            && self.n_in == earlier.n_in
            // Some blocks make the operand while others write already.
            && self.y != earlier.from;
        let &Self { source, from, norm_weight, scale, x, eps, .. } = earlier;
        is_of_earlier.then_some(Self { source, from, norm_weight, scale, x, eps, ..self })
    }
}

/// The operations of a launch.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(16))]
pub(crate) struct Links {
    links: [Link; MAX_LINKS],
    n_links: i32,
}

impl Links {
    /// # Panics
    /// When there are too many.
    pub(crate) fn new(links: impl Iterator<Item = Link>) -> Self {
        let mut all = Self { links: [Link::default(); MAX_LINKS], n_links: 0 };
        for link in links {
            all.links[all.n_links as usize] = link;
            all.n_links += 1;
        }
        all
    }

    pub(crate) fn n_links(&self) -> usize {
        self.n_links as usize
    }
}

/// A launch of one operation.
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) kernel: String,
    pub(crate) grid: Grid,
    pub(crate) arguments: Vec<Argument>,
}

/// What waits to be launched, and how far the blocks of all chains have counted.
#[derive(Debug, Default)]
pub(crate) struct Chain {
    pub(crate) links: Vec<Link>,
    /// The same operations, one by one, but for those that have no kernel of their own.
    pub(crate) launches: Vec<Option<Launch>>,
    /// Where blocks count themselves.
    pub(crate) counter: Address,
    /// What the counter will be once everything launched so far is done, modulo 2^32.
    pub(crate) n_arrived: u32,
}

impl Chain {
    /// Adds an operation, if there is room for it. Attention asks for its layer's keys and values while links before it are at work. Those
    /// write only blocks of other layers, but for the rotation and appending of its row: with that it is joined, or it begins a new launch.
    pub(crate) fn push(
        &mut self,
        link: Link,
        launch: Option<Launch>,
    ) -> Result<(), Option<Launch>> {
        if let Some(last) = self.links.last_mut()
            && let Some(joined) = link.joined(last)
        {
            *last = joined;
        } else if self.links.is_empty()
            || (self.links.len() < MAX_LINKS && link.kind != LinkKind::Attend)
        {
            self.links.push(link);
        } else {
            return Err(launch);
        }
        self.launches.push(launch);
        Ok(())
    }
}
