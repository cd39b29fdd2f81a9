//! The SIGILL handler: reads the instruction and the registers of the interrupted thread and applies the instruction.
//!
//! The handler runs with the floating-point state that Linux gives every handler (round to nearest, nothing flushed);
//! the interrupted code gets its own state back on return, so neither sees the other's.
//! Everything called from here is async-signal-safe: no allocation, no lock, no panic on valid input.
#![expect(
    unsafe_code,
    reason = "a signal handler works on raw registers and on memory named by them"
)]

use super::decode::{Address, Base, Instruction, Operands, Rejected, decode};
use super::hardware::last_errno;
use super::tile::{CONFIG_BYTES, Signs, TileState};
use super::{Fault, InstallError, Opcode, count};
use std::cell::UnsafeCell;
use std::fmt::{self, Write as _};
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;

type Registers = [libc::greg_t; 23];

thread_local! {
    // Const-initialised and without destructor: an access is a load from the thread's own block, nothing is
    // registered or allocated.
    static TILES: UnsafeCell<TileState> = const { UnsafeCell::new(TileState::INITIAL) };
}

static PREVIOUS_ACTION: OnceLock<libc::sigaction> = OnceLock::new();

/// Sets the handler, keeping the action that was there for instructions that are not ours.
pub(super) fn intercept_illegal_instructions() -> Result<(), InstallError> {
    let mut previous = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: asks for the current action only; `previous` is writable and of the right type.
    let asked = unsafe { libc::sigaction(libc::SIGILL, ptr::null(), previous.as_mut_ptr()) };
    if asked != 0 {
        return Err(InstallError::SignalAction { errno: last_errno() });
    }
    // SAFETY: the call succeeded and filled it.
    let previous = unsafe { previous.assume_init() };
    // Known before the handler can run; install() calls this once.
    PREVIOUS_ACTION.get_or_init(|| previous);
    // SAFETY: all-zero bytes are a valid sigaction (default action, empty mask).
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
        on_illegal_instruction;
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: `action` is complete, and its handler has the signature that SA_SIGINFO demands.
    let set = unsafe { libc::sigaction(libc::SIGILL, &raw const action, ptr::null_mut()) };
    if set == 0 { Ok(()) } else { Err(InstallError::SignalAction { errno: last_errno() }) }
}

extern "C" fn on_illegal_instruction(
    _signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: with SA_SIGINFO the kernel passes a valid siginfo_t and ucontext_t, ours until the handler returns.
    let (info, context) = unsafe { (&*info, &mut *context.cast::<libc::ucontext_t>()) };
    if info.si_code <= 0 {
        return pass_on(info.si_code);
    }
    let registers = &mut context.uc_mcontext.gregs;
    // Tile instructions come in runs and a signal costs more than most of them, so the whole run is executed. None of
    // them jumps, so the run ends within the kernel's own straight code.
    let mut n_executed = 0_u32;
    loop {
        match step(registers) {
            Ok(()) => n_executed += 1,
            Err(Stopped::Foreign) if n_executed > 0 => return,
            Err(Stopped::Foreign) => return pass_on(info.si_code),
            Err(Stopped::Fault { opcode, fault }) => return die(opcode, fault, registers),
        }
    }
}

/// Why the instruction at the instruction pointer was not executed.
enum Stopped {
    Foreign,
    Fault { opcode: Option<Opcode>, fault: Fault },
}

/// Executes the tile instruction at the instruction pointer and advances the pointer.
fn step(registers: &mut Registers) -> Result<(), Stopped> {
    let address = registers[libc::REG_RIP as usize] as usize;
    // SAFETY: the CPU fetches or would fetch the instruction at this address next, and `decode` reads no byte past the
    // end of an instruction.
    let fetch = |offset| unsafe { pointer(address.wrapping_add(offset)).cast_const().read() };
    let instruction = decode(fetch).map_err(|rejected| match rejected {
        Rejected::Foreign => Stopped::Foreign,
        Rejected::Fault(fault) => Stopped::Fault { opcode: None, fault },
    })?;
    // SAFETY: only this thread can reach its own tiles, and SIGILL is blocked while its handler runs, so no other
    // reference to them exists.
    let applied = TILES.with(|tiles| unsafe { apply(&instruction, &mut *tiles.get(), registers) });
    applied.map_err(|fault| Stopped::Fault { opcode: Some(instruction.opcode), fault })?;
    count(instruction.opcode);
    registers[libc::REG_RIP as usize] = address.wrapping_add(instruction.length) as i64;
    Ok(())
}

