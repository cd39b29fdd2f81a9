//! Training curves, read from the `metrics.jsonl` of a run.

use std::path::Path;

use formats::durable::read_text;
use serde::{Deserialize, Serialize};

use crate::EvalError;

/// Points a curve keeps at most; a longer one is averaged in groups of equal size.
const MAX_POINTS: usize = 1000;

/// Largest `metrics.jsonl` that is read: the lines of about a million steps.
const MAX_METRICS_BYTES: u64 = 256 << 20;

/// One point of a curve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// Steps done.
    pub step: u64,
    /// Input tokens since the run began.
    pub tokens: u64,
    /// Mean training loss, nats per token.
    pub loss: f64,
    /// Bits per byte of the validation text, where it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_bits_per_byte: Option<f64>,
}

/// How one training run went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// What was trained, for people: `base`, `chat`, `specialised`.
    pub name: String,
    /// By ascending step.
    pub points: Vec<CurvePoint>,
}

/// One line of `metrics.jsonl`, as far as it is read here.
#[derive(Deserialize)]
struct MetricsLine {
    #[serde(flatten)]
    point: CurvePoint,
    tokens_per_s: f64,
}

impl Curve {
    /// Reads a run's `metrics.jsonl`: the curve, and the mean speed over all steps in input tokens
    /// per second, none of a run without a step. Of more than 1000 lines, groups of equal size
    /// become one point: step and tokens of the last line, the mean loss, the last validation. A
    /// last line without a line end is one that is being written, and is left out.
    ///
    /// # Errors
    /// When the file cannot be read, or a line is none that training writes.
    pub fn read(name: &str, path: &Path) -> Result<(Self, Option<f64>), EvalError> {
        let text = read_text(path, MAX_METRICS_BYTES)?;
        let end = text.rfind('\n').map_or(0, |end| end + 1);
        let mut points: Vec<CurvePoint> = Vec::new();
        let mut seconds = 0.0;
        for (line_idx, line) in text[..end].lines().enumerate() {
            let wrong = |detail| {
                let path = path.to_owned();
                EvalError::MetricsLine { path, line: line_idx + 1, detail }
            };
            let MetricsLine { point, tokens_per_s } =
                serde_json::from_str(line).map_err(|error| wrong(error.to_string()))?;
            let (last_step, last_tokens) =
                points.last().map_or((0, 0), |last| (last.step, last.tokens));
            let CurvePoint { step, tokens, .. } = point;
            if step <= last_step {
                let expected = "expected a later one";
                return Err(wrong(format!("step {step} after step {last_step}, {expected}")));
            }
            if tokens < last_tokens {
                let expected = "expected no fewer";
                return Err(wrong(format!("{tokens} tokens after {last_tokens}, {expected}")));
            }
            if tokens_per_s <= 0.0 {
                let expected = "expected a positive number";
                return Err(wrong(format!("tokens_per_s is {tokens_per_s}, {expected}")));
            }
            seconds += (tokens - last_tokens) as f64 / tokens_per_s;
            points.push(point);
        }
        let n_tokens = points.last().map_or(0, |last| last.tokens);
        let tokens_per_s = (seconds > 0.0).then_some(n_tokens as f64 / seconds);
        Ok((Self { name: name.to_owned(), points: thin(&points, MAX_POINTS) }, tokens_per_s))
    }
}

/// Groups neighbours so that at most `max_points` stay.
fn thin(points: &[CurvePoint], max_points: usize) -> Vec<CurvePoint> {
    let group_len = points.len().div_ceil(max_points).max(1);
    let mean = |group: &[CurvePoint]| {
        let last = group[group.len() - 1];
        CurvePoint {
            loss: group.iter().map(|point| point.loss).sum::<f64>() / group.len() as f64,
            validation_bits_per_byte: group
                .iter()
                .rev()
                .find_map(|point| point.validation_bits_per_byte),
            ..last
        }
    };
    points.chunks(group_len).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;
    use testkit::test_dir::TestDir;

    fn file(name: &str, text: &str) -> (TestDir, PathBuf) {
        let dir = TestDir::new(name);
        let path = dir.join("metrics.jsonl");
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    #[test]
    fn lines_of_training_become_points_and_a_torn_end_is_left_out() {
        let text = concat!(
            r#"{"step":1,"tokens":512,"loss":8.5,"grad_norm":2.0,"tokens_per_s":512.0}"#,
            "\n",
            r#"{"step":2,"tokens":1024,"loss":8.0,"tokens_per_s":256.0,"validation_bits_per_byte":2.5}"#,
            "\n",
            r#"{"step":3,"tok"#,
        );
        let (_dir, path) = file("curve-lines", text);
        let (curve, tokens_per_s) = Curve::read("pre-training", &path).unwrap();
        assert_eq!(curve.points.len(), 2);
        assert_eq!(curve.points[0].validation_bits_per_byte, None);
        assert_eq!(curve.points[1].validation_bits_per_byte, Some(2.5));
        assert_eq!(curve.points[1].tokens, 1024);
        // A second for the first step and two for the other.
        assert_eq!(tokens_per_s, Some(1024.0 / 3.0));
        let (_dir, path) = file("curve-empty", "");
        assert_eq!(Curve::read("x", &path).unwrap().1, None);
    }

    #[test]
    fn a_foreign_line_is_refused_by_number() {
        let good = "{\"step\":1,\"tokens\":1,\"loss\":1.0,\"tokens_per_s\":1.0}\n";
        for bad in [
            "{\"step\":2}\n",
            "\n",
            good,
            "nan\n",
            "{\"step\":2,\"tokens\":2,\"loss\":1.0}\n",
            "{\"step\":2,\"tokens\":2,\"loss\":1.0,\"tokens_per_s\":0.0}\n",
            "{\"step\":2,\"tokens\":0,\"loss\":1.0,\"tokens_per_s\":1.0}\n",
        ] {
            let (_dir, path) = file("curve-foreign", &format!("{good}{bad}"));
            let error = Curve::read("x", &path).unwrap_err();
            assert!(matches!(error, EvalError::MetricsLine { line: 2, .. }), "{bad:?}: {error}");
        }
        let missing = Curve::read("x", Path::new("/nowhere/metrics.jsonl")).unwrap_err();
        assert!(missing.to_string().contains("/nowhere/metrics.jsonl"), "{missing}");
        let device = Curve::read("x", Path::new("/dev/zero")).unwrap_err().to_string();
        assert!(device.contains("not a regular file"), "{device}");
    }

    #[test]
    fn long_curves_keep_their_mean_their_end_and_their_validation() {
        let points: Vec<CurvePoint> = (1..=2500)
            .map(|step| CurvePoint {
                step,
                tokens: step * 10,
                loss: step as f64,
                validation_bits_per_byte: step.is_multiple_of(100).then_some(step as f64),
            })
            .collect();
        let thinned = thin(&points, MAX_POINTS);
        assert_eq!(thinned.len(), 834);
        assert_eq!(thinned[0].loss, 2.0);
        assert_eq!(thinned.last().unwrap().step, 2500);
        let measured = |points: &[CurvePoint]| -> Vec<f64> {
            points.iter().filter_map(|point| point.validation_bits_per_byte).collect()
        };
        assert_eq!(measured(&thinned), measured(&points));
        assert_eq!(thin(&points[..7], 1000), points[..7]);
        assert!(thin(&[], 1000).is_empty());
    }
}
