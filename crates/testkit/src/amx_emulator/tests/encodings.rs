//! The decoder against what the assembler makes of the instruction's text.

use crate::amx_emulator::decode::{Address, Base, Instruction, Operands, Rejected, decode};
use crate::amx_emulator::{Fault, Opcode};

// Assembled, never executed.
std::arch::global_asm!(
    ".pushsection .rodata.testkit_amx_encodings, \"a\"",
    "testkit_amx_encodings:",
    "ldtilecfg [rax]",
    "ldtilecfg [r13]",
    "ldtilecfg [rip + 0x1234]",
    "sttilecfg [rsp + 8]",
    "sttilecfg [r12 + r9*8 - 0x12345]",
    "ldtilecfg [0x1000]",
    "tilerelease",
    "tilezero tmm0",
    "tilezero tmm7",
    "tileloadd tmm1, [rax + rbx*1]",
    "tileloadd tmm2, [rbp + rcx*2]",
    "tileloadd tmm3, [r13 + r14*4 + 0x40]",
    "tileloadd tmm4, [r12 + r12*8 - 0x400]",
    "tileloadd tmm5, [rdi]",
    "tileloadd tmm6, [rsi*8 + 0x100]",
    "tileloaddt1 tmm7, [r8 + rdx*1 - 1]",
    "tilestored [rsp + r15*1 + 0x7fffffff], tmm0",
    "tilestored [r11 + r10*2], tmm5",
    "tdpbf16ps tmm1, tmm2, tmm3",
    "tdpbf16ps tmm7, tmm0, tmm6",
    "tdpbssd tmm0, tmm1, tmm2",
    "tdpbsud tmm3, tmm4, tmm5",
    "tdpbusd tmm6, tmm7, tmm0",
    "tdpbuud tmm5, tmm6, tmm7",
    "testkit_amx_encodings_end:",
    ".popsection",
);

unsafe extern "C" {
    static testkit_amx_encodings: u8;
    static testkit_amx_encodings_end: u8;
}

fn assembled() -> &'static [u8] {
    let (start, end) = (&raw const testkit_amx_encodings, &raw const testkit_amx_encodings_end);
    // SAFETY: both labels are of one read-only section of this program, the second after the first.
    unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
}

const AX: u8 = 0;
const CX: u8 = 1;
const DX: u8 = 2;
const BX: u8 = 3;
const SP: u8 = 4;
const BP: u8 = 5;
const SI: u8 = 6;
const DI: u8 = 7;

fn address(base: u8, index: Option<(u8, u8)>, displacement: i32) -> Address {
    Address { base: Base::Register(base), index, displacement }
}

fn rows(tile: u8, base: u8, index: Option<(u8, u8)>, displacement: i32) -> Operands {
    Operands::TileMemory { tile, rows: address(base, index, displacement) }
}

fn expected() -> Vec<(Opcode, Operands)> {
    let memory = |address| Operands::Memory(address);
    let no_base = |index, displacement| Address { base: Base::Zero, index, displacement };
    let tiles = |destination, left, right| Operands::Tiles { destination, left, right };
    let from_here = Address { base: Base::NextInstruction, index: None, displacement: 0x1234 };
    vec![
        (Opcode::Ldtilecfg, memory(address(AX, None, 0))),
        (Opcode::Ldtilecfg, memory(address(13, None, 0))),
        (Opcode::Ldtilecfg, memory(from_here)),
        (Opcode::Sttilecfg, memory(address(SP, None, 8))),
        (Opcode::Sttilecfg, memory(address(12, Some((9, 3)), -0x12345))),
        (Opcode::Ldtilecfg, memory(no_base(None, 0x1000))),
        (Opcode::Tilerelease, Operands::None),
        (Opcode::Tilezero, Operands::Tile(0)),
        (Opcode::Tilezero, Operands::Tile(7)),
        (Opcode::Tileloadd, rows(1, AX, Some((BX, 0)), 0)),
        (Opcode::Tileloadd, rows(2, BP, Some((CX, 1)), 0)),
        (Opcode::Tileloadd, rows(3, 13, Some((14, 2)), 0x40)),
        (Opcode::Tileloadd, rows(4, 12, Some((12, 3)), -0x400)),
        (Opcode::Tileloadd, rows(5, DI, None, 0)),
        (Opcode::Tileloadd, Operands::TileMemory { tile: 6, rows: no_base(Some((SI, 3)), 0x100) }),
        (Opcode::Tileloaddt1, rows(7, 8, Some((DX, 0)), -1)),
        (Opcode::Tilestored, rows(0, SP, Some((15, 0)), 0x7FFF_FFFF)),
        (Opcode::Tilestored, rows(5, 11, Some((10, 1)), 0)),
        (Opcode::Tdpbf16ps, tiles(1, 2, 3)),
        (Opcode::Tdpbf16ps, tiles(7, 0, 6)),
        (Opcode::Tdpbssd, tiles(0, 1, 2)),
        (Opcode::Tdpbsud, tiles(3, 4, 5)),
        (Opcode::Tdpbusd, tiles(6, 7, 0)),
        (Opcode::Tdpbuud, tiles(5, 6, 7)),
    ]
}

