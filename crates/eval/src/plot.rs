//! Line plots as SVG that stands alone or inside a page, in light and dark, without script.

mod axis;
mod growth;

use std::fmt::Write as _;

use crate::Curve;
use axis::{Axis, Ends};
pub use growth::{GrowthPlot, growth_svg};

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 340.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 22.0;
const TOP: f64 = 62.0;
const BOTTOM: f64 = 54.0;
/// Between panels.
const GAP: f64 = 30.0;
/// Width of a sign of the labels, roughly: it only spaces the legend.
const SIGN_WIDTH: f64 = 6.8;

/// Colours follow the reader's system; the names are prefixed because a page shares its style with the plots in it.
const STYLE: &str = "
.plot { --plot-page: #ffffff; --plot-text: #1d2321; --plot-muted: #646d69; --plot-grid: #e4e7e2; --plot-0: #12706a; --plot-1: #b4690e; --plot-2: #5b6fae; --plot-3: #a3261b; }
@media (prefers-color-scheme: dark) { .plot { --plot-page: #1d2320; --plot-text: #e6eae7; --plot-muted: #98a39e; --plot-grid: #323a36; --plot-0: #4fb5a8; --plot-1: #e0a04e; --plot-2: #9fb0e8; --plot-3: #ff9d8f; } }
.plot-page { fill: var(--plot-page); }
.plot text { font: 12px ui-sans-serif, system-ui, 'Segoe UI', Roboto, 'Noto Sans', 'Liberation Sans', sans-serif; fill: var(--plot-muted); }
.plot .plot-panel { fill: var(--plot-text); font-weight: 600; font-size: 13px; }
.plot-grid { stroke: var(--plot-grid); stroke-width: 1; }
.plot-axis { stroke: var(--plot-muted); stroke-width: 1; }
.plot-line { fill: none; stroke-width: 2.2; stroke-linejoin: round; stroke-linecap: round; }
.plot-faint { fill: none; stroke-width: 1; stroke-opacity: .38; stroke-linejoin: round; }
.plot-s0 { stroke: var(--plot-0); } .plot-s1 { stroke: var(--plot-1); } .plot-s2 { stroke: var(--plot-2); } .plot-s3 { stroke: var(--plot-3); }
circle.plot-s0 { fill: var(--plot-0); } circle.plot-s1 { fill: var(--plot-1); } circle.plot-s2 { fill: var(--plot-2); } circle.plot-s3 { fill: var(--plot-3); }
";

/// How a series is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stroke {
    /// A line that reads well.
    Line,
    /// A thin pale line, behind others.
    Faint,
    /// A line with a dot at each point.
    Dots,
}

/// Points joined in order.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    /// Name in the legend; series of one name, colour and stroke share an entry.
    pub(crate) label: String,
    /// Index of the colour, of four.
    pub(crate) colour: usize,
    pub(crate) stroke: Stroke,
    /// Points that are not finite or beyond 1e300 are left out, and the line with them broken.
    pub(crate) points: Vec<(f64, f64)>,
}

/// One of the plots that stand side by side on a common vertical axis.
#[derive(Clone, Debug)]
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) series: Vec<Series>,
}

/// A figure of one or more panels; the first is as wide as two others.
#[derive(Clone, Debug)]
pub(crate) struct Figure {
    /// Distinguishes figures of one page: letters and hyphens.
    pub(crate) id: &'static str,
    /// Read aloud in place of the figure.
    pub(crate) title: String,
    /// What the figure shows, in figures.
    pub(crate) description: String,
    pub(crate) x_label: String,
    pub(crate) y_label: String,
    pub(crate) panels: Vec<Panel>,
}

/// The training loss of one or more runs against the tokens seen, each step faintly and its running mean over a
/// fortieth of the run. Stands alone as a file, and in a page.
#[must_use]
pub fn loss_curve_svg(curves: &[Curve]) -> String {
    let panel = |curve: &Curve| {
        let points: Vec<(f64, f64)> =
            curve.points.iter().map(|point| (point.tokens as f64, point.loss)).collect();
        let mean = running_mean(&points, points.len() / 40);
        let series = |label: &str, stroke, points| {
            let label = label.to_owned();
            Series { label, colour: 0, stroke, points }
        };
        Panel {
            title: curve.name.clone(),
            series: vec![
                series("loss of a step", Stroke::Faint, points),
                series("running mean", Stroke::Line, mean),
            ],
        }
    };
    let ends = curves.iter().filter_map(|curve| {
        let (first, last) = (curve.points.first()?, curve.points.last()?);
        let (from, to) = (first.loss, last.loss);
        Some(format!("{}: from {from:.2} to {to:.2} in {} steps", curve.name, last.step))
    });
    Figure {
        id: "loss",
        title: "Training loss".to_owned(),
        description: format!("{}.", ends.collect::<Vec<_>>().join("; ")),
        x_label: "tokens seen".to_owned(),
        y_label: "loss, nats per token".to_owned(),
        panels: curves.iter().map(panel).collect(),
    }
    .to_svg()
}

