//! Growth as JSON, as tables, and in a document with plots.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use eval::{GrowthPlot, growth_svg};
use formats::FormatError;
use formats::durable::write_bytes_atomically;
use serde::Serialize;

use super::{Growth, Law};
use crate::machine::Machine;

/// Between these lines of a document stand the figures; the rest is a person's.
const BEGIN: &str = "<!-- figures: begin -->";
const END: &str = "<!-- figures: end -->";

/// Points of a fitted line.
const N_FITTED: usize = 60;

/// What a run measured, and where.
#[derive(Clone, Debug, Serialize)]
pub struct GrowthReport {
    /// Where it was measured.
    pub machine: Machine,
    /// The model that read and wrote.
    pub model: String,
    /// The figures.
    pub growth: Vec<Growth>,
}

/// Why a document could not be rewritten.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DocumentError {
    /// The document cannot be read, or its folder of plots not made.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// `read` or `create`.
        action: &'static str,
        /// The document or the folder.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// There is no place for the figures.
    #[error("{} has no line `{BEGIN}` before a line `{END}`", path.display())]
    NoPlace {
        /// The document.
        path: PathBuf,
    },
    /// A file cannot be written.
    #[error(transparent)]
    Write(#[from] FormatError),
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> DocumentError {
    move |source| DocumentError::Io { action, path: path.to_owned(), source }
}

impl GrowthReport {
    /// The laws, one line each.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for growth in &self.growth {
            let _ = writeln!(text, "{}: {}", growth.title, growth.summary());
        }
        text
    }

    /// Rewrites the figures of a document, and the plots in `images` beside it. `when` says when it was measured, `command` how.
    ///
    /// # Errors
    /// When the document cannot be read or has no place for figures, or a file cannot be written.
    pub fn write(&self, path: &Path, when: &str, command: &str) -> Result<(), DocumentError> {
        let document = fs::read_to_string(path).map_err(io("read", path))?;
        let figures = self.figures(when, command);
        let no_place = || DocumentError::NoPlace { path: path.to_owned() };
        let document = with_figures(&document, &figures).ok_or_else(no_place)?;
        let images = path.parent().unwrap_or(Path::new("")).join("images");
        fs::create_dir_all(&images).map_err(io("create", &images))?;
        for growth in &self.growth {
            write_bytes_atomically(&images.join(growth.image()), growth.svg().as_bytes())?;
        }
        Ok(write_bytes_atomically(path, document.as_bytes())?)
    }

    fn figures(&self, when: &str, command: &str) -> String {
        let Machine { cpu, n_threads, kernel_family, .. } = &self.machine;
        let mut text = format!(
            "Measured on {when} by `{command}` on {cpu}, {n_threads} threads, kernels {kernel_family}; read and written by {}.\n\n\
             | Work | Grows | From | To | Exponent | At the end |\n|---|---|---|---|---|---|\n",
            self.model
        );
        for growth in &self.growth {
            text.push_str(&growth.row());
        }
        for growth in &self.growth {
            let _ = write!(text, "\n![{}](images/{})\n", growth.description(), growth.image());
        }
        text
    }
}

/// The document with other figures; `None` where it has no place for them.
fn with_figures(document: &str, figures: &str) -> Option<String> {
    let (before, rest) = document.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n\n{}\n\n{END}{after}", figures.trim()))
}

/// Three digits.
fn short(value: f64) -> String {
    let n_decimals = (2.0 - value.abs().max(1e-9).log10().floor()).clamp(0.0, 9.0) as usize;
    format!("{value:.n_decimals$}")
}

fn exponent(law: Option<Law>) -> String {
    law.map_or_else(|| "-".to_owned(), |law| format!("{:.2}", law.exponent))
}

impl Growth {
    fn image(&self) -> String {
        format!("growth-{}.svg", self.name)
    }

    /// A point in words.
    fn at(&self, point: Option<&(usize, f64)>) -> String {
        let text = |&(size, cost): &(usize, f64)| format!("{size}: {} {}", short(cost), self.unit);
        point.map_or_else(String::new, text)
    }

