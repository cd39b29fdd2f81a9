//! Development commands, run as `cargo xtask COMMAND`; see CONTRIBUTING.md.
//!
//! `ci` is the whole gate, `oracle` the heavy comparisons with other implementations, `tidy` the house rules that
//! neither the compiler nor clippy checks; `cuda-kernels` compiles the GPU kernels, `gpu-bundle` packs what a GPU machine
//! measures. This crate is no part of the product: it has three small dependencies, so that it compiles in seconds.

#![expect(clippy::print_stdout, reason = "a development command talks to the terminal")]
#![expect(clippy::print_stderr, reason = "a development command talks to the terminal")]

mod ci;
mod counts;
mod cuda_kernels;
mod gpu_bundle;
mod kernel_files;
mod oracle;
mod outside;
mod run;
mod served;
mod tidy;
mod workspace;

use std::path::PathBuf;
use std::process::ExitCode;

use workspace::Workspace;

const USAGE: &str = "usage:
  cargo xtask ci [--part NAME,...]        the whole gate, or some of its parts
  cargo xtask oracle [--only NAME,...]    heavy comparisons; writes golden/ORACLE.md
  cargo xtask tidy [--time]               house rules; --time also measures a clean release build
  cargo xtask cuda-kernels [--check]      compiles the GPU kernels; --check compares with what lies there
  cargo xtask gpu-bundle DEST             what a GPU machine needs to test and measure the program";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let task = match Task::parse(&arguments) {
        Ok(task) => task,
        Err(problem) => {
            eprintln!("error: {problem}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match task.run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What one invocation does.
#[derive(Debug, PartialEq)]
enum Task {
    Ci { parts: Vec<String> },
    Oracle { only: Vec<String> },
    Tidy { time: bool },
    CudaKernels { check: bool },
    GpuBundle { folder: Option<PathBuf> },
}

impl Task {
    /// Reads the arguments; anything not understood is an error.
    fn parse(arguments: &[String]) -> Result<Self, String> {
        let (name, options) = arguments.split_first().ok_or("a command is missing")?;
        let mut task = match name.as_str() {
            "ci" => Self::Ci { parts: Vec::new() },
            "oracle" => Self::Oracle { only: Vec::new() },
            "tidy" => Self::Tidy { time: false },
            "cuda-kernels" => Self::CudaKernels { check: false },
            "gpu-bundle" => Self::GpuBundle { folder: None },
            other => return Err(format!("no command named `{other}`")),
        };
        let mut options = options.iter();
        while let Some(option) = options.next() {
            match (&mut task, option.as_str()) {
                (Self::Ci { parts }, "--part") => {
                    *parts = names(options.next(), &ci::part_names())?;
                }
                (Self::Oracle { only }, "--only") => {
                    *only = names(options.next(), &oracle::comparison_names())?;
                }
                (Self::Tidy { time }, "--time") => *time = true,
                (Self::CudaKernels { check }, "--check") => *check = true,
                (Self::GpuBundle { folder: folder @ None }, path) if !path.starts_with('-') => {
                    *folder = Some(path.into());
                }
                _ => return Err(format!("`{name}` has no option `{option}`")),
            }
        }
        match task {
            Self::GpuBundle { folder: None } => Err(format!("`{name}` needs a folder")),
            task => Ok(task),
        }
    }

    /// Does it; the answer is whether everything passed.
    fn run(self) -> anyhow::Result<bool> {
        let workspace = Workspace::find()?;
        match self {
            Self::Ci { parts } => ci::run(&workspace, &parts),
            Self::Oracle { only } => oracle::run(&workspace, &only),
            Self::Tidy { time } => tidy::run(&workspace, time),
            Self::CudaKernels { check } => cuda_kernels::run(&workspace, check),
            Self::GpuBundle { folder } => gpu_bundle::run(&workspace, &folder.unwrap_or_default()),
        }
    }
}

/// Splits the comma-separated value of an option; each name must be known.
fn names(value: Option<&String>, known: &[&str]) -> Result<Vec<String>, String> {
    let value = value.ok_or("the option needs a list of names")?;
    let names: Vec<String> = value.split(',').map(str::to_owned).collect();
    match names.iter().find(|name| !known.contains(&name.as_str())) {
        Some(name) => Err(format!("nothing is named `{name}`; there are {}", known.join(", "))),
        None => Ok(names),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Task, String> {
        Task::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn options_are_read() {
        let parts = vec!["fmt".to_owned(), "doc".to_owned()];
        assert_eq!(parse("ci --part fmt,doc"), Ok(Task::Ci { parts }));
        assert_eq!(parse("tidy --time"), Ok(Task::Tidy { time: true }));
        let folder = Some(PathBuf::from("b"));
        assert_eq!(parse("gpu-bundle b"), Ok(Task::GpuBundle { folder }));
    }

    #[test]
    fn wrong_arguments_are_refused() {
        for line in [
            "",
            "cii",
            "ci --fast",
            "ci --part",
            "ci --part fmt,x",
            "tidy --part fmt",
            "gpu-bundle",
            "gpu-bundle a b",
        ] {
            assert!(parse(line).is_err(), "`{line}` was accepted");
        }
    }
}
