//! `cargo xtask cuda-kernels`: compiles the GPU kernels, and keeps the result in the tree, so that a build of the program needs
//! no compiler of NVIDIA's.
//!
//! The same sources give the same bytes, wherever the checkout is and whoever compiles; `--check` compares without writing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context as _, Result, bail, ensure};

use crate::counts::number_before;
use crate::kernel_files::{
    COMPILED, OPTIONS, REQUIREMENTS, SOURCES, SUMS, TARGETS, Target, digest, is_listed, list,
    source_name,
};
use crate::outside::{self, Missing, Program};
use crate::run;
use crate::workspace::Workspace;

/// The architecture for which the portable text is assembled, to see that it can be.
const FLOOR: &str = "sm_80";

/// Compiles every kernel; the answer is whether all is well. With `check` nothing is written: what came of the sources must be
/// what lies there.
pub(crate) fn run(workspace: &Workspace, check: bool) -> Result<bool> {
    let compiler = Compiler::install(workspace)?;
    let names = source_names(workspace)?;
    let jobs: Vec<Job<'_>> = names
        .iter()
        .flat_map(|name| TARGETS.iter().map(move |target| Job { name, target }))
        .collect();
    let (mut outputs, mut n_failed) = (BTreeMap::new(), 0);
    for (job, made) in jobs.iter().zip(in_parallel(&jobs, |job| compiler.make(job))) {
        match made {
            Ok(Made { bytes, kernels }) => {
                for kernel in &kernels {
                    println!("{:<22} {kernel}", job.name);
                }
                outputs.insert(format!("{COMPILED}{}{}", job.name, job.target.suffix), bytes);
            }
            Err(error) => {
                n_failed += 1;
                println!("FAILED {}{}: {error:#}", job.name, job.target.suffix);
            }
        }
    }
    if n_failed > 0 {
        println!("{n_failed} of {} outputs failed; nothing was written", jobs.len());
        return Ok(false);
    }
    let n_bytes: usize = outputs.values().map(Vec::len).sum();
    println!("{} files, {} KiB in all", outputs.len(), n_bytes.div_ceil(1024));
    if check { compare(workspace, &outputs) } else { write(workspace, &outputs).map(|()| true) }
}

/// One output to be made.
struct Job<'a> {
    /// Of the source, without its end.
    name: &'a str,
    target: &'static Target,
}

/// An output.
struct Made {
    bytes: Vec<u8>,
    /// What ptxas said of machine code.
    kernels: Vec<Resources>,
}

/// The compiler in `target/cuda-compiler`, and where it works.
struct Compiler<'a> {
    workspace: &'a Workspace,
    /// Folder of nvcc and ptxas.
    programs: PathBuf,
    /// Folder of what is being made.
    scratch: PathBuf,
}

impl<'a> Compiler<'a> {
    fn install(workspace: &'a Workspace) -> Result<Self> {
        let host = [Program { name: "g++", package: "g++" }];
        if let Err(names) = outside::programs(&host, Missing::from_environment())? {
            bail!("nvcc needs {names}");
        }
        let environment = outside::python_environment(
            workspace,
            "cuda-compiler",
            REQUIREMENTS,
            Missing::Install,
        )?;
        let python = environment.map_err(anyhow::Error::msg)?;
        let script = "import sysconfig; print(sysconfig.get_path('purelib'))";
        let packages = run::captured(Command::new(python).args(["-c", script]))?;
        let programs = Path::new(packages.trim()).join("nvidia/cu13/bin");
        let scratch = workspace.target("cuda-kernels");
        fs::create_dir_all(&scratch).with_context(|| format!("making {}", scratch.display()))?;
        Ok(Self { workspace, programs, scratch })
    }

    fn make(&self, job: &Job<'_>) -> Result<Made> {
        let Job { name, target } = job;
        let path = self.scratch.join(format!("{name}{}", target.suffix));
        let mut command = Command::new(self.programs.join("nvcc"));
        // In the folder of the sources, under a relative name: what it is called from must not show.
        command.current_dir(self.workspace.path(SOURCES));
        command.args(OPTIONS).args(target.options).arg("-o").arg(&path).arg(format!("{name}.cu"));
        let log = log_of(&mut command)?;
        let mut bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let kernels = resources(&log);
        if target.suffix.ends_with(".ptx") {
            bytes = without_comments(&bytes);
            fs::write(&path, &bytes).with_context(|| format!("writing {}", path.display()))?;
            let mut command = Command::new(self.programs.join("ptxas"));
            command.arg(format!("-arch={FLOOR}")).arg("-o").arg(path.with_extension(FLOOR));
            log_of(command.arg(&path))?;
        } else {
            ensure!(!kernels.is_empty(), "ptxas names no kernel:\n{log}");
        }
        check_resources(&kernels)?;
        if let Some(line) = log.lines().find(|line| line.contains("Performance Loss")) {
            bail!("{line}");
        }
        without_folder_digests(&mut bytes);
        let root = self.workspace.path("");
        check_folders(&bytes, &[&root, &self.scratch, &std::env::temp_dir()])?;
        Ok(Made { bytes, kernels })
    }
}

