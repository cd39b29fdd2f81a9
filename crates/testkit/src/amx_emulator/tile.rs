//! The tile registers of one thread and what the instructions do to them.

use super::Fault;
use super::arithmetic;

pub(super) const N_TILES: usize = 8;
pub(super) const MAX_ROWS: usize = 16;
pub(super) const MAX_ROW_BYTES: usize = 64;
pub(super) const CONFIG_BYTES: usize = 64;

/// One row of a tile.
pub(super) type Row = [u8; MAX_ROW_BYTES];

/// Rows and bytes per row of a configured tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    rows: usize,
    row_bytes: usize,
}

/// How the bytes of the two sources of an integer product are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signs {
    SignedSigned,
    SignedUnsigned,
    UnsignedSigned,
    UnsignedUnsigned,
}

/// Configuration and contents of the eight tiles. Bytes outside a tile's shape are zero: a new configuration
/// clears everything, and nothing writes there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TileState {
    configured: bool,
    /// Row at which an interrupted load or store goes on; the emulator itself is never interrupted.
    start_row: u8,
    row_bytes: [u8; N_TILES],
    rows: [u8; N_TILES],
    data: [[Row; MAX_ROWS]; N_TILES],
}

impl TileState {
    /// The initial state of a thread.
    pub(super) const INITIAL: Self = Self {
        configured: false,
        start_row: 0,
        row_bytes: [0; N_TILES],
        rows: [0; N_TILES],
        data: [[[0; MAX_ROW_BYTES]; MAX_ROWS]; N_TILES],
    };

    /// `ldtilecfg`: palette, start row, 14 reserved bytes, 8 row sizes (u16), 16 reserved, 8 row counts, 8 reserved.
    pub(super) fn configure(&mut self, block: &[u8; CONFIG_BYTES]) -> Result<(), Fault> {
        let palette = block[0];
        if palette > 1 {
            return Err(Fault::UnknownPalette { palette });
        }
        if palette == 0 {
            self.release();
            return Ok(());
        }
        for offset in (2..16).chain(32..48).chain(56..64) {
            if block[offset] != 0 {
                return Err(Fault::ReservedNotZero { offset, value: block[offset] });
            }
        }
        let mut next = Self { configured: true, start_row: block[1], ..Self::INITIAL };
        for tile in 0..N_TILES {
            let row_bytes = u16::from_le_bytes([block[16 + 2 * tile], block[17 + 2 * tile]]);
            let rows = block[48 + tile];
            let too_large = usize::from(rows) > MAX_ROWS || usize::from(row_bytes) > MAX_ROW_BYTES;
            if too_large || (rows == 0) != (row_bytes == 0) {
                return Err(Fault::BadShape { tile, rows, row_bytes });
            }
            next.rows[tile] = rows;
            // At most 64, checked above.
            next.row_bytes[tile] = row_bytes as u8;
        }
        *self = next;
        Ok(())
    }

    /// `sttilecfg`: the loaded block, or zeros.
    pub(super) fn configuration(&self) -> [u8; CONFIG_BYTES] {
        let mut block = [0; CONFIG_BYTES];
        if self.configured {
            block[0] = 1;
            block[1] = self.start_row;
            for tile in 0..N_TILES {
                block[16 + 2 * tile] = self.row_bytes[tile];
                block[48 + tile] = self.rows[tile];
            }
        }
        block
    }

    /// `tilerelease`.
    pub(super) fn release(&mut self) {
        *self = Self::INITIAL;
    }

    /// `tilezero`.
    pub(super) fn zero(&mut self, tile: u8) -> Result<(), Fault> {
        self.shape(tile)?;
        self.data[usize::from(tile)] = [[0; MAX_ROW_BYTES]; MAX_ROWS];
        self.start_row = 0;
        Ok(())
    }

    /// `tileloadd`: `read_row(row, out)` fills the bytes of one row.
    pub(super) fn load(
        &mut self,
        tile: u8,
        mut read_row: impl FnMut(usize, &mut [u8]),
    ) -> Result<(), Fault> {
        let Shape { rows, row_bytes } = self.shape(tile)?;
        for row in usize::from(self.start_row)..rows {
            read_row(row, &mut self.data[usize::from(tile)][row][..row_bytes]);
        }
        self.start_row = 0;
        Ok(())
    }

