//! `pretrain`, `tune`, `resume`: files, signals, kills, full disks.

use std::fs;
use std::process::Child;
use std::time::Duration;

use serde_json::Value;
use testkit::test_dir::names_in;

use crate::home::{Finished, Home, read, signal};

/// Starts a run named `NAME` and waits until it has done so many steps.
fn start_and_wait(home: &Home, name: &str, n_steps: usize) -> Child {
    let child =
        home.command(&["pretrain", "--recipe", "tiny.toml", "--run", name]).spawn().unwrap();
    wait_for_steps(home, name, n_steps);
    child
}

fn wait_for_steps(home: &Home, name: &str, n_steps: usize) {
    let metrics = home.inside(&format!("runs/{name}/metrics.jsonl"));
    home.wait_until("training steps", || {
        fs::read_to_string(&metrics).is_ok_and(|text| text.lines().count() >= n_steps)
    });
}

/// The metrics that do not depend on the clock.
fn metrics(home: &Home, name: &str) -> Vec<(u64, u64, f64, f64, f64, Option<f64>)> {
    let text =
        String::from_utf8(read(&home.inside(&format!("runs/{name}/metrics.jsonl")))).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let number = |line: &Value, key: &str| line[key].as_f64().unwrap();
    lines
        .map(|line| {
            assert!(line["tokens_per_s"].as_f64().unwrap() > 0.0);
            (
                line["step"].as_u64().unwrap(),
                line["tokens"].as_u64().unwrap(),
                number(&line, "loss"),
                number(&line, "grad_norm"),
                number(&line, "learning_rate"),
                line["validation_bits_per_byte"].as_f64(),
            )
        })
        .collect()
}

fn assert_same_checkpoints(home: &Home, a: &str, b: &str, step: u64) {
    for file in ["model.safetensors", "optimizer.safetensors", "state.json"] {
        let path =
            |run: &str| home.inside(&format!("runs/{run}/checkpoints/step-{step:08}/{file}"));
        assert!(read(&path(a)) == read(&path(b)), "{file} differs");
    }
}

#[test]
fn a_run_makes_a_model_and_says_where() {
    let home = Home::new("run");
    home.make_recipe(25);
    let arguments = ["pretrain", "--recipe", "tiny.toml", "--json", "--set", "n_steps=22"];
    let finished = home.run(&arguments).expect(0);
    assert!(finished.stderr.contains("memory") && finished.stderr.contains("free disk"));
    assert!(finished.stderr.contains("step 22/22") && finished.stderr.contains("bits/byte"));
    let answer = finished.json();
    assert_eq!((&answer["steps"], &answer["tokens"]), (&22.into(), &(22 * 4 * 32).into()));
    assert!(answer["bits_per_byte"].as_f64().unwrap() > 0.0);
    assert_eq!(answer["model"], home.inside("models/tiny-1").to_str().unwrap());
    assert_eq!(names_in(&home.inside("runs/tiny-1/checkpoints")).len(), 3, "two and LATEST");
    assert_eq!(metrics(&home, "tiny-1").len(), 22);
    let resolved = String::from_utf8(read(&home.inside("runs/tiny-1/run.toml"))).unwrap();
    assert!(resolved.contains("n_steps = 22"), "{resolved}");

    let model = home.run(&["model", "inspect", "tiny-1", "--json"]).expect(0).json();
    assert_eq!(model["lineage"]["run"], "tiny-1");
    assert_eq!(model["tensors"][0]["dtype"], "bf16");
    assert_eq!(model["tokenizer"]["vocab_size"], 280);
    let text = home.run(&["model", "inspect", "tiny-1"]).expect(0).stdout;
    assert!(text.contains("model.embed_tokens.weight"), "{text}");
    assert!(home.run(&["model", "list"]).expect(0).stdout.contains("tiny-1"));

    // A name with a model is refused as one with a run is.
    fs::remove_dir_all(home.inside("runs/tiny-1")).unwrap();
    let taken = home.run(&["pretrain", "--recipe", "tiny.toml", "--run", "tiny-1"]).expect(1);
    assert!(taken.stderr.contains("the model gets the same name"), "{}", taken.stderr);
    fs::create_dir(home.inside("runs/tiny-1")).unwrap();

    // A second run takes the next name; a name that is taken is refused.
    home.run(&["pretrain", "--recipe", "tiny.toml", "--set", "n_steps=1"]).expect(0);
    assert_eq!(names_in(&home.inside("models")), ["tiny-1", "tiny-2"]);
    fs::remove_dir_all(home.inside("models/tiny-2")).unwrap();
    let taken = home.run(&["pretrain", "--recipe", "tiny.toml", "--run", "tiny-2"]).expect(1);
    assert!(taken.stderr.contains("galerne resume tiny-2"), "{}", taken.stderr);
    assert!(home.inside("runs/tiny-2/run.toml").is_file(), "it is not touched");
}

