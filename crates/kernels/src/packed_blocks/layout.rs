//! Where the numbers of a packed matrix stand.
//!
//! A panel is 16 rows of the matrix. First comes a header: for each block of K the f16 factors of 16 rows side by side, then their
//! sub-block scales, `[sub-block, 16]`; it is filled up to whole lines of 64 bytes. Then, for each group of 32 numbers, come 4 to
//! 8 lines. Byte `4 r + i` of a line belongs to row `r`, so that a line is what VPDPBUSD, VPMADDUBSW and an AMX tile multiply:
//! - 8 bits: line `j` has the codes `4 j + i`;
//! - fewer: line `j` of four has the low 4 bits of codes `4 j + i` in its low half and of `16 + 4 j + i` in its high half;
//! - the fifth bits are one line more: bit `j` belongs to code `4 j + i`;
//! - the fifth and sixth bits are two lines more, one for each half of the group: bits `2 j` and `2 j + 1` belong to code `4 j + i`.

use crate::blocks::BlockKind;
use crate::panels::PANEL_WIDTH;

/// Numbers of K that share a scale of a row.
pub(super) const GROUP: usize = 32;

/// Bytes of four codes of 16 rows.
pub(super) const LINE: usize = 64;

/// Lines of a group with one byte per code.
pub(super) const BYTE_LINES: usize = GROUP / 4;

/// Bytes of one f16 factor of 16 rows.
pub(super) const FACTOR: usize = 2 * PANEL_WIDTH;

/// Blocks of 256 numbers have this many groups.
pub(super) const SUPER_GROUPS: usize = 256 / GROUP;

/// What the header has for each block of K.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scales {
    /// A scale.
    One,
    /// A scale and a minimum.
    WithMinimum,
    /// Two factors; eight scales and eight minima of 6 bits in three lines of 64 bytes. Low bits of byte `b` of line `i` are entry
    /// `64 i + b` of scales and minima, `[2, 8, 16]`; its high bits are bits `2 i` and `2 i + 1` of entry `192 + b`.
    SixBits,
    /// A factor; 16 signed scales, one for each half of a group.
    Halves,
}

/// How the number of a group follows from its sums: a constant parameter of kernels.
pub(super) mod term {
    /// A scale and codes with an offset.
    pub(in crate::packed_blocks) const OFFSET: u8 = 0;
    /// A scale and a minimum.
    pub(in crate::packed_blocks) const MINIMUM: u8 = 1;
    /// A scale for each half, and codes with an offset.
    pub(in crate::packed_blocks) const HALVES: u8 = 2;
}

/// The layout of a kind.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    /// Bits of a code: as many lines of 64 bytes has a group.
    pub(super) bits: usize,
    pub(super) scales: Scales,
    /// Groups of a block.
    pub(super) block_groups: usize,
}

impl Layout {
    /// The layout of a kind that is packed.
    pub(super) fn of(kind: BlockKind) -> Option<Self> {
        let (bits, scales) = match kind {
            BlockKind::Q4_0 => (4, Scales::One),
            BlockKind::Q4_1 => (4, Scales::WithMinimum),
            BlockKind::Q5_0 => (5, Scales::One),
            BlockKind::Q5_1 => (5, Scales::WithMinimum),
            BlockKind::Q8_0 => (8, Scales::One),
            BlockKind::Q4_K => (4, Scales::SixBits),
            BlockKind::Q5_K => (5, Scales::SixBits),
            BlockKind::Q6_K => (6, Scales::Halves),
            _ => return None,
        };
        Some(Self { bits, scales, block_groups: kind.block_len() / GROUP })
    }

    pub(super) fn expect(kind: BlockKind) -> Self {
        Self::of(kind).unwrap_or_else(|| panic!("{kind:?} is not packed"))
    }

    /// The constant of [`term`].
    pub(super) fn term(self) -> u8 {
        match self.scales {
            Scales::One => term::OFFSET,
            Scales::WithMinimum | Scales::SixBits => term::MINIMUM,
            Scales::Halves => term::HALVES,
        }
    }

    /// What is subtracted from codes.
    pub(super) fn offset(self) -> u8 {
        match self.scales {
            Scales::One | Scales::Halves => 1 << (self.bits - 1),
            Scales::WithMinimum | Scales::SixBits => 0,
        }
    }

    /// Bytes of the header for each block.
    pub(super) fn block_header(self) -> usize {
        match self.scales {
            Scales::One => FACTOR,
            Scales::WithMinimum => 2 * FACTOR,
            Scales::SixBits => 2 * FACTOR + 3 * LINE,
            Scales::Halves => FACTOR + 2 * SUPER_GROUPS * PANEL_WIDTH,
        }
    }

    /// The part of a panel's header for `n_groups` groups from `first_group` on, which are whole blocks.
    pub(super) fn blocks_header(self, header: &[u8], first_group: usize, n_groups: usize) -> &[u8] {
        let blocks = first_group / self.block_groups..(first_group + n_groups) / self.block_groups;
        &header[blocks.start * self.block_header()..blocks.end * self.block_header()]
    }

    /// Bytes of the header of a panel.
    ///
    /// # Panics
    /// When k is not whole blocks or the number overflows.
    pub(super) fn header_len(self, k: usize) -> usize {
        let block_len = self.block_groups * GROUP;
        assert!(k.is_multiple_of(block_len), "k {k} is no multiple of {block_len}");
        let len = (k / block_len).checked_mul(self.block_header());
        let lines = len.and_then(|len| len.checked_next_multiple_of(LINE));
        lines.expect("the number of bytes fits usize")
    }

    /// Bytes of the lines of a group.
    pub(super) fn group_len(self) -> usize {
        self.bits * LINE
    }

    /// Bytes of a panel.
    ///
    /// # Panics
    /// As [`Layout::header_len`].
    pub(super) fn panel_len(self, k: usize) -> usize {
        let lines = (k / GROUP).checked_mul(self.group_len());
        let len = lines.and_then(|lines| lines.checked_add(self.header_len(k)));
        len.expect("the number of bytes fits usize")
    }
}
