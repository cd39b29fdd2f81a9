//! `cargo xtask gpu-bundle DEST`: a folder with all that a machine with a GPU needs to test and measure the program: nothing is
//! built or downloaded there.
//!
//! It holds the program, stripped; the peers' scripts that run on a GPU; `run.sh` with the commands; the golden models; and
//! what `run.sh train` trains on, the bundled corpus as a quickstart prepares it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::outside::{self, Missing, Program};
use crate::run;
use crate::workspace::Workspace;

/// Largest program, stripped.
const MAX_PROGRAM_BYTES: u64 = 30 << 20;

/// Newest glibc that the machines have, of which the oldest is that of Ubuntu 22.04.
const NEWEST_GLIBC: (u32, u32) = (2, 35);

/// What is copied as it is, from where and under which name.
const FILES: &[(&str, &str)] = &[
    ("xtask/cuda/run.sh", "run.sh"),
    ("xtask/cuda/train.toml", "train.toml"),
    ("xtask/cuda/golden_logits.py", "golden_logits.py"),
    ("golden/logits", "golden/logits"),
    ("golden/architectures", "golden/architectures"),
    ("benches/peers/gpu_products.py", "peers/gpu_products.py"),
    ("benches/peers/gpu_train.py", "peers/gpu_train.py"),
    ("benches/peers/gpu_decode.py", "peers/gpu_decode.py"),
    ("benches/peers/gpu_speed.py", "peers/gpu_speed.py"),
];

/// What is taken of the data that a quickstart prepares.
const CORPUS: &[&str] = &["tokenizer", "pretraining", "validation"];

/// How long a quickstart may take to prepare the data.
const PREPARE_LIMIT: Duration = Duration::from_secs(300);

/// Makes the bundle in `folder`, which must be empty or absent.
pub(crate) fn run(workspace: &Workspace, folder: &Path) -> Result<bool> {
    let binutils = ["strip", "objdump"].map(|name| Program { name, package: "binutils" });
    if let Err(names) = outside::programs(&binutils, Missing::from_environment())? {
        bail!("a bundle needs {names}");
    }
    let is_taken = fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some());
    ensure!(!is_taken, "{} is not empty", folder.display());
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    run::must_succeed(&mut workspace.cargo(&[
        "build",
        "--locked",
        "--release",
        "--package",
        "cli",
    ]))?;
    let program = folder.join("galerne");
    strip(&workspace.target("release/galerne"), &program)?;
    for (from, to) in FILES {
        copy(&workspace.path(from), &folder.join(to))?;
    }
    let data = prepared_corpus(workspace, &program)?;
    for part in CORPUS {
        copy(&data.join(part), &folder.join("corpus").join(part))?;
    }
    println!("{}: {} KiB in all", folder.display(), size(folder)?.div_ceil(1024));
    Ok(true)
}

/// Copies the program without its symbols, and says which glibc it needs.
fn strip(built: &Path, program: &Path) -> Result<()> {
    run::captured(Command::new("strip").arg("-o").arg(program).arg(built))?;
    let n_bytes = size(program)?;
    ensure!(
        n_bytes <= MAX_PROGRAM_BYTES,
        "{} has {n_bytes} bytes, at most {MAX_PROGRAM_BYTES}",
        program.display()
    );
    let symbols = run::captured(Command::new("objdump").arg("-T").arg(program))?;
    let (major, minor) = newest_glibc(&symbols).context("the program names no glibc")?;
    println!("galerne: {} KiB, needs glibc {major}.{minor}", n_bytes.div_ceil(1024));
    ensure!(
        (major, minor) <= NEWEST_GLIBC,
        "the program needs glibc {major}.{minor}, at most {}.{}",
        NEWEST_GLIBC.0,
        NEWEST_GLIBC.1
    );
    Ok(())
}

/// The newest version of glibc that the output of `objdump -T` names.
fn newest_glibc(symbols: &str) -> Option<(u32, u32)> {
    let version = |text: &str| {
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let mut numbers = text[..end].split('.').map(|number| number.parse().ok());
        Some((numbers.next()??, numbers.next()??))
    };
    symbols.split("GLIBC_").skip(1).filter_map(version).max()
}

/// The bundled corpus as token shards: the data of a quickstart that is stopped as soon as it has prepared them.
fn prepared_corpus(workspace: &Workspace, program: &Path) -> Result<PathBuf> {
    let home = workspace.target("gpu-bundle-home");
    if home.exists() {
        fs::remove_dir_all(&home).with_context(|| format!("emptying {}", home.display()))?;
    }
    let data = home.join("runs/quickstart-1/data");
    // The name may be relative to the current folder, which is that of this process.
    let mut command = Command::new(fs::canonicalize(program)?);
    let mut child = command
        .args(["quickstart", "--no-serve", "--home"])
        .arg(&home)
        .spawn()
        .with_context(|| format!("starting {command:?}"))?;
    let waited = wait_for(&data.join("sheet.json"), &mut child);
    // What it measures next is not wanted, and nothing of it is kept.
    let _ = child.kill();
    child.wait()?;
    waited?;
    Ok(data)
}

/// Waits for a file that is written last.
fn wait_for(file: &Path, child: &mut Child) -> Result<()> {
    let deadline = Instant::now() + PREPARE_LIMIT;
    while !file.is_file() {
        if let Some(status) = child.try_wait()? {
            bail!("galerne quickstart ended before it wrote {} ({status})", file.display());
        }
        ensure!(Instant::now() < deadline, "{} is not there in {PREPARE_LIMIT:?}", file.display());
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Copies a file, with its permissions, or a folder.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let step = || format!("copying {} to {}", from.display(), to.display());
    if from.is_dir() {
        for entry in fs::read_dir(from).with_context(step)? {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    fs::create_dir_all(to.parent().context("a copy needs a folder")?).with_context(step)?;
    fs::copy(from, to).with_context(step)?;
    Ok(())
}

/// Bytes of a file, or of all files of a folder.
fn size(path: &Path) -> Result<u64> {
    let read = || format!("reading {}", path.display());
    if !path.is_dir() {
        return Ok(fs::metadata(path).with_context(read)?.len());
    }
    fs::read_dir(path).with_context(read)?.map(|entry| size(&entry?.path())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_glibc_is_found() {
        let symbols = "0 DF *UND* 0 (GLIBC_2.9) a\n0 DF *UND* 0 (GLIBC_2.34) b\n\
                       0 DF *UND* 0 (GLIBC_2.2.5) c\n0 DF *UND* 0 (GCC_3.0) d\n";
        assert_eq!(newest_glibc(symbols), Some((2, 34)));
        assert_eq!(newest_glibc("0 DF *UND* 0 (GCC_3.0) d\n"), None);
    }

    #[test]
    fn folders_are_copied_and_measured() {
        let folder = std::env::temp_dir().join(format!("gpu-bundle-{}", std::process::id()));
        fs::create_dir_all(folder.join("a/b")).unwrap();
        fs::write(folder.join("a/b/c"), "abc").unwrap();
        fs::write(folder.join("a/d"), "defg").unwrap();
        copy(&folder.join("a"), &folder.join("e")).unwrap();
        assert_eq!(fs::read(folder.join("e/b/c")).unwrap(), b"abc");
        assert_eq!(size(&folder).unwrap(), 14);
        fs::remove_dir_all(&folder).unwrap();
    }
}
