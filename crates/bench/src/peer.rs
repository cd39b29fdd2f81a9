//! Peers, run beside ours by their scripts in `benches/peers`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::temporary::TemporaryFolder;

/// A program that Galerne is measured against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Inference on GGUF files.
    LlamaCpp,
    /// Inference on a model converted from the GGUF file.
    OpenVino,
    /// The training step, and inference on the numbers of the GGUF file in bf16.
    PyTorch,
    /// Training of tokenizers, and encoding.
    Gigatoken,
}

impl Peer {
    /// Every peer.
    pub const ALL: [Self; 4] = [Self::LlamaCpp, Self::OpenVino, Self::PyTorch, Self::Gigatoken];

    /// The name on the command line and in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::LlamaCpp => "llama.cpp",
            Self::OpenVino => "openvino",
            Self::PyTorch => "pytorch",
            Self::Gigatoken => "gigatoken",
        }
    }

    /// The peer of a name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|peer| peer.name() == name)
    }

    /// The Python environment that it is installed in; `benches/peers/README.md` says how.
    const fn environment(self) -> &'static str {
        match self {
            Self::LlamaCpp | Self::PyTorch => "target/peers",
            Self::OpenVino => "target/peers-openvino",
            Self::Gigatoken => "target/peers-tokenizer",
        }
    }

    fn python(self) -> PathBuf {
        Path::new(self.environment()).join("bin/python")
    }

    /// Finds the peer's environment, so that nothing is measured in vain.
    ///
    /// # Errors
    /// When it is not there.
    pub fn check_installed(self) -> Result<(), PeerError> {
        there(&self.python())
    }

    /// The script of its inference.
    const fn inference_script(self) -> Option<&'static str> {
        match self {
            Self::LlamaCpp => Some("llama_cpp_speed.py"),
            Self::OpenVino => Some("openvino_speed.py"),
            Self::PyTorch => Some("pytorch_speed.py"),
            Self::Gigatoken => None,
        }
    }

    /// Whether it computes what `bench prefill`, `decode` and `batch` measure.
    #[must_use]
    pub const fn infers(self) -> bool {
        self.inference_script().is_some()
    }
}

/// Why a peer gave no figure.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// There is no folder for what it writes.
    #[error("cannot make a temporary folder")]
    Folder {
        /// The system's answer.
        source: std::io::Error,
    },
    /// The peer's environment or script is not there.
    #[error("{} is missing: peers are measured from a checkout, installed as benches/peers/README.md says", path.display())]
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
    /// The file of logits that the script was to write.
    #[error("logits of {peer}: {} {problem}", path.display())]
    Logits {
        /// The peer.
        peer: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

/// What a peer's script printed.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerFigure {
    /// The figure, in the unit of ours.
    pub value: f64,
    /// The settings that it was measured with.
    pub settings: Option<String>,
    /// Tokens that came of encoding.
    pub n_tokens: Option<u64>,
}

impl PeerFigure {
    /// The last line of JSON with a `value` among what a script printed.
    fn parse(stdout: &str) -> Option<Self> {
        stdout.lines().rev().find_map(|line| {
            let figure: Value = serde_json::from_str(line).ok()?;
            Some(Self {
                value: figure["value"].as_f64().filter(|value| *value > 0.0)?,
                settings: figure["settings"].as_str().map(str::to_owned),
                n_tokens: figure["n_tokens"].as_u64(),
            })
        })
    }
}

/// Tokens per second of PyTorch's compiled bf16 training step of the same shape, on `n_threads` threads.
///
/// # Errors
/// When PyTorch is not installed or its script fails.
pub fn train_step_peer(n_threads: usize) -> Result<PeerFigure, PeerError> {
    let threads = n_threads.to_string();
    let arguments = ["--mode", "bf16", "--compiled", "--threads", &threads];
    figure(Peer::PyTorch, "pytorch_train_step.py", &arguments.map(OsString::from))
}

/// What a peer's inference is asked for.
#[derive(Clone, Copy, Debug)]
pub struct PeerInference<'a> {
    /// The GGUF file.
    pub model: &'a Path,
    /// `prefill`, `decode` or `batch`.
    pub work: &'a str,
    /// Length of the prompt, context or users.
    pub detail: usize,
    /// Threads.
    pub n_threads: usize,
}

