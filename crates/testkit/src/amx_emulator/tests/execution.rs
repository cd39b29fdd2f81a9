//! Executed instructions against plain definitions.

use crate::amx_emulator::{Emulation, Opcode, counts, install};
use crate::random::Rng;
use std::arch::asm;

/// A configuration block: `(rows, row_bytes)` for the first tiles.
pub(super) fn config(shapes: &[(u8, u8)]) -> [u8; 64] {
    let mut block = [0; 64];
    block[0] = 1;
    for (tile, &(rows, row_bytes)) in shapes.iter().enumerate() {
        block[16 + 2 * tile] = row_bytes;
        block[48 + tile] = rows;
    }
    block
}

/// `$mnemonic tmm0, tmm1, tmm2` between a load of all three and a store of the first.
macro_rules! product {
    ($mnemonic:literal, $config:expr, $left:expr, $right:expr, $out:expr) => {{
        let (config, left, right, out): (&[u8; 64], &[u8], &[u8], &mut [u8]) =
            ($config, $left, $right, $out);
        assert!(left.len() == 1024 && right.len() == 1024 && out.len() == 1024);
        // SAFETY: install() made tile instructions executable; three blocks of 16 rows of 64 bytes are read and one
        // is written, all of them checked to have 1024 bytes.
        unsafe {
            asm!(
                "ldtilecfg [{config}]",
                "tileloadd tmm0, [{out} + {stride}*1]",
                "tileloadd tmm1, [{left} + {stride}*1]",
                "tileloaddt1 tmm2, [{right} + {stride}*1]",
                concat!($mnemonic, " tmm0, tmm1, tmm2"),
                "tilestored [{out} + {stride}*1], tmm0",
                "tilerelease",
                config = in(reg) config.as_ptr(),
                left = in(reg) left.as_ptr(),
                right = in(reg) right.as_ptr(),
                out = in(reg) out.as_mut_ptr(),
                stride = in(reg) 64_usize,
                out("tmm0") _, out("tmm1") _, out("tmm2") _,
                options(nostack),
            );
        }
    }};
}

const SHAPES: [(usize, usize, usize); 9] = [
    (16, 16, 16),
    (1, 1, 1),
    (1, 16, 16),
    (16, 1, 16),
    (16, 16, 1),
    (3, 5, 7),
    (15, 2, 9),
    (2, 15, 16),
    (7, 16, 3),
];

/// Tiles of `rows x depth` groups, `depth x columns` and `rows x columns` dwords.
fn product_config(rows: usize, depth: usize, columns: usize) -> [u8; 64] {
    config(&[
        (rows as u8, 4 * columns as u8),
        (rows as u8, 4 * depth as u8),
        (depth as u8, 4 * columns as u8),
    ])
}

fn random_bytes(rng: &mut Rng) -> Vec<u8> {
    (0..1024).map(|_| rng.next_u64() as u8).collect()
}

fn dword(bytes: &[u8], row: usize, column: usize) -> [u8; 4] {
    let at = 64 * row + 4 * column;
    bytes[at..at + 4].try_into().unwrap()
}

fn bf16(bytes: &[u8], row: usize, i: usize) -> f32 {
    let at = 64 * row + 2 * i;
    f32::from_bits(u32::from(u16::from_le_bytes([bytes[at], bytes[at + 1]])) << 16)
}

fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0.0_f32.copysign(x) } else { x }
}

/// The manual's definition, by the standard library's fused multiply-add.
fn expected_bf16(left: &[u8], right: &[u8], depth: usize, m: usize, n: usize, before: f32) -> f32 {
    let mut sums = [0.0_f32; 2];
    for k in 0..depth {
        for half in 0..2 {
            let (a, b) = (bf16(left, m, 2 * k + half), bf16(right, k, 2 * n + half));
            sums[half] = flush(flush(a).mul_add(flush(b), sums[half]));
        }
    }
    flush(flush(before) + flush(sums[0] + sums[1]))
}

