//! Heavy comparisons with independent implementations. Golden files are remade, models are compared with transformers,
//! speed with PyTorch; a full run writes `golden/ORACLE.md` with the date, the versions and the figures.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::counts::Counts;
use crate::outside::{self, Missing};
use crate::run;
use crate::served::Home;
use crate::workspace::Workspace;

/// The packages of `target/peers`.
const REQUIREMENTS: &str = "golden/requirements.txt";

/// The record of a full run.
const RECORD: &str = "golden/ORACLE.md";

/// One comparison. To add one, write its script and a line here; `golden/README.md` says what a script prints.
struct Comparison {
    name: &'static str,
    means: Means,
}

/// How a comparison is made. Each way prints lines of JSON, the figures, and fails if they are not good.
enum Means {
    /// A Python script that remakes golden files.
    Golden(&'static str),
    /// A Python script that is given `--galerne PROGRAM --model DIRECTORY`.
    Model(&'static str),
    /// A Python script with arguments that is given `--galerne PROGRAM`.
    Program(&'static [&'static str]),
    /// The tests of these crates, on the golden files as they are now.
    Tests(&'static [&'static str]),
    /// A command of the program itself, which runs its peer too.
    Galerne(&'static [&'static str]),
}

const COMPARISONS: &[Comparison] = &[
    Comparison { name: "logits", means: Means::Golden("golden/make_logits.py") },
    Comparison { name: "architectures", means: Means::Golden("golden/make_architectures.py") },
    Comparison { name: "adapters", means: Means::Golden("golden/make_adapters.py") },
    Comparison { name: "blocks", means: Means::Golden("golden/make_blocks.py") },
    Comparison { name: "instruct", means: Means::Golden("golden/make_instruct.py") },
    Comparison { name: "jinja", means: Means::Golden("golden/make_jinja.py") },
    Comparison { name: "family", means: Means::Golden("golden/make_family.py") },
    Comparison { name: "train_steps", means: Means::Golden("golden/make_train_steps.py") },
    Comparison { name: "lora_steps", means: Means::Golden("golden/make_lora_steps.py") },
    Comparison { name: "tokenizer", means: Means::Golden("golden/make_tokenizer.py") },
    Comparison {
        name: "tests",
        means: Means::Tests(&["kernels", "formats", "model", "train", "tokenizer"]),
    },
    Comparison { name: "families", means: Means::Program(&["golden/compare_families.py"]) },
    Comparison { name: "export", means: Means::Model("golden/compare_export.py") },
    Comparison { name: "llama_cpp", means: Means::Model("golden/compare_llama_cpp.py") },
    Comparison { name: "encoding", means: Means::Model("golden/compare_tokenizer.py") },
    Comparison {
        name: "mistral_common",
        means: Means::Program(&["golden/compare_mistral_common.py", "--n", "100000"]),
    },
    Comparison { name: "rendering", means: Means::Program(&["golden/compare_instruct.py"]) },
    Comparison { name: "speed", means: Means::Galerne(&["bench", "train", "--peer", "--json"]) },
];

/// What the comparisons share.
struct Oracle<'a> {
    workspace: &'a Workspace,
    python: PathBuf,
    home: Home<'a>,
}

/// How one comparison went.
struct Entry {
    name: &'static str,
    took: Duration,
    /// Lines of JSON, or the reason of the failure.
    outcome: Result<String, String>,
}

/// The names that `--only` takes.
pub(crate) fn comparison_names() -> Vec<&'static str> {
    COMPARISONS.iter().map(|comparison| comparison.name).collect()
}

