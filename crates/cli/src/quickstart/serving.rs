//! The API and the chat page. The port is open from the beginning.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use eval::report::Report;
use formats::model_dir::ModelDir;
use server::{ModelRegistry, RunningServer, ServerConfig};

use crate::context::{Context, Form};
use crate::failure::Failure;
use crate::names::folder_name;
use crate::os::StopSignals;
use crate::shelf::{NamedModel, Settings, Shelf};

/// A server that has no model yet.
pub(crate) struct Serving {
    registry: ModelRegistry,
    server: RunningServer,
}

impl Serving {
    /// Opens the port.
    ///
    /// # Errors
    /// When it is taken.
    pub(crate) fn open(port: u16) -> anyhow::Result<Self> {
        let registry = ModelRegistry::new();
        let server = server::bind(ServerConfig::on_port(port))?.start(registry.clone())?;
        Ok(Self { registry, server })
    }

    /// What the page shows while there is no model.
    pub(crate) fn set_status(&self, status: &str) {
        self.registry.set_status(status);
    }

    /// Adds the models, the most specialised first, and serves until a signal comes.
    ///
    /// # Errors
    /// When a model cannot be loaded; [`Failure::Stopped`] after a signal.
    pub(crate) fn serve(
        self,
        report: &Report,
        signals: &mut StopSignals,
        context: &Context,
    ) -> anyhow::Result<()> {
        let mut models = Vec::new();
        for model in report.models.iter().rev() {
            let path = Path::new(&model.directory);
            let dir = ModelDir::open(path)
                .with_context(|| format!("cannot open model {}", path.display()))?;
            models.push((folder_name(path), dir));
        }
        let named = models.iter().map(|(name, dir)| NamedModel::new(name, dir)).collect();
        let shelf = Shelf::new(named, Settings::default(), context);
        for (name, dir) in models {
            self.registry.add_all(shelf.load_dir(&name, &dir)?)?;
        }
        self.registry.load_from(Arc::new(shelf));
        let url = format!("http://{}", self.server.address());
        match context.form() {
            Form::Text => context.print(&format!("\n{url}\n"))?,
            Form::Json => context.say(&url),
        }
        let signal = signals.wait().context("cannot wait for signals")?;
        self.server.stop()?;
        Err(Failure::Stopped { signal, saved: None, next: None }.into())
    }
}
