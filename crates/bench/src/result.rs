//! The fixed form of `bench --json`.

use serde::Serialize;

use crate::machine::Machine;

/// What `bench --json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct BenchReport {
    /// Where it was measured.
    pub machine: Machine,
    /// The figures.
    pub results: Vec<BenchResult>,
}

/// One figure. Missing parts are null.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BenchResult {
    /// `prefill`, `decode`, `train_step`, ...
    pub work: &'static str,
    /// The model measured.
    pub model: String,
    /// The number that varies: prompt length, context, users, as a string.
    pub detail: String,
    /// The figure.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// Fraction of the machine's limit measured in the same run.
    pub roofline_fraction: Option<f64>,
    /// The peer measured beside it.
    pub peer: Option<String>,
    /// The peer's figure.
    pub peer_value: Option<f64>,
    /// `value / peer_value`.
    pub ratio: Option<f64>,
}

impl BenchResult {
    /// A figure without a peer.
    #[must_use]
    pub fn new(work: &'static str, model: &str, detail: String, value: f64) -> Self {
        Self {
            work,
            model: model.to_owned(),
            detail,
            value,
            unit: "tokens/s",
            roofline_fraction: None,
            peer: None,
            peer_value: None,
            ratio: None,
        }
    }

    /// Sets the peer's figure and the ratio.
    #[must_use]
    pub fn with_peer(mut self, peer: &str, peer_value: f64) -> Self {
        self.peer = Some(peer.to_owned());
        self.peer_value = Some(peer_value);
        self.ratio = Some(self.value / peer_value);
        self
    }
}

/// The middle value; the mean of the two middle ones of an even number.
///
/// # Panics
/// When there are no values.
#[must_use]
pub fn median(values: &mut [f64]) -> f64 {
    assert!(!values.is_empty(), "no values");
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    if values.len() % 2 == 1 { values[half] } else { f64::midpoint(values[half - 1], values[half]) }
}
