//! How the cost of work grows with its size.

mod report;

use std::time::Instant;

use model::{CacheKind, Decoder, KvCache, ModelConfig, ModelError, Workspace};
use serde::Serialize;
use tensor::Device;
use train::TrainError;
use train::recipe::BatchSettings;

use crate::accuracy::prompt;
use crate::inference::{CHUNK, Subject, batched_decode};
use crate::result::median;
use crate::shapes::{Shape, TRAIN_STEP_SHAPE};
use crate::training::train_step;

pub use report::{DocumentError, GrowthReport};

/// Tokens that are written at each context.
const WRITTEN_TOKENS: usize = 24;
/// Users that write at once.
const USERS: [usize; 6] = [1, 2, 4, 8, 16, 32];
/// Widths of trained models of [`DEPTH`] layers; depths of those of width [`WIDTH`].
const WIDTHS: [usize; 5] = [128, 256, 384, 512, 768];
const DEPTHS: [usize; 5] = [2, 4, 8, 16, 32];
const WIDTH: usize = 384;
const DEPTH: usize = 8;
/// Rows and measured steps of a model that is trained.
const BATCH: BatchSettings =
    BatchSettings { seq_len: 512, rows_per_step: 4, rows_per_micro_batch: 2 };
const N_STEPS: usize = 3;

/// The costs of one kind of work.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Growth {
    /// Short name: letters and hyphens.
    pub name: &'static str,
    /// What is measured.
    pub title: &'static str,
    /// What grows, with its unit.
    pub size: &'static str,
    /// The unit of the cost.
    pub unit: &'static str,
    /// Ascending sizes, and their costs.
    pub points: Vec<(usize, f64)>,
}

impl Growth {
    /// The law `cost = factor * size^exponent` that fits best: a line through the logarithms, by least squares. `None` for fewer than two
    /// points.
    #[must_use]
    pub fn law(&self) -> Option<Law> {
        Law::of(&self.points)
    }

    /// The law of the last two points: where the cost is the sum of several laws, the one that wins.
    #[must_use]
    pub fn last_law(&self) -> Option<Law> {
        Law::of(&self.points[self.points.len().saturating_sub(2)..])
    }
}

/// `cost = factor * size^exponent`
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Law {
    /// Cost of size 1.
    pub factor: f64,
    /// 1 where the cost grows in proportion.
    pub exponent: f64,
}

impl Law {
    fn of(points: &[(usize, f64)]) -> Option<Self> {
        let points = points.iter().map(|&(size, cost)| ((size as f64).ln(), cost.ln()));
        let points: Vec<(f64, f64)> = points.collect();
        let n = points.len() as f64;
        let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / n;
        let (x_mean, y_mean) = (mean(|point| point.0), mean(|point| point.1));
        let covariance: f64 = points.iter().map(|(x, y)| (x - x_mean) * (y - y_mean)).sum();
        let variance: f64 = points.iter().map(|(x, _)| (x - x_mean).powi(2)).sum();
        let exponent = covariance / variance;
        let law = Self { factor: (y_mean - exponent * x_mean).exp(), exponent };
        (points.len() >= 2 && exponent.is_finite()).then_some(law)
    }

    /// The cost of a size.
    #[must_use]
    pub fn cost(self, size: f64) -> f64 {
        self.factor * size.powf(self.exponent)
    }
}

/// Reading a prompt, writing after a context, and writing to several users. Contexts are `first` and its doublings, up to that
/// of the model; what was read until then is a little less, for some tokens are written at each. One sequence is read to the end once, and the clock stopped on the way.
/// `on_start` hears what comes next.
#[must_use]
pub fn inference_growth(
    device: &Device,
    decoder: &Decoder,
    first: usize,
    mut on_start: impl FnMut(&str),
) -> Vec<Growth> {
    let (read, written) = context_growth(device, decoder, first, &mut on_start);
    let users = USERS.iter().map(|&n_users| {
        on_start(&format!("writing to {n_users} users"));
        let subject = Subject { decoder, adapter: None, cache_kind: CacheKind::Operands };
        let tokens_per_s = batched_decode(device, &subject, n_users);
        (n_users, 1e3 * n_users as f64 / tokens_per_s)
    });
    let growth = |name, title, size, unit, points| Growth { name, title, size, unit, points };
    vec![
        growth("prefill", "Reading a prompt", "length of the prompt, tokens", "s", read),
        growth("decode", "Writing a token", "tokens of context", "ms", written),
        growth("users", "Writing a token to each user", "users", "ms", users.collect()),
    ]
}

type Points = Vec<(usize, f64)>;

