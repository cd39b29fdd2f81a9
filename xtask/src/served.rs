//! The model and the server that clients and the browser are tried on.

use std::cell::OnceCell;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::run;
use crate::workspace::Workspace;

/// The program that trains the model under test in a new and empty home: few steps, fixed, so that it takes under a minute
/// and gives the same weights in every run.
const PREPARE_MODEL: [&str; 8] =
    ["run", "--locked", "--profile", "ci", "--package", "train", "--example", "test_model"];

/// The command of `galerne` that serves the models of the home on a free loopback port.
const SERVE: &[&str] = &["serve", "--port", "0"];

/// How long the server may take to print its address.
const START_LIMIT: Duration = Duration::from_secs(60);

/// How long the server may take to end after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// The exit code of a program that ended on SIGTERM with its state saved.
const ENDED_BY_SIGTERM: i32 = 143;

/// A home with a small trained model, made at the first use and kept for the run.
pub(crate) struct Home<'a> {
    workspace: &'a Workspace,
    prepared: OnceCell<PathBuf>,
}

impl<'a> Home<'a> {
    /// A home that is not prepared yet.
    pub(crate) fn new(workspace: &'a Workspace) -> Self {
        Self { workspace, prepared: OnceCell::new() }
    }

    /// The program under test.
    pub(crate) fn galerne(&self) -> PathBuf {
        self.workspace.target("ci/galerne")
    }

    /// The folder to be used as `GALERNE_HOME`; builds the program and trains the model if need be.
    pub(crate) fn folder(&self) -> Result<&Path> {
        if let Some(folder) = self.prepared.get() {
            return Ok(folder);
        }
        let folder = self.workspace.target("ci-home");
        self.prepare_model(&folder).context("preparing the model under test")?;
        Ok(self.prepared.get_or_init(|| folder))
    }

    /// Empties the folder and trains the model in it.
    fn prepare_model(&self, folder: &Path) -> Result<()> {
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| format!("emptying {}", folder.display()))?;
        }
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        let build = ["build", "--locked", "--profile", "ci", "--package", "cli"];
        run::must_succeed(&mut self.workspace.cargo(&build))?;
        let mut command = self.workspace.cargo(&PREPARE_MODEL);
        command.arg("--").arg(folder);
        run::must_succeed(&mut command)?;
        Ok(())
    }
}

/// A running server; it is killed when dropped.
pub(crate) struct Server {
    child: Child,
    url: String,
}

impl Server {
    /// Starts the server on the home and waits until it has printed its address.
    pub(crate) fn start(home: &Home<'_>) -> Result<Self> {
        let folder = home.folder()?;
        let log_path = folder.join("serve.log");
        let log = File::create(&log_path)?;
        let mut command = home.workspace.command(home.galerne(), SERVE);
        command.env("GALERNE_HOME", folder).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        let mut server = Self { child, url: String::new() };
        let deadline = Instant::now() + START_LIMIT;
        loop {
            let text = String::from_utf8_lossy(&fs::read(&log_path)?).into_owned();
            if let Some(url) = loopback_url(&text) {
                server.url = url;
                return Ok(server);
            }
            if let Some(status) = server.child.try_wait()? {
                bail!("{command:?} ended before it printed an address ({status}):\n{text}");
            }
            if Instant::now() > deadline {
                bail!("{command:?} printed no address in {START_LIMIT:?}:\n{text}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The address, without a slash at its end.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Ends the server as a supervisor would, and checks that it obeys.
    pub(crate) fn stop(mut self) -> Result<()> {
        run::captured(Command::new("kill").args(["-TERM", &self.child.id().to_string()]))?;
        let deadline = Instant::now() + STOP_LIMIT;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return check_end(status);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        bail!("the server still ran {STOP_LIMIT:?} after SIGTERM")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only if the server has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A server that ended after SIGTERM says so by its exit code.
fn check_end(status: ExitStatus) -> Result<()> {
    if status.code() == Some(ENDED_BY_SIGTERM) {
        return Ok(());
    }
    bail!("after SIGTERM the server ended with {status}, expected exit code {ENDED_BY_SIGTERM}")
}

/// The first complete loopback address with a port in a text.
fn loopback_url(text: &str) -> Option<String> {
    const START: &str = "http://127.0.0.1:";
    let from = &text[text.find(START)?..];
    let digits = from[START.len()..].chars().take_while(char::is_ascii_digit).count();
    let end = START.len() + digits;
    // Without a character after it, the port may not be written to its end yet.
    (digits > 0 && from.len() > end).then(|| from[..end].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_found_once_it_is_complete() {
        assert_eq!(loopback_url("starting\n"), None);
        assert_eq!(loopback_url("open http://127.0.0.1:40"), None);
        assert_eq!(
            loopback_url("open http://127.0.0.1:4012/ now"),
            Some("http://127.0.0.1:4012".to_owned())
        );
        assert_eq!(loopback_url("http://127.0.0.1:\n"), None);
    }
}
