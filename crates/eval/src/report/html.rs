//! The report as one HTML page, filled into a template that escapes every text.

use askama::Template;
use data::sheet::Origin;

use super::texts::{ENGLISH, Texts};
use super::{ModelReport, Report, TimedStage};
use crate::company::{CompanyScores, PartScore, Sample, Score};
use crate::figures::{bytes, duration, grouped, percent, range, short};
use crate::plot::{loss_curve_svg, validation_curve_svg};

const STYLE: &str = include_str!("../../templates/report.css");

/// Models have one of this many colours.
const N_COLOURS: usize = 4;

#[derive(Template)]
#[template(path = "report.html")]
struct Page<'a> {
    texts: &'a Texts,
    style: &'static str,
    report: &'a Report,
    machine: String,
    tiles: Vec<Tile>,
    model_names: Vec<&'a str>,
    overview: Vec<ScoreRow>,
    kinds: Vec<ScoreRow>,
    unfinished: Vec<String>,
    bits: Vec<BitsRow>,
    figures: Vec<Picture>,
    stages: Vec<StageRow>,
    origin: String,
    licence: &'a str,
    data: Vec<[String; 6]>,
    samples: Vec<ModelSamples<'a>>,
}

/// One of the figures at the top.
struct Tile {
    value: String,
    label: String,
    detail: String,
}

/// A row of scores, a cell for each model.
struct ScoreRow {
    label: String,
    n_questions: String,
    cells: Vec<Option<ScoreCell>>,
}

struct ScoreCell {
    colour: usize,
    accuracy: String,
    ends: String,
    /// Of the bar, in per cent of its track.
    value: String,
    low: String,
    high: String,
}

struct BitsRow {
    language: String,
    cells: Vec<String>,
}

struct Picture {
    svg: String,
    caption: &'static str,
}

struct StageRow {
    name: String,
    time: String,
    /// Of the bar, in per cent of its track.
    share: String,
}

struct ModelSamples<'a> {
    model: &'a str,
    is_open: bool,
    lists: Vec<SampleList<'a>>,
}

struct SampleList<'a> {
    title: &'static str,
    class: &'static str,
    samples: Vec<&'a Sample>,
}

pub(super) fn render(report: &Report) -> String {
    let texts = &ENGLISH;
    let machine = &report.machine;
    let languages = report.languages();
    let page = Page {
        texts,
        style: STYLE,
        report,
        machine: format!(
            "{}, {} {}, {}, {} {}",
            machine.processor,
            machine.n_threads,
            texts.threads,
            machine.kernel_family,
            bytes(machine.memory_bytes),
            texts.memory
        ),
        tiles: tiles(report, texts),
        model_names: report.models.iter().map(|model| model.name.as_str()).collect(),
        overview: overview(&report.models, texts),
        kinds: parts(&report.models, |company| &company.kinds, CompanyScores::kind),
        unfinished: unfinished(&report.models, texts),
        bits: languages.iter().map(|language| bits_row(&report.models, language, texts)).collect(),
        figures: pictures(report, texts),
        stages: stages(report),
        origin: origin(&report.data.origin, texts),
        licence: report.data.licence.as_deref().unwrap_or(texts.licence_unknown),
        data: data_rows(report, texts),
        samples: samples(&report.models, texts),
    };
    page.render().expect("writing to a String cannot fail")
}

fn tiles(report: &Report, texts: &Texts) -> Vec<Tile> {
    let tile = |value: String, label: &str, detail: String| {
        let label = label.to_owned();
        Tile { value, label, detail }
    };
    let mut tiles = vec![
        tile(duration(report.seconds), texts.whole_time, String::new()),
        tile(
            short(report.parameters as f64),
            texts.parameters,
            format!("{} {}", short(report.pretraining_tokens as f64), texts.pretraining_tokens),
        ),
        tile(short(report.tokens_per_s), texts.tokens_per_s, texts.in_pre_training.to_owned()),
    ];
    let last = report.models.iter().rev().find_map(|model| Some((model, model.company.as_ref()?)));
    if let Some((model, company)) = last {
        let ends = range(company.all.interval.low, company.all.interval.high);
        let detail = format!("{}, {ends} {}", model.name, texts.at_95);
        tiles.push(tile(percent(company.all.accuracy), texts.company_accuracy, detail));
    }
    tiles
}

fn overview(models: &[ModelReport], texts: &Texts) -> Vec<ScoreRow> {
    let mut rows = vec![score_row(models, texts.all, |company| Some(&company.all))];
    let mut languages = parts(models, |company| &company.languages, CompanyScores::language);
    for row in &mut languages {
        row.label = texts.language_name(&row.label).to_owned();
    }
    rows.append(&mut languages);
    rows.push(score_row(models, texts.withheld, |company| Some(&company.withheld)));
    rows.retain(|row| row.cells.iter().any(Option::is_some));
    rows
}

