//! House rules that neither the compiler nor clippy checks. Each is a function from what the tree holds to a list of
//! problems, with a test that sees it fail.

mod boundaries;
mod kernels;
mod manifests;
mod papers;
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::counts::Counts;
use crate::kernel_files::{digest, is_listed};
use crate::run;
use crate::workspace::Workspace;
use boundaries::Crate;

/// Largest file that may be committed, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// A text file of the tree.
struct SourceFile {
    /// Relative to the root, with slashes.
    path: String,
    text: String,
}

/// All that the checks look at.
struct Tree {
    files: Vec<SourceFile>,
    /// Every path of the tree, text or not, with its size in bytes.
    sizes: Vec<(String, u64)>,
    /// Digests of the GPU kernels and of what is compiled of them.
    kernel_digests: BTreeMap<String, String>,
    crates: Vec<Crate>,
}

/// A house rule.
struct Check {
    name: &'static str,
    problems: fn(&Tree) -> Vec<String>,
}

const CHECKS: &[Check] = &[
    Check { name: "crates depend one way", problems: |tree| boundaries::edges(&tree.crates) },
    Check {
        name: "outside crates stay behind their fences",
        problems: |tree| boundaries::fences(&tree.crates),
    },
    Check {
        name: "forbidden names are absent from the crates that never use them",
        problems: |tree| boundaries::names(&tree.files),
    },
    Check {
        name: "unsafe code stays in its places",
        problems: |tree| source::unsafe_places(&tree.files),
    },
    Check { name: "files have at most 1500 lines", problems: |tree| source::lengths(&tree.files) },
    Check { name: "nothing is left to do", problems: |tree| source::leftovers(&tree.files) },
    Check {
        name: "modules are named after an idea",
        problems: |tree| source::module_names(&tree.sizes),
    },
    Check { name: "no file is over 1 MiB", problems: |tree| source::sizes(&tree.sizes) },
    Check {
        name: "compiled GPU kernels are those of their sources",
        problems: |tree| kernels::stale(&tree.files, &tree.kernel_digests),
    },
    Check { name: "papers keep their length", problems: |tree| papers::lengths(&tree.files) },
    Check {
        name: "paths named in papers exist",
        problems: |tree| papers::paths(&tree.files, &tree.sizes),
    },
    Check {
        name: "each crate takes the lints of the workspace",
        problems: |tree| manifests::lints(&tree.files),
    },
    Check {
        name: "each outside crate says what it is for",
        problems: |tree| manifests::comments(&tree.files),
    },
    Check {
        name: "each dependency is used",
        problems: |tree| manifests::unused(&tree.files, &tree.crates),
    },
];

/// `cargo xtask tidy`: the checks, the number of crates and, if asked, the time of a clean build.
pub(crate) fn run(workspace: &Workspace, time: bool) -> Result<bool> {
    let counts = report(workspace)?;
    if time {
        clean_build_time(workspace)?;
    }
    println!("{counts}");
    Ok(counts.failed == 0)
}

/// Runs the checks and prints what they find.
pub(crate) fn report(workspace: &Workspace) -> Result<Counts> {
    let tree = Tree::load(workspace)?;
    let mut counts = Counts::default();
    for check in CHECKS {
        let problems = (check.problems)(&tree);
        counts += Counts::single(problems.is_empty());
        println!("{} {}", if problems.is_empty() { "ok" } else { "FAILED" }, check.name);
        for problem in problems {
            println!("    {problem}");
        }
    }
    println!("crates in the default build: {}", default_crates(workspace)?.len());
    Ok(counts)
}

impl Tree {
    /// Reads every file that git tracks or would track, and asks cargo about the crates.
    fn load(workspace: &Workspace) -> Result<Self> {
        let arguments = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
        let listing = run::captured(&mut workspace.command("git", &arguments))?;
        let (mut files, mut sizes) = (Vec::new(), Vec::new());
        let mut kernel_digests = BTreeMap::new();
        for path in listing.split('\0').filter(|path| !path.is_empty()) {
            let full = workspace.path(path);
            // A file deleted but not yet committed is still listed.
            let Ok(metadata) = fs::metadata(&full) else { continue };
            sizes.push((path.to_owned(), metadata.len()));
            let bytes = fs::read(&full).with_context(|| format!("reading {path}"))?;
            if is_listed(path) {
                kernel_digests.insert(path.to_owned(), digest(&bytes));
            }
            if let Ok(text) = String::from_utf8(bytes) {
                files.push(SourceFile { path: path.to_owned(), text });
            }
        }
        let metadata = ["metadata", "--locked", "--no-deps", "--format-version", "1"];
        let crates = Crate::from_metadata(&run::captured(&mut workspace.cargo(&metadata))?)?;
        Ok(Self { files, sizes, kernel_digests, crates })
    }
}

/// The crates, ours and others', that the default build of the program compiles.
fn default_crates(workspace: &Workspace) -> Result<BTreeSet<String>> {
    let arguments = ["tree", "--locked", "-p", "cli", "-e", "normal,build", "--prefix", "none"];
    let listing = run::captured(&mut workspace.cargo(&arguments))?;
    Ok(manifests::distinct_crates(&listing))
}

/// Builds the program for release in an empty folder, and prints how long that took.
fn clean_build_time(workspace: &Workspace) -> Result<()> {
    let folder = std::env::temp_dir().join(format!("galerne-clean-build-{}", std::process::id()));
    let started = Instant::now();
    let mut command = workspace.cargo(&["build", "--locked", "--release", "--package", "cli"]);
    let built = run::must_succeed(command.arg("--target-dir").arg(&folder));
    let took = started.elapsed();
    fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
    built?;
    println!("clean release build: {:.0} s", took.as_secs_f64());
    Ok(())
}

#[cfg(test)]
impl SourceFile {
    /// A file for the tests of the checks.
    fn new(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), text: text.to_owned() }
    }
}
