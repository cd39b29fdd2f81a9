//! What ends the process: each case runs in a child, which is this test program again.

use super::execution::config;
use crate::amx_emulator::{Emulation, install};
use std::arch::asm;
use std::env;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Output};

const CASE: &str = "TESTKIT_AMX_FAULT";

/// Runs `test` of this module again with the case's name in the environment.
fn run_child(test: &str, case: &str) -> Output {
    let path = format!("{}::{test}", module_path!().split_once("::").unwrap().1);
    Command::new(env::current_exe().unwrap())
        .args([path.as_str(), "--exact", "--nocapture", "--test-threads=1"])
        .env(CASE, case)
        .output()
        .unwrap()
}

/// Loads `config`, then executes the given lines; `{memory}` has 4096 bytes and `{stride}` is 64.
macro_rules! execute {
    ($config:expr, $($line:literal),+) => {{
        let block: [u8; 64] = $config;
        let mut memory = vec![0_u8; 4096];
        // SAFETY: tile instructions are executable or end the process, as the case wants.
        unsafe {
            asm!(
                "ldtilecfg [{config}]",
                $($line,)+
                "/* {memory} {stride} */",
                "tilerelease",
                config = in(reg) block.as_ptr(),
                memory = in(reg) memory.as_mut_ptr(),
                stride = in(reg) 64_usize,
                out("tmm0") _, out("tmm1") _, out("tmm2") _,
                options(nostack),
            );
        }
    }};
}

fn with_byte(offset: usize, value: u8) -> [u8; 64] {
    let mut block = config(&[(16, 64), (16, 64), (16, 64)]);
    block[offset] = value;
    block
}

/// Each case, what it executes, and what the message must say.
const CASES: [(&str, fn(), &str); 16] = [
    ("palette", || execute!(with_byte(0, 2), "nop"), "ldtilecfg at 0x"),
    ("reserved", || execute!(with_byte(40, 7), "nop"), "has byte 40 = 7, expected 0 (reserved)"),
    ("ninth_tile", || execute!(with_byte(56, 1), "nop"), "has byte 56 = 1"),
    ("rows_17", || execute!(with_byte(49, 17), "nop"), "gives tile 1 17 rows of 64 bytes"),
    ("row_of_65", || execute!(with_byte(18, 65), "nop"), "gives tile 1 16 rows of 65 bytes"),
    ("rows_only", || execute!(with_byte(53, 4), "nop"), "gives tile 5 4 rows of 0 bytes"),
    ("not_configured", || execute!([0_u8; 64], "tilezero tmm0"), "tilezero at 0x"),
    (
        "released",
        || execute!(with_byte(0, 1), "tilerelease", "tileloadd tmm0, [{memory} + {stride}]"),
        "no tile configuration is loaded",
    ),
    (
        "absent_tile",
        || execute!(with_byte(0, 1), "tilestored [{memory} + {stride}], tmm5"),
        "tilestored at 0x",
    ),
    (
        "same_tile",
        || execute!(with_byte(0, 1), ".byte 0xC4, 0xE2, 0x72, 0x5C, 0xC1"),
        "tiles 0, 1, 1 are not three different registers",
    ),
    (
        "rows_differ",
        || execute!(config(&[(15, 64), (16, 64), (16, 64)]), "tdpbf16ps tmm0, tmm1, tmm2"),
        "destination has 15 rows, first source 16",
    ),
    (
        "columns_differ",
        || execute!(config(&[(16, 60), (16, 64), (16, 64)]), "tdpbssd tmm0, tmm1, tmm2"),
        "destination has rows of 60 bytes, second source 64",
    ),
    (
        "depth_differs",
        || execute!(config(&[(16, 64), (16, 64), (15, 64)]), "tdpbuud tmm0, tmm1, tmm2"),
        "first source has 16 groups of four bytes in a row, second source 15 rows",
    ),
    (
        "partial_group",
        || execute!(config(&[(16, 62), (16, 64), (16, 62)]), "tdpbf16ps tmm0, tmm1, tmm2"),
        "rows of 62 bytes in tile 0",
    ),
    (
        "no_sib",
        || execute!(with_byte(0, 1), ".byte 0xC4, 0xE2, 0x7B, 0x4B, 0x00"),
        "memory operand has no SIB byte",
    ),
    (
        "foreign_product",
        || execute!(with_byte(0, 1), ".byte 0xC4, 0xE2, 0x6B, 0x5C, 0xC1"),
        "undefined encoding",
    ),
];

#[test]
fn what_hardware_refuses_ends_the_process_with_a_message() {
    if install().unwrap() == Emulation::Hardware {
        return;
    }
    if let Ok(wanted) = env::var(CASE) {
        let (_, execute, _) = CASES.iter().find(|(name, ..)| *name == wanted).unwrap();
        execute();
        unreachable!("{wanted} returned");
    }
    for (name, _, message) in CASES {
        let output = run_child("what_hardware_refuses_ends_the_process_with_a_message", name);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(libc::SIGILL), "{name}: {stderr}");
        assert!(stderr.contains("amx emulator: ") && stderr.contains(message), "{name}: {stderr}");
    }
}

#[test]
fn other_illegal_instructions_end_the_process_as_usual() {
    if env::var(CASE).is_ok() {
        install().unwrap();
        // SAFETY: ends the process, which is the point.
        unsafe { asm!("ud2") };
        unreachable!("ud2 returned");
    }
    let output = run_child("other_illegal_instructions_end_the_process_as_usual", "ud2");
    assert_eq!(output.status.signal(), Some(libc::SIGILL));
    assert!(!String::from_utf8_lossy(&output.stderr).contains("amx emulator"));
}

extern "C" fn leave_with_42(_signal: libc::c_int) {
    // SAFETY: async-signal-safe.
    unsafe { libc::_exit(42) };
}

#[test]
fn an_earlier_handler_gets_the_other_illegal_instructions() {
    if let Ok(case) = env::var(CASE) {
        let handler: extern "C" fn(libc::c_int) = leave_with_42;
        // SAFETY: the handler has the signature of a plain one and calls only `_exit`.
        unsafe { libc::signal(libc::SIGILL, handler as libc::sighandler_t) };
        install().unwrap();
        // SAFETY: both end in the handler above.
        unsafe {
            if case == "raise" {
                libc::raise(libc::SIGILL);
            } else {
                asm!("ud2");
            }
        }
        unreachable!("{case} returned");
    }
    for case in ["ud2", "raise"] {
        let output = run_child("an_earlier_handler_gets_the_other_illegal_instructions", case);
        assert_eq!(output.status.code(), Some(42), "{case}: {:?}", output.status);
    }
}
