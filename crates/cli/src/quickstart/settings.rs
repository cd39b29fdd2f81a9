//! What a quickstart is a function of: `quickstart.toml`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use eval::report::TimedStage;
use formats::check_format_version;
use formats::durable::read_text;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use train::recipe::ModelShape;

/// Version of the format of `quickstart.toml`.
const FORMAT_VERSION: u64 = 1;

/// Entries of the tokenizer.
const VOCAB_SIZE: usize = 4096;

/// Largest `quickstart.toml` that is read.
const MAX_SETTINGS_BYTES: u64 = 1 << 20;

/// The file's name.
pub(crate) const SETTINGS_FILE: &str = "quickstart.toml";

/// What was asked for, and the plan that was made from it before the first training step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// Version of this format.
    format_version: u64,
    /// Seed of the corpus, the weights and the order of the data.
    pub(crate) seed: u64,
    /// Minutes that all stages together may take; absent when the default number of tokens is wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) budget_minutes: Option<f64>,
    /// The user's own text instead of the bundled corpus.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) text: Option<PathBuf>,
    /// Entries of the tokenizer.
    pub(crate) vocab_size: usize,
    /// Sizes of model and runs; absent until the speed was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) plan: Option<Plan>,
    /// The stages so far and the time that each took, over all resumes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) stages: Vec<TimedStage>,
}

/// Sizes of the model and of the three runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Plan {
    /// Measured tokens per second of training this shape.
    pub(crate) tokens_per_s: f64,
    /// Steps of pre-training.
    pub(crate) pretrain_steps: u64,
    /// Steps of fine-tuning on general chat.
    pub(crate) chat_steps: u64,
    /// Steps of fine-tuning on the company's documents and questions.
    pub(crate) company_steps: u64,
    /// Shape of the model.
    pub(crate) shape: ModelShape,
}

/// Whether a quickstart can take so many minutes.
pub(crate) fn is_budget(minutes: f64) -> bool {
    minutes.is_finite() && minutes > 0.0
}

impl Settings {
    /// Settings without a plan.
    pub(crate) fn new(seed: u64, budget_minutes: Option<f64>, text: Option<PathBuf>) -> Self {
        let (format_version, vocab_size) = (FORMAT_VERSION, VOCAB_SIZE);
        Self {
            format_version,
            seed,
            budget_minutes,
            text,
            vocab_size,
            plan: None,
            stages: Vec::new(),
        }
    }

    /// Reads the settings of a quickstart folder.
    ///
    /// # Errors
    /// When the file is absent, invalid or of a newer version.
    pub(crate) fn read(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join(SETTINGS_FILE);
        let text = read_text(&path, MAX_SETTINGS_BYTES)?;
        let invalid = || format!("{} is invalid", path.display());
        // The version is judged before the keys, which a newer version may have changed.
        let value: Value = toml::from_str(&text).with_context(invalid)?;
        check_format_version(&path, &value, FORMAT_VERSION)?;
        let settings: Self = toml::from_str(&text).with_context(invalid)?;
        if settings.vocab_size != VOCAB_SIZE {
            let got = settings.vocab_size;
            bail!("{} has vocab_size {got}, expected {VOCAB_SIZE}", path.display());
        }
        if let Some(got) = settings.budget_minutes.filter(|&minutes| !is_budget(minutes)) {
            let expected = "a positive number of minutes";
            bail!("{} has budget_minutes {got}, expected {expected}", path.display());
        }
        let times = settings.stages.iter().map(|stage| ("seconds", stage.seconds));
        let speed = settings.plan.map(|plan| ("tokens_per_s", plan.tokens_per_s));
        let is_number = |number: f64| number.is_finite() && number >= 0.0;
        if let Some((name, got)) = times.chain(speed).find(|&(_, number)| !is_number(number)) {
            bail!("{} has {name} {got}, expected a number from 0", path.display());
        }
        let is_name = |name: &str| name.len() <= 100 && !name.contains(char::is_control);
        if settings.stages.iter().any(|stage| !is_name(&stage.name)) {
            bail!("{} names a stage in more than a line, expected a short name", path.display());
        }
        Ok(settings)
    }

    /// Writes the settings into a quickstart folder.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn write(&self, dir: &Path) -> anyhow::Result<()> {
        let text = toml::to_string(self).context("settings as TOML")?;
        Ok(formats::durable::write_bytes_atomically(&dir.join(SETTINGS_FILE), text.as_bytes())?)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use testkit::damage::damaged;
    use testkit::test_dir::TestDir;

    use super::*;

    const WHOLE: &str = "format_version = 1
seed = 7
budget_minutes = 3.5
text = \"/texts\"
vocab_size = 4096
[plan]
tokens_per_s = 1.5
pretrain_steps = 9
chat_steps = 9
company_steps = 9
[plan.shape]
hidden_dim = 32
n_layers = 2
n_heads = 2
n_kv_heads = 1
head_dim = 16
ffn_dim = 48
vocab_size = 4096
context_len = 512
rope_theta = 1e4
[[stages]]
name = \"planning\"
seconds = 2.5
";

    #[test]
    fn settings_are_read_back_and_damaged_ones_are_read_or_refused() {
        let scratch = TestDir::new("quickstart-settings");
        let read = |text: &[u8]| {
            fs::write(scratch.join(SETTINGS_FILE), text).unwrap();
            Settings::read(scratch.path())
        };
        let settings = read(WHOLE.as_bytes()).unwrap();
        settings.write(scratch.path()).unwrap();
        assert_eq!(Settings::read(scratch.path()).unwrap(), settings);
        let n_refused =
            damaged(WHOLE.as_bytes(), 5, 500).filter(|text| read(text).is_err()).count();
        assert!(n_refused > 50, "{n_refused} of the damaged ones were refused");
        for (from, to) in [("2.5", "nan"), ("2.5", "-1.0"), ("= 1.5", "= inf"), ("3.5", "0.0")] {
            let error = read(WHOLE.replace(from, to).as_bytes()).unwrap_err().to_string();
            assert!(error.contains("expected a"), "{to}: {error}");
        }
    }
}
