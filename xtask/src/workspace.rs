//! Where things are: the root of the checkout, the build folder, and the commands that start there.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// The checkout this program was compiled in.
pub(crate) struct Workspace {
    root: PathBuf,
    target: PathBuf,
}

impl Workspace {
    /// Finds the root beside this crate, and the build folder as cargo does.
    pub(crate) fn find() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("the folder of xtask has no parent")?
            .to_owned();
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or("target".into(), PathBuf::from);
        Ok(Self { target: root.join(target), root })
    }

    /// A path inside the checkout.
    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// A path inside the build folder of cargo.
    pub(crate) fn target(&self, relative: &str) -> PathBuf {
        self.target.join(relative)
    }

    /// A command that starts in the root of the checkout.
    pub(crate) fn command(
        &self,
        program: impl AsRef<std::ffi::OsStr>,
        arguments: &[&str],
    ) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(&self.root);
        command
    }

    /// The cargo that started this program.
    pub(crate) fn cargo(&self, arguments: &[&str]) -> Command {
        self.command(std::env::var_os("CARGO").unwrap_or("cargo".into()), arguments)
    }
}
