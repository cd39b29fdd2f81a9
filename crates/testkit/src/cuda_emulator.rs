//! A GPU in software, so that the CUDA kernels and the code around them are tested on machines without one.
//!
//! [`directory`] compiles the kernels of `crates/cuda/kernels` as C++ together with the sources in
//! `crates/testkit/cuda_emulator` into one library that takes the places of `libcuda.so.1` and `libcublasLt.so.13`.
//! Code that opens these names in that folder then runs every launch on the CPU. What this shows and what it does not
//! is said at the top of `emulator.h`.
//!
//! ```no_run
//! if let Some(directory) = testkit::cuda_emulator::directory() {
//!     assert!(directory.join("libcuda.so.1").is_file());
//! }
//! ```

use crate::golden::workspace_root;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::{Duration, SystemTime};

/// What the library is called under: the driver and cuBLASLt.
const NAMES: [&str; 2] = ["libcuda.so.1", "libcublasLt.so.13"];
/// The sources of the emulator itself.
const PARTS: [&str; 3] = ["fibers.cpp", "driver.cpp", "blas.cpp"];
const FLAGS: [&str; 9] = [
    "-std=c++17",
    "-O2",
    "-g",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-strict-aliasing",
    "-fwrapv",
    "-Wno-unknown-pragmas",
    "-DGALERNE_EMULATOR",
];
/// Misaligned loads and wrong indices end a kernel as they would on a GPU, or earlier.
const KERNEL_FLAGS: [&str; 2] =
    ["-fsanitize=alignment,bounds,shift", "-fsanitize-undefined-trap-on-error"];
const LOCK: &str = "lock";
/// What other sources have left is kept so long: another process may still be about to open it.
const KEPT: Duration = Duration::from_hours(1);

/// The folder that holds `libcuda.so.1` and `libcublasLt.so.13`, made when a source has changed; none, with a line on
/// stderr, where no C++ compiler is.
///
/// # Panics
/// When a source does not compile, with what the compiler says, or the system refuses a file.
pub fn directory() -> Option<PathBuf> {
    static DIRECTORY: OnceLock<Option<PathBuf>> = OnceLock::new();
    DIRECTORY.get_or_init(|| directory_of(&files_in(&kernels_dir(), &["cu"]))).clone()
}

/// As [`directory`], with these files of kernels.
///
/// # Panics
/// As [`directory`].
pub fn directory_of(kernels: &[PathBuf]) -> Option<PathBuf> {
    let compiler = Compiler::find()?;
    let root = workspace_root().join("target/cuda-emulator");
    create(&root);
    let lock = File::create(root.join(LOCK)).expect("the lock file can be written");
    lock.lock().expect("the lock file can be locked");
    let objects = objects(&compiler, &root, kernels);
    let mut digest = Sha256::new();
    objects.iter().for_each(|object| digest.update(object.path.as_os_str().as_encoded_bytes()));
    let directory = root.join(short_hex(digest));
    if !directory.is_dir() {
        compile_all(&compiler, &objects);
        let staging = root.join("staging");
        let _ = fs::remove_dir_all(&staging);
        create(&staging);
        link(&compiler, &objects, &staging);
        fs::rename(&staging, &directory).expect("the folder of libraries can be renamed");
        objects.iter().for_each(|object| mark_used(&object.path));
        remove_old(&root);
    }
    mark_used(&directory);
    Some(directory)
}

/// Where the emulator's own sources are.
pub fn sources_dir() -> PathBuf {
    workspace_root().join("crates/testkit/cuda_emulator")
}

/// A command that compiles a C++ program beside the emulator; none, with a line on stderr, where no compiler is.
pub fn compiler_command() -> Option<Command> {
    Compiler::find().map(|compiler| compiler.command())
}

fn kernels_dir() -> PathBuf {
    workspace_root().join("crates/cuda/kernels")
}

/// The compiler and what it tells of itself.
struct Compiler {
    program: &'static str,
    version: Vec<u8>,
}

impl Compiler {
    fn find() -> Option<Self> {
        for program in ["c++", "g++"] {
            if cfg!(target_os = "linux")
                && let Ok(output) = Command::new(program).arg("--version").output()
                && output.status.success()
            {
                return Some(Self { program, version: output.stdout });
            }
        }
        #[expect(clippy::print_stderr, reason = "a test that is left out must say so")]
        {
            eprintln!("no C++ compiler (c++ or g++ on Linux): the CUDA kernels are not tested");
        }
        None
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.program);
        command.args(FLAGS).args(machine_flags());
        command.arg("-I").arg(kernels_dir()).arg("-I").arg(sources_dir());
        command
    }
}

/// Vectors and fused multiply-adds, as a GPU has them, where the CPU has them.
fn machine_flags() -> &'static [&'static str] {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
        return &["-march=x86-64-v3"];
    }
    &[]
}