    /// `tilestored`: `write_row(row, bytes)` takes the bytes of one row.
    pub(super) fn store(
        &mut self,
        tile: u8,
        mut write_row: impl FnMut(usize, &[u8]),
    ) -> Result<(), Fault> {
        let Shape { rows, row_bytes } = self.shape(tile)?;
        for row in usize::from(self.start_row)..rows {
            write_row(row, &self.data[usize::from(tile)][row][..row_bytes]);
        }
        self.start_row = 0;
        Ok(())
    }

    /// `tdpbf16ps`: `destination[m][n] += sum_k left[m][2k] * right[k][2n] + sum_k left[m][2k+1] * right[k][2n+1]`.
    /// Shapes: left `[m, k pairs]` of bf16, right `[k, n pairs]` of bf16, destination `[m, n]` of f32.
    /// Numerics: each of the two sums starts at zero and is a chain of fused multiply-adds over ascending k; then the
    /// two are added, then their sum to the destination. Round to nearest even, subnormal inputs and results are zero.
    pub(super) fn bf16_product(
        &mut self,
        destination: u8,
        left: u8,
        right: u8,
    ) -> Result<(), Fault> {
        let Product { rows, depth, columns } = self.product(destination, left, right)?;
        for m in 0..rows {
            let left_row = &self.data[usize::from(left)][m];
            let right_rows = &self.data[usize::from(right)];
            let products = arithmetic::bf16_row_product(left_row, &right_rows[..depth]);
            let out = &mut self.data[usize::from(destination)][m];
            for n in 0..columns {
                let sum = arithmetic::add(arithmetic::f32_at(out, n), products[n]);
                out[4 * n..4 * n + 4].copy_from_slice(&sum.to_le_bytes());
            }
        }
        self.start_row = 0;
        Ok(())
    }

    /// `tdpbssd` and its kin: `destination[m][n] += sum_k sum_i left[m][4k+i] * right[k][4n+i]` in wrapping i32.
    pub(super) fn byte_product(
        &mut self,
        destination: u8,
        left: u8,
        right: u8,
        signs: Signs,
    ) -> Result<(), Fault> {
        let Product { rows, depth, columns } = self.product(destination, left, right)?;
        for m in 0..rows {
            let left_row = &self.data[usize::from(left)][m];
            let right_rows = &self.data[usize::from(right)];
            let products = arithmetic::byte_row_product(left_row, &right_rows[..depth], signs);
            let out = &mut self.data[usize::from(destination)][m];
            for n in 0..columns {
                let sum = arithmetic::i32_at(out, n).wrapping_add(products[n]);
                out[4 * n..4 * n + 4].copy_from_slice(&sum.to_le_bytes());
            }
        }
        self.start_row = 0;
        Ok(())
    }

    fn shape(&self, tile: u8) -> Result<Shape, Fault> {
        if !self.configured {
            return Err(Fault::NotConfigured);
        }
        let rows = usize::from(self.rows[usize::from(tile)]);
        if rows == 0 {
            return Err(Fault::TileNotConfigured { tile });
        }
        Ok(Shape { rows, row_bytes: usize::from(self.row_bytes[usize::from(tile)]) })
    }

    /// The extents of a dot product, after the checks that hardware makes.
    fn product(&self, destination: u8, left: u8, right: u8) -> Result<Product, Fault> {
        let shapes = [self.shape(destination)?, self.shape(left)?, self.shape(right)?];
        if destination == left || destination == right || left == right {
            return Err(Fault::SameTile { destination, left, right });
        }
        for (tile, Shape { row_bytes, .. }) in [destination, left, right].into_iter().zip(shapes) {
            if row_bytes % 4 != 0 {
                return Err(Fault::PartialGroup { tile, row_bytes });
            }
        }
        let [out, a, b] = shapes;
        if out.rows != a.rows {
            return Err(Fault::RowsDiffer { destination: out.rows, left: a.rows });
        }
        if out.row_bytes != b.row_bytes {
            return Err(Fault::ColumnsDiffer { destination: out.row_bytes, right: b.row_bytes });
        }
        if a.row_bytes / 4 != b.rows {
            return Err(Fault::DepthDiffers { left: a.row_bytes / 4, right: b.rows });
        }
        Ok(Product { rows: out.rows, depth: b.rows, columns: out.row_bytes / 4 })
    }
}

/// Extents of a dot product: depth counts groups of four bytes.
struct Product {
    rows: usize,
    depth: usize,
    columns: usize,
}
