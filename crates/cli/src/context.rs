//! What every command shares: the home, the processors and the GPU, where answers go.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::ffi::OsString;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use cuda::{CudaError, DRIVER, Gpu, LibraryPath};
use kernels::{Compute, Family, detect_features};
use serde::Serialize;
use tensor::Device;
use tracing::field::Field;
use tracing::{debug, info, warn};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{Writer, debug_fn};

use crate::args::{CommonArgs, DeviceChoice};
use crate::failure::Failure;

/// What the answer looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Shared by all commands; made once from the common arguments and the environment.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    home: PathBuf,
    form: Form,
    family: Option<Family>,
    n_threads: usize,
    compute: OnceCell<Compute>,
    choice: DeviceChoice,
    libraries: LibraryPath,
    device: OnceCell<Device>,
}

impl Context {
    /// Reads the environment; makes nothing yet.
    ///
    /// # Errors
    /// When the home cannot be known or `GALERNE_KERNELS` names no family.
    pub(crate) fn new(common: &CommonArgs) -> anyhow::Result<Self> {
        let family = match common.kernels {
            Some(family) => Some(family),
            None => family_of_environment()?,
        };
        let n_processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Ok(Self {
            home: home_dir(common.home.as_deref())?,
            form: common.form(),
            family,
            n_threads: common.threads.map_or(n_processors, std::num::NonZero::get),
            compute: OnceCell::new(),
            choice: common.device,
            libraries: LibraryPath::new(common.cuda_libs.clone()),
            device: OnceCell::new(),
        })
    }

    /// The home folder; it may not exist yet.
    pub(crate) fn home(&self) -> &Path {
        &self.home
    }

    /// Where models are.
    pub(crate) fn models_dir(&self) -> PathBuf {
        self.home.join("models")
    }

    /// Where adapters are.
    pub(crate) fn adapters_dir(&self) -> PathBuf {
        self.home.join("adapters")
    }

    /// Where packed copies of large models' weights are.
    pub(crate) fn packed_dir(&self) -> PathBuf {
        self.home.join("cache/packed")
    }

    /// Where runs are.
    pub(crate) fn runs_dir(&self) -> PathBuf {
        self.home.join("runs")
    }

    /// What the answer looks like.
    pub(crate) fn form(&self) -> Form {
        self.form
    }

    /// Compute threads.
    pub(crate) fn n_threads(&self) -> usize {
        self.n_threads
    }

    /// Kernels and threads, started at the first call.
    ///
    /// # Errors
    /// When this machine cannot run the family that was asked for.
    pub(crate) fn compute(&self) -> anyhow::Result<&Compute> {
        if let Some(compute) = self.compute.get() {
            return Ok(compute);
        }
        let compute = Compute::forced(self.family(), self.n_threads)?;
        Ok(self.compute.get_or_init(|| compute))
    }

    /// Where models are computed, opened at the first call.
    ///
    /// # Errors
    /// As [`Context::compute`], and when a GPU was asked for and cannot be used.
    pub(crate) fn device(&self) -> anyhow::Result<Device> {
        if let Some(device) = self.device.get() {
            return Ok(device.clone());
        }
        let host = self.compute()?.clone();
        let device = match self.choice {
            DeviceChoice::Cpu => Device::Cpu(host),
            DeviceChoice::Cuda => Device::Cuda { gpu: self.open_gpu()?, host },
            DeviceChoice::Auto => match self.open_gpu() {
                Ok(gpu) => Device::Cuda { gpu, host },
                Err(error) => {
                    // A machine without a driver or a GPU is the usual case; one whose GPU cannot be used is worth a word.
                    match error.downcast_ref() {
                        Some(CudaError::NoLibrary { name: DRIVER, .. } | CudaError::NoDevice)
                            if !self.libraries.is_named() =>
                        {
                            debug!("no GPU: {error:#}");
                        }
                        _ => warn!("computing on the processors: {error:#}"),
                    }
                    Device::Cpu(host)
                }
            },
        };
        Ok(self.device.get_or_init(|| device).clone())
    }

    /// The GPU, if models are not to be computed on the processors.
    ///
    /// # Errors
    /// When they are, or there is none that can be used.
    pub(crate) fn gpu_unless_cpu(&self) -> anyhow::Result<Gpu> {
        anyhow::ensure!(self.choice != DeviceChoice::Cpu, "not looked for: --device is cpu");
        self.open_gpu()
    }

    /// The GPU.
    ///
    /// # Errors
    /// When there is none that can be used.
    pub(crate) fn open_gpu(&self) -> anyhow::Result<Gpu> {
        let gpu = Gpu::open(&self.libraries).context("cannot use a GPU")?;
        let about = gpu.description();
        let memory = eval::figures::bytes(about.memory_bytes as u64);
        info!(gpu = about.name, memory, "computing on a GPU");
        Ok(gpu)
    }

    /// The kernel family that was asked for, else the fastest of this machine.
    pub(crate) fn family(&self) -> Family {
        self.family.unwrap_or_else(|| Family::fastest(detect_features()))
    }