impl PeerInference<'_> {
    /// Tokens per second.
    ///
    /// # Errors
    /// When the peer is not installed or its script fails.
    ///
    /// # Panics
    /// For a peer without inference.
    pub fn run(self, peer: Peer) -> Result<PeerFigure, PeerError> {
        self.run_with(peer, &[])
    }

    /// Tokens per second, and the logits `[n_tokens, vocab_size]` of [`crate::prompt`] in the same process.
    ///
    /// # Errors
    /// As [`PeerInference::run`], and when the logits are not those of so many tokens.
    ///
    /// # Panics
    /// As [`PeerInference::run`].
    pub fn run_with_logits(
        self,
        peer: Peer,
        [n_tokens, vocab_size]: [usize; 2],
    ) -> Result<(PeerFigure, Vec<f32>), PeerError> {
        let folder = TemporaryFolder::new().map_err(|source| PeerError::Folder { source })?;
        let path = folder.path().join("logits");
        let count = n_tokens.to_string();
        let more = ["--logits-tokens".into(), count.into(), "--logits".into(), path.clone().into()];
        let figure = self.run_with(peer, &more);
        let bytes = std::fs::read(&path);
        let (figure, peer) = (figure?, peer.name());
        let expected = 4 * n_tokens * vocab_size;
        let problem = match bytes {
            Ok(bytes) if bytes.len() == expected => {
                let numbers = bytes.as_chunks().0.iter().map(|number| f32::from_le_bytes(*number));
                return Ok((figure, numbers.collect()));
            }
            Ok(bytes) => format!(
                "has {} bytes, expected {expected} (4 * {n_tokens} tokens * {vocab_size} ids)",
                bytes.len()
            ),
            Err(error) => format!("cannot be read: {error}"),
        };
        Err(PeerError::Logits { peer, path, problem })
    }

    fn run_with(self, peer: Peer, more: &[OsString]) -> Result<PeerFigure, PeerError> {
        let script = peer.inference_script().expect("a peer of inference");
        let (detail, threads) = (self.detail.to_string(), self.n_threads.to_string());
        let arguments = [self.work, &detail, "--threads", &threads, "--model"];
        let mut arguments: Vec<OsString> = arguments.map(OsString::from).to_vec();
        arguments.push(self.model.into());
        arguments.extend_from_slice(more);
        figure(peer, script, &arguments)
    }
}

/// Megabytes per second of gigatoken's training on the `.txt` files below a folder.
///
/// # Errors
/// When it is not installed or its script fails.
pub fn tokenizer_train_peer(
    text: &Path,
    vocab_size: usize,
    n_threads: usize,
) -> Result<PeerFigure, PeerError> {
    let (vocab_size, threads) = (vocab_size.to_string(), n_threads.to_string());
    let mut arguments: Vec<OsString> = vec!["train".into(), "--text".into(), text.into()];
    let more = ["--vocab-size", &vocab_size, "--threads", &threads];
    arguments.extend(more.map(OsString::from));
    figure(Peer::Gigatoken, "tokenizer_speed.py", &arguments)
}

/// Megabytes per second of gigatoken's first pass over the lines of those files, on one thread, by a `tokenizer.json`.
///
/// # Errors
/// As [`tokenizer_train_peer`].
pub fn tokenizer_encode_peer(text: &Path, tokenizer: &Path) -> Result<PeerFigure, PeerError> {
    let options = ["encode".into(), "--text".into(), text.into(), "--tokenizer".into()];
    let mut arguments: Vec<OsString> = options.to_vec();
    arguments.push(tokenizer.into());
    figure(Peer::Gigatoken, "tokenizer_speed.py", &arguments)
}

/// Runs a script in its peer's environment.
fn figure(peer: Peer, script: &str, arguments: &[OsString]) -> Result<PeerFigure, PeerError> {
    let (python, script) = (peer.python(), Path::new("benches/peers").join(script));
    there(&python)?;
    there(&script)?;
    let mut command = Command::new(&python);
    command.arg(&script).args(arguments);
    let output = command.output().map_err(|source| PeerError::Start { path: python, source })?;
    // A figure of a script that failed afterwards is none.
    let stdout = String::from_utf8_lossy(&output.stdout);
    let figure = output.status.success().then(|| PeerFigure::parse(&stdout)).flatten();
    figure.ok_or_else(|| {
        let stderr = String::from_utf8_lossy(&output.stderr);
        PeerError::NoFigure { path: script, output: last_lines(&stderr) }
    })
}

fn there(path: &Path) -> Result<(), PeerError> {
    if path.exists() { Ok(()) } else { Err(PeerError::Missing { path: path.to_owned() }) }
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(3)..].join(" / ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_with_a_figure_counts() {
        let stdout = "loading\n{\"value\": 1.5}\n{\"value\": 25.3, \"unit\": \"tokens/s\", \
                      \"settings\": \"flash attention off\", \"n_tokens\": 7}\nbye {}\n{}\n";
        let figure = PeerFigure::parse(stdout).unwrap();
        let settings = Some("flash attention off".to_owned());
        assert_eq!(figure, PeerFigure { value: 25.3, settings, n_tokens: Some(7) });
        for none in ["", "{\"value\": \"fast\"}", "{\"value\": 0}", "{\"value\": -3.0}", "[1]"] {
            assert_eq!(PeerFigure::parse(none), None, "{none}");
        }
    }

    #[test]
    fn the_end_of_an_error_is_shown() {
        assert_eq!(last_lines("a\n\nb\nc\n  \nd\n"), "b / c / d");
        assert_eq!(last_lines(""), "");
    }

    #[test]
    fn every_peer_is_found_by_its_name() {
        for peer in Peer::ALL {
            assert_eq!(Peer::named(peer.name()), Some(peer));
        }
        assert_eq!(Peer::named("llama"), None);
    }
}
