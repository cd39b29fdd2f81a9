//! `galerne model import hf:OWNER/NAME`: from a model hub into the home.

use std::collections::BTreeSet;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Context as _;
use client::{ClientError, Downloaded, Hub, RemoteFile, RepoName, Repository, Revision};
use eval::figures::bytes;
use formats::durable::{DirLock, remove_any};
use formats::model_dir::{MAX_COMPANION_BYTES, ModelDir, config_in, model_files, move_model};
use formats::weights::is_plain_name;
use formats::{DecoderConfig, FormatError};
use model::ModelConfig;

use crate::context::{Context, variable};
use crate::failure::Failure;
use crate::machine;
use crate::names::without_dots;
use crate::os::StopSignals;
use crate::progress::DownloadBar;

/// What a model on a hub begins with on the command line.
pub(super) const PREFIX: &str = "hf:";
/// The hub that the token is of.
const HUB: &str = "https://huggingface.co";
/// Files that are shown for one to be named.
const MAX_SHOWN: usize = 50;

/// Arguments that only downloads have.
#[derive(Debug, clap::Args)]
pub(super) struct PullArgs {
    /// Branch, tag or commit of the hub's repository [default: main]
    #[arg(long, value_name = "REVISION")]
    revision: Option<Revision>,
    /// Address of the hub, or of a mirror [default: huggingface.co]
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// Send the token of HF_TOKEN or HF_TOKEN_FILE to the address of --endpoint, too; else it is for huggingface.co alone
    #[arg(long)]
    send_token: bool,
}

impl PullArgs {
    /// Whether one was given.
    pub(super) fn is_any(&self) -> bool {
        self.revision.is_some() || self.endpoint.is_some() || self.send_token
    }
}

/// `hf:OWNER/NAME`, or `hf:OWNER/NAME/FILE.gguf` for one of several.
#[derive(Clone, Debug)]
pub(super) struct HubModel {
    repository: RepoName,
    file: Option<String>,
}

impl FromStr for HubModel {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        let (name, file) = match text.match_indices('/').nth(1) {
            Some((end, _)) => (&text[..end], Some(text[end + 1..].to_owned())),
            None => (text, None),
        };
        let is_file = |name: &String| !name.contains('/') && name.ends_with(".gguf");
        if let Some(file) = file.as_ref().filter(|name| !is_file(name)) {
            let problem =
                format!("`{file}` is no GGUF file outside of folders, expected FILE.gguf");
            return Err(Failure::usage(problem));
        }
        Ok(Self { repository: name.parse().map_err(Failure::usage)?, file })
    }
}

impl HubModel {
    /// The name that the model has in the home when none was given.
    pub(super) fn default_name(&self) -> String {
        without_dots(self.file.as_deref().unwrap_or(self.repository.name()))
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
    let endpoint = args.endpoint.as_deref().unwrap_or(HUB);
    let token = token_for(endpoint, args, context)?;
    let hub = Hub::new(endpoint, token.as_deref()).map_err(Failure::usage)?;
    let revision = args.revision.clone().unwrap_or_else(Revision::main);
    let repository = hub.repository(&source.repository, &revision)?;
    let files = chosen(&repository, source, context)?;
    // In the folder of models, under a hidden name: moving it there later is one rename.
    let place = context.models_dir().join(".pulls").join(slug(source));
    let dir = place.join("model");
    context.make_dir(&dir)?;
    let lock = DirLock::acquire(&place)?;
    remove_others(&dir, &files)?;
    check_disk(&files, &dir)?;
    let total: u64 = files.iter().map(|file| file.n_bytes).sum();
    context.say(&format!(
        "{}{} at {}: {} files, {}",
        PREFIX,
        repository.name,
        repository.commit,
        files.len(),
        bytes(total)
    ));
    fetch(&hub, &repository, &files, total, &dir)?;
    let model = ModelDir::open(&dir).with_context(|| format!("cannot use {}", dir.display()))?;
    check_config(model.config().clone(), &repository)?;
    let mut origin = format!("{PREFIX}{}@{}", repository.name, repository.commit);
    if let Some(mirror) = &args.endpoint {
        origin = format!("{origin} from {mirror}");
    }
    let model = move_model(model, origin, out)?;
    // Some file systems keep the name of a file that is open.
    drop(lock);
    if let Err(error) = fs::remove_dir_all(&place) {
        context.say(&format!("warning: cannot remove {}: {error}", place.display()));
    }
    Ok(model)
}

fn chosen<'a>(
    repository: &'a Repository,
    source: &HubModel,
    context: &Context,
) -> anyhow::Result<Vec<&'a RemoteFile>> {
    let place = PathBuf::from(format!("{PREFIX}{}", repository.name));
    let paths = repository.files.iter().map(|file| file.path.as_str());
    let names = model_files(paths, source.file.as_deref(), &place)
        .inspect_err(|_| show_ggufs(repository, &place, context))?;
    let names: BTreeSet<&str> = names.into_iter().collect();
    let mut files: Vec<&RemoteFile> =
        repository.files.iter().filter(|file| names.contains(file.path.as_str())).collect();
    let is_weights = |name: &str| name.ends_with(".safetensors") || name.ends_with(".gguf");
    let is_too_large =
        |file: &&&RemoteFile| !is_weights(&file.path) && file.n_bytes > MAX_COMPANION_BYTES;
    if let Some(file) = files.iter().find(is_too_large) {
        let (path, limit, got) = (place.join(&file.path), MAX_COMPANION_BYTES, file.n_bytes);
        return Err(FormatError::TooLarge { path, limit, got }.into());
    }
    // The configuration is looked at before the weights are fetched.
    files.sort_by_key(|file| file.n_bytes);
    Ok(files)
}

