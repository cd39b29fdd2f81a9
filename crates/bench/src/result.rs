//! The fixed form of `bench --json`.

use serde::Serialize;

use crate::machine::Machine;
use crate::peer::{Peer, PeerFigure};

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
    /// Mean divergence of the logits from those of the file's numbers in f32, nats a token, computed as what is timed.
    pub divergence: Option<f64>,
    /// That of the peer on the same file.
    pub peer_divergence: Option<f64>,
    /// The settings that the peer says it was measured with.
    pub peer_settings: Option<String>,
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
            divergence: None,
            peer_divergence: None,
            peer_settings: None,
        }
    }

    /// Sets the peer's figure, the median of what it gave, its settings and the ratio.
    ///
    /// # Panics
    /// When the peer gave nothing.
    #[must_use]
    pub fn with_peer(mut self, peer: Peer, figures: &[PeerFigure]) -> Self {
        let mut values: Vec<f64> = figures.iter().map(|figure| figure.value).collect();
        let peer_value = median(&mut values);
        self.peer = Some(peer.name().to_owned());
        self.peer_value = Some(peer_value);
        self.ratio = Some(self.value / peer_value);
        self.peer_settings.clone_from(&figures[0].settings);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_of_medians_and_above_one_when_the_peer_is_slower() {
        let figure = |value, settings: &str| {
            let settings = Some(settings.to_owned());
            PeerFigure { value, settings, n_tokens: None }
        };
        let figures = [figure(5.0, "a"), figure(2.0, "b"), figure(4.0, "c")];
        let result = BenchResult::new("decode", "m", "0".to_owned(), 6.0);
        let result = result.with_peer(Peer::LlamaCpp, &figures);
        assert_eq!((result.peer_value, result.ratio), (Some(4.0), Some(1.5)));
        let json = serde_json::to_value(&result).unwrap();
        assert_eq!((&json["peer"], &json["peer_settings"]), (&"llama.cpp".into(), &"a".into()));
        assert!(json["divergence"].is_null() && json["peer_divergence"].is_null());
    }
}
