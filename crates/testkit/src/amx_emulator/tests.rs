//! The emulator against the assembler, against plain definitions, and as a process. On a machine with AMX the same
//! tests compare the hardware with those definitions.
#![expect(unsafe_code, reason = "the tests execute tile instructions")]

mod encodings;
mod execution;
mod faults;