/// What a program of the compiler writes on stderr, if it succeeds.
fn log_of(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{command:?} failed ({}):\n{log}", output.status);
    Ok(log)
}

/// The results of all jobs in their order; each processor does one after the other.
fn in_parallel<J: Sync, R: Send>(jobs: &[J], work: impl Fn(&J) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let work_on = || {
        let mut done = Vec::new();
        loop {
            let job_idx = next.fetch_add(1, Ordering::Relaxed);
            let Some(job) = jobs.get(job_idx) else { return done };
            done.push((job_idx, work(job)));
        }
    };
    let n_threads = thread::available_parallelism().map_or(1, usize::from);
    let mut results: Vec<(usize, R)> = thread::scope(|scope| {
        let threads: Vec<_> = (0..n_threads).map(|_| scope.spawn(work_on)).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| thread.join();
        threads.into_iter().flat_map(|thread| join(thread).expect("a job panicked")).collect()
    });
    results.sort_by_key(|(job_idx, _)| *job_idx);
    results.into_iter().map(|(_, result)| result).collect()
}

/// The names of the sources, without their end.
fn source_names(workspace: &Workspace) -> Result<Vec<String>> {
    let paths = paths_in(workspace, SOURCES)?;
    let names: Vec<String> =
        paths.iter().filter_map(|path| source_name(path)).map(str::to_owned).collect();
    ensure!(!names.is_empty(), "{SOURCES} has no kernels");
    Ok(names)
}

/// The files of a folder of the checkout, as paths from its root, sorted.
fn paths_in(workspace: &Workspace, folder: &str) -> Result<BTreeSet<String>> {
    let mut paths = BTreeSet::new();
    for entry in
        fs::read_dir(workspace.path(folder)).with_context(|| format!("reading {folder}"))?
    {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            paths.insert(format!("{folder}{}", entry.file_name().to_string_lossy()));
        }
    }
    Ok(paths)
}

/// Puts the outputs and the list in the place of what is there.
fn write(workspace: &Workspace, outputs: &BTreeMap<String, Vec<u8>>) -> Result<()> {
    fs::create_dir_all(workspace.path(COMPILED)).with_context(|| format!("making {COMPILED}"))?;
    for path in paths_in(workspace, COMPILED)?.iter().filter(|path| !outputs.contains_key(*path)) {
        fs::remove_file(workspace.path(path)).with_context(|| format!("removing {path}"))?;
    }
    for (path, bytes) in outputs {
        fs::write(workspace.path(path), bytes).with_context(|| format!("writing {path}"))?;
    }
    let text = list(&digests(workspace)?);
    fs::write(workspace.path(SUMS), text).with_context(|| format!("writing {SUMS}"))
}

/// The digests of what the list has, as it is on disk.
fn digests(workspace: &Workspace) -> Result<BTreeMap<String, String>> {
    let mut paths = paths_in(workspace, SOURCES)?;
    paths.extend(paths_in(workspace, COMPILED)?);
    paths.insert(REQUIREMENTS.to_owned());
    let mut digests = BTreeMap::new();
    for path in paths.into_iter().filter(|path| is_listed(path)) {
        let bytes = fs::read(workspace.path(&path)).with_context(|| format!("reading {path}"))?;
        digests.insert(path, digest(&bytes));
    }
    Ok(digests)
}

/// Whether the outputs are those that lie there; the list is checked by tidy.
fn compare(workspace: &Workspace, outputs: &BTreeMap<String, Vec<u8>>) -> Result<bool> {
    let mut is_same = true;
    for (path, bytes) in outputs {
        let kept = fs::read(workspace.path(path)).with_context(|| format!("reading {path}"))?;
        if kept != *bytes {
            is_same = false;
            println!("FAILED {path} is not what its source gives");
        }
    }
    Ok(is_same)
}

/// What ptxas says that a kernel takes.
#[derive(Debug, Default, PartialEq)]
struct Resources {
    name: String,
    registers: u64,
    /// Of arrays whose size is known to the compiler.
    shared_bytes: u64,
    frame_bytes: u64,
    spill_bytes: u64,
}

impl std::fmt::Display for Resources {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, registers, shared_bytes, .. } = self;
        write!(
            formatter,
            "{name:<44} {registers:>3} registers {shared_bytes:>6} bytes of shared memory"
        )
    }
}

/// Reads what `ptxas -v` wrote.
fn resources(log: &str) -> Vec<Resources> {
    let mut kernels: Vec<Resources> = Vec::new();
    for line in log.lines() {
        if let Some((_, name)) = line.split_once("Function properties for ") {
            kernels.push(Resources { name: name.trim().to_owned(), ..Resources::default() });
        }
        let Some(kernel) = kernels.last_mut() else { continue };
        if line.contains(" bytes stack frame") {
            kernel.frame_bytes = number_before(line, " bytes stack frame");
            kernel.spill_bytes = number_before(line, " bytes spill stores")
                + number_before(line, " bytes spill loads");
        }
        if line.contains(": Used ") {
            kernel.registers = number_before(line, " registers");
            kernel.shared_bytes = number_before(line, " bytes smem");
        }
    }
    kernels
}