/// Runs the named comparisons, or all of them, which also writes the record.
pub(crate) fn run(workspace: &Workspace, only: &[String]) -> Result<bool> {
    let environment =
        outside::python_environment(workspace, "peers", REQUIREMENTS, Missing::Install)?;
    let python = environment.map_err(anyhow::Error::msg)?;
    let oracle = Oracle { workspace, python, home: Home::new(workspace) };
    let is_wanted = |name: &str| only.is_empty() || only.iter().any(|wanted| wanted == name);
    let mut entries = Vec::new();
    for comparison in COMPARISONS.iter().filter(|comparison| is_wanted(comparison.name)) {
        println!("==> {}", comparison.name);
        let started = Instant::now();
        let outcome = oracle.compare(&comparison.means).map_err(|error| format!("{error:#}"));
        if let Err(reason) = &outcome {
            println!("FAILED {}: {reason}", comparison.name);
        }
        entries.push(Entry { name: comparison.name, took: started.elapsed(), outcome });
    }
    if only.is_empty() {
        let text = record(&oracle.facts()?, &entries);
        fs::write(workspace.path(RECORD), text).with_context(|| format!("writing {RECORD}"))?;
        println!("wrote {RECORD}");
    }
    let mut counts = Counts::default();
    for entry in &entries {
        counts += Counts::single(entry.outcome.is_ok());
    }
    println!("{counts}");
    Ok(counts.failed == 0)
}

impl Oracle<'_> {
    /// Makes one comparison and returns its figures.
    fn compare(&self, means: &Means) -> Result<String> {
        match means {
            Means::Golden(script) => self.checked(&mut self.python_script(&[script])),
            Means::Tests(crates) => self.tests(crates),
            Means::Model(script) => {
                let model = trained_model(self.home.folder()?)?;
                let mut command = self.python_script(&[script]);
                command.arg("--galerne").arg(self.release_build()?).arg("--model").arg(model);
                self.checked(&mut command)
            }
            Means::Program(script) => {
                let mut command = self.python_script(script);
                command.arg("--galerne").arg(self.release_build()?);
                self.checked(&mut command)
            }
            Means::Galerne(arguments) => {
                let mut command = self.workspace.command(self.release_build()?, arguments);
                self.checked(&mut command)
            }
        }
    }

    fn python_script(&self, script: &[&str]) -> Command {
        let mut command = self.workspace.command(&self.python, script);
        // No comparison may reach a host: what is not here is missing.
        command.env("HF_HUB_OFFLINE", "1").env("TRANSFORMERS_VERBOSITY", "error");
        command
    }

    /// Runs a command and returns the lines of JSON it printed, or all lines if none is JSON; an exit other than 0 is
    /// an error.
    fn checked(&self, command: &mut Command) -> Result<String> {
        let ran = run::echoed(command)?;
        if !ran.success {
            bail!("{command:?} failed; it printed:\n{}", ran.stdout);
        }
        let is_json = |line: &&str| serde_json::from_str::<serde_json::Value>(line).is_ok();
        let figures: Vec<&str> = ran.stdout.lines().filter(is_json).collect();
        Ok(if figures.is_empty() { ran.stdout.trim().to_owned() } else { figures.join("\n") })
    }

    fn tests(&self, crates: &[&str]) -> Result<String> {
        let mut command = self.workspace.cargo(&["test", "--locked", "--profile", "ci"]);
        for name in crates {
            command.args(["--package", name]);
        }
        let ran = run::echoed(&mut command)?;
        let counts = Counts::of_cargo_test(&ran.stdout).with_exit(ran.success);
        if counts.failed > 0 {
            bail!("{counts}");
        }
        Ok(serde_json::json!({"packages": crates, "passed": counts.passed}).to_string())
    }

    /// The program as users build it.
    fn release_build(&self) -> Result<PathBuf> {
        let arguments = ["build", "--locked", "--release", "--package", "cli"];
        run::must_succeed(&mut self.workspace.cargo(&arguments))?;
        Ok(self.workspace.target("release/galerne"))
    }

    /// Date, machine and versions, as lines of the record.
    fn facts(&self) -> Result<Vec<String>> {
        let mut facts = Vec::new();
        let text = |program: &str, arguments: &[&str]| -> Result<String> {
            let output = run::captured(&mut self.workspace.command(program, arguments))?;
            Ok(output.trim().to_owned())
        };
        facts.push(format!("Date: {}", text("date", &["-u", "+%F"])?));
        facts.push(format!("Commit: {}", text("git", &["rev-parse", "--short", "HEAD"])?));
        facts.push(format!("Machine: {}", machine()?));
        facts.push(format!("Rust: {}", text("rustc", &["--version"])?));
        let python = run::captured(Command::new(&self.python).arg("--version"))?;
        let pins = fs::read_to_string(self.workspace.path(REQUIREMENTS))?;
        let pins: Vec<&str> = pins.lines().filter(|line| !line.starts_with('#')).collect();
        facts.push(format!("Python: {}; {}", python.trim(), pins.join(", ")));
        Ok(facts)
    }
}

