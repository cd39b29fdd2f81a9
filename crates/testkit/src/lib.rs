//! Development only: AMX and CUDA emulators, golden loader, model hub, tolerance and gradient checks, damaged files, folders of tests, random numbers, failing writers.
//!
//! Everything here serves tests of the other crates, so most of it panics with a message instead of returning an
//! error. Nothing here may be a dependency of the program.
//!
//! ```
//! use testkit::close::{Tolerance, assert_close};
//! use testkit::random::Rng;
//!
//! let x = Rng::new(7).normal_vec(100, 1.0);
//! assert_close(&x, &x, Tolerance::EXACT);
//! ```

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub mod amx_emulator;
pub mod close;
pub mod cuda_emulator;
pub mod damage;
pub mod failing_writer;
pub mod finite_difference;
pub mod golden;
pub mod hub;
pub mod random;
pub mod test_dir;
