//! The report as aligned text for a terminal.

use std::fmt::Write as _;

use super::{ModelReport, Report};
use crate::company::{CompanyScores, Score};
use crate::figures::{duration, grouped, percent, range, short};

/// Columns of the widest line.
const WIDTH: usize = 100;

/// Columns of the widest first cell and of every other cell.
const LABEL_WIDTH: usize = 18;
const CELL_WIDTH: usize = 24;

pub(super) fn render(report: &Report) -> String {
    let mut out = String::new();
    let machine = &report.machine;
    let heading = format!("{}  {}  seed {}", report.name, report.date, report.seed);
    line(&mut out, &heading);
    let (processor, family) = (&machine.processor, &machine.kernel_family);
    line(&mut out, &format!("{processor}, {} threads, {family}", machine.n_threads));
    let total = duration(report.seconds);
    line(
        &mut out,
        &format!(
            "{} parameters, {} tokens of pre-training at {} tokens/s, {total} in all",
            grouped(report.parameters),
            short(report.pretraining_tokens as f64),
            short(report.tokens_per_s)
        ),
    );
    for models in report.models.chunks((WIDTH - LABEL_WIDTH) / (CELL_WIDTH + 2)) {
        tables(&mut out, report, models);
    }
    out.push('\n');
    for stage in &report.stages {
        row(&mut out, &stage.name, [duration(stage.seconds)]);
    }
    out
}

/// Bits per byte and company accuracy of as many models as stand side by side.
fn tables(out: &mut String, report: &Report, models: &[ModelReport]) {
    let names = || models.iter().map(|model| model.name.clone());
    out.push('\n');
    row(out, "bits per byte", names());
    for language in report.languages() {
        let bits = models.iter().map(|model| {
            model.bits_of(language).map_or_else(|| "-".to_owned(), |bits| format!("{bits:.3}"))
        });
        row(out, &format!("  {language}"), bits);
    }
    let Some(first) = models.iter().find_map(|model| model.company.as_ref()) else {
        return;
    };
    out.push('\n');
    row(out, "company accuracy", names());
    score_row(out, "  all", models, |company| Some(&company.all));
    for part in &first.languages {
        let label = format!("  in {}", part.name);
        score_row(out, &label, models, |company| company.language(&part.name));
    }
    for part in &first.kinds {
        let label = format!("  {}", part.name);
        score_row(out, &label, models, |company| company.kind(&part.name));
    }
    score_row(out, "  withheld", models, |company| Some(&company.withheld));
    line(out, "with 95 % intervals, clustered by fact");
    for model in models {
        let n_unfinished = model.company.as_ref().map_or(0, |company| company.n_unfinished);
        if n_unfinished > 0 {
            line(out, &format!("{}: {n_unfinished} answers ran out of room", model.name));
        }
    }
}

fn score_row(
    out: &mut String,
    label: &str,
    models: &[ModelReport],
    score: impl Fn(&CompanyScores) -> Option<&Score>,
) {
    let cells = models.iter().map(|model| {
        let Some(score) = model.company.as_ref().and_then(&score) else {
            return "-".to_owned();
        };
        let ends = range(score.interval.low, score.interval.high);
        format!("{:>7}  {ends:>13}", percent(score.accuracy))
    });
    row(out, label, cells);
}

/// A label and cells, each aligned to the right.
fn row(out: &mut String, label: &str, cells: impl IntoIterator<Item = String>) {
    let mut text = format!("{:<LABEL_WIDTH$}", cut(label, LABEL_WIDTH));
    for cell in cells {
        // Writing to a String cannot fail.
        let _ = write!(text, "  {:>CELL_WIDTH$}", cut(&cell, CELL_WIDTH));
    }
    line(out, text.trim_end());
}

fn line(out: &mut String, text: &str) {
    out.push_str(&cut(text, WIDTH));
    out.push('\n');
}

/// At most `width` signs, the last an ellipsis if some are left out. Control characters, which a terminal would obey,
/// and unusual spaces become spaces.
fn cut(text: &str, width: usize) -> String {
    let plain = |c: char| if c.is_control() || c.is_whitespace() { ' ' } else { c };
    if text.chars().count() <= width {
        return text.chars().map(plain).collect();
    }
    text.chars().map(plain).take(width - 1).chain(['…']).collect()
}