/// Runs one product per shape and compares bits (a NaN with any NaN); outside the shape memory is untouched.
fn check_bf16(mut fill: impl FnMut() -> Vec<u8>) {
    install().unwrap();
    for (rows, depth, columns) in SHAPES {
        let (left, right, before) = (fill(), fill(), fill());
        let mut out = before.clone();
        product!("tdpbf16ps", &product_config(rows, depth, columns), &left, &right, &mut out);
        for m in 0..16 {
            for n in 0..16 {
                let was = f32::from_le_bytes(dword(&before, m, n));
                let is = f32::from_le_bytes(dword(&out, m, n));
                if m >= rows || n >= columns {
                    assert_eq!(is.to_bits(), was.to_bits(), "outside {rows}x{columns}: {m},{n}");
                    continue;
                }
                let expected = expected_bf16(&left, &right, depth, m, n, was);
                let same = is.to_bits() == expected.to_bits() || is.is_nan() && expected.is_nan();
                assert!(same, "{rows}x{depth}x{columns} at {m},{n}: {is:e}, expected {expected:e}");
            }
        }
    }
}

#[test]
fn bf16_products_equal_the_definition_on_ordinary_values() {
    let mut rng = Rng::new(1);
    check_bf16(|| {
        let mut values = [0.0_f32; 512];
        rng.fill_normal_bf16(&mut values, 1.0);
        values.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect()
    });
}

#[test]
fn bf16_products_equal_the_definition_on_arbitrary_bits() {
    // Subnormals, infinities, NaN, overflow and underflow of products included.
    let mut rng = Rng::new(2);
    check_bf16(|| random_bytes(&mut rng));
}

#[test]
fn bf16_products_equal_the_definition_near_the_least_normal_number() {
    // Exponents around 2^-63, so that products and sums meet 2^-126 from both sides.
    let mut rng = Rng::new(3);
    check_bf16(|| {
        let mut bf16_near = || {
            let exponent = 61 + rng.below(5) as u16;
            (rng.next_u64() as u16 & 0x807F) | exponent << 7
        };
        (0..512).flat_map(|_| bf16_near().to_le_bytes()).collect()
    });
}

/// Runs `$mnemonic` per shape and compares with sums of exact products.
macro_rules! check_bytes {
    ($mnemonic:literal, $left_type:ty, $right_type:ty) => {{
        install().unwrap();
        let mut rng = Rng::new(4);
        for (rows, depth, columns) in SHAPES {
            let (left, right, before) =
                (random_bytes(&mut rng), random_bytes(&mut rng), random_bytes(&mut rng));
            let mut out = before.clone();
            product!($mnemonic, &product_config(rows, depth, columns), &left, &right, &mut out);
            let mut expected = before.clone();
            for m in 0..rows {
                for n in 0..columns {
                    let mut sum = i64::from(i32::from_le_bytes(dword(&before, m, n)));
                    for k in 0..depth {
                        for i in 0..4 {
                            let a = left[64 * m + 4 * k + i] as $left_type;
                            let b = right[64 * k + 4 * n + i] as $right_type;
                            sum += i64::from(a) * i64::from(b);
                        }
                    }
                    let at = 64 * m + 4 * n;
                    expected[at..at + 4].copy_from_slice(&(sum as i32).to_le_bytes());
                }
            }
            assert_eq!(out, expected, "{} {rows}x{depth}x{columns}", $mnemonic);
        }
    }};
}

#[test]
fn byte_products_equal_the_definition_for_all_signs() {
    check_bytes!("tdpbssd", i8, i8);
    check_bytes!("tdpbsud", i8, u8);
    check_bytes!("tdpbusd", u8, i8);
    check_bytes!("tdpbuud", u8, u8);
}

