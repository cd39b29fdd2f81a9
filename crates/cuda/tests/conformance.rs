//! Every operation in the emulator, against the CPU.

use cuda::conformance::{Size, cases};
use cuda::{Gpu, LibraryPath};

/// `cargo test -p cuda --test conformance` runs all; `CASE=name` those whose name holds it.
#[test]
fn every_operation_computes_what_the_cpu_does() {
    let Some(directory) = testkit::cuda_emulator::directory() else { return };
    let gpu = Gpu::open(&LibraryPath::new(Some(directory))).unwrap();
    let wanted = std::env::var("CASE").unwrap_or_default();
    let mut failures = Vec::new();
    for case in cases().into_iter().filter(|case| case.name.contains(&wanted)) {
        let deviation = (case.run)(&gpu, Size::Small);
        eprintln!("{:32} {:.1e} of {:.1e}", case.name, deviation.value, deviation.limit);
        if !deviation.is_within() {
            failures.push(case.name);
        }
    }
    assert!(failures.is_empty(), "not as on the CPU: {failures:?}");
}
