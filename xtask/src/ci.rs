//! The whole gate: every part that a change has to pass, each with its time.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::counts::Counts;
use crate::outside::{self, Missing, Program};
use crate::run;
use crate::served::{Home, Server};
use crate::tidy;
use crate::workspace::Workspace;

/// One part of the gate.
struct Part {
    name: &'static str,
    /// Time from clean on two cores; more is a warning, never a failure.
    budget_s: u64,
    run: fn(&Gate<'_>) -> Result<Outcome>,
}

/// The parts in the order they run: what fails fast comes first.
const PARTS: &[Part] = &[
    Part { name: "fmt", budget_s: 10, run: fmt },
    Part { name: "tidy", budget_s: 10, run: tidy_rules },
    Part { name: "clippy", budget_s: 360, run: clippy },
    Part { name: "test", budget_s: 1200, run: test },
    Part { name: "doc", budget_s: 180, run: doc },
    Part { name: "fuzz", budget_s: 150, run: fuzz },
    Part { name: "quickstart", budget_s: 400, run: quickstart },
    Part { name: "tokens", budget_s: 180, run: tokens },
    Part { name: "clients", budget_s: 120, run: clients },
    Part { name: "page", budget_s: 180, run: page },
];

/// Time for all parts together, from clean on two cores.
const TOTAL_BUDGET_S: u64 = 45 * 60;

/// What the parts share.
struct Gate<'a> {
    workspace: &'a Workspace,
    home: Home<'a>,
    missing: Missing,
}

/// How a part ended.
enum Outcome {
    Ran(Counts),
    /// An outside program is missing; the text names it.
    Skipped(String),
}

/// Runs the named parts, or all of them, and prints the closing table; the last line has the sums.
pub(crate) fn run(workspace: &Workspace, names: &[String]) -> Result<bool> {
    let missing = Missing::from_environment();
    let gate = Gate { workspace, home: Home::new(workspace), missing };
    let mut total = Counts::default();
    let mut table = Vec::new();
    let all_started = Instant::now();
    for part in select(names) {
        println!("==> {}", part.name);
        let started = Instant::now();
        let (counts, note) = match (part.run)(&gate) {
            Ok(Outcome::Ran(counts)) => (counts, String::new()),
            Ok(Outcome::Skipped(reason)) => (Counts::one_skipped(), format!("missing: {reason}")),
            Err(error) => {
                println!("part {} failed: {error:#}", part.name);
                (Counts::single(false), "could not finish".to_owned())
            }
        };
        total += counts;
        table.push(row(part.name, part.budget_s, started.elapsed(), counts, &note));
    }
    table.push(row("all", TOTAL_BUDGET_S, all_started.elapsed(), total, ""));
    println!("\n{}", table.join("\n"));
    println!("{total}");
    Ok(total.failed == 0)
}

/// The names that `--part` takes.
pub(crate) fn part_names() -> Vec<&'static str> {
    PARTS.iter().map(|part| part.name).collect()
}

/// The parts of these names; all of them for no names.
fn select(names: &[String]) -> Vec<&'static Part> {
    let is_wanted = |part: &&Part| names.is_empty() || names.iter().any(|name| name == part.name);
    PARTS.iter().filter(is_wanted).collect()
}

/// A line of the closing table. It keeps clear of the words of the last line, which programs read.
fn row(name: &str, budget_s: u64, took: Duration, counts: Counts, note: &str) -> String {
    let state = match counts {
        Counts { failed: 1.., .. } => "FAILED",
        Counts { passed: 0, skipped: 1.., .. } => "skipped",
        _ => "ok",
    };
    let mut line = format!(
        "{name:<10} {state:<8} {:>7.1} s of {budget_s:>5} s {:>6} checks",
        took.as_secs_f64(),
        counts.passed + counts.failed
    );
    if took > Duration::from_secs(budget_s) {
        line.push_str("  warning: over its budget");
    }
    if !note.is_empty() {
        line.push_str("  ");
        line.push_str(note);
    }
    line
}

fn fmt(gate: &Gate<'_>) -> Result<Outcome> {
    let ran = run::echoed(&mut gate.workspace.cargo(&["fmt", "--all", "--check"]))?;
    Ok(Outcome::Ran(Counts::single(ran.success)))
}

fn tidy_rules(gate: &Gate<'_>) -> Result<Outcome> {
    Ok(Outcome::Ran(tidy::report(gate.workspace)?))
}

fn clippy(gate: &Gate<'_>) -> Result<Outcome> {
    // The profile of the tests, so that build scripts and macros are compiled once for both.
    let arguments = ["clippy", "--locked", "--workspace", "--all-targets", "--profile", "ci"];
    let mut command = gate.workspace.cargo(&arguments);
    let ran = run::echoed(command.args(["--", "--deny", "warnings"]))?;
    Ok(Outcome::Ran(Counts::single(ran.success)))
}

fn test(gate: &Gate<'_>) -> Result<Outcome> {
    let arguments = ["test", "--locked", "--workspace", "--profile", "ci", "--no-fail-fast"];
    let ran = run::echoed(&mut gate.workspace.cargo(&arguments))?;
    Ok(Outcome::Ran(Counts::of_cargo_test(&ran.stdout).with_exit(ran.success)))
}

fn doc(gate: &Gate<'_>) -> Result<Outcome> {
    let arguments = ["doc", "--locked", "--workspace", "--no-deps", "--profile", "ci"];
    let mut command = gate.workspace.cargo(&arguments);
    let ran = run::echoed(command.env("RUSTDOCFLAGS", "--deny warnings"))?;
    Ok(Outcome::Ran(Counts::single(ran.success)))
}