/// A row for each part that the first model with scores has.
fn parts(
    models: &[ModelReport],
    list: impl Fn(&CompanyScores) -> &Vec<PartScore>,
    find: impl for<'a> Fn(&'a CompanyScores, &str) -> Option<&'a Score>,
) -> Vec<ScoreRow> {
    let Some(first) = models.iter().find_map(|model| model.company.as_ref()) else {
        return Vec::new();
    };
    let row = |part: &PartScore| score_row(models, &part.name, |company| find(company, &part.name));
    list(first).iter().map(row).collect()
}

fn score_row(
    models: &[ModelReport],
    label: &str,
    score: impl Fn(&CompanyScores) -> Option<&Score>,
) -> ScoreRow {
    let scores: Vec<Option<&Score>> =
        models.iter().map(|model| model.company.as_ref().and_then(&score)).collect();
    let n_questions = scores.iter().flatten().map(|score| score.n_questions).max().unwrap_or(0);
    let at = |share: f64| format!("{:.2}", 100.0 * share.clamp(0.0, 1.0));
    let cell = |(model_idx, score): (usize, &Option<&Score>)| {
        score.map(|score| ScoreCell {
            colour: model_idx % N_COLOURS,
            accuracy: percent(score.accuracy),
            ends: range(score.interval.low, score.interval.high),
            value: at(score.accuracy),
            low: at(score.interval.low),
            high: at(score.interval.high),
        })
    };
    ScoreRow {
        label: label.to_owned(),
        n_questions: grouped(n_questions),
        cells: scores.iter().enumerate().map(cell).collect(),
    }
}

fn unfinished(models: &[ModelReport], texts: &Texts) -> Vec<String> {
    let with_some = models.iter().filter_map(|model| {
        let n = model.company.as_ref()?.n_unfinished;
        (n > 0).then(|| format!("{}: {} {}.", model.name, grouped(n), texts.unfinished))
    });
    with_some.collect()
}

fn bits_row(models: &[ModelReport], language: &str, texts: &Texts) -> BitsRow {
    let cell = |model: &ModelReport| {
        model.bits_of(language).map_or_else(|| "–".to_owned(), |bits| format!("{bits:.3}"))
    };
    BitsRow {
        language: texts.language_name(language).to_owned(),
        cells: models.iter().map(cell).collect(),
    }
}

fn pictures(report: &Report, texts: &Texts) -> Vec<Picture> {
    if report.curves.iter().all(|curve| curve.points.is_empty()) {
        return Vec::new();
    }
    let loss = Picture { svg: loss_curve_svg(&report.curves), caption: texts.loss_caption };
    let validation = validation_curve_svg(&report.curves)
        .map(|svg| Picture { svg, caption: texts.validation_caption });
    [Some(loss), validation].into_iter().flatten().collect()
}

fn stages(report: &Report) -> Vec<StageRow> {
    let row = |stage: &TimedStage| {
        let share = stage.seconds / report.seconds.max(f64::MIN_POSITIVE);
        StageRow {
            name: stage.name.clone(),
            time: duration(stage.seconds),
            share: format!("{:.2}", 100.0 * share.clamp(0.0, 1.0)),
        }
    };
    report.stages.iter().map(row).collect()
}

fn origin(origin: &Origin, texts: &Texts) -> String {
    match origin {
        Origin::Bundled { generator_version, seed } => {
            format!("{} {generator_version}, {} {seed}", texts.data_generator, texts.seed)
        }
        Origin::Files { path } => format!("{} {path}", texts.data_files),
    }
}

fn data_rows(report: &Report, texts: &Texts) -> Vec<[String; 6]> {
    let row = |sheet: &data::sheet::LanguageSheet| {
        [
            texts.language_name(&sheet.language).to_owned(),
            grouped(sheet.documents),
            bytes(sheet.bytes),
            grouped(sheet.sentences),
            format!("{:.3} %", 100.0 * sheet.repeated_sentence_share),
            percent(sheet.zstd19_ratio),
        ]
    };
    report.data.languages.iter().map(row).collect()
}

/// Of the last model first, whose samples are open; the others are folded.
fn samples<'a>(models: &'a [ModelReport], texts: &Texts) -> Vec<ModelSamples<'a>> {
    let of_model = |(i, model): (usize, &'a ModelReport)| {
        let samples = &model.company.as_ref()?.samples;
        let list = |title, class, is_right| SampleList {
            title,
            class,
            samples: samples.iter().filter(|sample| sample.is_right == is_right).collect(),
        };
        let lists =
            [list(texts.right_answers, "right", true), list(texts.wrong_answers, "wrong", false)];
        let lists = lists.into_iter().filter(|list| !list.samples.is_empty()).collect();
        Some(ModelSamples { model: &model.name, is_open: i == 0, lists })
    };
    models.iter().rev().enumerate().filter_map(of_model).collect()
}