/// Executes one instruction on the tiles and on memory.
///
/// # Safety
/// As for the instruction itself: the addresses it names must be readable or writable for the interrupted code, which
/// expects the access. An address that is not mapped ends the process by SIGSEGV, as it would on hardware.
unsafe fn apply(
    instruction: &Instruction,
    tiles: &mut TileState,
    registers: &Registers,
) -> Result<(), Fault> {
    let next_instruction =
        registers[libc::REG_RIP as usize].wrapping_add(instruction.length as i64);
    match instruction.operands {
        Operands::None => {
            tiles.release();
            Ok(())
        }
        Operands::Memory(address) => {
            let (start, index) = resolve(address, registers, next_instruction);
            let block = pointer(start.wrapping_add(index));
            if instruction.opcode == Opcode::Sttilecfg {
                let bytes = tiles.configuration();
                // SAFETY: the instruction writes 64 bytes there, see above.
                unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), block, CONFIG_BYTES) };
                return Ok(());
            }
            // SAFETY: the instruction reads 64 bytes there, see above; byte arrays need no alignment.
            let bytes = unsafe { block.cast::<[u8; CONFIG_BYTES]>().read() };
            tiles.configure(&bytes)
        }
        Operands::Tile(tile) => tiles.zero(tile),
        Operands::TileMemory { tile, rows } => {
            let (start, stride) = resolve(rows, registers, next_instruction);
            let row_address = |row: usize| pointer(start.wrapping_add(row.wrapping_mul(stride)));
            if instruction.opcode == Opcode::Tilestored {
                // SAFETY: the instruction writes these bytes of each row, see above; tiles are never in that memory.
                return tiles.store(tile, |row, bytes| unsafe {
                    ptr::copy_nonoverlapping(bytes.as_ptr(), row_address(row), bytes.len());
                });
            }
            // SAFETY: the instruction reads these bytes of each row, see above.
            tiles.load(tile, |row, out| unsafe {
                ptr::copy_nonoverlapping(row_address(row), out.as_mut_ptr(), out.len());
            })
        }
        Operands::Tiles { destination, left, right } => {
            let signs = match instruction.opcode {
                Opcode::Tdpbssd => Signs::SignedSigned,
                Opcode::Tdpbsud => Signs::SignedUnsigned,
                Opcode::Tdpbusd => Signs::UnsignedSigned,
                Opcode::Tdpbuud => Signs::UnsignedUnsigned,
                _ => return tiles.bf16_product(destination, left, right),
            };
            tiles.byte_product(destination, left, right, signs)
        }
    }
}

/// `base + displacement` and `index << scale`.
fn resolve(address: Address, registers: &Registers, next_instruction: i64) -> (usize, usize) {
    let base = match address.base {
        Base::Zero => 0,
        Base::Register(number) => general_register(registers, number),
        Base::NextInstruction => next_instruction,
    };
    let index = match address.index {
        Some((number, shift)) => general_register(registers, number) << shift,
        None => 0,
    };
    (base.wrapping_add(i64::from(address.displacement)) as usize, index as usize)
}

/// A general register by its number in instruction encodings.
fn general_register(registers: &Registers, number: u8) -> i64 {
    const ORDER: [libc::c_int; 16] = [
        libc::REG_RAX,
        libc::REG_RCX,
        libc::REG_RDX,
        libc::REG_RBX,
        libc::REG_RSP,
        libc::REG_RBP,
        libc::REG_RSI,
        libc::REG_RDI,
        libc::REG_R8,
        libc::REG_R9,
        libc::REG_R10,
        libc::REG_R11,
        libc::REG_R12,
        libc::REG_R13,
        libc::REG_R14,
        libc::REG_R15,
    ];
    registers[ORDER[usize::from(number)] as usize]
}

/// Memory that the interrupted code made known to its instruction.
fn pointer(address: usize) -> *mut u8 {
    ptr::with_exposed_provenance_mut(address)
}

/// Says what hardware would refuse and lets the instruction kill the process.
fn die(opcode: Option<Opcode>, fault: Fault, registers: &Registers) {
    let address = registers[libc::REG_RIP as usize];
    let mut message = Message { bytes: [0; 512], len: 0 };
    let name = opcode.map_or("tile instruction", Opcode::name);
    // A message that is too long is cut; the process ends either way.
    let _ = writeln!(message, "amx emulator: {name} at {address:#x}: {fault}");
    // SAFETY: `write` is async-signal-safe and reads `len` initialised bytes.
    unsafe { libc::write(libc::STDERR_FILENO, message.bytes.as_ptr().cast(), message.len) };
    // SAFETY: async-signal-safe; on return the same instruction faults again, now with the default action.
    unsafe { libc::signal(libc::SIGILL, libc::SIG_DFL) };
}

/// Gives a foreign signal to the action that was set before ours.
fn pass_on(si_code: libc::c_int) {
    if let Some(previous) = PREVIOUS_ACTION.get() {
        // SAFETY: async-signal-safe; `previous` is what the system itself returned.
        unsafe { libc::sigaction(libc::SIGILL, previous, ptr::null_mut()) };
    }
    // A fault repeats itself on return, a signal that was sent does not.
    if si_code <= 0 {
        // SAFETY: async-signal-safe; delivered when this handler returns.
        unsafe { libc::raise(libc::SIGILL) };
    }
}

/// Text in a fixed buffer, since a handler must not allocate.
struct Message {
    bytes: [u8; 512],
    len: usize,
}

impl fmt::Write for Message {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = &mut self.bytes[self.len..];
        let taken = text.len().min(room.len());
        room[..taken].copy_from_slice(&text.as_bytes()[..taken]);
        self.len += taken;
        Ok(())
    }
}