    fn summary(&self) -> String {
        let (first, last) = (self.at(self.points.first()), self.at(self.points.last()));
        let (all, end) = (exponent(self.law()), exponent(self.last_law()));
        format!("{first} to {last}, exponent {all}, at the end {end}")
    }

    fn description(&self) -> String {
        format!("{} against {}, {}", self.title, self.size, self.summary())
    }

    fn row(&self) -> String {
        let (first, last) = (self.at(self.points.first()), self.at(self.points.last()));
        let (all, end) = (exponent(self.law()), exponent(self.last_law()));
        format!("| {} | {} | {first} | {last} | {all} | {end} |\n", self.title, self.size)
    }

    fn svg(&self) -> String {
        let most = self.points.last().map_or(0, |point| point.0) as f64;
        let sizes = (1..=N_FITTED).map(|i| most * i as f64 / N_FITTED as f64);
        let fitted = self.law().map(|law| sizes.map(|size| (size, law.cost(size))).collect());
        growth_svg(&GrowthPlot {
            id: self.name,
            title: self.title.to_owned(),
            description: self.description(),
            x_label: self.size.to_owned(),
            y_label: self.unit.to_owned(),
            measured: self.points.iter().map(|&(size, cost)| (size as f64, cost)).collect(),
            fitted: fitted.unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use testkit::test_dir::TestDir;

    use super::*;
    use crate::machine::Roofline;

    fn report() -> GrowthReport {
        let roofline = Roofline {
            read_bytes_per_s_one_thread: 1.0,
            read_bytes_per_s: 1.0,
            bf16_flops: 1.0,
            f32_flops: 1.0,
            packed_ops: 1.0,
        };
        let machine = Machine {
            cpu: "a processor".to_owned(),
            n_threads: 2,
            kernel_family: "avx2",
            features: Vec::new(),
            roofline,
            gpu: None,
        };
        let points = vec![(512, 0.0312), (1024, 0.0624), (2048, 0.2496)];
        let growth =
            Growth { name: "decode", title: "Writing", size: "tokens", unit: "ms", points };
        GrowthReport { machine, model: "1b-q4km.gguf".to_owned(), growth: vec![growth] }
    }

    #[test]
    fn figures_of_a_document_are_replaced_and_its_words_stay() {
        let scratch = TestDir::new("bench-growth");
        let path = scratch.path().join("performance.md");
        fs::write(&path, format!("# Performance\n\n{BEGIN}\nold\n{END}\n\nWords.\n")).unwrap();
        for _ in 0..2 {
            report().write(&path, "a day", "galerne bench growth").unwrap();
        }
        let text = fs::read_to_string(&path).unwrap();
        assert!(
            text.starts_with(&format!("# Performance\n\n{BEGIN}\n\nMeasured on a day")),
            "{text}"
        );
        assert!(
            text.ends_with(&format!("\n\n{END}\n\nWords.\n")) && !text.contains("old"),
            "{text}"
        );
        let row = "| Writing | tokens | 512: 0.0312 ms | 2048: 0.250 ms | 1.50 | 2.00 |";
        assert!(text.contains(row), "{text}");
        assert!(text.contains("](images/growth-decode.svg)"), "{text}");
        let svg = fs::read_to_string(scratch.path().join("images/growth-decode.svg")).unwrap();
        assert!(svg.contains("fitted") && svg.contains("<circle"), "{svg}");
        fs::write(&path, format!("{END} {BEGIN}")).unwrap();
        let error = report().write(&path, "a day", "x").unwrap_err().to_string();
        assert!(error.contains("performance.md has no line"), "{error}");
    }

    #[test]
    fn costs_have_three_digits() {
        let texts = [0.03124, 1.0, 25.04, 512.4, 20_480.0, 0.0].map(short);
        assert_eq!(texts, ["0.0312", "1.00", "25.0", "512", "20480", "0.000000000"]);
    }
}
