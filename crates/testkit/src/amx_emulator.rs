//! Intel AMX tile instructions in software, so that the AMX kernels are tested on every x86-64 Linux machine.
//!
//! [`install`] puts a handler on SIGILL. On a machine without AMX each tile instruction of a kernel faults; the
//! handler decodes it, computes it on a tile state of the faulting thread, advances the instruction pointer, goes on
//! while tile instructions follow, and returns. Where the CPU has AMX, [`install`] asks the system for the tile
//! permission and intercepts nothing, so the same test runs on hardware.
//!
//! Covered: `ldtilecfg`, `sttilecfg`, `tilerelease`, `tilezero`, `tileloadd`, `tileloaddt1`, `tilestored`,
//! `tdpbf16ps`, `tdpbssd`, `tdpbsud`, `tdpbusd`, `tdpbuud`, without segment or address-size prefix. What hardware
//! would refuse (bad configuration block, unconfigured tile, shapes that do not fit, a load without SIB byte) ends
//! the process by SIGILL after a message on stderr that names instruction, reason and address: a kernel has to be
//! right here too. Any other illegal instruction meets the action that was there before.
//!
//! ```
//! use testkit::amx_emulator::{self, Emulation, Opcode};
//!
//! let before = amx_emulator::counts();
//! let emulation = amx_emulator::install()?;
//! // ... run the AMX kernel here ...
//! let executed = amx_emulator::counts().since(before);
//! if emulation == Emulation::Emulated {
//!     assert_eq!(executed.of(Opcode::Tdpbf16ps), 0, "no kernel ran in this example");
//! }
//! # Ok::<(), amx_emulator::InstallError>(())
//! ```
//!
//! Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1 chapter 18 and volume 2.

mod arithmetic;
mod decode;
mod handler;
mod hardware;
#[cfg(test)]
mod tests;
mod tile;
mod wide;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Who executes the tile instructions after [`install`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emulation {
    /// The CPU; nothing is intercepted and [`counts`] stays at zero.
    Hardware,
    /// The SIGILL handler of this module.
    Emulated,
}

/// Why [`install`] failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InstallError {
    /// The CPU has AMX but the system refused the tile state.
    #[error("arch_prctl refused the AMX tile permission: errno {errno}")]
    TilePermission {
        /// The system's error number.
        errno: i32,
    },
    /// The handler could not be set.
    #[error("sigaction refused a handler for SIGILL: errno {errno}")]
    SignalAction {
        /// The system's error number.
        errno: i32,
    },
}

/// The emulated instructions, as the assembler names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    /// Load the tile configuration.
    Ldtilecfg,
    /// Store the tile configuration.
    Sttilecfg,
    /// Return to the initial state.
    Tilerelease,
    /// Zero a tile.
    Tilezero,
    /// Load a tile.
    Tileloadd,
    /// Load a tile with a hint that the data need not stay in the nearest cache.
    Tileloaddt1,
    /// Store a tile.
    Tilestored,
    /// Dot products of bf16 pairs, accumulated in f32.
    Tdpbf16ps,
    /// Dot products of four bytes, signed by signed, accumulated in i32.
    Tdpbssd,
    /// Dot products of four bytes, signed by unsigned.
    Tdpbsud,
    /// Dot products of four bytes, unsigned by signed.
    Tdpbusd,
    /// Dot products of four bytes, unsigned by unsigned.
    Tdpbuud,
}

const N_OPCODES: usize = 12;

impl Opcode {
    const fn name(self) -> &'static str {
        match self {
            Self::Ldtilecfg => "ldtilecfg",
            Self::Sttilecfg => "sttilecfg",
            Self::Tilerelease => "tilerelease",
            Self::Tilezero => "tilezero",
            Self::Tileloadd => "tileloadd",
            Self::Tileloaddt1 => "tileloaddt1",
            Self::Tilestored => "tilestored",
            Self::Tdpbf16ps => "tdpbf16ps",
            Self::Tdpbssd => "tdpbssd",
            Self::Tdpbsud => "tdpbsud",
            Self::Tdpbusd => "tdpbusd",
            Self::Tdpbuud => "tdpbuud",
        }
    }
}

/// How many instructions of each kind the whole process has emulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts([u64; N_OPCODES]);

impl Counts {
    /// The number for one instruction.
    pub fn of(self, opcode: Opcode) -> u64 {
        self.0[opcode as usize]
    }

    /// What was executed between `earlier` and this reading. Other threads' work is included.
    pub fn since(self, earlier: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] - earlier.0[i]))
    }

    /// All instructions together.
    pub fn total(self) -> u64 {
        self.0.iter().sum()
    }
}

// A signal handler serves the whole process, so its counters do too.
static EXECUTED: [AtomicU64; N_OPCODES] = [const { AtomicU64::new(0) }; N_OPCODES];

/// Makes tile instructions executable in this process, by hardware or by emulation. Later calls, from any thread,
/// return the first outcome.
///
/// # Errors
/// When the system refuses the tile permission or the signal handler.
pub fn install() -> Result<Emulation, InstallError> {
    static OUTCOME: OnceLock<Result<Emulation, InstallError>> = OnceLock::new();
    *OUTCOME.get_or_init(|| {
        if hardware::has_amx() {
            hardware::request_tile_permission()?;
            return Ok(Emulation::Hardware);
        }
        handler::intercept_illegal_instructions()?;
        Ok(Emulation::Emulated)
    })
}

/// The instructions emulated so far. All zero on hardware.
pub fn counts() -> Counts {
    Counts(std::array::from_fn(|i| EXECUTED[i].load(Ordering::Relaxed)))
}

fn count(opcode: Opcode) {
    EXECUTED[opcode as usize].fetch_add(1, Ordering::Relaxed);
}

/// What hardware answers with #UD or #GP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Fault {
    #[error(
        "undefined encoding (VEX.L, VEX.W, VEX.vvvv or ModRM has a value that no AMX instruction uses)"
    )]
    UndefinedEncoding,
    #[error("tile register {tile} does not exist, expected 0 to 7")]
    NoSuchTile { tile: u8 },
    #[error("memory operand has no SIB byte")]
    NoSib,
    #[error("configuration block has palette {palette}, expected 0 or 1")]
    UnknownPalette { palette: u8 },
    #[error("configuration block has byte {offset} = {value}, expected 0 (reserved)")]
    ReservedNotZero { offset: usize, value: u8 },
    #[error(
        "configuration block gives tile {tile} {rows} rows of {row_bytes} bytes, expected at most 16 of 64, both or neither zero"
    )]
    BadShape { tile: usize, rows: u8, row_bytes: u16 },
    #[error("no tile configuration is loaded on this thread")]
    NotConfigured,
    #[error("tile {tile} has no rows in the loaded configuration")]
    TileNotConfigured { tile: u8 },
    #[error("tiles {destination}, {left}, {right} are not three different registers")]
    SameTile { destination: u8, left: u8, right: u8 },
    #[error("rows of {row_bytes} bytes in tile {tile} are not whole groups of four bytes")]
    PartialGroup { tile: u8, row_bytes: usize },
    #[error("destination has {destination} rows, first source {left}")]
    RowsDiffer { destination: usize, left: usize },
    #[error("destination has rows of {destination} bytes, second source {right}")]
    ColumnsDiffer { destination: usize, right: usize },
    #[error("first source has {left} groups of four bytes in a row, second source {right} rows")]
    DepthDiffers { left: usize, right: usize },
}