#[test]
fn every_form_decodes_to_what_the_assembler_was_told() {
    let code = assembled();
    let mut at = 0;
    for (opcode, operands) in expected() {
        let decoded = decode(|i| code[at + i]);
        let Ok(Instruction { opcode: found, operands: found_operands, length }) = decoded else {
            panic!(
                "{opcode:?} at {at}: {decoded:?}, bytes {:02x?}",
                &code[at..code.len().min(at + 11)]
            );
        };
        assert_eq!((found, found_operands), (opcode, operands), "at byte {at}");
        at += length;
    }
    assert_eq!(at, code.len(), "the lengths add up to the assembled bytes");
}

fn rejected(bytes: &[u8]) -> Rejected {
    decode(|i| bytes[i]).expect_err("no such instruction")
}

#[test]
fn encodings_that_hardware_refuses_are_faults() {
    let undefined = Rejected::Fault(Fault::UndefinedEncoding);
    // tilezero tmm0 is C4 E2 7B 49 C0; each line spoils one field.
    assert_eq!(rejected(&[0xC4, 0xE2, 0xFB, 0x49, 0xC0]), undefined, "W");
    assert_eq!(rejected(&[0xC4, 0xE2, 0x7F, 0x49, 0xC0]), undefined, "L");
    assert_eq!(rejected(&[0xC4, 0xE2, 0x73, 0x49, 0xC0]), undefined, "vvvv");
    assert_eq!(rejected(&[0xC4, 0xE2, 0x7B, 0x49, 0xC1]), undefined, "rm");
    assert_eq!(rejected(&[0xC4, 0xE2, 0x7A, 0x49, 0xC0]), undefined, "prefix");
    // tileloadd tmm0, [rax] without a SIB byte.
    assert_eq!(rejected(&[0xC4, 0xE2, 0x7B, 0x4B, 0x00]), Rejected::Fault(Fault::NoSib));
    // tdpbf16ps with tmm8 in each place.
    let tile_8 = Rejected::Fault(Fault::NoSuchTile { tile: 8 });
    assert_eq!(rejected(&[0xC4, 0x62, 0x72, 0x5C, 0xC2]), tile_8, "destination");
    assert_eq!(rejected(&[0xC4, 0xC2, 0x72, 0x5C, 0xC0]), tile_8, "first source");
    assert_eq!(rejected(&[0xC4, 0xE2, 0x3A, 0x5C, 0xC2]), tile_8, "second source");
}

#[test]
fn other_instructions_are_left_alone() {
    assert_eq!(rejected(&[0x0F, 0x0B]), Rejected::Foreign, "ud2");
    // vpmaskmovd, which shares map 0F38, and vpalignr, which does not.
    assert_eq!(rejected(&[0xC4, 0xE2, 0x75, 0x8C, 0x00]), Rejected::Foreign);
    assert_eq!(rejected(&[0xC4, 0xE3, 0x75, 0x4B, 0xC2]), Rejected::Foreign);
}
