//! `galerne plan`: what a run will take, and what serving the model takes.

use std::path::PathBuf;

use bench::{TRAIN_STEP_BATCH, TRAIN_STEP_SHAPE, training_speed};
use data::shard::TokenDtype;
use eval::figures::{bytes, duration};
use formats::WeightDtype;
use model::{CacheKind, Decoder, KvBlocks, ModelConfig, compute_dtype};
use serde::Serialize;
use serde_json::json;
use tensor::Passes;
use train::plan::RunPlan;
use train::recipe::{BatchSettings, ModelShape};

use crate::context::{Context, Form};
use crate::failure::Failure;
use crate::table::table;
use crate::{machine, recipes, run_plan};

/// Models up to this size are measured themselves; the time of larger ones follows from the operations.
const MAX_MEASURED_PARAMETERS: u64 = 200_000_000;

/// Arguments of `galerne plan`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Plan this recipe; the shape options below cannot be given with it
    #[arg(long, value_name = "FILE", conflicts_with_all = SHAPE_OPTIONS)]
    recipe: Option<PathBuf>,
    /// Override a key of the recipe
    #[arg(long, value_name = "SECTION.KEY=VALUE", requires = "recipe")]
    set: Vec<String>,
    /// Width of the residual stream
    #[arg(long, value_name = "N", default_value_t = 384)]
    hidden: usize,
    /// Layers
    #[arg(long, value_name = "N", default_value_t = 8)]
    layers: usize,
    /// Query heads
    #[arg(long, value_name = "N", default_value_t = 6)]
    heads: usize,
    /// Key and value heads
    #[arg(long, value_name = "N", default_value_t = 2)]
    kv_heads: usize,
    /// Width of a head
    #[arg(long, value_name = "N", default_value_t = 64)]
    head_dim: usize,
    /// Width of the feed-forward part
    #[arg(long, value_name = "N", default_value_t = 1024)]
    ffn: usize,
    /// Vocabulary
    #[arg(long, value_name = "N", default_value_t = 8192)]
    vocab: usize,
    /// Longest sequence, tokens
    #[arg(long, value_name = "N", default_value_t = 512)]
    context: usize,
    /// Tokens of a training row [default: --context]
    #[arg(long, value_name = "N")]
    seq_len: Option<usize>,
    /// Rows of an optimizer step
    #[arg(long, value_name = "N", default_value_t = 16)]
    rows: usize,
    /// Rows computed together
    #[arg(long, value_name = "N", default_value_t = 4)]
    micro_batch: usize,
    /// Tokens to train on
    #[arg(long, value_name = "N", default_value_t = 100_000_000)]
    tokens: u64,
    /// Training speed, tokens per second [default: measured here]
    #[arg(long, value_name = "NUMBER")]
    tokens_per_s: Option<f64>,
}

/// Options that say the same as a recipe.
const SHAPE_OPTIONS: [&str; 12] = [
    "hidden",
    "layers",
    "heads",
    "kv_heads",
    "head_dim",
    "ffn",
    "vocab",
    "context",
    "seq_len",
    "rows",
    "micro_batch",
    "tokens",
];

/// Where a speed comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum SpeedSource {
    Given,
    Measured,
    /// From the operations, at the speed measured on a model of 15.7 million parameters.
    Estimated,
}

/// What is planned.
struct Planned {
    plan: RunPlan,
    batch: BatchSettings,
    dtype: WeightDtype,
}

