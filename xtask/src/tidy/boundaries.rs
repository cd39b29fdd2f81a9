//! Boundaries are absences: which crate may depend on which, and what a crate never names. ARCHITECTURE.md has the
//! reasons.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::SourceFile;

/// A crate of the workspace and what it needs to be built; test-only dependencies are left out.
#[derive(Debug)]
pub(super) struct Crate {
    pub(super) name: String,
    pub(super) dependencies: BTreeSet<String>,
}

/// The crates in their order: a crate may use those before it. Crates that do not exist yet keep their place.
const ORDER: &[&str] = &[
    "kernels",
    "cuda",
    "tensor",
    "formats",
    "tokenizer",
    "model",
    "data",
    "engine",
    "grammar",
    "api",
    "client",
    "eval",
    "train",
    "bench",
    "store",
    "server",
    "cli",
];

/// Crates that use no other crate of the workspace.
const LEAVES: &[&str] =
    &["kernels", "formats", "tokenizer", "api", "client", "store", "testkit", "xtask"];

/// Edges that the order would allow and a boundary forbids.
const FORBIDDEN_EDGES: &[(&str, &str, &str)] = &[
    ("engine", "tokenizer", "the engine sees token ids, never text"),
    ("engine", "formats", "the engine is handed a model, it opens no file"),
    ("engine", "data", "the engine sees token ids, never text"),
    ("model", "tokenizer", "the model sees token ids, never text"),
    ("data", "kernels", "data preparation computes no tensor"),
    ("data", "model", "data preparation knows no model"),
    ("train", "engine", "training and serving meet in the model only"),
    ("train", "api", "training knows no HTTP"),
    ("server", "train", "a training job is a process of its own"),
];

/// Outside crates that only the named crates may use.
const FENCES: &[(&str, &[&str])] = &[
    ("axum", &["server"]),
    ("tower-http", &["server"]),
    ("askama", &["eval", "server"]),
    ("tokio", &["server"]),
    ("ureq", &["client"]),
    ("rustls", &["client"]),
    ("clap", &["cli"]),
    ("indicatif", &["cli"]),
    ("rustyline", &["cli"]),
    ("tracing-subscriber", &["cli"]),
    ("anyhow", &["cli", "xtask"]),
    ("safetensors", &["formats", "testkit"]),
    ("llguidance", &["grammar"]),
];

/// Parts of the standard library that a crate never names outside its tests: crate, part, reason.
const FORBIDDEN_NAMES: &[(&str, &str, &str)] = &[
    ("kernels", "fs", "kernels know no file"),
    ("kernels", "net", "kernels know no network"),
    ("tensor", "fs", "tensors know no file"),
    ("tensor", "thread", "threads come from the pool that is passed in"),
    ("model", "fs", "the model does no IO"),
    ("model", "io", "the model does no IO"),
    ("model", "net", "the model does no IO"),
    ("model", "thread", "the model starts no thread"),
    ("engine", "fs", "the engine is handed a model, it opens no file"),
    ("engine", "net", "the engine knows no HTTP"),
    ("tokenizer", "net", "the tokenizer knows no network"),
    ("data", "net", "data preparation knows no network"),
    ("train", "net", "training knows no HTTP"),
    ("api", "fs", "wire types do no IO"),
    ("api", "net", "wire types do no IO"),
    ("eval", "net", "only the client calls remote hosts"),
    ("formats", "net", "only the client calls remote hosts"),
];

impl Crate {
    /// Reads the output of `cargo metadata --no-deps`.
    pub(super) fn from_metadata(json: &str) -> Result<Vec<Self>> {
        let metadata: Value = serde_json::from_str(json).context("reading cargo's metadata")?;
        let packages = metadata["packages"].as_array().context("cargo lists no packages")?;
        Ok(packages.iter().map(Self::from_package).collect())
    }

    fn from_package(package: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let dependencies = package["dependencies"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|dependency| dependency["kind"].as_str() != Some("dev"))
            .map(|dependency| text(&dependency["name"]))
            .collect();
        Self { name: text(&package["name"]), dependencies }
    }
}

/// Dependencies between crates of the workspace that are not allowed.
pub(super) fn edges(crates: &[Crate]) -> Vec<String> {
    let place = |name: &str| ORDER.iter().position(|other| *other == name);
    let is_ours = |name: &str| crates.iter().any(|other| other.name == name);
    let mut problems = Vec::new();
    for Crate { name, dependencies } in crates {
        if place(name).is_none() && !LEAVES.contains(&name.as_str()) {
            problems.push(format!("crate {name} has no place in the order of the crates"));
        }
        for used in dependencies.iter().filter(|used| is_ours(used)) {
            if LEAVES.contains(&name.as_str()) {
                problems.push(format!("{name} depends on {used}: it is a leaf"));
            } else if used == "testkit" {
                problems.push(format!("{name} depends on testkit outside its tests"));
            } else if place(used) >= place(name) {
                problems.push(format!("{name} depends on {used}: dependencies point one way"));
            }
            for (_, _, reason) in
                FORBIDDEN_EDGES.iter().filter(|(from, to, _)| from == name && to == used)
            {
                problems.push(format!("{name} depends on {used}: {reason}"));
            }
        }
    }
    problems
}

/// Outside crates used where they must not be.
pub(super) fn fences(crates: &[Crate]) -> Vec<String> {
    let mut problems = Vec::new();
    for Crate { name, dependencies } in crates {
        for (fenced, allowed) in FENCES {
            if dependencies.contains(*fenced) && !allowed.contains(&name.as_str()) {
                let allowed = allowed.join(" and ");
                problems.push(format!("{name} depends on {fenced}: only {allowed} may"));
            }
        }
    }
    problems
}