#[test]
fn half_a_run_a_kill_and_a_resume_equal_a_whole_run_bit_for_bit() {
    let home = Home::new("kill");
    home.make_recipe(400);
    home.run(&["pretrain", "--recipe", "tiny.toml", "--run", "whole"]).expect(0);
    let mut child = start_and_wait(&home, "parts", 53);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!home.inside("models/parts").exists(), "killed before the end");
    let resumed = home.run(&["resume", "parts"]).expect(0);
    let at: u64 = resumed
        .stderr
        .lines()
        .find_map(|line| line.strip_prefix("resuming at step ")?.split(' ').next()?.parse().ok())
        .unwrap();
    assert!((40..400).contains(&at) && at.is_multiple_of(10), "from a checkpoint: {at}");
    assert_same_checkpoints(&home, "whole", "parts", 400);
    let model = |name: &str| read(&home.inside(&format!("models/{name}/model.safetensors")));
    assert!(model("whole") == model("parts"));
    assert_eq!(metrics(&home, "whole"), metrics(&home, "parts"));
    // A finished run stays what it is, but for a checkpoint too many, which a kill may leave.
    let checkpoints = home.inside("runs/parts/checkpoints");
    let before = names_in(&checkpoints);
    fs::create_dir(checkpoints.join("step-00000010")).unwrap();
    assert!(home.run(&["resume", "parts"]).expect(0).stderr.contains("is there already"));
    assert_eq!(names_in(&checkpoints), before);
}

