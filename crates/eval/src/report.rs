//! Everything measured in a run, and its three forms: JSON, a table for the terminal, one HTML page.

mod html;
mod terminal;
mod texts;

use std::collections::BTreeMap;
use std::path::Path;

use data::sheet::DataSheet;
use formats::check_format_version;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::company::CompanyScores;
use crate::{Curve, EvalError};

/// Version of the JSON form that this program writes.
pub const FORMAT_VERSION: u64 = 1;

/// The report of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Version of this form: [`FORMAT_VERSION`].
    pub format_version: u64,
    /// Name of the run, such as `quickstart-3`.
    pub name: String,
    /// When it ended, as `2026-11-21 14:05 UTC`.
    pub date: String,
    /// Program and version, as `galerne 0.1.0`.
    pub program: String,
    /// Where it ran.
    pub machine: Machine,
    /// Seed of the run.
    pub seed: u64,
    /// How long it took to the report: the sum of its stages, over all resumes.
    pub seconds: f64,
    /// Its parts, in order, each with its time over all resumes.
    pub stages: Vec<TimedStage>,
    /// Parameters of each of the models.
    pub parameters: u64,
    /// Input tokens of pre-training.
    pub pretraining_tokens: u64,
    /// Input tokens per second of pre-training, on average.
    pub tokens_per_s: f64,
    /// The models, from the first to the last made.
    pub models: Vec<ModelReport>,
    /// Training runs, in order.
    pub curves: Vec<Curve>,
    /// The corpus.
    pub data: DataSheet,
}

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Name of the processor.
    pub processor: String,
    /// Threads used.
    pub n_threads: usize,
    /// Family of the kernels used.
    pub kernel_family: String,
    /// Memory in bytes.
    pub memory_bytes: u64,
}

/// A part of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TimedStage {
    /// Name for people.
    pub name: String,
    /// How long it took.
    pub seconds: f64,
}

/// What was measured of one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelReport {
    /// `base`, `chat` or `specialised`.
    pub name: String,
    /// Its model directory.
    pub directory: String,
    /// On held-out text of each language.
    pub bits_per_byte: Vec<LanguageBits>,
    /// On the invented company, where it was asked.
    pub company: Option<CompanyScores>,
}

/// Bits per byte of one language.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LanguageBits {
    /// ISO 639-1 code, or `und`.
    pub language: String,
    /// Bits per byte.
    pub bits_per_byte: f64,
    /// Bytes of held-out text.
    pub n_bytes: u64,
}

/// The figures other programs read at the end of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// How long the run took.
    pub seconds: f64,
    /// Parameters of each of the models.
    pub parameters: u64,
    /// Input tokens per second of pre-training.
    pub tokens_per_s: f64,
    /// Of the first model, by language.
    pub bits_per_byte: BTreeMap<String, f64>,
    /// Share of right answers about known facts, by model.
    pub company_accuracy: BTreeMap<String, f64>,
    /// Model directories, by model.
    pub models: BTreeMap<String, String>,
}

impl Report {
    /// The report as JSON, ending with a newline.
    ///
    /// # Errors
    /// When a number is not finite, which JSON cannot say.
    pub fn to_json(&self) -> Result<String, EvalError> {
        self.check_finite()?;
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// Reads what [`Report::to_json`] writes; `path` is for messages.
    ///
    /// # Errors
    /// When it is no report, or one of a newer version.
    pub fn from_json(json: &str, path: &Path) -> Result<Self, EvalError> {
        let value: Value = serde_json::from_str(json)?;
        check_format_version(path, &value, FORMAT_VERSION)?;
        Ok(serde_json::from_value(value)?)
    }

    /// The report as a table in plain text, at most 100 columns wide, ending with a newline.
    #[must_use]
    pub fn to_text(&self) -> String {
        terminal::render(self)
    }

    /// The report as one HTML page that needs no script and no other file.
    #[must_use]
    pub fn to_html(&self) -> String {
        html::render(self)
    }

    /// The figures other programs read.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let bits = self.models.first().map_or(&[][..], |model| &model.bits_per_byte);
        let accuracy = |model: &ModelReport| {
            let company = model.company.as_ref()?;
            Some((model.name.clone(), company.all.accuracy))
        };
        let directory = |model: &ModelReport| (model.name.clone(), model.directory.clone());
        Summary {
            seconds: self.seconds,
            parameters: self.parameters,
            tokens_per_s: self.tokens_per_s,
            bits_per_byte: bits.iter().map(|l| (l.language.clone(), l.bits_per_byte)).collect(),
            company_accuracy: self.models.iter().filter_map(accuracy).collect(),
            models: self.models.iter().map(directory).collect(),
        }
    }

    fn check_finite(&self) -> Result<(), EvalError> {
        let single = [("seconds", self.seconds), ("tokens_per_s", self.tokens_per_s)];
        let single = single.map(|(field, value)| (field.to_owned(), value)).into_iter();
        let stages =
            self.stages.iter().map(|stage| (format!("stage {}", stage.name), stage.seconds));
        let bits = self.models.iter().flat_map(|model| {
            model.bits_per_byte.iter().map(|bits| {
                (
                    format!("bits per byte of {} in {}", model.name, bits.language),
                    bits.bits_per_byte,
                )
            })
        });
        let losses = self.curves.iter().flat_map(|curve| {
            curve.points.iter().flat_map(|point| {
                let field = |what| format!("{what} of {} at step {}", curve.name, point.step);
                let validation = point.validation_bits_per_byte;
                [(field("loss"), point.loss), (field("validation"), validation.unwrap_or(0.0))]
            })
        });
        match single.chain(stages).chain(bits).chain(losses).find(|(_, value)| !value.is_finite()) {
            Some((field, got)) => Err(EvalError::NotFinite { field, got }),
            None => Ok(()),
        }
    }

    /// Languages of the held-out texts, in the order of the models' lists.
    fn languages(&self) -> Vec<&str> {
        let mut languages: Vec<&str> = Vec::new();
        for bits in self.models.iter().flat_map(|model| &model.bits_per_byte) {
            if !languages.contains(&bits.language.as_str()) {
                languages.push(&bits.language);
            }
        }
        languages
    }
}

impl ModelReport {
    fn bits_of(&self, language: &str) -> Option<f64> {
        let found = self.bits_per_byte.iter().find(|bits| bits.language == language);
        found.map(|bits| bits.bits_per_byte)
    }
}