/// Names of the standard library in crates that never use them.
pub(super) fn names(files: &[SourceFile]) -> Vec<String> {
    let mut problems = Vec::new();
    for (name, part, reason) in FORBIDDEN_NAMES {
        let folder = format!("crates/{name}/src/");
        for file in files.iter().filter(|file| file.path.starts_with(&folder)) {
            if is_test_file(&file.path) {
                continue;
            }
            for line in lines_naming(product_code(&file.text), part) {
                problems.push(format!("{}:{line} names std::{part}: {reason}", file.path));
            }
        }
    }
    problems
}

/// A file or folder of tests, such as `tests.rs` or `test_support.rs`.
fn is_test_file(path: &str) -> bool {
    path.split('/').any(|part| part.starts_with("test"))
}

/// A file up to its tests, which come last when they are written inside it.
fn product_code(text: &str) -> &str {
    let is_inside = |at: &usize| {
        text[*at..]
            .lines()
            .nth(2)
            .is_some_and(|line| line.starts_with("mod ") && line.ends_with('{'))
    };
    let tests = text.match_indices("\n#[cfg(test)]\nmod ").map(|(at, _)| at).find(is_inside);
    &text[..tests.unwrap_or(text.len())]
}

/// Line numbers, from 1, that name `std::PART` outright or in a group such as `use std::{fs, mem}`.
fn lines_naming(text: &str, part: &str) -> Vec<usize> {
    let direct = format!("std::{part}");
    let mut lines = Vec::new();
    for (line_idx, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.starts_with("//") {
            continue;
        }
        let is_direct = line.match_indices(&direct).any(|(at, _)| {
            !line[at + direct.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_')
        });
        let is_grouped = line
            .split_once("use std::{")
            .is_some_and(|(_, group)| words(group).any(|word| word == part));
        if is_direct || is_grouped {
            lines.push(line_idx + 1);
        }
    }
    lines
}

/// The identifiers of a line.
fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(edges: &[(&str, &[&str])]) -> Vec<Crate> {
        edges
            .iter()
            .map(|(name, dependencies)| Crate {
                name: (*name).to_owned(),
                dependencies: dependencies.iter().map(|&name| name.to_owned()).collect(),
            })
            .collect()
    }

    #[test]
    fn metadata_is_read_without_test_dependencies() {
        let json = r#"{"packages": [{"name": "model", "dependencies": [
            {"name": "tensor", "kind": null}, {"name": "testkit", "kind": "dev"}]}]}"#;
        let crates = Crate::from_metadata(json).unwrap();
        assert_eq!(crates[0].dependencies, BTreeSet::from(["tensor".to_owned()]));
    }

    #[test]
    fn allowed_edges_pass() {
        let crates =
            tree(&[("kernels", &["libc"]), ("tensor", &["kernels"]), ("model", &["tensor"])]);
        assert_eq!(edges(&crates), Vec::<String>::new());
    }

    #[test]
    fn an_edge_against_the_order_is_found() {
        let crates = tree(&[("tensor", &["model"]), ("model", &[])]);
        assert_eq!(edges(&crates), ["tensor depends on model: dependencies point one way"]);
    }

    #[test]
    fn a_leaf_with_an_edge_is_found() {
        let crates = tree(&[("kernels", &[]), ("tokenizer", &["kernels"])]);
        assert_eq!(edges(&crates), ["tokenizer depends on kernels: it is a leaf"]);
    }

    #[test]
    fn a_forbidden_edge_is_found() {
        let crates = tree(&[("tokenizer", &[]), ("engine", &["tokenizer"])]);
        let expected = "engine depends on tokenizer: the engine sees token ids, never text";
        assert_eq!(edges(&crates), [expected]);
    }

    #[test]
    fn the_test_crate_in_the_product_is_found() {
        let crates = tree(&[("testkit", &[]), ("model", &["testkit"])]);
        assert_eq!(edges(&crates), ["model depends on testkit outside its tests"]);
    }

    #[test]
    fn a_crate_without_a_place_is_found() {
        assert_eq!(edges(&tree(&[("extra", &[])])).len(), 1);
    }

    #[test]
    fn a_fenced_crate_elsewhere_is_found() {
        let crates =
            tree(&[("server", &["axum", "tokio"]), ("engine", &["tokio"]), ("cli", &["tokio"])]);
        let expected =
            ["engine", "cli"].map(|name| format!("{name} depends on tokio: only server may"));
        assert_eq!(fences(&crates), expected);
    }

    #[test]
    fn code_after_a_module_of_tests_elsewhere_is_product_code() {
        let text = "//! Doc.\n\n#[cfg(test)]\nmod tests;\n\nuse std::fs;\n";
        assert_eq!(names(&[SourceFile::new("crates/model/src/a.rs", text)]).len(), 1);
        assert_eq!(names(&[SourceFile::new("crates/model/src/tests.rs", text)]).len(), 0);
    }

    #[test]
    fn forbidden_names_are_found_outside_tests_and_comments() {
        let text = "// std::fs is not used\nuse std::{fmt, fs};\nlet f = std::fs::read;\n\
                    let ok = std::fsync;\n\n#[cfg(test)]\nmod tests {\n    use std::fs;\n}\n";
        let files = [
            SourceFile::new("crates/model/src/lib.rs", text),
            SourceFile::new("crates/formats/src/lib.rs", text),
        ];
        assert_eq!(
            names(&files),
            [
                "crates/model/src/lib.rs:2 names std::fs: the model does no IO",
                "crates/model/src/lib.rs:3 names std::fs: the model does no IO",
            ]
        );
    }
}
