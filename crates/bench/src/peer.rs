//! Peers, run beside ours by their scripts in `benches/peers`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Why a peer gave no figure.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// The peer's environment or script is not there.
    #[error("{} is missing: peers are measured from a checkout with target/peers", path.display())]
    Missing {
        /// What is missing.
        path: PathBuf,
    },
    /// The script could not be started.
    #[error("cannot run {}: {source}", path.display())]
    Start {
        /// The program.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The script ended without a figure.
    #[error("{} gave no figure: {output}", path.display())]
    NoFigure {
        /// The script.
        path: PathBuf,
        /// The end of what it printed.
        output: String,
    },
}

/// Tokens per second of PyTorch's compiled bf16 training step of the same shape, on `n_threads` threads.
///
/// # Errors
/// When PyTorch is not installed in `target/peers` or its script fails.
pub fn train_step_peer(n_threads: usize) -> Result<f64, PeerError> {
    let threads = n_threads.to_string();
    let arguments = ["--mode", "bf16", "--compiled", "--threads", &threads];
    figure("pytorch_train_step.py", arguments.map(OsStr::new))
}

/// Tokens per second of llama.cpp on a GGUF file, on `n_threads` threads. `work` and `detail` are those of its script.
///
/// # Errors
/// When llama.cpp is not installed in `target/peers` or its script fails.
pub fn llama_cpp_peer(
    model: &Path,
    work: &str,
    detail: usize,
    n_threads: usize,
) -> Result<f64, PeerError> {
    let (detail, threads) = (detail.to_string(), n_threads.to_string());
    let [work, detail, threads, option] = [work, &detail, &threads, "--threads"].map(OsStr::new);
    let arguments = [work, detail, option, threads, OsStr::new("--model"), model.as_os_str()];
    figure("llama_cpp_speed.py", arguments)
}

/// The `value` of the last line of JSON that a script prints.
fn figure<const N: usize>(script: &str, arguments: [&OsStr; N]) -> Result<f64, PeerError> {
    let python = PathBuf::from("target/peers/bin/python");
    let script = Path::new("benches/peers").join(script);
    for path in [&python, &script] {
        if !path.exists() {
            return Err(PeerError::Missing { path: path.clone() });
        }
    }
    let mut command = Command::new(&python);
    command.arg(&script).args(arguments);
    let output = command.output().map_err(|source| PeerError::Start { path: python, source })?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    let figure = stdout
        .lines()
        .rev()
        .find_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()?["value"].as_f64());
    figure.ok_or_else(|| {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = stderr.lines().collect();
        let output = lines[lines.len().saturating_sub(3)..].join(" / ");
        PeerError::NoFigure { path: script, output }
    })
}
