//! Outside programs: finding them, and installing them where that is wanted.
//!
//! A program that is missing leads to a skipped part, named in the summary. With `CI=true` it is installed instead, and
//! an install that fails is an error.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::run;
use crate::workspace::Workspace;

/// Whether this run may install what is missing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Missing {
    /// Leave out the parts that need it.
    Skip,
    /// Install it; a failure is an error.
    Install,
}

impl Missing {
    /// The convention of continuous integration: `CI=true`.
    pub(crate) fn from_environment() -> Self {
        if std::env::var_os("CI").is_some_and(|value| value == "true") {
            Self::Install
        } else {
            Self::Skip
        }
    }
}

/// A program on the path and the Debian package it comes from.
pub(crate) struct Program {
    pub(crate) name: &'static str,
    pub(crate) package: &'static str,
}

/// Looks for the programs. `Ok(Err(names))` says which are missing and were not to be installed.
pub(crate) fn programs(needed: &[Program], missing: Missing) -> Result<Result<(), String>> {
    let absent: Vec<&Program> = needed.iter().filter(|p| !is_on_path(p.name)).collect();
    if absent.is_empty() {
        return Ok(Ok(()));
    }
    if missing == Missing::Skip {
        let names: Vec<&str> = absent.iter().map(|program| program.name).collect();
        return Ok(Err(names.join(", ")));
    }
    install_packages(&absent.iter().map(|program| program.package).collect::<Vec<_>>())?;
    for program in absent {
        anyhow::ensure!(
            is_on_path(program.name),
            "package {} was installed, yet there is no program {}",
            program.package,
            program.name
        );
    }
    Ok(Ok(()))
}

/// Makes sure that the virtual environment `target/NAME` holds what `requirements` (a path in the checkout) pins, and
/// returns its Python. `Ok(Err(reason))` says what is missing and was not to be installed.
pub(crate) fn python_environment(
    workspace: &Workspace,
    name: &str,
    requirements: &str,
    missing: Missing,
) -> Result<Result<PathBuf, String>> {
    let folder = workspace.path("target").join(name);
    let python = folder.join("bin/python");
    let pins_file = workspace.path(requirements);
    let pins = std::fs::read_to_string(&pins_file)
        .with_context(|| format!("reading {}", pins_file.display()))?;
    if holds(&python, &pins) {
        return Ok(Ok(python));
    }
    if missing == Missing::Skip {
        return Ok(Err(format!("the packages of {requirements} in target/{name}")));
    }
    println!("installing the packages of {requirements} in target/{name}");
    if !has_venv_module() {
        install_packages(&["python3", "python3-venv"])?;
    }
    run::must_succeed(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
    run::must_succeed(
        Command::new(&python)
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"])
            .arg(&pins_file),
    )?;
    anyhow::ensure!(
        holds(&python, &pins),
        "pip installed {requirements}, yet target/{name} does not hold its versions"
    );
    Ok(Ok(python))
}

/// Whether the environment of this Python has every pinned package at its version.
fn holds(python: &Path, pins: &str) -> bool {
    let freeze = ["-m", "pip", "freeze", "--disable-pip-version-check"];
    run::captured(Command::new(python).args(freeze))
        .is_ok_and(|frozen| unmet(pins, &frozen).is_empty())
}

/// The pins that a `pip freeze` does not meet. A local version such as `2.15.0+cpu` meets `2.15.0`; names are compared as pip
/// does, without regard to case, hyphens and underscores.
fn unmet<'a>(pins: &'a str, frozen: &str) -> Vec<&'a str> {
    let normal = |line: &str| line.to_lowercase().replace('_', "-");
    let frozen: Vec<String> = frozen.lines().map(normal).collect();
    let is_met = |pin: &str| {
        let pin = normal(pin);
        frozen.iter().any(|line| {
            line.strip_prefix(&pin).is_some_and(|rest| rest.is_empty() || rest.starts_with('+'))
        })
    };
    pins.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .filter(|pin| !is_met(pin))
        .collect()
}

/// Whether `python3` can make virtual environments: Debian ships that apart.
fn has_venv_module() -> bool {
    run::captured(Command::new("python3").args(["-c", "import venv, ensurepip"])).is_ok()
}

/// Installs Debian packages; needs the rights to do so.
fn install_packages(packages: &[&str]) -> Result<()> {
    println!("installing {}", packages.join(" "));
    run::captured(Command::new("apt-get").args(["update", "-q"]))?;
    run::captured(
        Command::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "-q", "-y", "--no-install-recommends"])
            .args(packages),
    )?;
    Ok(())
}

/// Whether a file of that name lies in a folder of `PATH`.
fn is_on_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(name).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_compared_with_versions() {
        let pins = "# a comment\ntorch==2.15.0\nnumpy==2.4.6\n";
        assert_eq!(unmet(pins, "numpy==2.4.6\ntorch==2.15.0+cpu\n"), Vec::<&str>::new());
        assert_eq!(unmet(pins, "numpy==2.4.60\ntorch==2.15.0\n"), ["numpy==2.4.6"]);
        let named =
            unmet("jinja2==3.1.6\nmistral-common==1.13.1", "Jinja2==3.1.6\nmistral_common==1.13.1");
        assert_eq!(named, Vec::<&str>::new());
    }

    #[test]
    fn a_missing_program_is_named_when_nothing_may_be_installed() {
        let needed = [
            Program { name: "sh", package: "dash" },
            Program { name: "no-such-program", package: "none" },
        ];
        assert_eq!(programs(&needed, Missing::Skip).unwrap(), Err("no-such-program".to_owned()));
    }
}
