//! A hub's list of files, and the choice among them.

#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use client::{RepoName, Repository, Revision};
use formats::model_dir::model_files;
use libfuzzer_sys::fuzz_target;

static NAME: LazyLock<RepoName> =
    LazyLock::new(|| "acme/tiny".parse().expect("the name is one of a repository"));
static REVISION: LazyLock<Revision> =
    LazyLock::new(|| "main".parse().expect("the name is one of a branch"));

fuzz_target!(|data: &[u8]| {
    if let Ok(repository) = Repository::parse(&NAME, &REVISION, data) {
        for wanted in [None, Some("model.gguf")] {
            let paths = repository.files.iter().map(|file| file.path.as_str());
            let _ = model_files(paths, wanted, Path::new("acme/tiny"));
        }
    }
});
