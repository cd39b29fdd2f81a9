//! The whole decoder in f64, one token and one number at a time, straight from the formulas.

use std::ops::Range;

use formats::{LayerPart, WeightName};

use crate::{ModelConfig, Parameters, TrainingRows};

/// The weighted loss of a batch, every weight changed by `change(name, index)`.
pub(super) fn loss(
    parameters: &Parameters,
    rows: TrainingRows<'_>,
    change: impl Fn(WeightName, usize) -> f64,
) -> f64 {
    let config = parameters.config();
    let read = |name: WeightName| -> Vec<f64> {
        let values = parameters.weight(name).iter().enumerate();
        values.map(|(i, &value)| f64::from(value) + change(name, i)).collect()
    };
    let embedding = read(WeightName::Embedding);
    let head = if config.tied_embeddings { embedding.clone() } else { read(WeightName::Head) };
    let layers: Vec<Layer> = (0..config.n_layers)
        .map(|layer_idx| {
            let parts = LayerPart::all(config).into_iter();
            let weights = parts.map(|part| read(WeightName::Layer { layer_idx, part })).collect();
            Layer { window: config.sliding_window(layer_idx), weights }
        })
        .collect();
    let final_norm = read(WeightName::FinalNorm);
    let mut loss = 0.0;
    for ends in rows.segment_starts.windows(2) {
        let document = ends[0] as usize..ends[1] as usize;
        let mut x: Vec<Vec<f64>> = rows.token_ids[document.clone()]
            .iter()
            .map(|&id| embedding[id as usize * config.hidden_dim..][..config.hidden_dim].to_vec())
            .collect();
        for layer in &layers {
            layer.run(config, &mut x);
        }
        for (x, t) in x.iter().zip(document) {
            let logits = product(&head, &norm(config, x, &final_norm));
            let sum: f64 = logits.iter().map(|x| x.exp()).sum();
            loss +=
                f64::from(rows.target_weights[t]) * (sum.ln() - logits[rows.targets[t] as usize]);
        }
    }
    loss
}

struct Layer {
    window: Option<usize>,
    /// In the order of [`LayerPart::all`], which is that of a dense layer.
    weights: Vec<Vec<f64>>,
}

impl Layer {
    fn run(&self, config: &ModelConfig, x: &mut [Vec<f64>]) {
        let [attention_norm, query, key, value, out, ffn_norm, gate, up, down] = &self.weights[..]
        else {
            panic!("a dense layer has nine weights, got {}", self.weights.len());
        };
        let normed: Vec<Vec<f64>> = x.iter().map(|x| norm(config, x, attention_norm)).collect();
        let rotated = |weight: &[f64]| -> Vec<Vec<f64>> {
            let rows = normed.iter().enumerate();
            rows.map(|(position, n)| rotate(config, position, &product(weight, n))).collect()
        };
        let (mut q, k) = (rotated(query), rotated(key));
        for (position, q) in q.iter_mut().enumerate() {
            let growth = query_growth(config, position);
            q.iter_mut().for_each(|q| *q *= growth);
        }
        let v: Vec<Vec<f64>> = normed.iter().map(|n| product(value, n)).collect();
        for t in 0..x.len() {
            let first = self.window.map_or(0, |window| (t + 1).saturating_sub(window));
            add(&mut x[t], &product(out, &attend(config, first..t + 1, &q[t], &k, &v)));
            let normed = norm(config, &x[t], ffn_norm);
            let (gate, up) = (product(gate, &normed), product(up, &normed));
            let gated: Vec<f64> =
                gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
            add(&mut x[t], &product(down, &gated));
        }
    }
}

fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

fn product(weight: &[f64], x: &[f64]) -> Vec<f64> {
    weight.chunks(x.len()).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
}

fn norm(config: &ModelConfig, x: &[f64], weight: &[f64]) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    let scale = 1.0 / (mean + f64::from(config.rms_norm_eps as f32)).sqrt();
    x.iter().zip(weight).map(|(x, w)| x * scale * w).collect()
}

fn rotate(config: &ModelConfig, position: usize, x: &[f64]) -> Vec<f64> {
    let (dim, half) = (config.head_dim, config.head_dim / 2);
    let mut out = x.to_vec();
    for head in 0..x.len() / dim {
        for i in 0..half {
            let angle = position as f64 * config.rope.theta.powf(-2.0 * i as f64 / dim as f64);
            let (x1, x2) = (x[head * dim + i], x[head * dim + half + i]);
            out[head * dim + i] = x1 * angle.cos() - x2 * angle.sin();
            out[head * dim + half + i] = x2 * angle.cos() + x1 * angle.sin();
        }
    }
    out
}

fn query_growth(config: &ModelConfig, position: usize) -> f64 {
    config.query_scaling.map_or(1.0, |scaling| {
        1.0 + scaling.beta * (1.0 + (position / scaling.original_context_len) as f64).ln()
    })
}

fn attend(
    config: &ModelConfig,
    visible: Range<usize>,
    q: &[f64],
    k: &[Vec<f64>],
    v: &[Vec<f64>],
) -> Vec<f64> {
    let dim = config.head_dim;
    let mut out = vec![0.0; q.len()];
    for head in 0..config.n_heads {
        let kv = head / (config.n_heads / config.n_kv_heads) * dim;
        let q = &q[head * dim..][..dim];
        let scores: Vec<f64> = visible
            .clone()
            .map(|j| {
                let dot: f64 = q.iter().zip(&k[j][kv..kv + dim]).map(|(q, k)| q * k).sum();
                (dot / (dim as f64).sqrt()).exp()
            })
            .collect();
        let sum: f64 = scores.iter().sum();
        for (j, score) in visible.clone().zip(&scores) {
            for i in 0..dim {
                out[head * dim + i] += score / sum * v[j][kv + i];
            }
        }
    }
    out
}
