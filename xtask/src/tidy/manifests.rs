//! Rules about Cargo.toml files: lints are shared, each outside crate says what it is for, and none is idle.

use std::collections::BTreeSet;

use super::SourceFile;
use super::boundaries::Crate;

/// Lines of `[workspace.dependencies]` that do not say what the crate is for.
pub(super) fn comments(files: &[SourceFile]) -> Vec<String> {
    let Some(manifest) = files.iter().find(|file| file.path == "Cargo.toml") else {
        return vec!["Cargo.toml is missing".to_owned()];
    };
    let mut problems = Vec::new();
    let (mut is_inside, mut before) = (false, "");
    for line in manifest.text.lines() {
        if line.starts_with('[') {
            is_inside = line == "[workspace.dependencies]";
        } else if is_inside && line.contains('=') && !line.contains("path = ") {
            let has_comment = line.contains(" # ") || before.starts_with('#');
            if !has_comment {
                problems.push(format!("Cargo.toml does not say what this is for: {line}"));
            }
        }
        before = line;
    }
    problems
}

/// Manifests of crates that do not take the lints of the workspace. The fuzz targets are a workspace of their own.
pub(super) fn lints(files: &[SourceFile]) -> Vec<String> {
    files
        .iter()
        .filter(|file| file.path.ends_with("/Cargo.toml") && !file.path.starts_with("fuzz/"))
        .filter(|file| !file.text.contains("[lints]\nworkspace = true"))
        .map(|file| format!("{} does not take the lints of the workspace", file.path))
        .collect()
}

/// Dependencies that no source file of their crate names.
pub(super) fn unused(files: &[SourceFile], crates: &[Crate]) -> Vec<String> {
    let mut problems = Vec::new();
    for Crate { name, dependencies } in crates {
        let folder = if name == "xtask" { "xtask/src/" } else { &format!("crates/{name}/src/") };
        let sources: Vec<&str> = files
            .iter()
            .filter(|file| file.path.starts_with(folder) && file.path.ends_with(".rs"))
            .map(|file| file.text.as_str())
            .collect();
        let is_idle = |dependency: &&String| {
            let identifier = dependency.replace('-', "_");
            !sources.iter().any(|text| names_crate(text, &identifier))
        };
        let idle: Vec<&str> = dependencies.iter().filter(is_idle).map(String::as_str).collect();
        if !idle.is_empty() {
            problems.push(format!("{name} never names what it depends on: {}", idle.join(", ")));
        }
    }
    problems
}

/// Whether a source file names the crate: `use half;`, `half::bf16`, `#[derive(serde::Serialize)]`.
fn names_crate(text: &str, identifier: &str) -> bool {
    text.match_indices(identifier).any(|(at, _)| {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let rest = &text[at + identifier.len()..];
        !text[..at].ends_with(is_word)
            && (rest.starts_with("::") || (rest.starts_with(';') && text[..at].ends_with("use ")))
    })
}

/// The distinct crates in the output of `cargo tree --prefix none`.
pub(super) fn distinct_crates(listing: &str) -> BTreeSet<String> {
    listing
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| line.split_whitespace().take(2).collect::<Vec<_>>().join(" "))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dependency_without_a_reason_is_found() {
        let text = "[workspace.dependencies]\nhalf = \"2\" # bf16\nlibc = \"0.2\"\n# for tests\n\
                    proptest = \"1\"\nmodel = { path = \"crates/model\" }\n[profile.dev]\nx = 1\n";
        assert_eq!(
            comments(&[SourceFile::new("Cargo.toml", text)]),
            ["Cargo.toml does not say what this is for: libc = \"0.2\""]
        );
    }

    #[test]
    fn a_crate_with_lints_of_its_own_is_found() {
        let files = [
            SourceFile::new("Cargo.toml", "[workspace]\n"),
            SourceFile::new("crates/a/Cargo.toml", "[lints]\nworkspace = true\n"),
            SourceFile::new("crates/b/Cargo.toml", "[lints.rust]\nunsafe_code = \"allow\"\n"),
        ];
        assert_eq!(lints(&files), ["crates/b/Cargo.toml does not take the lints of the workspace"]);
    }

    #[test]
    fn an_idle_dependency_is_found() {
        let files = [SourceFile::new(
            "crates/model/src/lib.rs",
            "use half::bf16;\nmy_libc::f();\n/// half of libc\n",
        )];
        let dependencies = ["half", "libc"].map(str::to_owned).into();
        let crates = [Crate { name: "model".to_owned(), dependencies }];
        assert_eq!(unused(&files, &crates), ["model never names what it depends on: libc"]);
    }

    #[test]
    fn crates_are_counted_once() {
        let listing = "cli v0.1.0 (/x)\nhalf v2.7.0\nhalf v2.7.0 (*)\nhalf v1.0.0\n";
        assert_eq!(distinct_crates(listing).len(), 3);
    }
}
