//! From a time budget and a measured speed to a model and step counts, before the first step.

use std::time::Instant;

use bench::training_speed;
use data::packing::PretrainingRows;
use tensor::Device;
use train::recipe::{BatchSettings, ModelShape};

use super::settings::{Plan, Settings};

/// Rows of pre-training and of fine-tuning; a row takes many conversations.
pub(crate) const BATCH: BatchSettings =
    BatchSettings { seq_len: 512, rows_per_step: 8, rows_per_micro_batch: 2 };

/// Tokens of the three runs without a budget. Machines of one kernel family that do them on their processors in time make
/// the same models, whatever their speed.
const DEFAULT_TOKENS: f64 = 6_400_000.0;
/// Minutes that a quickstart without a budget takes at most.
const MAX_MINUTES: f64 = 30.0;
/// Share of what is left of the budget after preparing that is spent in training steps; the rest measures and exports.
const TRAINING_SHARE: f64 = 0.92;
/// Share of the budget that training gets at least, however long preparing took.
const MIN_TRAINING_SHARE: f64 = 0.3;
/// Fine-tuning on general chat: its share of the tokens, and the most that teaches something (four passes).
const CHAT_SHARE: f64 = 0.07;
const MAX_CHAT_TOKENS: f64 = 1_300_000.0;
/// Fine-tuning on the company; at the default a little over one pass.
const COMPANY_SHARE: f64 = 0.37;
const MAX_COMPANY_TOKENS: f64 = 8_000_000.0;
/// More passes over the pre-training text teach little (arXiv 2305.16264).
const MAX_PRETRAIN_EPOCHS: f64 = 4.0;
/// A model is too large for the budget when it would see fewer tokens than this for each of its parameters.
const MIN_TOKENS_PER_PARAMETER: f64 = 0.8;

/// Shapes by falling size: width, layers, query heads, KV heads, feed-forward width; heads of 64.
const SHAPES: [[usize; 5]; 4] =
    [[384, 8, 6, 2, 1024], [256, 6, 4, 2, 704], [192, 5, 3, 1, 512], [128, 4, 2, 1, 352]];

/// Chooses the largest shape that sees enough tokens within what is left of the budget after `spent_s` seconds, and
/// divides the tokens.
///
/// # Errors
/// When a step cannot be measured.
pub(crate) fn make_plan(
    device: &Device,
    settings: &Settings,
    rows: &PretrainingRows,
    spent_s: f64,
) -> anyhow::Result<Plan> {
    let budget_s = settings.budget_minutes.unwrap_or(MAX_MINUTES) * 60.0;
    let start = Instant::now();
    let wanted = if settings.budget_minutes.is_some() { f64::INFINITY } else { DEFAULT_TOKENS };
    let mut chosen = None;
    for dims in SHAPES {
        let shape = model_shape(dims, settings.vocab_size);
        let config = shape.planned_config()?;
        let needed = MIN_TOKENS_PER_PARAMETER * config.n_parameters() as f64;
        if wanted < needed {
            continue;
        }
        let tokens_per_s = training_speed(device, &config, None, BATCH)?;
        // Measuring counts too.
        let left_s = budget_s - spent_s - start.elapsed().as_secs_f64();
        let training_s = (left_s * TRAINING_SHARE).max(budget_s * MIN_TRAINING_SHARE);
        let tokens = wanted.min(tokens_per_s * training_s);
        chosen = Some((shape, tokens_per_s, tokens));
        if tokens >= needed {
            break;
        }
    }
    let (shape, tokens_per_s, tokens) = chosen.expect("the smallest shape is always tried");
    let chat = MAX_CHAT_TOKENS.min(tokens * CHAT_SHARE);
    let company = MAX_COMPANY_TOKENS.min(tokens * COMPANY_SHARE);
    let epochs = MAX_PRETRAIN_EPOCHS * rows.n_tokens() as f64;
    let pretrain = epochs.min(tokens - chat - company);
    let tokens_per_step = (BATCH.rows_per_step * BATCH.seq_len) as f64;
    let steps = |tokens: f64| (tokens / tokens_per_step).ceil().max(2.0) as u64;
    Ok(Plan {
        tokens_per_s,
        pretrain_steps: steps(pretrain),
        chat_steps: steps(chat),
        company_steps: steps(company),
        shape,
    })
}

fn model_shape(dims: [usize; 5], vocab_size: usize) -> ModelShape {
    let [hidden_dim, n_layers, n_heads, n_kv_heads, ffn_dim] = dims;
    ModelShape {
        hidden_dim,
        n_layers,
        n_heads,
        n_kv_heads,
        head_dim: 64,
        ffn_dim,
        vocab_size,
        context_len: BATCH.seq_len,
        rope_theta: 1e4,
    }
}