/// Registers that did not suffice, and arrays that did not fit them, lie in the GPU's memory: that is slow, and never meant.
fn check_resources(kernels: &[Resources]) -> Result<()> {
    for Resources { name, frame_bytes, spill_bytes, .. } in kernels {
        ensure!(*spill_bytes == 0, "{name} spills {spill_bytes} bytes of registers");
        ensure!(*frame_bytes == 0, "{name} has {frame_bytes} bytes of stack");
    }
    Ok(())
}

/// PTX without the lines that are comments: they name the build of the compiler, and half of them are empty.
fn without_comments(text: &[u8]) -> Vec<u8> {
    let is_code = |line: &&[u8]| !line.trim_ascii_start().starts_with(b"//");
    text.split_inclusive(|byte| *byte == b'\n').filter(is_code).flatten().copied().collect()
}

/// Makes names independent of where they were compiled: to what is in an anonymous namespace nvcc gives a name with eight digits
/// of a digest of the folder, which become zeros. They only have to differ within a file.
fn without_folder_digests(bytes: &mut [u8]) {
    for mark in [&b"_GLOBAL__N__"[..], b"_INTERNAL_"] {
        let mut at = 0;
        while let Some(found) = bytes[at..].windows(mark.len()).position(|window| window == mark) {
            at += found + mark.len();
            if let Some(digits) = bytes.get_mut(at..at + 8)
                && digits.iter().all(u8::is_ascii_hexdigit)
            {
                digits.fill(b'0');
            }
        }
    }
}

/// Nothing in an output may tell where it was made.
fn check_folders(bytes: &[u8], folders: &[&Path]) -> Result<()> {
    let holds = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
    for folder in folders.iter().map(|folder| folder.as_os_str().as_encoded_bytes()) {
        ensure!(!holds(folder), "it names the folder {}", String::from_utf8_lossy(folder));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "ptxas info    : 0 bytes gmem\n\
        ptxas info    : Compiling entry function 'norm_f32' for 'sm_90a'\n\
        ptxas info    : Function properties for norm_f32\n\
        \x20   0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
        ptxas info    : Used 13 registers, used 1 barriers, 128 bytes smem\n\
        ptxas info    : Compile time = 2.080 ms\n\
        ptxas info    : Function properties for wide_f32\n\
        \x20   24 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads\n\
        ptxas info    : Used 255 registers, used 0 barriers\n";

    #[test]
    fn what_ptxas_says_is_read() {
        let kernels = resources(LOG);
        let norm = Resources {
            name: "norm_f32".to_owned(),
            registers: 13,
            shared_bytes: 128,
            ..Resources::default()
        };
        assert_eq!(kernels[0], norm);
        assert_eq!((kernels[1].registers, kernels[1].shared_bytes), (255, 0));
        assert_eq!((kernels[1].frame_bytes, kernels[1].spill_bytes), (24, 20));
        assert_eq!(kernels.len(), 2);
    }

    #[test]
    fn spills_and_stack_frames_are_refused_by_the_name_of_the_kernel() {
        let mut kernels = resources(LOG);
        let error = check_resources(&kernels).unwrap_err().to_string();
        assert_eq!(error, "wide_f32 spills 20 bytes of registers");
        kernels[1].spill_bytes = 0;
        let error = check_resources(&kernels).unwrap_err().to_string();
        assert_eq!(error, "wide_f32 has 24 bytes of stack");
        assert!(check_resources(&kernels[..1]).is_ok());
    }

    #[test]
    fn comments_are_left_out() {
        let text = b"//\n// Build 1\n.version 9.0\n\t// begin\n\tret;\n";
        assert_eq!(without_comments(text), b".version 9.0\n\tret;\n");
    }

    #[test]
    fn names_have_no_digest_of_the_folder() {
        let name = |digits: &str| {
            format!("\0_ZN34_INTERNAL_{digits}_4_a_cu_c1acb6f736_GLOBAL__N__{digits}_4_a\0")
        };
        let mut bytes = name("3da62b75").into_bytes();
        without_folder_digests(&mut bytes);
        assert_eq!(String::from_utf8(bytes).unwrap(), name("00000000"));
        let mut short = *b"_INTERNAL_3da";
        without_folder_digests(&mut short);
        assert_eq!(&short, b"_INTERNAL_3da");
    }

    #[test]
    fn outputs_that_name_a_folder_are_refused() {
        let folders = [Path::new("/home/anna/galerne")];
        assert!(check_folders(b"\0norm_f32\0", &folders).is_ok());
        assert!(check_folders(b"\0/home/anna/galerne/norm.cu\0", &folders).is_err());
    }

    #[test]
    fn results_have_the_order_of_the_jobs() {
        let jobs: Vec<usize> = (0..100).collect();
        let doubled: Vec<usize> = (0..100).map(|job| 2 * job).collect();
        assert_eq!(in_parallel(&jobs, |job| 2 * job), doubled);
    }
}
