//! Every operation in the emulator, against the CPU.

use cuda::conformance::{Size, cases};
use cuda::{Gpu, LibraryPath};

/// `CASE=name` runs those whose name holds it, `SIZE=large` on the shapes for a GPU, which takes the emulator minutes.
#[test]
fn every_operation_computes_what_the_cpu_does() {
    let Some(directory) = testkit::cuda_emulator::directory() else { return };
    let gpu = Gpu::open(&LibraryPath::new(Some(directory))).unwrap();
    let wanted = std::env::var("CASE").unwrap_or_default();
    let is_large = std::env::var("SIZE").is_ok_and(|size| size == "large");
    let size = if is_large { Size::Large } else { Size::Small };
    let mut failures = Vec::new();
    for case in cases().into_iter().filter(|case| case.name.contains(&wanted)) {
        let deviation = (case.run)(&gpu, size);
        eprintln!("{:32} {:.1e} of {:.1e}", case.name, deviation.value, deviation.limit);
        if !deviation.is_within() {
            failures.push(case.name);
        }
    }
    assert!(failures.is_empty(), "not as on the CPU: {failures:?}");
}