#[test]
fn a_run_killed_again_and_again_ends_like_one_that_was_not() {
    let home = Home::new("killed");
    home.make_recipe(120);
    home.run(&["pretrain", "--recipe", "tiny.toml", "--run", "whole"]).expect(0);
    let mut child = start_and_wait(&home, "parts", 1);
    // The clock chooses where it is killed, which may be in the middle of a checkpoint; the outcome does not depend on it.
    for round in 0..8 {
        std::thread::sleep(Duration::from_millis(15 + 9 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        child = home.command(&["resume", "parts"]).spawn().unwrap();
    }
    Finished::of(child).expect(0);
    assert_same_checkpoints(&home, "whole", "parts", 120);
    assert_eq!(metrics(&home, "whole"), metrics(&home, "parts"));
    let names = names_in(&home.inside("runs/parts/checkpoints"));
    assert_eq!(names, names_in(&home.inside("runs/whole/checkpoints")), "no leftovers");
    let model = |name: &str| read(&home.inside(&format!("models/{name}/model.safetensors")));
    assert!(model("whole") == model("parts"));
}

#[test]
fn signals_save_and_the_run_goes_on() {
    let home = Home::new("signals");
    home.make_recipe(4000);
    for (name, signal_name, code) in [("int", "-INT", 130), ("term", "-TERM", 143)] {
        let child = start_and_wait(&home, name, 2);
        signal(&child, signal_name);
        let finished = Finished::of(child).expect(code);
        assert!(finished.stderr.contains(&format!("galerne resume {name}")), "{finished:?}");
        assert!(finished.stderr.contains("is saved") && finished.stdout.is_empty());
        let latest = read(&home.inside(&format!("runs/{name}/checkpoints/LATEST")));
        let latest = String::from_utf8(latest).unwrap();
        let step: u64 = latest.trim().strip_prefix("step-").unwrap().parse().unwrap();
        assert_eq!(metrics(&home, name).last().unwrap().0, step, "saved where it stopped");
        // It goes on from there, and is stopped again.
        let child = home.command(&["resume", name, "--json"]).spawn().unwrap();
        wait_for_steps(&home, name, step as usize + 3);
        signal(&child, signal_name);
        let error = Finished::of(child).expect(code).json_error();
        assert!(error["message"].as_str().unwrap().contains("is saved"), "{error}");
        let steps: Vec<u64> = metrics(&home, name).iter().map(|line| line.0).collect();
        assert!(steps.iter().copied().eq(1..=steps.len() as u64), "no step twice, none missing");
    }
}

#[test]
fn a_second_signal_ends_at_once() {
    let home = Home::new("twice");
    home.make_recipe(1_000_000);
    let child = start_and_wait(&home, "r", 1);
    // Both arrive together when the process goes on.
    for name in ["-STOP", "-INT", "-TERM", "-CONT"] {
        signal(&child, name);
    }
    let finished = Finished::of(child);
    assert!(matches!(finished.code, Some(130 | 143)), "{finished:?}");
    assert!(!finished.stderr.contains("is saved"), "{finished:?}");
    // What is left is a run that can be resumed; its old lines are cut when it begins again.
    let n_before = metrics(&home, "r").len();
    let child = home.command(&["resume", "r"]).spawn().unwrap();
    wait_for_steps(&home, "r", n_before + 1);
    signal(&child, "-INT");
    Finished::of(child).expect(130);
}

#[test]
fn a_run_that_the_machine_cannot_hold_is_refused_before_it_is_begun() {
    let home = Home::new("too-large");
    home.make_recipe(10);
    let large = ["pretrain", "--recipe", "tiny.toml", "--json", "--set"];
    for (setting, expected) in [
        ("start.random.ffn_dim=1048576", "checkpoints and the model"),
        ("batch.rows_per_micro_batch=65536", "of memory"),
    ] {
        let more = ["--set", "batch.rows_per_step=65536", "--set", "start.random.n_layers=1024"];
        let error = home.run(&[&large[..], &[setting], &more].concat()).expect(1).json_error();
        assert!(error["message"].as_str().unwrap().contains(expected), "{error}");
        assert_eq!(names_in(&home.inside("runs")), Vec::<String>::new());
    }
}

/// A process that was killed before it wrote the recipe left a name that could be neither made nor resumed.
#[test]
fn a_folder_with_nothing_but_a_free_lock_is_taken_over() {
    let home = Home::new("take-over");
    home.make_recipe(2);
    let dir = home.inside("runs/r");
    fs::create_dir_all(&dir).unwrap();
    let pretrain = ["pretrain", "--recipe", "tiny.toml", "--run", "r"];
    let lock = formats::durable::DirLock::acquire(&dir).unwrap();
    let held = home.run(&pretrain).expect(1).stderr;
    assert!(held.contains("exists already"), "{held}");
    drop(lock);
    fs::write(dir.join("notes.txt"), "of the user").unwrap();
    home.run(&pretrain).expect(1);
    assert_eq!(names_in(&dir), [".lock", "notes.txt"], "it is not touched");
    fs::remove_file(dir.join("notes.txt")).unwrap();
    home.run(&pretrain).expect(0);
    home.run(&["resume", "r"]).expect(0);
}

#[test]
fn a_run_in_use_is_refused() {
    let home = Home::new("in-use");
    home.make_recipe(100_000);
    let child = start_and_wait(&home, "busy", 1);
    let error = home.run(&["resume", "busy", "--json"]).expect(1).json_error();
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("in use") && message.contains(&child.id().to_string()), "{message}");
    assert!(error["hint"].as_str().unwrap().contains("other process"));
    signal(&child, "-INT");
    Finished::of(child).expect(130);
}

#[test]
fn a_disk_that_refuses_a_checkpoint_leaves_the_one_before() {
    let home = Home::new("full");
    home.make_recipe(20);
    // 1 KiB blocks in bash, 512 bytes in other shells; a checkpoint file has about 100 KiB.
    let limited = |arguments: &[&str]| {
        Finished::new(home.command_after("ulimit -f 32", arguments).output().unwrap())
    };
    let finished = limited(&["pretrain", "--recipe", "tiny.toml", "--run", "full"]).expect(1);
    assert!(finished.stderr.contains("safetensors"), "names the file: {}", finished.stderr);
    assert!(finished.stderr.contains("hint: "), "{}", finished.stderr);
    assert_eq!(names_in(&home.inside("runs/full/checkpoints")), Vec::<String>::new());
    assert!(!home.inside("models").exists() || names_in(&home.inside("models")).is_empty());
    // With room again it goes on.
    home.run(&["resume", "full"]).expect(0);
    assert!(home.inside("models/full/model.safetensors").is_file());

    // Half of the way there is room, then no more: the last checkpoint stays.
    let long = ["pretrain", "--recipe", "tiny.toml", "--run", "later", "--set", "n_steps=100000"];
    let mut child = home.command(&long).spawn().unwrap();
    wait_for_steps(&home, "later", 12);
    child.kill().unwrap();
    child.wait().unwrap();
    let before = read(&home.inside("runs/later/checkpoints/LATEST"));
    limited(&["resume", "later"]).expect(1);
    assert_eq!(read(&home.inside("runs/later/checkpoints/LATEST")), before);
    let names = names_in(&home.inside("runs/later/checkpoints"));
    assert!(names.iter().all(|name| !name.starts_with('.')), "nothing half-written: {names:?}");
}

#[test]
fn a_damaged_checkpoint_is_an_error_that_names_it() {
    let home = Home::new("damaged");
    home.make_recipe(10);
    home.run(&["pretrain", "--recipe", "tiny.toml", "--run", "r"]).expect(0);
    let file = home.inside("runs/r/checkpoints/step-00000010/optimizer.safetensors");
    for n_bytes in [0, 1000] {
        fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(n_bytes).unwrap();
        let error = home.run(&["resume", "r", "--json"]).expect(1).json_error();
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("optimizer.safetensors is damaged"), "{message}");
        assert!(error["hint"].as_str().unwrap().contains("LATEST"), "{error}");
    }
}

