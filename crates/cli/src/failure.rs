//! Errors of the command line, their next steps, and exit codes.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use client::ClientError;
use cuda::{CudaError, DRIVER};
use data::DataError;
use eval::figures::bytes;
use formats::FormatError;
use kernels::ComputeError;
use serde_json::json;
use server::ServerError;
use train::TrainError;

use crate::context::{Form, harmless};
use crate::os::StopSignal;

/// Longest message that is shown.
const MAX_SHOWN_CHARS: usize = 4096;

/// What to do when a GPU is full.
const GPU_MEMORY_HINT: &str = "`nvidia-smi` shows which programs use the GPU, `galerne plan` what a run takes; --device cpu computes \
                               on the processors, in this machine's memory";

/// Exit code of wrong usage.
const USAGE: u8 = 2;

/// What the command line itself finds wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Failure {
    /// Arguments that cannot be used together, or values that make no sense.
    #[error("{problem}")]
    Usage {
        /// What is wrong.
        problem: String,
    },
    /// Neither an option, nor the environment, nor the user's account names a home.
    #[error("there is no home folder: the account has none and GALERNE_HOME is not set")]
    NoHome,
    /// A name that is not in the home.
    #[error("there is no {kind} `{name}` in {}{}", dir.display(), listed(available))]
    Unknown {
        /// `model` or `run`.
        kind: &'static str,
        /// The name.
        name: String,
        /// Where it was looked for.
        dir: PathBuf,
        /// What is there.
        available: Vec<String>,
    },
    /// Nothing to serve.
    #[error("there is no model to serve in {}", dir.display())]
    NoModels {
        /// Where models are looked for.
        dir: PathBuf,
    },
    /// Text is asked of a model that knows no text.
    #[error("model `{model}` has no tokenizer: it takes and gives token ids only")]
    NoTokenizer {
        /// The model.
        model: String,
    },
    /// A conversation is asked of a model that only continues text.
    #[error("model `{model}` has no chat template that this program knows")]
    NoTemplate {
        /// The model.
        model: String,
    },
    /// A draft model must have the tokens of its model.
    #[error("draft model `{draft}` has other tokens than model `{model}`")]
    ForeignDraftModel {
        /// The draft model.
        draft: String,
        /// The model.
        model: String,
    },
    /// What is to be made is there already.
    #[error("{} exists already and is not overwritten", path.display())]
    Exists {
        /// The file or folder.
        path: PathBuf,
        /// What to do instead.
        hint: String,
    },
    /// The disk cannot hold what will be written.
    #[error(
        "{} has {} free, {what} needs {} and a reserve of {}",
        dir.display(), bytes(*free_bytes), bytes(*needed_bytes), bytes(*reserve_bytes)
    )]
    DiskSpace {
        /// The run or the model, and what is counted.
        what: &'static str,
        /// Where it would be.
        dir: PathBuf,
        /// Free bytes.
        free_bytes: u64,
        /// Bytes that it will take.
        needed_bytes: u64,
        /// Bytes that stay free beside it.
        reserve_bytes: u64,
    },
    /// The machine cannot hold what is to be computed.
    #[error("{what} needs {} of memory, this machine has {}", bytes(*needed_bytes), bytes(*total_bytes))]
    Memory {
        /// The run or the model.
        what: String,
        /// Bytes that it takes.
        needed_bytes: u64,
        /// All memory of the machine.
        total_bytes: u64,
    },
    /// The GPU cannot hold what is to be computed, or other programs do not leave it enough.
    #[error("{what} needs {} of memory, {gpu} has {} free", bytes(*needed_bytes), bytes(*free_bytes))]
    GpuMemory {
        /// The run or the model.
        what: String,
        /// As the driver calls it.
        gpu: String,
        /// Bytes that it takes.
        needed_bytes: u64,
        /// Memory of the GPU that no program has.
        free_bytes: u64,
    },
    /// A signal asked the program to stop, and it did in good order.
    #[error("stopped by {}{}", signal.name(), after_colon(saved.as_deref()))]
    Stopped {
        /// The signal.
        signal: StopSignal,
        /// What was saved; none when there was nothing to save.
        saved: Option<String>,
        /// How to go on.
        next: Option<String>,
    },
    /// A bug; the panic has told its place on stderr.
    #[error("the program panicked, which is a bug")]
    Panicked,
    /// Nobody reads stdout any more.
    #[error("standard output is closed")]
    ClosedStdout,
}