/// Loads one tile of 4 rows of 8 bytes by the given address and stores it densely.
macro_rules! load {
    ($operand:literal, $($register:tt = $value:expr),*) => {{
        let block = config(&[(4, 8)]);
        let mut out = [0xEE_u8; 32];
        // SAFETY: install() made tile instructions executable; each caller's addresses stay in its memory of 4096
        // bytes, and 4 rows of 8 bytes are stored to `out`.
        unsafe {
            asm!(
                "ldtilecfg [{config}]",
                concat!("tileloadd tmm0, [", $operand, "]"),
                "tilestored [{out} + {dense}*1], tmm0",
                "tilerelease",
                config = in(reg) block.as_ptr(),
                out = in(reg) out.as_mut_ptr(),
                dense = in(reg) 8_usize,
                $(in($register) $value,)*
                out("tmm0") _,
                options(nostack),
            );
        }
        out
    }};
}

#[test]
fn every_addressing_form_reads_the_rows_it_names() {
    install().unwrap();
    let mut memory = vec![0_u8; 4096];
    let mut rng = Rng::new(5);
    memory.fill_with(|| rng.next_u64() as u8);
    let start = memory.as_ptr();
    let rows = |offset: usize, stride: usize| -> Vec<u8> {
        (0..4).flat_map(|r| memory[offset + r * stride..][..8].to_vec()).collect()
    };
    assert_eq!(load!("r8 + r9*1", "r8" = start, "r9" = 64_usize)[..], rows(0, 64));
    assert_eq!(load!("r12 + r13*2 + 0x40", "r12" = start, "r13" = 50_usize)[..], rows(64, 100));
    assert_eq!(load!("r13 + r12*8 + 0x7f0", "r12" = 3_usize, "r13" = start)[..], rows(0x7F0, 24));
    let end = start.wrapping_add(4096);
    assert_eq!(load!("r14 + r15*4 - 0x800", "r14" = end, "r15" = 8_usize)[..], rows(2048, 32));
    assert_eq!(load!("r10", "r10" = start)[..], rows(0, 0), "no index: every row is the first");
    assert_eq!(load!("rdi*1 + rsi", "rdi" = 9_usize, "rsi" = start)[..], rows(0, 9));
    assert_eq!(load!("rax + rdx*1 - 8", "rax" = end, "rdx" = -8_isize)[..], {
        (0..4).flat_map(|r| memory[4088 - 8 * r..][..8].to_vec()).collect::<Vec<_>>()
    });
}

#[test]
fn the_configuration_can_be_read_back() {
    install().unwrap();
    let block = config(&[(16, 64), (3, 12), (0, 0), (1, 4)]);
    let mut seen = [[0xEE_u8; 64]; 2];
    // SAFETY: tile instructions are executable; 64 bytes are read and twice 64 written.
    unsafe {
        asm!(
            "ldtilecfg [{config}]",
            "sttilecfg [{seen}]",
            "tilerelease",
            "sttilecfg [{seen} + 64]",
            config = in(reg) block.as_ptr(),
            seen = in(reg) seen.as_mut_ptr(),
            options(nostack),
        );
    }
    assert_eq!(seen[0], block);
    assert_eq!(seen[1], [0; 64]);
}

#[test]
fn tilezero_clears_one_tile_only() {
    install().unwrap();
    let block = config(&[(16, 64), (16, 64)]);
    let ones = [1_u8; 1024];
    let mut seen = [[0xEE_u8; 1024]; 2];
    // SAFETY: tile instructions are executable; two tiles of 1024 bytes are read and written at 1024 bytes each.
    unsafe {
        asm!(
            "ldtilecfg [{config}]",
            "tileloadd tmm0, [{ones} + {stride}]",
            "tileloadd tmm1, [{ones} + {stride}]",
            "tilezero tmm1",
            "tilestored [{seen} + {stride}], tmm0",
            "tilestored [{seen} + {stride} + 1024], tmm1",
            "tilerelease",
            config = in(reg) block.as_ptr(),
            ones = in(reg) ones.as_ptr(),
            seen = in(reg) seen.as_mut_ptr(),
            stride = in(reg) 64_usize,
            out("tmm0") _, out("tmm1") _,
            options(nostack),
        );
    }
    assert_eq!(seen, [[1; 1024], [0; 1024]]);
}

