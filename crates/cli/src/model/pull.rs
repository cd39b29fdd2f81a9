//! `galerne model import hf:OWNER/NAME`: from a model hub into the home.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Context as _;
use client::{ClientError, Hub, RemoteFile, RepoName, Repository, Revision};
use eval::figures::bytes;
use formats::durable::DirLock;
use formats::model_dir::{ModelDir, config_in, model_files, move_model};
use model::ModelConfig;

use crate::context::Context;
use crate::failure::Failure;
use crate::machine;
use crate::os::StopSignals;
use crate::progress::DownloadBar;

/// What a model on a hub begins with on the command line.
pub(super) const PREFIX: &str = "hf:";

/// Arguments that only downloads have.
#[derive(Debug, clap::Args)]
pub(super) struct PullArgs {
    /// Branch, tag or commit of the hub's repository [default: main]
    #[arg(long, value_name = "REVISION")]
    revision: Option<Revision>,
    /// Address of the hub, or of a mirror [default: huggingface.co]
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
}

impl PullArgs {
    /// Whether one was given.
    pub(super) fn is_any(&self) -> bool {
        self.revision.is_some() || self.endpoint.is_some()
    }
}

/// `hf:OWNER/NAME`, or `hf:OWNER/NAME/FILE.gguf` for one of several.
#[derive(Clone, Debug)]
pub(super) struct HubModel {
    repository: RepoName,
    file: Option<String>,
}

impl FromStr for HubModel {
    type Err = ClientError;

    fn from_str(text: &str) -> Result<Self, ClientError> {
        let (name, file) = match text.match_indices('/').nth(1) {
            Some((end, _)) => (&text[..end], Some(text[end + 1..].to_owned())),
            None => (text, None),
        };
        Ok(Self { repository: name.parse()?, file })
    }
}

impl HubModel {
    /// The name that the model has in the home when none was given.
    pub(super) fn default_name(&self) -> String {
        let name = self.file.as_deref().unwrap_or(self.repository.name());
        name.strip_suffix(".gguf").unwrap_or(name).replace('.', "-")
    }
}

/// Downloads a model and moves it to `out`. What arrived before an error or a signal stays for the next try.
///
/// # Errors
/// When the hub or the disk refuses, or the files are no model that can be computed.
pub(super) fn pull(
    source: &HubModel,
    args: &PullArgs,
    out: &Path,
    context: &Context,
) -> anyhow::Result<ModelDir> {
    let token = secret("HF_TOKEN")?;
    let endpoint = args.endpoint.as_deref().unwrap_or("https://huggingface.co");
    let hub = Hub::new(endpoint, token.as_deref()).map_err(Failure::usage)?;
    let revision = args.revision.clone().unwrap_or_else(Revision::main);
    let repository = hub.repository(&source.repository, &revision)?;
    let files = chosen(&repository, source, context)?;
    let slug = slug(&repository, source);
    let place = context.home().join("cache").join("pulls").join(slug);
    let dir = place.join("model");
    context.make_dir(&dir)?;
    let _lock = DirLock::acquire(&place)?;
    let missing: Vec<&RemoteFile> =
        files.iter().copied().filter(|file| !dir.join(&file.path).is_file()).collect();
    check_disk(&missing, &dir)?;
    let total: u64 = files.iter().map(|file| file.n_bytes).sum();
    context.say(&format!(
        "{}{} at {}: {} files, {}",
        PREFIX,
        repository.name,
        repository.commit,
        files.len(),
        bytes(total)
    ));
    fetch(&hub, &repository, &missing, total, &dir)?;
    let model = ModelDir::open(&dir).with_context(|| format!("cannot use {}", dir.display()))?;
    let origin = format!("{PREFIX}{}@{}", repository.name, repository.commit);
    let model = move_model(model, origin, out)?;
    // The lock is all that is left in it.
    fs::remove_dir_all(&place).with_context(|| format!("cannot remove {}", place.display()))?;
    Ok(model)
}