/// Bits per byte of the validation text against the tokens seen, for the runs that measured it; none if no run did.
#[must_use]
pub(crate) fn validation_curve_svg(curves: &[Curve]) -> Option<String> {
    let panel = |curve: &Curve| {
        let measured = curve.points.iter().filter_map(|point| {
            point.validation_bits_per_byte.map(|bits| (point.tokens as f64, bits))
        });
        let points: Vec<(f64, f64)> = measured.collect();
        let label = "validation".to_owned();
        let series = vec![Series { label, colour: 0, stroke: Stroke::Dots, points }];
        Panel { title: curve.name.clone(), series }
    };
    let panels: Vec<Panel> =
        curves.iter().map(panel).filter(|panel| !panel.series[0].points.is_empty()).collect();
    if panels.is_empty() {
        return None;
    }
    let ends = panels.iter().filter_map(|panel| {
        let (first, last) = (panel.series[0].points.first()?, panel.series[0].points.last()?);
        Some(format!("{}: from {:.3} to {:.3}", panel.title, first.1, last.1))
    });
    let figure = Figure {
        id: "validation",
        title: "Bits per byte of the validation text".to_owned(),
        description: format!("{}.", ends.collect::<Vec<_>>().join("; ")),
        x_label: "tokens seen".to_owned(),
        y_label: "bits per byte".to_owned(),
        panels,
    };
    Some(figure.to_svg())
}

/// The mean over the `reach` points before and after each point, fewer at the ends.
fn running_mean(points: &[(f64, f64)], reach: usize) -> Vec<(f64, f64)> {
    let mean = |i: usize| {
        // Equal reach on both sides keeps a slope where it is.
        let reach = reach.min(i).min(points.len() - 1 - i);
        let window = &points[i - reach..=i + reach];
        let sum: f64 = window.iter().map(|point| point.1).sum();
        (points[i].0, sum / window.len() as f64)
    };
    (0..points.len()).map(mean).collect()
}

/// Where a panel stands, and its axes.
struct Place {
    left: f64,
    right: f64,
    x: Axis,
}

impl Figure {
    /// The figure as one SVG element.
    pub(crate) fn to_svg(&self) -> String {
        let mut svg = String::with_capacity(1 << 15);
        let (id, title) = (self.id, escape(&self.title));
        let description = escape(&self.description);
        // Writing to a String cannot fail, here and below.
        let _ = write!(
            svg,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"plot\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
             aria-labelledby=\"{id}-title {id}-desc\">\n<title id=\"{id}-title\">{title}</title>\n\
             <desc id=\"{id}-desc\">{description}</desc>\n<style>{STYLE}</style>\n\
             <rect class=\"plot-page\" width=\"{WIDTH}\" height=\"{HEIGHT}\" rx=\"8\"/>\n"
        );
        let series = || self.panels.iter().flat_map(|panel| &panel.series);
        let y = Axis::over(
            series().flat_map(|series| series.points.iter().map(|p| p.1)),
            6,
            Ends::AtTicks,
        );
        let bottom = HEIGHT - BOTTOM;
        for tick in y.ticks() {
            let at = y.position(tick, bottom, TOP);
            let (label, text_y) = (y.label(tick), at + 4.0);
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{text_y:.1}\" text-anchor=\"end\">{label}</text>",
                LEFT - 9.0
            );
        }
        for (panel, place) in self.panels.iter().zip(self.places()) {
            write_panel(&mut svg, panel, &place, &y);
        }
        self.write_labels(&mut svg);
        svg.push_str("</svg>\n");
        svg
    }

    fn places(&self) -> Vec<Place> {
        let n = self.panels.len();
        let n_units = if n > 1 { n + 1 } else { 1 };
        let room = WIDTH - LEFT - RIGHT - GAP * (n.max(1) - 1) as f64;
        let mut left = LEFT;
        let mut place = |(panel_idx, panel): (usize, &Panel)| {
            let n_own = if n > 1 && panel_idx == 0 { 2.0 } else { 1.0 };
            let width = room * n_own / n_units as f64;
            let values = panel.series.iter().flat_map(|series| series.points.iter().map(|p| p.0));
            let x = Axis::over(values.chain([0.0]), (width / 70.0) as usize, Ends::AtValues);
            let place = Place { left, right: left + width, x };
            left += width + GAP;
            place
        };
        self.panels.iter().enumerate().map(&mut place).collect()
    }

    /// Axis labels and the legend.
    fn write_labels(&self, svg: &mut String) {
        let middle = (LEFT + WIDTH - RIGHT) / 2.0;
        let (x_label, y_label) = (escape(&self.x_label), escape(&self.y_label));
        let _ = write!(
            svg,
            "<text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{x_label}</text>\n\
             <text x=\"16\" y=\"22\">{y_label}</text>\n",
            HEIGHT - 12.0
        );
        let mut entries: Vec<(&str, usize, Stroke)> = Vec::new();
        for series in self.panels.iter().flat_map(|panel| &panel.series) {
            let entry = (series.label.as_str(), series.colour, series.stroke);
            if !entries.contains(&entry) {
                entries.push(entry);
            }
        }
        if entries.len() < 2 {
            return;
        }
        let width = |label: &str| 30.0 + SIGN_WIDTH * label.chars().count() as f64 + 16.0;
        let mut x = WIDTH - RIGHT - entries.iter().map(|entry| width(entry.0)).sum::<f64>() + 16.0;
        for (label, colour, stroke) in entries {
            let class = stroke.class();
            let (x_end, x_text) = (x + 22.0, x + 29.0);
            let _ = writeln!(
                svg,
                "<line class=\"{class} plot-s{}\" x1=\"{x:.1}\" x2=\"{x_end:.1}\" y1=\"18\" y2=\"18\"/>\
                 <text x=\"{x_text:.1}\" y=\"22\">{}</text>",
                colour % 4,
                escape(label)
            );
            x += width(label);
        }
    }
}

