//! The report, and the three models as directories of the home.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context as _;
use data::sheet::DataSheet;
use eval::Curve;
use eval::report::{FORMAT_VERSION, Machine, ModelReport, Report};
use formats::WeightDtype;
use formats::digest::sha256_of_file;
use formats::durable::write_bytes_atomically;
use formats::model_dir::{Lineage, ModelDir};
use tokenizer::Tokenizer;
use train::export::{ModelNotes, write_model};
use train::{METRICS_FILE, latest_parameters};

use super::measuring::Measured;
use super::prepare::Prepared;
use super::settings::Settings;
use super::stages::Stage;
use crate::context::Context;
use crate::failure::Failure;
use crate::machine;
use crate::names::folder_name;
use crate::table::utc_minute;

/// The report for people.
pub(crate) const REPORT_PAGE: &str = "report.html";
const REPORT_JSON: &str = "report.json";
const LOSS_CURVE: &str = "loss.svg";

/// Directory of the model that a stage of the quickstart `run_name` makes.
pub(crate) fn model_dir(run_name: &str, stage: Stage, context: &Context) -> PathBuf {
    context.models_dir().join(model_name(run_name, stage))
}

fn model_name(run_name: &str, stage: Stage) -> String {
    format!("{run_name}-{}", stage.model())
}

/// Gathers everything that was measured; the caller fills in the times.
///
/// # Errors
/// When the metrics of a run cannot be read.
pub(crate) fn report(
    dir: &Path,
    settings: &Settings,
    data: DataSheet,
    measured: Vec<Measured>,
    context: &Context,
) -> anyhow::Result<Report> {
    let name = folder_name(dir);
    let parameters = measured.first().map_or(0, |m| m.parameters.config().n_parameters());
    let curves = Stage::ALL.into_iter().map(|stage| {
        let path = stage.run_dir(dir).join(METRICS_FILE);
        Curve::read(stage.model(), &path).map_err(anyhow::Error::from)
    });
    let (curves, speeds): (Vec<Curve>, Vec<Option<f64>>) =
        curves.collect::<anyhow::Result<Vec<_>>>()?.into_iter().unzip();
    let pretraining_tokens =
        curves.first().and_then(|curve| curve.points.last()).map_or(0, |p| p.tokens);
    let models = measured.into_iter().map(|measured| ModelReport {
        name: measured.stage.model().to_owned(),
        directory: model_dir(&name, measured.stage, context).display().to_string(),
        bits_per_byte: measured.bits_per_byte,
        company: Some(measured.company),
    });
    Ok(Report {
        format_version: FORMAT_VERSION,
        name: name.clone(),
        date: utc_minute(SystemTime::now()),
        program: format!("galerne {}", env!("CARGO_PKG_VERSION")),
        machine: Machine {
            processor: bench::cpu_name(),
            n_threads: context.n_threads(),
            kernel_family: context.device()?.family_name().to_owned(),
            memory_bytes: machine::memory().map_or(0, |memory| memory.total_bytes),
        },
        seed: settings.seed,
        seconds: 0.0,
        stages: Vec::new(),
        parameters,
        pretraining_tokens,
        tokens_per_s: speeds.first().copied().flatten().unwrap_or(0.0),
        models: models.collect(),
        curves,
        data,
    })
}

/// Writes `report.json`, `report.html` and `loss.svg` into the run folder.
///
/// # Errors
/// When a file cannot be written.
pub(crate) fn write_report(dir: &Path, report: &Report) -> anyhow::Result<()> {
    write_bytes_atomically(&dir.join(REPORT_JSON), report.to_json()?.as_bytes())?;
    write_bytes_atomically(&dir.join(REPORT_PAGE), report.to_html().as_bytes())?;
    let curve = eval::loss_curve_svg(&report.curves);
    Ok(write_bytes_atomically(&dir.join(LOSS_CURVE), curve.as_bytes())?)
}

/// Writes the three model directories, except those that are there already.
///
/// # Errors
/// When one cannot be written.
pub(crate) fn write_models(dir: &Path, report: &Report, context: &Context) -> anyhow::Result<()> {
    let files = Prepared::of(dir);
    let tokenizer = Tokenizer::open(&files.tokenizer())?;
    let data_sheet = sha256_of_file(&files.sheet())?.0;
    let mut parent = None;
    for (stage, model) in Stage::ALL.into_iter().zip(&report.models) {
        let path = model_dir(&report.name, stage, context);
        let name = model_name(&report.name, stage);
        let lineage = Lineage {
            source: None,
            run: Some(report.name.clone()),
            parent: parent.clone(),
            data_sheet_sha256: Some(data_sheet.clone()),
            licence: report.data.licence.clone(),
            evaluation: serde_json::to_value(model).context("scores as JSON")?,
            ..Lineage::default()
        };
        if path.exists() {
            // A quickstart that was stopped between two models finds its own; a stranger's is not served in its place.
            // Scores are left out: a number may change in its last digit by being written and read.
            let is_own = |found: &Lineage| {
                found.run == lineage.run && found.data_sheet_sha256 == lineage.data_sheet_sha256
            };
            if !ModelDir::open(&path)?.lineage().is_some_and(is_own) {
                let hint = "move it away, then resume".to_owned();
                return Err(Failure::Exists { path, hint }.into());
            }
        } else {
            let notes = notes(stage, &name, report, model, lineage);
            let parameters = latest_parameters(&stage.run_dir(dir))?;
            write_model(&path, &parameters, WeightDtype::Bf16, &tokenizer, &notes)
                .with_context(|| format!("cannot write model {}", path.display()))?;
        }
        parent = Some(name);
    }
    Ok(())
}

/// A model this small is sure of little: at a temperature of 1 it says what it half knows.
const TEMPERATURE: f64 = 0.2;

fn notes(
    stage: Stage,
    name: &str,
    report: &Report,
    model: &ModelReport,
    lineage: Lineage,
) -> ModelNotes {
    let bits: String = model
        .bits_per_byte
        .iter()
        .map(|bits| format!("| {} | {:.3} |\n", bits.language, bits.bits_per_byte))
        .collect();
    let mut sections = vec![
        (
            "Training data".to_owned(),
            format!("{}\n\nData sheet: SHA-256 `{}`.", stage.data(), report.data.sha256),
        ),
        (
            "Bits per byte on held-out text".to_owned(),
            format!("| Language | Bits per byte |\n|---|---|\n{bits}"),
        ),
    ];
    if let Some(company) = &model.company {
        let text = format!(
            "Exact match on {} questions about {} facts of the invented company: {:.1} % (95 % interval {:.1} to \
             {:.1}). On facts that it never saw: {:.1} %.",
            company.all.n_questions,
            company.all.n_facts,
            100.0 * company.all.accuracy,
            100.0 * company.all.interval.low,
            100.0 * company.all.interval.high,
            100.0 * company.withheld.accuracy,
        );
        sections.push(("Company questions".to_owned(), text));
    }
    let limits = "A small model for trying the system out. It knows an invented world, writes short sentences, and \
                  states falsehoods fluently; do not rely on its answers.";
    sections.push(("Limits".to_owned(), limits.to_owned()));
    ModelNotes {
        name: name.to_owned(),
        summary: format!("{} Made by `galerne quickstart` on {}.", stage.summary(), report.date),
        sections,
        lineage,
        temperature: Some(TEMPERATURE),
        template: None,
    }
}