#[test]
fn the_result_ignores_the_callers_rounding_mode_and_keeps_it() {
    install().unwrap();
    // Round toward zero, flush nothing.
    let odd_mode = 0x7F80_u32;
    let (mut caller_mode, mut seen_mode) = (0_u32, 0_u32);
    // 1 + 3 * 2^-25 rounds up to 1 + 2^-23, or down to 1 by truncation.
    let block = config(&[(1, 4), (1, 4), (1, 4)]);
    let left = [half::bf16::from_f32(3.0).to_le_bytes(), [0, 0]].concat();
    let right = [half::bf16::from_f32(2.0_f32.powi(-25)).to_le_bytes(), [0, 0]].concat();
    let mut out = 1.0_f32;
    // SAFETY: tile instructions are executable; tiles have one row of 4 bytes. The control register is restored.
    unsafe {
        asm!(
            "ldtilecfg [{config}]",
            "tileloadd tmm0, [{out}]",
            "tileloadd tmm1, [{left}]",
            "tileloadd tmm2, [{right}]",
            "stmxcsr [{caller_mode}]",
            "ldmxcsr [{odd_mode}]",
            "tdpbf16ps tmm0, tmm1, tmm2",
            "stmxcsr [{seen_mode}]",
            "ldmxcsr [{caller_mode}]",
            "tilestored [{out}], tmm0",
            "tilerelease",
            config = in(reg) block.as_ptr(),
            out = in(reg) &raw mut out,
            left = in(reg) left.as_ptr(),
            right = in(reg) right.as_ptr(),
            odd_mode = in(reg) &raw const odd_mode,
            caller_mode = in(reg) &raw mut caller_mode,
            seen_mode = in(reg) &raw mut seen_mode,
            out("tmm0") _, out("tmm1") _, out("tmm2") _,
            options(nostack),
        );
    }
    assert_eq!(out, 1.0 + f32::EPSILON);
    assert_eq!(seen_mode, odd_mode);
}

#[test]
fn each_thread_has_its_own_tiles() {
    install().unwrap();
    let fill = |value: u8, steps: &std::sync::Barrier| {
        let block = config(&[(16, 64)]);
        let bytes = [value; 1024];
        let mut seen = [0_u8; 1024];
        // SAFETY: tile instructions are executable; one tile of 1024 bytes is read.
        unsafe {
            asm!("ldtilecfg [{config}]", "tileloadd tmm0, [{bytes} + {stride}]",
                config = in(reg) block.as_ptr(), bytes = in(reg) bytes.as_ptr(), stride = in(reg) 64_usize,
                out("tmm0") _, options(nostack));
        }
        steps.wait();
        // SAFETY: as above; nothing between the two blocks touches this thread's tiles. One tile is written.
        unsafe {
            asm!("tilestored [{seen} + {stride}], tmm0", "tilerelease",
                seen = in(reg) seen.as_mut_ptr(), stride = in(reg) 64_usize, options(nostack));
        }
        seen
    };
    let steps = std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| fill(2, &steps));
        assert_eq!(fill(1, &steps), [1; 1024]);
        assert_eq!(other.join().unwrap(), [2; 1024]);
    });
}

#[test]
fn executed_instructions_are_counted_when_emulated() {
    let emulation = install().unwrap();
    let before = counts();
    let (left, right, mut out) = ([0; 1024], [0; 1024], [0; 1024]);
    product!("tdpbusd", &product_config(4, 4, 4), &left, &right, &mut out);
    let executed = counts().since(before);
    if emulation == Emulation::Hardware {
        assert_eq!(executed.total(), 0);
        return;
    }
    // Other tests of this process may add to these.
    assert!(executed.of(Opcode::Tdpbusd) >= 1, "{executed:?}");
    assert!(executed.of(Opcode::Tileloadd) >= 2, "{executed:?}");
    assert!(executed.of(Opcode::Tileloaddt1) >= 1, "{executed:?}");
    assert!(executed.of(Opcode::Tilerelease) >= 1, "{executed:?}");
}