/// Seconds of reading, and milliseconds of writing a token, at each length.
fn context_growth(
    device: &Device,
    decoder: &Decoder,
    first: usize,
    on_start: &mut impl FnMut(&str),
) -> (Points, Points) {
    let config = decoder.config();
    let most = config.context_len.saturating_sub(WRITTEN_TOKENS);
    let token_ids = prompt(config.context_len, config.vocab_size);
    let mut workspace = Workspace::for_decoder(decoder, CHUNK);
    let mut cache = KvCache::new(decoder, CacheKind::Operands, 1, config.context_len, CHUNK);
    let (mut logits, mut read_s) = (Vec::new(), 0.0);
    let (mut read, mut written) = (Vec::new(), Vec::new());
    for wanted in std::iter::successors(Some(first), |length| Some(2 * length)) {
        let length = wanted.min(most);
        if length <= cache.len(0) {
            break;
        }
        on_start(&format!("reading up to {length} tokens, and writing"));
        // What was written at the last length belongs to the context, and was not read.
        let mut append = |cache: &mut KvCache, token_ids: &[u32]| {
            let start = Instant::now();
            cache.append(decoder, device, &[(0, token_ids)], &mut workspace, &mut logits);
            start.elapsed().as_secs_f64()
        };
        for chunk in token_ids[cache.len(0)..length].chunks(CHUNK) {
            read_s += append(&mut cache, chunk);
        }
        let n_written = WRITTEN_TOKENS * written.len();
        read.push((length - n_written, read_s));
        let mut seconds: Vec<f64> =
            (0..WRITTEN_TOKENS).map(|i| append(&mut cache, &[i as u32 + 3])).collect();
        written.push((length, 1e3 * median(&mut seconds)));
    }
    (read, written)
}

/// A training step of models of several widths, and of several depths. `on_start` hears what comes next.
///
/// # Errors
/// When a step fails.
pub fn training_growth(
    device: &Device,
    mut on_start: impl FnMut(&str),
) -> Result<Vec<Growth>, TrainError> {
    let n_tokens = (BATCH.rows_per_step * BATCH.seq_len) as f64;
    let mut points = |sizes: [usize; 5], shape: fn(usize) -> (usize, usize)| {
        let mut points = Vec::new();
        for size in sizes {
            let (width, n_layers) = shape(size);
            on_start(&format!("training {n_layers} layers of width {width}"));
            let config = trained(width, n_layers).expect("the shape is right");
            let mut speeds = train_step(device, &config, None, BATCH, N_STEPS)?;
            points.push((size, n_tokens / median(&mut speeds)));
        }
        Ok::<_, TrainError>(points)
    };
    let by_width = points(WIDTHS, |width| (width, DEPTH))?;
    let by_depth = points(DEPTHS, |n_layers| (WIDTH, n_layers))?;
    let growth = |name, title, size, points| Growth { name, title, size, unit: "s", points };
    Ok(vec![
        growth("width", "Training step, 8 layers", "width", by_width),
        growth("depth", "Training step, width 384", "layers", by_depth),
    ])
}

/// A model of this width and depth, with heads of 64, two for each KV head, that is trained on rows of the batch.
fn trained(width: usize, n_layers: usize) -> Result<ModelConfig, ModelError> {
    let (n_heads, ffn_dim) = (width / 64, (8 * width / 3).next_multiple_of(64));
    let dims = [width, n_layers, n_heads, n_heads / 2, 64, ffn_dim, 8192, BATCH.seq_len];
    Shape { name: "trained", dims, ..TRAIN_STEP_SHAPE }.config()
}

#[cfg(test)]
mod tests {
    use formats::DecoderConfig;
    use kernels::{Compute, Family};
    use model::Parameters;
    use tensor::{DType, Passes};

    use super::*;

    fn growth(points: &[(usize, f64)]) -> Growth {
        let points = points.to_vec();
        Growth { name: "test", title: "Test", size: "n", unit: "s", points }
    }

    #[test]
    fn the_exponent_of_a_law_is_found_and_that_of_a_sum_at_its_end() {
        let square: Points = [2, 4, 8].map(|n| (n, 0.5 * (n * n) as f64)).to_vec();
        let law = growth(&square).law().unwrap();
        assert!((law.exponent - 2.0).abs() < 1e-9 && (law.factor - 0.5).abs() < 1e-9, "{law:?}");
        assert!((law.cost(16.0) - 128.0).abs() < 1e-6);
        // A part that stays and one that grows in proportion.
        let sum: Points = [1, 10, 100, 1000, 10_000].map(|n| (n, 100.0 + n as f64)).to_vec();
        let (all, last) = (growth(&sum).law().unwrap(), growth(&sum).last_law().unwrap());
        assert!(all.exponent < 0.6 && last.exponent > 0.9, "{all:?} {last:?}");
        assert_eq!(growth(&sum[..1]).law(), None);
        assert_eq!(growth(&[]).last_law(), None);
    }

    #[test]
    fn lengths_double_up_to_the_context_and_hold_what_was_written() {
        let device = Device::Cpu(Compute::forced(Family::Reference, 1).unwrap());
        let config = DecoderConfig { context_len: 128, ..ModelConfig::example() };
        let config = ModelConfig::new(config).unwrap();
        let mut decoder = Decoder::zeroed(&device, &config, DType::F32, Passes::Forward);
        decoder.pack(&device, &Parameters::random(&config, 1));
        let (read, written) = context_growth(&device, &decoder, 32, &mut |_: &str| ());
        let lengths = |points: &Points| points.iter().map(|point| point.0).collect::<Vec<_>>();
        assert_eq!(lengths(&written), [32, 64, 104]);
        assert_eq!(lengths(&read), [32, 40, 56]);
        assert!(read.is_sorted_by(|a, b| a.1 < b.1) && written.iter().all(|point| point.1 > 0.0));
    }

    #[test]
    fn every_trained_shape_is_one() {
        for (width, n_layers) in
            WIDTHS.map(|width| (width, DEPTH)).into_iter().chain(DEPTHS.map(|n| (WIDTH, n)))
        {
            let config = trained(width, n_layers).unwrap();
            assert_eq!(config.check_trainable(), Ok(()), "{width} {n_layers}");
        }
    }
}