fn chosen<'a>(
    repository: &'a Repository,
    source: &HubModel,
    context: &Context,
) -> anyhow::Result<Vec<&'a RemoteFile>> {
    let place = PathBuf::from(format!("{PREFIX}{}", repository.name));
    let paths = repository.files.iter().map(|file| file.path.as_str());
    let names = model_files(paths, source.file.as_deref(), &place).inspect_err(|_| {
        for file in repository.files.iter().filter(|file| file.path.ends_with(".gguf")) {
            context.say(&format!("{}/{}  {}", place.display(), file.path, bytes(file.n_bytes)));
        }
    })?;
    let mut files: Vec<&RemoteFile> =
        repository.files.iter().filter(|file| names.contains(&file.path.as_str())).collect();
    // The configuration is looked at before the weights are fetched.
    files.sort_by_key(|file| file.n_bytes);
    Ok(files)
}

fn fetch(
    hub: &Hub,
    repository: &Repository,
    missing: &[&RemoteFile],
    total: u64,
    dir: &Path,
) -> anyhow::Result<()> {
    let signals = StopSignals::take_all().context("cannot take signals")?;
    let mut n_before = total - missing.iter().map(|file| file.n_bytes).sum::<u64>();
    let mut bar = DownloadBar::new(n_before, total);
    for file in missing {
        let path = dir.join(&file.path);
        let result = hub.download(repository, file, &path, &mut |n_bytes| {
            bar.observe(n_before + n_bytes, &file.path);
            if signals.requested().is_some() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        if let (Err(ClientError::Stopped { .. }), Some(signal)) = (&result, signals.requested()) {
            let saved = Some(format!("{} of {} are there", bytes(bar.position()), bytes(total)));
            let next = Some("the same command goes on".to_owned());
            return Err(Failure::Stopped { signal, saved, next }.into());
        }
        result?;
        n_before += file.n_bytes;
        if let Some(config) = config_in(dir, &file.path)? {
            ModelConfig::new(config)
                .with_context(|| format!("cannot compute hf:{}", repository.name))?;
        }
    }
    bar.finish();
    Ok(())
}

fn check_disk(missing: &[&RemoteFile], dir: &Path) -> anyhow::Result<()> {
    let there = |file: &&RemoteFile| {
        let partial = client::partial_path(&dir.join(&file.path));
        fs::metadata(partial).map_or(0, |found| found.len())
    };
    let needed = missing.iter().map(|file| file.n_bytes.saturating_sub(there(file)));
    machine::check_disk("the model", dir, needed.sum())
}

/// A folder name of its own for each repository, commit and file.
fn slug(repository: &Repository, source: &HubModel) -> String {
    let name = &repository.name;
    let file = source.file.as_ref().map_or_else(String::new, |file| format!("--{file}"));
    format!("{}--{}--{}{file}", name.owner(), name.name(), repository.commit)
}

/// A secret of the environment: in the variable `NAME` itself, or in the file that `NAME_FILE` names.
fn secret(name: &str) -> anyhow::Result<Option<String>> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let wrong = |name: &str| Failure::usage(format!("{name} is not UTF-8"));
    if let Some(value) = variable(name) {
        return Ok(Some(value.into_string().map_err(|_| wrong(name))?));
    }
    let Some(path) = variable(&format!("{name}_FILE")).map(PathBuf::from) else { return Ok(None) };
    let text = formats::durable::read_bounded(&path, 4096)
        .with_context(|| format!("cannot use {name}_FILE"))?;
    let text = String::from_utf8(text).map_err(|_| wrong(name))?;
    Ok(Some(text.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hub_model_is_a_repository_and_perhaps_a_file() {
        let whole: HubModel = "acme/Tiny-v0.3".parse().unwrap();
        assert_eq!((whole.default_name().as_str(), whole.file), ("Tiny-v0-3", None));
        let file: HubModel = "acme/tiny/Tiny.Q4_K_M.gguf".parse().unwrap();
        assert_eq!(file.default_name(), "Tiny-Q4_K_M");
        for wrong in ["acme", "", "a b/c", "/x/y"] {
            assert!(wrong.parse::<HubModel>().is_err(), "{wrong}");
        }
    }
}