#[test]
fn a_recipe_that_cannot_run_leaves_no_run_behind() {
    let home = Home::new("bad-recipe");
    home.make_recipe(10);
    let cases: &[(&[&str], i32, &str)] = &[
        (&["--set", "n_step=3"], 2, "unknown field `n_step`"),
        (&["--set", "batch.seq_len=65"], 1, "context_len"),
        (&["--set", "data.tokenizer=nowhere"], 1, "nowhere"),
        (&["--set", "data.shards=[\"nowhere\"]"], 1, "nowhere"),
        (&["--set", "start.random.vocab_size=100"], 1, "vocabulary"),
        (&["--set", "n_steps"], 2, "expected section.key=value"),
        (&["--run", "a/b"], 2, "expected a name"),
        (&["--run", "a\u{1b}[31mb"], 2, "expected a name"),
    ];
    for (arguments, code, expected) in cases {
        let arguments = [&["pretrain", "--recipe", "tiny.toml"], *arguments].concat();
        let finished = home.run(&arguments).expect(*code);
        assert!(finished.stderr.contains(expected), "{arguments:?}: {}", finished.stderr);
        let runs = home.inside("runs");
        assert!(!runs.exists() || names_in(&runs).is_empty(), "{arguments:?}");
    }
    let wrong_command = home.run(&["tune", "--recipe", "tiny.toml"]).expect(2);
    assert!(wrong_command.stderr.contains("galerne pretrain"), "{}", wrong_command.stderr);
}