fn after_colon(text: Option<&str>) -> String {
    text.map_or_else(String::new, |text| format!(": {text}"))
}

fn listed(names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!("; there are: {}", names.join(", ")) }
}

impl Failure {
    /// The arguments or the recipe are at fault.
    pub(crate) fn usage(problem: impl ToString) -> Self {
        Self::Usage { problem: problem.to_string() }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Usage { .. } => Some("see --help".to_owned()),
            Self::NoHome => Some("set GALERNE_HOME, or give --home DIR".to_owned()),
            Self::Unknown { kind, .. } => Some(format!(
                "a {kind} elsewhere is given as a path, with a slash or a dot, such as ./{kind}"
            )),
            Self::NoModels { .. } => Some(
                "`galerne model import` brings one in, `galerne quickstart` makes one; --home names another home"
                    .to_owned(),
            ),
            Self::NoTokenizer { .. } => Some(
                "put the model's tokenizer.json, tekken.json or tokenizer.model beside its weights; \
                 `galerne generate --token-ids 1,5,9` needs none"
                    .to_owned(),
            ),
            Self::NoTemplate { .. } => Some("`galerne generate` continues a text".to_owned()),
            Self::ForeignDraftModel { .. } => {
                Some("a draft model is a smaller model with the same tokenizer".to_owned())
            }
            Self::Exists { hint, .. } => Some(hint.clone()),
            Self::DiskSpace { .. } => {
                Some("free some space, or name a home on another disk with --home".to_owned())
            }
            Self::Memory { .. } => Some(
                "`galerne plan` shows what takes the memory: a smaller model, smaller micro-batches or fewer data need less"
                    .to_owned(),
            ),
            Self::GpuMemory { .. } => Some(GPU_MEMORY_HINT.to_owned()),
            Self::Stopped { next, .. } => next.clone(),
            Self::Panicked => Some("report it with the lines above".to_owned()),
            Self::ClosedStdout => None,
        }
    }
}

/// Says what went wrong and gives the exit code.
pub(crate) fn report(error: &anyhow::Error, form: Form) -> ExitCode {
    let failure = error.downcast_ref::<Failure>();
    let (code, label) = match failure {
        Some(Failure::ClosedStdout) => return ExitCode::SUCCESS,
        Some(Failure::Stopped { signal, .. }) => (signal.exit_code(), ""),
        _ if is_usage(error) => (USAGE, "error: "),
        _ => (1, "error: "),
    };
    write_report(label, &message(error), hint(error).as_deref(), form);
    ExitCode::from(code)
}

/// Whether the arguments or the recipe are at fault, rather than files, data or the machine.
fn is_usage(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        matches!(cause.downcast_ref(), Some(Failure::Usage { .. }))
            || matches!(cause.downcast_ref(), Some(ServerError::NotLoopback { .. }))
    })
}

/// Answers `--help` and `--version`, and says what is wrong with the arguments.
pub(crate) fn report_usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // Help for a closed pipe is not missed.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    if std::env::args_os().any(|argument| argument == "--json") {
        let text = error.render().to_string();
        let problem = text.split("\n\n").next().unwrap_or_default();
        let problem = problem.trim_start_matches("error: ").trim();
        write_report("", problem, Some("see --help"), Form::Json);
    } else {
        let _ = error.print();
    }
    ExitCode::from(USAGE)
}

fn write_report(label: &str, message: &str, hint: Option<&str>, form: Form) {
    let text = match form {
        Form::Json => json!({"error": {"message": message, "hint": hint}}).to_string(),
        Form::Text => {
            let hint = hint.map_or_else(String::new, |hint| format!("\nhint: {}", indented(hint)));
            format!("{label}{}{hint}", indented(message))
        }
    };
    // With stderr closed the exit code must do.
    let _ = writeln!(io::stderr(), "{}", harmless(&text));
}

