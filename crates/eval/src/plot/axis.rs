//! Axes with round ticks.

/// Largest share of the span that may be added so that zero is on the axis.
const ZERO_REACH: f64 = 0.5;

/// A range of values with ticks at multiples of a round step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Axis {
    low: f64,
    high: f64,
    step: f64,
}

/// Where an axis ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ends {
    /// At the first tick beyond the values.
    AtTicks,
    /// At the outermost values.
    AtValues,
}

impl Axis {
    /// An axis that holds all drawable values (0 to 1 without any), with about `n_steps` steps of 1, 2 or 5 times a power of
    /// ten. Zero is on it when the values come near.
    pub(crate) fn over(values: impl Iterator<Item = f64>, n_steps: usize, ends: Ends) -> Self {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|&value| is_drawable(value)) {
            low = low.min(value);
            high = high.max(value);
        }
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        if low > 0.0 && low < ZERO_REACH * (high - low) {
            low = 0.0;
        }
        // A range too small for its own rounding, or none, is widened about its middle.
        let least = (low.abs().max(high.abs()) * 1e-9).max(f64::MIN_POSITIVE.sqrt());
        if high - low < least {
            let half = if low == 0.0 { 1.0 } else { low.abs() / 2.0 };
            (low, high) = (low - half, high + half);
        }
        let step = round_step((high / 2.0 - low / 2.0) / (n_steps.max(1) as f64 / 2.0));
        if ends == Ends::AtTicks {
            (low, high) = ((low / step).floor() * step, (high / step).ceil() * step);
        }
        Self { low, high, step }
    }

    /// The values at ticks, ascending.
    pub(crate) fn ticks(&self) -> impl Iterator<Item = f64> + use<> {
        // An end that is a multiple of the step keeps its tick in spite of rounding.
        let first = (self.low / self.step - 1e-6).ceil() as i64;
        let last = (self.high / self.step + 1e-6).floor() as i64;
        let step = self.step;
        (first..=last).map(move |tick| tick as f64 * step)
    }

    /// Where a value stands when the axis reaches from `from` to `to`.
    pub(crate) fn position(&self, value: f64, from: f64, to: f64) -> f64 {
        from + (value - self.low) / (self.high - self.low) * (to - from)
    }

    /// A tick's value with as many decimals as the step needs, in thousands, millions and billions where that is shorter.
    pub(crate) fn label(&self, tick: f64) -> String {
        let largest = self.low.abs().max(self.high.abs());
        let (unit, suffix) = match largest {
            x if x >= 1e9 => (1e9, " G"),
            x if x >= 1e6 => (1e6, " M"),
            x if x >= 1e4 => (1e3, " k"),
            _ => (1.0, ""),
        };
        let n_decimals = (-(self.step / unit).log10() - 1e-9).ceil().clamp(0.0, 12.0) as usize;
        let suffix = if tick == 0.0 { "" } else { suffix };
        let n_decimals = if tick == 0.0 { 0 } else { n_decimals };
        format!("{:.n_decimals$}{suffix}", tick / unit)
    }
}

/// Whether a value can stand on an axis: finite, and far enough from the largest number to round up.
pub(crate) fn is_drawable(value: f64) -> bool {
    value.abs() <= 1e300
}

/// The smallest of 1, 2 or 5 times a power of ten that is at least `step`.
fn round_step(step: f64) -> f64 {
    let power = 10_f64.powf(step.log10().floor());
    let factors = [1.0, 2.0, 5.0];
    let found = factors.into_iter().find(|factor| factor * power >= step * (1.0 - 1e-9));
    found.unwrap_or(10.0) * power
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn labels(values: &[f64], n_steps: usize) -> Vec<String> {
        let axis = Axis::over(values.iter().copied(), n_steps, Ends::AtTicks);
        axis.ticks().map(|tick| axis.label(tick)).collect()
    }

    #[test]
    fn ticks_are_round_and_zero_is_on_a_near_axis() {
        assert_eq!(labels(&[1.3, 8.9], 5), ["0", "2", "4", "6", "8", "10"]);
        assert_eq!(labels(&[2.04, 2.13], 5), ["2.04", "2.06", "2.08", "2.10", "2.12", "2.14"]);
        assert_eq!(labels(&[0.0, 31e6], 4), ["0", "10 M", "20 M", "30 M", "40 M"]);
        assert_eq!(labels(&[0.0, 1.4e6], 3), ["0", "0.5 M", "1.0 M", "1.5 M"]);
        assert_eq!(labels(&[0.0, 40_000.0], 2), ["0", "20 k", "40 k"]);
    }

    #[test]
    fn an_axis_may_end_at_its_values() {
        let axis = Axis::over([0.0, 31e6].into_iter(), 4, Ends::AtValues);
        let labels: Vec<String> = axis.ticks().map(|tick| axis.label(tick)).collect();
        assert_eq!(labels, ["0", "10 M", "20 M", "30 M"]);
        assert_eq!(axis.position(31e6, 0.0, 310.0), 310.0);
    }

    #[test]
    fn no_values_and_one_value_have_an_axis() {
        assert_eq!(labels(&[], 2), ["0", "0.5", "1.0"].map(String::from));
        assert_eq!(labels(&[f64::NAN, f64::INFINITY], 2).len(), 3);
        let axis = Axis::over([3.0].into_iter(), 4, Ends::AtTicks);
        assert!(axis.position(3.0, 0.0, 1.0) > 0.2 && axis.position(3.0, 0.0, 1.0) < 0.8);
    }

    proptest! {
        #[test]
        fn every_value_lies_between_few_ticks(
            values in proptest::collection::vec(-1e12_f64..1e12, 1..20),
            scale in -9_i32..9,
            n_steps in 1_usize..9,
        ) {
            let values: Vec<f64> = values.iter().map(|value| value * 10_f64.powi(scale)).collect();
            for (ends, fewest) in [(Ends::AtTicks, 2), (Ends::AtValues, 0)] {
                let axis = Axis::over(values.iter().copied(), n_steps, ends);
                let ticks = axis.ticks().count();
                prop_assert!((fewest..=n_steps + 3).contains(&ticks), "{} ticks", ticks);
                for value in values.iter().copied().chain(axis.ticks()) {
                    let at = axis.position(value, 0.0, 1.0);
                    prop_assert!((-1e-5..=1.0 + 1e-5).contains(&at), "{} at {}", value, at);
                }
            }
        }
    }
}