/// Shows the GGUF files that can be named.
fn show_ggufs(repository: &Repository, place: &Path, context: &Context) {
    let ggufs = repository.files.iter().filter(|file| file.path.ends_with(".gguf"));
    let (plain, others): (Vec<_>, Vec<_>) = ggufs.partition(|file| is_plain_name(&file.path));
    for file in plain.iter().take(MAX_SHOWN) {
        context.say(&format!("{}/{}  {}", place.display(), file.path, bytes(file.n_bytes)));
    }
    if plain.len() > MAX_SHOWN {
        context.say(&format!("and {} more", plain.len() - MAX_SHOWN));
    }
    if !others.is_empty() {
        let n = others.len();
        context.say(&format!("files in folders are not taken; GGUF files among them: {n}"));
    }
}

fn fetch(
    hub: &Hub,
    repository: &Repository,
    files: &[&RemoteFile],
    total: u64,
    dir: &Path,
) -> anyhow::Result<()> {
    let signals = StopSignals::take_all().context("cannot take signals")?;
    let mut before = Downloaded::default();
    let mut bar = DownloadBar::new(total);
    for file in files {
        let path = dir.join(&file.path);
        let result = hub.download(repository, file, &path, &mut |of_file| {
            bar.observe(before + of_file, &file.path);
            if signals.requested().is_some() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        if let (Err(ClientError::Stopped { .. }), Some(signal)) = (&result, signals.requested()) {
            let there = files.iter().map(|file| n_there(file, dir)).sum();
            let saved = Some(format!("{} of {} are there", bytes(there), bytes(total)));
            let next = Some("the same command goes on".to_owned());
            return Err(Failure::Stopped { signal, saved, next }.into());
        }
        before = before + result?;
        if let Some(config) = config_in(dir, &file.path)? {
            check_config(config, repository)?;
        }
    }
    bar.finish();
    Ok(())
}

fn check_config(config: DecoderConfig, repository: &Repository) -> anyhow::Result<()> {
    let computed = ModelConfig::new(config);
    computed.map(|_| ()).with_context(|| format!("cannot compute {PREFIX}{}", repository.name))
}

/// Removes what an earlier try left under other names: the folder becomes the model.
fn remove_others(dir: &Path, files: &[&RemoteFile]) -> anyhow::Result<()> {
    let places = files.iter().map(|file| (file, dir.join(&file.path)));
    let known: BTreeSet<PathBuf> =
        places.flat_map(|(file, path)| [file.partial_path(&path), path]).collect();
    let failed = || format!("cannot clear {}", dir.display());
    for entry in fs::read_dir(dir).with_context(failed)? {
        let path = entry.with_context(failed)?.path();
        if !known.contains(&path) {
            remove_any(&path).with_context(failed)?;
        }
    }
    Ok(())
}

fn check_disk(files: &[&RemoteFile], dir: &Path) -> anyhow::Result<()> {
    let needed = files.iter().map(|file| file.n_bytes.saturating_sub(n_there(file, dir)));
    machine::check_disk("the model", dir, needed.sum())
}

/// Bytes of a file that are there.
fn n_there(file: &RemoteFile, dir: &Path) -> u64 {
    let path = dir.join(&file.path);
    let len = |path: &Path| fs::metadata(path).map_or(0, |found| found.len());
    len(&path) + len(&file.partial_path(&path))
}

/// A folder name of its own for each repository and file. It has no commit: what stayed as it was is fetched once.
fn slug(source: &HubModel) -> String {
    let name = &source.repository;
    let file = source.file.as_ref().map_or_else(String::new, |file| format!("+{file}"));
    format!("{}+{}{file}", name.owner(), name.name())
}

/// The token where it may go: to the hub that it is of, and to another address when the user says so.
fn token_for(endpoint: &str, args: &PullArgs, context: &Context) -> anyhow::Result<Option<String>> {
    if args.send_token || endpoint.trim_end_matches('/') == HUB {
        return secret("HF_TOKEN");
    }
    if variable("HF_TOKEN").or_else(|| variable("HF_TOKEN_FILE")).is_some() {
        context.say(&format!("the token is not sent to {endpoint}: --send-token would send it"));
    }
    Ok(None)
}

/// A secret of the environment: in the variable `NAME` itself, or in the file that `NAME_FILE` names.
fn secret(name: &str) -> anyhow::Result<Option<String>> {
    let wrong = |name: &str| Failure::usage(format!("{name} is not UTF-8"));
    if let Some(value) = variable(name) {
        return Ok(Some(value.into_string().map_err(|_| wrong(name))?));
    }
    let name = &format!("{name}_FILE");
    let Some(path) = variable(name).map(PathBuf::from) else { return Ok(None) };
    let text = formats::durable::read_bounded(&path, 4096);
    let text = text.with_context(|| format!("cannot use {name}"))?;
    let text = String::from_utf8(text).map_err(|_| wrong(name))?;
    match text.trim() {
        "" => Err(Failure::usage(format!("{name}: {} is empty", path.display())).into()),
        secret => Ok(Some(secret.to_owned())),
    }
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
        for wrong in ["a/b/", "a/b/Q4/c.gguf", "a/b/c.gguf/", "a/b/LICENSE"] {
            let error = wrong.parse::<HubModel>().unwrap_err().to_string();
            assert!(error.contains("is no GGUF file outside of folders"), "{wrong}: {error}");
        }
    }

    #[test]
    fn each_repository_and_file_has_a_folder_of_its_own() {
        let names = ["a--b/c", "a/b--c", "a/b/c.gguf", "a/b"];
        let slugs: BTreeSet<String> =
            names.iter().map(|name| slug(&name.parse::<HubModel>().unwrap())).collect();
        assert_eq!(slugs.len(), names.len(), "{slugs:?}");
    }
}
