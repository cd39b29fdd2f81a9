//! The definition of a product ([`super::matmul`]), and the numbers of a packed matrix.
#![expect(unsafe_code, reason = "parts give their output by a pointer")]

use half::f16;

use super::layout::{FACTOR, GROUP, LINE, SUPER_GROUPS, Scales};
use super::{BUNDLE, PackedBlocks, Part, RECORD, Rows};
use crate::matmul::Write;
use crate::panels::PANEL_WIDTH;

/// # Safety
/// As [`super::multiply`].
pub(super) unsafe fn multiply(part: &Part<'_>) {
    for row in part.row..part.row + part.n_rows {
        for panel in part.panels() {
            for lane in 0..part.width(panel) {
                let out = part.out_at(row, panel).wrapping_add(lane);
                // SAFETY: the part's output holds its rows and columns by the caller's promise.
                let out = unsafe { &mut *out };
                let start = if part.write == Write::Overwrite { 0.0 } else { *out };
                *out = dot(part.rows, row, part.weight, panel * PANEL_WIDTH + lane, start);
            }
        }
    }
}

fn dot(rows: Rows<'_>, row: usize, weight: PackedBlocks<'_>, column: usize, start: f32) -> f32 {
    let mut acc = start;
    for group in 0..rows.k / GROUP {
        let x = row_group(rows, row, group);
        let codes = codes(weight, column, group);
        let offset = i32::from(weight.layout.offset());
        let sum = |range: std::ops::Range<usize>| -> f32 {
            range.map(|i| (i32::from(codes[i]) - offset) * i32::from(x.codes[i])).sum::<i32>()
                as f32
        };
        let [w, second] = factors(weight, column, group);
        let number = match weight.layout.scales {
            Scales::One => w * sum(0..GROUP),
            Scales::WithMinimum | Scales::SixBits => (-x.sum).mul_add(second, w * sum(0..GROUP)),
            Scales::Halves => second.mul_add(sum(GROUP / 2..GROUP), w * sum(0..GROUP / 2)),
        };
        acc = x.scale.mul_add(number, acc);
    }
    acc
}

/// One group of a row.
pub(super) struct RowGroup {
    pub(super) codes: [i8; GROUP],
    pub(super) scale: f32,
    /// Of all codes.
    pub(super) sum: f32,
}

pub(super) fn row_group(rows: Rows<'_>, row: usize, group: usize) -> RowGroup {
    let (bundle, n_rows) = rows.bundle(row - row % BUNDLE);
    let record = &bundle[group * n_rows * RECORD..][..n_rows * RECORD];
    let (codes, factors) = record.split_at(n_rows * GROUP);
    let factor = |i: usize| {
        let at = (i * n_rows + row % BUNDLE) * 4;
        f32::from_ne_bytes([factors[at], factors[at + 1], factors[at + 2], factors[at + 3]])
    };
    let codes = &codes[row % BUNDLE * GROUP..];
    RowGroup {
        codes: std::array::from_fn(|i| codes[i].cast_signed()),
        scale: factor(0),
        sum: factor(1),
    }
}

/// The numbers of a group of a row of the matrix, in the f32 operations that decode its block.
pub(super) fn numbers(weight: PackedBlocks<'_>, row: usize, group: usize) -> [f32; GROUP] {
    let codes = codes(weight, row, group);
    let [first, second] = factors(weight, row, group);
    let offset = i16::from(weight.layout.offset());
    std::array::from_fn(|i| {
        let code = f32::from(i16::from(codes[i]) - offset);
        match weight.layout.scales {
            Scales::One => first * code,
            Scales::WithMinimum | Scales::SixBits => first * code - second,
            Scales::Halves => [first, second][i / (GROUP / 2)] * code,
        }
    })
}

/// The codes of a group of a row of the matrix.
pub(super) fn codes(weight: PackedBlocks<'_>, row: usize, group: usize) -> [u8; GROUP] {
    let layout = weight.layout;
    let (_, lines) = weight.panel(row / PANEL_WIDTH);
    let lines = &lines[group * layout.group_len()..][..layout.group_len()];
    std::array::from_fn(|i| {
        let (half, j, byte) = (i / 16, i % 16 / 4, row % PANEL_WIDTH * 4 + i % 4);
        if layout.bits == 8 {
            return lines[i / 4 * LINE + byte];
        }
        let high = match layout.bits {
            5 => lines[4 * LINE + byte] >> (4 * half + j) & 1,
            6 => lines[(4 + half) * LINE + byte] >> (2 * j) & 3,
            _ => 0,
        };
        lines[j * LINE + byte] >> (4 * half) & 15 | high << 4
    })
}

/// `w` and `m`, or `w0` and `w1`, of a group of a row of the matrix.
pub(super) fn factors(weight: PackedBlocks<'_>, row: usize, group: usize) -> [f32; 2] {
    let layout = weight.layout;
    let (header, _) = weight.panel(row / PANEL_WIDTH);
    let (lane, group_idx) = (row % PANEL_WIDTH, group % layout.block_groups);
    let header = &header[group / layout.block_groups * layout.block_header()..];
    let half = |place: usize| {
        let at = place * FACTOR + 2 * lane;
        f16::from_le_bytes([header[at], header[at + 1]]).to_f32()
    };
    match layout.scales {
        Scales::One => [half(0), 0.0],
        Scales::WithMinimum => [half(0), -half(1)],
        Scales::SixBits => [0, 1].map(|i| {
            let at = (i * SUPER_GROUPS + group_idx) * PANEL_WIDTH + lane;
            half(i) * f32::from(six_bits(&header[2 * FACTOR..], at))
        }),
        Scales::Halves => [0, 1].map(|i| {
            let at = FACTOR + (2 * group_idx + i) * PANEL_WIDTH + lane;
            half(0) * f32::from(header[at].cast_signed())
        }),
    }
}

/// Entry `at` of [`Scales::SixBits`].
fn six_bits(lines: &[u8], at: usize) -> u8 {
    match at.checked_sub(3 * LINE) {
        None => lines[at] & 63,
        Some(b) => lines[b] >> 6 | lines[LINE + b] >> 6 << 2 | lines[2 * LINE + b] >> 6 << 4,
    }
}
