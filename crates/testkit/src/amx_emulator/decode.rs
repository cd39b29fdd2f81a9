//! Decoder of the VEX-encoded tile instructions.
//!
//! All are `C4` (three-byte VEX), map `0F38`, W0, L0; the opcode byte and the `pp` field choose the instruction.
//! No other VEX instruction of that map has the opcodes 49, 4B, 5C, 5E, so a wrong field there is a fault and
//! not a foreign instruction.

use super::{Fault, Opcode};

/// One decoded instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Instruction {
    pub(super) opcode: Opcode,
    pub(super) operands: Operands,
    /// Bytes from the first of the instruction to the first of the next.
    pub(super) length: usize,
}

/// Operands by form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operands {
    None,
    Memory(Address),
    Tile(u8),
    TileMemory { tile: u8, rows: Address },
    Tiles { destination: u8, left: u8, right: u8 },
}

/// An address before registers are read: `base + displacement`, plus `index << scale`, which for tile loads and
/// stores is the row stride.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) base: Base,
    /// Register number and shift.
    pub(super) index: Option<(u8, u8)>,
    pub(super) displacement: i32,
}

/// What an address starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Base {
    Zero,
    Register(u8),
    NextInstruction,
}

/// Why no instruction was decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rejected {
    /// Not in the AMX opcode space.
    Foreign,
    /// In that space, but refused by hardware.
    Fault(Fault),
}

