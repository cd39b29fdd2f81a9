//! Rules about the compiled GPU kernels: they were made from the sources as they are, and the program holds all of them.

use std::collections::{BTreeMap, BTreeSet};

use super::SourceFile;
use crate::kernel_files::{COMMAND, COMPILED, SOURCES, SUMS, TARGETS, list, source_name};

/// The module that puts the compiled kernels into the program.
const HOLDER: &str = "crates/cuda/src/compiled.rs";

/// Kernels that were not compiled from the sources as they are. `digests` are those of the files that the list has.
pub(super) fn stale(files: &[SourceFile], digests: &BTreeMap<String, String>) -> Vec<String> {
    let text_of = |path: &str| files.iter().find(|file| file.path == path).map(|file| &file.text);
    let names: Vec<&str> = digests.keys().filter_map(|path| source_name(path)).collect();
    if names.is_empty() {
        return Vec::new();
    }
    let Some(recorded) = text_of(SUMS) else {
        return vec![format!("{SUMS} is missing: run `{COMMAND}`")];
    };
    let mut problems = differences(recorded, &list(digests));
    let mut outputs = BTreeSet::new();
    for name in &names {
        for target in TARGETS {
            let output = format!("{COMPILED}{name}{}", target.suffix);
            if !digests.contains_key(&output) {
                problems.push(format!("{output} is missing: run `{COMMAND}`"));
            }
            outputs.insert(output);
        }
    }
    let is_idle = |path: &&String| path.starts_with(COMPILED) && !outputs.contains(*path);
    let idle = digests.keys().filter(is_idle);
    problems.extend(idle.map(|path| format!("{path} has no source: run `{COMMAND}`")));
    let holder = text_of(HOLDER).map_or("", String::as_str);
    let is_left_out = |name: &&&str| !holder.contains(&format!("\"{name}\""));
    let left_out = names.iter().filter(is_left_out);
    problems.extend(left_out.map(|name| format!("{HOLDER} does not name {SOURCES}{name}.cu")));
    problems
}

/// Lines that only one of the lists has, as problems; a file whose digest differs is named once.
fn differences(recorded: &str, actual: &str) -> Vec<String> {
    let lines = |text| -> BTreeSet<&str> { str::lines(text).collect() };
    let (recorded, actual) = (lines(recorded), lines(actual));
    let what = |line: &&str| match line.split_once("  ") {
        Some((_, path)) if !line.starts_with('#') => path.to_owned(),
        _ => "the command".to_owned(),
    };
    let differing: BTreeSet<String> = recorded.symmetric_difference(&actual).map(what).collect();
    let problem = |what| format!("{what} is not what {SUMS} lists: run `{COMMAND}`");
    differing.into_iter().map(problem).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel_files::digest;

    /// A tree with one kernel, compiled.
    fn tree() -> (Vec<SourceFile>, BTreeMap<String, String>) {
        let paths = [
            "crates/cuda/kernels/norm.cu",
            "crates/cuda/kernels/compiled/norm.sm_90a.cubin",
            "crates/cuda/kernels/compiled/norm.compute_80.ptx",
        ];
        let digests: BTreeMap<String, String> =
            paths.iter().map(|path| ((*path).to_owned(), digest(path.as_bytes()))).collect();
        let files =
            vec![SourceFile::new(SUMS, &list(&digests)), SourceFile::new(HOLDER, "[\"norm\"]")];
        (files, digests)
    }

    #[test]
    fn kernels_of_the_sources_as_they_are_pass() {
        let (files, digests) = tree();
        assert_eq!(stale(&files, &digests), Vec::<String>::new());
        assert_eq!(stale(&[], &BTreeMap::new()), Vec::<String>::new());
    }

    #[test]
    fn a_changed_source_or_output_is_found() {
        for path in ["norm.cu", "compiled/norm.sm_90a.cubin"] {
            let (files, mut digests) = tree();
            digests.insert(format!("{SOURCES}{path}"), digest(b"changed"));
            let problem =
                format!("{SOURCES}{path} is not what {SUMS} lists: run `cargo xtask cuda-kernels`");
            assert_eq!(stale(&files, &digests), [problem]);
        }
    }

    #[test]
    fn other_options_and_a_missing_list_are_found() {
        let (mut files, digests) = tree();
        files[0].text = files[0].text.replace("-O3", "-O2");
        let problem =
            format!("the command is not what {SUMS} lists: run `cargo xtask cuda-kernels`");
        assert_eq!(stale(&files, &digests), [problem]);
        let problem = format!("{SUMS} is missing: run `cargo xtask cuda-kernels`");
        assert_eq!(stale(&files[1..], &digests), [problem]);
    }

    #[test]
    fn missing_and_idle_outputs_are_found() {
        let (_, mut digests) = tree();
        digests.remove("crates/cuda/kernels/compiled/norm.compute_80.ptx");
        digests.insert(format!("{COMPILED}old.sm_90a.cubin"), digest(b"old"));
        let files = [SourceFile::new(SUMS, &list(&digests)), SourceFile::new(HOLDER, "[\"norm\"]")];
        let ends = ["norm.compute_80.ptx is missing", "old.sm_90a.cubin has no source"];
        let problems = stale(&files, &digests);
        assert_eq!(problems.len(), 2);
        assert!(problems.iter().zip(ends).all(|(problem, end)| problem.contains(end)));
    }

    #[test]
    fn kernels_that_the_program_leaves_out_are_found() {
        let (mut files, digests) = tree();
        files[1].text = "[\"my_norm\"]".to_owned();
        let problem = format!("{HOLDER} does not name {SOURCES}norm.cu");
        assert_eq!(stale(&files, &digests), [problem]);
    }
}