/// The recipe NAME.toml, which learns a conversation from where `start` says.
fn make_tuning_recipe(home: &Home, name: &str, start: &str) {
    let line = r#"{"messages": [{"role": "user", "content": "mer"}, {"role": "assistant", "content": "vent"}]}"#;
    fs::write(home.path("chat.jsonl"), format!("{line}\n{line}\n")).unwrap();
    let text = String::from_utf8(read(&home.path("tiny.toml"))).unwrap();
    let (head, _) = text.split_once("[start.random]").unwrap();
    let (_, batch) = text.split_once("[batch]").unwrap();
    let (batch, _) = batch.split_once("[validation]").unwrap();
    let recipe = format!(
        "{head}[start]\n{start}\n\n[data]\ntokenizer = \"tokenizer\"\n\
         conversations = [\"chat.jsonl\"]\n\n[batch]{batch}"
    );
    fs::write(home.path(&format!("{name}.toml")), recipe).unwrap();
}

#[test]
fn tune_starts_from_a_model_and_learns_conversations() {
    let home = Home::new("tune");
    home.make_model();
    make_tuning_recipe(&home, "talk", "model = \"home/models/tiny-1\"");
    home.run(&["tune", "--recipe", "talk.toml"]).expect(0);
    let model = home.run(&["model", "inspect", "talk-1", "--json"]).expect(0).json();
    assert_eq!(model["lineage"]["parent"], "tiny-1");
    let wrong_command = home.run(&["pretrain", "--recipe", "talk.toml"]).expect(2);
    assert!(wrong_command.stderr.contains("galerne tune"), "{}", wrong_command.stderr);
    // The run needs the model that it began with no more.
    let weights = read(&home.inside("models/talk-1/model.safetensors"));
    for name in ["tiny-1", "talk-1"] {
        fs::remove_dir_all(home.inside("models").join(name)).unwrap();
    }
    let resumed = home.run(&["resume", "talk-1"]).expect(0);
    assert!(!resumed.stderr.contains("not known"), "{}", resumed.stderr);
    assert!(read(&home.inside("models/talk-1/model.safetensors")) == weights);
}

#[test]
fn a_quantised_model_is_refused_as_a_start_by_tensor_and_type() {
    let home = Home::new("tune-quantised");
    home.make_model();
    make_tuning_recipe(&home, "talk", "model = \"home/models/tiny-1\"");
    home.run(&["model", "quantize", "tiny-1", "--to", "q8_0"]).expect(0);
    let start = "start.model=home/models/tiny-1-q8_0";
    let arguments = ["tune", "--recipe", "talk.toml", "--set", start, "--json"];
    let error = home.run(&arguments).expect(1).json_error();
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("`token_embd.weight`"), "{message}");
    assert!(message.contains("quantised to Q8_0"), "{message}");
    assert!(error["hint"].as_str().unwrap().contains("the model that it was made from"), "{error}");
    assert_eq!(names_in(&home.inside("runs")), ["tiny-1"], "nothing is left behind");
}

