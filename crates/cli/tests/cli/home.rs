//! A home of its own for each test, and the binary run in it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use data::shard::ShardWriter;
use serde_json::Value;
use testkit::random::Rng;
use tokenizer::Tokenizer;

/// How long a test waits for something that takes a second.
const PATIENCE: Duration = Duration::from_secs(120);

/// A folder that is removed at the end of the test; `home` in it is the home.
pub(crate) struct Home {
    dir: PathBuf,
}

impl Home {
    pub(crate) fn new(name: &str) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("galerne-cli-{}-{number}-{name}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        fs::create_dir_all(&dir).unwrap();
        Self { dir }
    }

    /// A path beside the home.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A path in the home.
    pub(crate) fn inside(&self, name: &str) -> PathBuf {
        self.dir.join("home").join(name)
    }

    /// The binary with this home, one thread and no other setting of the caller.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_galerne"));
        self.prepare(&mut command);
        command.args(arguments);
        command
    }

    /// The binary under a shell command such as `ulimit -f 8`.
    pub(crate) fn command_after(&self, setup: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("sh");
        self.prepare(&mut command);
        let run = format!("{setup}; exec \"$0\" \"$@\"");
        command.args(["-c", &run, env!("CARGO_BIN_EXE_galerne")]).args(arguments);
        command
    }

    fn prepare(&self, command: &mut Command) {
        let settings = ["RUST_LOG", "GALERNE_KERNELS", "HF_TOKEN", "HF_TOKEN_FILE"];
        let proxies = ["HTTPS_PROXY", "ALL_PROXY", "HTTP_PROXY", "NO_PROXY"];
        for name in settings.into_iter().chain(proxies) {
            command.env_remove(name).env_remove(name.to_lowercase());
        }
        command.env("GALERNE_HOME", self.dir.join("home")).current_dir(&self.dir);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Finished {
        Finished::new(self.command(arguments).output().unwrap())
    }

    /// Runs with a stdout that nobody reads any more.
    pub(crate) fn run_unread(&self, arguments: &[&str]) -> Finished {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        Finished::new(self.command(arguments).stdout(writer).output().unwrap())
    }

    pub(crate) fn run_with_input(&self, arguments: &[&str], input: &str) -> Finished {
        let mut child = self.command(arguments).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        Finished::new(child.wait_with_output().unwrap())
    }

    /// Folder `text` with a few sentences, folder `tokenizer` trained on it by the binary.
    pub(crate) fn make_tokenizer(&self) -> Tokenizer {
        let text = self.path("text");
        fs::create_dir_all(&text).unwrap();
        for (number, document) in documents().iter().enumerate() {
            fs::write(text.join(format!("{number:02}.txt")), document).unwrap();
        }
        let arguments =
            ["tokenizer", "train", "--text", "text", "--vocab-size", "280", "--out", "tokenizer"];
        self.run(&arguments).expect(0);
        Tokenizer::open(&self.path("tokenizer")).unwrap()
    }

    /// Tokenizer, folder `shard` and the recipe `tiny.toml` of so many steps.
    pub(crate) fn make_recipe(&self, n_steps: u64) {
        let tokenizer = self.make_tokenizer();
        let (shard, digest) = (self.path("shard"), tokenizer.digest());
        let mut writer = ShardWriter::create(&shard, &digest, tokenizer.vocab_size()).unwrap();
        for text in documents() {
            let mut ids = vec![tokenizer.bos_id()];
            tokenizer.encode_into(&text, &mut ids);
            ids.push(tokenizer.eos_id());
            writer.add(&ids).unwrap();
        }
        writer.finish(vec!["test".to_owned()]).unwrap();
        fs::write(self.path("tiny.toml"), recipe(n_steps)).unwrap();
    }

    /// A tiny model named `tiny-1` in the home.
    pub(crate) fn make_model(&self) {
        self.make_recipe(4);
        self.run(&["pretrain", "--recipe", "tiny.toml"]).expect(0);
    }

    /// Waits until a condition holds.
    pub(crate) fn wait_until(&self, what: &str, holds: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds() {
            assert!(Instant::now() < deadline, "waited in vain for {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A process that has ended.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Finished {
    pub(crate) fn new(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    pub(crate) fn of(child: Child) -> Self {
        Self::new(child.wait_with_output().unwrap())
    }

    /// Checks the exit code.
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        self
    }

    /// What was printed, as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The error that was printed as JSON, and nothing else.
    pub(crate) fn json_error(&self) -> Value {
        assert_eq!(self.stdout, "", "a failure prints nothing on stdout");
        let line = self.stderr.lines().last().unwrap_or_default();
        let value: Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {self:?}"));
        value["error"].clone()
    }
}

/// Sends a signal to a process.
pub(crate) fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

pub(crate) fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Sixty short texts of eight words.
fn documents() -> Vec<String> {
    let mut rng = Rng::new(1);
    let words = ["vent", "mer", "sail", "port", "quai", "boat", "île", "storm"];
    let mut text = |_| {
        let n = 5 + rng.below(30);
        (0..n).map(|_| words[rng.below(8)]).collect::<Vec<_>>().join(" ")
    };
    (0..60).map(&mut text).collect()
}

fn recipe(n_steps: u64) -> String {
    format!(
        "format_version = 1
n_steps = {n_steps}
seed = 3
dtype = \"bf16\"

[start.random]
hidden_dim = 32
n_layers = 2
n_heads = 2
n_kv_heads = 1
head_dim = 16
ffn_dim = 48
vocab_size = 280
context_len = 64
rope_theta = 1e4

[data]
tokenizer = \"tokenizer\"
shards = [\"shard\"]

[batch]
seq_len = 32
rows_per_step = 4
rows_per_micro_batch = 2

[schedule]
peak_learning_rate = 0.01
warmup_steps = 2
decay_steps = 3

[checkpoint]
every_steps = 10
n_keep = 2

[validation]
shard = \"shard\"
every_steps = 20
"
    )
}