impl Stroke {
    fn class(self) -> &'static str {
        match self {
            Self::Faint => "plot-faint",
            Self::Line | Self::Dots => "plot-line",
        }
    }
}

fn write_panel(svg: &mut String, panel: &Panel, place: &Place, y: &Axis) {
    let bottom = HEIGHT - BOTTOM;
    let Place { left, right, x } = place;
    for tick in y.ticks() {
        let at = y.position(tick, bottom, TOP);
        let _ = writeln!(
            svg,
            "<line class=\"plot-grid\" x1=\"{left:.1}\" x2=\"{right:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>"
        );
    }
    let _ = writeln!(
        svg,
        "<line class=\"plot-axis\" x1=\"{left:.1}\" x2=\"{right:.1}\" y1=\"{bottom}\" y2=\"{bottom}\"/>"
    );
    for tick in x.ticks() {
        let at = x.position(tick, *left, *right);
        let _ = writeln!(
            svg,
            "<line class=\"plot-axis\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{bottom}\" y2=\"{}\"/>\
             <text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            bottom + 4.0,
            bottom + 18.0,
            x.label(tick)
        );
    }
    let title = escape(&panel.title);
    let _ = writeln!(
        svg,
        "<text class=\"plot-panel\" x=\"{left:.1}\" y=\"{:.1}\">{title}</text>",
        TOP - 13.0
    );
    for series in &panel.series {
        write_series(svg, series, place, y);
    }
}

fn write_series(svg: &mut String, series: &Series, place: &Place, y: &Axis) {
    let (class, colour) = (series.stroke.class(), series.colour % 4);
    let at = |&(px, py): &(f64, f64)| {
        let x = place.x.position(px, place.left, place.right);
        (x, y.position(py, HEIGHT - BOTTOM, TOP))
    };
    let mut path = String::new();
    let mut pen_down = false;
    for point in &series.points {
        if !is_drawable(point) {
            pen_down = false;
            continue;
        }
        let (x, y) = at(point);
        let _ = write!(path, "{}{x:.1} {y:.1}", if pen_down { "L" } else { "M" });
        pen_down = true;
    }
    if !path.is_empty() {
        let _ = writeln!(svg, "<path class=\"{class} plot-s{colour}\" d=\"{path}\"/>");
    }
    if series.stroke == Stroke::Dots || series.points.len() == 1 {
        for (x, y) in series.points.iter().filter(|point| is_drawable(point)).map(at) {
            let _ = writeln!(
                svg,
                "<circle class=\"plot-s{colour}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.6\"/>"
            );
        }
    }
}

fn is_drawable(point: &(f64, f64)) -> bool {
    axis::is_drawable(point.0) && axis::is_drawable(point.1)
}

/// Text for XML and HTML, in elements and in quoted attributes. Control characters that XML forbids become U+FFFD.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\t' | '\n' | '\r' => out.push(c),
            '\u{fffe}' | '\u{ffff}' => out.push(char::REPLACEMENT_CHARACTER),
            c if c < ' ' => out.push(char::REPLACEMENT_CHARACTER),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests;