    /// Writes to stdout.
    ///
    /// # Errors
    /// [`Failure::ClosedStdout`], which ends the program quietly, or the system's refusal.
    #[expect(clippy::unused_self, reason = "stdout belongs to the commands, through their context")]
    pub(crate) fn print(&self, text: &str) -> anyhow::Result<()> {
        let mut stdout = io::stdout().lock();
        let text = if stdout.is_terminal() { &*harmless(text) } else { text };
        match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                Err(Failure::ClosedStdout.into())
            }
            other => other.context("cannot write to standard output"),
        }
    }

    /// Writes a value as one line of JSON to stdout.
    ///
    /// # Errors
    /// As [`Context::print`].
    pub(crate) fn print_json(&self, value: &impl Serialize) -> anyhow::Result<()> {
        let text = serde_json::to_string(value).context("cannot write the answer as JSON")?;
        self.print(&format!("{text}\n"))
    }

    /// Writes a line for the user to stderr. A closed stderr loses it, which harms no work.
    #[expect(clippy::unused_self, reason = "stderr belongs to the commands, through their context")]
    pub(crate) fn say(&self, line: &str) {
        let _ = writeln!(io::stderr(), "{}", harmless(line));
    }

    /// Refuses `--json` where there is no answer for a program to read.
    ///
    /// # Errors
    /// With `--json`.
    pub(crate) fn refuse_json(&self, command: &str) -> anyhow::Result<()> {
        match self.form {
            Form::Text => Ok(()),
            Form::Json => Err(Failure::usage(format!("`{command}` has no --json")).into()),
        }
    }

    /// Makes a folder of the home.
    ///
    /// # Errors
    /// When the system refuses.
    #[expect(clippy::unused_self, reason = "folders of the home are made through the context")]
    pub(crate) fn make_dir(&self, dir: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))
    }
}

/// Text without the control characters by which a model, or the name in a file, could drive the terminal.
pub(crate) fn harmless(text: &str) -> Cow<'_, str> {
    let is_harmful = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if text.contains(is_harmful) {
        Cow::Owned(text.replace(is_harmful, "\u{fffd}"))
    } else {
        Cow::Borrowed(text)
    }
}

/// A variable of the environment that is set and not empty.
pub(crate) fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// A name from a file as one line, so that it cannot look like a line of ours.
pub(crate) fn one_line(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

fn family_of_environment() -> anyhow::Result<Option<Family>> {
    let Some(value) = variable("GALERNE_KERNELS") else { return Ok(None) };
    let parsed = value.to_string_lossy().parse();
    parsed.map(Some).map_err(|error: kernels::ComputeError| {
        Failure::usage(format!("GALERNE_KERNELS: {error}")).into()
    })
}

fn home_dir(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    let home = find_home(given)?;
    // Recipes and reports are text and name folders of the home.
    match home.to_str() {
        Some(_) => Ok(home),
        None => Err(Failure::usage(format!("the home {} is not UTF-8", home.display())).into()),
    }
}

fn find_home(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(dir) = given {
        return Ok(dir.to_owned());
    }
    if let Some(dir) = variable("GALERNE_HOME") {
        return Ok(dir.into());
    }
    let user_home = std::env::home_dir().filter(|dir| !dir.as_os_str().is_empty());
    Ok(user_home.ok_or(Failure::NoHome)?.join(".galerne"))
}

/// Logs go to stderr, filtered by `RUST_LOG`, warnings and errors by default.
pub(crate) fn start_logging() {
    let filter = EnvFilter::builder()
        .with_default_directive(tracing::level_filters::LevelFilter::WARN.into())
        .from_env_lossy();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .fmt_fields(log_fields())
        .with_writer(io::stderr)
        // It would report a closed stderr on stderr, and panic.
        .log_internal_errors(false)
        .with_ansi(io::stderr().is_terminal())
        .init();
}

/// Fields as tracing writes them, in its own colours, but no value drives the terminal or begins a line: errors of a model's files
/// repeat what is in the files.
fn log_fields() -> impl for<'writer> FormatFields<'writer> + 'static {
    let write = |writer: &mut Writer<'_>, field: &Field, value: &dyn std::fmt::Debug| {
        let text = format!("{value:?}").replace('\n', "\\n");
        let text = harmless(&text);
        match (field.name(), writer.has_ansi_escapes()) {
            ("message", _) => write!(writer, "{text}"),
            (name, true) => write!(writer, "\u{1b}[3m{name}\u{1b}[0m\u{1b}[2m=\u{1b}[0m{text}"),
            (name, false) => write!(writer, "{name}={text}"),
        }
    };
    debug_fn(write).delimited(" ")
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn text_cannot_drive_the_terminal() {
        assert_eq!(harmless("a\u{1b}[2Jb\u{9b}c\r"), "a\u{fffd}[2Jb\u{fffd}c\u{fffd}");
        assert_eq!(harmless("élan\n\tdeux"), "élan\n\tdeux");
    }

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(ansi: bool) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .fmt_fields(log_fields())
            .with_writer(move || writer.clone())
            .with_ansi(ansi)
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let error = anyhow::anyhow!("field `\u{1b}[2J\u{9b}`\n is wrong");
            tracing::warn!(model = "a\u{1b}b", n = 3, %error, "not \u{7}{}", "\u{1b}[31mserved");
        });
        String::from_utf8(lines.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn log_lines_cannot_drive_the_terminal_and_keep_their_own_colours() {
        let plain = logged(false);
        let expected = "not \u{fffd}\u{fffd}[31mserved model=\"a\\u{1b}b\" n=3 \
                        error=field `\u{fffd}[2J\u{fffd}`\\n is wrong\n";
        assert!(plain.ends_with(expected), "{plain:?}");
        let coloured = logged(true);
        assert!(
            coloured.contains("\u{1b}[3merror\u{1b}[0m\u{1b}[2m=\u{1b}[0mfield"),
            "{coloured:?}"
        );
        assert!(!coloured.contains("\u{1b}[2J") && !coloured.contains("\u{1b}[31mserved"));
    }
}
