//! From a time budget and a measured speed to a model and step counts, before the first step.

use bench::{TrainStepShape, training_speed};
use data::packing::PretrainingRows;
use tensor::Device;
use train::recipe::{BatchSettings, ModelShape};

use super::settings::{Plan, Settings};

/// Rows of pre-training and of fine-tuning; a row takes many conversations.
pub(crate) const BATCH: BatchSettings =
    BatchSettings { seq_len: 512, rows_per_step: 8, rows_per_micro_batch: 4 };

/// Share of the budget that is spent in training steps; the rest prepares, measures and exports.
const TRAINING_SHARE: f64 = 0.84;
/// Fine-tuning on general chat, at most (a little over two passes) and as a share of the training time.
const MAX_CHAT_TOKENS: f64 = 800_000.0;
const CHAT_SHARE: f64 = 0.06;
/// Fine-tuning on the company (about fourteen passes).
const MAX_COMPANY_TOKENS: f64 = 3_400_000.0;
const COMPANY_SHARE: f64 = 0.47;
/// More passes over the pre-training text teach little.
const MAX_PRETRAIN_EPOCHS: f64 = 2.0;
/// A model is too large for the budget when it would see fewer tokens than this in all.
const MIN_TOKENS: f64 = 5_000_000.0;

/// Shapes by falling size: width, layers, query heads, KV heads, feed-forward width; heads of 64.
const SHAPES: [[usize; 5]; 3] = [[256, 6, 4, 2, 704], [192, 5, 3, 1, 512], [128, 4, 2, 1, 352]];

/// Chooses the largest shape that sees enough tokens within the budget, and divides the time.
///
/// # Errors
/// When a step cannot be measured.
pub(crate) fn make_plan(
    device: &Device,
    settings: &Settings,
    rows: &PretrainingRows,
) -> anyhow::Result<Plan> {
    let training_s = settings.budget_minutes * 60.0 * TRAINING_SHARE;
    let mut chosen = None;
    for dims in SHAPES {
        let shape = model_shape(dims, settings.vocab_size);
        let config = shape.config(1, 2)?;
        let BatchSettings { seq_len, rows_per_micro_batch, rows_per_step } = BATCH;
        let step = TrainStepShape { seq_len, rows_per_micro_batch, n_rows: rows_per_step };
        let tokens_per_s = training_speed(device, &config, step)?;
        chosen = Some((shape, tokens_per_s));
        if tokens_per_s * training_s >= MIN_TOKENS {
            break;
        }
    }
    let (shape, tokens_per_s) = chosen.expect("there is at least one shape");
    let tokens = tokens_per_s * training_s;
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
