//! The cost of work against its size, measured and fitted.

use super::{Figure, Panel, Series, Stroke};

/// What is drawn of one kind of work.
#[derive(Clone, Debug)]
pub struct GrowthPlot {
    /// Distinguishes figures of one page: letters and hyphens.
    pub id: &'static str,
    /// What grows.
    pub title: String,
    /// What the figure shows, in figures.
    pub description: String,
    /// The size, with its unit.
    pub x_label: String,
    /// The cost, with its unit.
    pub y_label: String,
    /// Sizes and costs.
    pub measured: Vec<(f64, f64)>,
    /// Sizes and costs of the fitted law.
    pub fitted: Vec<(f64, f64)>,
}

/// The figure as one SVG element that stands alone as a file.
#[must_use]
pub fn growth_svg(plot: &GrowthPlot) -> String {
    let series = |label: &str, colour, stroke, points: &[(f64, f64)]| {
        let (label, points) = (label.to_owned(), points.to_vec());
        Series { label, colour, stroke, points }
    };
    Figure {
        id: plot.id,
        title: plot.title.clone(),
        description: plot.description.clone(),
        x_label: plot.x_label.clone(),
        y_label: plot.y_label.clone(),
        panels: vec![Panel {
            title: plot.title.clone(),
            series: vec![
                series("fitted", 1, Stroke::Faint, &plot.fitted),
                series("measured", 0, Stroke::Dots, &plot.measured),
            ],
        }],
    }
    .to_svg()
}
