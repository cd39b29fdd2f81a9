//! Blocks to panels.

use super::layout::{FACTOR, GROUP, LINE, Layout, SUPER_GROUPS, Scales};
use super::packed_len;
use crate::blocks::{BlockKind, BlockMatrix, scale_and_min};
use crate::compute::{Compute, Family};
use crate::lanes::{LaneKernel, Lanes, dispatch};
use crate::panels::PANEL_WIDTH;

/// Packs a matrix of blocks into panels of 16 rows; the last is filled up with rows of zeros.
///
/// Shapes: blocks `[n, k]`; out [`packed_len`], read by [`super::PackedBlocks`]. Overwrites; the same bytes for every family. Numerics:
/// no number changes.
///
/// # Panics
/// When the kind is not packed or `out` does not fit the shape.
pub fn pack(compute: &Compute, blocks: BlockMatrix<'_>, out: &mut [u8]) {
    let (kind, [n, k]) = (blocks.kind(), blocks.shape());
    assert_eq!(out.len(), packed_len(kind, [n, k]), "bytes of packed [{n}, {k}] in {kind:?}");
    let layout = Layout::expect(kind);
    let family = compute.family();
    compute.pool().run_chunks(out, layout.panel_len(k).max(1), |panel, out, _| {
        let task = Pack { blocks, layout, row: panel * PANEL_WIDTH, out };
        match family {
            Family::Reference => task.pack(),
            family => dispatch(family, task),
        }
    });
}

struct Pack<'a> {
    blocks: BlockMatrix<'a>,
    layout: Layout,
    /// First row of the panel.
    row: usize,
    out: &'a mut [u8],
}

impl LaneKernel for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, _lanes: L) {
        self.pack();
    }
}

impl Pack<'_> {
    /// Chooses how the codes of a group are read from its block.
    #[inline(always)]
    fn pack(self) {
        match self.blocks.kind() {
            BlockKind::Q4_0 => self.pack_with(|b, _| nibbles(&b[2..])),
            BlockKind::Q4_1 => self.pack_with(|b, _| nibbles(&b[4..])),
            BlockKind::Q5_0 => self.pack_with(|b, _| with_fifth_bits(&b[6..], &b[2..6])),
            BlockKind::Q5_1 => self.pack_with(|b, _| with_fifth_bits(&b[8..], &b[4..8])),
            BlockKind::Q8_0 => self.pack_with(|b, _| std::array::from_fn(|i| b[2 + i] ^ 0x80)),
            BlockKind::Q4_K => self.pack_with(|b, group| super_nibbles(&b[16..], group)),
            BlockKind::Q5_K => self.pack_with(|b, group| {
                let low = super_nibbles(&b[48..], group);
                std::array::from_fn(|i| low[i] | (b[16 + i] >> group & 1) << 4)
            }),
            BlockKind::Q6_K => self.pack_with(six_bits),
            kind => unreachable!("{kind:?} has no layout"),
        }
    }

    #[inline(always)]
    fn pack_with(self, codes: impl Fn(&[u8], usize) -> [u8; GROUP]) {
        let Self { blocks, layout, row, out } = self;
        let (kind, [n, k]) = (blocks.kind(), blocks.shape());
        let width = PANEL_WIDTH.min(n - row);
        let (headers, lines) = out.split_at_mut(layout.header_len(k));
        headers.fill(0);
        let headers = headers.chunks_exact_mut(layout.block_header());
        let lines = lines.chunks_exact_mut(layout.block_groups * layout.group_len());
        for (block_idx, (header, lines)) in headers.zip(lines).enumerate() {
            let start = block_idx * kind.block_bytes();
            let block = |lane: usize| &blocks.row(row + lane)[start..][..kind.block_bytes()];
            for lane in 0..width {
                write_factors(layout, block(lane), lane, header);
            }
            for (group, lines) in lines.chunks_exact_mut(layout.group_len()).enumerate() {
                let mut quads = [[0; GROUP / 4]; PANEL_WIDTH];
                for lane in 0..width {
                    quads[lane] = as_quads(codes(block(lane), group));
                }
                write_lines(layout.bits, &quads, lines);
            }
        }
    }
}

/// Sixteen bytes: low halves first.
#[inline(always)]
fn nibbles(bytes: &[u8]) -> [u8; GROUP] {
    let bytes = &bytes[..16];
    std::array::from_fn(|i| bytes[i % 16] >> (i / 16 * 4) & 15)
}

