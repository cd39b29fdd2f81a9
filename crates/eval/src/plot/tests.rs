//! Figures are well-formed XML, whatever the text and the numbers.

use super::*;
use crate::CurvePoint;
use proptest::prelude::*;

/// Checks tags, attributes and entities of the XML that this crate writes, and counts elements by name.
fn elements(xml: &str) -> std::collections::BTreeMap<String, usize> {
    let mut open: Vec<&str> = Vec::new();
    let mut counts = std::collections::BTreeMap::new();
    let mut rest = xml;
    while let Some(start) = rest.find('<') {
        assert_entities(&rest[..start]);
        let end = start + rest[start..].find('>').expect("a tag has an end");
        let tag = &rest[start + 1..end];
        rest = &rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "closing tag");
            continue;
        }
        let (body, is_closed) = tag.strip_suffix('/').map_or((tag, false), |body| (body, true));
        let name = body.split(' ').next().expect("a tag has a name");
        assert!(name.chars().all(|c| c.is_ascii_alphanumeric()), "name {name:?}");
        assert_attributes(&body[name.len()..]);
        *counts.entry(name.to_owned()).or_default() += 1;
        if !is_closed {
            open.push(name);
        }
    }
    assert!(rest.trim().is_empty() && open.is_empty(), "left: {rest:?} {open:?}");
    counts
}

fn assert_entities(text: &str) {
    for (at, _) in text.match_indices('&') {
        let known = ["&amp;", "&lt;", "&gt;", "&quot;", "&#39;"];
        assert!(known.iter().any(|entity| text[at..].starts_with(entity)), "{}", &text[at..]);
    }
    let forbidden = |c: char| c < ' ' && !matches!(c, '\n' | '\t' | '\r');
    assert!(!text.contains(forbidden), "control character in {text:?}");
}

fn assert_attributes(mut text: &str) {
    while !text.trim().is_empty() {
        let (name, rest) = text.split_once("=\"").expect("an attribute has a quoted value");
        assert!(name.trim().chars().all(|c| c.is_ascii_alphanumeric() || c == '-'), "{name:?}");
        let (value, rest) = rest.split_once('"').expect("the value has an end");
        assert_entities(value);
        assert!(!value.contains("NaN") && !value.contains("inf"), "{name}={value}");
        text = rest;
    }
}

fn curve(name: &str, n: u64) -> Curve {
    let points = (1..=n).map(|step| CurvePoint {
        step,
        tokens: step * 8192,
        loss: 9.0 / (step as f64).sqrt(),
        validation_bits_per_byte: step.is_multiple_of(50).then(|| 3.0 / (step as f64).sqrt()),
    });
    Curve { name: name.to_owned(), points: points.collect() }
}

#[test]
fn a_loss_curve_has_a_panel_for_each_run_with_two_lines() {
    let svg =
        loss_curve_svg(&[curve("pre-training", 400), curve("chat", 80), curve("company", 60)]);
    let counts = elements(&svg);
    assert_eq!(counts["path"], 6);
    assert_eq!((counts["title"], counts["desc"], counts["svg"]), (1, 1, 1));
    assert_eq!(svg.matches("plot-panel\"").count(), 3);
    assert_eq!(svg.matches(">running mean<").count(), 1, "one entry in the legend");
    assert!(svg.contains("pre-training: from 9.00 to 0.45 in 400 steps"));
}

#[test]
fn validation_is_drawn_for_the_runs_that_measured_it() {
    let svg = validation_curve_svg(&[curve("pre-training", 400), curve("chat", 20)]).unwrap();
    let counts = elements(&svg);
    assert_eq!((counts["path"], counts["circle"]), (1, 8));
    assert_eq!(validation_curve_svg(&[curve("chat", 20)]), None);
}

#[test]
fn the_running_mean_keeps_a_slope_and_the_ends() {
    let line: Vec<(f64, f64)> = (0..50).map(|i| (f64::from(i), 3.0 * f64::from(i))).collect();
    for (mean, point) in running_mean(&line, 7).iter().zip(&line) {
        assert!((mean.1 - point.1).abs() < 1e-9);
    }
    assert!(running_mean(&[], 3).is_empty());
}

#[test]
fn hostile_names_stay_text() {
    let hostile = "</title><script>alert('x')</script>&\"\u{0}\u{1b}";
    let svg = loss_curve_svg(&[curve(hostile, 30)]);
    assert!(!elements(&svg).contains_key("script"));
    assert!(svg.contains("&lt;script&gt;alert(&#39;x&#39;)"));
}

#[test]
fn no_runs_and_runs_of_no_or_one_step_are_drawn() {
    for curves in [vec![], vec![curve("a", 0)], vec![curve("a", 1)]] {
        elements(&loss_curve_svg(&curves));
    }
}

proptest! {
    #[test]
    fn any_text_and_any_numbers_give_well_formed_xml(
        name in any::<String>(),
        losses in proptest::collection::vec(any::<f64>(), 0..12),
    ) {
        let point = |(i, &loss): (usize, &f64)| CurvePoint {
            step: i as u64,
            tokens: i as u64,
            loss,
            validation_bits_per_byte: Some(loss),
        };
        let points = losses.iter().enumerate().map(point).collect();
        let curves = [Curve { name, points }];
        elements(&loss_curve_svg(&curves));
        if let Some(svg) = validation_curve_svg(&curves) {
            elements(&svg);
        }
    }
}