/// A source and what it is compiled to; the name of that tells everything that it depends on.
struct Object {
    source: PathBuf,
    path: PathBuf,
}

impl Object {
    fn is_kernel(&self) -> bool {
        self.source.extension().is_some_and(|extension| extension == "cu")
    }
}

fn objects(compiler: &Compiler, root: &Path, kernels: &[PathBuf]) -> Vec<Object> {
    let mut common = Sha256::new();
    common.update(&compiler.version);
    for flag in FLAGS.iter().chain(&KERNEL_FLAGS).chain(machine_flags()) {
        common.update(flag);
    }
    let headers = [files_in(&sources_dir(), &["h"]), files_in(&kernels_dir(), &["cuh"])].concat();
    headers.iter().for_each(|header| common.update(contents(header)));
    let parts = PARTS.iter().map(|part| sources_dir().join(part));
    parts
        .chain(kernels.iter().cloned())
        .map(|source| {
            let digest = short_hex(common.clone().chain_update(contents(&source)));
            let name = source.file_name().expect("sources have names").to_string_lossy();
            let path = root.join(format!("{name}-{digest}.o"));
            Object { source, path }
        })
        .collect()
}

/// Compiles what is not there, several at a time.
fn compile_all(compiler: &Compiler, objects: &[Object]) {
    let missing: Vec<_> = objects.iter().filter(|object| !object.path.is_file()).collect();
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    let n_workers = thread::available_parallelism().map_or(1, usize::from).min(missing.len());
    thread::scope(|scope| {
        for _ in 0..n_workers {
            scope.spawn(|| {
                while let Some(object) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(message) = compile(compiler, object) {
                        failures.lock().expect("no worker panics").push(message);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("no worker panics");
    assert!(failures.is_empty(), "the emulated GPU does not compile:\n{}", failures.join("\n"));
}

fn compile(compiler: &Compiler, object: &Object) -> Result<(), String> {
    let unfinished = object.path.with_extension("unfinished");
    let mut command = compiler.command();
    if object.is_kernel() {
        // Each file has names of its own, as a module of a GPU has.
        let unit = object.path.with_extension("cpp");
        let source = object.source.display();
        let text = format!("#include \"emulator.h\"\nnamespace {{\n#include \"{source}\"\n}}\n");
        fs::write(&unit, text).expect("a unit of kernels can be written");
        command.args(KERNEL_FLAGS).arg(unit);
    } else {
        command.arg(&object.source);
    }
    run(command.arg("-c").arg("-o").arg(&unfinished))?;
    fs::rename(&unfinished, &object.path).expect("an object file can be renamed");
    Ok(())
}

fn link(compiler: &Compiler, objects: &[Object], directory: &Path) {
    let library = directory.join(NAMES[0]);
    let mut command = Command::new(compiler.program);
    command.args(["-shared", "-o"]).arg(&library);
    command.args(objects.iter().map(|object| &object.path)).args(["-ldl", "-lpthread"]);
    if let Err(message) = run(&mut command) {
        panic!("the emulated GPU cannot be linked:\n{message}");
    }
    // Opened by both names it is one library with one state.
    fs::hard_link(&library, directory.join(NAMES[1])).expect("a file can have two names");
}

fn run(command: &mut Command) -> Result<(), String> {
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("{command:?}\n{}", String::from_utf8_lossy(&output.stderr))),
        Err(error) => Err(format!("{command:?}: {error}")),
    }
}

/// Keeps a file or folder from [`remove_old`]; where that fails it is made again some day.
fn mark_used(path: &Path) {
    let _ = File::open(path).and_then(|file| file.set_modified(SystemTime::now()));
}

/// Removes what has not been used for long.
fn remove_old(root: &Path) {
    for entry in fs::read_dir(root).expect("the folder can be listed").flatten() {
        let age = entry.metadata().and_then(|data| data.modified()).map(|time| time.elapsed());
        let path = entry.path();
        if path != root.join(LOCK) && matches!(age, Ok(Ok(age)) if age > KEPT) {
            let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
    }
}

/// The files with one of these extensions, sorted.
fn files_in(dir: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) => panic!("{} cannot be listed: {error}", dir.display()),
    };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| {
        path.extension().is_some_and(|found| extensions.iter().any(|wanted| found == *wanted))
    });
    paths.sort();
    paths
}

fn contents(path: &Path) -> Vec<u8> {
    match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => panic!("{} cannot be read: {error}", path.display()),
    }
}

fn create(dir: &Path) {
    if let Err(error) = fs::create_dir_all(dir) {
        panic!("{} cannot be made: {error}", dir.display());
    }
}

fn short_hex(digest: Sha256) -> String {
    digest.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}