#[test]
fn the_licence_passes_through_runs_that_start_from_one_another() {
    let home = Home::new("licence-chain");
    home.make_model();
    let lineage = home.inside("models/tiny-1/galerne.json");
    let mut value: Value = serde_json::from_slice(&read(&lineage)).unwrap();
    value["licence"] = "mrl".into();
    fs::write(&lineage, value.to_string()).unwrap();
    for (name, start) in [
        ("first", "model = \"home/models/tiny-1\""),
        ("second", "run = \"home/runs/first-1\""),
        ("third", "run = \"home/runs/second-1\""),
    ] {
        make_tuning_recipe(&home, name, start);
        let recipe = format!("{name}.toml");
        let finished = home.run(&["tune", "--recipe", &recipe]).expect(0);
        assert!(!finished.stderr.contains("not known"), "{}", finished.stderr);
        let model = ["model", "inspect", &format!("{name}-1"), "--json"];
        assert_eq!(home.run(&model).expect(0).json()["lineage"]["licence"], "mrl", "{name}");
    }
    // Another model takes the place of the one behind the run while it trains.
    let long = ["tune", "--recipe", "first.toml", "--run", "late", "--set", "n_steps=400"];
    let child = home.command(&long).spawn().unwrap();
    wait_for_steps(&home, "late", 1);
    value["licence"] = "mit".into();
    fs::write(&lineage, value.to_string()).unwrap();
    Finished::of(child).expect(0);
    let model = home.run(&["model", "inspect", "late", "--json"]).expect(0).json();
    assert_eq!(model["lineage"]["licence"], "mrl", "{model}");
}

#[test]
fn a_quickstart_that_another_process_holds_is_not_resumed() {
    let home = Home::new("held");
    let dir = home.inside("runs/quickstart-1");
    fs::create_dir_all(&dir).unwrap();
    let settings = "format_version = 1\nseed = 1\nbudget_minutes = 1.0\nvocab_size = 4096\n";
    fs::write(dir.join("quickstart.toml"), settings).unwrap();
    let lock = formats::durable::DirLock::acquire(&dir).unwrap();
    let finished = home.run(&["resume", "quickstart-1"]).expect(1);
    let holder = format!("process {}", std::process::id());
    assert!(finished.stderr.contains(&holder), "{}", finished.stderr);
    assert_eq!(names_in(&dir), [".lock", "quickstart.toml"]);
    drop(lock);
}

#[test]
fn a_number_whose_model_is_still_there_is_not_taken_again() {
    let home = Home::new("numbers");
    home.make_recipe(2);
    fs::create_dir_all(home.inside("models/tiny-1")).unwrap();
    let made = home.run(&["pretrain", "--recipe", "tiny.toml", "--json"]).expect(0).json();
    assert!(made["run"].as_str().unwrap().ends_with("tiny-2"), "{made}");
    // A quickstart makes three models; it stops for want of text, and takes its folder away again.
    fs::create_dir_all(home.inside("models/quickstart-1-chat")).unwrap();
    let text = home.path("empty");
    fs::create_dir(&text).unwrap();
    let refused = |expected: &str| {
        let arguments = ["quickstart", "--no-serve", "--text", text.to_str().unwrap()];
        let stderr = home.run(&arguments).expect(1).stderr;
        assert!(stderr.contains("quickstart-2") && stderr.contains(expected), "{stderr}");
        assert_eq!(names_in(&home.inside("runs")), ["tiny-2"]);
    };
    refused("is empty");
    fs::write(text.join("one.txt"), "the wind of the west\n").unwrap();
    refused("is one document, expected two or more");
    fs::write(text.join("two.txt"), "the wind of the east\n").unwrap();
    refused("give more text");
}

#[test]
fn a_run_that_keeps_every_checkpoint_is_taken_up_with_all_of_them() {
    let home = Home::new("keep-all");
    home.make_recipe(4);
    let keep_all = ["--set", "checkpoint.n_keep=1000000", "--set", "checkpoint.every_steps=1"];
    let arguments = ["pretrain", "--recipe", "tiny.toml"];
    home.run(&[&arguments[..], &keep_all].concat()).expect(0);
    let checkpoints = names_in(&home.inside("runs/tiny-1/checkpoints"));
    assert_eq!(checkpoints.iter().filter(|name| name.starts_with("step-")).count(), 4);
    home.run(&["resume", "tiny-1"]).expect(0);
    assert_eq!(names_in(&home.inside("runs/tiny-1/checkpoints")), checkpoints);
}