/// The fuzz targets, which are a workspace of their own, compile.
fn fuzz(gate: &Gate<'_>) -> Result<Outcome> {
    let compiler = [Program { name: "c++", package: "g++" }];
    if let Err(names) = outside::programs(&compiler, gate.missing)? {
        return Ok(Outcome::Skipped(names));
    }
    // Cargo keeps the versions that it finds there, and adds those of the fuzzer.
    fs::copy(gate.workspace.path("Cargo.lock"), gate.workspace.path("fuzz/Cargo.lock"))
        .context("copying Cargo.lock into fuzz")?;
    let manifest = ["--manifest-path", "fuzz/Cargo.toml"];
    let fetched = run::captured(gate.workspace.cargo(&["fetch"]).args(manifest));
    if let Err(error) = fetched {
        if gate.missing == Missing::Install {
            return Err(error);
        }
        println!("{error:#}");
        return Ok(Outcome::Skipped("the crates that fuzz/Cargo.toml names".to_owned()));
    }
    let mut command = gate.workspace.cargo(&["check", "--locked", "--target-dir"]);
    let ran = run::echoed(command.arg(gate.workspace.target("fuzz")).args(manifest))?;
    Ok(Outcome::Ran(Counts::single(ran.success)))
}

/// The main job, small, as a process that is stopped and resumed.
fn quickstart(gate: &Gate<'_>) -> Result<Outcome> {
    let python3 = [Program { name: "python3", package: "python3" }];
    if let Err(names) = outside::programs(&python3, gate.missing)? {
        return Ok(Outcome::Skipped(names));
    }
    gate.home.folder()?;
    let path = "xtask/clients/test_quickstart.py";
    let mut command = gate.workspace.command("python3", &[path, "--galerne"]);
    Ok(Outcome::Ran(counted(command.arg(gate.home.galerne()))?))
}

/// Runs a script that ends with a line of its counts; without one it has failed.
fn counted(command: &mut Command) -> Result<Counts> {
    let ran = run::echoed(command)?;
    let counts = Counts::of_summary_line(&ran.stdout);
    Ok(counts.unwrap_or(Counts::single(false)).with_exit(ran.success))
}

/// Texts and chat requests as token ids: those of mistral-common, with the tokenizer files that it brings.
fn tokens(gate: &Gate<'_>) -> Result<Outcome> {
    let python = match clients_environment(gate)? {
        Ok(python) => python,
        Err(reason) => return Ok(Outcome::Skipped(reason)),
    };
    gate.home.folder()?;
    let mut counts = Counts::default();
    for arguments in
        [&["golden/compare_mistral_common.py", "--n", "5000"][..], &["golden/compare_instruct.py"]]
    {
        let mut command = gate.workspace.command(&python, arguments);
        let ran = run::echoed(command.arg("--galerne").arg(gate.home.galerne()))?;
        counts += Counts::single(ran.success);
    }
    Ok(Outcome::Ran(counts))
}

/// The Python client of OpenAI against a real server.
fn clients(gate: &Gate<'_>) -> Result<Outcome> {
    script(gate, "xtask/clients/test_openai.py")
}

/// The chat page in a real browser.
fn page(gate: &Gate<'_>) -> Result<Outcome> {
    let needed = [
        Program { name: "chromium", package: "chromium" },
        Program { name: "chromedriver", package: "chromium-driver" },
    ];
    if let Err(names) = outside::programs(&needed, gate.missing)? {
        return Ok(Outcome::Skipped(names));
    }
    script(gate, "xtask/clients/test_page.py")
}

/// The Python of `target/clients`, or what is missing.
fn clients_environment(gate: &Gate<'_>) -> Result<Result<PathBuf, String>> {
    let python3 = [Program { name: "python3", package: "python3" }];
    if let Err(names) = outside::programs(&python3, gate.missing)? {
        return Ok(Err(names));
    }
    let requirements = "xtask/clients/requirements.txt";
    outside::python_environment(gate.workspace, "clients", requirements, gate.missing)
}

/// Runs a test script of `xtask/clients` with the address of a server of its own.
fn script(gate: &Gate<'_>, path: &str) -> Result<Outcome> {
    let python = match clients_environment(gate)? {
        Ok(python) => python,
        Err(reason) => return Ok(Outcome::Skipped(reason)),
    };
    let server = Server::start(&gate.home)?;
    let mut counts = counted(&mut gate.workspace.command(python, &[path, "--url", server.url()]))?;
    let stopped = server.stop();
    if let Err(error) = &stopped {
        println!("FAILED the server ends on SIGTERM: {error:#}");
    }
    counts += Counts::single(stopped.is_ok());
    Ok(Outcome::Ran(counts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_selected_by_name_and_keep_their_order() {
        let wanted = ["doc", "fmt"].map(str::to_owned);
        let names: Vec<&str> = select(&wanted).iter().map(|part| part.name).collect();
        assert_eq!(names, ["fmt", "doc"]);
        assert_eq!(select(&[]).len(), PARTS.len());
    }

    #[test]
    fn a_row_says_failure_skipping_and_lateness() {
        let row = |seconds: u64, counts, note: &str| {
            row("fmt", 10, Duration::from_secs(seconds), counts, note)
        };
        assert!(row(1, Counts::single(false), "").contains("FAILED"));
        assert!(row(1, Counts::one_skipped(), "missing: x").contains("missing: x"));
        assert!(row(11, Counts::single(true), "").contains("warning"));
        assert!(!row(1, Counts::single(true), "").contains("warning"));
    }
}
