//! Help, wrong usage, errors as text and as JSON.

use std::process::Stdio;

use crate::home::{Finished, Home};

/// A command's help and that of all commands below it, found as people find them.
fn helps(home: &Home, command: &[&str], found: &mut Vec<(String, String)>) {
    let help = home.run(&[command, &["--help"]].concat()).expect(0).stdout;
    for name in commands_in(&help) {
        helps(home, &[command, &[name]].concat(), found);
    }
    found.push((command.join(" "), help));
}

/// The commands that a help lists.
fn commands_in(help: &str) -> Vec<&str> {
    let Some((_, list)) = help.split_once("Commands:\n") else { return Vec::new() };
    let list = list.split_once("\n\n").map_or(list, |(list, _)| list);
    let names = list.lines().filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    names.filter(|name| !name.is_empty()).collect()
}

#[test]
fn every_command_explains_itself_and_its_defaults() {
    let home = Home::new("help");
    let mut found = Vec::new();
    helps(&home, &[], &mut found);
    for (command, help) in &found {
        assert!(help.contains("Usage: galerne"), "{command:?}: {help}");
        for option in ["--json", "--home", "--kernels", "--threads"] {
            assert!(help.contains(option), "{command:?} names {option}");
        }
        assert!(help.contains("[default: one per processor]"), "{command:?}");
        // Every option has a text beside or below it.
        for line in help.lines().filter(|line| line.trim_start().starts_with("--")) {
            assert!(!line.trim_end().ends_with("--"), "{command:?}: {line}");
        }
    }
    for command in ["", "quickstart", "tokenizer render", "model import", "model merge"] {
        assert!(found.iter().any(|(name, _)| name == command), "{command} is found");
    }
    assert!(home.run(&["--version"]).expect(0).stdout.starts_with("galerne "));
}

#[test]
fn wrong_usage_exits_with_2_and_names_the_argument() {
    let home = Home::new("usage");
    let cases: &[(&[&str], &str)] = &[
        (&[], "Usage"),
        (&["fly"], "fly"),
        (&["doctor", "--fly"], "--fly"),
        (&["generate", "--model", "m"], "--prompt"),
        (&["generate", "--model", "m", "--prompt", "a", "--token-ids", "1"], "--token-ids"),
        (&["generate", "--model", "m", "--token-ids", "1,x"], "x"),
        (&["serve", "--port", "70000"], "70000"),
        (&["generate", "--model", "m", "--prompt", "a", "--stop", ""], "--stop"),
        (&["bench", "flight"], "flight"),
        (&["bench", "decode", "--rounds", "2"], "--peer"),
        (
            &["bench", "decode", "--weights", "q4km"],
            "rows of 384 numbers, expected whole blocks of 256",
        ),
        (&["bench", "train", "--weights", "q8"], "bench train measures bf16"),
        (&["bench", "train", "--at", "512"], "--at is for prefill, decode and batch"),
        (&["bench", "batch", "--at", "1,0"], "expected 1 to 1024 users"),
        (&["bench", "prefill", "--at", "0"], "at least 1 token"),
        (&["bench", "prefill", "--at", "12x"], "expected a number up to"),
        (&["doctor", "--kernels", "quantum"], "unknown kernel family `quantum`"),
        (&["doctor", "--threads", "0"], "0"),
        (&["chat", "--model", "m", "--json"], "has no --json"),
        (&["plan", "--recipe", "r.toml", "--layers", "3"], "--layers"),
        (&["tokenizer", "render", "--tokenizer", "t", "--version", "v9"], "v9"),
        (&["plan", "--heads", "5", "--tokens-per-s", "1"], "no multiple of n_kv_heads"),
        (&["plan", "--tokens-per-s", "0"], "--tokens-per-s is 0"),
        (
            &["generate", "--model", "m", "--prompt", "a", "--temperature", "-1"],
            "temperature is -1",
        ),
        (&["chat", "--model", "m", "--top-p", "2"], "top_p is 2"),
        (&["model", "import", "./m", "--name", "a/b"], "expected a name without slashes"),
        (&["quickstart", "--budget", "0"], "--budget 0"),
    ];
    for (arguments, expected) in cases {
        let finished = home.run(arguments).expect(2);
        assert!(finished.stderr.contains(expected), "{arguments:?}: {}", finished.stderr);
        assert_eq!(finished.stdout, "", "{arguments:?}");
    }
    let mut command = home.command(&["doctor"]);
    let finished = Finished::new(command.env("GALERNE_KERNELS", "quantum").output().unwrap());
    assert!(finished.expect(2).stderr.contains("GALERNE_KERNELS"));
}

#[test]
fn wrong_usage_with_json_is_a_json_error() {
    let home = Home::new("usage-json");
    for arguments in [&["doctor", "--fly", "--json"][..], &["--json", "chat", "--model", "m"]] {
        let error = home.run(arguments).expect(2).json_error();
        assert!(error["message"].as_str().unwrap().contains("--"), "{error}");
        assert_eq!(error["hint"], "see --help");
    }
}