impl From<Fault> for Rejected {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// Mandatory prefix, from the `pp` field.
#[derive(Clone, Copy)]
enum Prefix {
    None,
    P66,
    PF3,
    PF2,
}

/// Decodes the instruction whose byte `i` is `fetch(i)`. Reads no byte past its end.
pub(super) fn decode(fetch: impl Fn(usize) -> u8) -> Result<Instruction, Rejected> {
    if fetch(0) != 0xC4 {
        return Err(Rejected::Foreign);
    }
    let extensions = fetch(1);
    if extensions & 0x1F != 2 {
        return Err(Rejected::Foreign);
    }
    let fields = fetch(2);
    let opcode_byte = fetch(3);
    if !matches!(opcode_byte, 0x49 | 0x4B | 0x5C | 0x5E) {
        return Err(Rejected::Foreign);
    }
    // W and L are both zero in every tile instruction.
    if fields & 0x84 != 0 {
        return Err(Fault::UndefinedEncoding.into());
    }
    let prefix = match fields & 3 {
        0 => Prefix::None,
        1 => Prefix::P66,
        2 => Prefix::PF3,
        _ => Prefix::PF2,
    };
    let modrm = fetch(4);
    let parts = Parts {
        mode: modrm >> 6,
        // R, X, B and vvvv are stored inverted.
        reg: (modrm >> 3 & 7) | (!extensions >> 7 & 1) << 3,
        rm: modrm & 7,
        x: (!extensions >> 6 & 1) << 3,
        b: (!extensions >> 5 & 1) << 3,
        vvvv: !fields >> 3 & 15,
    };
    let (opcode, operands, length) = match opcode_byte {
        0x49 => configuration(prefix, parts, fetch)?,
        0x4B => transfer(prefix, parts, fetch)?,
        _ => product(opcode_byte, prefix, parts)?,
    };
    Ok(Instruction { opcode, operands, length })
}

/// The register fields of one instruction, extension bits applied or ready to add.
#[derive(Clone, Copy)]
struct Parts {
    mode: u8,
    reg: u8,
    rm: u8,
    x: u8,
    b: u8,
    vvvv: u8,
}

type Decoded = (Opcode, Operands, usize);

/// Opcode 49: configuration and zeroing.
fn configuration(
    prefix: Prefix,
    parts: Parts,
    fetch: impl Fn(usize) -> u8,
) -> Result<Decoded, Fault> {
    if parts.vvvv != 0 {
        return Err(Fault::UndefinedEncoding);
    }
    if parts.mode == 3 {
        return match prefix {
            Prefix::None if parts.reg == 0 && parts.rm == 0 => {
                Ok((Opcode::Tilerelease, Operands::None, 5))
            }
            Prefix::PF2 if parts.rm == 0 => {
                Ok((Opcode::Tilezero, Operands::Tile(tile(parts.reg)?), 5))
            }
            _ => Err(Fault::UndefinedEncoding),
        };
    }
    let opcode = match prefix {
        Prefix::None => Opcode::Ldtilecfg,
        Prefix::P66 => Opcode::Sttilecfg,
        Prefix::PF3 | Prefix::PF2 => return Err(Fault::UndefinedEncoding),
    };
    if parts.reg != 0 {
        return Err(Fault::UndefinedEncoding);
    }
    let (address, length) = memory(parts, fetch);
    Ok((opcode, Operands::Memory(address), length))
}

/// Opcode 4B: tile loads and stores, which need a SIB byte.
fn transfer(prefix: Prefix, parts: Parts, fetch: impl Fn(usize) -> u8) -> Result<Decoded, Fault> {
    let opcode = match prefix {
        Prefix::PF2 => Opcode::Tileloadd,
        Prefix::P66 => Opcode::Tileloaddt1,
        Prefix::PF3 => Opcode::Tilestored,
        Prefix::None => return Err(Fault::UndefinedEncoding),
    };
    if parts.vvvv != 0 || parts.mode == 3 {
        return Err(Fault::UndefinedEncoding);
    }
    if parts.rm != 4 {
        return Err(Fault::NoSib);
    }
    let (rows, length) = memory(parts, fetch);
    Ok((opcode, Operands::TileMemory { tile: tile(parts.reg)?, rows }, length))
}

/// Opcodes 5C and 5E: dot products. ModRM.reg is the destination, ModRM.rm the first source, vvvv the second.
fn product(opcode_byte: u8, prefix: Prefix, parts: Parts) -> Result<Decoded, Fault> {
    let opcode = match (opcode_byte, prefix) {
        (0x5C, Prefix::PF3) => Opcode::Tdpbf16ps,
        (0x5E, Prefix::None) => Opcode::Tdpbuud,
        (0x5E, Prefix::P66) => Opcode::Tdpbusd,
        (0x5E, Prefix::PF3) => Opcode::Tdpbsud,
        (0x5E, Prefix::PF2) => Opcode::Tdpbssd,
        _ => return Err(Fault::UndefinedEncoding),
    };
    if parts.mode != 3 {
        return Err(Fault::UndefinedEncoding);
    }
    let operands = Operands::Tiles {
        destination: tile(parts.reg)?,
        left: tile(parts.rm | parts.b)?,
        right: tile(parts.vvvv)?,
    };
    Ok((opcode, operands, 5))
}

fn tile(register: u8) -> Result<u8, Fault> {
    if register > 7 { Err(Fault::NoSuchTile { tile: register }) } else { Ok(register) }
}

/// The memory operand and the length of the whole instruction.
fn memory(parts: Parts, fetch: impl Fn(usize) -> u8) -> (Address, usize) {
    let displacement_32 =
        |at: usize| i32::from_le_bytes([fetch(at), fetch(at + 1), fetch(at + 2), fetch(at + 3)]);
    let mut at = 5;
    let (base_low, index) = if parts.rm == 4 {
        let sib = fetch(at);
        at += 1;
        // Index 4 without its extension bit means none; r12 is a valid index.
        let index = (sib >> 3 & 7) | parts.x;
        (sib & 7, (index != 4).then_some((index, sib >> 6)))
    } else {
        (parts.rm, None)
    };
    if parts.mode == 0 && base_low == 5 {
        let base = if parts.rm == 4 { Base::Zero } else { Base::NextInstruction };
        return (Address { base, index, displacement: displacement_32(at) }, at + 4);
    }
    let (displacement, length) = match parts.mode {
        0 => (0, at),
        1 => (i32::from(fetch(at).cast_signed()), at + 1),
        _ => (displacement_32(at), at + 4),
    };
    (Address { base: Base::Register(base_low | parts.b), index, displacement }, length)
}