/// Runs the command.
///
/// # Errors
/// When the shape or the recipe cannot be used.
pub(crate) fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let (mut planned, device) = (planned(&args)?, context.device()?);
    planned.plan = planned.plan.on(&device);
    let speed = speed(&args, &planned, context)?;
    let plan = &planned.plan;
    let inference_dtype = compute_dtype(planned.dtype);
    let weights = Decoder::bytes_for(&plan.config, inference_dtype, Passes::Forward) as u64;
    let kind = CacheKind::Operands;
    let cache = KvBlocks::bytes_for(&plan.config, inference_dtype, kind, 1024, 1) as u64;
    let seconds = speed.map(|(speed, _)| plan.n_tokens as f64 / speed);
    match context.form() {
        Form::Json => {
            let mut memory = serde_json::to_value(plan.memory)?;
            memory["total_bytes"] = json!(plan.memory.total_bytes());
            context.print_json(&json!({
                "parameters": plan.config.n_parameters(),
                "trained_parameters": plan.n_trained_parameters(),
                "tokens": plan.n_tokens,
                "flops": plan.flops,
                "training_memory": memory,
                "checkpoint_bytes": plan.memory.checkpoint_bytes(),
                "model_bytes": plan.model_bytes,
                "tokens_per_s": speed.map(|(speed, _)| speed),
                "tokens_per_s_source": speed.map(|(_, source)| source),
                "seconds": seconds,
                "inference_weights_bytes": weights,
                "kv_cache_bytes_per_1024_tokens": cache,
                "memory_available_bytes": machine::available_bytes(&device),
            }))
        }
        Form::Text => {
            let mut rows = run_plan::rows(plan);
            if let (Some((speed, source)), Some(seconds)) = (speed, seconds) {
                let source = format!("{source:?}").to_lowercase();
                rows.push(("speed", format!("{speed:.0} tokens/s ({source})")));
                rows.push(("time", duration(seconds)));
            }
            rows.push(("serving: weights", bytes(weights)));
            rows.push(("serving: cache per 1024 tokens", bytes(cache)));
            rows.extend(run_plan::device_rows(&device));
            context.print(&table(&rows))
        }
    }
}

fn planned(args: &Args) -> anyhow::Result<Planned> {
    if let Some(path) = &args.recipe {
        let recipe = recipes::read(path, &args.set)?;
        let plan = RunPlan::of_recipe(&recipe)?;
        return Ok(Planned { plan, batch: recipe.batch, dtype: recipe.dtype });
    }
    let shape = ModelShape {
        hidden_dim: args.hidden,
        n_layers: args.layers,
        n_heads: args.heads,
        n_kv_heads: args.kv_heads,
        head_dim: args.head_dim,
        ffn_dim: args.ffn,
        vocab_size: args.vocab,
        context_len: args.context,
        rope_theta: 1e4,
    };
    let batch = BatchSettings {
        seq_len: args.seq_len.unwrap_or(args.context),
        rows_per_step: args.rows,
        rows_per_micro_batch: args.micro_batch,
    };
    let step_tokens = batch.rows_per_step.saturating_mul(batch.seq_len).max(1) as u64;
    let n_steps = args.tokens.div_ceil(step_tokens);
    batch.check(n_steps).map_err(Failure::usage)?;
    let dtype = WeightDtype::Bf16;
    let data_bytes = args.tokens * TokenDtype::for_vocab(args.vocab).n_bytes();
    let config = shape.planned_config().map_err(Failure::usage)?;
    let plan = RunPlan::new(config, None, dtype, batch, n_steps, data_bytes);
    Ok(Planned { plan, batch, dtype })
}

/// Tokens per second; none for f32, which is not measured.
fn speed(
    args: &Args,
    planned: &Planned,
    context: &Context,
) -> anyhow::Result<Option<(f64, SpeedSource)>> {
    if let Some(speed) = args.tokens_per_s {
        if !(speed.is_finite() && speed > 0.0) {
            let problem = format!("--tokens-per-s is {speed}, expected more than 0");
            return Err(Failure::usage(problem).into());
        }
        return Ok(Some((speed, SpeedSource::Given)));
    }
    if planned.dtype == WeightDtype::F32 {
        return Ok(None);
    }
    context.say("measuring the speed of a training step; --tokens-per-s gives it instead");
    let device = context.device()?;
    let config = &planned.plan.config;
    let available = machine::available_bytes(&device).unwrap_or(u64::MAX);
    if config.n_parameters() <= MAX_MEASURED_PARAMETERS
        && planned.plan.memory.total_bytes() < available
    {
        let adapter = planned.plan.adapter.as_ref();
        let speed = training_speed(&device, config, adapter, planned.batch)?;
        return Ok(Some((speed, SpeedSource::Measured)));
    }
    let small: ModelConfig = TRAIN_STEP_SHAPE.config()?;
    let of_small = small.train_flops_per_token(TRAIN_STEP_BATCH.seq_len);
    let flops = training_speed(&device, &small, None, TRAIN_STEP_BATCH)? * of_small;
    Ok(Some((flops / planned.plan.flops_per_token(), SpeedSource::Estimated)))
}