#[test]
fn a_strangers_quickstart_does_not_read_text_of_the_user() {
    let home = Home::new("foreign-text");
    let (dir, text) = (home.path("shared/run"), home.path("letters"));
    fs::create_dir_all(&dir).unwrap();
    fs::create_dir(&text).unwrap();
    fs::write(text.join("a.txt"), "a letter\n".repeat(100)).unwrap();
    let settings = format!(
        "format_version = 1\nseed = 1\nvocab_size = 4096\ntext = {:?}\n",
        text.to_str().unwrap()
    );
    fs::write(dir.join("quickstart.toml"), settings).unwrap();
    let refused = home.run(&["resume", "./shared/run"]).expect(2).stderr;
    assert!(refused.contains("not in the home") && refused.contains("letters"), "{refused}");
    assert_eq!(names_in(&dir), [".lock", "quickstart.toml"]);
}

/// A quickstart folder whose data looks complete and that is about to train the base model of a shape.
fn quickstart_about_to_train(home: &Home, shape: &str) -> std::path::PathBuf {
    let dir = home.inside("runs/quickstart-1");
    fs::create_dir_all(dir.join("data")).unwrap();
    let settings = format!(
        "format_version = 1
seed = 1
vocab_size = 4096
[plan]
tokens_per_s = 1.0
pretrain_steps = 9
chat_steps = 9
company_steps = 9
[plan.shape]
{shape}
"
    );
    fs::write(dir.join("quickstart.toml"), settings).unwrap();
    let mut sheet = data::sheet::SheetBuilder::default();
    let text = "Le vent vient de la mer.".to_owned();
    sheet.add(&data::Document { language: None, kind: "story".to_owned(), text }).unwrap();
    let origin = data::sheet::Origin::Bundled { generator_version: 1, seed: 1 };
    sheet.finish(origin, None).unwrap().write(&dir.join("data")).unwrap();
    dir
}

const SMALL_SHAPE: &str = "hidden_dim = 32
n_layers = 2
n_heads = 2
n_kv_heads = 1
head_dim = 16
ffn_dim = 48
vocab_size = 4096
context_len = 512
rope_theta = 1e4";

#[test]
fn a_quickstart_does_not_reach_out_of_its_folder_through_links() {
    let home = Home::new("quickstart-links");
    home.make_model();
    let other = home.inside("runs/tiny-1");
    let before = (names_in(&other), read(&other.join("events.jsonl")));
    let dir = quickstart_about_to_train(&home, SMALL_SHAPE);
    let refused = |name: &str| {
        std::os::unix::fs::symlink(&other, dir.join(name)).unwrap();
        let refused = home.run(&["resume", "quickstart-1"]).expect(1);
        assert!(refused.stderr.contains(name), "{}", refused.stderr);
        assert!(refused.stderr.contains("it is a link"), "{}", refused.stderr);
        assert_eq!((names_in(&other), read(&other.join("events.jsonl"))), before);
    };
    refused("pretrain");
    fs::remove_dir_all(dir.join("data")).unwrap();
    refused("data");
}

#[test]
fn a_quickstart_whose_plan_is_absurd_is_refused_before_it_trains() {
    let home = Home::new("quickstart-plan");
    home.make_tokenizer();
    let dir = quickstart_about_to_train(&home, SMALL_SHAPE);
    fs::rename(home.path("tokenizer"), dir.join("data/tokenizer")).unwrap();
    for (from, to, expected) in [
        ("hidden_dim = 32", "hidden_dim = 1099511627776", "hidden_dim"),
        ("1e4", "-1.0", "rope_theta"),
        ("hidden_dim = 32\nn_layers = 2", "hidden_dim = 262144\nn_layers = 1024", "needs"),
    ] {
        assert!(SMALL_SHAPE.contains(from));
        quickstart_about_to_train(&home, &SMALL_SHAPE.replace(from, to));
        let refused = home.run(&["resume", "quickstart-1"]).expect(1);
        assert!(refused.stderr.contains(expected), "{}", refused.stderr);
        assert!(!dir.join("pretrain").exists());
    }
}