#[inline(always)]
fn with_fifth_bits(bytes: &[u8], bits: &[u8]) -> [u8; GROUP] {
    let low = nibbles(bytes);
    std::array::from_fn(|i| low[i] | (bits[i / 8] >> (i % 8) & 1) << 4)
}

/// Each 32 bytes hold two groups.
#[inline(always)]
fn super_nibbles(bytes: &[u8], group: usize) -> [u8; GROUP] {
    let bytes = &bytes[group / 2 * 32..][..32];
    std::array::from_fn(|i| bytes[i] >> (group % 2 * 4) & 15)
}

/// As `decode::q6_k` in [`crate::blocks`] describes it.
#[inline(always)]
fn six_bits(block: &[u8], group: usize) -> [u8; GROUP] {
    let (half, quarter) = (group / 4, group % 4);
    let low = &block[half * 64 + quarter % 2 * 32..][..32];
    let high = &block[128 + half * 32..][..32];
    std::array::from_fn(|i| low[i] >> (quarter / 2 * 4) & 15 | (high[i] >> (quarter * 2) & 3) << 4)
}

#[inline(always)]
fn as_quads(codes: [u8; GROUP]) -> [u32; GROUP / 4] {
    std::array::from_fn(|i| {
        u32::from_le_bytes([codes[4 * i], codes[4 * i + 1], codes[4 * i + 2], codes[4 * i + 3]])
    })
}

/// The lines of a group from its codes, four in each number.
#[inline(always)]
fn write_lines(bits: usize, quads: &[[u32; GROUP / 4]; PANEL_WIDTH], lines: &mut [u8]) {
    const LOW: u32 = 0x0F0F_0F0F;
    let (lines, _) = lines.as_chunks_mut::<LINE>();
    if bits == 8 {
        return (0..8).for_each(|j| write_line(&mut lines[j], quads, |q| q[j]));
    }
    for j in 0..4 {
        write_line(&mut lines[j], quads, |q| q[j] & LOW | (q[4 + j] & LOW) << 4);
    }
    if bits == 5 {
        write_line(&mut lines[4], quads, |q| {
            (0..8).fold(0, |plane, j| plane | (q[j] >> 4 & 0x0101_0101) << j)
        });
    }
    if bits == 6 {
        for half in 0..2 {
            write_line(&mut lines[4 + half], quads, |q| {
                (0..4).fold(0, |plane, j| plane | (q[4 * half + j] >> 4 & 0x0303_0303) << (2 * j))
            });
        }
    }
}

/// A line from the four codes that each row has in it.
#[inline(always)]
fn write_line(
    line: &mut [u8; LINE],
    quads: &[[u32; GROUP / 4]; PANEL_WIDTH],
    quad: impl Fn(&[u32; GROUP / 4]) -> u32,
) {
    for (out, quads) in line.as_chunks_mut::<4>().0.iter_mut().zip(quads) {
        *out = quad(quads).to_le_bytes();
    }
}

/// The factors and scales of one row's block.
#[inline(always)]
fn write_factors(layout: Layout, block: &[u8], lane: usize, header: &mut [u8]) {
    let mut put = |place: usize, from: usize| {
        header[place * FACTOR + 2 * lane..][..2].copy_from_slice(&block[from..from + 2]);
    };
    match layout.scales {
        Scales::One => put(0, 0),
        Scales::WithMinimum => {
            put(0, 0);
            put(1, 2);
        }
        Scales::SixBits => {
            put(0, 0);
            put(1, 2);
            for group in 0..SUPER_GROUPS {
                let [scale, min] = scale_and_min(&block[4..16], group);
                let at = group * PANEL_WIDTH + lane;
                put_six_bits(&mut header[2 * FACTOR..], at, scale);
                put_six_bits(&mut header[2 * FACTOR..], SUPER_GROUPS * PANEL_WIDTH + at, min);
            }
        }
        Scales::Halves => {
            put(0, 208);
            for part in 0..2 * SUPER_GROUPS {
                header[FACTOR + part * PANEL_WIDTH + lane] = block[192 + part];
            }
        }
    }
}

/// Entry `at` of [`Scales::SixBits`]; the lines begin as zeros.
#[inline(always)]
fn put_six_bits(lines: &mut [u8], at: usize, value: u8) {
    if at < 3 * LINE {
        lines[at] |= value;
    } else {
        for line in 0..3 {
            lines[line * LINE + at - 3 * LINE] |= (value >> (2 * line) & 3) << 6;
        }
    }
}