/// Text with every line but the first set in, so that no text from a file looks like a line of ours, and not without end: a message may
/// repeat what is in a file.
fn indented(text: &str) -> String {
    let end = text.char_indices().nth(MAX_SHOWN_CHARS).map_or(text.len(), |(end, _)| end);
    let cut = if end < text.len() { "..." } else { "" };
    text[..end].replace('\n', "\n    ") + cut
}

/// The chain of causes. Library errors tell their cause in their own text, which is not said twice.
pub(crate) fn message(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            let _ = write!(text, ": {cause}");
        }
    }
    text
}

/// The next step, where an error of the chain has one.
fn hint(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(|cause| {
        if let Some(failure) = cause.downcast_ref::<Failure>() {
            return failure.hint();
        }
        if let Some(error) = cause.downcast_ref::<ServerError>() {
            return server_hint(error);
        }
        if let Some(error) = cause.downcast_ref::<ClientError>() {
            return client_hint(error);
        }
        if let Some(error) = cause.downcast_ref::<TrainError>() {
            return train_hint(error);
        }
        if let Some(error) = cause.downcast_ref::<FormatError>() {
            return format_hint(error);
        }
        if let Some(DataError::Format(error)) = cause.downcast_ref::<DataError>() {
            return format_hint(error);
        }
        if let Some(error) = cause.downcast_ref::<CudaError>() {
            return cuda_hint(error);
        }
        if let Some(ComputeError::Unsupported { .. }) = cause.downcast_ref::<ComputeError>() {
            return Some("`galerne doctor` shows which families this machine runs".to_owned());
        }
        cause.downcast_ref::<io::Error>().and_then(io_hint)
    })
}

fn server_hint(error: &ServerError) -> Option<String> {
    let hint = match error {
        ServerError::PortBusy { .. } => {
            "stop the other program, or choose another port (0 takes a free one)"
        }
        ServerError::PortForbidden { .. } => "ports below 1024 are reserved: choose a higher one",
        ServerError::NotLoopback { .. } => {
            "this version has no keys: it answers programs of this machine only"
        }
        _ => return None,
    };
    Some(hint.to_owned())
}

fn cuda_hint(error: &CudaError) -> Option<String> {
    let hint = match error {
        CudaError::NoLibrary { name: DRIVER, .. } => {
            "install NVIDIA's driver, or compute on the processors with --device cpu"
        }
        CudaError::NoLibrary { .. } => {
            "install cuBLAS of CUDA 12 or 13, of the system or of pip (nvidia-cublas), or name its folder with --cuda-libs"
        }
        CudaError::BrokenLibrary { .. } => {
            "install it again, or name a folder with another one with --cuda-libs"
        }
        // Of CUDA_ERROR_NO_BINARY_FOR_GPU, _INVALID_PTX, _UNSUPPORTED_PTX_VERSION and _INSUFFICIENT_DRIVER.
        CudaError::NoFunction { library: DRIVER, .. }
        | CudaError::Driver { code: 35 | 209 | 218 | 222, .. } => {
            "update NVIDIA's driver to one of CUDA 13 (580 or newer), or compute on the processors with --device cpu"
        }
        CudaError::NoFunction { .. } => {
            "update cuBLAS, or name the folder of a newer one with --cuda-libs"
        }
        CudaError::NoDevice | CudaError::TooOld { .. } | CudaError::SharedMemory { .. } => {
            "--device cpu computes on the processors"
        }
        // CUDA_ERROR_OUT_OF_MEMORY.
        CudaError::OutOfMemory { .. } | CudaError::Driver { code: 2, .. } => GPU_MEMORY_HINT,
        _ => return None,
    };
    Some(hint.to_owned())
}