#[test]
fn failures_exit_with_1_and_say_the_next_step() {
    let home = Home::new("failures");
    std::fs::create_dir_all(home.inside("models/alpha")).unwrap();
    std::fs::create_dir_all(home.path("empty")).unwrap();
    let cases: &[(&[&str], &str)] = &[
        (&["generate", "--model", "beta", "--prompt", "x"], "no model `beta`"),
        (&["generate", "--model", "beta", "--prompt", "x"], "there are: alpha"),
        (&["generate", "--model", "./beta", "--prompt", "x"], "beta is missing"),
        (&["model", "inspect", "alpha"], "is no model: expected config.json"),
        (&["resume", "gamma"], "no run `gamma`"),
        (&["resume", "./empty"], "is not a run"),
        (&["pretrain", "--recipe", "none.toml"], "cannot read recipe none.toml"),
        (&["serve", "--port", "0"], "no model to serve"),
        (&["tokenizer", "encode", "--tokenizer", "empty"], "tokenizer.json"),
        (&["tokenizer", "train", "--text", "empty", "--out", "t"], "empty is empty"),
    ];
    for (arguments, expected) in cases {
        let finished = home.run(arguments).expect(1);
        assert!(finished.stderr.contains(expected), "{arguments:?}: {}", finished.stderr);
        assert!(finished.stderr.contains("error: "), "{arguments:?}: {}", finished.stderr);
        assert_eq!(finished.stdout, "", "{arguments:?}");
    }
    let hinted = home.run(&["generate", "--model", "beta", "--prompt", "x"]).expect(1).stderr;
    assert!(hinted.contains("\nhint: "), "{hinted}");
    let error = home.run(&["serve", "--port", "0", "--json"]).expect(1).json_error();
    assert!(error["hint"].as_str().unwrap().contains("quickstart"), "{error}");
}

#[test]
fn a_closed_stdout_ends_quietly_and_a_full_one_is_an_error() {
    let home = Home::new("closed");
    let plan = ["plan", "--tokens-per-s", "1000"];
    assert_eq!(home.run_unread(&plan).expect(0).stderr, "");
    assert_eq!(home.run_unread(&["--help"]).expect(0).stderr, "");
    let full = std::fs::File::create("/dev/full").unwrap();
    let output = home.command(&plan).stdout(Stdio::from(full)).output().unwrap();
    let finished = Finished::new(output).expect(1);
    assert!(finished.stderr.contains("cannot write to standard output"), "{}", finished.stderr);
}

#[test]
fn doctor_measures_the_machine() {
    let home = Home::new("doctor");
    let shown = home.run(&["doctor", "--json", "--threads", "1"]).expect(0).json();
    assert!(shown["machine"]["roofline"]["read_bytes_per_s"].as_f64().unwrap() > 0.0);
    assert!(shown["machine"]["roofline"]["bf16_flops"].as_f64().unwrap() > 0.0);
    assert_eq!(shown["machine"]["n_threads"], 1);
    assert_eq!(shown["kernel_families"][0], "reference");
    assert_eq!(shown["home"], home.inside("").to_str().unwrap().trim_end_matches('/'));
    assert!(shown["home_free_bytes"].as_u64().unwrap() > 0);
}

#[test]
fn plan_adds_up() {
    let home = Home::new("plan");
    let plan = ["plan", "--tokens", "1000000", "--tokens-per-s", "2000", "--json"];
    let plan = home.run(&plan).expect(0).json();
    let memory = plan["training_memory"].as_object().unwrap();
    let parts = memory.iter().filter(|(name, _)| *name != "total_bytes");
    let sum: u64 = parts.map(|(_, bytes)| bytes.as_u64().unwrap()).sum();
    assert_eq!(plan["training_memory"]["total_bytes"], sum);
    assert_eq!(plan["checkpoint_bytes"], 12 * plan["parameters"].as_u64().unwrap());
    let tokens = plan["tokens"].as_u64().unwrap();
    assert!((1_000_000..1_000_000 + 16 * 512).contains(&tokens), "whole steps: {tokens}");
    assert_eq!(plan["seconds"], tokens as f64 / 2000.0);
    assert_eq!(plan["tokens_per_s_source"], "given");
}

#[test]
fn a_home_that_is_not_utf8_is_refused_by_name() {
    use std::os::unix::ffi::OsStrExt as _;
    let home = Home::new("latin1");
    let mut command = home.command(&["doctor", "--json"]);
    command.env("GALERNE_HOME", std::ffi::OsStr::from_bytes(b"/tmp/caf\xe9"));
    let finished = Finished::new(command.output().unwrap()).expect(2);
    let error = finished.json_error();
    assert!(error["message"].as_str().unwrap().contains("not UTF-8"), "{error}");
}

#[test]
fn plans_beyond_all_counting_are_refused() {
    let home = Home::new("huge-plan");
    for arguments in [
        ["--tokens", "18446744073709551615"],
        ["--rows", "18446744073709551615"],
        ["--micro-batch", "5"],
        ["--seq-len", "1"],
    ] {
        let all = [&["plan", "--tokens-per-s", "2000"][..], &arguments].concat();
        let finished = home.run(&all).expect(2);
        assert!(finished.stderr.contains("expected"), "{arguments:?}: {}", finished.stderr);
    }
}
