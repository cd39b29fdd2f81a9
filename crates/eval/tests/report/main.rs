//! The forms of a report: what they hold, that they are well formed, that text in them stays text.

mod made_up;

use std::path::Path;

use eval::EvalError;
use eval::report::Report;
use made_up::report;

const HOSTILE: &str =
    "</td></title><script>alert(\"x\")</script><img src=x onerror='y'>&amp;{{ 7 * 7 }}\n\u{1b}[31m";

/// A report in which every text from outside is hostile.
fn hostile_report() -> Report {
    let mut report = report();
    let hostile = || HOSTILE.to_owned();
    report.name = hostile();
    report.date = hostile();
    report.program = hostile();
    report.machine.processor = hostile();
    report.machine.kernel_family = hostile();
    report.stages[0].name = hostile();
    report.curves[0].name = hostile();
    report.data.sha256 = hostile();
    report.data.licence = Some(hostile());
    report.data.languages[0].language = hostile();
    report.data.origin = data::sheet::Origin::Files { path: hostile() };
    for model in &mut report.models {
        model.name = hostile();
        model.directory = hostile();
        model.bits_per_byte[0].language = hostile();
        let company = model.company.as_mut().expect("the made-up models have scores");
        company.kinds[0].name = hostile();
        company.languages[0].name = hostile();
        company.n_unfinished = 3;
        for sample in &mut company.samples {
            sample.kind = hostile();
            sample.question = hostile();
            sample.expected = hostile();
            sample.got = hostile();
        }
    }
    report
}

fn read(json: &str) -> Result<Report, EvalError> {
    Report::from_json(json, Path::new("report.json"))
}

/// Checks that tags are closed in order and hold no raw text, and returns their names.
fn tags(html: &str) -> Vec<String> {
    let html = html.strip_prefix("<!doctype html>").expect("a page begins with its type");
    let (mut open, mut names) = (Vec::new(), Vec::new());
    let mut rest = html;
    while let Some(start) = rest.find('<') {
        let end = start + rest[start..].find('>').expect("a tag has an end");
        let tag = &rest[start + 1..end];
        rest = &rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(name), "closing tag before {rest:.80}");
            continue;
        }
        assert_eq!(tag.matches('"').count() % 2, 0, "quotes of <{tag}>");
        let name: String = tag.chars().take_while(char::is_ascii_alphanumeric).collect();
        if name != "meta" && !tag.ends_with('/') {
            open.push(name.clone());
        }
        names.push(name);
    }
    assert!(open.is_empty(), "never closed: {open:?}");
    names
}

#[test]
fn the_page_is_well_formed_and_asks_for_nothing_outside() {
    let html = report().to_html();
    let names = tags(&html);
    let count = |name: &str| names.iter().filter(|other| *other == name).count();
    assert_eq!((count("script"), count("img"), count("link"), count("iframe")), (0, 0, 0, 0));
    // Bars (three models in 4 + 12 rows, 7 stages) and two figures.
    assert_eq!(count("svg"), 3 * 16 + 7 + 2);
    let outside = html.replace("http://www.w3.org/2000/svg", "");
    for request in ["http:", "https:", "url(", "@import", "src=", "href="] {
        assert!(!outside.contains(request), "{request}");
    }
}

#[test]
fn hostile_text_stays_text_on_the_page() {
    let html = hostile_report().to_html();
    let names = tags(&html);
    assert!(!names.iter().any(|name| name == "script" || name == "img"));
    // A report without hostile text has the same tags in the same order.
    let mut calm = report();
    for model in &mut calm.models {
        model.company.as_mut().unwrap().n_unfinished = 3;
    }
    assert_eq!(names, tags(&calm.to_html()));
    assert!(html.matches("alert(").count() > 30);
    assert!(html.contains("{{ 7 * 7 }}"), "braces are no template");
}

#[test]
fn the_page_holds_the_figures() {
    let mut report = report();
    let company = report.models[2].company.as_mut().unwrap();
    company.all.accuracy = 0.8347;
    company.all.interval = eval::intervals::Interval { low: 0.7912, high: 0.8701 };
    let html = report.to_html().replace(['\u{a0}', '\u{202f}'], " ").replace("&#160;", " ");
    for text in ["<b>83.5 %</b>", "79.1 to 87.1", "1.214", "4.92 M", "78.1 k", "6 min 43 s"] {
        assert!(html.contains(text), "{text}");
    }
}

#[test]
fn the_table_is_aligned_and_at_most_100_columns_wide() {
    for report in [report(), hostile_report()] {
        let text = report.to_text();
        for line in text.lines() {
            assert!(line.chars().count() <= 100, "{line}");
            assert!(!line.contains(char::is_control), "{line:?}");
        }
    }
    let text = report().to_text();
    assert!(text.contains("4 915 200 parameters, 31.5 M tokens of pre-training at "), "{text}");
    let kinds = text.lines().filter(|line| line.starts_with("  ") && line.contains(" to "));
    let widths: Vec<usize> = kinds.map(|line| line.chars().count()).collect();
    assert_eq!(widths, [96; 16]);
}

#[test]
fn four_models_go_into_two_tables() {
    let mut report = report();
    report.models.push(report.models[0].clone());
    let text = report.to_text();
    assert_eq!(text.matches("company accuracy").count(), 2);
    assert!(text.lines().all(|line| line.chars().count() <= 100));
    tags(&report.to_html());
}

#[test]
fn a_report_survives_json() {
    for report in [report(), hostile_report()] {
        assert_eq!(read(&report.to_json().unwrap()).unwrap(), report);
    }
}

#[test]
fn a_newer_report_is_refused_by_version() {
    let newer =
        report().to_json().unwrap().replacen("\"format_version\": 1", "\"format_version\": 2", 1);
    let error = read(&newer).unwrap_err().to_string();
    assert_eq!(error, "report.json has format_version 2, this program reads up to 1");
    assert!(read("{}").unwrap_err().to_string().contains("format_version"));
    assert!(matches!(read("[").unwrap_err(), EvalError::Json(_)));
}

#[test]
fn a_number_that_json_cannot_hold_is_named() {
    let mut report = report();
    report.models[1].bits_per_byte[2].bits_per_byte = f64::NAN;
    let error = report.to_json().unwrap_err().to_string();
    assert_eq!(error, "bits per byte of chat in de of the report is NaN, expected a finite number");
}

#[test]
fn a_report_of_nothing_has_all_forms() {
    let mut empty = report();
    empty.models.clear();
    empty.curves.clear();
    empty.stages.clear();
    empty.data.languages.clear();
    tags(&empty.to_html());
    assert!(empty.to_text().starts_with("quickstart-1"));
    assert!(empty.summary().models.is_empty());
    let mut unasked = report();
    unasked.models[0].company = None;
    tags(&unasked.to_html());
    assert_eq!(unasked.summary().company_accuracy.len(), 2);
}

#[test]
fn the_summary_has_the_fixed_fields() {
    let summary = serde_json::to_value(report().summary()).unwrap();
    assert_eq!(summary["bits_per_byte"]["fr"], 1.214);
    assert_eq!(summary["parameters"], 4_915_200);
    assert!(summary["company_accuracy"]["specialised"].as_f64().unwrap() > 0.7);
    assert_eq!(summary["models"]["base"], "/home/anna/.galerne/models/quickstart-1-base");
    // The order of an object's fields means nothing.
    let mut fields: Vec<&String> = summary.as_object().unwrap().keys().collect();
    fields.sort();
    let expected =
        ["bits_per_byte", "company_accuracy", "models", "parameters", "seconds", "tokens_per_s"];
    assert_eq!(fields, expected);
}