/// The one model directory of a home.
fn trained_model(home: &Path) -> Result<PathBuf> {
    let models = home.join("models");
    let entries = fs::read_dir(&models).with_context(|| format!("reading {}", models.display()))?;
    for entry in entries {
        let folder = entry?.path();
        if folder.join("config.json").is_file() {
            return Ok(folder);
        }
    }
    bail!("{} holds no model directory", models.display())
}

/// Processor, cores and memory.
fn machine() -> Result<String> {
    let cpus = fs::read_to_string("/proc/cpuinfo").context("reading /proc/cpuinfo")?;
    let memory = fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    Ok(machine_line(&cpus, &memory))
}

fn machine_line(cpus: &str, memory: &str) -> String {
    let value = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.starts_with(key)).map(str::to_owned);
        line.and_then(|line| line.split_once(':').map(|(_, value)| value.trim().to_owned()))
    };
    let n_cores = cpus.lines().filter(|line| line.starts_with("processor")).count();
    let model = value(cpus, "model name").unwrap_or("unknown processor".to_owned());
    let kib = value(memory, "MemTotal").unwrap_or_default();
    let kib: u64 = kib.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0);
    let flags = value(cpus, "flags").unwrap_or_default();
    let has_amx = if flags.split(' ').any(|flag| flag == "amx_bf16") { "AMX" } else { "no AMX" };
    format!("{model}, {n_cores} cores, {has_amx}, {} MiB", kib / 1024)
}

/// The text of the record.
fn record(facts: &[String], entries: &[Entry]) -> String {
    let mut text =
        String::from("# Oracle\n\nWritten by `cargo xtask oracle`; not edited by hand.\n\n");
    for fact in facts {
        writeln!(text, "- {fact}").expect("a String takes every write");
    }
    for Entry { name, took, outcome } in entries {
        let state = if outcome.is_ok() { "agrees" } else { "FAILED" };
        let figures = match outcome {
            Ok(lines) => lines,
            Err(reason) => reason,
        };
        write!(text, "\n## {name}: {state} ({:.0} s)\n\n```\n{figures}\n```\n", took.as_secs_f64())
            .expect("a String takes every write");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_shows_figures_and_failures() {
        let took = Duration::from_secs(2);
        let entries = [
            Entry { name: "logits", took, outcome: Ok("{\"max\": 0.5}".to_owned()) },
            Entry { name: "export", took, outcome: Err("too far".to_owned()) },
        ];
        let text = record(&["Date: 2026-01-01".to_owned()], &entries);
        assert!(text.contains("- Date: 2026-01-01\n"));
        assert!(text.contains("## logits: agrees (2 s)\n\n```\n{\"max\": 0.5}\n```"));
        assert!(text.contains("## export: FAILED (2 s)\n\n```\ntoo far\n```"));
    }

    #[test]
    fn the_machine_is_described() {
        let cpus = "processor\t: 0\nmodel name\t: A CPU\nflags\t\t: fpu amx_bf16\nprocessor\t: 1\n";
        let line = machine_line(cpus, "MemTotal:       25165824 kB\n");
        assert_eq!(line, "A CPU, 2 cores, AMX, 24576 MiB");
    }

    #[test]
    fn a_home_without_a_model_is_an_error() {
        assert!(trained_model(Path::new("/no/such/home")).is_err());
    }
}