fn client_hint(error: &ClientError) -> Option<String> {
    let hint = match error {
        ClientError::Io { source, .. } => return io_hint(source),
        ClientError::Status { status: 401 | 403, .. } => {
            "the repository is private, gated or not there: accept its terms on the hub, and set HF_TOKEN or HF_TOKEN_FILE, \
             with --send-token for another address than that of huggingface.co"
        }
        ClientError::Status { status: 404, .. } => {
            "check the names of repository, revision and file"
        }
        ClientError::Status { status: 429, .. } => {
            "the hub limits requests: wait, then run the same command"
        }
        ClientError::Unreachable { .. } => {
            "check the network, the proxy (HTTPS_PROXY) and the system's certificates (SSL_CERT_FILE), or name a mirror \
             with --endpoint; the same command goes on where it stopped"
        }
        ClientError::Digest { .. } => {
            "run the same command again; should it fail again, the hub's copy is damaged"
        }
        _ => return None,
    };
    Some(hint.to_owned())
}

fn train_hint(error: &TrainError) -> Option<String> {
    match error {
        TrainError::Format(error) | TrainError::Data(DataError::Format(error)) => {
            format_hint(error)
        }
        TrainError::Io { source, .. } => io_hint(source),
        TrainError::NotARun { .. } => {
            Some("a run is a folder made by `galerne pretrain` or `galerne tune`".to_owned())
        }
        TrainError::NotFinite { .. } => {
            Some("lower schedule.peak_learning_rate in a new run".to_owned())
        }
        _ => None,
    }
}

fn format_hint(error: &FormatError) -> Option<String> {
    match error {
        FormatError::Io { source, .. } => io_hint(source),
        FormatError::AdapterMerges { .. } => {
            Some("`galerne model merge` puts the adapter into a copy of the model".to_owned())
        }
        FormatError::Exists { .. } => Some("choose another name, or move it away".to_owned()),
        FormatError::Locked { .. } => Some("wait until the other process has ended, or stop it".to_owned()),
        FormatError::Quantised { .. } => {
            Some("start from the model that it was made from".to_owned())
        }
        FormatError::Damaged { .. } => Some(
            "restore the file from a copy; of a run, the name of an older checkpoint can be written into checkpoints/LATEST"
                .to_owned(),
        ),
        _ => None,
    }
}

fn io_hint(error: &io::Error) -> Option<String> {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    match error.kind() {
        StorageFull | QuotaExceeded => {
            Some("free some space, or name a home on another disk with --home".to_owned())
        }
        FileTooLarge => Some("raise the limit on the size of files (`ulimit -f`)".to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    fn full_disk() -> FormatError {
        let source = io::Error::from(io::ErrorKind::StorageFull);
        FormatError::Io { action: "write", path: "a/b".into(), source }
    }

    #[test]
    fn causes_are_told_once_and_in_order() {
        let error = anyhow::Error::from(full_disk()).context("cannot save the run");
        let text = message(&error);
        assert!(text.starts_with("cannot save the run: cannot write a/b: "), "{text}");
        assert_eq!(text.matches("no storage space").count(), 1, "{text}");
    }

    #[test]
    fn text_from_files_makes_no_line_of_ours() {
        assert_eq!(indented("tensor `x\nhint: run this`"), "tensor `x\n    hint: run this`");
        assert_eq!(indented(&"é".repeat(10_000)).chars().count(), MAX_SHOWN_CHARS + 3);
    }

    #[test]
    fn hints_are_found_through_wrapped_errors() {
        let error = anyhow::Error::from(TrainError::from(full_disk()));
        assert!(hint(&error).unwrap().contains("free some space"));
        let locked = FormatError::Locked { dir: "run".into(), holder: "process 1".to_owned() };
        let error = anyhow::Error::from(locked).context("cannot resume");
        assert!(hint(&error).unwrap().contains("other process"));
        let exists = FormatError::Exists { path: "models/a".into() };
        assert!(hint(&exists.into()).unwrap().contains("another name"));
        let busy = ServerError::PortBusy { address: ([127, 0, 0, 1], 8080).into() };
        assert!(hint(&busy.into()).unwrap().contains("another port"));
        let gated = ClientError::Status { url: "hub".to_owned(), status: 403 };
        assert!(hint(&gated.into()).unwrap().contains("HF_TOKEN"));
        let none: anyhow::Result<()> = Err(anyhow::anyhow!("x")).context("y");
        assert_eq!(hint(&none.unwrap_err()), None);
    }
}
