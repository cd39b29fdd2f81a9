//! Rules about the papers of the house: they stay short, and the paths they name exist.

use std::collections::BTreeSet;

use super::SourceFile;

/// The papers that must exist, and how many lines each may have.
const PAPERS: &[(&str, usize)] = &[("README.md", 120), ("ARCHITECTURE.md", 200)];

/// Papers whose paths are checked.
const WITH_PATHS: &[&str] =
    &["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "golden/README.md"];

/// What a path in a paper begins with; other words with a slash are not ours.
const TOP_FOLDERS: &[&str] =
    &[".cargo", ".ci", "benches", "crates", "deploy", "docs", "fuzz", "golden", "recipes", "xtask"];

/// Papers that are missing or too long.
pub(super) fn lengths(files: &[SourceFile]) -> Vec<String> {
    let mut problems = Vec::new();
    for (path, most) in PAPERS {
        let Some(file) = files.iter().find(|file| file.path == *path) else {
            problems.push(format!("{path} is missing"));
            continue;
        };
        let lines = file.text.lines().count();
        if lines > *most {
            problems.push(format!("{path} has {lines} lines, at most {most}"));
        }
    }
    problems
}

/// Paths in backticks or links of the papers that lead nowhere.
pub(super) fn paths(files: &[SourceFile], tree: &[(String, u64)]) -> Vec<String> {
    let mut problems = Vec::new();
    for file in files.iter().filter(|file| WITH_PATHS.contains(&file.path.as_str())) {
        for path in BTreeSet::from_iter(named_paths(&file.text)) {
            let beside = file.path.rsplit_once('/').map(|(folder, _)| format!("{folder}/{path}"));
            if !exists(path, tree) && !beside.is_some_and(|path| exists(&path, tree)) {
                problems.push(format!("{} names {path}, which does not exist", file.path));
            }
        }
    }
    problems
}

/// The words of a paper that are paths of this tree.
fn named_paths(text: &str) -> Vec<&str> {
    let is_path_char = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    let in_backticks = text.split('`').skip(1).step_by(2);
    let in_links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    in_backticks
        .chain(in_links)
        .filter(|word| word.chars().all(is_path_char))
        .filter(|word| {
            let top = word.split('/').next().unwrap_or_default();
            let is_root_paper = top == *word && word.ends_with(".md");
            is_root_paper || (word.contains('/') && TOP_FOLDERS.contains(&top))
        })
        .collect()
}

/// Whether a path is a file or a folder of the tree.
fn exists(path: &str, tree: &[(String, u64)]) -> bool {
    let path = path.trim_end_matches('/');
    let folder = format!("{path}/");
    tree.iter().any(|(file, _)| file == path || file.starts_with(&folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_and_long_papers_are_found() {
        let files = [SourceFile::new("README.md", &"line\n".repeat(121))];
        assert_eq!(
            lengths(&files),
            ["README.md has 121 lines, at most 120", "ARCHITECTURE.md is missing"]
        );
    }

    #[test]
    fn a_path_that_leads_nowhere_is_found() {
        let text =
            "See `crates/model`, `docs/gone.md`, [this](CHANGELOG.md), `a/b` and `cargo test`.";
        let files = [SourceFile::new("README.md", text)];
        let tree = [("crates/model/Cargo.toml".to_owned(), 1)];
        assert_eq!(
            paths(&files, &tree),
            [
                "README.md names CHANGELOG.md, which does not exist",
                "README.md names docs/gone.md, which does not exist"
            ]
        );
    }

    #[test]
    fn a_paper_may_name_its_neighbours() {
        let files = [SourceFile::new("golden/README.md", "`ORACLE.md` and `GONE.md`")];
        let tree = [("golden/ORACLE.md".to_owned(), 1)];
        assert_eq!(paths(&files, &tree), ["golden/README.md names GONE.md, which does not exist"]);
    }
}
