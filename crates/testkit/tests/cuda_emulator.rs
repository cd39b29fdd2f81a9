//! The emulated GPU against what a GPU is defined to do, and the faults that it must catch.

use std::path::{Path, PathBuf};
use std::process::Command;
use testkit::cuda_emulator::{compiler_command, directory_of, sources_dir};
use testkit::test_dir::TestDir;

/// The program of checks, linked to the library with its kernels; none without a C++ compiler.
fn self_test(dir: &TestDir) -> Option<PathBuf> {
    let library = directory_of(&[sources_dir().join("self_test.cu")])?;
    let program = dir.join("self_test");
    let output = compiler_command()?
        .args(["-Wall", "-Wextra", "-Werror", "-o"])
        .arg(&program)
        .arg(sources_dir().join("self_test.cpp"))
        .arg(library.join("libcuda.so.1"))
        .arg(format!("-Wl,-rpath,{}", library.display()))
        .output()
        .expect("the compiler was found");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(program)
}

/// What `self_test fault N` says before it is ended.
fn fault(program: &Path, which: usize) -> String {
    let output = Command::new(program)
        .arg("fault")
        .arg(which.to_string())
        .output()
        .expect("the program was linked");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), None, "fault {which} is not ended: {said}");
    said
}

#[test]
fn the_emulator_computes_what_a_gpu_does_and_catches_what_a_kernel_must_not_do() {
    let dir = TestDir::new("cuda-emulator");
    let Some(program) = self_test(&dir) else { return };
    let output = Command::new(&program).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let messages = [
        "0 bytes behind the end of an allocation of 256 bytes",
        "a kernel wrote 4 bytes before the beginning of an allocation of 256 bytes",
        "an access 256 bytes from the beginning of shared memory, of which it has 256",
        "a misaligned access",
        "the threads of the block cannot meet: 63 at sync_block, 1 exited",
        "the lanes of warp 0 cannot meet: 31 at shuffle_xor, 1 exited",
        "the lanes of warp 0 are at different primitives: 16 at shuffle, 16 at sync_warp",
        "ends while 1 copies are on their way",
        "an index outside of an array",
        "ldmatrix: the address of lane 0 is not in shared memory",
        "copy_16_async: an address is no multiple of 16",
        "a shuffle from lane 32",
        "cannot meet: 16 at sync_block, 16 at sync_warp",
        "an access at byte 0 of an allocation of 256 bytes that was freed",
        "local variables of more than 64 KiB",
        "a product reads what was copied without fence_async",
        "a product of the warpgroup without wgmma_fence since the last wait",
        "shared memory was written while a product that reads it was on its way",
        "sums were written while a product was on its way",
        "ends while products are on their way",
        "an operand of a product is not in dynamic shared memory",
        "the warps of a warpgroup have different operands of a product",
    ];
    for (which, message) in messages.iter().enumerate() {
        let said = fault(&program, which);
        assert!(said.contains(message), "fault {which} says {said}");
    }
}
